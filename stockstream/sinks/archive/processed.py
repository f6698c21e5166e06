"""Processed objects: accepted ticks and one-minute bars as Parquet, made from a raw object and its verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stockstream.errors import ArchiveError
from stockstream.records import AFTER_FEED_GAP, CORRECTION
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.compactions import replaced_by
from stockstream.sinks.archive.layout import DAY_MS, HOUR_MS, MINUTE_MS, folder_of_day, folder_of_hour, parse_name, processed_name
from stockstream.sinks.archive.raw_objects import Extent, encode_json
from stockstream.sinks.archive.retention import has_ended, processed_since
from stockstream.sinks.archive.schemas import STORED_BARS, STORED_TICKS
from stockstream.sinks.archive.sealing import METADATA, seal_parquet
from stockstream.sinks.stores import Store
from stockstream.transforms.cleaning.limits import MAX_TIME
from stockstream.transforms.shares import joined, split
from stockstream.wording import counted

ROW_GROUP = 120_000
GAP_EDGE = 5
"""Minutes at each end of a gap of the feed that are marked. Between them no tick can be: a late one is at most MAX_REVISE_S behind, and what a worker read of
the newest second before it took over is no older than that."""


class Made(msgspec.Struct, frozen=True):
    """The footer of a processed object, under `stockstream`: the raw offsets that its rows come from.

    `objects` (in the ticks object beside the raw one) maps every object made from these offsets to its number of rows. `missing` lists offsets whose
    verdict by `clean` was no longer available.
    """

    log: str
    partition: int
    first: int
    last: int
    rows: int
    objects: dict[str, int] = {}
    missing: tuple[tuple[int, int], ...] = ()
    version: int = 1


decode_made = msgspec.json.Decoder(Made).decode


class _CountsRows(Protocol):
    @property
    def rows(self) -> int: ...


Counting = TypeVar("Counting", bound=_CountsRows)
"""A footer that counts the rows of its object."""
BROKEN = (pa.ArrowException, OSError, KeyError, ValueError, MemoryError)
"""What pyarrow and the decoder of a footer raise on bytes that have changed; pyarrow's own errors and msgspec's are among them."""


def processed_objects(extent: Extent, raw: str, rows: pa.Table, missing: Sequence[tuple[int, int]] = ()) -> list[tuple[str, bytes]]:
    """Name and bytes of the objects made from one raw object, in the order of writing. The last one, in the raw object's folder, marks them as complete.

    `rows`: the accepted ticks (`TICKS_SCHEMA`) of the extent's offsets, in any order. The same rows give the same objects on every worker.
    """
    raw_folder = raw.removeprefix("raw/").rpartition("/")[0]
    stem = raw.rpartition("/")[2].removesuffix(".jsonl.zst") + ".parquet"
    parts = [(f"{folder}/{stem}", table) for folder, table in tables_of(extent.log, extent.partition, extent.first, rows)]
    main = f"processed/ticks/{raw_folder}/{stem}"
    if all(name != main for name, _ in parts):
        parts.append((main, STORED_TICKS.empty_table()))
    parts.sort(key=lambda part: part[0] == main)
    objects = {name: table.num_rows for name, table in parts}
    made = Made(extent.log, extent.partition, extent.first, extent.last, 0)
    done: list[tuple[str, bytes]] = []
    for name, table in parts:
        footer = msgspec.structs.replace(made, rows=table.num_rows)
        if name == main:
            footer = msgspec.structs.replace(footer, objects=objects, missing=tuple(missing))
        done.append((name, parquet(table, encode_json(footer))))
    return done


def tables_of(log: str, partition: int, first: int, rows: pa.Table) -> list[tuple[str, pa.Table]]:
    """What is stored of the accepted ticks (`TICKS_SCHEMA`) in an object that begins at raw offset `first`: folder, and table as in STORED.

    The same rows in any order give the same tables.
    """
    rows = rows.sort_by([(name, "ascending") for name in ("symbol", "event_time", "offset", "index")])
    parts: list[tuple[str, pa.Table]] = []
    for hour, table in by_span(rows, HOUR_MS, "event_time"):
        parts.append((f"processed/ticks/{folder_of_hour(hour)}", of_schema(placed(table, log, partition), STORED_TICKS)))
    bars = placed(pa.concat_tables([_bars(rows), _gap_parts(rows)], promote_options="default"), log, partition)
    bars = bars.append_column("record_offset", pa.repeat(pa.scalar(first, pa.int64()), bars.num_rows))
    for day, table in by_span(bars, DAY_MS, "minute"):
        parts.append((f"processed/bars_1m/{folder_of_day(day)}", of_schema(table, STORED_BARS)))
    return parts


def by_span(rows: pa.Table, span: int, column: str) -> Iterator[tuple[int, pa.Table]]:
    """The rows by the value of an integer column divided by `span`, ascending."""
    if not rows.num_rows:
        return
    of = rows.column(column).to_numpy() // span
    values = np.unique(of)
    for value in values:
        yield int(value), rows if len(values) == 1 else rows.filter(pa.array(of == value))


def placed(rows: pa.Table, log: str, partition: int) -> pa.Table:
    """The rows with the columns `partition` and `log`."""
    for name, value in (("partition", pa.scalar(partition, pa.int32())), ("log", pa.scalar(log, pa.string()))):
        rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
    return rows


def _gap_parts(rows: pa.Table) -> pa.Table:
    """A part without ticks for each minute into which a gap of the feed reaches, of those that GAP_EDGE names."""
    flags = rows.column("flags").fill_null(0).to_numpy()
    after = rows.filter(pa.array((flags & AFTER_FEED_GAP) > 0))
    end = after.column("event_time").to_numpy() // MINUTE_MS
    begin = np.minimum(after.column("gap_from").fill_null(MAX_TIME).to_numpy() // MINUTE_MS, end)
    minutes = np.stack([*(np.minimum(begin + step, end) for step in range(GAP_EDGE)), *(np.maximum(end - step, begin) for step in range(GAP_EDGE))])
    symbol, source = (pa.concat_arrays([after.column(name).combine_chunks()] * len(minutes)) for name in ("symbol", "source"))
    parts = pa.table({"symbol": symbol, "source": source, "minute": minutes.reshape(-1) * MINUTE_MS})
    parts = parts.group_by(["symbol", "source", "minute"], use_threads=False).aggregate([])
    nothing = {"volume": pa.float64(), "notional": pa.float64(), "ticks": pa.int64()}
    for name, kind in nothing.items():
        parts = parts.append_column(name, pa.repeat(pa.scalar(0, kind), parts.num_rows))
    return parts.append_column("gap", pa.repeat(pa.scalar(value=True), parts.num_rows))


def _bars(rows: pa.Table) -> pa.Table:
    event_time = rows.column("event_time").to_numpy()
    rows = rows.append_column("second", pa.array(event_time // 1000)).append_column("minute", pa.array(event_time // MINUTE_MS * MINUTE_MS))
    rows = rows.filter(pc.is_valid(rows.column("price")))
    rows = rows.sort_by([(name, "ascending") for name in ("symbol", "source", "second", "offset", "index")])
    size = rows.column("size").to_numpy()
    for name, values in zip(("whole", "part", "notional"), (*split(size), rows.column("price").to_numpy() * size), strict=True):
        rows = rows.append_column(name, pa.array(values))
    correction = pc.greater(pc.bit_wise_and(rows.column("flags").fill_null(0), CORRECTION), 0)
    if pc.any(correction).as_py():                                       # it counts in volume and notional only
        for place, name in enumerate(rows.column_names):
            if name in ("price", "second", "offset", "index"):
                column = rows.column(name)
                rows = rows.set_column(place, name, pc.if_else(correction, pa.scalar(None, column.type), column))
    first_and_last = [(name, which) for which in ("first", "last") for name in ("second", "offset", "index")]
    sums = [(name, "sum") for name in ("whole", "part", "notional")]
    bars = rows.group_by(["symbol", "source", "minute"], use_threads=False).aggregate(
        [("price", "first"), ("price", "max"), ("price", "min"), ("price", "last"), *sums, ("price", "count"), *first_and_last]
    )
    volume = pa.array(joined(bars.column("whole_sum").to_numpy(), bars.column("part_sum").to_numpy()))
    columns = ["symbol", "source", "minute", "price_first", "price_max", "price_min", "price_last", "volume", "notional_sum", "price_count"]
    bars = bars.append_column("volume", volume).select(columns + [f"{name}_{which}" for name, which in first_and_last])
    for name in ("gap", "repaired"):
        bars = bars.append_column(name, pa.repeat(pa.scalar(value=False), bars.num_rows))
    return bars.rename_columns(STORED_BARS.names[: bars.num_columns])


def of_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table with the columns of `schema`, in its order; those that it lacks are null."""
    columns = [
        table.column(field.name).cast(field.type) if field.name in table.column_names else pa.nulls(table.num_rows, field.type) for field in schema
    ]
    return pa.table(columns, schema=schema)


def parquet(table: pa.Table, footer: bytes) -> bytes:
    """The table as Parquet, with the footer under `stockstream`, and its checksum."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata({b"stockstream": footer, **METADATA})
    pq.write_table(table, sink, compression="zstd", row_group_size=ROW_GROUP)
    return seal_parquet(sink.getvalue().to_pybytes())


def read_made(store: Store, name: str) -> Made:
    """Reads the footer of a processed object. Raises `ArchiveError` if there is none, or if its number of rows is wrong."""
    return read_footer(store, name, decode_made, "a processed object of stockstream")


def read_footer(store: Store, name: str, decode: Callable[[bytes], Counting], kind: str) -> Counting:
    """Reads the footer of an object, whose `kind` errors name. Raises `ArchiveError` if there is none, or if its number of rows is wrong."""
    try:
        metadata = pq.read_metadata(pa.BufferReader(store.read(name)))
        footer = decode((metadata.metadata or {})[b"stockstream"])
    except BROKEN as error:
        raise ArchiveError(f"{name} is not {kind}: {error}") from error
    if metadata.num_rows != footer.rows:
        raise ArchiveError(f"{name} has {counted(metadata.num_rows, 'row')}, but its footer counts {footer.rows}")
    return footer


def unprocessed(chain: Chain) -> list[str]:
    """Names of the newest raw objects that have no processed object yet, the oldest first. A compaction may have replaced one, retention ended it."""
    found: list[str] = []
    since = processed_since(chain.store)
    for name in chain.backwards():
        if has_ended(name, since):
            break
        made = processed_name(name)
        parsed = parse_name(made)
        if chain.store.size(made) is not None or (parsed and replaced_by(chain.store, parsed)):
            break
        found.append(name)
    return found[::-1]

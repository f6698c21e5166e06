"""The data object of a compaction: the rows of several small objects of one folder, sorted by symbol and time, in one Parquet object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cramjam
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.compactions import Compaction, Range, compaction_of_data
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.processed import BROKEN, ROW_GROUP, of_schema
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.schemas import STORED
from stockstream.sinks.archive.sealing import METADATA, require_parquet, seal_parquet
from stockstream.sinks.stores import Store
from stockstream.wording import counted, one_line

TIME = {"ticks": "event_time", "bars_1m": "minute", "windows": "time", "alerts": "as_of", "predictions": "as_of", "outcomes": "as_of"}
"""The column by which the rows of a symbol are sorted."""
_UNIQUE = ("id", "trade_id", "message", "window", "latency_ms")
"""Columns of strings that hardly repeat. The others are kept as dictionaries in memory and in the object."""
KIND = "a compacted object of stockstream"
_TAIL = 65_536
"""Read from the end of an object for its footer, which seldom is longer."""


class Source(msgspec.Struct, frozen=True):
    """A small object that was replaced: its name, and its footer as it was."""

    name: str
    footer: msgspec.Raw

    @property
    def range(self) -> Range:
        return _decode_range(self.footer)


class CompactedFooter(msgspec.Struct, frozen=True):
    """The footer of a compaction's data object, under `stockstream`. `sources`: JSON of the sources, in the order of their names, in zstd."""

    area: str
    folder: str
    compaction: int
    rows: int
    sources: bytes
    version: int = 1

    def list_sources(self) -> list[Source]:
        """Raises `ArchiveError` if they cannot be decoded."""
        try:
            return _decode_sources(bytes(cramjam.zstd.decompress(self.sources)))
        except (cramjam.DecompressionError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ArchiveError(f"the sources of a compacted object cannot be read: {error}") from error


@dataclass(frozen=True, slots=True)
class Small:
    """A small object as it was read."""

    source: Source
    range: Range
    rows: pa.Table


_decode_range = msgspec.json.Decoder(Range).decode
decode_footer = msgspec.json.Decoder(CompactedFooter).decode
_decode_sources = msgspec.json.Decoder(list[Source]).decode


def read_small(name: str, data: bytes) -> Small:
    """Decodes a small object of `processed/`. Its rows have the columns of its area. Raises `ArchiveError` if it is not whole."""
    parsed = parse_name(name)
    assert parsed is not None
    area = parsed.area.removeprefix("processed/")
    schema = _SCHEMAS[area]
    require_parquet(name, data)
    try:
        file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=_repeating(area))
        footer = (file.metadata.metadata or {})[b"stockstream"]
        found = _decode_range(footer)
        rows = file.read(use_threads=False).replace_schema_metadata(None)
    except BROKEN as error:
        raise ArchiveError(f"{name} cannot be read: {one_line(error)}") from error
    if found.rows != rows.num_rows:
        raise ArchiveError(f"{name} has {counted(rows.num_rows, 'row')}, but its footer counts {found.rows}")
    if (found.log, found.partition, found.first) != (parsed.log, parsed.partition, parsed.first):
        raise ArchiveError(f"{name}: its footer names log {found.log}, partition {found.partition}, offset {found.first}")
    if not rows.schema.equals(schema):                                   # of an earlier release
        rows = of_schema(_with_place(rows, parsed, area), schema)
    return Small(Source(name, msgspec.Raw(footer)), found, rows)


def _repeating(area: str) -> list[str]:
    return [field.name for field in STORED[area] if field.type == pa.string() and field.name not in _UNIQUE]


def _in_memory(area: str) -> pa.Schema:
    repeating = _repeating(area)
    return pa.schema([field.with_type(pa.dictionary(pa.int32(), pa.string())) if field.name in repeating else field for field in STORED[area]])


_SCHEMAS = {area: _in_memory(area) for area in STORED}
"""The columns of each area, those of repeating strings as dictionaries."""


def _with_place(rows: pa.Table, name: Name, area: str) -> pa.Table:
    """The rows with their place, which bars of an earlier release lack: there it is the object's."""
    place = {"partition": pa.scalar(name.partition, pa.int32()), "log": pa.scalar(name.log)}
    if area == "bars_1m":
        place["record_offset"] = pa.scalar(name.first, pa.int64())
    for column, value in place.items():
        if column not in rows.column_names:
            rows = rows.append_column(column, pa.repeat(value, rows.num_rows))
    return rows


def together(smalls: Sequence[Small]) -> pa.Table:
    """The rows of these small objects, copied into one piece: thousands of small columns would take twice the memory."""
    return pa.concat_tables([small.rows for small in smalls]).unify_dictionaries().combine_chunks()


def compacted_object(compaction: Compaction, sources: Sequence[Source], tables: Sequence[pa.Table]) -> bytes:
    """The data object of these small objects, whose rows are in `tables`, both in the order of their names. The same ones give the same bytes.

    Rows of one symbol and time stay in the order of the objects' names and of the rows in them, so that of ticks is the order of the log.
    """
    stored = STORED[compaction.area]
    table = pa.concat_tables(tables).unify_dictionaries()
    order = _order(table, TIME[compaction.area])
    packed = bytes(cramjam.zstd.compress(encode_json(sources)))
    footer = CompactedFooter(compaction.area, compaction.folder, compaction.number, table.num_rows, packed)
    sink = pa.BufferOutputStream()
    with pq.ParquetWriter(sink, stored.with_metadata({b"stockstream": encode_json(footer), **METADATA}), **encoding_of(compaction.area)) as writer:
        for begin in range(0, len(order), ROW_GROUP):
            rows = table.take(order.slice(begin, ROW_GROUP))
            rows = rows.set_column(rows.column_names.index("compaction"), "compaction", _repeated(compaction.number, rows.num_rows))
            writer.write_table(rows.cast(stored), row_group_size=ROW_GROUP)
    return seal_parquet(sink.getvalue().to_pybytes())


def encoding_of(area: str) -> dict[str, Any]:
    """How the columns of an area are encoded in sorted objects: arguments of `ParquetWriter`."""
    stored = STORED[area]
    ascending = [field.name for field in stored if field.name.endswith(("offset", "_time", "second", "minute")) or field.type == pa.timestamp("ms")]
    return {
        "compression": "zstd", "use_dictionary": [field.name for field in stored if field.name not in (*ascending, *_UNIQUE)],
        "column_encoding": dict.fromkeys(ascending, "DELTA_BINARY_PACKED"),
    }  # fmt: skip


def _repeated(number: int, count: int) -> pa.Array:
    """`pa.repeat` of a `pa.scalar`, which imports pandas, where it is installed: as long as the rest of an hour's compaction takes."""
    return pa.Array.from_buffers(pa.int32(), count, [None, pa.py_buffer(number.to_bytes(4, "little") * count)])


def _order(table: pa.Table, time: str) -> pa.Array:
    """The order by symbol and time that keeps equal rows in theirs."""
    chunks = table.column("symbol").chunks                               # of one dictionary
    rank = pa.chunked_array([pc.rank(chunk.dictionary, tiebreaker="dense").take(chunk.indices) for chunk in chunks], pa.uint64())
    return pc.sort_indices(pa.Table.from_arrays([rank, table.column(time)], ["symbol", "time"]), sort_keys=[("symbol", "ascending"), ("time", "ascending")])


def read_metadata(store: Store, name: str) -> pq.FileMetaData:
    """The metadata of a Parquet object, of which only the end is read. Raises one of BROKEN, or what the store raises."""
    tail = store.read(name, _TAIL)
    size = int.from_bytes(tail[-8:-4], "little") + 8
    return pq.read_metadata(pa.BufferReader(tail if size <= len(tail) else store.read(name, size)))


def count_rows(store: Store, name: str) -> int:
    """The number of rows of a Parquet object. Raises `ArchiveError`."""
    try:
        return int(read_metadata(store, name).num_rows)
    except BROKEN as error:
        raise ArchiveError(f"{name} cannot be read: {one_line(error)}") from error


def read_compacted_object(store: Store, name: str) -> CompactedFooter:
    """Reads the footer of a compaction's data object. Raises `ArchiveError` if it is not one, or if its number of rows is wrong."""
    try:
        metadata = read_metadata(store, name)
        footer = decode_footer((metadata.metadata or {})[b"stockstream"])
    except BROKEN as error:
        raise ArchiveError(f"{name} is not {KIND}: {one_line(error)}") from error
    require_consistent(name, footer, metadata.num_rows)
    return footer


def require_consistent(name: str, footer: CompactedFooter, rows: int) -> None:
    """The footer is that of the data object `name`, which has so many rows. Raises `ArchiveError`."""
    if rows != footer.rows:
        raise ArchiveError(f"{name} has {counted(rows, 'row')}, but its footer counts {footer.rows}")
    if compaction_of_data(name) != Compaction(footer.area, footer.folder, footer.compaction):
        raise ArchiveError(f"{name}: its footer names compaction {footer.compaction} of {footer.area}, {footer.folder}")

"""The objects of one step of a topic partition: its rows by folder, sorted, as Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.layout import DAY_MS, HOUR_MS, folder_of_day, folder_of_hour
from stockstream.sinks.archive.processed import of_schema, parquet, placed
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.schemas import STORED


class MadeOfRecords(msgspec.Struct, frozen=True):
    """The footer of an object, under `stockstream`: the records of the topic that its rows come from.

    `before`: the greatest `order_ms` of a row in earlier steps, so that whoever looks for a later row need not read earlier objects.
    """

    log: str
    partition: int
    first: int
    last: int
    rows: int
    before: int
    version: int = 1


@dataclass(frozen=True, slots=True)
class Area:
    """How the rows of a topic are stored. `time` names the column whose date (and hour, if `hourly`) is the folder, `identity` the columns that identify a row.

    `identity` is empty where raw offsets decide what is repeated.
    """

    name: str
    time: str
    hourly: bool
    identity: tuple[str, ...]
    sort: tuple[str, ...]

    def folders(self, rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
        """The rows by folder, ascending by time."""
        of = milliseconds(rows, self.time) // (HOUR_MS if self.hourly else DAY_MS)
        for value in np.unique(of):
            yield (folder_of_hour if self.hourly else folder_of_day)(int(value)), rows.filter(pa.array(of == value))


AREAS = {
    area.name: area
    for area in (
        Area("windows", "time", True, (), ("symbol", "time", "offset")),
        Area("alerts", "as_of", False, ("id", "state", "as_of"), ("symbol", "as_of", "id", "record_offset")),
        Area("predictions", "as_of", True, ("id", "horizon_s"), ("symbol", "as_of", "id", "horizon_s")),
        Area("outcomes", "as_of", True, ("id", "horizon_s"), ("symbol", "as_of", "id", "horizon_s")),
    )
}  # fmt: skip
"""The topics that are archived so."""


class _Before(msgspec.Struct):
    before: int = 1 << 62


_decode_before = msgspec.json.Decoder(_Before).decode
decode_made = msgspec.json.Decoder(MadeOfRecords).decode


def milliseconds(rows: pa.Table, column: str) -> NDArray[np.int64]:
    """A column of timestamps as epoch ms."""
    values: NDArray[np.int64] = rows.column(column).cast(pa.int64()).to_numpy()
    return values


def order_ms(area: Area, rows: pa.Table) -> NDArray[np.int64]:
    """A time of each row, epoch ms, in whose order rows are published but for late ones: that of the row, and of an outcome the end of its horizon."""
    times = milliseconds(rows, area.time)
    return times + 1_000 * rows.column("horizon_s").to_numpy().astype(np.int64) if area.name == "outcomes" else times


def identities(area: Area, rows: pa.Table) -> pa.Array:
    """The identity of each row as a text."""
    columns = [rows.column(name) for name in area.identity]
    texts = [column if pa.types.is_string(column.type) else _whole(column).cast(pa.string()) for column in columns]
    joined = pc.binary_join_element_wise(*texts, "|")
    return joined.combine_chunks() if isinstance(joined, pa.ChunkedArray) else joined


def _whole(column: pa.ChunkedArray) -> pa.ChunkedArray:
    return column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column


def object_name(area: Area, folder: str, log: str, partition: int, first: int) -> str:
    """The name of an object of the step that begins with the record `first`."""
    return f"processed/{area.name}/{folder}/{log}-{partition:05d}-{first:020d}.parquet"


def make_objects(area: Area, rows: pa.Table, log: str, partition: int, first: int, last: int, before: int) -> list[tuple[str, int, bytes]]:
    """Name, number of rows and bytes of the objects with these rows, which have the columns of `Gathered`. The same rows give the same objects."""
    made = []
    for folder, table in area.folders(rows) if rows.num_rows else ():
        table = table.sort_by([(name, "ascending") for name in area.sort])
        table = placed(table, log, partition)
        footer = MadeOfRecords(log, partition, first, last, table.num_rows, before)
        made.append((object_name(area, folder, log, partition, first), table.num_rows, parquet(of_schema(table, STORED[area.name]), encode_json(footer))))
    return made


def before_of(footer: bytes) -> int:
    """`before` of a footer; of a compacted object's, which has none, the greatest number. Raises `ArchiveError`."""
    try:
        return _decode_before(footer).before
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"a footer cannot be read: {error}") from error



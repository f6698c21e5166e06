"""Leaves out rows of `alerts`, `predictions` and `outcomes` that the archive has already: a crashed worker sent them again, or one that had lost its
partition sent them too.

A row is repeated if a row of the same identity came before it in its partition. Nearly all rows are later than every row before them, and need no search. The
others are searched in the newest objects, which are remembered, and then in the folder of their time, from the newest object back to the one before which
there is nothing as late.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.compactions import compaction_of_data
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.processed import BROKEN
from stockstream.sinks.archive.topics.objects import Area, before_of, identities, order_ms
from stockstream.sinks.archive.topics.positions import NEVER
from stockstream.sinks.stores import Store

REMEMBERED = 50_000
"""Identities of the newest rows that are kept in memory for a partition, with about 45 bytes each: some minutes of 125 symbols with three horizons."""
ATTEMPTS = 3
"""A compaction may delete an object between listing and reading. Its rows are then in the compacted object."""


class Repeated:
    """What is known about the archived rows of one topic partition.

    Args:
        area: of the topic.
        store: the archive's.
        partition: of the topic.
        newest: the greatest `order_ms` of a row in the archive.
    """

    def __init__(self, area: Area, store: Store, partition: int, newest: int) -> None:
        self._area, self._store, self._partition, self._newest = area, store, partition, newest
        self._remembered: deque[tuple[int, pa.Array]] = deque()
        """Of the newest steps without a gap: the greatest `order_ms` before the step, and its identities."""

    @property
    def _floor(self) -> int:
        """All archived rows that are later than this are remembered."""
        return self._remembered[0][0] if self._remembered else self._newest

    def without(self, rows: pa.Table, log: str, first: int) -> pa.Table:
        """The rows, in the order of their records, that are not repeated. `log` and `first` are those of the step that they belong to.

        Raises what the store raises.
        """
        if not rows.num_rows:
            return rows
        texts, order = identities(self._area, rows), order_ms(self._area, rows)
        keep = _first_of_each(texts)
        doubtful = keep & (order <= self._newest)
        if doubtful.any() and self._remembered:
            known = pa.concat_arrays([each for _, each in self._remembered])
            found = pc.is_in(texts, value_set=known).to_numpy(zero_copy_only=False)
            keep &= ~found
            doubtful &= ~found
        doubtful &= order <= self._floor
        if doubtful.any():
            searched = rows.append_column("row", pa.array(np.arange(rows.num_rows))).filter(pa.array(doubtful))
            for folder, of_folder in self._area.folders(searched):
                archived = self._archived(folder, of_folder, log, first)
                there = pc.is_in(identities(self._area, of_folder), value_set=archived).to_numpy(zero_copy_only=False)
                keep[of_folder.column("row").to_numpy()[there]] = False
        return rows if keep.all() else rows.filter(pa.array(keep))

    def remember(self, rows: pa.Table) -> None:
        """Adds the rows of the step that is in the archive now."""
        if not rows.num_rows:
            return
        self._remembered.append((self._newest, identities(self._area, rows)))
        self._newest = self.newest_with(rows)
        while len(self._remembered) > 1 and sum(len(each) for _, each in self._remembered) > REMEMBERED:
            self._remembered.popleft()

    def newest_with(self, rows: pa.Table) -> int:
        """The greatest `order_ms` of an archived row once these rows are archived."""
        return max(self._newest, int(order_ms(self._area, rows).max())) if rows.num_rows else self._newest

    def _archived(self, folder: str, wanted: pa.Table, log: str, first: int) -> pa.Array:
        """Identities of the archived rows of this partition in a folder, of steps before the one that begins at `first`."""
        for attempt in range(ATTEMPTS):
            try:
                return self._search(folder, wanted, log, first)
            except ArchiveError as error:
                if error.retriable or attempt == ATTEMPTS - 1:
                    raise
        raise AssertionError

    def _search(self, folder: str, wanted: pa.Table, log: str, first: int) -> pa.Array:
        oldest = int(order_ms(self._area, wanted).min())
        small: list[tuple[str, int, str]] = []
        found: list[pa.Array] = [pa.array([], pa.string())]
        for name in self._store.list(f"processed/{self._area.name}/{folder}/"):
            if compaction_of_data(name) is not None:
                found.append(self._read(name, wanted)[0])
            elif (parsed := parse_name(name)) is not None and self._is_earlier(parsed, log, first):
                small.append((parsed.log, parsed.first, name))
        for _, _, name in sorted(small, reverse=True):
            archived, before = self._read(name, wanted)
            found.append(archived)
            if before < oldest:
                break
        return pa.concat_arrays(found)

    def _is_earlier(self, name: Name, log: str, first: int) -> bool:
        return name.partition == self._partition and (name.log, name.first) < (log, first)

    def _read(self, name: str, wanted: pa.Table) -> tuple[pa.Array, int]:
        """Identities of the object's rows of this partition, and of symbols and times that are wanted; and `before` of its footer, if it has one."""
        times = wanted.column(self._area.time)
        conditions = [
            ("partition", "=", self._partition), ("symbol", "in", pc.unique(wanted.column("symbol")).to_pylist()),
            (self._area.time, ">=", pc.min(times)), (self._area.time, "<=", pc.max(times)),
        ]  # fmt: skip
        columns = list(self._area.identity)
        data = pa.BufferReader(self._store.read(name))
        try:
            footer = (pq.read_metadata(data).metadata or {})[b"stockstream"]
            rows = pq.read_table(data, columns=columns, filters=conditions)
        except BROKEN as error:
            raise ArchiveError(f"{name} cannot be read: {error}") from error
        return identities(self._area, rows) if rows.num_rows else pa.array([], pa.string()), before_of(footer)


class NoneRepeated(Repeated):
    """For `windows`, where raw offsets decide before."""

    def __init__(self) -> None:
        """It holds nothing."""

    def without(self, rows: pa.Table, log: str, first: int) -> pa.Table:
        return rows

    def remember(self, rows: pa.Table) -> None:
        pass

    def newest_with(self, rows: pa.Table) -> int:
        return NEVER


def _first_of_each(texts: pa.Array) -> NDArray[np.bool_]:
    """Which rows have a text that no row before them has."""
    keep = np.zeros(len(texts), bool)
    keep[np.unique(texts.dictionary_encode().indices.to_numpy(), return_index=True)[1]] = True
    return keep

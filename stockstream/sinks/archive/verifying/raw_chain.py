"""Checks the raw objects of one chain: each by itself, each against the one before, and against what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.archive.layout import HOUR_MS, Name, folder_of_hour, hour_of_folder
from stockstream.sinks.archive.raw_objects import Extent, Line, Tail, read_extent, read_raw_object
from stockstream.sinks.archive.verifying.chain_entries import ChainEntries
from stockstream.sinks.archive.verifying.processed_rows import ProcessedRows
from stockstream.sinks.archive.verifying.reading import Reading, Verified
from stockstream.sinks.archive.verifying.recompute import Computed, Recompute
from stockstream.sinks.archive.verifying.report import Coverage
from stockstream.sinks.stores import Store
from stockstream.transforms.timing import FORGET_MS

WARM_UP = 2
"""Raw objects that are read before one that does not follow what was read. Most often that suffices; if rows differ, a day is read."""
_HISTORY = "clean may have read offsets that were lost before they were archived, or that retention has ended"


class RawChain:
    """The raw objects of a chain, which are checked in order. `coverage` and `faults` get what is found.

    `ended`: the last offset that retention has ended. `known`: the settings to compute verdicts again; None if that is not wanted.
    """

    def __init__(
        self, store: Store, coverage: Coverage, entries: ChainEntries, processed: ProcessedRows, faults: list[str], reading: Reading, ended: int = -1,
        known: KnownSettings | None = None,
    ) -> None:  # fmt: skip
        self._store, self._coverage, self._entries, self._processed, self._faults = store, coverage, entries, processed, faults
        self._reading, self._known, self._ended = reading, known, ended
        self._recompute: Recompute | None = None
        self._recomputed = 0
        """The object that `_recompute` takes next."""
        self._objects: Sequence[tuple[str, Name]] = ()
        coverage.first = ended + 1
        coverage.holes = entries.begin - coverage.first
        coverage.processed = entries.begin - 1
        self._expect = entries.begin
        self._previous = ""
        self._tail: Tail | None = None

    def run(self, objects: Sequence[tuple[str, Name]], step: Callable[[int], None], begin: int = 0, end: int | None = None) -> None:
        """Checks the objects from index `begin` on, before `end` (None: all); `objects` are all of the chain."""
        self._objects = objects
        end = len(objects) if end is None else end
        for at in range(begin, end):
            step(1)
            self._check(at, *objects[at])
        self._coverage.last = self._expect - 1
        self._entries.end(self._coverage.last)
        self._processed.end(whole=end == len(objects))

    def _check(self, at: int, name: str, parsed: Name) -> None:
        reading, begun = self._reading, len(self._faults)
        stamps = reading.stamps_of(name, *self._processed.names_at(parsed.first))
        before = reading.known(name, stamps)
        wanted = before is None and reading.chosen(name)
        reading.there += 1
        reading.read += wanted
        reading.before += before is not None
        read = (before.extent, []) if before is not None and before.extent is not None else self._read(name) if wanted else self._see(name)
        if read is None:
            self._entries.take(name, parsed, 1)
            self._processed.skip(parsed.first)
            self._previous, self._expect, self._tail = name, parsed.first, None
            return
        extent, lines = read
        if not self._follows(name, parsed, extent, lines):
            return
        if not wanted:
            self._processed.see(name, extent, before)
            return
        counts = self._counts()
        self._processed.check(name, extent, self._computed(at, name, extent, lines))
        if len(self._faults) == begun and self._coverage.processed == extent.last:
            done = {key: value - counts[key] for key, value in self._counts().items()}
            reading.verified(Verified(name, stamps, extent, **done, reason=self._coverage.reason if done["not_compared"] else ""))

    def _counts(self) -> dict[str, int]:
        return {name: getattr(self._coverage, name) for name in ("ticks", "missing", "compared", "not_compared")}

    def _follows(self, name: str, parsed: Name, extent: Extent, lines: list[Line]) -> bool:
        """Checks an object against the one before, and counts it; False if it has offsets that are there already."""
        faults, coverage, expect = self._faults, self._coverage, self._expect
        if (extent.log, extent.partition, extent.first) != (parsed.log, parsed.partition, parsed.first):
            faults.append(f"{name}: its trailer names log {extent.log}, partition {extent.partition}, offset {extent.first}")
        self._entries.take(name, parsed, extent.count)
        if extent.first > expect:
            faults.append(f"{name}: offsets {expect} to {extent.first - 1} of log {coverage.log}, partition {coverage.partition} are missing before it")
        elif extent.first < expect:
            faults.append(f"{name}: offsets {extent.first} to {min(expect - 1, extent.last)} are in the archive twice")
            return False
        elif extent.previous != self._previous and not 0 <= self._ended == extent.first - 1:
            names = f"{extent.previous or 'nothing'} as the object before it, but that is {self._previous or 'nothing'}"
            faults.append(f"{name}: its trailer names {names}")
        elif not extent.count and self._tail is not None and extent.tail != self._tail:
            faults.append(f"{name}: its trailer does not name the last record before it")
        if lines and folder_of_hour(lines[0].timestamp // HOUR_MS) != parsed.folder:
            faults.append(f"{name}: its first record belongs to another hour than its folder")
        self._expect, self._previous, self._tail = extent.last + 1, name, extent.tail
        coverage.objects += 1
        coverage.records += extent.count
        coverage.holes += extent.last - extent.first + 1 - extent.count
        return True

    def _computed(self, at: int, name: str, extent: Extent, lines: list[Line]) -> Computed | None:
        """The accepted ticks of the object, computed again; None if that is not wanted, or there are none."""
        if self._known is None or not extent.count:
            return None
        if self._recompute is None or self._recomputed != at:
            self._recompute = self._warm(self._known, max(0, at - WARM_UP), at)
        recompute, self._recomputed = self._recompute, at + 1
        ticks = self._take(recompute, at, extent, lines)
        if ticks is None:
            return Computed(None, recompute.reason)
        if not recompute.doubtful:
            return Computed(ticks)
        return Computed(ticks, _HISTORY, lambda: self._with_history(at, extent, lines))

    def _with_history(self, at: int, extent: Extent, lines: list[Line]) -> tuple[pa.Table | None, str]:
        """The accepted ticks of an object, computed from a day before it."""
        assert self._known is not None and self._recompute is not None
        since = (lines[0].timestamp - FORGET_MS) // HOUR_MS
        begin = at
        while begin and (hour_of_folder(self._objects[begin][1].folder) >= since or begin == at):
            begin -= 1
        self._recompute = self._warm(self._known, begin, at)
        ticks = self._take(self._recompute, at, extent, lines)
        if ticks is None:
            return None, self._recompute.reason
        return ticks, _HISTORY if self._recompute.doubtful else ""

    def _warm(self, known: KnownSettings, begin: int, end: int) -> Recompute:
        """What has read the objects from `begin` to `end` - 1; nothing is reported of them."""
        found = Recompute(known, self._coverage.log, self._coverage.partition)
        for at in range(begin, end):
            name = self._objects[at][0]
            try:
                self._take(found, at, *read_raw_object(self._store, name))
            except ArchiveUnavailable:
                raise
            except ArchiveError:
                found.stop(f"{name} cannot be read")
        return found

    def _take(self, recompute: Recompute, at: int, extent: Extent, lines: list[Line]) -> pa.Table | None:
        if extent.first > recompute.expect or extent.first in self._entries.lost:
            recompute.lost()
        if extent.count and not lines:
            recompute.stop(f"{self._objects[at][0]} cannot be read")
        recompute.expect = extent.last + 1
        return recompute.take(self._objects[at][0], extent, lines)

    def _see(self, name: str) -> tuple[Extent, list[Line]] | None:
        """The object's trailer alone."""
        try:
            return read_extent(self._store, name), []
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            self._faults.append(str(error))
            return None

    def _read(self, name: str) -> tuple[Extent, list[Line]] | None:
        """The object; only its trailer, where its lines are at fault; None where that cannot be read either."""
        try:
            return read_raw_object(self._store, name)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            self._faults.append(str(error))
        try:
            return read_extent(self._store, name), []
        except ArchiveUnavailable:
            raise
        except ArchiveError:
            return None

"""Checks the raw objects of one chain: each by itself, each against the one before, and against what is made of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyarrow as pa

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.layout import HOUR_MS, Name, folder_of_hour
from stockstream.sinks.archive.raw_objects import Extent, Line, Tail, read_extent, read_raw_object
from stockstream.sinks.archive.verifying.chain_entries import ChainEntries
from stockstream.sinks.archive.verifying.processed_rows import ProcessedRows
from stockstream.sinks.archive.verifying.recompute import Recompute
from stockstream.sinks.archive.verifying.report import Coverage
from stockstream.sinks.stores import Store


class RawChain:
    """The raw objects of a chain, which are checked in order. `coverage` and `faults` get what is found."""

    def __init__(
        self, store: Store, coverage: Coverage, entries: ChainEntries, processed: ProcessedRows, faults: list[str], ended: int = -1,
        recompute: Recompute | None = None,
    ) -> None:  # fmt: skip
        """`ended`: the last offset that retention has ended. `recompute`: computes the verdicts again; None if that is not wanted."""
        self._recompute = recompute
        if recompute is not None and max(entries.begin, ended + 1) > 0:
            recompute.lost()
        self._store, self._coverage, self._entries, self._processed, self._faults = store, coverage, entries, processed, faults
        coverage.first = ended + 1
        coverage.holes = entries.begin - coverage.first
        self._ended = ended
        coverage.processed = entries.begin - 1
        self._expect = entries.begin
        self._previous = ""
        self._tail: Tail | None = None

    def run(self, objects: Sequence[tuple[str, Name]], step: Callable[[], None]) -> None:
        """Checks these objects, all of the chain."""
        for name, parsed in objects:
            step()
            self._check(name, parsed)
        self._coverage.last = self._expect - 1
        self._entries.end(self._coverage.last)
        self._processed.end()

    def _check(self, name: str, parsed: Name) -> None:
        read = self._read(name)
        if read is None:
            self._entries.take(name, parsed, 1)
            self._processed.skip(parsed.first)
            self._previous, self._expect, self._tail = name, parsed.first, None
            if self._recompute is not None:
                self._recompute.stop(f"{name} cannot be read")
            return
        extent, lines = read
        faults, coverage, expect = self._faults, self._coverage, self._expect
        if (extent.log, extent.partition, extent.first) != (parsed.log, parsed.partition, parsed.first):
            faults.append(f"{name}: its trailer names log {extent.log}, partition {extent.partition}, offset {extent.first}")
        self._entries.take(name, parsed, extent.count)
        if extent.first > expect:
            if self._recompute is not None:
                self._recompute.lost()
            faults.append(f"{name}: offsets {expect} to {extent.first - 1} of log {coverage.log}, partition {coverage.partition} are missing before it")
        elif extent.first < expect:
            faults.append(f"{name}: offsets {extent.first} to {min(expect - 1, extent.last)} are in the archive twice")
            return
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
        self._processed.check(name, extent, *self._computed(name, extent, lines))

    def _computed(self, name: str, extent: Extent, lines: list[Line]) -> tuple[pa.Table | None, str]:
        """The accepted ticks of the object, computed again, and why they may be others than `clean` found."""
        recompute = self._recompute
        if recompute is None:
            return None, ""
        if extent.first in self._entries.lost:
            recompute.lost()
        if extent.count and not lines:
            recompute.stop(f"{name} cannot be read")
        ticks = recompute.take(name, extent, lines)
        if ticks is None:
            self._coverage.not_compared += extent.count
            self._coverage.reason = self._coverage.reason or recompute.reason
            return None, ""
        return ticks, "clean may have read offsets that were lost before they were archived, or that retention has ended" if recompute.doubtful else ""

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

"""Checks the ticks and bars that are made of the raw objects of one chain."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import date

import pyarrow as pa

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.compacted_object import read_metadata
from stockstream.sinks.archive.layout import Name, parse_name, processed_name
from stockstream.sinks.archive.processed import BROKEN, Made, decode_made
from stockstream.sinks.archive.raw_objects import Extent
from stockstream.sinks.archive.retention import has_ended
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects, read_made_object
from stockstream.sinks.archive.verifying.reading import Verified
from stockstream.sinks.archive.verifying.recompute import Computed, difference, expected_tables
from stockstream.sinks.archive.verifying.report import Coverage
from stockstream.sinks.stores import Store
from stockstream.wording import counted, one_line

KIND = "a processed object of stockstream"


class ProcessedRows:
    """The processed objects of one chain, which are checked raw object by raw object, in order.

    `names`: those that were listed, in the order of their first offsets. What belongs to no raw object is a fault. Retention has ended folders of dates
    before `since`.
    """

    def __init__(
        self, store: Store, coverage: Coverage, names: Sequence[tuple[str, Name]], compacted: CompactedObjects, faults: list[str], since: date
    ) -> None:  # fmt: skip
        self._store, self._coverage, self._names, self._compacted, self._faults = store, coverage, names, compacted, faults
        self._since = since
        self._at = 0
        self._waiting = ""
        """The first main object that is missing: it and what comes after it is not processed yet, or it was deleted."""

    def names_at(self, first: int) -> list[str]:
        """The objects with what is made of the raw object that begins at `first`: small ones, or those of compactions that replaced them."""
        names = itertools.takewhile(lambda one: one[1].first <= first, self._names[self._at :])
        return sorted({self._compacted.data_of(name) for name, parsed in names if parsed.first == first})

    def check(self, raw: str, extent: Extent, computed: Computed | None = None) -> None:
        """Checks what is made of the next raw object, and compares it with what is computed again; None leaves that out."""
        mine = self._begin(raw, extent)
        if mine is None:
            return
        main = processed_name(raw)
        found = self._read(main, extent)
        if found is None:
            return
        made = found[0]
        coverage = self._coverage
        parts: list[tuple[str, Made, pa.Table | None]] = []
        mine.discard(main)
        for name, rows in made.objects.items():
            mine.discard(name)
            if has_ended(name, self._since):
                continue
            part = found if name == main else self._read(name, extent)
            if part is not None:
                parts.append((name, *part))
            if part is not None and part[0].rows != rows:
                self._faults.append(f"{name}: it has {counted(part[0].rows, 'row')}, but {main} lists {rows}")
            coverage.ticks += rows if name.startswith("processed/ticks/") else 0
        if computed is not None:
            self._compare_all(main, made, parts, extent, computed)
        for name in sorted(mine):
            self._faults.append(f"{name}: {main}, which lists the objects of offset {extent.first}, does not list it")
        coverage.missing += sum(last - first + 1 for first, last in made.missing)

    def see(self, raw: str, extent: Extent, before: Verified | None = None) -> None:
        """Takes what is made of the next raw object without reading it; `before`: what an earlier run found in it."""
        mine = self._begin(raw, extent)
        if mine is None:
            return
        if before is None:
            self._see_names(processed_name(raw), mine, extent)
        else:
            for name in ("ticks", "missing", "compared", "not_compared"):
                setattr(self._coverage, name, getattr(self._coverage, name) + getattr(before, name))
            self._coverage.reason = self._coverage.reason or before.reason

    def _see_names(self, main: str, mine: set[str], extent: Extent) -> None:
        """Compares the names that are there with those that the footer of the main object lists."""
        try:
            made = self._read_footer(main)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            self._faults.append(str(error))
            return
        for name, rows in made.objects.items():
            if not has_ended(name, self._since) and name not in mine and self._store.size(name) is None and self._compacted.replaced(name) is None:
                self._faults.append(f"{name} is missing: {main} lists it with {counted(rows, 'row')}")
            self._coverage.ticks += rows if name.startswith("processed/ticks/") else 0
        for name in sorted(mine - made.objects.keys()):
            self._faults.append(f"{name}: {main}, which lists the objects of offset {extent.first}, does not list it")
        self._coverage.missing += sum(last - first + 1 for first, last in made.missing)

    def _read_footer(self, name: str) -> Made:
        footer = self._compacted.replaced(name)
        try:
            return decode_made(footer if footer is not None else (read_metadata(self._store, name).metadata or {})[b"stockstream"])
        except BROKEN as error:
            raise ArchiveError(f"{name} is not {KIND}: {one_line(error)}") from error

    def _begin(self, raw: str, extent: Extent) -> set[str] | None:
        """The names of what is made of the next raw object; None if there is nothing to check."""
        self._pass(extent.first)
        mine = {name for name, parsed in self._take(extent.last) if self._begins(name, parsed, extent)}
        coverage = self._coverage
        if not extent.count:
            for name in sorted(mine):
                self._faults.append(f"{name}: there is no record at its offsets")
            coverage.processed = coverage.processed if self._waiting else extent.last
            return None
        main = processed_name(raw)
        if has_ended(main, self._since):
            coverage.processed = coverage.processed if self._waiting else extent.last
            return None
        if main not in mine and self._store.size(main) is None and self._compacted.replaced(main) is None:
            self._waiting = self._waiting or main
            coverage.unprocessed += extent.count
            coverage.begun += bool(mine)
            coverage.unprocessed_since = coverage.unprocessed_since or raw.removeprefix("raw/").rpartition("/")[0]
            return None
        self._processed_since_then()
        coverage.processed = extent.last
        return mine

    def _processed_since_then(self) -> None:
        if self._waiting:
            self._faults.append(f"{self._waiting} is missing, though later objects have been processed")
            self._waiting = ""

    def _compare_all(self, main: str, made: Made, parts: list[tuple[str, Made, pa.Table | None]], extent: Extent, computed: Computed) -> None:
        """Compares all rows that are made of a raw object with those that raw gives."""
        coverage = self._coverage
        ticks, doubt = computed.ticks, computed.doubt
        differences = self._differences(main, made, parts, extent, ticks)
        if differences and doubt and computed.with_history is not None:
            ticks, doubt = computed.with_history()
            differences = self._differences(main, made, parts, extent, ticks)
        if ticks is None or (differences and doubt):
            coverage.not_compared += extent.count
            coverage.reason = coverage.reason or doubt
        elif differences:
            self._faults += differences
        else:
            coverage.compared += ticks.num_rows

    def _differences(self, main: str, made: Made, parts: list[tuple[str, Made, pa.Table | None]], extent: Extent, ticks: pa.Table | None) -> list[str]:
        if ticks is None:
            return []
        stem = main.rpartition("/")[2]
        expected = {f"{folder}/{stem}": table for folder, table in expected_tables(extent, ticks, made.missing).items()}
        found: list[str] = []
        for name, of, table in parts:
            found += self._compare(name, (of, table), extent, expected.pop(name, None))
        expected = {name: table for name, table in expected.items() if name not in made.objects and not has_ended(name, self._since)}
        return found + [f"{name} is not there, and raw gives {counted(table.num_rows, 'row')} of it" for name, table in expected.items()]

    def _compare(self, name: str, part: tuple[Made, pa.Table | None], extent: Extent, expected: pa.Table | None) -> list[str]:
        """How the rows of an object differ from those that raw gives."""
        table = part[1]
        if table is None:
            parsed = parse_name(name)
            assert parsed is not None
            table = self._compacted.rows(name, parsed, extent.last)
        found = difference(table, table.slice(0, 0) if expected is None else expected)
        where = f" (in {self._compacted.data_of(name)})" if part[1] is None else ""
        return [f"{name}{where}: {found}"] if found else []

    def skip(self, first: int) -> None:
        """The raw object that begins at `first` cannot be read, so what is made of it is not checked."""
        self._pass(first)
        self._take(first)

    def end(self, *, whole: bool = True) -> None:
        """All raw objects were taken: of the chain, or of the dates that are checked, if it is not `whole`."""
        if whole:
            self._pass(None)
        elif self._at < len(self._names):
            self._processed_since_then()

    def _pass(self, before: int | None) -> None:
        """Reports the objects whose first offset is before this one, and that no raw object has taken."""
        for name, parsed in self._take(None if before is None else before - 1):
            self._faults.append(f"{name}: there is no raw object with offset {parsed.first} of log {parsed.log}, partition {parsed.partition}")

    def _take(self, last: int | None) -> Sequence[tuple[str, Name]]:
        begin = self._at
        while self._at < len(self._names) and (last is None or self._names[self._at][1].first <= last):
            self._at += 1
        return self._names[begin : self._at]

    def _begins(self, name: str, parsed: Name, extent: Extent) -> bool:
        if parsed.first != extent.first:
            self._faults.append(f"{name}: no raw object begins at offset {parsed.first}")
        return parsed.first == extent.first

    def _read(self, name: str, extent: Extent) -> tuple[Made, pa.Table | None] | None:
        """The object's footer and rows; None for rows that are in a compacted object."""
        try:
            made, table = read_made_object(self._store, name, self._compacted, decode_made, KIND)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            self._faults.append(str(error))
            return None
        if (made.log, made.partition, made.first, made.last) != (extent.log, extent.partition, extent.first, extent.last):
            of = f"offsets {made.first} to {made.last} of log {made.log}"
            self._faults.append(f"{name}: made from {of}, but its raw object has {extent.first} to {extent.last} of log {extent.log}")
        if parse_name(name) is None:
            self._faults.append(f"{name}: this is not the name of an archive object")
        return made, table

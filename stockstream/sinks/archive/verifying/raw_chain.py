"""Checks the raw objects of one chain: each by itself, and each against the one before."""

from __future__ import annotations

from collections.abc import Callable

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.chain import chain_begins
from stockstream.sinks.archive.layout import HOUR_MS, Name, folder_of_hour, parse_name
from stockstream.sinks.archive.raw_objects import read_extent, read_raw_object
from stockstream.sinks.archive.verifying.processed_rows import check_processed
from stockstream.sinks.archive.verifying.report import Coverage
from stockstream.sinks.stores import Store


def check_chain(store: Store, coverage: Coverage, names: list[tuple[str, Name]], processed: set[str], faults: list[str], step: Callable[[], None]) -> None:
    expect = chain_begins(store, coverage.log, coverage.partition)
    coverage.holes = expect
    coverage.processed = expect - 1
    previous, behind = "", False
    for name, parsed in names:
        step()
        try:
            extent, lines = read_raw_object(store, name)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            faults.append(str(error))
            try:
                extent, lines = read_extent(store, name), []
            except ArchiveUnavailable:
                raise
            except ArchiveError:
                previous, expect = name, parsed.first
                continue
        if (extent.log, extent.partition, extent.first) != (parsed.log, parsed.partition, parsed.first):
            faults.append(f"{name}: its trailer names log {extent.log}, partition {extent.partition}, offset {extent.first}")
        if extent.first > expect:
            faults.append(f"{name}: offsets {expect} to {extent.first - 1} of log {coverage.log}, partition {coverage.partition} are missing before it")
        elif extent.first < expect:
            faults.append(f"{name}: offsets {extent.first} to {min(expect - 1, extent.last)} are in the archive twice")
        elif extent.previous != previous:
            faults.append(f"{name}: its trailer names {extent.previous or 'nothing'} as the object before it, but that is {previous or 'nothing'}")
        if lines and folder_of_hour(lines[0].timestamp // HOUR_MS) != parsed.folder:
            faults.append(f"{name}: its first record belongs to another hour than its folder")
        expect, previous = extent.last + 1, name
        coverage.objects += 1
        coverage.records += extent.count
        coverage.holes += extent.last - extent.first + 1 - extent.count
        behind = check_processed(store, coverage, name, extent, processed, behind, faults)
    coverage.last = expect - 1
    for stray in sorted(processed):
        first = (parse_name(stray) or Name("", "", "", 0, 0)).first
        if first <= coverage.processed:
            faults.append(f"{stray}: the processed object of offset {first} does not list it")

"""The verification of a whole archive: lists its objects and has each kind checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.archive.layout import Name
from stockstream.sinks.archive.retention import date_of, has_ended, processed_since, raw_ended_through, retention_records, rules, today
from stockstream.sinks.archive.verifying.chain_entries import ChainEntries
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects
from stockstream.sinks.archive.verifying.listing import Listing, divide, list_objects
from stockstream.sinks.archive.verifying.processed_rows import ProcessedRows
from stockstream.sinks.archive.verifying.raw_chain import RawChain
from stockstream.sinks.archive.verifying.reading import Reading
from stockstream.sinks.archive.verifying.repaired_bars import check_repaired
from stockstream.sinks.archive.verifying.report import Coverage, Report
from stockstream.sinks.archive.verifying.topic_rows import check_topics
from stockstream.sinks.stores import Store

ATTEMPTS = 3
"""How often a verification begins, if a retention ends dates each time."""


def check(
    store: Store, step: Callable[[int], None] = lambda steps: None, known: KnownSettings | None = None, reading: Reading | None = None,
    listing: Listing | None = None,
) -> Report:  # fmt: skip
    """Reads every object, or those that `reading` chooses; with `known`, computes ticks and bars again from raw and compares every row.

    A writer may be active; objects that it adds meanwhile are not checked. If a retention runs meanwhile and there are faults, it begins anew.
    `step` advances by the steps that `listing` counts; without it the store is listed.

    Raises `ArchiveUnavailable` if the store fails. Faults of the archive itself are in the report.
    """
    reading = reading or Reading()
    for attempt in range(ATTEMPTS):
        if listing is None or attempt:
            listing = list_objects(store)
        report = _check(store, step, known, reading, listing)
        if not report.faults or retention_records(store) == listing.retention:
            break                                                        # else a retention ran meanwhile: what it deleted looked missing
    return report


def _check(store: Store, step: Callable[[int], None], known: KnownSettings | None, reading: Reading, listing: Listing) -> Report:
    report = Report()
    reading.there = reading.read = reading.before = 0
    reading.stamps = listing.stamps
    report.faults += listing.faults
    compacted = CompactedObjects(store, report.faults, reading)
    since = processed_since(store)
    compacted.check((one for one in listing.compactions if not has_ended(one.data, since)), step)
    unmade = set(listing.data) - set(listing.compactions)
    compacted.check_unmade((one for one in sorted(unmade) if not has_ended(one.data, since)), listing.stamps)
    divide(listing, compacted, since)
    for (log, partition), objects in sorted(listing.raw.items()):
        entries = ChainEntries(store, log, partition, listing.entries[log, partition], report.faults)
        ended = _ended(store, entries, objects)
        objects = [one for one in objects if one[1].first > ended]
        begin, end = _dated(objects, reading)
        if begin == end and reading.dates:
            continue
        if begin:
            ended = objects[begin][1].first - 1
        if ended >= 0:
            entries.end_through(ended)
        coverage = Coverage(log, partition)
        report.chains.append(coverage)
        made = [one for one in listing.processed[log, partition] if one[1].first > ended]
        processed = ProcessedRows(store, coverage, made, compacted, report.faults, since)
        RawChain(store, coverage, entries, processed, report.faults, reading, ended, known).run(objects, step, begin, end)
    for key in sorted(set(listing.processed) - set(listing.raw)):
        report.faults.append(f"{listing.processed[key][0][0]}: there is no raw chain of log {key[0]}, partition {key[1]}")
    for _, of_partition in sorted(listing.repaired.items()):
        check_repaired(store, of_partition, compacted, report)
    report.topics, windows = check_topics(store, listing.topics, compacted, report.faults, since, reading, step)
    for coverage in report.chains:
        coverage.windows_through = windows.get((coverage.log, coverage.partition), -1)
    report.objects, report.read, report.before, report.partial = reading.there, reading.read, reading.before, reading.partial
    return report


def _dated(objects: Sequence[tuple[str, Name]], reading: Reading) -> tuple[int, int]:
    """The part of a chain that is checked: from the first object in a folder of the dates to the last one."""
    if not reading.dates:
        return 0, len(objects)
    wanted = [at for at, (name, _) in enumerate(objects) if reading.dated(name)]
    return (wanted[0], wanted[-1] + 1) if wanted else (0, 0)


def _ended(store: Store, entries: ChainEntries, objects: Sequence[tuple[str, Name]]) -> int:
    """The last offset of the chain that retention has ended, by its record, or by the bucket's lifecycle rules; -1 if none."""
    ended = raw_ended_through(store, entries.log, entries.partition)
    days = rules(store).raw_days
    left = [parsed for _, parsed in objects if parsed.first > ended]
    if days is not None and left and left[0].first > max(entries.begin, ended + 1):
        missing = date_of(f"raw/{entries.folder_at(left[0].first - 1)}/")
        if missing is not None and missing <= today() - timedelta(days=days):
            return left[0].first - 1
    return ended

"""Checks windows, alerts, predictions and outcomes: positions without a gap, and their objects with the rows that they list."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date

import pyarrow.compute as pc

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.layout import Name
from stockstream.sinks.archive.retention import has_ended
from stockstream.sinks.archive.topics.objects import AREAS, MadeOfRecords, decode_made
from stockstream.sinks.archive.topics.positions import Position, all_positions
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects, read_made_object
from stockstream.sinks.archive.verifying.reading import Reading, Verified
from stockstream.sinks.archive.verifying.report import TopicCoverage
from stockstream.sinks.stores import Store
from stockstream.wording import counted

KIND = "an object of a topic"


def check_topics(
    store: Store, objects: Mapping[tuple[str, int], Sequence[tuple[str, Name]]], compacted: CompactedObjects, faults: list[str], since: date,
    reading: Reading, step: Callable[[int], None],
) -> tuple[dict[str, TopicCoverage], dict[tuple[str, int], int]]:  # fmt: skip
    """Checks the objects, given by log id and partition, against their positions.

    Returns what there is, by area; and by raw log id and partition the last raw offset of which there are windows.

    A writer creates a position before its objects, so list the objects first. Retention has ended folders of dates before `since`. Raises `ArchiveUnavailable`.
    """
    found: dict[str, TopicCoverage] = defaultdict(TopicCoverage)
    windows: dict[tuple[str, int], int] = {}
    lives: dict[tuple[str, int], list[Position]] = defaultdict(list)
    for position in all_positions(store):
        if isinstance(position, str):
            faults.append(position)
        else:
            lives[position.log, position.partition].append(position)
            if position.end.covered:
                key = position.end.log, position.partition
                windows[key] = max(windows.get(key, -1), position.end.covered[-1][1])
    for (log, partition), positions in sorted(lives.items()):
        there = dict(objects.get((log, partition), ()))
        _check_positions(positions, faults)
        _check_objects(store, positions, there, compacted, found[positions[0].topic], faults, since, reading, step)
    for key in sorted(set(objects) - set(lives)):
        faults.append(f"{objects[key][0][0]}: there is no position of log {key[0]}, partition {key[1]}")
    return dict(found), windows


def _check_positions(positions: Sequence[Position], faults: list[str]) -> None:
    """Numbers and records follow each other."""
    expect, first = 0, positions[0].first
    for position in positions:
        where = f"position {position.number} of {position.log}, partition {position.partition}"
        if position.number != expect:
            faults.append(f"{where}: positions {expect} to {position.number - 1} before it are missing")
        elif position.first != first:
            faults.append(f"{where}: it begins with record {position.first}, but {first} follows the position before")
        expect, first = position.number + 1, position.last + 1


def _check_objects(
    store: Store, positions: Sequence[Position], there: dict[str, Name], compacted: CompactedObjects, coverage: TopicCoverage,
    faults: list[str], since: date, reading: Reading, step: Callable[[int], None],
) -> None:  # fmt: skip
    lost = [each for position in positions for each in position.missing]
    coverage.missing += sum(last - first + 1 for first, last in lost)
    for position in positions:
        coverage.records += position.records
        coverage.skipped += position.skipped
        for name, rows in position.objects.items():
            parsed = there.pop(name, None)
            if has_ended(name, since):
                continue
            if parsed is None and store.size(name) is None and compacted.replaced(name) is None:
                if position is positions[-1]:
                    coverage.unwritten += rows
                elif (position.first, position.last) not in lost:
                    faults.append(f"{name} is missing; it has {counted(rows, 'row')} of records {position.first} to {position.last}")
                continue
            step(1)
            coverage.rows += _check_or_see(store, name, position, rows, compacted, faults, reading)
    later = positions[-1].last
    for name, parsed in sorted(there.items()):
        if parsed.first <= later:                                        # what comes after is newer than the listing of positions
            faults.append(f"{name}: no position lists it")


def _check_or_see(store: Store, name: str, position: Position, rows: int, compacted: CompactedObjects, faults: list[str], reading: Reading) -> int:
    """Checks an object if it is to be read. Returns the number of rows."""
    begun, data = len(faults), compacted.data_of(name)
    if data != name:
        return _check_object(store, name, position, rows, compacted, faults)    # of its own only the footer, which is known
    stamps, wanted = reading.stamps_of(name), reading.dated(name)
    before = reading.known(name, stamps) if wanted else None
    reading.there += wanted
    reading.before += before is not None
    if before is not None and before.rows == rows:
        return rows
    if not wanted or not reading.chosen(name):
        return rows
    reading.read += 1
    found = _check_object(store, name, position, rows, compacted, faults)
    if len(faults) == begun:
        reading.verified(Verified(name, stamps, rows=found))
    return found


def _check_object(store: Store, name: str, position: Position, rows: int, compacted: CompactedObjects, faults: list[str]) -> int:
    """Returns the number of rows."""
    try:
        made, table = read_made_object(store, name, compacted, decode_made, KIND)
    except ArchiveUnavailable:
        raise
    except ArchiveError as error:
        faults.append(str(error))
        return 0
    wanted = MadeOfRecords(position.log, position.partition, position.first, position.last, rows, position.begin.newest, made.version)
    if made != wanted:
        faults.append(f"{name}: its footer and its position differ: records {made.first} to {made.last}, {counted(made.rows, 'row')}")
    if table is not None and table.num_rows:
        place = pc.min_max(table.column("record_offset")).as_py()
        if not position.first <= place["min"] <= place["max"] <= position.last:
            faults.append(f"{name}: it has rows of records {place['min']} to {place['max']}, but its position has {position.first} to {position.last}")
        folders = {folder for folder, _ in AREAS[position.topic].folders(table)}
        if _folder(name) not in folders or len(folders) > 1:
            faults.append(f"{name}: it has rows of {_listed(folders)}")
    return made.rows


def _folder(name: str) -> str:
    return "/".join(name.split("/")[2:-1])


def _listed(folders: Iterable[str]) -> str:
    return ", ".join(sorted(folders))

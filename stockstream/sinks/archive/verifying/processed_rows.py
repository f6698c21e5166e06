"""Checks the processed objects of one raw object."""

from __future__ import annotations

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.layout import processed_name
from stockstream.sinks.archive.processed import Made, read_made
from stockstream.sinks.archive.raw_objects import Extent
from stockstream.sinks.archive.verifying.report import Coverage
from stockstream.sinks.stores import Store
from stockstream.wording import counted


def check_processed(store: Store, coverage: Coverage, raw: str, extent: Extent, processed: set[str], behind: bool, faults: list[str]) -> bool:
    """Removes the raw object's processed objects from `processed`. Returns whether this object or an earlier one has none yet."""
    if not extent.count:
        coverage.processed = coverage.processed if behind else extent.last
        return behind
    main = processed_name(raw)
    if main not in processed:
        coverage.unprocessed += extent.count
        return True
    if behind:
        faults.append(f"{main}: objects before it have not been processed")
    made = _made(store, main, extent, faults)
    if made is None:
        processed.discard(main)
        return behind
    for name, rows in made.objects.items():
        if name not in processed:
            faults.append(f"{main}: {name} is missing")
            continue
        processed.discard(name)
        part = made if name == main else _made(store, name, extent, faults)
        if part and part.rows != rows:
            faults.append(f"{name}: it has {counted(part.rows, 'row')}, but {main} lists {rows}")
        coverage.ticks += rows if name.startswith("processed/ticks/") else 0
    coverage.missing += sum(last - first + 1 for first, last in made.missing)
    coverage.processed = coverage.processed if behind else extent.last
    return behind


def _made(store: Store, name: str, extent: Extent, faults: list[str]) -> Made | None:
    try:
        made = read_made(store, name)
    except ArchiveUnavailable:
        raise
    except ArchiveError as error:
        faults.append(str(error))
        return None
    if (made.log, made.partition, made.first, made.last) != (extent.log, extent.partition, extent.first, extent.last):
        faults.append(f"{name}: made from offsets {made.first} to {made.last} of log {made.log}, but its raw object has {extent.first} to {extent.last}")
    return made

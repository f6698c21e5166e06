"""The verification of a whole archive: lists its objects and has each kind checked."""

from __future__ import annotations

from collections.abc import Callable

from stockstream.sinks.archive.verifying.chain_entries import ChainEntries
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects
from stockstream.sinks.archive.verifying.listing import divide, list_objects
from stockstream.sinks.archive.verifying.processed_rows import ProcessedRows
from stockstream.sinks.archive.verifying.raw_chain import RawChain
from stockstream.sinks.archive.verifying.repaired_bars import check_repaired
from stockstream.sinks.archive.verifying.report import Coverage, Report
from stockstream.sinks.archive.verifying.topic_rows import check_topics
from stockstream.sinks.stores import Store


def check(store: Store, step: Callable[[], None] = lambda: None) -> Report:
    """Reads every object. A writer may be active; objects that it adds meanwhile are not checked. `step` is called for each raw object.

    Raises `ArchiveUnavailable` if the store fails. Faults of the archive itself are in the report.
    """
    report = Report()
    listing = list_objects(store)
    report.faults += listing.faults
    compacted = CompactedObjects(store, report.faults)
    compacted.check(listing.compactions)
    divide(listing, compacted)
    for (log, partition), objects in sorted(listing.raw.items()):
        coverage = Coverage(log, partition)
        report.chains.append(coverage)
        entries = ChainEntries(store, log, partition, listing.entries[log, partition], report.faults)
        processed = ProcessedRows(store, coverage, listing.processed[log, partition], compacted, report.faults)
        RawChain(store, coverage, entries, processed, report.faults).run(objects, step)
    for key in sorted(set(listing.processed) - set(listing.raw)):
        report.faults.append(f"{listing.processed[key][0][0]}: there is no raw chain of log {key[0]}, partition {key[1]}")
    for _, of_partition in sorted(listing.repaired.items()):
        check_repaired(store, of_partition, compacted, report)
    report.topics = check_topics(store, listing.topics, compacted, report.faults)
    return report

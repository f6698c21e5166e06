"""Checks the objects of repaired bars."""

from __future__ import annotations

from itertools import pairwise

import pyarrow.compute as pc

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.repaired import MadeOfRepairs, decode_made
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects, read_made_object
from stockstream.sinks.archive.verifying.report import Report
from stockstream.sinks.stores import Store

KIND = "an object of repaired bars"


def check_repaired(store: Store, names: list[str], compacted: CompactedObjects, report: Report) -> None:
    """Counts the repaired bars of one partition. No two objects of one life of the topic may account for the same offset."""
    found: list[tuple[MadeOfRepairs, str]] = []
    for name in names:
        try:
            made, table = read_made_object(store, name, compacted, decode_made, KIND)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            report.faults.append(str(error))
            continue
        parsed = parse_name(name)
        if parsed is None or (made.log, made.partition, made.first) != (parsed.log, parsed.partition, parsed.first):
            report.faults.append(f"{name}: its footer names {made.log}, partition {made.partition}, offset {made.first}")
        days = pc.unique(table.column("minute").cast("date32")).to_pylist() if table is not None else []
        if parsed is not None and days and [f"date={day}" for day in days] != [parsed.folder]:
            report.faults.append(f"{name}: it has bars of {', '.join(map(str, days))}")
        report.repaired += made.rows
        found.append((made, name))
    found.sort(key=lambda item: (item[0].first, item[0].since))
    for (before, _), (made, name) in pairwise(found):
        if made.first <= before.last and made.since <= before.until and before.since <= made.until:
            report.faults.append(f"{name}: repairs {made.first} to {min(before.last, made.last)} are in the archive twice")

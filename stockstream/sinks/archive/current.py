"""The objects of the archive that count: a reader of exactly these sees every row once, also while a compaction runs."""

from __future__ import annotations

from collections import defaultdict
from datetime import date

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.compactions import Compaction, compaction_of_data, covers, dated, list_compactions, read_manifest
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.retention import has_ended, processed_since
from stockstream.sinks.entries import Entry
from stockstream.sinks.stores import Store

ATTEMPTS = 5
"""A listing is repeated if a compaction took effect between its two parts, which is rare: twice is nearly always enough."""


def current(store: Store, area: str, begin: date | None = None, end: date | None = None) -> list[Entry]:
    """The objects of `processed/<area>/` (or of `raw/`, if `area` is raw) that count, by name; only those in the folders of dates `begin` to `end`.

    An object of the answer may be deleted before it is read, if a compaction replaces it: then list again, and read anew. Raises `ArchiveError` if the data
    object of a compaction is missing, and what the store raises.
    """
    if area == "raw":
        return [entry for entry in dated(store, "raw/", begin, end) if parse_name(entry.name)]
    for _ in range(ATTEMPTS):
        # the area first: what is gone from it, or comes after it was listed, then has its manifest in the second listing
        entries = dated(store, f"processed/{area}/", begin, end)
        compactions = {found for found in list_compactions(store, begin, end) if found.area == area}
        listed = {found for entry in entries if (found := compaction_of_data(entry.name))}
        missing = compactions - listed
        if missing:                                                      # a compactor beside a retention may leave a manifest of a date that has ended
            since = processed_since(store)
            missing = {one for one in missing if not has_ended(one.data, since)}
        if not missing:
            return _counting(store, entries, compactions)
    raise ArchiveError(f"{store.url}: {min(missing).data} is missing, though {min(missing).manifest} exists; see stockstream verify")


def _counting(store: Store, entries: list[Entry], compactions: set[Compaction]) -> list[Entry]:
    small: dict[tuple[str, str], list[tuple[Name, Entry]]] = defaultdict(list)
    found = []
    for entry in entries:
        compaction = compaction_of_data(entry.name)
        parsed = parse_name(entry.name)
        if compaction in compactions:
            found.append(entry)
        elif parsed:
            small[parsed.area, parsed.folder].append((parsed, entry))
    by_folder: dict[str, list[Compaction]] = defaultdict(list)
    for one in compactions:
        by_folder[one.folder].append(one)
    for (_, folder), objects in small.items():                           # a manifest is read only where small objects are left beside it
        lines = [line for one in by_folder[folder] for line in read_manifest(store, one)]
        found += [entry for name, entry in objects if not covers(lines, name)]
    return sorted(found)

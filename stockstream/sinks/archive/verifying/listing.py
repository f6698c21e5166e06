"""The objects of an archive, as a verification lists them once."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from datetime import date

from stockstream.sinks.archive.chain import chains
from stockstream.sinks.archive.compactions import MANIFESTS, Compaction, compaction_of_data, compaction_of_manifest
from stockstream.sinks.archive.layout import REPAIRS, Name, parse_name
from stockstream.sinks.archive.retention import has_ended, retention_records
from stockstream.sinks.archive.topics.objects import AREAS
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects
from stockstream.sinks.stores import Store

OF_RAW = ("processed/ticks", "processed/bars_1m")
"""The areas that are made of raw objects."""
Key = tuple[str, int]
"""Log id and partition of a chain."""


@dataclass(slots=True)
class Listing:
    """Names by chain, those of raw objects in the order of their offsets; `faults`: what has no place in an archive.

    `processed`, `repaired` and `topics` are empty until `divide`.
    """

    raw: dict[Key, list[tuple[str, Name]]] = field(default_factory=dict)
    entries: dict[Key, list[str]] = field(default_factory=lambda: defaultdict(list))
    """Of `chains/`."""
    small: list[tuple[str, Name]] = field(default_factory=list)
    """Of `processed/`, as the archive wrote them."""
    compactions: list[Compaction] = field(default_factory=list)
    """Those that have a manifest."""
    data: list[Compaction] = field(default_factory=list)
    """Those that have a data object."""
    processed: dict[Key, list[tuple[str, Name]]] = field(default_factory=lambda: defaultdict(list))
    """Ticks and bars that are made of raw objects, in the order of their first offsets."""
    repaired: dict[int, list[str]] = field(default_factory=lambda: defaultdict(list))
    topics: dict[Key, list[tuple[str, Name]]] = field(default_factory=lambda: defaultdict(list))
    """Objects of windows, alerts, predictions and outcomes."""
    stamps: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Size, and when it was written, of each object in `raw/` and `processed/`."""
    retention: list[str] = field(default_factory=list)
    """The records of retention, before anything was listed."""
    faults: list[str] = field(default_factory=list)

    @property
    def size(self) -> int:
        """The number of steps of a verification: raw objects, compactions, and objects of topics that are not compacted."""
        topics = sum(parsed.area.removeprefix("processed/") in AREAS for _, parsed in self.small)
        return sum(map(len, self.raw.values())) + len(self.compactions) + topics


def list_objects(store: Store) -> Listing:
    """Lists the archive. A writer may be active: it creates a chain's entry before the object, and a raw object before those made of it.

    So may a compactor: what it deletes has its manifest before.
    """
    found = Listing(retention=retention_records(store))
    processed = _names(store, "processed/", found)
    raw = _names(store, "raw/", found)
    found.raw = {key: [] for key in chains(store)}
    for key in found.raw:
        found.entries[key] = list(store.list(f"chains/{key[0]}-{key[1]:05d}/"))
    for name in store.list(MANIFESTS):
        compaction = compaction_of_manifest(name)
        if compaction is None:
            found.faults.append(f"{name}: this is not the name of an archive object")
        else:
            found.compactions.append(compaction)
    for name in raw:
        parsed = parse_name(name)
        if parsed is None or parsed.area != "raw":
            found.faults.append(f"{name}: this is not the name of an archive object")
        else:
            found.raw.setdefault((parsed.log, parsed.partition), []).append((name, parsed))
    for name in processed:
        parsed = parse_name(name)
        if (compaction := compaction_of_data(name)) is not None:
            found.data.append(compaction)                                # it counts if it has a manifest
            continue
        if parsed is None:
            found.faults.append(f"{name}: this is not the name of an archive object")
        else:
            found.small.append((name, parsed))
    for some in found.raw.values():
        some.sort(key=lambda item: item[1].first)
    return found


def _names(store: Store, prefix: str, found: Listing) -> list[str]:
    for entry in store.entries(prefix):
        found.stamps[entry.name] = entry.size, entry.modified.isoformat()
    return [name for name in found.stamps if name.startswith(prefix)]


def divide(listing: Listing, compacted: CompactedObjects, since: date) -> None:
    """Divides the small objects that count, and those that compactions replaced, by what they are made of. Retention has ended what is before `since`."""
    counting = {(name, parsed) for name, parsed in listing.small if compacted.counts(parsed)}
    for name, parsed in sorted(counting | set(compacted.names())):
        if has_ended(name, since):
            continue
        if parsed.log.startswith(REPAIRS):
            listing.repaired[parsed.partition].append(name)
        elif parsed.area.removeprefix("processed/") in AREAS:
            listing.topics[parsed.log, parsed.partition].append((name, parsed))
        else:
            listing.processed[parsed.log, parsed.partition].append((name, parsed))
    for some in listing.processed.values():
        some.sort(key=lambda item: item[1].first)

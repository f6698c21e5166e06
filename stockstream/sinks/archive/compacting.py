"""Compacts folders of the archive. Any number of compactors may run at once, and each may be killed at any point.

A compactor creates the data object of the next free number, then its manifest, then deletes the sources. Whoever finds a data object without a manifest
creates the manifest, and whoever finds an object that a manifest replaces deletes it. So number n + 1 is created only when everything that the numbers up to
n replace is known, and no row gets into two compactions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.compacted_object import Small, Source, compacted_object, read_compacted_object, read_small, together
from stockstream.sinks.archive.compactions import (
    Compaction,
    compaction_of_data,
    compactions_of,
    covers,
    dated,
    list_compactions,
    manifest_of,
    read_manifest,
)  # fmt: skip
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.retention import processed_since
from stockstream.sinks.archive.schemas import STORED
from stockstream.sinks.entries import Entry
from stockstream.sinks.stores import CALLS_AT_ONCE, Store
from stockstream.wording import counted

QUIET = timedelta(minutes=10)
"""An object younger than this is left alone: the writer is still adding others to its folder."""
PATIENCE = {"hour": timedelta(hours=2), "day": timedelta(hours=1)}
"""Objects older than this are compacted though the folder is not over, or still receives late rows."""
MAX_BYTES = 700_000_000
"""A compaction takes objects until their rows take this much memory: about 5 million ticks. The peak is less than twice as much."""
TOGETHER = 64


@dataclass(slots=True)
class Folder:
    """What is in one folder of an area: small objects, and compactions with a data object and with a manifest."""

    area: str
    folder: str
    small: list[tuple[Name, Entry]] = field(default_factory=list)
    data: dict[Compaction, Entry] = field(default_factory=dict)
    manifests: set[Compaction] = field(default_factory=set)

    def due(self, now: datetime | None) -> list[tuple[Name, Entry]]:
        """The small objects that a compaction may take; none if it is too early. `now` is None if all may be taken at any time."""
        if now is None:
            return self.small
        quiet = [(name, entry) for name, entry in self.small if entry.modified <= now - QUIET]
        patience = PATIENCE["hour" if "/" in self.folder else "day"]
        over = _end(self.folder) <= now and len(quiet) == len(self.small)
        return quiet if over or any(entry.modified <= now - patience for _, entry in quiet) else []

    def unfinished(self) -> bool:
        """Whether a compaction may have been interrupted here."""
        return bool(self.small and self.manifests) or not self.data.keys() <= self.manifests


@dataclass(slots=True)
class Result:
    """What was done in one folder: `replaced` small objects of `replaced_bytes` by `made` data objects of `made_bytes` with `rows`.

    `deleted`: number of objects that no longer counted; `undeleted`: those of them that could not be deleted. `faults`: what could not be done, one line each.
    """

    area: str
    folder: str
    replaced: int = 0
    replaced_bytes: int = 0
    made: int = 0
    made_bytes: int = 0
    rows: int = 0
    deleted: int = 0
    undeleted: int = 0
    faults: list[str] = field(default_factory=list)


def _end(folder: str) -> datetime:
    day, _, hour = folder.removeprefix("date=").partition("/hour=")
    begin = datetime.fromisoformat(day).replace(tzinfo=UTC, hour=int(hour or 0))
    return begin + (timedelta(hours=1) if hour else timedelta(days=1))


def folders(store: Store, begin: date | None = None, end: date | None = None) -> list[Folder]:
    """All folders of `processed/` of these dates, the oldest first."""
    found: dict[tuple[str, str], Folder] = {}
    begin = max(begin or date.min, processed_since(store))
    for area in STORED:
        for one in _sorted_into_folders(dated(store, f"processed/{area}/", begin, end)):
            found[one.area, one.folder] = one
    for compaction in list_compactions(store, begin, end):
        key = (compaction.area, compaction.folder)
        if key in found:
            found[key].manifests.add(compaction)
    return sorted(found.values(), key=lambda one: (one.folder, one.area))


def _look(store: Store, area: str, folder: str) -> Folder:
    """One folder as it is now. The manifests are listed last: what has disappeared from the folder then has its manifest."""
    found = _sorted_into_folders(list(store.entries(f"processed/{area}/{folder}/")))
    one = found[0] if found else Folder(area, folder)
    one.manifests.update(compactions_of(store, area, folder))
    return one


def _sorted_into_folders(entries: Sequence[Entry]) -> list[Folder]:
    found: dict[tuple[str, str], Folder] = {}
    for entry in entries:
        compaction, name = compaction_of_data(entry.name), parse_name(entry.name)
        if compaction:
            key = (compaction.area, compaction.folder)
            found.setdefault(key, Folder(*key)).data[compaction] = entry
        elif name:
            key = (name.area.removeprefix("processed/"), name.folder)
            found.setdefault(key, Folder(*key)).small.append((name, entry))
    return list(found.values())


def compact(store: Store, now: datetime | None, begin: date | None = None, end: date | None = None, dry: bool = False) -> Iterator[Result]:
    """Compacts what is due at `now` (None: everything) in the folders of these dates, the oldest first. Yields a result for each folder where it did something.

    `dry`: only shows what it would do. Raises `ArchiveUnavailable` if the store fails; objects that cannot be read or deleted are in the results.
    """
    for found in folders(store, begin, end):
        if len(found.due(now)) > 1 or found.unfinished():
            result = _preview(store, found, now) if dry else compact_folder(store, found.area, found.folder, now)
            if result.made or result.deleted or result.faults:
                yield result


def _preview(store: Store, found: Folder, now: datetime | None) -> Result:
    result = Result(found.area, found.folder)
    small, replaced = _divided(store, found)
    found.small = small
    taken = found.due(now)
    result.deleted = len(replaced)
    if len(taken) > 1:
        result.replaced, result.made = len(taken), 1
        result.replaced_bytes = sum(entry.size for _, entry in taken)
        result.deleted += len(taken)
    return result


def _divided(store: Store, found: Folder) -> tuple[list[tuple[Name, Entry]], list[tuple[Name, Entry]]]:
    """The folder's small objects: those that count, and those that a manifest replaces."""
    lines = [line for one in sorted(found.manifests) for line in read_manifest(store, one)] if found.small else []
    counting: list[tuple[Name, Entry]] = []
    replaced: list[tuple[Name, Entry]] = []
    for one in found.small:
        (replaced if covers(lines, one[0]) else counting).append(one)
    return counting, replaced


def compact_folder(store: Store, area: str, folder: str, now: datetime | None) -> Result:
    """Finishes interrupted compactions of the folder, then compacts what is due at `now` (None: all its small objects).

    What comes meanwhile is left to the next run, so that it ends though a writer may be faster.
    """
    result = Result(area, folder)
    broken: set[str] = set()
    first: set[str] = set()
    try:
        while True:
            found = _look(store, area, folder)
            for compaction in sorted(found.data.keys() - found.manifests):
                _create_manifest(store, compaction)
                found.manifests.add(compaction)
            found.small, replaced = _divided(store, found)
            delete_replaced(store, [entry.name for _, entry in replaced], result)
            first = first or {entry.name for _, entry in found.small}
            taken = [entry for _, entry in sorted(found.due(now), key=lambda one: one[1].name) if entry.name in first - broken]
            if len(taken) < 2 or not _compact(store, Compaction(area, folder, _next(found)), taken, result, broken):
                return result
    except ArchiveUnavailable:
        raise
    except ArchiveError as error:
        result.faults.append(str(error))
        return result


def _next(found: Folder) -> int:
    return max((compaction.number for compaction in (*found.data, *found.manifests)), default=-1) + 1


def _create_manifest(store: Store, compaction: Compaction) -> None:
    sources = read_compacted_object(store, compaction.data).list_sources()
    store.create(compaction.manifest, manifest_of(compaction, [source.range for source in sources]))


def _compact(store: Store, compaction: Compaction, taken: Sequence[Entry], result: Result, broken: set[str]) -> bool:
    """Makes one compaction. Returns whether to look at the folder again: others may have come or gone."""
    sources: list[Source] = []
    tables: list[pa.Table] = []
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        for begin in range(0, len(taken), TOGETHER):
            smalls: list[Small] = []
            for entry, small in zip(taken[begin:], pool.map(lambda one: _read(store, one.name), taken[begin : begin + TOGETHER]), strict=False):
                if small is None:
                    return True                                          # another compactor was first
                if isinstance(small, str):
                    broken.add(entry.name)
                    result.faults.append(f"{small}; it is left as it is")
                else:
                    smalls.append(small)
            sources += [small.source for small in smalls]
            if smalls:
                tables.append(together(smalls))
            if sum(table.nbytes for table in tables) >= MAX_BYTES:
                break
    if len(sources) < 2:
        return False
    data = compacted_object(compaction, sources, tables)
    tables.clear()
    if not store.create(compaction.data, data):
        return True
    store.create(compaction.manifest, manifest_of(compaction, [source.range for source in sources]))
    names = {source.name for source in sources}
    result.replaced += len(sources)
    result.replaced_bytes += sum(entry.size for entry in taken if entry.name in names)
    result.rows += sum(source.range.rows for source in sources)
    result.made += 1
    result.made_bytes += len(data)
    delete_replaced(store, sorted(names), result)
    return True


def _read(store: Store, name: str) -> Small | str | None:
    """The small object; why it cannot be read; None if it is gone."""
    try:
        return read_small(name, store.read(name))
    except ArchiveUnavailable:
        raise
    except ArchiveError as error:
        return None if store.size(name) is None else str(error)


def delete_replaced(store: Store, names: Sequence[str], result: Result) -> None:
    """Deletes objects that do not count any more. What cannot be deleted stays for the next run, and does no harm."""

    def delete(name: str) -> str:
        try:
            store.delete(name)
        except ArchiveError as error:
            return str(error)
        return ""

    for begin in range(0, len(names), TOGETHER):
        if result.undeleted:
            return
        with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
            answers = list(pool.map(delete, names[begin : begin + TOGETHER]))
        faults = [answer for answer in answers if answer]
        result.deleted += len(answers) - len(faults)
        if faults:
            result.undeleted = len(names) - begin - len(answers) + len(faults)
            result.faults.append(f"{faults[0]} ({counted(result.undeleted, 'replaced object')} left, which no longer count)")

"""The raw log as an archive holds it: all records, or those of a span, by partition and in their order."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from heapq import heapify, heappop, heapreplace
from pathlib import Path
from typing import NamedTuple

from stockstream.errors import ArchiveError
from stockstream.locations import FILE_URL, S3_URL
from stockstream.settings import Settings
from stockstream.sinks.archive.chain import chain_entries, read_entry
from stockstream.sinks.archive.layout import HOUR_MS, FolderChange, folder_of_hour, parse_name, raw_name
from stockstream.sinks.archive.raw_objects import Line, read_extent, read_raw_parts
from stockstream.sinks.archive.retention import raw_ended_through
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore, Store, open_root, require_archive

PART_BYTES = 256_000
"""How much of an object is decoded at a time: of each partition one object is held."""
LISTED_DAYS = 400
"""A longer span is found by listing the whole archive."""
RAW = "raw/"
NEWEST = "newest"


class Times(NamedTuple):
    """Kafka times (epoch ms) from `first` on and before `end`; None: no bound.

    A record whose time goes back behind the hour of its object's folder counts as one of that hour. So each record is in exactly one of two spans that
    follow each other, and all records of a day are in its folders.
    """

    first: int | None = None
    end: int | None = None

    def has(self, time: int) -> bool:
        return (self.first is None or time >= self.first) and (self.end is None or time < self.end)

    def has_all_of(self, hour_ms: int) -> bool:
        return self.has(hour_ms) and (self.end is None or hour_ms + HOUR_MS <= self.end)

    def has_some_of(self, hour_ms: int) -> bool:
        return (self.first is None or hour_ms + HOUR_MS > self.first) and (self.end is None or hour_ms < self.end)


@dataclass(frozen=True, slots=True)
class RawObject:
    """A raw object that holds records of the span. `hour_ms`: when the hour of its folder begins."""

    name: str
    log: str
    partition: int
    first: int
    hour_ms: int
    size: int


class Block(NamedTuple):
    """Records of one partition, consecutive and not empty. `size`: the bytes of the objects that begin with it."""

    partition: int
    records: Sequence[Line]
    size: int


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a partition's records: after `skipped` of them in the object of this index. `last` is the record before, if there is one."""

    index: int = 0
    skipped: int = 0
    last: Line | None = None


START = Place()


def is_archive(text: str) -> bool:
    """Whether the input of a replay names an archive: a URL of a folder or a bucket, or a folder."""
    return text.startswith((FILE_URL, S3_URL)) or Path(text).is_dir()


def open_raw(text: str, settings: Settings) -> FileStore | S3Store:
    """The archive of which `text` names the folder `raw`, or the root. Raises `ArchiveError` if there is none, `SettingsError` for a bad place."""
    return require_archive(open_root(text.rstrip("/"), "raw", settings))


class RawLog:
    """The records of an archive's logs, one of each partition, or of a span of them. What is written to the archive later is not part of it.

    Args:
        store: of the archive.
        chosen: log ids, where a partition has several logs (its topic was created again): only these are read. `NEWEST`: of each partition the newest.
        times: the span.

    Raises `ArchiveError` where there is nothing, where a partition has several logs, or where a raw object is missing or broken.
    """

    def __init__(self, store: Store, chosen: Collection[str] = (), times: Times = Times()) -> None:  # noqa: B008  it is immutable
        self._store, self._times = store, times
        of_chain: dict[tuple[int, str], list[RawObject]] = defaultdict(list)
        for one in self._listed():
            if times.has_some_of(one.hour_ms):
                of_chain[one.partition, one.log].append(one)
        if not of_chain:
            raise ArchiveError(self._nothing())
        if absent := set(chosen) - {NEWEST} - {log for _, log in of_chain}:
            raise ArchiveError(f"{store.url} has no log {min(absent)}{' of these times' if times != Times() else ''}; there are: {_described(of_chain)}")
        self.logs: dict[int, str] = {}
        """By partition: the log id."""
        for partition, log in sorted(of_chain):
            if chosen and NEWEST not in chosen and log not in chosen:
                continue
            if partition in self.logs and NEWEST not in chosen:
                how = f"choose with --log {NEWEST}, or with --log ID for each"
                raise ArchiveError(f"{store.url} has several logs of partition {partition}: {how}: {_described(of_chain)}")
            self.logs[partition] = log
        self.objects = {partition: sorted(of_chain[partition, log], key=lambda one: one.first) for partition, log in self.logs.items()}
        self.size = sum(one.size for some in self.objects.values() for one in some)
        self.oldest_ms = min(one.hour_ms for some in self.objects.values() for one in some)
        """The hour of the oldest records."""
        self._chain_entries: dict[int, list[int]] = {}

    def _nothing(self) -> str:
        dates = sorted({name[len(RAW) :].partition("/")[0].removeprefix("date=") for name in self._store.list(RAW)})
        if not dates:
            return f"{self._store.url} has no raw objects"
        return f"{self._store.url} has no raw objects of these times; it has those of {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "")

    def _listed(self) -> Iterator[RawObject]:
        for prefix in self._prefixes():
            for one in self._store.entries(prefix):
                name = parse_name(one.name)
                if name is None:
                    raise ArchiveError(f"{one.name} is not part of the archive; `stockstream verify` lists all faults")
                yield RawObject(one.name, name.log, name.partition, name.first, _hour_ms(name.folder), one.size)

    def _prefixes(self) -> list[str]:
        if self._times.first is None or self._times.end is None:
            return [RAW]
        day, last = (datetime.fromtimestamp(moment / 1000, UTC).date() for moment in (self._times.first, self._times.end - 1))
        days = (last - day).days + 1
        return [f"{RAW}date={day + timedelta(days=number)}/" for number in range(days)] if days <= LISTED_DAYS else [RAW]

    @property
    def least_partitions(self) -> int:
        """The number of partitions with records, and those below them. Partitions above them, without records, are not known to an archive."""
        return max(self.objects) + 1

    def first_records(self) -> Iterator[Line]:
        """The records with which each partition's first object begins."""
        for of_partition in self.objects.values():
            yield from next(read_raw_parts(self._store, of_partition[0].name, PART_BYTES)[1], [])

    def after(self, partition: int, count: int) -> Place | None:
        """The place after the first `count` records of the partition; None if it has fewer."""
        before = 0
        for index, one in enumerate(self.objects.get(partition, ())):
            if self._times.has_all_of(one.hour_ms):
                held = read_extent(self._store, one.name).count
                if before + held < count:
                    before += held
                    continue
            records = list(self._records(one))
            if before + len(records) >= count > before:
                return Place(index, count - before, records[count - before - 1])
            before += len(records)
        return None if count else START

    def last(self, partition: int) -> Line | None:
        """The partition's last record; None if it has none."""
        for one in reversed(self.objects.get(partition, ())):
            if records := list(self._records(one)):
                return records[-1]
        return None

    def blocks(self, places: dict[int, Place], *, by_second: bool = False) -> Iterator[Block]:
        """The records after these places (of a partition without one: from its beginning), the partitions side by side in the order of Kafka's time.

        `by_second`: no block has records of two seconds.
        """
        heap: list[tuple[int, int, Block, Iterator[Block]]] = []
        for partition, some in self.objects.items():
            stream = self._of_partition(some, places.get(partition, START), by_second)
            if (block := next(stream, None)) is not None:
                heap.append((block.records[0].timestamp, partition, block, stream))
        heapify(heap)
        while heap:
            time, partition, block, stream = heap[0]
            yield block
            if (following := next(stream, None)) is None:
                heappop(heap)
            else:
                heapreplace(heap, (max(time, following.records[0].timestamp), partition, following, stream))

    def _of_partition(self, objects: Sequence[RawObject], place: Place, by_second: bool) -> Iterator[Block]:
        expect, before = -1, objects[0]
        for one in objects[: place.index]:
            self._require_next(one, before, expect)
            before = one
            expect = read_extent(self._store, one.name).last + 1
        skipped, size = place.skipped, sum(one.size for one in objects[: place.index])
        for one in objects[place.index :]:
            self._require_next(one, before, expect)
            before = one
            extent, parts = read_raw_parts(self._store, one.name, PART_BYTES)
            expect, size = extent.last + 1, size + one.size
            for part in parts:
                records: Sequence[Line] = self._chosen(one, part)
                passed = min(skipped, len(records))
                records, skipped = records[passed:], skipped - passed
                for some in _seconds(records) if by_second else [records]:
                    if some:
                        yield Block(one.partition, some, size)
                        size = 0
        self._require_end(objects[-1], expect)

    def _records(self, one: RawObject) -> Iterator[Line]:
        for part in read_raw_parts(self._store, one.name, PART_BYTES)[1]:
            yield from self._chosen(one, part)

    def _chosen(self, one: RawObject, lines: list[Line]) -> list[Line]:
        if self._times.has_all_of(one.hour_ms):
            return lines
        return [line for line in lines if self._times.has(max(line.timestamp, one.hour_ms))]

    # A chain enters a folder with an entry in chains/, so missing objects show without a look at the folders beside the span.

    def _require_next(self, one: RawObject, before: RawObject, expect: int) -> None:
        """Raises `ArchiveError` if objects are missing before this one. `expect`: the offset after the object before, -1 if the span begins."""
        if one.first == expect:
            return
        entries = self._entries(one.partition)
        if expect >= 0:
            self._require_end(before, expect)
            skipped = [offset for offset in entries if expect <= offset < one.first]
        elif raw_ended_through(self._store, one.log, one.partition) == one.first - 1:
            return
        else:
            skipped = [offset for offset in entries if offset < one.first][-1:]
        if one.first not in entries or any(self._enters_span(one.partition, offset) for offset in skipped):
            how = "; --from with a later time restores the rest" if expect < 0 else ""
            raise ArchiveError(f"{one.name}: raw objects of partition {one.partition} are missing before it: `stockstream verify` lists all faults{how}")

    def _require_end(self, one: RawObject, expect: int) -> None:
        """Raises `ArchiveError` unless the chain ends before the offset `expect`, or continues with it in a folder outside the span, or an object of now."""
        following = [offset for offset in self._entries(one.partition) if offset >= expect]
        if not following or self._store.size(raw_name(folder_of_hour(one.hour_ms // HOUR_MS), one.log, one.partition, expect)) is not None:
            return
        if following[0] != expect or (len(following) > 1 and self._enters_span(one.partition, expect)):
            raise ArchiveError(f"raw objects of partition {one.partition} are missing from offset {expect} on: `stockstream verify` lists all faults")

    def _entries(self, partition: int) -> list[int]:
        """The offsets of the chain's entries, ascending."""
        if partition not in self._chain_entries:
            self._chain_entries[partition] = chain_entries(self._store, self.logs[partition], partition)
        return self._chain_entries[partition]

    def _enters_span(self, partition: int, offset: int) -> bool:
        entry = read_entry(self._store, self.logs[partition], partition, offset)
        return isinstance(entry, FolderChange) and self._times.has_some_of(_hour_ms(entry.folder))


def _seconds(records: Sequence[Line]) -> Iterator[Sequence[Line]]:
    begin = 0
    for at in range(1, len(records) + 1):
        if at == len(records) or records[at].timestamp // 1000 != records[begin].timestamp // 1000:
            yield records[begin:at]
            begin = at


def _hour_ms(folder: str) -> int:
    """Epoch ms at which the hour of a folder `date=YYYY-MM-DD/hour=HH` begins. Raises `ArchiveError`."""
    try:
        return int(datetime.strptime(folder, "date=%Y-%m-%d/hour=%H").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        raise ArchiveError(f"{RAW}{folder} is not part of the archive; `stockstream verify` lists all faults") from None


def _described(of_chain: Mapping[tuple[int, str], Sequence[RawObject]]) -> str:
    """The logs of these objects with their partitions and times."""
    out = []
    for (partition, log), some in sorted(of_chain.items()):
        first, last = (f"{datetime.fromtimestamp(pick(one.hour_ms for one in some) / 1000, UTC):%Y-%m-%d %H}h" for pick in (min, max))
        out.append(f"{log} (partition {partition}, {first} to {last})")
    return ", ".join(out)

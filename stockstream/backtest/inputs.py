"""What a backtest reads: raw records as JSON lines or raw objects, an archive, or a file of trades or bars, as records of one or more partitions.

Records come as blocks: `(Log, records)`, those of one partition in the order of their offsets. Each input raises `StockstreamError` while it is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import msgspec
from aiokafka.partitioner import murmur2

from stockstream.backtest.lines import JsonLines
from stockstream.errors import ArchiveError, SourceError
from stockstream.sinks.archive.chain import chain_begins, chains
from stockstream.sinks.archive.layout import HOUR_MS, parse_name
from stockstream.sinks.archive.raw_objects import NoTrailer, key_and_value, read_extent, read_raw_object
from stockstream.sinks.stores import FileStore
from stockstream.sources.recordings.options import AS_FOUND, ReadOptions
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.recordings.survey import Survey
from stockstream.sources.replay import ReplaySource
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.limits import composed
from stockstream.transforms.partitioning import home_partition

RAW_SUFFIX = ".jsonl.zst"
_LINES = re.compile(r"\.(jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)
_SYMBOL = re.compile(rb'"symbol"\s*:\s*("(?:[^"\\]|\\.)*")')


class Log(NamedTuple):
    """One partition of one raw log. `name` is the log id where the input has one, else empty."""

    name: str
    partition: int


class Range(NamedTuple):
    """Kafka times (epoch ms) from `first` on and before `end`; None: no bound."""

    first: int | None = None
    end: int | None = None

    def has(self, time: int) -> bool:
        return (self.first is None or time >= self.first) and (self.end is None or time < self.end)

    def has_of(self, start: int, length: int) -> bool:
        """Whether any time of `start` to `start + length` is in the range."""
        return (self.first is None or start + length > self.first) and (self.end is None or start < self.end)


ALL_TIMES = Range()
Block = tuple[Log, list[RawRecord]]
Advance = Callable[[int], None]


class Input(Protocol):
    """An input. `size` is how much `advance` is called with in all; `one_by_one`: a partition's blocks are complete when another's begin."""

    one_by_one: bool
    size: int

    def partitions(self) -> int | None:
        """How many partitions its log has, where that does not follow from the settings."""

    def blocks(self, length: int, advance: Advance) -> Iterator[Block]:
        """All records, in blocks of at most `length`."""


class _Blocks:
    """Gathers records by partition until there are `length` of them."""

    def __init__(self, length: int) -> None:
        self._length, self._count = length, 0
        self._records: dict[int, list[RawRecord]] = {}

    def add(self, partition: int, record: RawRecord) -> None:
        self._records.setdefault(partition, []).append(record)
        self._count += 1

    @property
    def full(self) -> bool:
        return self._count >= self._length

    def take(self) -> Iterator[Block]:
        """The records of each partition; none are left."""
        records, self._records, self._count = self._records, {}, 0
        yield from ((Log("", partition), some) for partition, some in records.items())


class Lines:
    """A file of JSON lines. Lines without a partition are one partition, or `spread` over as many as a producer would."""

    one_by_one = False

    def __init__(self, path: Path, times: Range, spread: int | None = None) -> None:
        self._lines, self._times, self._spread = JsonLines(path), times, spread
        self.size = path.stat().st_size

    def partitions(self) -> int | None:
        return None if self._lines.partitioned else self._spread or 1

    def blocks(self, length: int, advance: Advance) -> Iterator[Block]:
        path, partitioned, spread = self._lines.path, self._lines.partitioned, self._spread or 1
        gathered = _Blocks(length)
        expect: dict[int, int] = {}
        for number, line in self._lines.read(advance):
            if (line.partition is None) == partitioned:
                raise SourceError(f"{path}: line {number}: {'no partition' if partitioned else 'a partition'}, unlike the first line")
            places: Sequence[int] = (line.partition,) if line.partition is not None else _places(line.key, line.value, spread)
            for partition in places:
                next_offset = expect.get(partition, 0)
                offset = next_offset if line.offset is None else line.offset
                if offset < next_offset:
                    raise SourceError(f"{path}: line {number}: offset {offset} where at least {next_offset} comes next: one file holds one log, in its order")
                expect[partition] = offset + 1
                if self._times.has(line.timestamp):
                    gathered.add(partition, RawRecord(offset, line.timestamp, line.value))
            if gathered.full:
                yield from gathered.take()
        yield from gathered.take()


def _places(key: bytes | None, value: bytes | None, partitions: int) -> Sequence[int]:
    """The partitions to which a producer would write the record: by its key, else by its first symbol; a punctuation without key goes to all of them."""
    if partitions == 1:
        return (0,)
    if key is not None:
        return ((murmur2(key) & 0x7FFFFFFF) % partitions,)
    if value is not None and (found := _SYMBOL.search(value)):
        try:
            return (home_partition(composed(msgspec.json.decode(found[1], type=str)), partitions),)
        except (msgspec.MsgspecError, UnicodeError):
            return (0,)
    return range(partitions) if value is not None and b'"punctuate"' in value else (0,)


class _Object(NamedTuple):
    name: str
    log: str
    partition: int
    first: int


class RawObjects:
    """Raw objects of an archive: all of it, or those that lie under a path. `log` selects one log, `times` records by Kafka's time.

    Partitions come log by log; what a chain lacks between two of its objects is an error. An archive's objects are chosen by their folders' hours first.
    """

    one_by_one = True

    def __init__(self, path: Path, times: Range, log: str = "") -> None:
        self._times = times
        root = path if path.is_dir() else path.parent
        self._store = FileStore(root)
        self._whole = (root / "raw").is_dir() and path.is_dir()
        found = sorted(self._in_archive() if self._whole else self._under(path), key=lambda one: (one.log, one.partition, one.first))
        if not found:
            raise ArchiveError(f"{path} holds no raw objects, and none under raw/")
        self._objects = [one for one in found if not log or one.log == log]
        if not self._objects:
            raise ArchiveError(f"{path} has no log {log}; there are: {', '.join(sorted({one.log for one in found}))}")
        self.logs = sorted({one.log for one in self._objects})
        self.size = sum(self._store.size(one.name) or 0 for one in self._objects)

    def partitions(self) -> int | None:
        return None

    def _in_archive(self) -> Iterator[_Object]:
        known = set(chains(self._store))
        for name in self._store.list("raw/"):
            parsed = parse_name(name)
            if parsed is None or (parsed.log, parsed.partition) not in known:
                raise ArchiveError(f"{self._store.root / name} is not part of the archive; `stockstream verify` lists all faults")
            yield _Object(name, parsed.log, parsed.partition, parsed.first)

    def _under(self, path: Path) -> Iterator[_Object]:
        names = [path.name] if path.is_file() else [name for name in self._store.list("") if name.endswith(RAW_SUFFIX)]
        for name in names:
            extent = read_extent(self._store, name)
            yield _Object(name, extent.log, extent.partition, extent.first)

    def _wanted(self, one: _Object) -> bool:
        parsed = parse_name(one.name)
        return parsed is None or self._times.has_of(_hour_ms(parsed.folder), HOUR_MS)

    def blocks(self, length: int, advance: Advance) -> Iterator[Block]:
        before: Log | None = None
        expect = -1
        for one in self._objects:
            log = Log(one.log, one.partition)
            if log != before:
                before, expect = log, chain_begins(self._store, *log) if self._whole else -1
            if not self._wanted(one):
                expect = -1                                              # the range begins later, or has ended
                advance(self._store.size(one.name) or 0)
                continue
            if 0 <= expect != one.first:
                where = f"log {log.name}, partition {log.partition}"
                raise ArchiveError(f"{one.name} of {where} begins at offset {one.first} where {expect} comes next; `stockstream verify` lists all faults")
            extent, lines = read_raw_object(self._store, one.name)
            expect = extent.last + 1
            records = [RawRecord(line.offset, line.timestamp, key_and_value(line)[1]) for line in lines if self._times.has(line.timestamp)]
            for start in range(0, len(records), length):
                yield log, records[start : start + length]
            advance(self._store.size(one.name) or 0)


def _hour_ms(folder: str) -> int:
    """Epoch ms at which the hour of a folder `date=YYYY-MM-DD/hour=HH` begins."""
    return int(datetime.strptime(folder, "date=%Y-%m-%d/hour=%H").replace(tzinfo=UTC).timestamp()) * 1000


class Trades:
    """A file of trades or bars, as `stockstream replay` reads it. Each tick's event time stands for Kafka's time; symbols go to their home partitions."""

    one_by_one = False

    def __init__(self, recording: Recording, survey: Survey, name: str, times: Range, spread: int | None = None) -> None:
        self._source, self._times, self._spread = ReplaySource(recording, name), times, spread or 1
        self.size = survey.ticks

    def partitions(self) -> int | None:
        return self._spread

    def blocks(self, length: int, advance: Advance) -> Iterator[Block]:
        offsets: dict[int, int] = {}
        gathered = _Blocks(length)
        for batch in self._source.batches():
            for symbol, event_time, value in batch:
                partition = home_partition(symbol, self._spread)
                offset = offsets.get(partition, 0)
                offsets[partition] = offset + 1
                if self._times.has(event_time):
                    gathered.add(partition, RawRecord(offset, event_time, value))
                    if gathered.full:
                        yield from gathered.take()
            advance(len(batch))
        yield from gathered.take()


@dataclass(frozen=True, slots=True)
class Selection:
    """What of an input is wanted; the last four belong to a file of trades or bars."""

    times: Range = ALL_TIMES
    log: str = ""
    partitions: int | None = None
    reading: ReadOptions = AS_FOUND
    symbols: tuple[str, ...] = ()
    limit: int | None = None
    source: str = ""

    @property
    def of_trades(self) -> bool:
        return self.reading != AS_FOUND or bool(self.symbols) or self.limit is not None or bool(self.source)


def is_of_raw_records(path: Path) -> bool:
    """Whether this is a folder, or by its name a file of raw records: JSON lines or a raw object. Any other file is one of trades or bars."""
    return path.is_dir() or _LINES.search(path.name) is not None


def open_raw(path: Path, selection: Selection) -> Input:
    """The input in a folder or in a file of raw records. Raises `SourceError` or `ArchiveError`."""
    if path.is_dir():
        return RawObjects(path, selection.times, selection.log)
    if not path.is_file():
        raise SourceError(f"{path}: no such file or folder")
    if path.name.endswith(RAW_SUFFIX):
        try:
            return RawObjects(path, selection.times, selection.log)
        except NoTrailer:
            pass                                                         # lines that somebody else has compressed
    if selection.log:
        raise SourceError(f"{path}: lines have no log id; --log is for an archive")
    return Lines(path, selection.times, selection.partitions)


def check_partition(log: Log, partitions: int) -> None:
    """Raises `SourceError` where the log has fewer partitions than the input."""
    if log.partition >= partitions:
        raise SourceError(f"the input has partition {log.partition}, and the log has {partitions}: set STOCKSTREAM_PARTITIONS or --partitions to its number")

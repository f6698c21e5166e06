"""What a batch reads: the objects of a folder `raw/date=/hour=`, which are raw objects of an archive, or JSON lines of any other system."""

from __future__ import annotations

import io
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import IO, NamedTuple, cast

import msgspec
import pyarrow as pa
from msgspec import UNSET, UnsetType

from stockstream.backtest.lines import decompressed, line_of
from stockstream.errors import ArchiveError, SourceError
from stockstream.sinks.archive.layout import HOUR_MS, parse_name
from stockstream.sinks.archive.raw_objects import CleanSettings, key_and_value, read_raw_object
from stockstream.sinks.entries import Entry
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore, Store
from stockstream.transforms.batch import CHUNK, RawRecord

PLAIN_LOG, PARTITIONED_LOG = "lines", "partitioned-lines"
"""The log ids of JSON lines, which have none: of those that name no partition, and of those that do."""
_PLACE = re.compile(r"date=(\d{4}-\d\d-\d\d)/(?:hour=(\d\d)/)?(?!.*/)([^_.].*)")
_LINES = re.compile(r"\.(json|jsonl|ndjson)(\.gz|\.zst)?$", re.IGNORECASE)
_LINES_OF_HOUR = 1 << 32
"""Offsets of JSON lines without any: the epoch hour of their folder times this, and their number in the folder."""
_READ_BYTES = 4_000_000

Advance = Callable[[int], None]


class _Timed(msgspec.Struct, gc=False):
    event_time: int = -1


_event_time = msgspec.json.Decoder(_Timed).decode


class Chunk(NamedTuple):
    """Consecutive records of one partition, from one object. `settings` are those that it records."""

    log: str
    partition: int
    folder: str
    records: list[RawRecord]
    name: str
    settings: CleanSettings | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class _Object:
    entry: Entry
    day: date
    folder: str
    hour: int
    """Epoch hour."""
    place: tuple[str, int, int] | None
    """Log, partition and first offset of a raw object; None of JSON lines."""


class RawFolder:
    """The objects under `prefix`, listed once. `ignored` counts those that are neither raw objects nor JSON lines.

    Raw objects come chain by chain, in the order of their offsets, then JSON lines, in the order of folders, names and lines.
    """

    def __init__(self, store: FileStore | S3Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self.ignored = 0
        self._objects: list[_Object] = []
        for entry in store.entries(prefix):
            found = self._object(entry)
            if found is None:
                self.ignored += 1
            else:
                self._objects.append(found)
        self._objects.sort(key=lambda one: (one.place is None, one.place or ("", 0, 0), one.folder, one.entry.name))
        self.dates = sorted({one.day for one in self._objects})

    def _object(self, entry: Entry) -> _Object | None:
        name = entry.name[len(self.prefix) :]
        match = _PLACE.fullmatch(name)
        if match is None:
            return None
        try:
            begin = datetime.fromisoformat(f"{match[1]}T{match[2] or '00'}:00:00+00:00")
        except ValueError:
            return None
        parsed = parse_name(f"raw/{name}")
        if parsed is None and not _LINES.search(name):
            return None
        folder = name.rpartition("/")[0]
        place = (parsed.log, parsed.partition, parsed.first) if parsed is not None else None
        return _Object(entry, begin.astimezone(UTC).date(), folder, int(begin.timestamp()) * 1000 // HOUR_MS, place)

    def size(self, begin: date | None, end: date) -> int:
        """Bytes of what `chunks` reads."""
        return sum(one.entry.size for one in self._selected(begin, end))

    def _selected(self, begin: date | None, end: date) -> Iterator[_Object]:
        """The objects of these dates, and those between them in a chain, whose Kafka time went back."""
        within = [one for one in self._objects if (begin is None or one.day >= begin) and one.day <= end]
        ranges: dict[tuple[str, int], tuple[int, int]] = {}
        for one in within:
            if one.place is not None:
                log, partition, first = one.place
                ranges[log, partition] = ranges.get((log, partition), (first, first))[0], first
        for one in self._objects:
            if one.place is None:
                if (begin is None or one.day >= begin) and one.day <= end:
                    yield one
            elif one.place[:2] in ranges and ranges[one.place[:2]][0] <= one.place[2] <= ranges[one.place[:2]][1]:
                yield one

    def ends(self, log: str, partition: int, end: date) -> bool:
        """Whether the partition's log has nothing after this date."""
        plain = log in (PLAIN_LOG, PARTITIONED_LOG)
        return not any(one.day > end and (one.place is None if plain else one.place is not None and one.place[:2] == (log, partition)) for one in self._objects)

    def chunks(self, begin: date | None, end: date, advance: Advance) -> Iterator[Chunk]:
        """The records of the objects of these dates (None: from the first on), in their order. `advance` is called with the bytes of what was read.

        Raises `ArchiveError` if an object cannot be read, or offsets are missing between two objects of a chain; `SourceError` of JSON lines.
        """
        before: tuple[str, int] | None = None
        expect = -1
        counts: Counter[int] = Counter()
        for one in self._selected(begin, end):
            if one.place is None:
                yield from self._lines(one, counts)
            else:
                log, partition, first = one.place
                if before != (log, partition):
                    before, expect = (log, partition), first
                if first != expect:
                    missing = f"offsets {expect} to {first - 1} are missing before it" if first > expect else f"it begins before offset {expect}"
                    raise ArchiveError(f"{one.entry.name}: {missing}; `stockstream verify` lists all faults")
                extent, lines = read_raw_object(self.store, one.entry.name)
                if (extent.log, extent.partition, extent.first) != one.place:
                    raise ArchiveError(f"{one.entry.name} holds other offsets than its name; `stockstream verify` lists all faults")
                expect = extent.last + 1
                records = [RawRecord(line.offset, line.timestamp, key_and_value(line)[1]) for line in lines]
                for at in range(0, len(records), CHUNK):
                    yield Chunk(log, partition, one.folder, records[at : at + CHUNK], one.entry.name, extent.settings)
            advance(one.entry.size)

    def _lines(self, one: _Object, counts: Counter[int]) -> Iterator[Chunk]:
        """Chunks of an object of JSON lines. `counts` has the number of lines so far, by hour."""
        name, gathered, count, number = one.entry.name, dict[tuple[str, int], list[RawRecord]](), 0, 0

        def taken() -> Iterator[Chunk]:
            for key, records in gathered.items():
                yield Chunk(*key, one.folder, records, name)

        try:
            with io.BufferedReader(_StoreFile(self.store, one.entry), _READ_BYTES) as file, decompressed(cast(IO[bytes], file)) as lines:
                for number, text in enumerate(lines, 1):  # noqa: B007 (errors name it)
                    if not text.strip():
                        continue
                    key, record = _record(text.rstrip(b"\r\n"), one.hour * _LINES_OF_HOUR + counts[one.hour])
                    counts[one.hour] += 1
                    gathered.setdefault(key, []).append(record)
                    count += 1
                    if count == CHUNK:
                        yield from taken()
                        gathered, count = {}, 0
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise SourceError(f"{name}: cannot be read after line {number}: {error}") from error
        yield from taken()


def _record(text: bytes, offset: int) -> tuple[tuple[str, int], RawRecord]:
    """Log, partition and record of a line: one in the form of raw objects, else the message itself, whose event time stands for Kafka's.

    What is neither is a record too: `clean` rejects it.
    """
    with suppress(ValueError, RecursionError):                           # msgspec's errors and Unicode's are such
        line = line_of(text)
        record = RawRecord(offset if line.offset is None else line.offset, line.timestamp, line.value)
        return (PLAIN_LOG, 0) if line.partition is None else (PARTITIONED_LOG, line.partition), record
    with suppress(ValueError, RecursionError):
        return (PLAIN_LOG, 0), RawRecord(offset, _event_time(text).event_time, text)
    return (PLAIN_LOG, 0), RawRecord(offset, -1, text)


class _StoreFile(io.RawIOBase):
    """An object as a file that is read once, in ranges."""

    def __init__(self, store: Store, entry: Entry) -> None:
        self._store, self._entry, self._at = store, entry, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._entry.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        data = self._store.read_range(self._entry.name, self._at, min(self._at + len(into), self._entry.size))
        into[: len(data)] = data
        self._at += len(data)
        return len(data)

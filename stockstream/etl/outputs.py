"""What a batch writes: Parquet in the layout of an archive, what was rejected, and a record of what was made of each date."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.compactions import replaced_by
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.sealing import seal_json, unseal_json
from stockstream.sinks.stores import Store

RECORDS = "etl/"
UNFINISHED = "unfinished/"
Change = Literal["new", "unchanged", "replaced"]


class Written(msgspec.Struct, frozen=True):
    """An object in a record: its rows, and the CRC-32 of its bytes."""

    rows: int
    crc32: int


class DateRecord(msgspec.Struct, frozen=True):
    """What was made of the raw records of one date of one partition: the record `etl/date=.../LOG-PARTITION.json`, which is written last.

    `history_from`: the first date whose records were read for the state before this date; empty where the log begins with this date.
    """

    log: str
    partition: int
    date: str
    history_from: str
    records: int
    accepted: int
    rejected: dict[str, int]
    objects: dict[str, Written]
    version: int = 1


class Unfinished(msgspec.Struct, frozen=True):
    """Objects that a run is about to write, or to delete: `etl/date=.../unfinished/LOG-PARTITION-RUN-NUMBER.json`.

    It is written before them and deleted after the record of the date. So it is there only while a run is in progress, and after one that did not end.
    """

    log: str
    partition: int
    date: str
    objects: list[str]
    version: int = 1


_decode = msgspec.json.Decoder(DateRecord).decode
_decode_unfinished = msgspec.json.Decoder(Unfinished).decode


def record_name(log: str, partition: int, date: str) -> str:
    return f"{RECORDS}date={date}/{log}-{partition:05d}.json"


def decode_record(name: str, data: bytes) -> DateRecord:
    """The record in an object of this name. Raises `ArchiveError` if a byte of it has changed."""
    plain = unseal_json(name, data)
    try:
        record = _decode(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error
    if encode_json(record) != plain or name != record_name(record.log, record.partition, record.date):
        raise ArchiveError(f"{name} is not as it was written: bytes of it have changed, or it is a copy")
    return record


class Target:
    """The place that a batch writes to. Nothing changes there where it has the same already.

    Raises `ArchiveError` if a worker archives to it, because rows would count twice, and if another run has begun on the same dates meanwhile.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._run = uuid.uuid4().hex[:12]
        self._announced: dict[tuple[str, int, str], list[str]] = {}
        self._require_no_worker()

    def _require_no_worker(self) -> None:
        if next(iter(self.store.list("chains/")), None) is not None:
            raise ArchiveError(f"{self.store.url} is the archive of a worker, which writes processed/ itself: choose another place for --to")

    def clear(self, date: str) -> int:
        """Deletes what a run has left that did not end: the objects of this date that it announced, and no record names. Returns how many were deleted.

        A run that is still in progress then fails at the end of the date.
        """
        deleted = 0
        for name in list(self.store.list(f"{RECORDS}date={date}/{UNFINISHED}")):
            try:
                left = _decode_unfinished(unseal_json(name, self.store.read(name)))
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ArchiveError(f"{name} cannot be read: {error}") from error
            record = self._record(left.log, left.partition, left.date)
            for one in sorted(set(left.objects) - set(record.objects if record is not None else ())):
                if self.store.size(one) is not None or self._compacted(one):
                    self._require_counting(one)
                    self.store.delete(one)
                    deleted += 1
            self.store.delete(name)
        return deleted

    def announce(self, log: str, partition: int, date: str, objects: Collection[str]) -> None:
        """Stores which objects follow. So if this run does not end, the next one finds them."""
        if objects:
            names = self._announced.setdefault((log, partition, date), [])
            name = f"{RECORDS}date={date}/{UNFINISHED}{log}-{partition:05d}-{self._run}-{len(names):06d}.json"
            self._create(name, seal_json(name, encode_json(Unfinished(log, partition, date, sorted(objects)))))
            names.append(name)

    def before(self, log: str, partition: int, date: str) -> DateRecord | None:
        """The record of an earlier run; None if there is none."""
        self._require_no_worker()                                        # one may have begun meanwhile
        return self._record(log, partition, date)

    def _record(self, log: str, partition: int, date: str) -> DateRecord | None:
        name = record_name(log, partition, date)
        return None if self.store.size(name) is None else decode_record(name, self.store.read(name))

    def put(self, name: str, data: bytes, written: Written, before: Mapping[str, Written]) -> Change:
        """Writes an object of a date whose earlier run wrote `before`."""
        if before.get(name) == written and self._compacted(name):
            return "unchanged"
        if self.store.create(name, data):
            self._require_counting(name)
            return "replaced" if name in before else "new"
        if self.store.read(name) == data:
            return "unchanged"
        self._require_counting(name)
        self.store.delete(name)
        self._create(name, data)
        return "replaced"

    def end(self, record: DateRecord, before: DateRecord | None) -> int:
        """Writes the record of a date, then deletes what only the earlier run wrote. Returns how many objects were deleted."""
        stale = sorted(set(before.objects) - set(record.objects)) if before is not None else []
        if before is not None and before != record:                      # between two records there is none for a moment
            self.announce(record.log, record.partition, record.date, before.objects.keys() | record.objects.keys())
        announced = self._announced.pop((record.log, record.partition, record.date), [])
        if any(self.store.size(one) is None for one in announced) or self._record(record.log, record.partition, record.date) not in (before, record):
            raise ArchiveError(f"another run has processed {record.date} at the same time: run one at a time, and repeat this one")
        name = record_name(record.log, record.partition, record.date)
        data = seal_json(name, encode_json(record))
        if not self.store.create(name, data) and self.store.read(name) != data:
            self.store.delete(name)
            self._create(name, data)
        for one in stale:
            self._require_counting(one)
            self.store.delete(one)
        for one in announced:
            self.store.delete(one)
        return len(stale)

    def _create(self, name: str, data: bytes) -> None:
        if not self.store.create(name, data) and self.store.read(name) != data:
            raise ArchiveError(f"{name}: another run has just written it: run one at a time")

    def _compacted(self, name: str) -> bool:
        parsed = parse_name(name)
        return parsed is not None and replaced_by(self.store, parsed) is not None

    def _require_counting(self, name: str) -> None:
        """Raises `ArchiveError` if a compaction has replaced the object, because another content would not count."""
        if self._compacted(name):
            raise ArchiveError(f"{name} was compacted, and its content has changed since: delete the date's objects and compactions/, or choose another --to")

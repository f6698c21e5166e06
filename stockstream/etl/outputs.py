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
STARTED = "etl-started/"
"""Names of objects that a run is about to write, until the date has its record: `etl-started/date=.../LOG-PARTITION/ANY.json`."""
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


_decode = msgspec.json.Decoder(DateRecord).decode
_decode_names = msgspec.json.Decoder(list[str]).decode


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


def started_prefix(log: str, partition: int, date: str) -> str:
    return f"{STARTED}date={date}/{log}-{partition:05d}/"


class Target:
    """The place that a batch writes to. Nothing changes there where it has the same already.

    Raises `ArchiveError` if a worker archives to it, because rows would count twice.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        if next(iter(store.list("chains/")), None) is not None:
            raise ArchiveError(f"{store.url} is the archive of a worker, which writes processed/ itself: choose another place for --to")

    def before(self, log: str, partition: int, date: str) -> DateRecord | None:
        """The record of an earlier run; None if there is none."""
        name = record_name(log, partition, date)
        return None if self.store.size(name) is None else decode_record(name, self.store.read(name))

    def start(self, log: str, partition: int, date: str, names: Collection[str], before: Mapping[str, Written]) -> None:
        """Notes the objects that are written next, so that the run after one that was killed deletes those that it does not make itself."""
        if not set(names) <= before.keys():
            self.store.create(f"{started_prefix(log, partition, date)}{uuid.uuid4().hex}.json", encode_json(sorted(names)))

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
        """Writes the record of a date, then deletes what only earlier runs wrote, also those that were killed. Returns how many objects were deleted."""
        name = record_name(record.log, record.partition, record.date)
        data = seal_json(name, encode_json(record))
        if not self.store.create(name, data) and self.store.read(name) != data:
            self.store.delete(name)
            self._create(name, data)
        notes = list(self.store.list(started_prefix(record.log, record.partition, record.date)))
        earlier = set(before.objects) if before is not None else set()
        left = {one for note in notes for one in self._started(note)} - earlier - set(record.objects)
        stale = sorted(earlier - set(record.objects)) + sorted(one for one in left if self.store.size(one) is not None or self._compacted(one))
        for one in stale:
            self._require_counting(one)
            self.store.delete(one)
        for note in notes:
            self.store.delete(note)
        return len(stale)

    def _started(self, note: str) -> list[str]:
        try:
            return _decode_names(self.store.read(note))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{note} cannot be read: {error}") from error

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

"""A Faust table of packed records, and how its changelog is read at an assignment."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiokafka
import faust

from stockstream.application import App
from stockstream.errors import StateError
from stockstream.kafka.admin import changelog
from stockstream.kafka.client import MAX_BATCH_BYTES, client_options, end_offsets
from stockstream.transforms.changelog_index import OPEN, Range, subtract
from stockstream.transport.fetching import FETCH_MAX_WAIT_MS
from stockstream.transport.messages import ChunkSchema
from stockstream.transport.sending import LOST_RECORDS, misplaced

logger = logging.getLogger(__name__)


Needs = Callable[[Mapping[bytes, bytes]], list[Range] | None]
"""Gives the ranges of a changelog that a restart needs, from the records read so far; None if they do not name them."""
SET_ASIDE_KEPT = 10_000
"""How many records that were set aside are remembered, so that each is listed once."""
TAIL = 64
"""How many records at the end of a changelog are read first. The last checkpoint is among them, unless the writer died within a large batch."""
Readable = Callable[[bytes, bytes], str]
"""Gives the reason why a core cannot be restored from a record (key, value); empty if it can. Raises `StateError` for a record of a newer format."""


def anything(key: bytes, value: bytes) -> str:
    """Accepts every record: for tables whose records are checked only when they are used."""
    return ""


@dataclass(slots=True)
class Stored:
    """The last readable record of each key of one partition, and its offset."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    offsets: dict[bytes, int] = field(default_factory=dict)

    def keep(self, record: Any, readable: Readable = anything) -> str:
        """Stores a record, in any order of ranges. Returns why it is not one of the table's, empty if it is; an earlier record of its key then stays.

        The tables write no tombstones, so a tombstone comes from another program. Raises `StateError` for a record of a newer format.
        """
        if record.key is None or record.value is None:
            return "a record without a key" if record.key is None else "a tombstone: stockstream never deletes state"
        try:
            fault = readable(record.key, record.value)
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001  a topic may hold any bytes, and any decoder error is a fault of the record
            fault = f"{type(error).__name__}: {error}"
        if not fault and record.offset >= self.offsets.get(record.key, -1):
            self.offsets[record.key] = record.offset
            self.records[record.key] = record.value
        return fault


class Reading:
    """The progress of reading one partition: which ranges have been read, and which are still to be read."""

    def __init__(self, begin: int, end: int, needs: Needs, tail: int = TAIL) -> None:
        self.stored = Stored()
        self._begin, self._end, self._needs = begin, end, needs
        self._read: list[Range] = []
        self._next = [(max(begin, end - tail), end - 1)] if begin < end else []
        self.now: Range | None = None

    def begin_range(self) -> int | None:
        """Starts the next range and returns its first offset; None if everything needed has been read."""
        if not self._next and self._begin < self._end:
            try:
                ranges = self._needs(self.stored.records)
            except Exception:
                logger.warning("the newest checkpoint does not name the changelog ranges that a restart needs: reading the whole changelog", exc_info=True)
                ranges = None
            ranges = [(0, OPEN)] if ranges is None else ranges
            inside = [(max(first, self._begin), min(last, self._end - 1)) for first, last in ranges]
            self._next = subtract([part for part in inside if part[0] <= part[1]], self._read)
        self.now = self._next.pop(0) if self._next else None
        return self.now[0] if self.now else None

    def reached(self, position: int) -> bool:
        """Whether the current range is complete at the consumer's position (the next offset to read)."""
        assert self.now is not None
        if position <= self.now[1]:
            return False
        self._read.append(self.now)
        return True


class StateTable(faust.Table[bytes, bytes]):
    """Packed records in the changelog of a Faust table. The stage writes them through its pipe, never by item assignment.

    At every assignment the table reads the end of the changelog, and the ranges that the checkpoint there names. Faust's own recovery
    (faust/tables/recovery.py) is not used, because for partitions that stay it continues from its last position, and it counts a chunk that a rebalance
    dropped as read. `Consumer.highwaters` gives it nothing to recover.
    """

    def __init__(self, app: App, name: str) -> None:
        topic = app.topic(changelog(app.settings, name), schema=ChunkSchema(allow_empty=True), acks=False, internal=False, maxsize=4_096)
        super().__init__(app, name=name, changelog_topic=topic, recovery_buffer_size=1)
        self._app = app
        self._set_aside: set[tuple[int, int]] = set()
        app.tables.add(self)

    def _set_record_aside(self, place: Any, offset: int, fault: str) -> None:
        """Sets an unreadable record aside, once."""
        if (place.partition, offset) not in self._set_aside and len(self._set_aside) < SET_ASIDE_KEPT:
            self._set_aside.add((place.partition, offset))
            self._app.set_aside.add(place.topic, place.partition, offset, self.name, "unreadable state", fault)

    async def read(self, partitions: Sequence[int], needs: Needs, readable: Readable = anything) -> dict[int, Stored]:
        """Reads the records that a restart needs of each partition. Records that are not the table's are set aside.

        Raises `StateError` for a record of a newer stockstream.
        """
        if not partitions:
            return {}
        consumer = aiokafka.AIOKafkaConsumer(
            **client_options(self._app.settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS, max_partition_fetch_bytes=4 * MAX_BATCH_BYTES,
        )  # fmt: skip
        try:
            await consumer.start()
            places = [aiokafka.TopicPartition(self.changelog_topic.get_topic_name(), partition) for partition in partitions]
            begins = await consumer.beginning_offsets(places)
            ends = await end_offsets(consumer, places, embedded=self._app.embedded)
            found = {place: Reading(begins[place], ends[place], needs) for place in places}
            for place in places:
                self._app.sender.note_end(place.topic, place.partition, ends[place])
            left = {place for place in places if begins[place] < ends[place]}
            if left:
                consumer.assign(left)
            while left:
                for place in [place for place in left if found[place].now is None or found[place].reached(await consumer.position(place))]:
                    offset = found[place].begin_range()
                    if offset is None:
                        left.discard(place)
                    else:
                        consumer.seek(place, offset)
                if left:
                    for place, records in (await consumer.getmany(*left, timeout_ms=FETCH_MAX_WAIT_MS)).items():
                        for record in records:
                            fault = LOST_RECORDS if misplaced(record) else found[place].stored.keep(record, readable)
                            if fault:
                                self._set_record_aside(place, record.offset, fault)
        finally:
            await consumer.stop()
        return {place.partition: reading.stored for place, reading in found.items()}

"""A Faust table of packed records: what its changelog holds, and reading it at an assignment."""

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

logger = logging.getLogger(__name__)


Needs = Callable[[Mapping[bytes, bytes]], list[Range] | None]
"""The ranges of a changelog that a restart needs, as the records read so far say; None where they do not say it."""
PASSED_KEPT = 10_000
"""Places of records that are passed over, for saying each once."""
TAIL = 64
"""Records at a changelog's end that are read first: the last head is among them, but for a writer that died within a large batch."""
Readable = Callable[[bytes, bytes], str]
"""Why a record (key, value) is none that the core can be restored from; empty where it is one. Raises `StateError` for one of a newer format."""


def anything(key: bytes, value: bytes) -> str:
    """Of a table whose records are not looked at before they are used."""
    return ""


@dataclass(slots=True)
class Stored:
    """The last record of each key of one partition that can be read, and its offset."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    offsets: dict[bytes, int] = field(default_factory=dict)

    def keep(self, record: Any, readable: Readable = anything) -> str:
        """Takes a record, whichever range it was read in. Where it is not ours the answer says why, and an earlier one of its key stays.

        Our tables write no tombstones: one under a key of ours is somebody else's. Raises `StateError` for a record of a newer format.
        """
        if record.key is None or record.value is None:
            return "a record without key" if record.key is None else "a tombstone: nobody here deletes state"
        try:
            fault = readable(record.key, record.value)
        except StateError:
            raise
        except Exception as error:  # noqa: BLE001  anything may lie in a topic, and whatever it makes a decoder do is a fault of that record
            fault = f"{type(error).__name__}: {error}"
        if not fault and record.offset >= self.offsets.get(record.key, -1):
            self.offsets[record.key] = record.offset
            self.records[record.key] = record.value
        return fault


class Reading:
    """What of one partition is read and what is still to be."""

    def __init__(self, begin: int, end: int, needs: Needs, tail: int = TAIL) -> None:
        self.stored = Stored()
        self._begin, self._end, self._needs = begin, end, needs
        self._read: list[Range] = []
        self._next = [(max(begin, end - tail), end - 1)] if begin < end else []
        self.now: Range | None = None

    def begin_range(self) -> int | None:
        """The offset to read from now; None where all that is needed is there."""
        if not self._next and self._begin < self._end:
            try:
                ranges = self._needs(self.stored.records)
            except Exception:
                logger.warning("the newest state does not say what is needed of its changelog: reading all of it", exc_info=True)
                ranges = None
            ranges = [(0, OPEN)] if ranges is None else ranges
            inside = [(max(first, self._begin), min(last, self._end - 1)) for first, last in ranges]
            self._next = subtract([part for part in inside if part[0] <= part[1]], self._read)
        self.now = self._next.pop(0) if self._next else None
        return self.now[0] if self.now else None

    def reached(self, position: int) -> bool:
        """Whether the range is read, now that reading goes on at this offset."""
        assert self.now is not None
        if position <= self.now[1]:
            return False
        self._read.append(self.now)
        return True


class StateTable(faust.Table[bytes, bytes]):
    """Packed records in the changelog of a Faust table. They are written by the stage, through its pipe, never by item assignment.

    They are read here, at every assignment: the log's end, and what the head there names. Faust's own recovery (tables/recovery.py) reads on from where it
    was for partitions that stay, and lets a chunk that a rebalance has dropped count as read; `Consumer.highwaters` tells it that there is nothing to recover.
    """

    def __init__(self, app: App, name: str) -> None:
        topic = app.topic(changelog(app.settings, name), schema=ChunkSchema(allow_empty=True), acks=False, internal=False, maxsize=4_096)
        super().__init__(app, name=name, changelog_topic=topic, recovery_buffer_size=1)
        self._app = app
        self._passed: set[tuple[int, int]] = set()
        app.tables.add(self)

    def _pass(self, place: Any, offset: int, fault: str) -> None:
        """Says once that a record is not used."""
        if (place.partition, offset) not in self._passed and len(self._passed) < PASSED_KEPT:
            self._passed.add((place.partition, offset))
            self._app.set_aside.add(place.topic, place.partition, offset, self.name, "unreadable state", fault)

    async def read(self, partitions: Sequence[int], needs: Needs, readable: Readable = anything) -> dict[int, Stored]:
        """What a restart needs of each partition, as its changelog holds it now. What is not ours is passed over, visibly.

        Raises `StateError` where a newer stockstream has written.
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
                            fault = found[place].stored.keep(record, readable)
                            if fault:
                                self._pass(place, record.offset, fault)
        finally:
            await consumer.stop()
        return {place.partition: reading.stored for place, reading in found.items()}

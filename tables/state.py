"""A Faust table of packed records, and the stage of the pipeline that lives on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import aiokafka
import faust
from faust.types import TP

from stockstream.app import App
from stockstream.broker import MAX_BATCH_BYTES, changelog, client_options, end_offsets
from stockstream.errors import FencedError, StateError, StockstreamError
from stockstream.transforms.changelog import OPEN, ChangelogIndex, Range, subtract
from stockstream.transport import FETCH_MAX_WAIT_MS, Chunk, ChunkSchema, Message, Outgoing, Pipe

logger = logging.getLogger(__name__)

Core = TypeVar("Core")
Records = Sequence[tuple[bytes, bytes]]


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


class Stage(Generic[Core]):
    """The cores and pipes of one agent's partitions.

    Args:
        name: of the agent, for logs.
        topic: full name of the topic that the agent reads.
        restore: makes the core of a partition from its records and their offsets.
        position: the offset in `topic` at which a core goes on; None for the beginning.
        needs: tells from the records at the changelog's end which others are needed.
        readable: tells which records are of use.
    """

    turns_before: ClassVar[int] = 0
    """Turns of the event loop that others get before each chunk: what can wait lets pass what cannot."""
    turns_after: ClassVar[int] = 0
    """Turns that others get after each chunk, where what it brought should be on its way before the next is worked on."""

    def __init__(
        self, app: App, table: StateTable, topic: str, restore: Callable[[int, Mapping[bytes, bytes], Mapping[bytes, int]], Core],
        position: Callable[[Core], int | None], needs: Needs, readable: Readable = anything,
    ) -> None:  # fmt: skip
        self.app, self.table, self.topic = app, table, topic
        self._restore, self._position, self._needs, self._readable = restore, position, needs, readable
        self.cores: dict[int, Core] = {}
        self.pipes: dict[int, Pipe] = {}
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        """Builds every core anew from the recovered state: whoever had the partition in between, this is what counts."""
        await self.release(0.0)
        found: dict[TP, int | None] = {}
        epoch = self.app.reader.epoch
        stored = await self.table.read(partitions.get(self.topic, []), self._needs, self._readable)
        if epoch != self.app.reader.epoch:
            return found                                                 # a newer assignment is under way
        for partition, kept in stored.items():
            found[TP(self.topic, partition)] = self.build(partition, kept)
        return found

    def build(self, partition: int, kept: Stored) -> int | None:
        """Makes a partition's core from its state, and a pipe; the offset to read on from, None for the beginning.

        Raises `StateError`, which says how to go on, and `ModelError`.
        """
        try:
            core = self._restore(partition, kept.records, kept.offsets)
        except StockstreamError:
            raise
        except Exception as error:
            logger.exception("%s: the state of partition %d", self.table.name, partition)
            raise StateError(
                f"the state of {self.table.name} for partition {partition} cannot be read ({type(error).__name__}: {error}): stop all workers and delete the "
                f"topic {self.table.changelog_topic.get_topic_name()}; the agent then begins anew with what its input still holds"
            ) from error
        self.cores[partition] = core
        self.pipes[partition] = Pipe(self.app.sender, self.app.fence, f"{self.table.name}[{partition}]")
        return self._position(core)

    async def release(self, timeout_s: float) -> None:
        """Settles the pipes and forgets the cores."""
        pipes, self.pipes, self.cores = self.pipes, {}, {}
        await asyncio.gather(*(pipe.close(timeout_s) for pipe in pipes.values()))

    def core_of(self, chunk: Chunk) -> Core | None:
        """The core that a chunk is for; None where the partition has gone, or the chunk was read for an assignment before this one."""
        return self.cores.get(chunk.partition) if chunk.epoch == self.app.reader.epoch else None

    async def chunk(self, chunk: Chunk) -> None:
        """Takes a chunk: feeds its core, sends, stores."""
        raise NotImplementedError

    async def take(self, chunk: Chunk) -> None:
        """Takes a chunk, and what goes wrong with it."""
        await self.chunk(chunk)

    async def work(self, stream: Any) -> None:
        """Takes the chunks of a stream. What `take` does not handle ends the worker: a core may have counted what was not sent.

        Faust would acknowledge the chunk and go on with the next (faust-streaming/faust#189).
        """
        async for chunk in stream:
            try:
                await self.app.reader.pace.let_pass(self.turns_before)
                await self.take(chunk)
                await self.app.reader.pace.let_pass(self.turns_after)
            except FencedError:
                return
            except Exception as error:
                logger.exception("%s[%d] from offset %d", chunk.topic, chunk.partition, chunk.first)
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"{self.table.name}: {chunk.topic}[{chunk.partition}] from offset {chunk.first}: {type(error).__name__}: {error}")
                return

    async def submit(
        self, core: Core, partition: int, sends: Sequence[Outgoing] = (), records: Records = (),
        index: ChangelogIndex | None = None, delivered: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Sends, then stores the records, through the partition's pipe; nothing where `core` is no longer the partition's: its successor tells it again.

        `index` is told where the records have come to lie.
        """
        pipe = self.pipes.get(partition) if self.cores.get(partition) is core else None
        if pipe is not None and (sends or records):
            await pipe.submit(sends, self._state(partition, records), index.confirmed if index else None, delivered)

    def _state(self, partition: int, records: Records) -> Outgoing | None:
        if not records:
            return None
        return Outgoing(self.table.changelog_topic.get_topic_name(), partition, [Message(key, value) for key, value in records])

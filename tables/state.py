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
from stockstream.errors import FencedError
from stockstream.transforms.changelog import OPEN, ChangelogIndex, Range, subtract
from stockstream.transport import FETCH_MAX_WAIT_MS, Chunk, ChunkSchema, Message, Outgoing, Pipe

logger = logging.getLogger(__name__)

Core = TypeVar("Core")
Records = Sequence[tuple[bytes, bytes]]


Needs = Callable[[Mapping[bytes, bytes]], list[Range] | None]
"""The ranges of a changelog that a restart needs, as the records read so far say; None where they do not say it."""

TAIL = 64
"""Records at a changelog's end that are read first: the last head is among them, but for a writer that died within a large batch."""


@dataclass(slots=True)
class Stored:
    """The last record of each key of one partition, and its offset."""

    records: dict[bytes, bytes] = field(default_factory=dict)
    offsets: dict[bytes, int] = field(default_factory=dict)

    def keep(self, record: Any) -> None:
        """Takes a record, whichever range it was read in."""
        if record.offset < self.offsets.get(record.key, -1):
            return
        self.offsets[record.key] = record.offset
        if record.value is None:
            self.records.pop(record.key, None)
        else:
            self.records[record.key] = record.value


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
            ranges = self._needs(self.stored.records)
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
        app.tables.add(self)

    async def read(self, partitions: Sequence[int], needs: Needs) -> dict[int, Stored]:
        """What a restart needs of each partition, as its changelog holds it now."""
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
                            found[place].stored.keep(record)
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
    """

    turns_before: ClassVar[int] = 0
    """Turns of the event loop that others get before each chunk: what can wait lets pass what cannot."""
    turns_after: ClassVar[int] = 0
    """Turns that others get after each chunk, where what it brought should be on its way before the next is worked on."""

    def __init__(
        self, app: App, table: StateTable, topic: str, restore: Callable[[int, Mapping[bytes, bytes], Mapping[bytes, int]], Core],
        position: Callable[[Core], int | None], needs: Needs,
    ) -> None:  # fmt: skip
        self.app, self.table, self.topic = app, table, topic
        self._restore, self._position, self._needs = restore, position, needs
        self.cores: dict[int, Core] = {}
        self.pipes: dict[int, Pipe] = {}
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        """Builds every core anew from the recovered state: whoever had the partition in between, this is what counts."""
        await self.release(0.0)
        found: dict[TP, int | None] = {}
        epoch = self.app.reader.epoch
        stored = await self.table.read(partitions.get(self.topic, []), self._needs)
        if epoch != self.app.reader.epoch:
            return found                                                 # a newer assignment is under way
        for partition, kept in stored.items():
            found[TP(self.topic, partition)] = self.build(partition, kept)
        return found

    def build(self, partition: int, kept: Stored) -> int | None:
        """Makes a partition's core from its state, and a pipe; the offset to read on from, None for the beginning."""
        core = self._restore(partition, kept.records, kept.offsets)
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

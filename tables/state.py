"""A Faust table of packed records, and the stage of the pipeline that lives on it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import aiokafka
import faust
from faust.types import TP

from stockstream.app import App
from stockstream.broker import MAX_BATCH_BYTES, changelog, client_options, end_offsets
from stockstream.errors import FencedError
from stockstream.transport import FETCH_MAX_WAIT_MS, Chunk, ChunkSchema, Message, Outgoing, Pipe

logger = logging.getLogger(__name__)

Core = TypeVar("Core")
Records = Sequence[tuple[bytes, bytes]]


class StateTable(faust.Table[bytes, bytes]):
    """Packed records in the changelog of a Faust table. They are written by the stage, through its pipe, never by item assignment.

    They are read here, whole, at every assignment. Faust's own recovery (tables/recovery.py) reads on from where it was for partitions that stay, and
    lets a chunk that a rebalance has dropped count as read; `Consumer.highwaters` tells it that there is nothing to recover.
    """

    def __init__(self, app: App, name: str) -> None:
        topic = app.topic(changelog(app.settings, name), schema=ChunkSchema(allow_empty=True), acks=False, internal=False, maxsize=4_096)
        super().__init__(app, name=name, changelog_topic=topic, recovery_buffer_size=1)
        self._app = app
        app.tables.add(self)

    async def read(self, partitions: Sequence[int]) -> dict[int, dict[bytes, bytes]]:
        """The last record of each key, for each partition, as the changelog holds them now."""
        stored: dict[int, dict[bytes, bytes]] = {partition: {} for partition in partitions}
        if not stored:
            return stored
        consumer = aiokafka.AIOKafkaConsumer(
            **client_options(self._app.settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
            fetch_max_wait_ms=FETCH_MAX_WAIT_MS, max_partition_fetch_bytes=4 * MAX_BATCH_BYTES,
        )  # fmt: skip
        try:
            await consumer.start()
            places = [aiokafka.TopicPartition(self.changelog_topic.get_topic_name(), partition) for partition in stored]
            ends = await end_offsets(consumer, places, embedded=self._app.embedded)
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            left = {place for place in places if ends[place] > 0}
            while left:
                for place, records in (await consumer.getmany(*left, timeout_ms=FETCH_MAX_WAIT_MS)).items():
                    kept = stored[place.partition]
                    for record in records:
                        if record.value is None:
                            kept.pop(record.key, None)
                        else:
                            kept[record.key] = record.value
                left = {place for place in left if await consumer.position(place) < ends[place]}
        finally:
            await consumer.stop()
        return stored


class Stage(Generic[Core]):
    """The cores and pipes of one agent's partitions.

    Args:
        name: of the agent, for logs.
        topic: full name of the topic that the agent reads.
        restore: makes the core of a partition from its records.
        position: the offset in `topic` at which a core goes on; None for the beginning.
    """

    def __init__(
        self, app: App, table: StateTable, topic: str, restore: Callable[[int, Mapping[bytes, bytes]], Core], position: Callable[[Core], int | None]
    ) -> None:
        self.app, self.table, self.topic = app, table, topic
        self._restore, self._position = restore, position
        self.cores: dict[int, Core] = {}
        self.pipes: dict[int, Pipe] = {}
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        """Builds every core anew from the recovered state: whoever had the partition in between, this is what counts."""
        await self.release(0.0)
        found: dict[TP, int | None] = {}
        epoch = self.app.reader.epoch
        stored = await self.table.read(partitions.get(self.topic, []))
        if epoch != self.app.reader.epoch:
            return found                                                 # a newer assignment is under way
        for partition, records in stored.items():
            core = await self.build(partition, records)
            self.cores[partition] = core
            self.pipes[partition] = Pipe(self.app.sender, self.app.fence, f"{self.table.name}[{partition}]")
            found[TP(self.topic, partition)] = self._position(core)
        return found

    async def build(self, partition: int, records: Mapping[bytes, bytes]) -> Core:
        return self._restore(partition, records)

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

    async def work(self, stream: Any) -> None:
        """Takes the chunks of a stream. What goes wrong ends the worker: a core may have counted what was not sent.

        Faust would acknowledge the chunk and go on with the next (faust-streaming/faust#189).
        """
        async for chunk in stream:
            try:
                await self.chunk(chunk)
            except FencedError:
                return
            except Exception as error:
                logger.exception("%s[%d] from offset %d", chunk.topic, chunk.partition, chunk.first)
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"{self.table.name}: {type(error).__name__}: {error}")
                return

    async def submit(
        self, core: Core, partition: int, sends: Sequence[Outgoing] = (), records: Records = (), delivered: Callable[[], None] | None = None
    ) -> None:
        """Sends, then stores the records, through the partition's pipe; nothing where `core` is no longer the partition's: its successor tells it again."""
        pipe = self.pipes.get(partition) if self.cores.get(partition) is core else None
        if pipe is not None and (sends or records):
            await pipe.submit(sends, self._state(partition, records), delivered)

    def _state(self, partition: int, records: Records) -> Outgoing | None:
        if not records:
            return None
        return Outgoing(self.table.changelog_topic.get_topic_name(), partition, [Message(key, value) for key, value in records])

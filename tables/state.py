"""A Faust table of packed records, and the stage of the pipeline that lives on it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Generic, TypeVar

import faust
from faust.types import TP

from stockstream.app import App
from stockstream.broker import changelog
from stockstream.transport import Chunk, ChunkSchema, Message, Outgoing, Pipe

logger = logging.getLogger(__name__)

Core = TypeVar("Core")
Records = Sequence[tuple[bytes, bytes]]


class StateTable(faust.Table[bytes, bytes]):
    """Keeps, for each partition, the records of its changelog as bytes. They are written by the stage, through its pipe, never by item assignment.

    Faust's recovery fills it; what a partition's records mean is for its core to say.
    """

    def __init__(self, app: App, name: str) -> None:
        topic = app.topic(changelog(app.settings, name), schema=ChunkSchema(allow_empty=True), acks=False, internal=False, maxsize=4_096)
        self.stored: dict[int, dict[bytes, bytes]] = {}
        super().__init__(app, name=name, changelog_topic=topic, recovery_buffer_size=1)
        app.tables.add(self)

    def apply_changelog_batch(self, batch: Iterable[Any]) -> None:
        """Takes chunks of changelog records, in order."""
        for event in batch:
            chunk = event.value
            stored = self.stored.setdefault(chunk.partition, {})
            for record in chunk.records:
                if record.value is None:
                    stored.pop(record.key, None)
                else:
                    stored[record.key] = record.value

    def take(self, partition: int) -> dict[bytes, bytes]:
        """Hands a partition's recovered records over; recovery reads them anew at the next assignment."""
        return self.stored.pop(partition, {})


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
        for partition in partitions.get(self.topic, []):
            core = await self.build(partition, self.table.take(partition))
            self.cores[partition] = core
            self.pipes[partition] = Pipe(self.app.sender, self.app.fence, f"{self.table.name}[{partition}]")
            found[TP(self.topic, partition)] = self._position(core)
        self.table.stored.clear()
        return found

    async def build(self, partition: int, records: Mapping[bytes, bytes]) -> Core:
        return self._restore(partition, records)

    async def release(self, timeout_s: float) -> None:
        """Settles the pipes and forgets the cores."""
        pipes, self.pipes, self.cores = self.pipes, {}, {}
        for pipe in pipes.values():
            await pipe.close(timeout_s)

    def core_of(self, chunk: Chunk) -> Core | None:
        """The core that a chunk is for; None where the partition has gone, or the chunk was read for an assignment before this one."""
        return self.cores.get(chunk.partition) if chunk.epoch == self.app.reader.epoch else None

    async def submit(self, partition: int, sends: Sequence[Outgoing] = (), records: Records = (), delivered: Callable[[], None] | None = None) -> None:
        """Sends, then stores the records, through the partition's pipe; nothing where the partition has gone."""
        pipe = self.pipes.get(partition)
        if pipe is not None and (sends or records):
            await pipe.submit(sends, self._state(partition, records), delivered)

    def _state(self, partition: int, records: Records) -> Outgoing | None:
        if not records:
            return None
        return Outgoing(self.table.changelog_topic.get_topic_name(), partition, [Message(key, value) for key, value in records])

"""A stage: the cores and pipes of one agent's partitions, restored from its table."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from faust.types import TP

from stockstream.application import App
from stockstream.errors import FencedError, StateError, StockstreamError
from stockstream.state.changelog_table import Needs, Readable, StateTable, Stored, anything
from stockstream.transforms.changelog_index import ChangelogIndex
from stockstream.transport.messages import Chunk, Message, Outgoing
from stockstream.transport.sending import Pipe

logger = logging.getLogger(__name__)


Core = TypeVar("Core")
Records = Sequence[tuple[bytes, bytes]]


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

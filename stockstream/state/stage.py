"""A stage: the cores and pipes of one agent's partitions, restored from its table."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, Protocol, TypeVar, runtime_checkable

from faust.types import TP

from stockstream.application import App
from stockstream.errors import FencedError, StateError, StockstreamError
from stockstream.state.changelog_table import Needs, Readable, StateTable, Stored, anything
from stockstream.transforms.changelog_index import ChangelogIndex
from stockstream.transport.messages import Chunk, Message, Outgoing
from stockstream.transport.sending import Pipe

logger = logging.getLogger(__name__)


Core = TypeVar("Core")
Writing = TypeVar("Writing", bound="WritingCore")
Records = Sequence[tuple[bytes, bytes]]


@runtime_checkable
class FrameWriter(Protocol):
    """A stage that writes frames, which can send frames again that the broker has lost."""

    @property
    def output(self) -> str:
        """Full name of the topic of its frames."""
        ...

    def log_of(self, partition: int) -> str:
        """The log id of the partition's core."""
        ...

    def sent_before(self, partition: int) -> int:
        """The restored state counts that the frames of all raw offsets before this one were confirmed. -1: there is no such state."""
        ...

    def send_again(self, partition: int, first: int) -> Mapping[TP, int | None]:
        """Makes the partition's core start from the beginning of its input, and send frames from raw offset `first` on. Returns its reading position."""
        ...


class Stage(Generic[Core]):
    """The cores and pipes of one agent's partitions.

    Args:
        app: the app that the stage takes part in.
        table: the table that holds the cores' state.
        topic: full name of the topic that the agent reads.
        restore: makes the core of a partition from its records and their offsets.
        position: the reading position of a core in `topic`; None for the beginning.
        needs: gives the further ranges to read, from the records at the end of the changelog.
        readable: decides which records can be used.
    """

    iterations_before: ClassVar[int] = 0
    """For how many iterations of the event loop other tasks run before each chunk. An agent whose results can wait lets others go first."""
    iterations_after: ClassVar[int] = 0
    """For how many iterations of the event loop other tasks run after each chunk, so that its results are sent before the next chunk is processed."""

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
        """Rebuilds every core from the stored state, since another worker may have owned the partition in between.

        Returns the reading position of each partition, None for the beginning. Raises `StateError` and `ModelError`.
        """
        await self.release(0.0)
        found: dict[TP, int | None] = {}
        assignment_number = self.app.chunk_consumer.assignment_number
        stored = await self.table.read(partitions.get(self.topic, []), self._needs, self._readable)
        if assignment_number != self.app.chunk_consumer.assignment_number:
            return found                                                 # a newer assignment is in progress
        for partition, found_state in stored.items():
            found[TP(self.topic, partition)] = self.build(partition, found_state)
        return found

    def build(self, partition: int, stored: Stored) -> int | None:
        """Makes a partition's core from its state, and its pipe. Returns the reading position, None for the beginning.

        Raises `StateError`, whose text gives the remedy, and `ModelError`.
        """
        try:
            core = self._restore(partition, stored.records, stored.offsets)
        except StockstreamError:
            raise
        except Exception as error:
            logger.exception("%s: the state of partition %d cannot be read", self.table.name, partition)
            raise StateError(
                f"the state of {self.table.name} for partition {partition} cannot be read ({type(error).__name__}: {error}): stop all workers and delete the "
                f"topic {self.table.changelog_topic.get_topic_name()}; the agent then starts again from the records that its input topic still has"
            ) from error
        self.cores[partition] = core
        self.pipes[partition] = Pipe(self.app.sender, self.app.fence, f"{self.table.name}[{partition}]")
        return self._position(core)

    async def release(self, timeout_s: float) -> None:
        """Closes the pipes, each within `timeout_s` seconds, and drops the cores."""
        pipes, self.pipes, self.cores = self.pipes, {}, {}
        await asyncio.gather(*(pipe.close(timeout_s) for pipe in pipes.values()))

    def core_of(self, chunk: Chunk) -> Core | None:
        """The core of a chunk's partition; None if the partition was revoked, or the chunk belongs to an earlier assignment."""
        return self.cores.get(chunk.partition) if chunk.assignment_number == self.app.chunk_consumer.assignment_number else None

    async def process(self, chunk: Chunk) -> None:
        """Processes a chunk: feeds its core, sends the results, stores the state."""
        raise NotImplementedError

    async def handle(self, chunk: Chunk) -> None:
        """Processes a chunk. Subclasses handle its errors here."""
        await self.process(chunk)

    async def work(self, stream: Any) -> None:
        """Processes the chunks of a stream. An error that `handle` does not handle ends the worker, because its core may account for results not sent.

        Faust itself would acknowledge the chunk and continue with the next (faust-streaming/faust#189).
        """
        async for chunk in stream:
            try:
                await self.app.chunk_consumer.pace.let_pass(self.iterations_before)
                await self.handle(chunk)
                await self.app.chunk_consumer.pace.let_pass(self.iterations_after)
            except FencedError:
                return
            except Exception as error:
                logger.exception("%s[%d]: processing failed from offset %d on", chunk.topic, chunk.partition, chunk.first)
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"{self.table.name}: {chunk.topic}[{chunk.partition}] from offset {chunk.first}: {type(error).__name__}: {error}")
                return

    async def submit(
        self, core: Core, partition: int, sends: Sequence[Outgoing] = (), records: Records = (),
        index: ChangelogIndex | None = None, delivered: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Sends the messages, then stores the records, through the partition's pipe.

        Does nothing if `core` is no longer the partition's: its successor sends the same results again. `index` receives the offsets of the stored records.
        """
        pipe = self.pipes.get(partition) if self.cores.get(partition) is core else None
        if pipe is not None and (sends or records):
            await pipe.submit(sends, self._state(partition, records), index.confirmed if index else None, delivered)

    def _state(self, partition: int, records: Records) -> Outgoing | None:
        if not records:
            return None
        return Outgoing(self.table.changelog_topic.get_topic_name(), partition, [Message(key, value) for key, value in records])


class WritingCore(Protocol):
    """A core that makes frames."""

    log: str

    @property
    def sent_before(self) -> int:
        """As `FrameWriter.sent_before`."""
        ...

    def from_beginning(self: Writing) -> Writing:
        """A core for the beginning of the same input, in place of this one."""
        ...


class WritingStage(Stage[Writing]):
    """A stage whose cores make frames: a `FrameWriter`."""

    output: ClassVar[str]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._again_from: dict[int, int] = {}
        """By partition: the first raw offset to send again. What is computed of earlier ones is not sent."""

    async def release(self, timeout_s: float) -> None:
        await super().release(timeout_s)
        self._again_from.clear()

    def log_of(self, partition: int) -> str:
        return self.cores[partition].log

    def sent_before(self, partition: int) -> int:
        core = self.cores.get(partition)
        return core.sent_before if core is not None else -1

    def send_again(self, partition: int, first: int) -> Mapping[TP, int | None]:
        self.cores[partition] = self.cores[partition].from_beginning()
        self._again_from[partition] = first
        return {TP(self.topic, partition): None}

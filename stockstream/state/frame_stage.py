"""A stage that reads frames, and that recovers in place if its core fails at one.

A failed core may be half changed, and its results for earlier frames of the same chunk are not sent yet. So the stage rebuilds it as after a restart: it
waits for the output in progress to be confirmed, reads the state from the changelog, and reads the input from the position that the state gives. It tries
the frame once more, because the cause may have been temporary, such as memory. If the frame fails again, the stage sets it aside and the core continues
after it. Meanwhile chunks of that partition wait; other partitions go on.

Other partitions do not wait for a slow frame either, as when thousands of symbols appear or alert at once: its core takes it in a thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from typing import Any, TypeVar

import aiokafka
import pyarrow as pa
from aiokafka.errors import KafkaError

from stockstream.application import App
from stockstream.errors import BrokerError, FencedError, StateError, StockstreamError
from stockstream.kafka.client import MAX_BATCH_BYTES, client_options
from stockstream.state.changelog_table import Needs, Readable, StateTable, anything
from stockstream.state.frame_reader import FrameCore, FrameReader, Taken, input_position
from stockstream.state.stage import Stage
from stockstream.transforms.frames import Frame
from stockstream.transport.fetching import FETCH_MAX_WAIT_MS
from stockstream.transport.messages import Chunk

logger = logging.getLogger(__name__)

Core = TypeVar("Core", bound=FrameCore)

MAX_QUEUED = 64
"""How many chunks of a partition may be queued for its core before the agent itself waits."""
FAILURES_KEPT = 10_000
STALL_S = 30.0


def never(core: Any, rows: pa.RecordBatch) -> bool:
    """The default of `takes_long`, for cores whose frames are never slow."""
    return False


class FrameStage(Stage[Core]):
    """The cores and pipes of an agent that reads frames.

    Args:
        reader: of the agent's topic.
        restore, needs, readable: as those of `Stage`.
        takes_long: whether a core may work on these rows for more than some 50 ms.
    """

    def __init__(
        self, app: App, table: StateTable, topic: str, restore: Callable[[int, Mapping[bytes, bytes], Mapping[bytes, int]], Core], needs: Needs,
        reader: FrameReader, readable: Readable = anything, takes_long: Callable[[Core, pa.RecordBatch], bool] = never,
    ) -> None:  # fmt: skip
        super().__init__(app, table, topic, restore, input_position, needs, readable)
        self.reader, self._takes_long = reader, takes_long
        self._queued: dict[int, deque[Chunk]] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._current: dict[int, Chunk] = {}
        self._rebuilding: set[int] = set()
        self._failures: dict[int, dict[int, int]] = {}
        """By partition, then offset of a frame's first part: how often the frame has failed."""

    @property
    def rebuilding(self) -> list[int]:
        """Partitions whose cores are being rebuilt."""
        return sorted(self._rebuilding)

    @property
    def apart(self) -> list[int]:
        """Partitions whose chunks are processed in a task of their own, because of a failure or a slow frame."""
        return sorted(self._queued)

    async def release(self, timeout_s: float) -> None:
        tasks, self._tasks = list(self._tasks.values()), {}
        self._queued.clear()
        self._rebuilding.clear()
        self._failures.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await super().release(timeout_s)
        self.reader.forget()

    async def handle(self, chunk: Chunk) -> None:
        queued = self._queued.get(chunk.partition)
        if queued is not None:
            queued.append(chunk)
            if len(queued) > MAX_QUEUED:
                await asyncio.wait({self._tasks[chunk.partition]})
            return
        if self._is_slow(chunk):
            self._process_apart(chunk)
            return
        try:
            await self._process_current(chunk)
        except Exception as error:
            if not _concerns_record_only(error):
                raise
            if chunk.assignment_number != self.app.chunk_consumer.assignment_number:
                return                                                   # reassigned meanwhile: the new core reads the frame itself
            self._process_apart(chunk, error)

    def _is_slow(self, chunk: Chunk) -> bool:
        core = self.core_of(chunk)
        return core is not None and any(self._takes_long(core, part.rows) for part in self.reader.parts(chunk))

    async def feed(self, core: Core, take: Callable[[Frame, int], Taken | None], chunk: Chunk, frame: Frame, offset: int) -> Taken | None:
        """As `FrameReader.feed`, but in a thread for a partition that is processed apart."""
        if chunk.partition in self._queued:
            return await asyncio.to_thread(self.reader.feed, core, take, chunk, frame, offset)
        return self.reader.feed(core, take, chunk, frame, offset)

    def _process_apart(self, chunk: Chunk, error: Exception | None = None) -> None:
        """Starts a task that processes a chunk, and later chunks of its partition, without holding up other partitions."""
        queued = self._queued[chunk.partition] = deque([chunk])
        self._tasks[chunk.partition] = asyncio.create_task(self._work_off(queued, error), name=f"{self.table.name}[{chunk.partition}] apart")

    async def _process_current(self, chunk: Chunk) -> None:
        self._current[chunk.partition] = chunk
        await self.process(chunk)

    async def _work_off(self, queued: deque[Chunk], error: Exception | None) -> None:
        """Processes the waiting chunks. After each error it first rebuilds the core."""
        partition, assignment_number = queued[0].partition, queued[0].assignment_number
        try:
            while True:
                try:
                    if error is not None:
                        self._rebuilding.add(partition)
                        self._retry_or_set_aside(queued, error)
                        if not await self._rebuild(queued[0]):
                            return                                       # reassigned: the new owner resumes from the stored state
                    while queued:
                        await self._process_current(queued[0])
                        queued.popleft()
                    return
                except Exception as again:
                    if not _concerns_record_only(again):
                        raise
                    if assignment_number != self.app.chunk_consumer.assignment_number:
                        return
                    error = again
        except FencedError:
            return
        except Exception as last:
            logger.exception("%s: %s[%d] cannot be processed further", self.table.name, self.topic, partition)
            why = str(last) if isinstance(last, _Unhandled) else f"{type(last).__name__}: {last}"
            with contextlib.suppress(FencedError):
                self.app.fence.leave(f"{self.table.name}: {self.topic}[{partition}]: {why}")
        finally:
            if self._queued.get(partition) is queued:
                del self._queued[partition]
                self._tasks.pop(partition, None)
                self._rebuilding.discard(partition)

    def _retry_or_set_aside(self, queued: deque[Chunk], error: Exception) -> None:
        """Decides whether the failed frame is tried again or set aside. Raises `_Unhandled` if setting it aside did not help."""
        current = self._current[queued[0].partition]
        place = self.reader.current.get(current.partition)
        if place is None and len(current.records) > 1:
            # the failure was not in a frame being fed: single records show which one causes it
            text = "%s[%d] from offset %d failed: rebuilding the core, then trying its records one by one"
            logger.error(text, current.topic, current.partition, current.first, exc_info=error)
            singles = [Chunk(current.topic, current.partition, [record], current.assignment_number) for record in current.records]
            if current is queued[0]:
                queued.popleft()
                queued.extendleft(reversed(singles))
            return
        first, last = place or (current.first, current.last)
        failures = self._failures.setdefault(current.partition, {})
        while len(failures) > FAILURES_KEPT:
            del failures[next(iter(failures))]
        count = failures[first] = failures.get(first, 0) + 1
        what = f"{type(error).__name__}: {error}"
        if count > 2:
            raise _Unhandled(f"offset {first}: {what}, even though the frame was set aside") from error
        if count == 1:
            logger.error("%s[%d] offset %d failed: rebuilding the core and trying once more", current.topic, current.partition, first, exc_info=error)
            return
        self.reader.set_aside.setdefault(current.partition, set()).update({first, last})
        self.app.set_aside.add(current.topic, current.partition, first, self.table.name, type(error).__name__, str(error))

    async def _rebuild(self, chunk: Chunk) -> bool:
        """Rebuilds the partition's core and feeds it the records before `chunk`. Returns False if the partition was reassigned meanwhile."""
        partition, pipe = chunk.partition, self.pipes.get(chunk.partition)
        if pipe is not None:
            await pipe.drain()
            if chunk.assignment_number != self.app.chunk_consumer.assignment_number or self.pipes.get(partition) is not pipe:
                return False
            del self.pipes[partition]
            await pipe.close(0.0)
        if chunk.assignment_number != self.app.chunk_consumer.assignment_number:
            return False
        self.cores.pop(partition, None)
        self.reader.reset(partition)
        stored = await self.table.read([partition], self._needs, self._readable)
        if chunk.assignment_number != self.app.chunk_consumer.assignment_number:
            return False
        begin = self.build(partition, stored[partition])
        core = self.cores[partition]
        async with contextlib.aclosing(records_between(self.app, self.topic, partition, begin, chunk.first)) as records:
            async for record in records:
                if self.cores.get(partition) is not core:
                    return False
                await self._process_current(Chunk(self.topic, partition, [record], chunk.assignment_number))
        return self.cores.get(partition) is core


class _Unhandled(StockstreamError):
    """Ends the worker: a frame fails although it was set aside."""


def _concerns_record_only(error: Exception) -> bool:
    """Whether an error concerns only this record. Errors of the broker and the fence, and state of a newer format, concern the whole worker."""
    return not isinstance(error, (FencedError, StateError, KafkaError, _Unhandled)) and not getattr(error, "retriable", False)


async def records_between(app: App, topic: str, partition: int, begin: int | None, end: int) -> AsyncGenerator[Any, None]:
    """Yields the records of a partition from offset `begin` (None: the earliest) to `end`, exclusive. Raises `BrokerError` after STALL_S without progress."""
    if begin is not None and begin >= end:
        return
    place = aiokafka.TopicPartition(topic, partition)
    consumer = aiokafka.AIOKafkaConsumer(
        **client_options(app.settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS, max_partition_fetch_bytes=4 * MAX_BATCH_BYTES,
    )  # fmt: skip
    try:
        await consumer.start()
        consumer.assign([place])
        position = begin if begin is not None else (await consumer.beginning_offsets([place]))[place]
        consumer.seek(place, position)
        moved = time.monotonic()
        while position < end:
            for record in (await consumer.getmany(place, timeout_ms=FETCH_MAX_WAIT_MS)).get(place, ()):
                if record.offset >= end:
                    return
                yield record
            now = await consumer.position(place)
            if now != position:
                position, moved = now, time.monotonic()
            elif time.monotonic() - moved > STALL_S:
                raise BrokerError(f"{topic}[{partition}]: no record arrived at offset {position} for {STALL_S:.0f} s")
    finally:
        await consumer.stop()

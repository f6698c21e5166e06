"""Archives one topic: reads the partitions of a worker, and writes their steps. It holds no state but what the positions in the store say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stockstream.errors import BrokerError, StockstreamError
from stockstream.kafka.topic_reader import WAIT_MS
from stockstream.limited_log import LimitedLog
from stockstream.settings import Settings
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.sinks.archive.readers import TopicRecords
from stockstream.sinks.archive.store_failures import CLOSE_S, FIRST_RETRY_S, LAST_RETRY_S
from stockstream.sinks.archive.topics.objects import AREAS
from stockstream.sinks.archive.topics.positions import Position, ranges_with, tail_of
from stockstream.sinks.archive.topics.steps import Buffer, Open, Step, absent, commit, complete, ends, gatherer_of, open_after, plan
from stockstream.sinks.stores import Store
from stockstream.threads import T, in_thread

logger = logging.getLogger(__name__)

IDLE_S = 1.0
PAUSE_S = 1.0
"""Between two readings, so that many records come at once; a backlog is read without pauses."""
BACKLOG = 1_000
"""So many records of one reading are a backlog."""
MAX_LIVES = 8
"""So many lives of a topic are looked at to find the one that Kafka has: several clusters may write to one archive."""
FLUSH_FACTORS = {"alerts": 2.0, "outcomes": 2.0}
"""Flush times of topics whose rows are few, or of which nobody waits for the newest, in units of `archive_flush_s`: objects are fewer."""
STALLED = 10
"""So many readings without a record, where there must be one, are a failure of Kafka."""
FINAL_WAIT_MS = 200
"""A worker that stops waits this long for further records."""
WITHOUT_ROWS_S = 3_600.0
"""Records that bring no rows, such as frames of seconds without a tick, get a position at least so often: retention may delete them later."""


@dataclass(slots=True)
class _Partition:
    """One partition while this worker owns it. `at` is None until its positions have been read, `cursor` the next offset to read."""

    number: int
    at: Open | None = None
    buffer: Buffer = field(default_factory=Buffer)
    cursor: int | None = None
    since: float = 0.0
    """When the first of the rows that are buffered was read; without rows, the first record."""
    step: Step | None = None
    """The step that is being written."""
    archived: int = -1
    fault: str = ""


class ArchivedTopics:
    """The topics of a worker's settings, each read and written for itself: what fails in one does not stop the others.

    Args:
        settings: of the worker.
        store: the archive's.
        reader: makes the reader of a topic, given its name.
        skipped: as of `ArchivedTopic`.
    """

    def __init__(
        self, settings: Settings, store: Store, reader: Callable[[str], TopicRecords], skipped: Callable[[str, int, int, str], None]
    ) -> None:  # fmt: skip
        self._topics = [ArchivedTopic(settings, store, topic, reader(topic), skipped) for topic in settings.archive_topics]

    def own(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions: a topic has those of `ticks.raw`."""
        for topic in self._topics:
            topic.own(partitions)

    def progress(self) -> list[dict[str, Any]]:
        """As of `ArchivedTopic`, of all topics."""
        return [each for topic in self._topics for each in topic.progress()]

    async def run(self) -> None:
        """Reads and writes until it is cancelled or closed."""
        await asyncio.gather(*(topic.run() for topic in self._topics))

    async def close(self) -> None:
        """Writes what has come, for at most CLOSE_S."""
        await asyncio.gather(*(topic.close() for topic in self._topics))


class ArchivedTopic:
    """Reads a topic, and writes the rows of each partition `archive_flush_s` after the first of them was read, or earlier if they are many.

    A failure of Kafka or of the store is logged and tried again; nothing waits for it. What is read and not written yet is bounded; reading waits for it.

    Args:
        settings: of the worker.
        store: the archive's.
        topic: a key of AREAS.
        reader: reads the topic.
        skipped: called with topic, partition, offset and reason for a record that is no message of the topic.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, settings: Settings, store: Store, topic: str, reader: TopicRecords, skipped: Callable[[str, int, int, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._settings, self._store, self._reader, self._skipped, self._clock = settings, store, reader, skipped, clock
        self._area = AREAS[topic]
        self._flush_s = settings.archive_flush_s * FLUSH_FACTORS.get(topic, 1.0)
        self._partitions: dict[int, _Partition] = {}
        self._log = LimitedLog(clock)
        self._lock = asyncio.Lock()
        self._closing = asyncio.Event()

    def own(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions. Rows of others, read and not written yet, are left to their owner."""
        self._partitions = {number: self._partitions.get(number) or _Partition(number) for number in sorted(partitions)}

    def progress(self) -> list[dict[str, Any]]:
        """Of each partition: the last record that is archived, the last one that was read (-1: none), the bytes between them, and what fails."""
        return [
            {
                "topic": self._area.name, "partition": one.number, "offset": one.archived, "read": -1 if one.cursor is None else one.cursor - 1,
                "buffered_bytes": one.buffer.nbytes, "fault": one.fault,
            }
            for one in self._partitions.values()
        ]  # fmt: skip

    async def run(self) -> None:
        """Reads and writes until it is cancelled or closed."""
        wait = FIRST_RETRY_S
        while not self._closing.is_set():
            try:
                pause = PAUSE_S if await self.step() < BACKLOG else 0.0
                wait = FIRST_RETRY_S
            except Exception as error:                               # the archive's other work, and the pipeline, must go on
                text = str(error) if isinstance(error, StockstreamError) else f"{type(error).__name__}: {error}"
                if (end := self._log.due(text)) is not None:
                    logger.warning("archive: %s waits: %s%s", self._area.name, text, end, exc_info=not isinstance(error, StockstreamError))
                pause, wait = wait, min(2 * wait, LAST_RETRY_S)
            try:
                await asyncio.wait_for(self._closing.wait(), min(pause, self._flush_s))
            except TimeoutError:
                continue

    async def step(self, final: bool = False) -> int:
        """Reads what has come, and writes what is due; all, if it is final. Raises the first failure, after the other partitions had their turn.

        Returns the number of records that were read; 1 if none was, but a partition was not read because its buffer was full.
        """
        async with self._lock:
            mine, failures = list(self._partitions.values()), list[StockstreamError]()
            for one in mine:
                if one.at is None:
                    await self._try(one, self._open, failures)
            reading = {one.number: one.cursor for one in mine if self._owns(one) and one.at is not None and one.buffer.nbytes < self._limit()}
            read = 0
            if reading:
                found = await self._reader.poll(reading, FINAL_WAIT_MS if final else WAIT_MS)
                for number, records in found.items():
                    read += len(records)
                    await self._take(self._partitions.get(number), records)
            elif not final and not failures:
                await asyncio.sleep(IDLE_S)
            for one in mine:
                if one.at is not None and self._due(one, final):
                    await self._try(one, self._write, failures)
            if failures:
                raise failures[0]
            return read or int(len(reading) < len(mine))

    async def _try(self, one: _Partition, call: Callable[[_Partition], Awaitable[None]], failures: list[StockstreamError]) -> None:
        if not self._owns(one):
            return
        try:
            await call(one)
            one.fault = ""
        except StockstreamError as error:
            one.fault = str(error)
            failures.append(error)

    async def close(self) -> None:
        """Reads what has come, and writes it, for at most CLOSE_S. The next start reads the rest again."""
        self._closing.set()
        try:
            async with asyncio.timeout(CLOSE_S):
                while await self.step(final=True):
                    pass
        except (StockstreamError, TimeoutError) as error:
            logger.warning("archive: rows of %s are left to the next start: %s", self._area.name, str(error) or "timed out")
        finally:
            await self._reader.stop()

    # One partition

    def _owns(self, one: _Partition) -> bool:
        return self._partitions.get(one.number) is one

    def _limit(self) -> int:
        """Bytes of an object's rows. The topics together hold at most `archive_buffer_bytes`, and what one reading brings."""
        return min(self._settings.archive_max_bytes, self._settings.archive_buffer_bytes // (len(AREAS) * max(1, len(self._partitions))))

    def _due(self, one: _Partition, final: bool) -> bool:
        buffer = one.buffer
        if one.step is not None:
            return True
        if buffer.last is None:
            return False
        if not buffer.rows:
            return self._clock() >= one.since + WITHOUT_ROWS_S
        return final or buffer.nbytes >= self._limit() or self._clock() >= one.since + self._flush_s

    async def _open(self, one: _Partition) -> None:
        """Finds where the archive of the partition ends: the life that Kafka has. Creates the objects that a crashed writer did not create."""
        newest = await self._call(partial(ends, self._store, self._area, one.number))
        chosen: Position | None = None
        for position in reversed(newest[-MAX_LIVES:]):
            looked = (await self._reader.look({one.number: position.last}))[one.number]
            same = looked.record is not None and tail_of(looked.record) == position.tail
            if same or (position is newest[-1] and looked.begin > position.last):
                chosen = position
                break
        if newest and chosen is None:
            logger.warning(
                "archive: %s[%d] no longer has record %d: it was created again, or lost records; its archive begins anew, and repeats nothing",
                self._area.name, one.number, newest[-1].last,
            )  # fmt: skip
        missing: tuple[tuple[int, int], ...] = ()
        if chosen is not None and (names := await self._call(partial(absent, self._store, chosen))):
            missing = await self._complete(chosen, names, newest)
        at = open_after(self._store, self._area, one.number, newest, chosen)
        one.buffer, one.step = Buffer(first=at.first, missing=missing), None
        one.cursor, one.archived = at.first, -1 if at.first is None else at.first - 1
        one.at = at

    async def _complete(self, position: Position, names: Sequence[str], newest: Sequence[Position]) -> tuple[tuple[int, int], ...]:
        """Creates the objects with these names from the records in Kafka. Returns the ranges of records that are no longer there."""
        gatherer = gatherer_of(self._area, position.begin, [end for end in newest if end.life != position.life])
        records: list[RawRecord] = []
        cursor, stalled = position.first, 0
        while cursor <= position.last:
            found = (await self._reader.poll({position.partition: cursor})).get(position.partition, ())
            if found:
                records += [record for record in found if record.offset <= position.last]
                cursor, stalled = found[-1].offset + 1, 0
            elif (await self._reader.look({position.partition: cursor}))[position.partition].begin > position.last:
                break                                                    # retention has deleted the rest
            elif (stalled := stalled + 1) > STALLED:
                raise BrokerError(f"{position.topic}[{position.partition}]: no record arrives at offset {cursor}; it is read again later")
        if await self._call(partial(complete, self._store, position, names, gatherer, records)):
            return ()
        logger.error(
            "archive: %s[%d]: rows of records %d to %d cannot be archived: retention deleted some before; the next position records them as missing",
            self._area.name, position.partition, position.first, position.last,
        )  # fmt: skip
        return ((position.first, position.last),)

    async def _take(self, one: _Partition | None, records: Sequence[RawRecord]) -> None:
        if one is None or one.at is None or not records:
            return
        first, cursor, at = records[0].offset, one.cursor, one.at
        if cursor is not None and first < cursor:                        # Kafka has other records at these offsets
            one.at = None
            return
        if cursor is not None and first > cursor:
            begin = (await self._reader.look({one.number: cursor}))[one.number].begin
            if begin > cursor:
                lost = cursor, min(begin, first) - 1
                logger.error("archive: %s[%d]: retention deleted records %d to %d before they were archived", self._area.name, one.number, *lost)
                one.buffer.missing = ranges_with(one.buffer.missing, *lost)
        one.at = None                                                    # if this fails half-way, what is archived decides where to read on
        gathered = await self._call(partial(at.gatherer.gather, records))
        one.at = at
        if not self._owns(one):
            return
        for offset, reason in gathered.faults:
            self._skipped(self._area.name, one.number, offset, reason)
        if not one.buffer.rows and (gathered.rows.num_rows or one.buffer.last is None):
            one.since = self._clock()
        one.cursor = records[-1].offset + 1
        one.buffer.add(first, gathered)

    async def _write(self, one: _Partition) -> None:
        at = one.at
        if at is None:
            return
        if one.step is None:
            one.step = await self._call(partial(plan, self._area, one.number, at, one.buffer))
            one.buffer = Buffer(first=one.step.position.last + 1)
        step = one.step
        position = await self._call(partial(commit, self._store, step))
        if position != step.position:                                    # another writer was first: what follows its position is read again
            one.at = one.step = None
            return
        at.known.remember(step.rows)
        at.number, at.state = at.number + 1, position.end
        one.step, one.archived = None, position.last

    async def _call(self, call: Callable[[], T]) -> T:
        return await in_thread(call, f"archive-{self._area.name}")

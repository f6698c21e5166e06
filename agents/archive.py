"""Archives `ticks.raw`, the accepted rows in `ticks.clean`, and the rows of `windows`, `alerts`, `predictions` and `outcomes`. No other agent waits for it.

It commits no offsets: the chain of raw objects in the store is the archive's checkpoint.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from faust.types import TP

from stockstream import topics
from stockstream.errors import FrameError
from stockstream.instance import app
from stockstream.kafka.topic_reader import TopicReader
from stockstream.locations import S3_URL
from stockstream.locks import holder_of
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.compactor import Compactor, compact_command
from stockstream.sinks.archive.kafka_readers import KafkaClean, KafkaRaw
from stockstream.sinks.archive.repaired_writer import RepairedBars
from stockstream.sinks.archive.topics.writer import ArchivedTopics
from stockstream.sinks.archive.writer import Archive
from stockstream.sinks.stores import open_store
from stockstream.skipped import Fault, SkippedRecords
from stockstream.state.frame_reader import frame_of
from stockstream.status import metrics, status
from stockstream.transport.messages import Chunk, joined
from stockstream.transport.pacing import SEND_ITERATIONS

logger = logging.getLogger(__name__)

REPORT_S = 1.0
TOGETHER = 250
"""This many raw records of a partition go to the archive at once. Fewer wait up to REPORT_S, because each call costs the same whatever its size."""
settings = app.settings
skipped = SkippedRecords(metrics, settings.topic_prefix)


class Archiving:
    """The agent's part in a rebalance: the worker that reads a partition of `ticks.raw` also archives it."""

    def __init__(self) -> None:
        self.archive: Archive | None = None
        self.repaired: RepairedBars | None = None
        self.topics: ArchivedTopics | None = None
        self.compactor: Compactor | None = None
        self.owned: set[int] = set()
        self.received: set[int] = set()
        """Partitions that have received a chunk since they were assigned. Only from then on does `Chunk.begin` account for holes since the last chunk."""
        self.buffered: dict[int, tuple[Sequence[Any], int | None]] = {}
        """By partition: contiguous records, and the offset from which on they are all that Kafka holds (None: unknown)."""
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        if settings.archive == "none":
            return {}
        if self.archive is None:
            warn_of_others(settings.archive)
            store = open_store(settings.archive, settings)
            self.archive = Archive(settings, store, KafkaRaw(settings), KafkaClean(settings))
            self.repaired = RepairedBars(settings, store, TopicReader(settings, "repairs"), _skip_repair)
            self.topics = ArchivedTopics(settings, store, partial(TopicReader, settings), _skip_message)
            status.archive_positions, status.archive_topics = self.archive.progress, self.topics.progress
            if settings.compact and self.compactor is None:
                self.compactor = Compactor(compact_command(settings.archive))
                status.compaction = self.compactor.report
        await self.hand_over()
        now = set(partitions.get(settings.topic("ticks.raw"), []))
        for partition in self.owned - now:
            self.archive.revoke(partition)
            metrics.forget_archive_offset(partition)
        for partition in now - self.owned:
            self.archive.assign(partition)
        self.owned, self.received = now, set()
        if self.repaired is not None:
            self.repaired.own(now)
        if self.topics is not None:
            self.topics.own(now)
        if self.compactor is not None:
            self.compactor.own(now)
        return {}

    async def release(self, timeout_s: float) -> None:
        """At shutdown, writes what is buffered. In a rebalance the buffers stay, because most partitions stay on the worker."""
        if app.should_stop and self.compactor is not None:
            self.compactor.close()
        if app.should_stop and self.archive is not None:
            await self.hand_over()
            closing = [part.close() for part in (self.archive, self.repaired, self.topics) if part is not None]
            self.archive = self.repaired = self.topics = None
            await asyncio.gather(*closing)

    async def raw(self, chunk: Chunk) -> None:
        if not self._takes(chunk):
            return
        partition = chunk.partition
        # after an assignment the reader seeks, so the first chunk need not follow the last one
        begin = chunk.begin if partition in self.received and chunk.begin >= 0 else None
        self.received.add(partition)
        records, since = self.buffered.pop(partition, ([], begin))
        if records and chunk.begin != records[-1].offset + 1:
            await self._add(partition, records, since)
            records, since = [], begin
        records = joined((records, chunk.records))
        if len(records) >= TOGETHER:
            await self._add(partition, records, since)
        else:
            self.buffered[partition] = records, since

    async def hand_over(self) -> None:
        """Passes all buffered records to the archive."""
        buffered, self.buffered = self.buffered, {}
        for partition, (records, since) in buffered.items():
            await self._add(partition, records, since)

    async def _add(self, partition: int, records: Sequence[Any], since: int | None) -> None:
        if self.archive is not None:
            await self.archive.add_raw(partition, records, since)

    def _takes(self, chunk: Chunk) -> bool:
        return chunk.assignment_number == app.chunk_consumer.assignment_number and chunk.partition in self.owned

    async def clean(self, chunk: Chunk) -> None:
        if self.archive is None or not self._takes(chunk):
            return
        partition = chunk.partition
        for number in range(len(chunk.records)):
            try:
                await self.archive.add_clean(partition, frame_of(chunk, number, TICKS_SCHEMA))
            except FrameError:
                continue                                                 # `aggregate` reads the same record and sets it aside


def _skip_repair(partition: int, offset: int, reason: str) -> None:
    skipped.skip(settings.topic("repairs"), partition, offset, Fault("no_bar", reason))


def _skip_message(topic: str, partition: int, offset: int, reason: str) -> None:
    skipped.skip(settings.topic(topic), partition, offset, Fault("no_message", reason))


def warn_of_others(archive: str) -> None:
    """Warns where another demo uses the archive folder: `bars_1m` would mix the rows of both logs."""
    if archive.startswith(S3_URL):
        return
    folder = Path(archive.removeprefix("file://")).absolute()
    holder = holder_of(folder)
    if holder is not None and holder.alive and holder.pid != os.getppid():
        logger.warning("archive: %s is also in use by %s, and bars_1m would mix the rows of both: set STOCKSTREAM_ARCHIVE to another folder", folder, holder)


stage = Archiving()


@app.agent(topics.ticks_raw)
async def archive_raw(stream: Any) -> None:
    """Archives raw records."""
    async for chunk in stream:
        await stage.raw(chunk)


@app.agent(topics.ticks_clean)
async def archive_clean(stream: Any) -> None:
    """Archives accepted rows."""
    async for chunk in stream:
        await app.chunk_consumer.pace.let_pass(SEND_ITERATIONS)          # other agents go first: their output is awaited, the archive's is not
        await stage.clean(chunk)


@app.task
async def archive_report() -> None:
    """Every REPORT_S, passes buffered records on and updates the metric of archived offsets."""
    while not app.should_stop:
        await asyncio.sleep(REPORT_S)
        await stage.hand_over()
        if stage.archive is not None:
            for of in stage.archive.progress():
                metrics.archive_offset(of["partition"], of["offset"])


async def _run(part: Callable[[], RepairedBars | ArchivedTopics | Compactor | None]) -> None:
    """Runs a part of the archive from the first assignment on, until it is closed."""
    while not app.should_stop:
        if (found := part()) is not None:
            await found.run()
            return
        await asyncio.sleep(REPORT_S)


@app.task
async def archive_repairs() -> None:
    """Archives the repaired bars of this worker's partitions."""
    await _run(lambda: stage.repaired)


@app.task
async def archive_topics() -> None:
    """Archives windows, alerts, predictions and outcomes of this worker's partitions."""
    await _run(lambda: stage.topics)


@app.task
async def archive_compaction() -> None:
    """Compacts the archive while this worker owns partition 0."""
    await _run(lambda: stage.compactor)

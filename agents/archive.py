"""Archives: `ticks.raw` and the verdicts in `ticks.clean` -> the store. Nothing waits for it, and nothing is committed: its chain says where it stands."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from faust.types import TP

from stockstream import topics
from stockstream.app import app
from stockstream.errors import FrameError
from stockstream.sinks.archiving import Archive, KafkaClean, KafkaRaw
from stockstream.sinks.stores import open_store
from stockstream.transforms.frames import decode
from stockstream.transport import Chunk
from stockstream.worker import metrics, status

REPORT_S = 1.0
settings = app.settings


class Archiving:
    """Takes part in assignments: the archive of a partition goes with `ticks.raw`."""

    def __init__(self) -> None:
        self.archive: Archive | None = None
        self.owned: set[int] = set()
        self.begun: set[int] = set()
        """Partitions of which a chunk has come since they were assigned: a hole that the transport found before the next one is none of ours to look for."""
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        if settings.archive == "none":
            return {}
        if self.archive is None:
            self.archive = Archive(settings, open_store(settings.archive), KafkaRaw(settings), KafkaClean(settings))
            status.archive_positions = self.archive.progress
        now = set(partitions.get(settings.topic("ticks.raw"), []))
        for partition in self.owned - now:
            self.archive.revoke(partition)
            metrics.forget_archive_offset(partition)
        for partition in now - self.owned:
            self.archive.assign(partition)
        self.owned, self.begun = now, set()
        return {}

    async def release(self, timeout_s: float) -> None:
        """At the end what is held is written; in a rebalance it stays, for most partitions do."""
        if app.should_stop and self.archive is not None:
            await self.archive.close()
            self.archive = None

    async def raw(self, chunk: Chunk) -> None:
        if self._takes(chunk) and self.archive is not None:
            # what a chunk of an assignment before vouched for, the seek may have left behind
            begin = chunk.begin if chunk.partition in self.begun and chunk.begin >= 0 else None
            self.begun.add(chunk.partition)
            await self.archive.add_raw(chunk.partition, chunk.records, begin)

    def _takes(self, chunk: Chunk) -> bool:
        return chunk.epoch == app.reader.epoch and chunk.partition in self.owned

    async def clean(self, chunk: Chunk) -> None:
        if self.archive is None or not self._takes(chunk):
            return
        partition = chunk.partition
        for record in chunk.records:
            try:
                frame = decode(record.value or b"")
            except FrameError:
                continue                                                 # told by `aggregate`, which reads it too
            await self.archive.add_clean(partition, frame)


stage = Archiving()


@app.agent(topics.ticks_raw)
async def archive_raw(stream: Any) -> None:
    """Raw records, as they come."""
    async for chunk in stream:
        await stage.raw(chunk)


@app.agent(topics.ticks_clean)
async def archive_clean(stream: Any) -> None:
    """Verdicts, as they come."""
    async for chunk in stream:
        await stage.clean(chunk)


@app.task
async def archive_report() -> None:
    """Keeps the metric of how far the archive is."""
    while not app.should_stop:
        await asyncio.sleep(REPORT_S)
        if stage.archive is not None:
            for of in stage.archive.progress():
                metrics.archive_offset(of["partition"], of["offset"])

"""Reads the sources that `watchlist` assigns: sources -> `ticks.raw`, `symbols`, `gaps`, `feeds`, `sources`. A symbol moves with its partition."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Awaitable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from faust.types import TP

from stockstream import topics
from stockstream.errors import FencedError
from stockstream.instance import app
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.request_log import KafkaRequestLog
from stockstream.kafka.topic_reader import TopicReader
from stockstream.records import Repair
from stockstream.skipped import Fault, SkippedRecords
from stockstream.sources.base import SystemClock
from stockstream.sources.health import LAST_RETRY_S, reason_of
from stockstream.sources.ingestion import Ingest
from stockstream.sources.opening import open_sources, open_yahoo, uses_yahoo
from stockstream.sources.publishing import Messages, Publisher
from stockstream.sources.sessions import Sessions
from stockstream.sources.takeover import Newest
from stockstream.sources.yahoo.repair import Repairer
from stockstream.state.newest_rows import read_newest_rows
from stockstream.status import metrics, status
from stockstream.transport.messages import Chunk, Message, Outgoing

logger = logging.getLogger(__name__)
skipped = SkippedRecords(metrics, app.settings.topic_prefix)


async def _send(topic: str, partition: int, messages: Messages) -> Sequence[Awaitable[Any]]:
    deleted = [key for key, value in messages if value is None and key is not None]
    if deleted:                                                          # only reports have them, in messages of their own
        return await app.sender.delete(topic, partition, deleted)
    return await app.sender.send(Outgoing(topic, partition, [Message(key, value) for key, value in messages if value is not None]))


def worker_name() -> str:
    """Host, web port and process id: unique in the group, and where the worker's views are. Without views the port is 0."""
    return f"{socket.gethostname()}:{int(app.conf.web_port) if app.conf.web_enabled else 0}:{os.getpid()}"


async def _read_newest(partitions: Collection[int]) -> Mapping[int, Mapping[str, Newest]]:
    return await read_newest_rows(app.settings, partitions)


async def _read_watchlist() -> Mapping[bytes, bytes]:
    return await read_compacted(app.settings, "watchlist")


async def _publish_repairs(repairs: Sequence[Repair]) -> None:
    await Publisher(app.settings, _send).by_symbol("repairs", [(repair.symbol, msgspec.json.encode(repair)) for repair in repairs])


def _skip_gap(partition: int, offset: int, reason: str) -> None:
    skipped.skip(app.settings.topic("gaps"), partition, offset, Fault("not_repaired", reason))


class Ingestion:
    """The agent's part in a rebalance: a worker that gets a partition reads its watchlist from the beginning."""

    def __init__(self) -> None:
        settings, clock, sessions = app.settings, SystemClock(), Sessions()
        requests = partial(KafkaRequestLog, settings)
        yahoo = self.yahoo = open_yahoo(settings, clock, request_log=requests, worker=worker_name) if uses_yahoo(settings) else None
        sources = open_sources(settings, clock, sessions=sessions, request_log=requests, worker=worker_name, yahoo=yahoo)
        self.ingest = Ingest(
            settings, _send, clock=clock, sources=sources, sessions=sessions, metrics=metrics, read_watchlist=_read_watchlist, read_newest=_read_newest,
            worker=worker_name,
        )  # fmt: skip
        self.gaps = TopicReader(settings, "gaps", f"{settings.group}-repair")
        self.repairer = Repairer(yahoo, self.gaps, _publish_repairs, _skip_gap, clock) if yahoo is not None else None
        self._topic = app.settings.topic("watchlist")
        status.sources = self.ingest.states
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        numbers = partitions.get(self._topic, [])
        self.ingest.assign(numbers)
        if self.repairer is not None:
            self.repairer.own(numbers)
        return {TP(self._topic, number): None for number in numbers}

    async def release(self, timeout_s: float) -> None:
        self.ingest.release()
        if app.should_stop:
            try:
                async with asyncio.timeout(timeout_s):
                    await self.ingest.end()
            except Exception as error:  # noqa: BLE001  readers ignore old reports, so the worker ends all the same
                logger.info("the reports of this worker's sources were not deleted: %s", reason_of(error))

    def take(self, chunk: Chunk) -> None:
        """Applies records of the watchlist. An invalid one is counted, logged and skipped."""
        for record in chunk.records:
            try:
                fault = self.ingest.watch(record.key, record.value)
            except Exception as error:  # noqa: BLE001  one record must not stop the others
                fault = Fault("unexpected", reason_of(error))
            if fault is not None:
                skipped.skip(chunk.topic, chunk.partition, record.offset, fault)


stage = Ingestion()


@app.agent(topics.watchlist)
async def ingest(stream: Any) -> None:
    """Follows the watchlist."""
    async for chunk in stream:
        stage.take(chunk)


@app.task
async def feed() -> None:
    """Runs the sources until the worker is fenced. `Ingest` retries after errors of sources and of the broker."""
    while True:
        try:
            await stage.ingest.run()
        except FencedError:
            raise
        except Exception:
            logger.exception("the sources stopped after an unexpected error: starting them again in %.0f s", LAST_RETRY_S)
            await asyncio.sleep(LAST_RETRY_S)


@app.task
async def repair() -> None:
    """Repairs the gaps of Yahoo's symbols."""
    if stage.repairer is None or stage.yahoo is None:
        return
    try:
        await stage.repairer.run()
    finally:
        await asyncio.gather(stage.gaps.stop(), stage.yahoo.stop())

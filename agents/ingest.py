"""Reads the sources that `watchlist` assigns: sources -> `ticks.raw`, `symbols`. A symbol moves between workers with its partition."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from faust.types import TP

from stockstream import topics
from stockstream.errors import FencedError
from stockstream.instance import app
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.skipped import Fault, SkippedRecords
from stockstream.sources.health import LAST_RETRY_S, reason_of
from stockstream.sources.ingestion import Ingest, Messages
from stockstream.status import metrics, status
from stockstream.transport.messages import Chunk, Message, Outgoing

logger = logging.getLogger(__name__)
skipped = SkippedRecords(metrics, app.settings.topic_prefix)


async def _send(topic: str, partition: int, messages: Messages) -> Sequence[Awaitable[Any]]:
    return await app.sender.send(Outgoing(topic, partition, [Message(key, value) for key, value in messages]))


async def _read_watchlist() -> Mapping[bytes, bytes]:
    return await read_compacted(app.settings, "watchlist")


class Ingestion:
    """The agent's part in a rebalance: a worker that gets a partition reads its watchlist from the beginning."""

    def __init__(self) -> None:
        self.ingest = Ingest(app.settings, _send, metrics=metrics, read_watchlist=_read_watchlist)
        self._topic = app.settings.topic("watchlist")
        status.sources = self.ingest.states
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        numbers = partitions.get(self._topic, [])
        self.ingest.assign(numbers)
        return {TP(self._topic, number): None for number in numbers}

    async def release(self, timeout_s: float) -> None:
        self.ingest.release()

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

"""Brings the market in: sources -> `ticks.raw`, `symbols`, as `watchlist` says. A symbol follows its partition from worker to worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from aiokafka.errors import KafkaError
from faust.types import TP

from stockstream import topics
from stockstream.app import app
from stockstream.errors import StockstreamError
from stockstream.sources.ingestion import Ingest, Messages
from stockstream.transport import Message, Outgoing

logger = logging.getLogger(__name__)


async def _send(topic: str, partition: int, messages: Messages) -> Sequence[Awaitable[Any]]:
    return await app.sender.send(Outgoing(topic, partition, [Message(key, value) for key, value in messages]))


class Ingestion:
    """Takes part in assignments: the watchlist is read from its beginning whenever a partition comes."""

    def __init__(self) -> None:
        self.ingest = Ingest(app.settings, _send)
        self._topic = app.settings.topic("watchlist")
        app.parts.append(self)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        numbers = partitions.get(self._topic, [])
        self.ingest.assign(numbers)
        return {TP(self._topic, number): None for number in numbers}

    async def release(self, timeout_s: float) -> None:
        self.ingest.assign(())


stage = Ingestion()


@app.agent(topics.watchlist)
async def ingest(stream: Any) -> None:
    """Follows the watchlist."""
    async for chunk in stream:
        for record in chunk.records:
            stage.ingest.watch(record.key, record.value)


@app.task
async def feed() -> None:
    """Runs the sources; what they cannot mend themselves ends the worker, and its supervisor starts it again."""
    try:
        await stage.ingest.announce()
        await stage.ingest.run()
    except asyncio.CancelledError:
        raise
    except (StockstreamError, KafkaError, OSError) as error:
        app.fence.leave(f"ingest: {error}")

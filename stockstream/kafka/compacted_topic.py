"""Reads compacted topics to their end, each as a table of the last value of each key."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError
from stockstream.kafka.client import client_options
from stockstream.settings import Settings

TIMEOUT_S = 20.0
POLL_MS = 300


async def read_compacted(settings: Settings, name: str) -> dict[bytes, bytes]:
    """The present values by key of the topic `name` (without prefix, with `settings.partitions` partitions). Deleted keys are left out.

    Raises `BrokerError` if the topic cannot be read within TIMEOUT_S.
    """
    return await read_table(settings, settings.topic(name), settings.partitions)


async def read_table(settings: Settings, topic: str, partitions: int, *, committed: bool = False, timeout_s: float = TIMEOUT_S) -> dict[bytes, bytes]:
    """As `read_compacted`, of a topic by its full name; with `committed` without the messages of open and aborted transactions.

    Raises `BrokerError` if the topic cannot be read within `timeout_s`.
    """
    try:
        async with asyncio.timeout(timeout_s), _consumer(settings, committed=committed) as consumer:
            return (await _read(consumer, [TopicPartition(topic, number) for number in range(partitions)]))[topic]
    except (TimeoutError, KafkaError, OSError) as error:
        raise BrokerError(f"topic {topic} cannot be read: {str(error) or 'timed out'}") from error


async def read_tables(settings: Settings, names: Sequence[str]) -> dict[str, dict[bytes, bytes]]:
    """The present values by key of topics (without prefix), whatever their partitions. A topic that does not exist is left out.

    Raises `BrokerError` if they cannot be read within TIMEOUT_S.
    """
    topics = {settings.topic(name): name for name in names}
    try:
        async with asyncio.timeout(TIMEOUT_S), _consumer(settings) as consumer:
            there = sorted(topics.keys() & await consumer.topics())
            consumer.assign([TopicPartition(topic, 0) for topic in there])           # makes the consumer request their metadata
            while not all(consumer.partitions_for_topic(topic) for topic in there):
                await asyncio.sleep(0.02)
            tables = await _read(consumer, [TopicPartition(topic, number) for topic in there for number in sorted(consumer.partitions_for_topic(topic))])
            return {topics[topic]: tables[topic] for topic in there}
    except (TimeoutError, KafkaError, OSError) as error:
        raise BrokerError(f"topics {', '.join(sorted(topics))} cannot be read: {str(error) or 'timed out'}") from error


@contextlib.asynccontextmanager
async def _consumer(settings: Settings, *, committed: bool = False) -> AsyncIterator[AIOKafkaConsumer]:
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest",
        isolation_level="read_committed" if committed else "read_uncommitted",
    )  # fmt: skip
    try:
        await consumer.start()
        yield consumer
    finally:
        await consumer.stop()


async def _read(consumer: AIOKafkaConsumer, places: list[TopicPartition]) -> dict[str, dict[bytes, bytes]]:
    """The tables of these partitions, by topic."""
    tables: dict[str, dict[bytes, bytes]] = {place.topic: {} for place in places}
    if not places:
        return tables
    consumer.assign(places)
    await consumer.seek_to_beginning(*places)
    ends = await consumer.end_offsets(places)
    left = {place for place in places if ends[place] > 0}
    while left:
        batches = await consumer.getmany(timeout_ms=POLL_MS)
        for place, records in batches.items():
            table = tables[place.topic]
            for record in records:
                if record.value is None:
                    table.pop(record.key, None)
                elif record.key is not None:
                    table[record.key] = record.value
        if not batches:                                          # the embedded broker's ends are too low, so a partition is read only once nothing more comes
            left = {place for place in left if await consumer.position(place) < ends[place]}
    return tables

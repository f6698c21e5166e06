"""Reads a compacted topic to its end, as a table of the last value of each key."""

from __future__ import annotations

import asyncio

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
    topic = settings.topic(name)
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
    table: dict[bytes, bytes] = {}
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await consumer.start()
            places = [TopicPartition(topic, number) for number in range(settings.partitions)]
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
            ends = await consumer.end_offsets(places)
            left = {place for place in places if ends[place] > 0}
            while left:
                batches = await consumer.getmany(timeout_ms=POLL_MS)
                for records in batches.values():
                    for record in records:
                        if record.value is None:
                            table.pop(record.key, None)
                        elif record.key is not None:
                            table[record.key] = record.value
                if not batches:                                  # the embedded broker's ends are too low, so a partition is read only once nothing more comes
                    left = {place for place in left if await consumer.position(place) < ends[place]}
    except (TimeoutError, KafkaError, OSError) as error:
        raise BrokerError(f"topic {topic} cannot be read: {str(error) or 'timed out'}") from error
    finally:
        await consumer.stop()
    return table

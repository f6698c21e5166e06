"""Kafka's time of raw records is the broker's: on new topics, and on those of an earlier release."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.client import client_options
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.settings import Settings
from tests.kafka import Cluster
from tests.patience import PATIENCE_S

AHEAD_MS = 365 * 86_400_000


def settings_of(broker: Cluster | EmbeddedBroker, prefix: str) -> Settings:
    return Settings(broker=broker.bootstrap, topic_prefix=prefix, partitions=1)


async def written(settings: Settings, stamps: list[int]) -> list[int]:
    """Kafka's times of all raw records, after one more with each of these times as its producer's."""
    topic = settings.topic("ticks.raw")
    producer = AIOKafkaProducer(**client_options(settings), linger_ms=0)
    await producer.start()
    try:
        for stamp in stamps:
            await producer.send_and_wait(topic, b"{}", partition=0, timestamp_ms=stamp)
    finally:
        await producer.stop()
    consumer = AIOKafkaConsumer(**client_options(settings), auto_offset_reset="earliest", group_id=None)
    await consumer.start()
    try:
        place = TopicPartition(topic, 0)
        consumer.assign([place])
        end = (await consumer.end_offsets([place]))[place]
        found: list[int] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < end:
                found += [record.timestamp for record in (await consumer.getmany(place, timeout_ms=500)).get(place, [])]
        return found
    finally:
        await consumer.stop()


async def stamped_by_the_broker(settings: Settings, old: int) -> list[int]:
    """Kafka's times of all raw records, once one with an old time of its producer's has got the broker's: a change takes effect after a moment."""
    async with asyncio.timeout(PATIENCE_S):
        while (found := await written(settings, [old]))[-1] == old:
            pass
    assert found[-1] > old
    return found


async def overrides(settings: Settings, name: str) -> dict[str, str]:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic(name))])
        return {entry[0]: entry[1] for entry in answer.resources[0][4] if entry[3] == 1}
    finally:
        await admin.close()


@pytest.mark.kafka
async def test_the_broker_stamps_what_producers_send(kafka: Cluster, prefix: str) -> None:
    settings = settings_of(kafka, prefix)
    await ensure_topics(settings)
    now = int(time.time() * 1000)
    found = await written(settings, [now + AHEAD_MS, 1_000])
    assert all(abs(stamp - now) < PATIENCE_S * 1000 for stamp in found), found


@pytest.mark.kafka
async def test_topics_of_an_earlier_release_are_changed_with_a_word_and_nothing_else_is_reset(
    kafka: Cluster, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(kafka, prefix)
    own = {"retention.ms": "123456789", "segment.bytes": "20000000", "max.message.bytes": "70000"}
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(settings.topic("ticks.raw"), 1, 1, topic_configs=own)])
    finally:
        await admin.close()
    old = int(time.time() * 1000) - AHEAD_MS
    with caplog.at_level(logging.INFO, "stockstream.kafka.topic_configs"):
        await ensure_topics(settings)
        raw = settings.topic("ticks.raw")
        assert caplog.messages == [
            f"topic {raw} had max.message.bytes=70000: changed to 1048588", f"topic {raw} had message.timestamp.type=CreateTime: changed to LogAppendTime",
        ]  # fmt: skip
        wanted = own | {"max.message.bytes": "1048588", "message.timestamp.type": "LogAppendTime"}
        async with asyncio.timeout(PATIENCE_S):
            while (found := await overrides(settings, "ticks.raw")) != wanted and found == own:
                pass                                                     # the broker tells of a change after a moment
        assert found == wanted
        caplog.clear()
        await ensure_topics(settings)
    assert caplog.messages == [], "said once"
    await stamped_by_the_broker(settings, old)


@pytest.mark.kafka
async def test_records_that_are_in_the_log_keep_their_times(kafka: Cluster, prefix: str) -> None:
    settings = settings_of(kafka, prefix)
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(settings.topic("ticks.raw"), 1, 1)])
    finally:
        await admin.close()
    old = int(time.time() * 1000) - 3_600_000
    assert await written(settings, [old]) == [old]
    await ensure_topics(settings)
    assert (await stamped_by_the_broker(settings, old))[0] == old


async def test_the_embedded_broker_keeps_what_producers_set_without_a_word(embedded: EmbeddedBroker, prefix: str, caplog: pytest.LogCaptureFixture) -> None:
    """docs/topics.md says so; when this fails, it stamps records itself now, and the page is to be changed."""
    settings = settings_of(embedded, prefix)
    with caplog.at_level(logging.INFO, "stockstream.kafka.topic_configs"):
        assert await ensure_topics(settings) and await ensure_topics(settings)
    assert caplog.messages == []
    old = int(time.time() * 1000) - 3_600_000
    assert await written(settings, [old]) == [old]

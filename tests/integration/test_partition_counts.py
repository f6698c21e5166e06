"""Partitions of a running pipeline's topics are raised, on real Kafka: each line's remedy ends in a start that succeeds."""

from __future__ import annotations

import asyncio
import os
import re
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic

from stockstream.errors import TopicError
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.client import client_options
from stockstream.settings import Settings
from tests.patience import PATIENCE_S

HERE = os.getpid()


async def change(settings: Settings, *, raise_to: dict[str, int] | None = None, create: dict[str, int] | None = None, delete: str = "") -> None:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        if raise_to:
            answer = await admin.create_partitions({settings.topic(name): NewPartitions(total_count=count) for name, count in raise_to.items()})
            assert [error[1] for error in answer.topic_errors] == [0] * len(raise_to)
            async with asyncio.timeout(PATIENCE_S):
                for name, count in raise_to.items():
                    while len((await admin.describe_topics([settings.topic(name)]))[0]["partitions"]) != count:
                        await asyncio.sleep(0.05)
        if create:
            await admin.create_topics([NewTopic(settings.topic(name), count, 1) for name, count in create.items()])
        if delete:
            await admin.delete_topics([delete])
    finally:
        await admin.close()


async def refused(settings: Settings) -> str:
    with pytest.raises(TopicError) as error:
        await ensure_topics(settings)
    return str(error.value)


async def test_partitions_of_ticks_raw_were_raised(kafka: Any) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=f"raised{HERE}.", partitions=2)
    await ensure_topics(settings)
    await change(settings, raise_to={"ticks.raw": 3})
    for asked in (2, 3):
        line = await refused(settings.model_copy(update={"partitions": asked}))
        assert "use another STOCKSTREAM_TOPIC_PREFIX, with STOCKSTREAM_PARTITIONS=3," in line
    await ensure_topics(Settings(broker=kafka.bootstrap, topic_prefix=f"raised{HERE}again.", partitions=3))


async def test_a_topic_that_its_producer_made_first(kafka: Any) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=f"first{HERE}.", partitions=2)
    await change(settings, create={"ticks.raw": 1})
    found = re.search(r"STOCKSTREAM_PARTITIONS is 2: set it to (\d+)", await refused(settings))
    assert found is not None
    await ensure_topics(settings.model_copy(update={"partitions": int(found[1])}))


async def test_a_topic_that_its_reader_made_first(kafka: Any) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=f"reader{HERE}.", partitions=2)
    await change(settings, create={"predictions": 1})
    found = re.search(r"delete (\S+), which the worker then creates again", await refused(settings))
    assert found is not None
    await change(settings, delete=found[1])
    await ensure_topics(settings)

"""What a producer sets as its records' times is no reason to lose a tick, nor a way to get one from the future accepted: a worker on real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stockstream.kafka.client import client_options
from stockstream.settings import Settings
from tests.faults.workers import wait_until
from tests.integration.test_line import LONGEST_S, Line, archived, running, wait_for
from tests.kafka import Cluster

CASES = Path(__file__).parents[1] / "fixtures" / "cases"
Record = dict[str, Any]
"""A line of a case: Kafka's time as its producer sets it, and the message."""


def case(name: str) -> list[Record]:
    return [json.loads(line) for line in (CASES / f"{name}.jsonl").read_text().splitlines()]


def moved(records: Sequence[Record], by_ms: int) -> list[Record]:
    """The ticks at other times: their event times, and the records' own."""
    return [
        {"timestamp": record["timestamp"] + by_ms, "value": record["value"] | {"event_time": record["value"]["event_time"] + by_ms}}
        for record in records if "event_time" in record["value"]
    ]  # fmt: skip


async def create(settings: Settings) -> None:
    """The topic of raw ticks as an operator may create it: its records keep the times that producers set."""
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(settings.topic("ticks.raw"), 1, 1, topic_configs={"message.timestamp.type": "CreateTime"})])
    finally:
        await admin.close()


async def publish(settings: Settings, records: Sequence[Record]) -> None:
    """Sends the records with their times, one after the other."""
    producer = AIOKafkaProducer(**client_options(settings))
    await producer.start()
    try:
        for record in records:
            value = json.dumps(record["value"]).encode()
            await producer.send_and_wait(settings.topic("ticks.raw"), value, partition=0, timestamp_ms=record["timestamp"])
    finally:
        await producer.stop()


def volume(line: Line, source: str) -> float:
    return float(line.rows(source).volume.sum())


def rejected(line: Line) -> list[str]:
    return [json.loads(record.value)["reason"] for record in line.read("ticks.rejected")]


def test_the_times_that_producers_set(kafka: Cluster, tmp_path: Path) -> None:
    """Of `record_time_minus_1` the tick counts. Of `future_with_its_own_record_time` nine count once the broker stamps, and the tenth is `future`."""
    own = {"STOCKSTREAM_TOPIC_PREFIX": f"times{os.getpid()}.", "STOCKSTREAM_PARTITIONS": "1"}
    settings = Settings(broker=kafka.bootstrap, topic_prefix=own["STOCKSTREAM_TOPIC_PREFIX"], partitions=1)
    asyncio.run(create(settings))
    asyncio.run(publish(settings, case("record_time_minus_1")))
    with running(kafka.bootstrap, tmp_path, **own) as line:
        assert [record.timestamp for record in line.read("ticks.raw")][:1] == [-1], "the broker has kept the time"
        wait_for(line, 1)
        wait_until(lambda: volume(line, "s") == 100, LONGEST_S, "the tick without a time counts", 1.0)
        assert rejected(line) == []
        probe = {"timestamp": 1_000, "value": {"punctuate": 1, "source": "probe"}}

        def stamped() -> bool:
            asyncio.run(publish(settings, [probe]))
            return bool(line.read("ticks.raw")[-1].timestamp > probe["timestamp"])

        wait_until(stamped, LONGEST_S, "the worker has set the broker's time on the topic", 0.5)
        ticks = case("future_with_its_own_record_time")
        first = ticks[0]["value"]["event_time"]
        asyncio.run(publish(settings, moved(ticks, time.time_ns() // 1_000_000 - 20_000 - first)))
        wait_for(line, 11)
        wait_until(lambda: volume(line, "s") == 1_000, LONGEST_S, "nine ticks more count", 1.0)
        assert rejected(line) == ["future"]
        archived(line, line.read("ticks.raw"))

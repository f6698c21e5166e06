"""Where a bridge resumes: for each partition of its foreign topic the next offset, in a compacted topic beside `ticks.raw`, so that both are written in one
transaction even if the foreign topic is on another cluster."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition

from stockstream.kafka.admin import TopicSpec, changelog, compacted_config, create_topic
from stockstream.kafka.client import client_options
from stockstream.settings import Settings

TABLE = "bridge"
READ_S = 30.0
QUIET_POLLS = 2
"""Polls without a record after which the embedded broker's topic is read to its end: the end that it reports is too low."""


class Position(msgspec.Struct, frozen=True):
    """A value of the topic: `next` is the first offset that was not brought yet."""

    next: int


@dataclass(frozen=True, slots=True)
class Place:
    """What is brought by whom: the bridge's group, the foreign cluster's id and the topic."""

    group: str
    cluster: str
    topic: str

    def key(self, partition: int) -> bytes:
        return f"{self.group}/{self.cluster}/{self.topic}/{partition}".encode()

    @property
    def transactional_id(self) -> str:
        return f"{self.group}/{self.cluster}/{self.topic}"


def offsets_topic(settings: Settings) -> str:
    return changelog(settings, TABLE)


async def create_offsets_topic(settings: Settings, *, timeout_s: float) -> None:
    """Creates the topic if it is missing. Raises `BrokerError`."""
    spec = TopicSpec(offsets_topic(settings), 1, settings.replication, compacted_config(settings))
    await create_topic(settings, spec, timeout_s=timeout_s)


async def read_offsets(settings: Settings, place: Place, *, embedded: bool) -> dict[int, int]:
    """By partition of the foreign topic, the next offset; partitions of which nothing was brought are missing. Raises `KafkaError`, `TimeoutError`."""
    topic = TopicPartition(offsets_topic(settings), 0)
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
        fetch_max_wait_ms=200,
    )  # fmt: skip
    found: dict[bytes, bytes] = {}
    await consumer.start()
    try:
        async with asyncio.timeout(READ_S):
            consumer.assign([topic])
            await consumer.seek_to_beginning(topic)
            end, quiet = (await consumer.end_offsets([topic]))[topic], 0
            while end and (await consumer.position(topic) < end or embedded) and quiet < QUIET_POLLS:
                records = (await consumer.getmany(topic, timeout_ms=300)).get(topic, [])
                quiet = 0 if records or not embedded else quiet + 1
                for record in records:
                    found[record.key] = record.value
    finally:
        await consumer.stop()
    prefix = place.key(0)[:-1]
    return {
        int(key[len(prefix) :]): msgspec.json.decode(value, type=Position).next
        for key, value in found.items()
        if key.startswith(prefix) and key[len(prefix) :].isdigit() and value
    }

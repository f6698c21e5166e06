"""Where a bridge resumes: for each partition of its foreign topic the next offset, in a compacted topic beside `ticks.raw`, so that both are written in one
transaction even if the foreign topic is on another cluster."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from stockstream.kafka.admin import TopicSpec, changelog, compacted_config, create_topic
from stockstream.kafka.compacted_topic import read_table
from stockstream.settings import Settings

TABLE = "bridge"
READ_S = 30.0


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


async def read_offsets(settings: Settings, place: Place) -> dict[int, int]:
    """By partition of the foreign topic, the next offset; partitions of which nothing was brought are missing. Raises `BrokerError`."""
    found = await read_table(settings, offsets_topic(settings), 1, committed=True, timeout_s=READ_S)
    prefix = place.key(0)[:-1]
    return {
        int(key[len(prefix) :]): msgspec.json.decode(value, type=Position).next
        for key, value in found.items()
        if key.startswith(prefix) and key[len(prefix) :].isdigit() and value
    }

"""The data that agents receive and send: chunks of records, and messages for one partition."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import faust

from stockstream import versions

CHUNK_RECORDS = 8_000
"""The target size of a chunk in a backlog: about what one fetch returns for one partition if records are small. A chunk costs some 2 ms whatever its size."""
VERSION_HEADER = (versions.NAME, versions.VALUE)
Headers = list[tuple[str, bytes]]


class Message(NamedTuple):
    """One message to send; the schema version is added to its headers."""

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Outgoing(NamedTuple):
    """Messages for one partition of one topic, in order."""

    topic: str
    partition: int
    messages: Sequence[Message]


Deliveries = list[tuple[asyncio.Future[Any], Sequence[Message]]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one partition, in offset order, as one fetch returned them. An agent receives one chunk per event."""

    topic: str
    partition: int
    records: Sequence[Any]
    assignment_number: int = 0
    """`Consumer.assignment_number` when it was read. A chunk of an earlier assignment does not fit the rebuilt state and is dropped."""
    begin: int = -1
    """The offset after the previous chunk, or where reading began. From there through the last record the broker holds only these records. -1: unknown."""
    read: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)
    """Decoded records by their index in `records`, shared by the agents that receive the same chunk."""

    @property
    def first(self) -> int:
        return int(self.records[0].offset)

    @property
    def last(self) -> int:
        return int(self.records[-1].offset)


class ChunkSchema(faust.Schema[Any, Any]):
    """Passes a chunk on without decoding."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return None

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value


def joined(parts: Iterable[Sequence[Any]]) -> Sequence[Any]:
    """The records of all parts, one after the other."""
    some = [part for part in parts if part]
    if len(some) == 1:
        return some[0]
    return [record for part in some for record in part]


def cut(records: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Splits records into equal parts of about CHUNK_RECORDS. A small remainder would cost as much as a large part."""
    size = -(-len(records) // (round(len(records) / CHUNK_RECORDS) or 1)) or 1
    for at in range(0, len(records), size):
        yield records[at : at + size]

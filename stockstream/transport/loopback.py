"""Frames that this worker wrote itself: delivered once the broker has confirmed them, without a fetch."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from faust.types import TP

from stockstream.transport.messages import VERSION_HEADER, Message

OWN_BYTES = 8_000_000
"""Of frames that this worker has written and not read yet; what is more is fetched, once there is time for it."""


class OwnRecord(NamedTuple):
    """A record that this worker has written, as it lies in the log."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class Own:
    """What this worker has written to partitions that it reads, once the broker has confirmed it, where it follows upon what has been read.

    All replicas in sync have it at the offset that the broker told: a fetch would bring the same, later. Copies that one under way brings are dropped. What
    does not follow at once, or is more than `OWN_BYTES`, is left to the fetch.
    """

    def __init__(self) -> None:
        self.records: dict[TP, list[OwnRecord]] = {}
        self.passed: dict[TP, tuple[int, int]] = {}
        """What was delivered and needs no fetch, by partition: the first offset and the one that follows the last. The thread that fetches takes it."""
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None

    def add(self, tp: TP, expected: int | None, first: int, timestamp: int, timestamp_type: int, messages: Sequence[Message]) -> bool:
        """Takes the messages, which lie in the log from offset `first` on, where `expected` is the next that will be read; whether it did."""
        waiting = self.records.get(tp)
        if first != (waiting[-1].offset + 1 if waiting else expected):
            return False
        size = sum(len(message.value) for message in messages)
        if self._size + size > OWN_BYTES:
            return False
        self._size += size
        self.records.setdefault(tp, []).extend(
            OwnRecord(first + number, timestamp, timestamp_type, message.key, message.value, (VERSION_HEADER, *message.headers))
            for number, message in enumerate(messages)
        )
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return True

    def arrival(self) -> asyncio.Future[None]:
        """Is done when there is some."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self.records:
            self._waiter.set_result(None)
        return self._waiter

    def take(self) -> dict[TP, list[OwnRecord]]:
        """All there is; none is left."""
        taken, self.records, self._size = self.records, {}, 0
        return taken

    def forget(self) -> None:
        self.take()
        self.passed.clear()

    def delivered(self, tp: TP, records: Sequence[OwnRecord]) -> None:
        """Told of what has been read of it."""
        first, _ = self.passed.get(tp, (records[0].offset, 0))
        self.passed[tp] = first, records[-1].offset + 1

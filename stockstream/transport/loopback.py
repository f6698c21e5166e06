"""Loopback: delivers frames that this worker wrote, without a fetch, once the broker has confirmed them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple

from faust.types import TP

from stockstream.transport.messages import VERSION_HEADER, Message

LOOPBACK_BYTES = 8_000_000
"""The limit of bytes of written frames that wait for delivery. Frames beyond it are fetched."""


class LoopbackRecord(NamedTuple):
    """A record that this worker wrote, with its position and timestamp in the log."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class Loopback:
    """The confirmed frames that this worker wrote to partitions that it reads, if they follow directly on what was read.

    All in-sync replicas hold such a frame at the confirmed offset, so a fetch would return the same frame, later. The consumer drops copies that a fetch
    returns. A frame that does not continue what was read, or exceeds `LOOPBACK_BYTES`, is left to the fetch.
    """

    def __init__(self) -> None:
        self.records: dict[TP, list[LoopbackRecord]] = {}
        self.delivered_ranges: dict[TP, tuple[int, int]] = {}
        """By partition: the first delivered offset and the offset after the last. The fetching thread skips this range."""
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None

    def add(self, tp: TP, expected: int | None, first: int, timestamp: int, timestamp_type: int, messages: Sequence[Message]) -> bool:
        """Takes messages that the log has from offset `first` on. Returns False if they do not continue what was read, or there is no room.

        Args:
            tp: their partition.
            expected: the next offset to be read.
            first: offset of the first message.
            timestamp: Kafka time of the messages (epoch ms).
            timestamp_type: Kafka's type of that time.
            messages: in offset order, without a gap.
        """
        waiting = self.records.get(tp)
        if first != (waiting[-1].offset + 1 if waiting else expected):
            return False
        size = sum(len(message.value) for message in messages)
        if self._size + size > LOOPBACK_BYTES:
            return False
        self._size += size
        self.records.setdefault(tp, []).extend(
            LoopbackRecord(first + number, timestamp, timestamp_type, message.key, message.value, (VERSION_HEADER, *message.headers))
            for number, message in enumerate(messages)
        )
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return True

    def arrival(self) -> asyncio.Future[None]:
        """A future that is done once there are frames to take."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self.records:
            self._waiter.set_result(None)
        return self._waiter

    def take(self) -> dict[TP, list[LoopbackRecord]]:
        """Returns all frames, and keeps none."""
        taken, self.records, self._size = self.records, {}, 0
        return taken

    def forget(self) -> None:
        self.take()
        self.delivered_ranges.clear()

    def delivered(self, tp: TP, records: Sequence[LoopbackRecord]) -> None:
        """Records that these frames were delivered, so that they need not be fetched."""
        first, _ = self.delivered_ranges.get(tp, (records[0].offset, 0))
        self.delivered_ranges[tp] = first, records[-1].offset + 1

"""Publishes ticks to `ticks.raw`, in whole batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Mapping
from typing import Any, Protocol

import msgspec
from aiokafka.errors import KafkaError

from stockstream.errors import DeliveryError
from stockstream.records import Punctuation
from stockstream.sources.base import Batch
from stockstream.transforms.partitioning import home_partition
from stockstream.versions import HEADERS

OUTSTANDING_BATCHES = 64

encode = msgspec.json.Encoder().encode


class BatchBuilder(Protocol):
    """The used part of aiokafka's `BatchBuilder`. `append` returns None if the batch is full."""

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes, headers: Any) -> Any: ...
    def close(self) -> None: ...
    def record_count(self) -> int: ...


class Producer(Protocol):
    """The used part of aiokafka's producer."""

    def create_batch(self) -> BatchBuilder: ...
    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> Awaitable[Any]: ...


class Publisher:
    """Sends ticks to their home partitions, in order, as messages of one tick keyed by symbol or, with `frame` above 0, as arrays of so many ticks.

    Messages are gathered into whole batches; `flush` sends what is gathered. Raises `DeliveryError` if the broker does not confirm.
    """

    def __init__(self, producer: Producer, topic: str, partitions: int, frame: int = 0) -> None:
        self._producer, self._topic, self._partitions, self._frame = producer, topic, partitions, frame
        self._batches: dict[int, BatchBuilder] = {}
        self._frames: dict[int, list[bytes]] = {}
        self._homes: dict[str, tuple[int, bytes]] = {}
        self._outstanding: deque[Awaitable[Any]] = deque()
        self.newest: dict[int, int] = {}
        """By partition that got ticks: their newest event time, epoch ms."""

    async def publish(self, batch: Batch) -> None:
        """Publishes the ticks; waits if the broker is behind."""
        for symbol, event_time, value in batch:
            home = self._homes.get(symbol)
            if home is None:
                home = self._homes[symbol] = (home_partition(symbol, self._partitions), symbol.encode())
            partition, key = home
            if event_time > self.newest.get(partition, -1):
                self.newest[partition] = event_time
            if not self._frame:
                builder = self._batches.get(partition)
                if builder is None or builder.append(timestamp=None, key=key, value=value, headers=HEADERS) is None:
                    await self._append(partition, key, value)
                continue
            frame = self._frames.setdefault(partition, [])
            frame.append(value)
            if len(frame) == self._frame:
                await self._append(partition, None, _array(self._frames.pop(partition)))

    async def flush(self) -> None:
        """Sends all buffered ticks to the broker."""
        for partition, frame in list(self._frames.items()):
            del self._frames[partition]
            await self._append(partition, None, _array(frame))
        for partition in list(self._batches):
            await self._send(partition)

    async def finish(self, closings: Mapping[tuple[int, str], int]) -> None:
        """Sends a punctuation for the newest second (given: event times by partition and source), and waits until everything is confirmed."""
        await self.flush()
        for (partition, source), newest in sorted(closings.items()):
            await self._append(partition, None, encode(Punctuation(punctuate=newest // 1000, source=source)))
        await self.flush()
        while self._outstanding:
            await self._confirm()

    async def _append(self, partition: int, key: bytes | None, value: bytes) -> None:
        builder = self._batches.get(partition)
        if builder is not None:
            if builder.append(timestamp=None, key=key, value=value, headers=HEADERS) is not None:
                return
            await self._send(partition)
        builder = self._batches[partition] = self._producer.create_batch()
        if builder.append(timestamp=None, key=key, value=value, headers=HEADERS) is None:
            raise DeliveryError(f"a message of {len(value):,} bytes does not fit into a batch; use a smaller --frames")

    async def _send(self, partition: int) -> None:
        builder = self._batches.pop(partition)
        if not builder.record_count():
            return
        builder.close()
        try:
            self._outstanding.append(await self._producer.send_batch(builder, self._topic, partition=partition))
        except KafkaError as error:
            raise DeliveryError(f"the broker accepts no more ticks: {error}") from error
        while len(self._outstanding) > OUTSTANDING_BATCHES:
            await self._confirm()

    async def _confirm(self) -> None:
        try:
            await self._outstanding.popleft()
        except KafkaError as error:
            raise DeliveryError(f"the broker did not confirm ticks: {error}") from error


def _array(values: list[bytes]) -> bytes:
    return b"[" + b",".join(values) + b"]"

"""Reads some partitions of a topic from positions that the caller keeps, without taking part in a group's rebalances."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError
from stockstream.kafka.client import client_options
from stockstream.settings import Settings

TIMEOUT_S = 15.0
WAIT_MS = 1_000
MAX_RECORDS = 5_000
LOOK_S = 1.5
"""How long `look` waits for a record. The embedded broker does not answer that an offset is beyond the end."""


class Looked(NamedTuple):
    """What a partition has: its first offset, and the record that was asked for, which is None if it is not there."""

    begin: int
    record: Any | None


class TopicReader:
    """One topic. It keeps a consumer between calls, and opens it again after an error.

    Args:
        settings: of the worker.
        name: of the topic, without prefix.
        group: under which positions are committed; none are without it.
        at_once: how many records one reading returns at most.
    """

    def __init__(self, settings: Settings, name: str, group: str | None = None, at_once: int = MAX_RECORDS) -> None:
        self._settings, self._name, self._group, self._at_once = settings, settings.topic(name), group, at_once
        self._consumer: AIOKafkaConsumer | None = None
        self._starts: dict[TopicPartition, int] = {}
        self._next: dict[TopicPartition, int] = {}
        """By assigned partition: the offset after the last record that was returned."""

    async def poll(self, cursors: Mapping[int, int | None], wait_ms: int = WAIT_MS) -> dict[int, Sequence[Any]]:
        """At most `at_once` records of these partitions from the given offsets on, ascending. Waits up to `wait_ms` for the first.

        None: from the committed offset on, else from the beginning. Raises `BrokerError`.
        """
        wanted = {TopicPartition(self._name, number): cursor for number, cursor in cursors.items()}
        async with self._in_use() as consumer:
            await self._place(consumer, wanted)
            found = await consumer.getmany(timeout_ms=wait_ms, max_records=self._at_once)
        for at, records in found.items():
            self._next[at] = records[-1].offset + 1
        return {at.partition: records for at, records in found.items() if records}

    async def look(self, offsets: Mapping[int, int]) -> dict[int, Looked]:
        """Where each of these partitions begins, and its record at the given offset. Raises `BrokerError`."""
        wanted = {TopicPartition(self._name, number): offset for number, offset in offsets.items()}
        async with self._in_use() as consumer:
            return await self._looked(consumer, wanted)

    @asynccontextmanager
    async def _in_use(self) -> AsyncIterator[AIOKafkaConsumer]:
        """The open consumer, for at most TIMEOUT_S. After an error it is closed, so what it has fetched is read again. Raises `BrokerError`."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield await self._opened()
        except (KafkaError, OSError, TimeoutError) as error:
            await self.stop()
            raise BrokerError(f"{self._name} cannot be read: {type(error).__name__}: {error}") from error
        except BaseException:
            await self.stop()
            raise

    async def _looked(self, consumer: AIOKafkaConsumer, wanted: Mapping[TopicPartition, int]) -> dict[int, Looked]:
        begins = await consumer.beginning_offsets(list(wanted))
        ends = await consumer.end_offsets(list(wanted))
        found: dict[int, Looked] = {at.partition: Looked(begins[at], None) for at in wanted}
        left = {at for at, offset in wanted.items() if begins[at] <= offset and ends[at] > 0}
        if left:
            self._next, self._starts = {}, {}                            # the next call of `poll` assigns its partitions again
            consumer.assign(list(left))
            for at in left:
                consumer.seek(at, wanted[at])
        until = time.monotonic() + LOOK_S
        while left and (rest := until - time.monotonic()) > 0:
            for at, records in (await consumer.getmany(*left, timeout_ms=int(1_000 * rest), max_records=len(left))).items():
                if records and records[0].offset == wanted[at]:
                    found[at.partition] = Looked(begins[at], records[0])
                left.discard(at)
        return found

    async def ends(self, partitions: Collection[int]) -> dict[int, int]:
        """The offset after the last record of each partition. Raises `BrokerError`."""
        async with self._in_use() as consumer:
            found = await consumer.end_offsets([TopicPartition(self._name, number) for number in partitions])
        return {at.partition: end for at, end in found.items()}

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Commits the next offset to read of these partitions. Raises `BrokerError`."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await (await self._opened()).commit({TopicPartition(self._name, number): offset for number, offset in offsets.items()})
        except (KafkaError, OSError, TimeoutError) as error:
            await self.stop()
            raise BrokerError(f"offsets of {self._name} cannot be committed: {type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        """Closes the consumer. The next call opens another."""
        consumer, self._consumer, self._next, self._starts = self._consumer, None, {}, {}
        if consumer is not None:
            with suppress(KafkaError, OSError):
                await consumer.stop()

    async def _opened(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            self._consumer = AIOKafkaConsumer(
                **client_options(self._settings), group_id=self._group, enable_auto_commit=False, auto_offset_reset="earliest",
                isolation_level="read_committed", request_timeout_ms=10_000, fetch_max_wait_ms=WAIT_MS,
            )  # fmt: skip
            await self._consumer.start()
        return self._consumer

    async def _place(self, consumer: AIOKafkaConsumer, wanted: Mapping[TopicPartition, int | None]) -> None:
        if self._next.keys() != wanted.keys():
            consumer.assign(list(wanted))
            self._next, self._starts = {}, {}
        anew = [at for at, cursor in wanted.items() if cursor is None and (at not in self._next or self._next[at] != self._starts.get(at))]
        self._starts |= await self._first_offsets(consumer, anew)
        for at, cursor in wanted.items():
            position = self._starts[at] if cursor is None else cursor
            if self._next.get(at) != position:
                consumer.seek(at, position)
                self._next[at] = position

    async def _first_offsets(self, consumer: AIOKafkaConsumer, places: Collection[TopicPartition]) -> dict[TopicPartition, int]:
        if not places:
            return {}
        begins: dict[TopicPartition, int] = await consumer.beginning_offsets(list(places))
        if self._group is not None:
            for at in places:
                begins[at] = max(begins[at], await consumer.committed(at) or 0)
        return begins

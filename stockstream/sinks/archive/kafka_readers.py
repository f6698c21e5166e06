"""Reads records and frames back from Kafka that the archive needs and no longer buffers."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError, FrameError
from stockstream.kafka.client import client_options
from stockstream.records import TICKS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.transforms.frames import Assembler, Frame, received

logger = logging.getLogger(__name__)


READ_STALL_S = 15.0
NEWEST_FRAMES = 50
"""`newest` looks at this many of the last frames, because a resumed worker that had lost its partitions may have written the very last."""


class _Topic:
    """Reads one topic without a consumer group. Each call uses a consumer of its own."""

    def __init__(self, settings: Settings, name: str) -> None:
        self._settings, self._name = settings, settings.topic(name)

    @asynccontextmanager
    async def _open(self, partition: int) -> AsyncIterator[tuple[AIOKafkaConsumer, TopicPartition]]:
        """Opens a consumer for the partition. Errors of Kafka inside the block become `BrokerError`."""
        at = TopicPartition(self._name, partition)
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
            fetch_max_wait_ms=100, request_timeout_ms=10_000,
        )  # fmt: skip
        try:
            await consumer.start()
            yield consumer, at
        except (KafkaError, OSError) as error:
            raise BrokerError(f"{self._name}, partition {partition} cannot be read back: {type(error).__name__}: {error}") from error
        finally:
            await consumer.stop()

    async def _records(self, consumer: AIOKafkaConsumer, at: TopicPartition, first: int) -> AsyncGenerator[list[Any], None]:
        """Yields the records of each fetch, from `first` on; an empty list if the position moved without records or nothing has arrived."""
        consumer.assign([at])                                            # not earlier: an assigned consumer fetches at once, from the beginning
        consumer.seek(at, first)
        while True:
            records = (await consumer.getmany(at, timeout_ms=200, max_records=5_000)).get(at, [])
            if records and records[0].offset < first:
                raise BrokerError(f"{self._name}, partition {at.partition}: offset {first} no longer exists: the topic was deleted and created again")
            yield records


class KafkaRaw(_Topic):
    """`RawReader` on `ticks.raw`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "ticks.raw")

    async def begin(self, partition: int) -> int:
        async with self._open(partition) as (consumer, at):
            return int((await consumer.beginning_offsets([at]))[at])

    async def read(self, partition: int, first: int, last: int) -> AsyncGenerator[Sequence[RawRecord], None]:
        async with self._open(partition) as (consumer, at):
            first = max(first, (await consumer.beginning_offsets([at]))[at])
            if first > last:
                return
            stall = _Stall(self._name, partition)
            async with aclosing(self._records(consumer, at, first)) as chunks:
                async for records in chunks:
                    wanted = [record for record in records if record.offset <= last]
                    if wanted:
                        yield wanted
                    position = await consumer.position(at)
                    if position > last:
                        return
                    stall.at(position)


class KafkaClean(_Topic):
    """`CleanReader` on `ticks.clean`."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "ticks.clean")

    async def newest(self, partition: int) -> tuple[str, int] | None:
        best: tuple[str, int] | None = None
        async with self._open(partition) as (consumer, at):
            begin, end = await _bounds(consumer, at)
            if begin < end:
                async with aclosing(self._frames(consumer, at, max(begin, end - NEWEST_FRAMES), end)) as frames:
                    async for frame in frames:
                        through = frame.through if frame.part == frame.parts - 1 else frame.start - 1
                        best = max(best or (frame.log, through), (frame.log, through))
        return best

    async def read(self, partition: int, log: str, first: int, last: int) -> AsyncGenerator[Frame, None]:
        async with self._open(partition) as (consumer, at):
            begin, end = await _bounds(consumer, at)
            expect, back = first, NEWEST_FRAMES
            while expect <= last:
                start = max(begin, end - back)
                beyond = None
                assembler = Assembler()
                async with aclosing(self._frames(consumer, at, start, end)) as frames:
                    async for part in frames:
                        try:
                            frame = assembler.feed(part) if part.log == log else None
                        except FrameError as error:
                            logger.warning("archive: %s, partition %d: a frame from raw offset %d is skipped: %s", self._name, partition, part.start, error)
                            continue
                        if frame is None:
                            continue
                        if frame.start <= expect <= frame.through:
                            yield frame
                            expect = frame.through + 1
                            if expect > last:
                                return
                        elif frame.start > expect:
                            if start > begin and beyond is None:
                                break                       # the wanted frame is further back
                            beyond = min(beyond or frame.start, frame.start)
                if start == begin:
                    if beyond is None or beyond <= expect or beyond > last:
                        return
                    expect = beyond
                back *= 8

    async def _frames(self, consumer: AIOKafkaConsumer, at: TopicPartition, start: int, end: int) -> AsyncGenerator[Frame, None]:
        """Yields the topic's messages as frames or parts of frames, from Kafka's offset `start` through its end."""
        stall = _Stall(self._name, at.partition)
        async with aclosing(self._records(consumer, at, start)) as chunks:
            async for records in chunks:
                for record in records:
                    try:
                        yield received(record.value or b"", TICKS_SCHEMA, record.timestamp)
                    except FrameError as error:
                        logger.warning("archive: %s, partition %d: offset %d is no frame and is skipped: %s", self._name, at.partition, record.offset, error)
                position = await consumer.position(at)
                if position >= max(end, consumer.highwater(at) or 0):
                    return
                stall.at(position)


async def _bounds(consumer: AIOKafkaConsumer, at: TopicPartition) -> tuple[int, int]:
    return (await consumer.beginning_offsets([at]))[at], (await consumer.end_offsets([at]))[at]


class _Stall:
    """Raises `BrokerError` once a position has not moved for `READ_STALL_S`."""

    def __init__(self, topic: str, partition: int) -> None:
        self._where = f"{topic}, partition {partition}"
        self._position = -1
        self._since = time.monotonic()

    def at(self, position: int) -> None:
        if position != self._position:
            self._position, self._since = position, time.monotonic()
        elif time.monotonic() - self._since > READ_STALL_S:
            raise BrokerError(f"{self._where}: no record arrived at offset {position} for {READ_STALL_S:.0f} s; it is read again later")

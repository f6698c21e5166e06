"""Rebuilds `ticks.raw` from an archive: every record with its key, value, partition, order and Kafka time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError, DeliveryError, TopicError
from stockstream.kafka.admin import producer_options
from stockstream.kafka.client import client_options, topic_ends
from stockstream.kafka.restored_topic import RestoredTopic
from stockstream.replaying.publisher import OUTSTANDING_BATCHES, BatchBuilder
from stockstream.replaying.raw_log import Block, Place, RawLog
from stockstream.settings import Settings
from stockstream.sinks.archive.raw_objects import Line, key_and_value
from stockstream.sources.base import Clock
from stockstream.threads import in_thread
from stockstream.transforms.partitioning import home_partition

BROKER_TIMEOUT_S = 10.0
READ_S = 30.0
APPEND_TIME = 1
"""Kafka's type of a time that the broker has set."""
GUESSED_PARTITIONS = 64
AT_HOME = 0.95
"""Share of the keyed records that are in their home partition if the number of partitions is right; the rest are a producer's mistakes."""
AGAIN = "delete the topic and restore again, or restore to another log with --prefix"
FOREIGN = f"somebody else writes there: stop all workers and sources, {AGAIN}"


@dataclass(slots=True)
class Restored:
    """A summary. Times are Kafka's, in epoch ms; `records` were written, `there` were written by the run that this one resumes.

    `notes`: what remains to be done, one line each.
    """

    archive: str
    logs: list[str]
    topic: str
    partitions: int
    records: int = 0
    there: int = 0
    first_time: int = 0
    last_time: int = 0
    seconds: float = 0.0
    records_per_s: float = 0.0
    notes: list[str] = field(default_factory=list)


class Producer(Protocol):
    """The used part of aiokafka's producer."""

    def create_batch(self) -> BatchBuilder: ...
    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> Awaitable[Any]: ...


class Writer:
    """Writes records to their partitions with their own times. `ends`: by partition, the offset that the next record must get.

    Raises `DeliveryError` if the broker does not confirm a record, `TopicError` if it gives it another offset or time.
    """

    def __init__(self, producer: Producer, topic: str, ends: dict[int, int]) -> None:
        self._producer, self._topic, self.ends = producer, topic, dict(ends)
        self._batches: dict[int, BatchBuilder] = {}
        self._outstanding: deque[tuple[Awaitable[Any], int, int]] = deque()

    async def write(self, partition: int, records: Sequence[Line]) -> None:
        """Takes consecutive records; waits if the broker is behind."""
        batch = self._batches.get(partition)
        for line in records:
            key, value = key_and_value(line)
            if batch is None or batch.append(timestamp=line.timestamp, key=key, value=value, headers=[]) is None:  # type: ignore[arg-type]  # may be null
                if batch is not None:
                    await self._send(partition)
                batch = self._batches[partition] = self._producer.create_batch()
                if batch.append(timestamp=line.timestamp, key=key, value=value, headers=[]) is None:  # type: ignore[arg-type]  # may be null
                    raise DeliveryError(f"the record at offset {line.offset} of partition {partition} does not fit into a batch")

    async def flush(self) -> None:
        """Sends what is gathered, and waits until everything is confirmed."""
        for partition in list(self._batches):
            await self._send(partition)
        while self._outstanding:
            await self._confirm()

    async def _send(self, partition: int) -> None:
        batch = self._batches.pop(partition)
        batch.close()
        expected = self.ends[partition]
        self.ends[partition] += batch.record_count()
        try:
            self._outstanding.append((await self._producer.send_batch(batch, self._topic, partition=partition), partition, expected))
        except KafkaError as error:
            raise DeliveryError(f"the broker accepts no more records: {error}; --resume continues") from error
        while len(self._outstanding) > OUTSTANDING_BATCHES:
            await self._confirm()

    async def _confirm(self) -> None:
        confirmed, partition, expected = self._outstanding.popleft()
        try:
            found = await confirmed
        except KafkaError as error:
            raise DeliveryError(f"the broker did not confirm records: {type(error).__name__}: {error}; --resume continues") from error
        place = f"{self._topic}, partition {partition}"
        if found.timestamp_type == APPEND_TIME:
            raise TopicError(f"{place}: the broker set its own times, as on a topic of a worker that starts: stop all workers, {AGAIN}")
        if found.offset not in (expected, -1):                           # -1: a repeated request that was done already
            raise TopicError(f"{place}: a record got offset {found.offset} instead of {expected}, so {FOREIGN}")


async def restore(
    settings: Settings, log: RawLog, archive: str, *, speed: float | None, append: bool, resume: bool, advance: Callable[[int], None], clock: Clock
) -> Restored:
    """Runs the command, without its output. Raises `StockstreamError`."""
    if fault := await in_thread(lambda: partitions_fault(log, settings.partitions), "archive-store"):
        raise TopicError(fault)
    topic = RestoredTopic(settings, timeout_s=BROKER_TIMEOUT_S)
    await topic.prepare(log.oldest_ms, clock.now_ms())
    ends = await topic_ends(settings, topic.name, range(settings.partitions), embedded=topic.embedded)
    out = Restored(archive, [one for _, one in sorted(log.logs.items())], topic.name, settings.partitions)
    places = await _begin(settings, topic, log, ends, append=append, resume=resume)
    out.there = sum(ends.values()) if resume else 0
    producer = AIOKafkaProducer(**await producer_options(settings, timeout_s=BROKER_TIMEOUT_S))
    await producer.start()
    started = clock.now_ms()
    try:
        writer = Writer(producer, topic.name, ends)
        origin: int | None = None
        async for block in _ahead(log.blocks(places, by_second=speed is not None)):
            first, last = block.records[0].timestamp, block.records[-1].timestamp
            origin = first if origin is None else origin
            if speed is not None and (early := started + (first - origin) / speed - clock.now_ms()) > 0:
                await writer.flush()
                await clock.sleep(early / 1000)
            await writer.write(block.partition, block.records)
            out.records += len(block.records)
            out.first_time, out.last_time = min(out.first_time or first, first), max(out.last_time, last)
            advance(block.size)
        await writer.flush()
    finally:
        await producer.stop()
    out.seconds = round((clock.now_ms() - started) / 1000, 3)
    out.records_per_s = round(out.records / max(out.seconds, 1e-3), 1)
    found = await topic_ends(settings, topic.name, range(settings.partitions), embedded=topic.embedded)
    if found != writer.ends:
        other = next(partition for partition in found if found[partition] != writer.ends[partition])
        raise TopicError(f"{topic.name}, partition {other} ends at offset {found[other]} instead of {writer.ends[other]}, so {FOREIGN}")
    out.notes = await topic.finish()
    return out


async def _ahead(blocks: Iterator[Block]) -> Any:
    """The blocks, of which the next one is read while one is used."""
    following = asyncio.ensure_future(in_thread(lambda: next(blocks, None), "archive-store"))
    try:
        while (block := await following) is not None:
            following = asyncio.ensure_future(in_thread(lambda: next(blocks, None), "archive-store"))
            yield block
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following


def partitions_fault(log: RawLog, partitions: int) -> str | None:
    """Why the archive's records are not of a topic of so many partitions, as text; None if they can be.

    The archive shows the number of partitions with records. Those above may be empty: the homes of the symbols show how many there are.
    """
    least = log.least_partitions
    if partitions >= least and (found := _partitions_of(log, least, partitions)) == partitions:
        return None
    number = least if partitions < least else found
    return f"the archive's log has {number} partitions, and the settings {partitions}: set STOCKSTREAM_PARTITIONS={number}"


def _partitions_of(log: RawLog, least: int, partitions: int) -> int:
    """`partitions`, or another number of which alone the keyed records are at home."""
    keys = [(line.key, line.partition) for line in log.first_records() if isinstance(line.key, str)]

    def share(number: int) -> float:
        return sum(home_partition(key, number) == partition for key, partition in keys) / max(1, len(keys))

    others = [number for number in range(least, least + GUESSED_PARTITIONS) if share(number) >= AT_HOME]
    return others[0] if keys and others and share(partitions) < AT_HOME else partitions


async def _begin(settings: Settings, topic: RestoredTopic, log: RawLog, ends: dict[int, int], *, append: bool, resume: bool) -> dict[int, Place]:
    """The places in the archive that follow the topic's last records. Raises `TopicError` if the topic holds something else."""
    held = {partition: end for partition, end in ends.items() if end}
    if not held:
        return {}
    if not append and not resume:
        ways = "--resume continues a restore that was interrupted, --append writes behind what is there, --prefix NAME. restores to another log"
        raise TopicError(f"{topic.name} is not empty ({sum(held.values()):,} offsets): {ways}")
    last = await _last_records(settings, topic.name, held)
    if append:
        for partition in held:
            final = await in_thread(lambda partition=partition: log.last(partition), "archive-store")  # type: ignore[misc]
            if final is not None and partition in last and _same(last[partition], final):
                raise TopicError(f"{topic.name}, partition {partition} ends with the last of these records: they are restored already")
        return {}
    places = {}
    for partition, end in held.items():
        place = await in_thread(lambda partition=partition, end=end: log.after(partition, end), "archive-store")  # type: ignore[misc]
        if place is None or place.last is None or partition not in last or not _same(last[partition], place.last):
            raise TopicError(f"{topic.name}, partition {partition}: its {end:,} offsets are not the first of these records, so it cannot be resumed: {AGAIN}")
        places[partition] = place
    return places


def _same(record: Any, line: Line) -> bool:
    return (record.timestamp, record.key, record.value) == (line.timestamp, *key_and_value(line))


async def _last_records(settings: Settings, topic: str, ends: dict[int, int]) -> dict[int, Any]:
    """The record at the last offset of each partition, where there is one. Raises `BrokerError`."""
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="none")
    found: dict[int, Any] = {}
    try:
        await consumer.start()
        async with asyncio.timeout(READ_S):
            begins = await consumer.beginning_offsets([TopicPartition(topic, partition) for partition in ends])
            for place, begin in begins.items():
                end = ends[place.partition]
                if begin >= end:
                    continue
                consumer.assign([place])
                consumer.seek(place, end - 1)
                while place.partition not in found and await consumer.position(place) < end:
                    records = (await consumer.getmany(place, timeout_ms=500)).get(place, ())
                    found |= {record.partition: record for record in records if record.offset == end - 1}
    except (KafkaError, OSError, TimeoutError) as error:
        raise BrokerError(f"{topic} cannot be read: {type(error).__name__}: {error}") from error
    finally:
        await consumer.stop()
    return found

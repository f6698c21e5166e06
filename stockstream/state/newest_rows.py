"""Reads the newest rows of partitions of `windows`, for a worker that takes them over."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError, FrameError
from stockstream.kafka.client import MAX_BATCH_BYTES, client_options
from stockstream.records import WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.sources.takeover import Newest
from stockstream.transforms.frames import received
from stockstream.transport.fetching import FETCH_MAX_WAIT_MS

NEWEST_S = 120
"""How far before the newest record of a partition is read, beside the session timeout."""
NEWEST_RECORDS = 2_000
"""The most records of a partition that are read; a source has about one a second."""


async def read_newest_rows(settings: Settings, partitions: Collection[int]) -> dict[int, dict[str, Newest]]:
    """The newest row of each symbol in the newest part of these partitions. Frames that cannot be read are left out.

    The newest part is what was written within NEWEST_S and the session timeout before the partition's last record, however old that is.
    Raises `BrokerError`.
    """
    consumer = AIOKafkaConsumer(
        **client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS, max_partition_fetch_bytes=4 * MAX_BATCH_BYTES,
    )  # fmt: skip
    places = [TopicPartition(settings.topic("windows"), partition) for partition in partitions]
    try:
        await consumer.start()
        consumer.assign(places)
        begins, ends = await asyncio.gather(consumer.beginning_offsets(places), consumer.end_offsets(places))
        spans = {place: (max(begins[place], ends[place] - 1), ends[place]) for place in places if ends[place] > begins[place]}
        last = await _read(consumer, spans)
        starts = await _starts(consumer, {place: records[-1].timestamp for place, records in last.items() if records}, NEWEST_S + settings.session_timeout_s)
        spans = {place: (max(begins[place], ends[place] - NEWEST_RECORDS, starts.get(place, 0)), ends[place]) for place in spans}
        records = await _read(consumer, spans)
    except (KafkaError, OSError) as error:
        raise BrokerError(f"{settings.topic('windows')} cannot be read: {str(error) or type(error).__name__}") from error
    finally:
        await consumer.stop()
    return {place.partition: rows for place, rows in (await asyncio.to_thread(_newest_of_all, records)).items()}


async def _starts(consumer: AIOKafkaConsumer, newest: Mapping[TopicPartition, int], seconds: float) -> dict[TopicPartition, int]:
    """The first offset within so many seconds before the newest record of each partition. Empty if the broker cannot look offsets up by time."""
    if not newest:
        return {}
    try:
        found = await consumer.offsets_for_times({place: max(0, time - int(seconds * 1000)) for place, time in newest.items()})
    except KafkaError:
        return {}
    return {place: at.offset for place, at in found.items() if at is not None}


async def _read(consumer: AIOKafkaConsumer, spans: Mapping[TopicPartition, tuple[int, int]]) -> dict[TopicPartition, list[Any]]:
    """The records of each partition from the first offset to before the second."""
    found: dict[TopicPartition, list[Any]] = {place: [] for place in spans}
    left = {place for place, (first, end) in spans.items() if first < end}
    if left:
        consumer.assign(sorted(left))
        for place in left:
            consumer.seek(place, spans[place][0])
    while left:
        for place, records in (await consumer.getmany(*left, timeout_ms=FETCH_MAX_WAIT_MS)).items():
            found[place] += [record for record in records if record.offset < spans[place][1]]
        left = {place for place in left if await consumer.position(place) < spans[place][1]}
    return found


def _newest_of_all(records: Mapping[TopicPartition, Sequence[Any]]) -> dict[TopicPartition, dict[str, Newest]]:
    return {place: newest_of(some) for place, some in records.items()}


def newest_of(records: Sequence[Any]) -> dict[str, Newest]:
    """The newest row of each symbol in the frames of these records."""
    batches = []
    for record in records:
        try:
            batches.append(received(record.value or b"", WINDOWS_SCHEMA, record.timestamp).rows.select(["symbol", "source", "second"]))
        except FrameError:
            continue                                                     # the partition's readers count it
    if not batches:
        return {}
    found: dict[str, Newest] = {}
    groups = pa.Table.from_batches(batches).group_by(["symbol", "source"]).aggregate([("second", "min"), ("second", "max"), ("second", "count_distinct")])
    for row in groups.to_pylist():
        first, last, seconds = row["second_min"], row["second_max"], row["second_count_distinct"]
        newest = Newest(row["source"], last * 1000 + 999, 1000 * (last - first) / (seconds - 1) if seconds > 1 else 0.0)
        if (other := found.get(row["symbol"])) is None or other.last < newest.last:
            found[row["symbol"]] = newest
    return found

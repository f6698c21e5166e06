"""Disaster recovery: an archive is replayed into an empty log, which has the same records at the same Kafka times and gives the same results."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stockstream.errors import TopicError
from stockstream.kafka.client import client_options, topic_ends
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.replaying.raw_log import RawLog, Times
from stockstream.replaying.restore import Restored, restore
from stockstream.settings import Settings
from stockstream.sinks.archive.layout import HOUR_MS
from stockstream.sources.base import SystemClock
from stockstream.transforms.partitioning import home_partition
from tests.contracts.source import FakeClock
from tests.faults.verdict import QUIET_S
from tests.faults.workers import wait_until
from tests.integration.test_backtest import odd_values, published, verdicts
from tests.integration.test_line import LONGEST_S, Line, running, wait_for
from tests.kafka import Cluster
from tests.logs import generated_day
from tests.patience import PATIENCE_S
from tests.unit.replaying.test_raw_log import T0, archive, wanted

PARTITIONS = 4
Held = dict[int, list[tuple[int, bytes | None, bytes | None]]]


async def records_in(settings: Settings) -> dict[int, list[Any]]:
    """The committed records of each partition of ticks.raw."""
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, isolation_level="read_committed")
    await consumer.start()
    try:
        places = [TopicPartition(settings.topic("ticks.raw"), partition) for partition in range(settings.partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning()
        ends = await consumer.end_offsets(places)
        found: dict[int, list[Any]] = defaultdict(list)
        async with asyncio.timeout(PATIENCE_S):
            while any([await consumer.position(place) < end for place, end in ends.items()]):
                for place, records in (await consumer.getmany(timeout_ms=300)).items():
                    found[place.partition] += records
        return dict(found)
    finally:
        await consumer.stop()


async def held_in(settings: Settings) -> Held:
    """Time, key and value of the records of each partition of ticks.raw."""
    return {partition: [(record.timestamp, record.key, record.value) for record in some] for partition, some in (await records_in(settings)).items()}


def stripped(records: Mapping[int, list[tuple[int, int, bytes | None, bytes | None]]]) -> Held:
    return {partition: [tuple(record[1:]) for record in some] for partition, some in records.items()}  # type: ignore[misc]


async def run(settings: Settings, log: RawLog, *, speed: float | None = None, append: bool = False, resume: bool = False) -> Restored:
    return await restore(settings, log, "memory://", speed=speed, append=append, resume=resume, advance=lambda _: None, clock=SystemClock())


async def configuration(settings: Settings) -> dict[str, str]:
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, settings.topic("ticks.raw"))])
        return {entry[0]: entry[1] for entry in answer.resources[0][4]}
    finally:
        await admin.close()


async def everything(settings: Settings) -> None:
    """A restore that is interrupted twice and resumed, one that is refused, and one that is appended."""
    store, held = archive()
    log = RawLog(store)

    class Interrupted(Exception):
        pass

    def interrupted_after(blocks: int) -> Any:
        left = blocks

        def advance(_: int) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Interrupted

        return advance

    async def interrupted(blocks: int, *, resume: bool) -> None:
        clock = FakeClock(SystemClock().now_ms())                        # each second is early on it, and what comes before is confirmed while it waits
        with pytest.raises(Interrupted):
            await restore(settings, RawLog(store), "memory://", speed=1.0, append=False, resume=resume, advance=interrupted_after(blocks), clock=clock)

    await interrupted(50, resume=False)
    there = sum(map(len, (await held_in(settings)).values()))
    assert 0 < there < 160
    with pytest.raises(TopicError, match=f"is not empty \\({there} offsets\\): --resume continues"):
        await run(settings, log)
    await interrupted(30, resume=True)
    again = sum(map(len, (await held_in(settings)).values()))
    assert again >= there
    out = await run(settings, log, resume=True)
    assert (out.there, out.records, out.first_time) == (again, 160 - again, min(out.first_time, out.last_time))
    assert await held_in(settings) == stripped(wanted(held))
    assert (await run(settings, log, resume=True)).records == 0
    with pytest.raises(TopicError, match="restored already"):
        await run(settings, log, append=True)
    with pytest.raises(TopicError, match="cannot be resumed: delete the topic"):
        await run(settings, RawLog(store, (), Times(T0 + HOUR_MS, None)), resume=True)
    other, more = archive("log2", count=20)
    assert (await run(settings, RawLog(other), append=True)).records == 40
    assert await held_in(settings) == {p: [*some, *stripped(wanted(more))[p]] for p, some in stripped(wanted(held)).items()}


async def test_an_interrupted_restore_continues_on_the_embedded_broker(embedded: EmbeddedBroker, prefix: str) -> None:
    await everything(Settings(broker=embedded.bootstrap, topic_prefix=prefix, partitions=2))


async def test_an_interrupted_restore_continues(kafka: Cluster, prefix: str) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=2)
    await everything(settings)
    found = await configuration(settings)
    assert (found["message.timestamp.type"], found["retention.ms"]) == ("LogAppendTime", "-1"), "records of 2025 would be deleted at once"


async def test_days_that_follow_each_other_are_the_whole_log(kafka: Cluster, prefix: str) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=2)
    store, _ = archive()
    for number, times in enumerate([Times(None, T0 + HOUR_MS), Times(T0 + HOUR_MS, T0 + 2 * HOUR_MS), Times(T0 + 2 * HOUR_MS, None)]):
        await run(settings, RawLog(store, (), times), append=number > 0)
    found = await held_in(settings)
    everything = [record for block in RawLog(store).blocks({}) for record in block.records]
    assert sum(map(len, found.values())) == len(everything)


async def test_a_topic_of_a_worker_gets_the_times_of_the_archive(kafka: Cluster, prefix: str) -> None:
    """A worker has created it: the broker's time, and a retention that would delete the records."""
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=2)
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        own = {"message.timestamp.type": "LogAppendTime", "retention.ms": "86400000", "retention.bytes": "1000000", "segment.bytes": "20000000"}
        await admin.create_topics([NewTopic(settings.topic("ticks.raw"), 2, 1, topic_configs=own)])
    finally:
        await admin.close()
    store, held = archive()
    out = await run(settings, RawLog(store))
    assert await held_in(settings) == stripped(wanted(held))
    found = await configuration(settings)
    assert {name: found[name] for name in own} == own | {"retention.ms": "-1", "retention.bytes": "-1"}
    (note,) = out.notes
    assert "has no retention" in note and "--add-config retention.ms=604800000" in note


async def test_what_else_writes_there_is_noticed(kafka: Cluster, prefix: str) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=2)
    store, _ = archive()
    producer = AIOKafkaProducer(**client_options(settings), linger_ms=0)
    await producer.start()
    blocks = 0

    def advance(_: int) -> None:
        nonlocal blocks
        blocks += 1
        if blocks == 40:
            writing.append(asyncio.ensure_future(producer.send_and_wait(settings.topic("ticks.raw"), b"{}", partition=0)))

    writing: list[Any] = []
    try:
        with pytest.raises(TopicError, match=r"partition 0.*somebody else writes there: stop all workers and sources"):
            await restore(settings, RawLog(store), "", speed=20_000.0, append=False, resume=False, advance=advance, clock=SystemClock())
    finally:
        await asyncio.gather(*writing)
        await producer.stop()


async def test_topics_that_do_not_fit_are_one_line_each(kafka: Cluster, prefix: str) -> None:
    store, _ = archive()
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=1)
    with pytest.raises(TopicError, match=r"has 2 partitions, and the settings 1: set STOCKSTREAM_PARTITIONS=2"):
        await run(settings, RawLog(store))
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(settings.topic("ticks.raw"), 3, 1)])
        await admin.create_topics([NewTopic(f"{prefix}c.ticks.raw", 2, 1, topic_configs={"cleanup.policy": "compact"})])
    finally:
        await admin.close()
    with pytest.raises(TopicError, match=r"has 3 partitions, and the settings 2"):
        await run(settings.model_copy(update={"partitions": 2}), RawLog(store))
    with pytest.raises(TopicError, match=r"cleanup\.policy=compact"):
        await run(settings.model_copy(update={"partitions": 2, "topic_prefix": f"{prefix}c."}), RawLog(store))


def abort_a_transaction(line: Line) -> None:
    async def abort() -> None:
        producer = AIOKafkaProducer(**client_options(line.settings), transactional_id=f"{line.settings.topic_prefix}aborter")
        await producer.start()
        await producer.begin_transaction()
        for partition in range(PARTITIONS):
            await producer.send_and_wait(line.settings.topic("ticks.raw"), b'{"symbol": "never"}', partition=partition)
        await producer.abort_transaction()
        await producer.stop()

    asyncio.run(abort())


def ranks(line: Line) -> dict[tuple[int, int], int]:
    """By partition and offset: how many records come before."""
    return {(record.partition, record.offset): rank for some in asyncio.run(records_in(line.settings)).values() for rank, record in enumerate(some)}


def ticks(line: Line) -> list[str]:
    """All accepted ticks of the archive with their ranks in the place of their offsets."""
    rank = ranks(line)
    rows = json.loads(line.command("query", "--archive", line.settings.archive, "--format", "json", "SELECT * EXCLUDE (log) FROM ticks"))
    return sorted(json.dumps(row | {"offset": rank[row["partition"], row["offset"]]}) for row in rows)


def bars(line: Line) -> Any:
    sql = "SELECT symbol, source, minute, open, high, low, close, volume, vwap, ticks FROM bars_1m ORDER BY ALL"
    return json.loads(line.command("query", "--archive", line.settings.archive, "--format", "json", sql))


def results(line: Line) -> dict[str, list[str]]:
    """What the topics hold, with ranks in the place of offsets."""
    rank = ranks(line)

    def comparable(item: dict[str, Any], partition: int) -> dict[str, Any]:
        moved = item | {"offset": rank[partition, item["offset"]]} if "offset" in item else item
        return moved | {"window": comparable(item["window"], partition)} if "window" in item else moved

    def partition_of(item: dict[str, Any]) -> int:
        return item["partition"] if "partition" in item else home_partition(item["symbol"], PARTITIONS)

    return {
        name: sorted(json.dumps(comparable(item, partition_of(item)), sort_keys=True, default=str) for item in items.values())
        for name, items in published(line).items()
    }  # fmt: skip


def wait_for_idle(line: Line) -> None:
    """Waits until the worker has closed all seconds, for which it writes punctuations when a source is idle."""
    ends: list[dict[int, int]] = [{}]

    def idle() -> bool:
        ends.append(asyncio.run(topic_ends(line.settings, line.settings.topic("ticks.raw"), range(PARTITIONS), embedded=False)))
        return ends[-1] == ends[-2]

    wait_until(idle, LONGEST_S, "the log does not grow any more", QUIET_S)


def test_a_restored_log_gives_the_same_results(kafka: Cluster, tmp_path: Path) -> None:
    own = {"STOCKSTREAM_PARTITIONS": str(PARTITIONS)}
    first_prefix, second_prefix = f"lost{os.getpid()}.", f"restored{os.getpid()}."
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    with running(kafka.bootstrap, tmp_path / "first", **own, STOCKSTREAM_TOPIC_PREFIX=first_prefix) as line:
        day, path = generated_day(seconds=1_500), tmp_path / "day.csv"
        day.assign(event_time=pd.to_datetime(day.event_time, unit="ms", utc=True)).to_csv(path, index=False)
        odd = odd_values()
        line.command("replay", str(path), "--speed", "max")
        abort_a_transaction(line)
        line.send(odd)
        abort_a_transaction(line)
        wait_for(line, len(day) + verdicts(odd))
        wait_for_idle(line)
        line.worker.stop()
        line.command("verify", "--archive", line.settings.archive)
        summary = json.loads(line.command("replay", f"{line.settings.archive}/raw", "--prefix", second_prefix, "--json").splitlines()[0])
        first = asyncio.run(held_in(line.settings))
        want, want_ticks, want_bars = results(line), ticks(line), bars(line)
        total = sum(map(len, first.values()))
        assert summary["records"] == total and summary["partitions"] == PARTITIONS
    shutil.copytree(tmp_path / "first" / "models", tmp_path / "second" / "models")
    with running(kafka.bootstrap, tmp_path / "second", **own, STOCKSTREAM_TOPIC_PREFIX=second_prefix) as line:
        wait_for(line, len(day) + verdicts(odd))
        wait_for_idle(line)
        line.worker.stop()
        second = asyncio.run(held_in(line.settings))
        assert {partition: records[: len(first[partition])] for partition, records in second.items()} == first, "a worker may add punctuations"
        got = results(line)
        for name in want:
            assert want[name], name
            lost, invented = sorted(set(want[name]) - set(got[name])), sorted(set(got[name]) - set(want[name]))
            assert (lost[:2], invented[:2]) == ([], []), name
            assert len(got[name]) == len(want[name])
        assert ticks(line) == want_ticks and bars(line) == want_bars
        line.command("verify", "--archive", line.settings.archive)

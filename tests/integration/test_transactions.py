"""A transactional producer beside a plain one on real Kafka: nothing is read again, no hole is shown, and nothing of what was aborted is counted."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from stockstream.kafka.client import client_options
from stockstream.transforms.partitioning import home_partition
from tests.faults.workers import wait_until
from tests.integration.test_line import LONGEST_S, Line, running
from tests.kafka import Cluster

TRANSACTIONS, TICKS = 45, 10
SYMBOLS = [f"X{number}" for number in range(6)]


class Producers:
    """A transactional producer, a plain one, and the shares of each symbol that were committed."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._topic, self._partitions = line.settings.topic("ticks.raw"), line.settings.partitions
        self.volume = dict.fromkeys(SYMBOLS, 0)
        self.ticks = 0

    async def __aenter__(self) -> Producers:
        options: dict[str, Any] = client_options(self._line.settings)
        self.transactional = AIOKafkaProducer(**options, transactional_id=f"{self._topic}-{time.time_ns()}", linger_ms=0)
        self._plain = AIOKafkaProducer(**options, linger_ms=0)
        await self.transactional.start()
        await self._plain.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.transactional.stop()
        await self._plain.stop()

    async def _send(self, producer: AIOKafkaProducer, number: int, *, counts: bool) -> None:
        symbol, size = SYMBOLS[number % len(SYMBOLS)], 1 + number % 7
        if counts:
            self.volume[symbol] += size
            self.ticks += 1
        tick = {"symbol": symbol, "event_time": time.time_ns() // 1_000_000, "price": 10.0 + number % 5, "size": size, "source": "tx"}
        await producer.send(self._topic, json.dumps(tick).encode(), partition=home_partition(symbol, self._partitions))

    async def plain(self, count: int = 1) -> None:
        for number in range(count):
            await self._send(self._plain, number, counts=True)
        await self._plain.flush()

    async def transaction(self, *, commit: bool) -> None:
        await self.transactional.begin_transaction()
        for number in range(TICKS):
            await self._send(self.transactional, number, counts=commit)
            if number == TICKS // 2:
                await self._plain_between()
        await (self.transactional.commit_transaction() if commit else self.transactional.abort_transaction())

    async def _plain_between(self) -> None:
        await self.plain(len(SYMBOLS))

    async def open_transaction(self) -> None:
        """Begins a transaction with one tick of each symbol, confirmed by the broker."""
        await self.transactional.begin_transaction()
        for number in range(len(SYMBOLS)):
            await self._send(self.transactional, number, counts=True)
        await self.transactional.flush()


def pipeline(line: Line) -> Any:
    return line.get("/api/pipeline")[1]


def lag(line: Line) -> int:
    return sum(of["lag"] for of in pipeline(line)["lag"] if of["topic"] == line.settings.topic("ticks.raw"))


def accepted(line: Line) -> float:
    return line.metric("stockstream_ticks_accepted_total")


def drained(line: Line, ticks: int) -> None:
    wait_until(lambda: accepted(line) >= ticks, LONGEST_S, f"{ticks} ticks judged")
    wait_until(lambda: lag(line) == 0, LONGEST_S, "all is read")
    assert accepted(line) == ticks


def delete_raw(line: Line) -> dict[int, int]:
    """Deletes all records of `ticks.raw`, as retention does; returns the end of each partition."""

    async def run() -> dict[int, int]:
        places = [TopicPartition(line.settings.topic("ticks.raw"), partition) for partition in range(line.settings.partitions)]
        consumer = AIOKafkaConsumer(**client_options(line.settings))
        admin = AIOKafkaAdminClient(**client_options(line.settings))
        await consumer.start()
        await admin.start()
        try:
            ends = await consumer.end_offsets(places)
            await admin.delete_records({place: RecordsToDelete(before_offset=end) for place, end in ends.items()})
            return {place.partition: end for place, end in ends.items()}
        finally:
            await admin.close()
            await consumer.stop()

    return asyncio.run(run())


@pytest.mark.parametrize("transport", ["own", "plain"])
def test_a_transactional_producer_beside_a_plain_one(kafka: Cluster, tmp_path: Path, transport: str) -> None:
    own = {"STOCKSTREAM_PLAIN_TRANSPORT": "true"} if transport == "plain" else {}
    with running(kafka.bootstrap, tmp_path, STOCKSTREAM_TOPIC_PREFIX=f"tx{transport}{os.getpid()}.", **own) as line:
        asyncio.run(transactions(line))
        judge(line)
        deleted_unread(line)


async def transactions(line: Line) -> None:
    async with Producers(line) as producers:
        for number in range(TRANSACTIONS):
            await producers.transaction(commit=number % 3 != 2)
        await asyncio.to_thread(drained, line, producers.ticks)          # the last one is aborted: the log ends with markers only
        # an open transaction holds back what comes behind it
        before = producers.ticks
        await producers.open_transaction()
        await producers.plain(len(SYMBOLS))
        await asyncio.sleep(2.0)
        assert await asyncio.to_thread(accepted, line) == before
        assert await asyncio.to_thread(lag, line) >= 2 * len(SYMBOLS)    # with punctuations of the source, which the worker takes for idle
        await producers.transactional.commit_transaction()
        await asyncio.to_thread(drained, line, producers.ticks)
    volume = sum(producers.volume.values())
    await asyncio.to_thread(wait_until, lambda: line.rows("tx").volume.sum() >= volume, LONGEST_S, "the last second closes", 1.0)
    rows = await asyncio.to_thread(line.rows, "tx")
    assert {symbol: int(shares) for symbol, shares in rows.groupby("symbol").volume.sum().items()} == producers.volume


def judge(line: Line) -> None:
    """No hole, and an archive in which nothing is missing; also for a worker that begins at a marker."""
    for _ in range(2):
        assert (pipeline(line)["holes"], pipeline(line)["rereads"], lag(line)) == ([], 0, 0)
        assert line.metric("stockstream_holes_total") == 0
        text = line.worker.text()
        assert "reading again" not in text and "the broker has no offsets" not in text
        line.worker.stop()
        line.command("verify", "--archive", line.settings.archive)
        line.worker.start()
        line.worker.wait_ready()
        wait_until(lambda: lag(line) == 0, LONGEST_S, "the log is read to its end again")


def deleted_unread(line: Line) -> None:
    """Retention deletes records that nobody has read: a hole in each of their partitions, and none for the markers that come later."""
    line.worker.stop()

    async def publish(count: int) -> int:
        async with Producers(line) as producers:
            await producers.transaction(commit=True)
            await producers.plain(count)
            return producers.ticks

    asyncio.run(publish(12))
    ends = delete_raw(line)
    line.worker.start()
    line.worker.wait_ready()
    ticks = asyncio.run(publish(12))
    drained(line, ticks)
    holes = {hole["partition"]: hole["last"] for hole in pipeline(line)["holes"] if hole["topic"] == line.settings.topic("ticks.raw")}
    homes = {home_partition(symbol, line.settings.partitions) for symbol in SYMBOLS}
    assert holes == {home: ends[home] - 1 for home in homes}
    line.worker.stop()
    line.command("verify", "--archive", line.settings.archive)
    line.worker.start()
    line.worker.wait_ready()

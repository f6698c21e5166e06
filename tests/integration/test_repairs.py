"""Repairs on real Kafka: from a gap on record to a bar in the archive, over restarts; and a worker that polls Yahoo's stand-in."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stockstream.budgets import Limits
from stockstream.kafka.admin import producer_options
from stockstream.kafka.topic_reader import TopicReader
from stockstream.records import Repair
from stockstream.settings import Settings, load_settings
from stockstream.sinks.archive.repaired_writer import RepairedBars
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.stores import FileStore
from stockstream.sources.base import SystemClock
from stockstream.sources.quota import MemoryRequestLog, Scheduler
from stockstream.sources.yahoo.query import YahooQuery
from stockstream.sources.yahoo.repair import Repairer
from stockstream.sql.duckdb_engine import connect
from stockstream.transforms.partitioning import home_partition
from tests.faults.workers import Worker, wait_until
from tests.kafka import Cluster
from tests.patience import PATIENCE_S
from tests.standins.yahoo_query import YahooQueryServer, bar_of, listings

PARTITIONS = 2
MINUTE = 60_000


def gap_of(symbol: str, minutes: int = 5) -> dict[str, object]:
    """A gap that ended 10 minutes ago and holds so many whole minutes."""
    end = int(time.time()) // 60 * MINUTE - 10 * MINUTE + 3_000
    return {"symbol": symbol, "source": "yahoo", "from": end - (minutes + 1) * MINUTE + 1_000, "to": end, "reason": "source_away"}


async def put(settings: Settings, topic: str, values: Sequence[dict[str, object]]) -> None:
    producer = AIOKafkaProducer(**await producer_options(settings))
    await producer.start()
    try:
        for value in values:
            symbol = str(value["symbol"])
            place = home_partition(symbol, PARTITIONS)
            await producer.send_and_wait(settings.topic(topic), json.dumps(value).encode(), key=symbol.encode(), partition=place)
    finally:
        await producer.stop()


class Line:
    """A repairer and an archive of all partitions, which can be killed and started again."""

    def __init__(self, settings: Settings, server: YahooQueryServer, folder: Path) -> None:
        self.settings, self.folder = settings, folder
        clock = SystemClock()
        quota = Scheduler("yahoo", Limits.parse("1000/s"), MemoryRequestLog(clock), clock=clock)
        query = YahooQuery(server.url, quota, folder / "yfinance")
        self.gaps = TopicReader(settings, "gaps", f"{settings.group}-repair")
        self.repairs = TopicReader(settings, "repairs")
        self.faults: list[tuple[int, int, str]] = []
        self.repairer = Repairer(query, self.gaps, self._publish, lambda *what: self.faults.append(what), clock)
        self.archive = RepairedBars(settings, FileStore(folder / "archive"), self.repairs, lambda *what: self.faults.append(what))
        for part in (self.repairer, self.archive):
            part.own(range(PARTITIONS))
        self.tasks = [asyncio.create_task(self.repairer.run()), asyncio.create_task(self.archive.run())]

    async def _publish(self, repairs: Sequence[Repair]) -> None:
        await put(self.settings, "repairs", [msgspec.to_builtins(repair) for repair in repairs])

    async def kill(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.gaps.stop()
        await self.repairs.stop()

    async def until_archived(self, bars: int) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while check(FileStore(self.folder / "archive")).repaired < bars:
                for task in self.tasks:
                    assert not task.done(), task.exception()
                await asyncio.sleep(0.1)

    async def until_committed(self, gaps: dict[int, int]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while {place: offset for place, offset in self.repairer._committed.items() if offset} != gaps:
                await asyncio.sleep(0.1)


async def test_a_gap_becomes_bars_in_the_archive_once(kafka: Cluster, prefix: str, tmp_path: Path) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=PARTITIONS, archive_flush_s=0.5)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(settings.topic(name), PARTITIONS, 1) for name in ("gaps", "repairs")])
    await admin.close()
    symbols = ["AAPL", "MSFT", "BRK-B"]
    server = YahooQueryServer(listings(symbols))
    await server.start()
    try:
        gaps = [gap_of(symbol) for symbol in symbols]
        await put(settings, "gaps", [*gaps, gap_of("NOPE")])
        line = Line(settings, server, tmp_path)
        await line.until_archived(15)
        counts = [0] * PARTITIONS
        for symbol in [*symbols, "NOPE"]:
            counts[home_partition(symbol, PARTITIONS)] += 1
        await line.until_committed({place: count for place, count in enumerate(counts) if count})
        await line.kill()
        charts = server.count("/v8/finance/chart/NOPE"), server.count("/v8/finance/chart/AAPL")
        assert charts[0] >= 1 and charts[1] == 1

        again = Line(settings, server, tmp_path)                         # all is done: neither fetches nor writes anything again
        await put(settings, "gaps", [gap_of("AAPL", 2)])
        await again.until_archived(17)
        await again.kill()
        assert server.count("/v8/finance/chart/AAPL") == 2 and server.count("/v8/finance/chart/MSFT") == 1
        assert line.faults == again.faults == []
    finally:
        await server.stop()
    report = check(FileStore(tmp_path / "archive"))
    assert report.faults == [] and report.repaired == 17
    with connect(tmp_path / "archive") as engine:
        sql = "SELECT symbol, epoch(minute) AS at, open, high, low, close, volume, ticks FROM bars_1m WHERE repaired ORDER BY 1, 2"
        rows = list(engine.run(sql).rows())
    expected = []
    for gap in gaps:
        first = int(str(gap["from"])) // MINUTE * 60 + 60
        for bar in (bar_of(str(gap["symbol"]), start) for start in range(first, first + 300, 60)):
            expected.append((gap["symbol"], bar.start, bar.open, bar.high, bar.low, bar.close, bar.volume, 0))
    assert rows == sorted(expected)


async def test_positions_of_a_topic_reader(kafka: Cluster, prefix: str) -> None:
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix, partitions=PARTITIONS)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(settings.topic("gaps"), PARTITIONS, 1)])
    await admin.close()
    symbols = {home_partition(symbol, PARTITIONS): symbol for symbol in ("AAPL", "MSFT", "TSLA", "NVDA", "IBM", "KO")}
    await put(settings, "gaps", [{"symbol": symbols[place], "n": number} for number in range(3) for place in range(PARTITIONS)])
    reader = TopicReader(settings, "gaps", f"{prefix}group")

    async def read(cursors: dict[int, int | None], at_least: int) -> dict[int, list[int]]:
        found: dict[int, list[int]] = {}
        async with asyncio.timeout(PATIENCE_S):
            while sum(map(len, found.values())) < at_least:
                now = {place: found[place][-1] + 1 if found.get(place) else cursor for place, cursor in cursors.items()}
                for place, records in (await reader.poll(now)).items():
                    found.setdefault(place, []).extend(record.offset for record in records)
        return found

    try:
        assert await read({0: None, 1: None}, 6) == {0: [0, 1, 2], 1: [0, 1, 2]}
        assert await read({0: None, 1: 2}, 4) == {0: [0, 1, 2], 1: [2]}
        await reader.commit({0: 1})
        assert await read({1: None}, 3) == {1: [0, 1, 2]}
        assert await read({0: None}, 2) == {0: [1, 2]}
        await reader.stop()
        assert await read({0: None, 1: 1}, 4) == {0: [1, 2], 1: [1, 2]}
        assert await reader.poll({0: 3, 1: 3}) == {}
    finally:
        await reader.stop()


class Polling:
    """A worker with the source `yahoo_polling` and an archive, and Yahoo's stand-in in a thread."""

    def __init__(self, where: str, prefix: str, folder: Path, server: YahooQueryServer, symbols: Sequence[str]) -> None:
        own = {
            "STOCKSTREAM_BROKER": where, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_ARCHIVE": f"file://{folder}/archive",
            "STOCKSTREAM_MODELS": f"file://{folder}/models", "STOCKSTREAM_STATE_DIR": str(folder / "state"), "STOCKSTREAM_SESSION_TIMEOUT_S": "120",
            "STOCKSTREAM_SOURCE": "yahoo_polling", "STOCKSTREAM_SYMBOLS": ",".join(symbols), "STOCKSTREAM_PARTITIONS": str(PARTITIONS),
            "STOCKSTREAM_YAHOO_QUERY_URL": server.url, "STOCKSTREAM_YAHOO_BUDGET": "50/s,100000/d", "STOCKSTREAM_ARCHIVE_FLUSH_S": "1",
        }  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | own
        self.settings = load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in own.items()})
        self.worker = Worker("worker", environment, folder)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.worker.port}{path}", timeout=PATIENCE_S) as answer:
            return json.loads(answer.read())

    def spent_today(self) -> int:
        """Requests of the day's budget that are spent."""
        (day,) = [budget for budget in self.get("/api/sources")["items"][0]["budgets"] if budget["per"] == "day"]
        return int(day["limit"]) - int(day["left"])

    async def until(self, what: str, condition: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(wait_until, partial(_or_none, condition), 30.0, what)


def _or_none(condition: Callable[[], Any]) -> Any:
    try:
        return condition()
    except (OSError, KeyError, ValueError):
        return None


async def test_a_worker_polls_describes_and_repairs(kafka: Cluster, prefix: str, tmp_path: Path) -> None:
    server = YahooQueryServer(listings(["AAPL", "MSFT"]))
    await server.start()
    line = Polling(kafka.bootstrap, prefix, tmp_path, server, ["AAPL", "MSFT", "NOPE"])
    line.worker.start()
    try:
        rows = await line.until("prices", lambda: len(found := [row for row in line.get("/api/symbols")["items"] if row["price"]]) == 2 and found)
        assert [(row["symbol"], row["source"]) for row in rows] == [("AAPL", "yahoo_polling.AAPL"), ("MSFT", "yahoo_polling.MSFT")]
        described = await line.until("the metadata", lambda: line.get("/api/symbols/AAPL")["metadata"])
        assert described["name"] == "AAPL Inc." and described["currency"] == "USD" and described["previous_close"] and described["market_cap"]
        feeds = "/api/sources/yahoo_polling/symbols?state=unknown_symbol"
        (unknown,) = await line.until("the unknown symbol is shown", lambda: line.get(feeds)["items"])
        assert unknown["symbol"] == "NOPE" and unknown["reason"] == "Yahoo does not know NOPE"
        spent = await line.until("the budget", line.spent_today)
        assert 3 <= spent <= len(server.requests)
        await put(line.settings, "gaps", [gap_of("AAPL", 3)])
        archive = FileStore(tmp_path / "archive")
        await line.until("the gap is repaired", lambda: check(archive).repaired == 3)
        server.fail("rate_limited")
        await line.until("the limit is shown", lambda: "429" in line.get("/api/sources")["items"][0]["last_error"])
        await asyncio.to_thread(line.worker.stop)
    finally:
        await asyncio.to_thread(line.worker.close)
        await server.stop()
    report = check(FileStore(tmp_path / "archive"))
    assert report.faults == [] and report.repaired == 3
    assert "Traceback" not in line.worker.log.read_text()

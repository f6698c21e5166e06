"""Alpha Vantage on real Kafka, against its stand-in server: the day's requests over restarts and two workers, a wrong key, and where the key must not be."""

from __future__ import annotations

import asyncio
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from stockstream import cli
from stockstream.kafka.admin import producer_options, topic_specs
from stockstream.settings import load_settings
from stockstream.transforms.partitioning import home_partition
from stockstream.web.views import OPERATIONS
from tests.faults.workers import Worker, wait_until
from tests.kafka import Cluster
from tests.patience import PATIENCE_S
from tests.standins.alpha_vantage import Running, StandIn

SECRET, WRONG = "QX7PLM2ZK9TREWQ1", "WRONGKEY12345678"
PARTITIONS = 2
LONGEST_S = 40.0
SYMBOLS = [f"S{number}" for number in range(40)]


class Line:
    """Workers with the source, and the stand-in that they use."""

    def __init__(self, where: str, folder: Path, prefix: str, stack: ExitStack) -> None:
        self.standin = StandIn(key=SECRET)
        self.url = stack.enter_context(Running(self.standin)).url
        self.folder, self._stack = folder, stack
        self.own = {
            "STOCKSTREAM_BROKER": where, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_ARCHIVE": "none", "STOCKSTREAM_MODELS": f"file://{folder}/models",
            "STOCKSTREAM_STATE_DIR": str(folder / "state"), "STOCKSTREAM_PARTITIONS": str(PARTITIONS), "STOCKSTREAM_SOURCE": "alpha_vantage",
            "STOCKSTREAM_ALPHA_VANTAGE_URL": self.url, "STOCKSTREAM_ALPHA_VANTAGE_BUDGET": "2/s,25/d", "STOCKSTREAM_ALPHA_VANTAGE_KEY": SECRET,
        }  # fmt: skip
        self.settings = load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in self.own.items()})

    def worker(self, name: str, **more: str) -> Worker:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("STOCKSTREAM_")} | self.own | more
        worker = Worker(name, environment, self.folder, "")
        self._stack.callback(worker.close)
        return worker.start()

    def publish(self, messages: dict[str, str]) -> None:
        """Puts symbols on the watchlist: source by symbol."""

        async def send() -> None:
            producer = AIOKafkaProducer(**await producer_options(self.settings))
            await producer.start()
            try:
                for symbol, source in messages.items():
                    value = json.dumps({"symbol": symbol, "source": source}).encode()
                    await producer.send_and_wait(
                        self.settings.topic("watchlist"), value, key=symbol.encode(), partition=home_partition(symbol, PARTITIONS)
                    )
            finally:
                await producer.stop()

        asyncio.run(send())

    def everything_in_kafka(self) -> str:
        """All keys, values and headers of all topics of this test."""

        async def read() -> str:
            consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.bootstrap_servers, group_id=None, auto_offset_reset="earliest")
            await consumer.start()
            try:
                places = [TopicPartition(spec.name, number) for spec in topic_specs(self.settings) for number in range(spec.partitions)]
                consumer.assign(places)
                ends = await consumer.end_offsets(places)
                found: list[str] = []
                while any([await consumer.position(place) < end for place, end in ends.items()]):
                    for records in (await consumer.getmany(timeout_ms=300)).values():
                        found += [f"{record.key!r} {record.value!r} {record.headers!r}" for record in records]
                return "\n".join(found)
            finally:
                await consumer.stop()

        return asyncio.run(asyncio.wait_for(read(), 60))


def get(worker: Worker, path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}{path}", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        return str(error.read().decode())


def source(worker: Worker, name: str = "alpha_vantage") -> dict[str, Any]:
    return next(one for one in json.loads(get(worker, "/api/pipeline"))["sources"] if one["source"] == name)


@pytest.fixture
def line(kafka: Cluster, tmp_path: Path, prefix: str) -> Iterator[Line]:
    with ExitStack() as stack:
        yield Line(kafka.bootstrap, tmp_path, prefix, stack)


def test_exactly_25_requests_over_restarts_and_two_workers_and_the_key_is_nowhere(line: Line) -> None:
    first = line.worker("first", STOCKSTREAM_SYMBOLS=",".join(SYMBOLS))
    first.wait_ready()
    wait_until(lambda: len(line.standin.requests) >= 5, LONGEST_S, "the first requests")
    first.stop()
    made = len(line.standin.requests)
    assert made < 25
    workers = [first.start(), line.worker("second")]
    for worker in workers:
        worker.wait_ready()
    wait_until(lambda: len(line.standin.requests) >= 25, LONGEST_S, "all 25 requests")
    workers[1].kill()
    workers[1].wait_ready()
    wait_until(lambda: "spent" in source(workers[0])["reason"], LONGEST_S, "the state gives the reason")
    time.sleep(3)
    asked = [request["symbol"] for request in line.standin.requests]
    assert len(asked) == 25 == len(set(asked)) and not any(request["error"] for request in line.standin.requests)

    paths = [path for path in ("/", "/metrics", "/api/sources", *(operation.path for operation in OPERATIONS)) if "events" not in path]
    shown = "\n".join(get(worker, path.replace("{symbol}", asked[0]).replace("{source}", "alpha_vantage")) for worker in workers for path in paths)
    for worker in workers:
        worker.stop()
    logged = "\n".join(worker.text() for worker in workers)
    for what in (shown, logged, line.everything_in_kafka()):
        assert SECRET not in what and len(what) > 1_000
    assert asked[0] in line.everything_in_kafka() and "Traceback" not in logged


def test_a_wrong_key_stops_that_source_alone(line: Line) -> None:
    worker = line.worker("wrong", STOCKSTREAM_SOURCE="simulated,alpha_vantage", STOCKSTREAM_SYMBOLS="ZIWEC,BAQEX", STOCKSTREAM_ALPHA_VANTAGE_KEY=WRONG)
    worker.wait_ready()
    line.publish({"IBM": "alpha_vantage"})
    stopped = wait_until(lambda: "key is wrong" in (state := source(worker))["reason"] and state, LONGEST_S, "the source has a reason")
    assert stopped["next_attempt"] is None and stopped["state"] in ("failed", "stopped")
    before = json.loads(get(worker, "/api/pipeline"))["totals"].get("ticks_accepted", 0)
    wait_until(lambda: json.loads(get(worker, "/api/pipeline"))["totals"].get("ticks_accepted", 0) > before + 10, LONGEST_S, "the other source's ticks")
    assert source(worker, "simulated")["state"] == "running"
    assert line.standin.refused_keys == 1 and WRONG not in worker.text() + get(worker, "/api/pipeline") + line.everything_in_kafka()
    assert worker.exits == []


def test_minutes_of_the_past_become_files_and_count(line: Line, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name, value in (line.own | {"STOCKSTREAM_ALPHA_VANTAGE_BUDGET": "5/s,3/d"}).items():
        monkeypatch.setenv(name, value)
    wanted = ["backfill", "IBM", "brk.b", "--month", "2024-05", "--out", str(tmp_path / "bars")]
    assert cli.run(wanted) == 0
    assert "780 bars from 2024-05-01 09:30:00 to 2024-05-02 15:59:00 (US/Eastern)" in capsys.readouterr().out
    assert [path.name for path in sorted((tmp_path / "bars" / "2024-05").iterdir())] == ["intraday_1min_BRK-B.csv", "intraday_1min_IBM.csv"]
    assert cli.run(["backfill", "MSFT", "AAPL", "--out", str(tmp_path / "bars")]) == 1
    assert "all 3 requests of the day to alpha_vantage are spent" in capsys.readouterr().err
    assert [request["symbol"] for request in line.standin.requests] == ["IBM", "BRK-B", "MSFT"]

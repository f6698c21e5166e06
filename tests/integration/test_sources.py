"""A worker's sources on real Kafka: one that fails, records of the watchlist that nobody can use, and what is simulated where nobody names symbols."""

from __future__ import annotations

import asyncio
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from stockstream.kafka.admin import producer_options
from stockstream.settings import load_settings
from stockstream.sources.simulated import default_symbols
from stockstream.transforms.partitioning import home_partition
from tests.faults.sabotage import SWITCH
from tests.faults.workers import Worker, wait_until
from tests.kafka import Cluster
from tests.patience import PATIENCE_S

PARTITIONS = 2
LONGEST_S = 30.0


class Line:
    """A worker with the simulated source."""

    def __init__(self, where: str, folder: Path, prefix: str) -> None:
        self.switch = folder / "switch"
        own = {
            "STOCKSTREAM_BROKER": where, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_ARCHIVE": "none", "STOCKSTREAM_MODELS": f"file://{folder}/models",
            "STOCKSTREAM_STATE_DIR": str(folder / "state"), "STOCKSTREAM_SESSION_TIMEOUT_S": "120", "STOCKSTREAM_SOURCE": "simulated",
            "STOCKSTREAM_PARTITIONS": str(PARTITIONS),
        }  # fmt: skip
        self.settings = load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in own.items()})
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | own | {SWITCH: str(self.switch)}
        self.worker = Worker("worker", environment, folder, "source")

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.worker.port}{path}", timeout=PATIENCE_S) as answer:
            return json.loads(answer.read()) if path.startswith("/api/") else answer.read().decode()

    def source(self) -> dict[str, Any]:
        (source,) = self.get("/api/pipeline")["sources"]
        return dict(source)

    def until_source_is(self, state: str) -> dict[str, Any]:
        return dict(wait_until(lambda: (source := self.source())["state"] == state and source, LONGEST_S, f"the source is {state}"))

    def accepted(self) -> int:
        return int(self.get("/api/pipeline")["totals"].get("ticks_accepted", 0))

    def until_ticks_come(self, more: int) -> None:
        wanted = self.accepted() + more
        wait_until(lambda: self.accepted() >= wanted, LONGEST_S, f"{more} ticks more")

    def publish(self, topic: str, messages: list[tuple[bytes | None, bytes, int]]) -> None:
        """(key, value, partition) each, in order."""

        async def send() -> None:
            producer = AIOKafkaProducer(**await producer_options(self.settings))
            await producer.start()
            try:
                for key, value, partition in messages:
                    await producer.send_and_wait(self.settings.topic(topic), value, key=key, partition=partition)
            finally:
                await producer.stop()

        asyncio.run(send())


@pytest.fixture
def line(kafka: Cluster, tmp_path: Path, prefix: str) -> Iterator[Line]:
    line = Line(kafka.bootstrap, tmp_path, prefix)
    line.worker.start()
    try:
        line.worker.wait_ready()
        yield line
        assert line.worker.exits == [], line.worker.last_words()
        line.worker.stop()
    finally:
        line.worker.close()


def watch(symbol: str) -> tuple[bytes, bytes, int]:
    return symbol.encode(), json.dumps({"symbol": symbol, "source": "simulated"}).encode(), home_partition(symbol, PARTITIONS)


def test_a_source_that_fails_and_records_that_nobody_can_use_stop_nobody(line: Line) -> None:
    assert line.until_source_is("running")["symbols"] == 20              # nobody has named any
    assert {symbol["symbol"] for symbol in wait_until(lambda: line.get("/api/symbols")["items"], LONGEST_S, "symbols")} <= set(default_symbols(20))

    line.switch.write_text("on")
    failed = line.until_source_is("failed")
    assert failed["reason"].startswith("ZeroDivisionError: SABOTAGE: the key is wrong (at ") and failed["failures"] >= 1
    assert 'stockstream_source_up{source="simulated"} 0.0' in line.get("/metrics")
    before = line.accepted()
    now = wait_until(lambda: line.source()["failures"] >= 3 and line.source(), LONGEST_S, "it is tried again")
    assert now["state"] == "failed" and now["since"] == failed["since"]
    home = home_partition("MINE", PARTITIONS)
    tick = {"symbol": "MINE", "price": 5.0, "size": 1, "source": "mine", "event_time": now["since"]}
    line.publish("ticks.raw", [(b"MINE", json.dumps(tick).encode(), home)])
    wait_until(lambda: line.accepted() > before, LONGEST_S, "another producer's ticks go on through the worker's other agents")
    assert line.worker.text().count("source simulated is failed") == 1

    line.switch.unlink()
    recovered = line.until_source_is("running")
    assert recovered["next_attempt"] is None and recovered["reason"] == "" and recovered["since"] >= failed["since"]
    line.until_ticks_come(40)

    deep = b'{"symbol":"DEEP","source":"simulated","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    bad = [
        (b"A" * 33, json.dumps({"symbol": "A" * 33, "source": "simulated"}).encode(), 0), (b"DEEP", deep, 0), (b"\xff", b"{}", 1), (b"X", b"not json", 1),
        (b" B", json.dumps({"symbol": " B", "source": "simulated"}).encode(), 0), (b"C", json.dumps({"symbol": "C", "source": "else"}).encode(), 1),
        (b"D", json.dumps({"symbol": "E", "source": "simulated"}).encode(), 0),
    ]  # fmt: skip
    line.publish("watchlist", [*bad, watch("LAST")])
    wait_until(lambda: line.source()["symbols"] == 21, LONGEST_S, "the good record behind the bad ones counts")
    wait_until(lambda: any(symbol["symbol"] == "LAST" for symbol in line.get("/api/symbols?q=LAST")["items"]), LONGEST_S, "its ticks come")
    text = line.get("/metrics")
    counted = [float(row.rsplit(" ", 1)[1]) for row in text.splitlines() if row.startswith('stockstream_records_skipped_total{') and 'topic="watchlist"' in row]
    assert sum(counted) == len(bad)
    assert "skipped, invalid_symbol: " in line.worker.text()

"""Symbols that are behind the others of their source, and producers whose clocks are wrong, through a live worker."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from stockstream.kafka.client import client_options
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.settings import Settings
from tests import backtests
from tests.faults.workers import wait_until
from tests.integration.test_backtest import line_of, published
from tests.integration.test_line import LONGEST_S, running, wait_for
from tests.kafka import Cluster

CASE = Path(__file__).parents[1] / "fixtures" / "cases" / "slow_symbol_in_a_fast_source.jsonl"
SECONDS = 130


@pytest.mark.kafka
def test_a_slow_symbol_in_a_fast_source_is_looked_at_and_scored(kafka: Cluster, tmp_path: Path) -> None:
    values: list[tuple[int, bytes | None]] = [(0, json.dumps(json.loads(line)["value"]).encode()) for line in CASE.read_text().splitlines()]
    assert len(values) == 2 * SECONDS + 1, "the last is a punctuation"
    own = {"STOCKSTREAM_TOPIC_PREFIX": f"late{os.getpid()}.", "STOCKSTREAM_PARTITIONS": "1"}
    with running(kafka.bootstrap, tmp_path, **own) as line:
        line.send(values)
        wait_for(line, 2 * SECONDS)
        wait_until(lambda: line.metric("stockstream_predictions_total") >= 2 * SECONDS, LONGEST_S, "both symbols predicted each second", 0.5)
        (lateness,) = line.get("/api/pipeline")[1]["lateness"]
        assert (lateness["source"], lateness["lateness_ms"], lateness["slow_symbols"], lateness["rejected_late"]) == ("s", 200, ["SLOW"], 0)
        assert lateness["late_rows"] >= SECONDS - 1 and line.metric("stockstream_source_late_rows_total") == lateness["late_rows"]
        assert 1_300 <= lateness["lag_ms"]["p99"] <= 1_430 and lateness["suggested_lateness_ms"] in (1_100, 1_200)

        backtests.write(tmp_path / "log.jsonl", [line_of(record) for record in line.read("ticks.raw")])
        line.command("backtest", str(tmp_path / "log.jsonl"), "--out", "again", "--no-close")
        again = backtests.read(line.folder / "again")
        wait_until(lambda: len(published(line)["outcomes"]) >= len(again["outcomes"]), LONGEST_S, "outcomes", 1.0)
        line.worker.stop()
        live = published(line)
    opened = [alert for alert in live["alerts"].values() if alert["state"] == "opened" and alert["rule"] == "price_drop"]
    assert [alert["symbol"] for alert in opened] == ["SLOW"]
    for symbol in ("X", "SLOW"):
        assert len({one["as_of"] for one in live["predictions"].values() if one["symbol"] == symbol}) >= SECONDS
    assert {name: len(items) for name, items in live.items()} == {name: len(items) for name, items in again.items()}


async def feed(settings: Settings, seconds: float, behind_ms: int) -> int:
    """A tick of 1 share each 0.1 s, in records whose own time is behind; returns how often sending them took so long that the feed may seem quiet."""
    producer = AIOKafkaProducer(**client_options(settings))
    await producer.start()
    pauses, sent_at, begun = 0, time.monotonic(), time.monotonic()
    try:
        while time.monotonic() - begun < seconds:
            now = int(time.time() * 1000)
            value = json.dumps({"symbol": "X", "event_time": now, "price": 10.0, "size": 1, "source": "busy"}).encode()
            await producer.send_and_wait(settings.topic("ticks.raw"), value, key=b"X", partition=0, timestamp_ms=now - behind_ms)
            pauses += time.monotonic() - sent_at > 0.5
            sent_at = time.monotonic()
            await asyncio.sleep(0.1)
    finally:
        await producer.stop()
    return pauses


def test_a_producer_whose_clock_is_slow_has_no_quiet_feed(embedded: EmbeddedBroker, tmp_path: Path) -> None:
    """The embedded broker keeps the times that producers set. Only when no record arrives any more is the last second closed."""
    own = {"STOCKSTREAM_TOPIC_PREFIX": f"slow{os.getpid()}.", "STOCKSTREAM_PARTITIONS": "1"}
    with running(embedded.bootstrap, tmp_path, **own) as line:
        pauses = asyncio.run(feed(line.settings, 5.0, 1_500))
        wait_until(lambda: line.read("ticks.raw")[-1].value.startswith(b'{"punctuate"'), LONGEST_S, "the last second closed", 0.5)
        raw = line.read("ticks.raw")
        closed = [record for record in raw if record.value.startswith(b'{"punctuate"')]
        assert 1 <= len(closed) <= 1 + pauses
        ticks = len(raw) - len(closed)
        wait_until(lambda: line.rows("busy").volume.sum() == ticks, LONGEST_S, f"{ticks} shares", 0.5)
        assert line.rows("busy").revised.sum() <= pauses

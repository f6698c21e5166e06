"""Recordings in every format, and topics, on real Kafka: one command each, and the worker accepts all that it should."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.client import client_options
from stockstream.settings import Settings
from stockstream.transforms.partitioning import home_partition
from tests.integration.test_line import Line, running, wait_for
from tests.kafka import Cluster
from tests.recordings import SAMPLES

START = 1_381_132_800_000
SYMBOLS = ["TX0", "TX1", "TX2", "TX3"]                              # of no recording: the tests share a log


@pytest.fixture
def line(kafka: Cluster, tmp_path: Path) -> Any:
    with running(kafka.bootstrap, tmp_path, STOCKSTREAM_TOPIC_PREFIX=f"replay{os.getpid()}.") as line:
        yield line


def replay(line: Line, what: str) -> Any:
    """The summary of a replay without an option."""
    return json.loads(line.command("replay", what, "--json").splitlines()[0])


def test_every_make_is_accepted_by_a_worker(line: Line, tmp_path: Path) -> None:
    """Files that share a symbol follow each other in time."""
    chosen = ["alpha_vantage.csv", "databento.csv", "polygon.minutes", "binance.klines.us", "nyse_taq", "yfinance.download.csv"]
    total = 0
    for make in chosen:
        total += len(SAMPLES[make].ticks)
        summary = replay(line, str(SAMPLES[make].make(tmp_path / make)))
        assert summary["ticks"] == len(SAMPLES[make].ticks), make
    wait_for(line, total)
    assert line.read("ticks.rejected") == []
    minutes = line.rows("replay.2025-04-16.bars")
    assert set(minutes.symbol) == {"AAPL", "MSFT"} and minutes.quality.str.contains("accrued").all()


async def fill(settings: Settings) -> list[dict[str, Any]]:
    """A topic with committed and aborted transactions, whose first records were deleted: the ticks of those that were committed."""
    await ensure_topics(settings)
    topic = settings.topic("ticks.raw")
    producer = AIOKafkaProducer(**client_options(settings), transactional_id=f"{topic}-{time.time_ns()}", linger_ms=0)
    await producer.start()
    kept: list[dict[str, Any]] = []
    for batch in range(30):
        await producer.begin_transaction()
        ticks: list[dict[str, Any]] = [
            {"symbol": symbol, "source": "feed", "event_time": START + batch * 1000 + n, "price": 10.0 + n, "size": batch, "seq": batch * 10 + n}
            for n, symbol in enumerate(SYMBOLS)
        ]  # fmt: skip
        for tick in ticks:
            await producer.send(topic, json.dumps(tick).encode(), key=tick["symbol"].encode(), partition=home_partition(tick["symbol"], settings.partitions))
        if batch % 3 == 2:
            await producer.abort_transaction()
        else:
            await producer.commit_transaction()
            kept += ticks
    await producer.stop()
    admin = AIOKafkaAdminClient(**client_options(settings))
    await admin.start()
    await admin.delete_records({TopicPartition(topic, home_partition(SYMBOLS[0], settings.partitions)): RecordsToDelete(before_offset=3)})
    await admin.close()
    return kept


def test_a_topic_of_transactions_is_replayed_into_another_log(line: Line) -> None:
    first = line.settings.model_copy(update={"topic_prefix": f"replayed{os.getpid()}."})
    kept = asyncio.run(fill(first))
    summary = replay(line, f"{first.broker}/{first.topic('ticks.raw')}")
    assert abs(summary["ticks"] - len(kept)) <= 3 and summary["source"] == "replay.feed" and summary["bad_rows"] == 0
    wait_for(line, summary["ticks"])
    found = [tick for record in line.read("ticks.raw") if (tick := msgspec.json.decode(record.value)).get("symbol") in SYMBOLS]
    assert len(found) == summary["ticks"] and {tick["size"] % 3 for tick in found} == {0, 1}
    for symbol in SYMBOLS:
        times = [tick["event_time"] for tick in found if tick["symbol"] == symbol]
        assert times == sorted(set(times)) and times[-1] == max(tick["event_time"] for tick in kept if tick["symbol"] == symbol)

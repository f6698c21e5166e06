"""One of two workers that ingest is killed: the other one takes its symbols over, and the time without an owner is on record."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from stockstream.kafka.client import client_options
from stockstream.settings import Settings, load_settings
from stockstream.sources.simulated import default_symbols
from stockstream.transforms.partitioning import home_partition
from tests.faults.workers import Worker, wait_until
from tests.kafka import Cluster

PARTITIONS = 4
SESSION_S = 6.0
LONGEST_S = 60.0


async def _read(settings: Settings, topic: str, partitions: int) -> list[Any]:
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(settings.topic(topic), number) for number in range(partitions)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        records: list[Any] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for some in (await consumer.getmany(timeout_ms=200)).values():
                records += some
        return records
    finally:
        await consumer.stop()


def read(settings: Settings, topic: str, partitions: int = PARTITIONS) -> list[Any]:
    return asyncio.run(_read(settings, topic, partitions))


def owned(worker: Worker) -> set[int]:
    pipeline = worker.get("/api/pipeline") or {"lag": []}
    return {row["partition"] for row in pipeline["lag"] if row["topic"].endswith("ticks.raw")}


def test_the_symbols_of_a_killed_worker_go_on_and_their_gap_is_on_record(kafka: Cluster, tmp_path: Path, prefix: str) -> None:
    own = {
        "STOCKSTREAM_BROKER": kafka.bootstrap, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_ARCHIVE": "none",
        "STOCKSTREAM_MODELS": f"file://{tmp_path}/models", "STOCKSTREAM_STATE_DIR": str(tmp_path / "state"), "STOCKSTREAM_SESSION_TIMEOUT_S": str(SESSION_S),
        "STOCKSTREAM_SOURCE": "simulated", "STOCKSTREAM_PARTITIONS": str(PARTITIONS), "STOCKSTREAM_SYMBOLS": ",".join(default_symbols(40)),
    }  # fmt: skip
    settings = load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in own.items()})
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | own
    workers = [Worker(f"worker-{number}", environment, tmp_path) for number in (1, 2)]
    try:
        for worker in workers:
            worker.start()
            worker.wait_ready()
        wait_until(lambda: sorted(len(owned(worker)) for worker in workers) == [2, 2], LONGEST_S, "both have work")
        killed, left = workers
        lost = owned(killed)
        symbols = {symbol for symbol in default_symbols(40) if home_partition(symbol, PARTITIONS) in lost}
        assert symbols
        # ten seconds of both, so that the newest rows show each symbol's pace
        wait_until(lambda: all(count >= 10 for count in counts(settings, symbols, 0).values()), LONGEST_S, "ticks of the lost symbols", 1.0)
        killed.close()
        at = int(time.time() * 1000)
        wait_until(lambda: all(count >= 3 for count in counts(settings, symbols, at + 1_000).values()), LONGEST_S, "all lost symbols are fresh again", 0.5)
        ticks = by_symbol(settings, symbols)
        for symbol in symbols:
            before = max(tick["event_time"] for tick in ticks[symbol] if tick["event_time"] <= at)
            after = [tick for tick in ticks[symbol] if tick["event_time"] > before]
            assert after[0]["event_time"] - before < (SESSION_S + 5) * 1000 * 6, "the machine may be slow; a quiet one needs session + 5 s"
            assert before - 30_000 <= after[0]["gap_from"] <= before + 999, "some of the newest seconds had no row yet"
            assert not any("gap_from" in tick for tick in after[1:])

        def recorded() -> dict[str, dict[str, Any]]:
            gaps = [json.loads(record.value) for record in read(settings, "gaps")]
            return {gap["symbol"]: gap for gap in gaps if gap["reason"] == "worker_away" and gap["to"] > at}

        found = wait_until(lambda: (gaps := recorded()).keys() >= symbols and gaps, LONGEST_S, "all gaps are on record", 0.5)
        for symbol in symbols:
            first = next(tick for tick in ticks[symbol] if tick["event_time"] == found[symbol]["to"])
            assert (found[symbol]["source"], found[symbol]["from"]) == ("simulated.1", first["gap_from"])

        def flagged(symbol: str) -> bool:
            row = left.get(f"/api/symbols/{symbol}")
            return row is not None and "gap" in str(row["last"]["quality"]).split(",")

        wait_until(lambda: all(map(flagged, symbols)), LONGEST_S, "the rows over the gap are marked")

        name = next(key.decode() for key, report in newest(settings, "sources", 1).items() if report is not None and str(left.pid) in key.decode())
        assert name.split("@")[0] == "simulated" and f":{left.port}:{left.pid}" in name

        def fresh() -> bool:
            feeds = newest(settings, "feeds", PARTITIONS)
            mine = [feeds.get(symbol.encode()) for symbol in symbols]
            return all(feed is not None and feed["state"] == "fresh" and feed["worker"] == name.split("@")[1] for feed in mine)

        wait_until(fresh, LONGEST_S, "the feeds are fresh at the other worker", 0.5)
        left.stop()
        assert newest(settings, "sources", 1)[name.encode()] is None, "a worker that ends takes its reports back"
    finally:
        for worker in workers:
            worker.close()


def by_symbol(settings: Settings, symbols: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The ticks of these symbols in the order of their event times."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in read(settings, "ticks.raw"):
        if record.key is not None and record.key.decode() in symbols:
            found[record.key.decode()].append(json.loads(record.value))
    return {symbol: sorted(ticks, key=lambda tick: int(tick["event_time"])) for symbol, ticks in found.items()}


def counts(settings: Settings, symbols: set[str], since: int) -> dict[str, int]:
    ticks = by_symbol(settings, symbols)
    return {symbol: sum(tick["event_time"] > since for tick in ticks.get(symbol, [])) for symbol in symbols}


def newest(settings: Settings, topic: str, partitions: int) -> dict[bytes, dict[str, Any] | None]:
    return {record.key: None if record.value is None else json.loads(record.value) for record in read(settings, topic, partitions)}

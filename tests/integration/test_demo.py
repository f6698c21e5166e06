"""The real demo on the embedded broker: what it archives can be asked in SQL to its end, and nobody else writes there meanwhile."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.records import WINDOWS_SCHEMA
from stockstream.settings import ARCHIVED_TOPICS, Settings
from stockstream.sinks.archive.chain import chains
from stockstream.sinks.archive.raw_objects import read_raw_object
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.stores import FileStore
from stockstream.sql.duckdb_engine import connect
from stockstream.transforms.frames import decode
from tests.faults.archived_rows import archived_topics
from tests.faults.expected import Key, of_alert, of_outcomes, of_prediction, of_rows
from tests.patience import PATIENCE_S
from tests.ports import free_port


def demo(data: Path, output: Path, *options: str) -> subprocess.Popen[bytes]:
    arguments = ["demo", "--symbols", "40", "--port", str(free_port()), "--data", str(data), *options]
    with output.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "stockstream.cli", *arguments], stdout=out, stderr=subprocess.STDOUT)


async def raw_values(settings: Settings) -> list[str]:
    """Values of all records of the raw topic."""
    partitions = [TopicPartition(settings.topic("ticks.raw"), number) for number in range(settings.partitions)]
    values: list[str] = []
    async with AIOKafkaConsumer(bootstrap_servers=settings.broker.removeprefix("kafka://")) as consumer:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        async with asyncio.timeout(PATIENCE_S):
            while len(values) < sum(ends.values()):
                for records in (await consumer.getmany(timeout_ms=100)).values():
                    values += [record.value.decode() for record in records]
    return values


async def published_rows(settings: Settings) -> dict[str, dict[Key, bytes]]:
    """By topic: what a subscriber to windows, alerts, predictions and outcomes has seen, each row once."""
    found: dict[str, dict[Key, bytes]] = {kind: {} for kind in ARCHIVED_TOPICS}
    kinds = {settings.topic(kind): kind for kind in ARCHIVED_TOPICS}
    partitions = [TopicPartition(name, number) for name in kinds for number in range(settings.partitions)]
    async with AIOKafkaConsumer(bootstrap_servers=settings.broker.removeprefix("kafka://")) as consumer:
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        empty = 0
        while empty < 3:                                                 # the embedded broker's end offsets are not exact
            some = await consumer.getmany(timeout_ms=500)
            empty = 0 if some else empty + 1
            for record in (record for records in some.values() for record in records):
                kind = kinds[record.topic]
                if kind == "windows":
                    found[kind].update(of_rows(decode(record.value, WINDOWS_SCHEMA)))
                elif kind == "outcomes":
                    found[kind].update(of_outcomes(record.value))
                else:
                    found[kind].update([of_alert(record.value) if kind == "alerts" else of_prediction(record.value)])
    return found


async def watched(settings: Settings) -> int:
    """Symbols on the watchlist that are to be brought."""
    return sum(json.loads(value)["active"] for value in (await read_compacted(settings, "watchlist")).values())


def until_it_says(process: subprocess.Popen[bytes], output: Path, pattern: str) -> None:
    deadline = time.monotonic() + 3 * PATIENCE_S
    while not re.search(pattern, output.read_text()):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)


def test_all_that_a_demo_archives_is_processed(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    first = demo(data, output)
    try:
        until_it_says(first, output, r"predictions [1-9]")
        other = demo(data, tmp_path / "other")
        assert other.wait(PATIENCE_S) == 1
        [refusal] = (tmp_path / "other").read_text().splitlines()
        assert refusal.startswith(f"stockstream: {data} is in use by process {first.pid} since ") and "--symbols 40" in refusal
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0, output.read_text()
    finally:
        first.kill()
        first.wait()
    store = FileStore(data)
    report = check(store)
    assert report.faults == [] and report.topics["windows"].rows and not any(topic.unwritten for topic in report.topics.values())
    assert [chain for chain in report.chains if chain.unprocessed or chain.processed != chain.last] == []
    records = [line for name in store.list("raw/") for line in read_raw_object(store, name)[1]]
    accepted = [line for line in records if line.value is not None and "punctuate" not in json.loads(str(line.value))]
    with connect(data) as engine:
        [(ticks, first_ms, last_ms, bars)] = engine.run(
            "SELECT (SELECT count(*) FROM ticks), (SELECT epoch_ms(min(event_time)) FROM ticks), (SELECT epoch_ms(max(event_time)) FROM ticks), "
            "(SELECT sum(ticks) FROM bars_1m)"
        ).rows()
    assert len(chains(store)) == len(report.chains) > 0
    assert ticks == bars == len(accepted) > 0
    times = [json.loads(str(line.value))["event_time"] for line in accepted]
    assert (first_ms, last_ms) == (min(times), max(times))
    assert f"archived: {ticks:,} ticks in {data}; query it with:" in output.read_text()
    assert re.search(rf"^ran \d+:\d\d: {ticks:,} ticks, ", output.read_text(), re.MULTILINE), "it archives all that the worker counted"


def test_all_that_demos_publish_is_archived_and_in_the_bars(
    embedded: EmbeddedBroker, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker outlives two demos here, so it can say what they published. The second one finds the watchlist as the first one leaves it."""
    monkeypatch.setenv("STOCKSTREAM_TOPIC_PREFIX", prefix)
    settings, data = Settings(broker=embedded.bootstrap, topic_prefix=prefix), tmp_path / "data"
    before = 0
    for run in ("first", "second"):
        output = tmp_path / run
        process = demo(data, output, "--broker", embedded.bootstrap)
        try:
            until_it_says(process, output, r"predictions [1-9]")
            assert asyncio.run(watched(settings)) == 40
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0, output.read_text()
        finally:
            process.kill()
            process.wait()
        assert asyncio.run(watched(settings)) == 0
        published = asyncio.run(raw_values(settings))
        store = FileStore(data)
        assert sorted(published) == sorted(str(line.value) for name in store.list("raw/") for line in read_raw_object(store, name)[1])
        published_ticks = sum("punctuate" not in json.loads(value) for value in published)
        with connect(data) as engine:
            [counts] = engine.run("SELECT (SELECT count(*) FROM ticks), (SELECT sum(ticks) FROM bars_1m)").rows()
        assert tuple(counts) == (published_ticks, published_ticks) and published_ticks > before, output.read_text()
        before = published_ticks
        rows = asyncio.run(published_rows(settings))
        assert archived_topics(data, rows, ()) == {kind: (set(), set(), set()) for kind in ARCHIVED_TOPICS}, output.read_text()
        assert rows["windows"] and rows["predictions"]

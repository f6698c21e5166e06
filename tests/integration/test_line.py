"""The whole line as its users run it: a worker process, the commands, real brokers, and what comes out judged from outside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from stockstream.kafka.admin import producer_options
from stockstream.kafka.client import client_options
from stockstream.records import WINDOWS_SCHEMA, Prediction
from stockstream.settings import Settings, load_settings
from stockstream.transforms import frames
from stockstream.transforms.partitioning import home_partition
from tests import oracle
from tests.faults.workers import ROOT, Failed, Worker, wait_until
from tests.kafka import Cluster
from tests.logs import generated_day, real_day
from tests.patience import PATIENCE_S

LONGEST_S = 60.0
"""What a quiet machine needs at the most; `wait_until` has more patience."""
SESSION_S = 120
"""A machine whose host stops it for seconds must not end the one worker of these tests, whose counters they read; `tests/faults` has short sessions."""


@dataclass
class Line:
    """A running worker and where its things are."""

    settings: Settings
    worker: Worker
    environment: dict[str, str]
    folder: Path

    def command(self, *arguments: str, status: int = 0) -> str:
        """Runs a `stockstream` command to its end and returns what it printed; both streams."""
        command = [sys.executable, "-m", "stockstream.cli", *arguments]
        done = subprocess.run(command, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=300)
        assert done.returncode == status, (arguments, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
        return done.stdout + done.stderr

    def get(self, path: str) -> tuple[int, Any]:
        """Status and JSON of a view."""
        status, body = self._answer(path)
        return status, json.loads(body)

    def metric(self, name: str) -> float:
        """Sum of a metric's samples."""
        text = self._answer("/metrics")[1].decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}(\{{|\s)", line))

    def _answer(self, path: str) -> tuple[int, bytes]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.worker.port}{path}", timeout=PATIENCE_S) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()
        except OSError as error:
            raise Failed(f"{path}: {error}; {self.worker.last_words()}") from None

    def read(self, topic: str) -> list[Any]:
        """All records of a topic so far, by an ordinary consumer without group."""
        return asyncio.run(self._read(topic))

    async def _read(self, topic: str) -> list[Any]:
        consumer = AIOKafkaConsumer(self.settings.topic(topic), **client_options(self.settings), auto_offset_reset="earliest")
        await consumer.start()
        try:
            out: list[Any] = []
            ends = await consumer.end_offsets(consumer.assignment())
            async with asyncio.timeout(PATIENCE_S):
                while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                    some = await consumer.getmany(timeout_ms=500)
                    out += [record for records in some.values() for record in records]
            return out
        finally:
            await consumer.stop()

    def rows(self, source: str) -> pd.DataFrame:
        """The rows of `windows` of one source: of several of one symbol and second the one with the highest offset."""
        assembler: dict[int, frames.Assembler] = {}
        whole = []
        for record in self.read("windows"):
            frame = assembler.setdefault(record.partition, frames.Assembler()).feed(frames.decode(record.value, WINDOWS_SCHEMA))
            if frame is not None:
                whole.append(frame.rows)
        table = pa.Table.from_batches(whole, schema=WINDOWS_SCHEMA).to_pandas()
        table = table[table.source == source].sort_values("offset", kind="stable")
        return table.drop_duplicates(["symbol", "second"], keep="last")

    def send(self, values: list[tuple[int, bytes | None]]) -> list[tuple[int, int]]:
        """Publishes values to partitions of ticks.raw; returns (partition, offset) of each."""

        async def publish() -> list[tuple[int, int]]:
            producer = AIOKafkaProducer(**await producer_options(self.settings))
            await producer.start()
            try:
                places = []
                for partition, value in values:
                    sent = await producer.send_and_wait(self.settings.topic("ticks.raw"), value, key=None if value is not None else b"k", partition=partition)
                    places.append((sent.partition, sent.offset))
                return places
            finally:
                await producer.stop()

        return asyncio.run(publish())


@contextlib.contextmanager
def running(where: str, folder: Path, fault: str = "", **more: str) -> Iterator[Line]:
    """One worker, with a model, which is trained if the folder has none; `more` are settings of its own."""
    own = {
        "STOCKSTREAM_BROKER": where, "STOCKSTREAM_TOPIC_PREFIX": f"line{fault}{os.getpid()}.", "STOCKSTREAM_ARCHIVE": f"file://{folder}/archive",
        "STOCKSTREAM_MODELS": f"file://{folder}/models", "STOCKSTREAM_STATE_DIR": str(folder / "state"), "STOCKSTREAM_ARCHIVE_FLUSH_S": "2",
        "STOCKSTREAM_SESSION_TIMEOUT_S": str(SESSION_S),
    } | more  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | own | {"PYTHONPATH": str(ROOT)}
    settings = load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in own.items()})
    worker = Worker("worker", environment, folder, fault)
    line = Line(settings, worker, environment, folder)
    if not (folder / "models").exists():
        line.command("train", "xgboost", "--simulated", "--symbols", "4", "--minutes", "20", "--rounds", "20")
    worker.start()
    try:
        worker.wait_ready()
        yield line
        assert worker.exits == [], f"the worker ended by itself: {worker.last_words()}"
        worker.stop()
    finally:
        worker.close()


@pytest.fixture(scope="module", params=["kafka", "embedded"])
def line(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Line]:
    """One worker on each kind of broker for all tests of this module."""
    with running(request.getfixturevalue(request.param).bootstrap, tmp_path_factory.mktemp(request.param)) as line:
        yield line


def wait_for(line: Line, accepted: float) -> None:
    """Waits until so many ticks more were judged and all partitions are read to their end."""
    judged = ("stockstream_ticks_accepted_total", "stockstream_ticks_rejected_total")
    wait_until(lambda: sum(line.metric(name) for name in judged) >= accepted, LONGEST_S, f"{accepted} ticks judged")
    wait_until(lambda: all(of["lag"] == 0 for of in line.get("/api/pipeline")[1]["lag"]), LONGEST_S, "all is read")


def ticks_of(raw: list[Any]) -> list[Any]:
    """The records but the punctuations: the replay writes one for each partition, `clean` one where a source has fallen quiet."""
    return [record for record in raw if b'"punctuate"' not in (record.value or b"")]


def replayed(line: Line, day: pd.DataFrame, path: Path, name: str) -> None:
    """Replays a file of ticks and holds rows, counts and archive to it."""
    before = line.metric("stockstream_ticks_accepted_total"), line.metric("stockstream_ticks_rejected_total")
    ticks_before = len(ticks_of(line.read("ticks.raw")))
    line.command("replay", str(path), "--speed", "max", "--source", name)
    wait_for(line, sum(before) + len(day))
    accepted, rejected = line.metric("stockstream_ticks_accepted_total") - before[0], line.metric("stockstream_ticks_rejected_total") - before[1]
    assert (accepted, rejected) == (len(day), 0)
    want = oracle.rows(day)
    rows = wait_until(lambda: (rows := line.rows(name)) is not None and len(rows) >= len(want) and [rows], LONGEST_S, f"{len(want)} rows of windows", 1.0)[0]
    assert oracle.differences(rows, want) == []
    raw = line.read("ticks.raw")
    assert len(ticks_of(raw)) - ticks_before == len(day)
    archived(line, raw)


def archived(line: Line, raw: list[Any]) -> None:
    """The archive holds each raw message exactly once, and its own proof agrees."""
    ends: dict[int, int] = {}
    for record in raw:
        ends[record.partition] = max(ends.get(record.partition, -1), record.offset)

    def complete() -> bool:
        positions = {of["partition"]: of["offset"] for of in line.get("/api/pipeline")[1]["archive"]}
        return all(positions.get(partition, -1) >= end for partition, end in ends.items())

    wait_until(complete, LONGEST_S, f"{len(raw)} raw records in the archive", 0.5)
    read = " or ".join(f'(partition = {partition} and "offset" <= {end})' for partition, end in ends.items())
    figures = 'count(*) as n, count(distinct "offset") as different, sum(length(value)) as bytes'
    query = f"select partition, {figures} from raw where {read} group by partition order by partition"
    got = json.loads(line.command("query", query, "--archive", line.settings.archive, "--format", "json"))
    want = []
    for partition in sorted(ends):
        mine = [record for record in raw if record.partition == partition]
        want.append({"partition": partition, "n": len(mine), "different": len(mine), "bytes": sum(len(record.value) for record in mine)})
    assert got == want
    line.command("verify", "--archive", line.settings.archive)


def test_a_generated_day_replayed_equals_pandas(line: Line, tmp_path: Path) -> None:
    day = generated_day(seconds=2_000)
    path = tmp_path / "generated.csv"
    day.assign(event_time=pd.to_datetime(day.event_time, unit="ms", utc=True)).to_csv(path, index=False)
    replayed(line, day, path, "replay.generated")


def test_a_worker_with_the_plain_transport_does_the_same(kafka: Cluster, tmp_path: Path) -> None:
    with running(kafka.bootstrap, tmp_path, STOCKSTREAM_PLAIN_TRANSPORT="true", STOCKSTREAM_TOPIC_PREFIX=f"plain{os.getpid()}.") as line:
        test_a_generated_day_replayed_equals_pandas(line, tmp_path)
        assert "transport plain" in line.worker.log.read_text()


def test_a_frame_that_aggregate_cannot_take_is_set_aside_and_its_neighbours_go_on(kafka: Cluster, tmp_path: Path) -> None:
    with running(kafka.bootstrap, tmp_path, "poisoned") as line:
        home = home_partition("POISON", line.settings.partitions)
        names = [f"N{number}" for number in range(200)]
        near = next(name for name in names if home_partition(name, line.settings.partitions) == home)
        far = next(name for name in names if home_partition(name, line.settings.partitions) != home)

        def send(symbol: str, price: float) -> None:
            tick = {"symbol": symbol, "event_time": int(time.time() * 1000), "price": price, "size": 7, "source": f"of {symbol}"}
            line.send([(home_partition(symbol, line.settings.partitions), json.dumps(tick).encode())])

        def shows(symbol: str, price: float) -> None:
            wait_until(lambda: f'"price": {price}' in json.dumps(line.get(f"/api/symbols/{symbol}")[1]), LONGEST_S, f"{symbol} at {price}")

        for price in (11.5, 12.5):
            send(near, price)
            shows(near, price)
        send("POISON", 5.0)
        aside = wait_until(lambda: line.get("/api/pipeline")[1]["set_aside"], LONGEST_S, "the frame is set aside")
        assert [(one["topic"], one["partition"], one["agent"]) for one in aside] == [(line.settings.topic("ticks.clean"), home, "aggregate")]
        assert "POISON" in aside[0]["reason"] and aside[0]["offset"] > 0
        for price in (13.5, 14.5):
            send(near, price)
            send(far, price)
            shows(near, price)
            shows(far, price)
        assert line.get("/api/symbols/POISON")[0] == 404
        assert line.metric("stockstream_records_set_aside_total") == 1
        assert line.worker.exits == []
        detail = line.get(f"/api/symbols/{near}/bars")[1]["items"]
        assert [bar["close"] for bar in detail] == [11.5, 12.5, 13.5, 14.5], "nothing of the neighbour is lost or counted twice"


def test_a_second_replay_of_the_same_file_is_refused_in_words(line: Line, tmp_path: Path) -> None:
    day = generated_day(seconds=2_000)
    path = tmp_path / "generated.csv"
    day.assign(event_time=pd.to_datetime(day.event_time, unit="ms", utc=True)).to_csv(path, index=False)
    output = line.command("replay", str(path), "--speed", "max", "--source", "replay.generated", status=1)
    assert "--rebase" in output and "--prefix" in output


def test_the_real_day_replayed_equals_pandas(line: Line) -> None:
    path, day = real_day()
    assert len(day) == 388_417
    replayed(line, day, path, "replay.day")


def test_predictions_are_json_that_an_ordinary_consumer_reads(line: Line) -> None:
    records = wait_until(lambda: line.read("predictions"), LONGEST_S, "predictions")
    seen = set()
    for record in records:
        prediction = msgspec.json.decode(record.value, type=Prediction)
        assert record.key.decode() == prediction.symbol
        assert record.partition == home_partition(prediction.symbol, line.settings.partitions)
        assert ("schema_version", b"1") in record.headers
        assert prediction.id == f"{prediction.symbol}-{prediction.as_of}-{prediction.model}-{prediction.version}"
        assert [h.horizon_s for h in prediction.horizons] == [10, 60]
        assert all(0 <= h.p_up <= 1 for h in prediction.horizons)
        seen.add(prediction.id)
    assert len(seen) == len(records)


def test_bad_input_is_rejected_with_its_place_and_nobody_stumbles(line: Line) -> None:
    now = int(time.time() * 1000)
    home = home_partition("BAD1", line.settings.partitions)
    other = next(s for s in ("BAD2", "BAD3", "BAD4", "BAD5", "BAD6") if home_partition(s, line.settings.partitions) != home)
    good = {"symbol": "BAD1", "event_time": now, "price": 5.0, "size": 1, "source": "bad"}

    def tick(**changes: Any) -> bytes:
        return json.dumps(good | changes).encode()

    bad: list[tuple[str, bytes | None]] = [
        ("invalid_json", b"not json"), ("invalid_json", b"\xff\x00"), ("invalid_json", tick(price=float("nan"))), ("invalid_json", tick(price=float("inf"))),
        ("invalid_shape", b"17"), ("invalid_shape", b"[]"), ("empty_message", b""), ("empty_message", None), ("missing_field", b'{"symbol":"BAD1"}'),
        ("missing_field", tick(symbol=None)), ("invalid_type", tick(price="5")), ("out_of_range", tick(price=0)), ("out_of_range", tick(price=-1)),
        ("out_of_range", tick(size=-2)), ("out_of_range", tick(size=10**25)), ("out_of_range", tick(price=1e300)), ("out_of_range", tick(symbol="")),
        ("out_of_range", tick(symbol="B" * 33)), ("size_without_price", tick(price=None, size=3)), ("future", tick(event_time=now + 3_600_000)),
        ("wrong_partition", tick(symbol=other)), ("out_of_range", json.dumps({"punctuate": now, "source": "bad"}).encode()),
    ]  # fmt: skip
    values: list[tuple[int, bytes | None]] = []
    for _, value in bad:
        values += [(home, tick()), (home, value)]
    values.append((home, b"[" + b",".join([tick(), b'{"symbol":5}', tick()]) + b"]"))
    accepted, rejected = line.metric("stockstream_ticks_accepted_total"), line.metric("stockstream_ticks_rejected_total")
    places = line.send(values)
    expected = {(p, o, 0): reason for (p, o), reason in zip(places[1::2], [reason for reason, _ in bad], strict=False)} | {(*places[-1], 1): "invalid_type"}
    wait_until(lambda: line.metric("stockstream_ticks_rejected_total") >= rejected + len(expected), LONGEST_S, "rejections counted")
    wait_until(lambda: line.metric("stockstream_ticks_accepted_total") >= accepted + len(bad) + 2, LONGEST_S, "neighbours accepted")
    rejections = [json.loads(record.value) for record in line.read("ticks.rejected")]
    rejections = [r for r in rejections if (r["partition"], r["offset"]) in set(places)]
    assert {(r["partition"], r["offset"], r["index"]): r["reason"] for r in rejections} == expected
    assert len(rejections) == len(expected)
    originals = {place: value for place, (_, value) in zip(places, values, strict=True)}
    assert all(r.get("value") is None or r["index"] == 1 or r["value"].encode() == originals[r["partition"], r["offset"]] for r in rejections)
    assert all(r["detail"] for r in rejections)
    assert line.worker.exits == []


def test_the_views_answer_with_live_values_and_errors_say_why(line: Line) -> None:
    home = home_partition("VIEW", line.settings.partitions)
    now = int(time.time() * 1000)
    line.send([(home, json.dumps({"symbol": "VIEW", "event_time": now, "price": 12.5, "size": 7.0387, "source": "view"}).encode())])
    wait_until(lambda: line.get("/api/symbols/VIEW")[0] == 200, LONGEST_S, "the symbol is known: its quiet second was closed by a punctuation")
    status, detail = line.get("/api/symbols/VIEW")
    assert status == 200 and "12.5" in json.dumps(detail)
    status, bars = line.get("/api/symbols/VIEW/bars?interval=1s&limit=5")
    assert status == 200 and bars["items"][-1]["close"] == 12.5 and bars["items"][-1]["volume"] == 7.0387
    assert line.get("/api/symbols?q=VIEW")[1]["items"][0]["symbol"] == "VIEW"
    for path in ("/api/alerts", "/api/predictions", "/api/models", "/api/pipeline", "/healthz", "/readyz", "/openapi.json"):
        assert line.get(path)[0] == 200, path
    for path, expected in (("/api/symbols/NOSUCH", 404), ("/api/nothing", 404), ("/api/symbols/VIEW/bars?interval=2s", 400), ("/api/symbols?limit=x", 400)):
        status, error = line.get(path)
        assert status == expected and error["error"]["message"], path

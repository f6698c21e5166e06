from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaTimeoutError

from stockstream import cli
from stockstream.commands.replay import publish, read_latest
from stockstream.errors import DeliveryError
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.client import client_options
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.replaying.publisher import Publisher
from stockstream.replaying.topic import foreign_settings
from stockstream.settings import Settings
from stockstream.sources.base import Batch
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.replay import ReplaySource
from stockstream.transforms.partitioning import home_partition
from stockstream.versions import HEADERS
from tests.patience import PATIENCE_S

START = 1_381_132_800_000
SYMBOLS = ["AIG", "BAC", "IBM", "SPY", "Q"]
HOMES = {home_partition(symbol, 8) for symbol in SYMBOLS}


class FakeBuilder:
    def __init__(self, room: int) -> None:
        self.room, self.records, self.closed = room, list[tuple[bytes | None, bytes]](), False

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes, headers: Any) -> object | None:
        assert timestamp is None and headers == HEADERS and not self.closed
        if len(self.records) == self.room:
            return None
        self.records.append((key, value))
        return object()

    def close(self) -> None:
        self.closed = True

    def record_count(self) -> int:
        return len(self.records)


class FakeProducer:
    """Takes batches of `room` messages; the `fails`-th batch is not confirmed."""

    def __init__(self, room: int = 7, fails: int = -1) -> None:
        self.room, self.fails, self.sent = room, fails, 0
        self.log: dict[int, list[tuple[bytes | None, Any]]] = defaultdict(list)
        self.topics: set[str] = set()

    def create_batch(self) -> FakeBuilder:
        return FakeBuilder(self.room)

    async def send_batch(self, batch: Any, topic: str, *, partition: int) -> Awaitable[Any]:
        self.topics.add(topic)
        self.log[partition] += [(key, msgspec.json.decode(value)) for key, value in batch.records]
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.sent == self.fails:
            future.set_exception(KafkaTimeoutError())
        else:
            future.set_result(None)
        self.sent += 1
        return future


def file(folder: Path, rows: int = 100, name: str = "day.parquet") -> Path:
    table = pa.table({
        "symbol": [SYMBOLS[i * 7 % 11 % 5] for i in range(rows)], "event_time": pa.array([START + 70 * i for i in range(rows)], pa.timestamp("ms", "UTC")),
        "price": [10.0 + i for i in range(rows)], "size": list(range(rows)),
    })  # fmt: skip
    pq.write_table(table, folder / name)
    return folder / name


@pytest.mark.parametrize("frame", [0, 1, 3, 50])
@pytest.mark.parametrize("paced", [False, True])
async def test_every_tick_goes_to_its_home_in_order_and_the_last_second_is_closed(tmp_path: Path, frame: int, paced: bool) -> None:
    producer = FakeProducer()
    publisher = Publisher(producer, "raw", 8, frame)
    reported: list[int] = []
    source = ReplaySource(Recording(file(tmp_path)), "replay.day")
    closings = lambda: {(partition, source.name): newest for partition, newest in publisher.newest.items()}  # noqa: E731
    ticks = await publish(source.stream(), publisher, closings, paced=paced, advance=reported.append)
    assert ticks == sum(reported) == 100 and producer.topics == {"raw"}
    assert set(producer.log) == HOMES
    total = 0
    for partition, records in producer.log.items():
        *messages, (last_key, last) = records
        if frame:
            assert all(key is None and 1 <= len(value) <= frame for key, value in messages)
            found = [tick for _, value in messages for tick in value]
        else:
            assert all(key == value["symbol"].encode() for key, value in messages)
            found = [value for _, value in messages]
        total += len(found)
        assert {home_partition(tick["symbol"], 8) for tick in found} == {partition}
        assert [tick["price"] for tick in found] == sorted(tick["price"] for tick in found)
        assert (last_key, last) == (None, {"punctuate": found[-1]["event_time"] // 1000, "source": "replay.day"})
    assert total == 100


async def test_what_is_not_confirmed_is_an_error(tmp_path: Path) -> None:
    publisher = Publisher(FakeProducer(fails=2), "raw", 8)
    with pytest.raises(DeliveryError, match="did not confirm"):
        await publish(ReplaySource(Recording(file(tmp_path)), "s").stream(), publisher, dict, paced=False, advance=lambda _: None)


async def test_a_message_too_large_is_an_error() -> None:
    publisher = Publisher(FakeProducer(room=0), "raw", 8)
    with pytest.raises(DeliveryError, match="--frames"):
        await publisher.publish(Batch(["A"], [START], [b"{}"]))


@pytest.mark.parametrize(("arguments", "says", "code"), [
    (["none.parquet"], "no such file", 1), ([], "Missing argument", 2),
    (["x", "--speed", "fast"], "neither 'max' nor", 2), (["x", "--speed", "-1"], "neither", 2),
    (["x", "--rebase", "--speed", "60"], "leave --speed out", 2), (["x", "--frames", "0"], "--frames", 2), (["x", "--source", ""], "--source", 2),
])  # fmt: skip
def test_wrong_options_are_reported(arguments: list[str], says: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["replay", *arguments]) == code
    assert says in capsys.readouterr().err


def test_no_broker_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_BROKER", "kafka://127.0.0.1:9")
    monkeypatch.setattr("stockstream.commands.replay.BROKER_TIMEOUT_S", 0.5)
    assert cli.run(["replay", str(file(tmp_path))]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no broker answers at kafka://127.0.0.1:9" in line


@pytest.mark.parametrize(("times", "lines"), [
    ((34_200_000, 34_201_000), [
        "{path}: nothing would be accepted: no event_time is one of 1990 to 2109: as epoch milliseconds the first would be 34200000; "
        "name their unit with --unit, or the column with --columns event_time=NAME (--yes publishes them anyway)"]),
    ((4_000_000_000, 4_000_000_001), [
        "event_time is read as seconds",
        "{path}: nothing would be accepted: every event_time is in the future, the first is 2096-10-02 07:06:40 UTC: all ticks would be rejected as future; "
        "--rebase moves them to now (--yes publishes them anyway)"]),
])  # fmt: skip
def test_a_recording_of_which_nothing_would_be_accepted_stops_before_a_broker_is_asked(
    times: tuple[int, int], lines: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "day.csv"
    path.write_text("symbol,event_time,price,size\n" + "".join(f"X,{time},10.5,1\n" for time in times))
    assert cli.run(["replay", str(path)]) == 1
    assert capsys.readouterr().err.splitlines() == [f"stockstream: {line.format(path=path)}" for line in lines]


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    broker = EmbeddedBroker(tmp_path_factory.mktemp("broker") / "log")
    asyncio.run(broker.start())
    yield Settings(broker=broker.bootstrap)
    asyncio.run(broker.stop())


async def read(settings: Settings, topic: str, count: int) -> list[Any]:
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None)
    await consumer.start()
    try:
        places = [TopicPartition(settings.topic(topic), number) for number in range(settings.partitions)]
        consumer.assign(places)
        await consumer.seek_to_beginning()
        found: list[Any] = []
        async with asyncio.timeout(PATIENCE_S):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        return found
    finally:
        await consumer.stop()


def test_the_command_publishes_and_foresees_rejections(
    tmp_path: Path, settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STOCKSTREAM_BROKER", settings.broker)
    path = file(tmp_path, 500)
    assert cli.run(["replay", str(path), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["ticks"], summary["source"], summary["partitions"], summary["bad_rows"]) == (500, "replay.day", len(HOMES), 0)
    assert (summary["first_event_time"], summary["last_event_time"]) == (START, START + 499 * 70)
    records = asyncio.run(read(settings, "ticks.raw", 500 + len(HOMES)))
    assert len(records) == 500 + len(HOMES) and sum(record.key is None for record in records) == len(HOMES)
    for record in records:
        assert list(record.headers) == HEADERS and record.timestamp > START + 10**10
        assert record.key is None or home_partition(record.key.decode(), settings.partitions) == record.partition

    async def say_latest(source: str, second: int) -> None:
        producer = AIOKafkaProducer(**client_options(settings))
        await producer.start()
        for symbol in ("AIG", "BAC", "SPY"):
            value = json.dumps({"symbol": symbol, "source": source, "second": second, "close": 1.5}).encode()
            await producer.send_and_wait(settings.topic("latest"), value, key=symbol.encode(), partition=home_partition(symbol, settings.partitions))
        await producer.stop()

    asyncio.run(say_latest("replay.day", START // 1000 + 35))
    assert cli.run(["replay", str(path)]) == 1
    reported = capsys.readouterr().err
    assert "has been replayed into this log before" in reported and "--rebase" in reported and "--prefix" in reported
    asyncio.run(say_latest("simulated.1", START // 1000 + 10**6))
    assert cli.run(["replay", str(path), "--limit", "9"]) == 1
    assert "AIG belongs to simulated.1" in capsys.readouterr().err
    assert cli.run(["replay", str(path), "--limit", "9", "--yes", "--frames", "4"]) == 0
    assert "9 ticks of replay.day.first9" in capsys.readouterr().out
    assert cli.run(["replay", str(path), "--limit", "9", "--prefix", "other."]) == 0
    assert "of other.ticks.raw" in capsys.readouterr().out
    assert cli.run(["replay", str(path), "--limit", "9", "--rebase"]) == 0
    assert "replay.day.first9.rebased" in capsys.readouterr().out


def test_latest_of_an_empty_log_is_empty(settings: Settings) -> None:
    empty = settings.model_copy(update={"topic_prefix": "empty."})

    async def main() -> dict[str, Any]:
        await ensure_topics(empty)
        return await read_latest(empty)

    assert asyncio.run(main()) == {}


@pytest.mark.parametrize(("url", "line"), [
    ("kafka://127.0.0.1:9", "kafka://127.0.0.1:9 is not kafka://host:port/topic"),
    ("kafka://127.0.0.1/ticks", "kafka://127.0.0.1/ticks is not kafka://host:port/topic"),
    ("kafka://127.0.0.1:9/a/b", "kafka://127.0.0.1:9/a/b is not kafka://host:port/topic"),
])  # fmt: skip
def test_a_topic_that_is_none_is_one_line(url: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["replay", url]) == 1
    assert capsys.readouterr().err.splitlines() == [f"stockstream: {line}"]
    assert cli.run(["bridge", "--from", url, "--format", "polygon"]) == 2
    assert f"--from: {line}" in capsys.readouterr().err


@pytest.mark.parametrize(("url", "broker"), [
    ("kafka://a:1/t", "kafka://a:1"), ("kafka://a:1,b:2/t", "kafka://a:1,kafka://b:2"), ("kafka://a:1,kafka://b:2/t", "kafka://a:1,kafka://b:2"),
    ("kafka://[::1]:9/t", "kafka://[::1]:9"),
])  # fmt: skip
def test_a_topic_may_be_on_several_brokers(url: str, broker: str) -> None:
    foreign, topic = foreign_settings(Settings(topic_prefix="p."), url)
    assert (foreign.broker, foreign.topic_prefix, topic) == (broker, "p.", "t")


@pytest.mark.slow
def test_a_topic_is_replayed_into_another_log(settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_BROKER", settings.broker)
    first = settings.model_copy(update={"topic_prefix": "first."})
    ticks: list[dict[str, Any]] = [
        {"symbol": symbol, "source": source, "event_time": START + 100 * n, "price": 10.0 + n, "size": n, "seq": n, "session": "regular", "other": [1]}
        for n, (symbol, source) in enumerate([("AIG", "a"), ("BAC", "b"), ("IBM", "a"), ("AIG", "a"), ("SPY", "b")] * 20)
    ]  # fmt: skip

    async def fill() -> None:
        await ensure_topics(first)
        producer = AIOKafkaProducer(**client_options(first))
        await producer.start()
        places = [ticks[:50], ticks[50:]]
        for values in places:
            for tick in values:
                home = home_partition(tick["symbol"], first.partitions)
                await producer.send_and_wait(first.topic("ticks.raw"), json.dumps(tick).encode(), key=tick["symbol"].encode(), partition=home)
            home = home_partition("AIG", first.partitions)
            await producer.send_and_wait(first.topic("ticks.raw"), json.dumps({"punctuate": START // 1000, "source": "a"}).encode(), partition=home)
        await producer.send_and_wait(first.topic("ticks.raw"), b"no json", partition=0)
        await producer.stop()

    asyncio.run(fill())
    url = f"{settings.broker}/first.ticks.raw"
    assert cli.run(["replay", url, "--prefix", "second.", "--json"]) == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert (summary["ticks"], summary["source"], summary["bad_rows"]) == (100, "replay.a, replay.b", 1)
    assert "left out: 2 records (punctuations)" in output.err and "partition 0, offset" in output.err and "not JSON" in output.err
    second = settings.model_copy(update={"topic_prefix": "second."})
    homes = {(home_partition(tick["symbol"], 8), tick["source"]) for tick in ticks}
    records = asyncio.run(read(second, "ticks.raw", 100 + len(homes)))
    found = [msgspec.json.decode(record.value) for record in records]
    moved = [tick for tick in found if "symbol" in tick]
    wanted = [tick | {"source": f"replay.{tick['source']}"} for tick in ticks]
    for symbol in SYMBOLS:
        assert [tick for tick in moved if tick["symbol"] == symbol] == [tick for tick in wanted if tick["symbol"] == symbol]
    assert {(record.partition, msgspec.json.decode(record.value)["source"]) for record in records if record.key is None} == {
        (partition, f"replay.{source}") for partition, source in homes}  # fmt: skip

    assert cli.run(["replay", url, "--prefix", "third.", "--from", "2013-10-07T08:00:01Z", "--symbols", "AIG", "--source", "x", "--limit", "3", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ticks"] == 3
    third = settings.model_copy(update={"topic_prefix": "third."})
    found = [msgspec.json.decode(record.value) for record in asyncio.run(read(third, "ticks.raw", 4))]
    assert [tick["source"] for tick in found] == ["x"] * 4 and [tick["event_time"] - START for tick in found[:3]] == [1000, 1300, 1500]
    assert cli.run(["replay", f"{settings.broker}/nothing"]) == 1
    assert "there is no topic nothing at" in capsys.readouterr().err
    assert cli.run(["replay", url, "--zone", "UTC"]) == 2
    assert "stockstream bridge" in capsys.readouterr().err

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaConnectionError, UnsupportedVersionError

from stockstream.metrics import Metrics
from stockstream.settings import Settings
from stockstream.transforms.frames import encode, encode_within
from stockstream.web.live import Live
from stockstream.web.tail import REACH, Tail
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.asyncio

NOW = 1_700_000_000.0


@dataclass
class Log:
    """A broker's topics: values with keys and times (epoch s) by topic and partition."""

    records: dict[TopicPartition, list[SimpleNamespace]] = field(default_factory=dict)
    up: bool = True
    by_time: bool = True
    end_lag: int = 0
    made: list[FakeConsumer] = field(default_factory=list)

    def create(self, partitions: int = 2) -> Log:
        for name in REACH:
            for p in range(partitions):
                self.records[TopicPartition("stockstream." + name, p)] = []
        return self

    def add(self, topic: str, partition: int, value: bytes | None, key: str | None = None, age_s: float = 0.0) -> None:
        records = self.records[TopicPartition("stockstream." + topic, partition)]
        records.append(SimpleNamespace(offset=len(records), value=value, key=key.encode() if key else None, timestamp=int((NOW - age_s) * 1_000)))

    def consumer(self) -> FakeConsumer:
        self.made.append(FakeConsumer(self))
        return self.made[-1]


class FakeConsumer:
    """Behaves as `AIOKafkaConsumer` does: without its broker it stays silent in `getmany` and fails when asked."""

    def __init__(self, log: Log) -> None:
        self.log, self.positions, self.assigned, self.open = log, dict[TopicPartition, int](), list[TopicPartition](), False

    def answer(self) -> None:
        if not self.log.up:
            raise KafkaConnectionError("nobody listens")

    async def start(self) -> None:
        self.answer()
        self.open = True

    async def stop(self) -> None:
        self.open = False
        if not self.log.up:
            raise asyncio.CancelledError        # as aiokafka's fetcher does when a request of its own is under way

    async def topics(self) -> set[str]:
        self.answer()
        return {tp.topic for tp in self.log.records}

    def assign(self, partitions: list[TopicPartition]) -> None:
        self.assigned = partitions

    def partitions_for_topic(self, topic: str) -> set[int] | None:
        return {tp.partition for tp in self.log.records if tp.topic == topic} or None

    async def beginning_offsets(self, partitions: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        self.answer()
        return dict.fromkeys(partitions, 0)

    async def end_offsets(self, partitions: list[TopicPartition]) -> Mapping[TopicPartition, int]:
        return {tp: max(len(self.log.records[tp]) - self.log.end_lag, 0) for tp in partitions}

    async def offsets_for_times(self, timestamps: dict[TopicPartition, int]) -> Mapping[TopicPartition, Any]:
        if not self.log.by_time:
            raise UnsupportedVersionError("no such request")
        found = {}
        for tp, time in timestamps.items():
            newer = [record for record in self.log.records[tp] if record.timestamp >= time]
            found[tp] = SimpleNamespace(offset=newer[0].offset) if newer else None
        return found

    def seek(self, partition: TopicPartition, offset: int) -> None:
        assert partition in self.assigned
        self.positions[partition] = offset

    async def position(self, partition: TopicPartition) -> int:
        return self.positions[partition]

    async def getmany(self, *, timeout_ms: int, max_records: int) -> Mapping[TopicPartition, Sequence[Any]]:
        await asyncio.sleep(0.001)
        fetched = {}
        for tp, position in self.positions.items() if self.log.up else ():
            records = self.log.records[tp][position : position + max_records]
            if records:
                fetched[tp] = records
                self.positions[tp] = records[-1].offset + 1
        return fetched


async def until(condition: Callable[[], Any], deadline_s: float = PATIENCE_S) -> None:
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.002)


def tail_of(log: Log, live: Live, metrics: Metrics | None = None) -> Tail:
    return Tail(Settings(), live, metrics or Metrics(), consumer=log.consumer, now=lambda: NOW, retry_s=(0.001,), quiet_s=0.02)


async def test_all_partitions_of_all_topics_are_read(make: Any) -> None:
    log, live = Log().create(), Live()
    log.add("symbols", 1, b'{"name": "Acme"}', "META", age_s=1e6)
    log.add("latest", 1, msgspec.json.encode(make.row("QUIET")), "QUIET", age_s=1e6)
    log.add("latest", 1, None, "GONE", age_s=1e6)
    log.add("alerts", 0, make.alert(symbol="ALERT"), "ALERT", age_s=80_000)
    log.add("windows", 0, encode(make.frame([make.row("A")])))
    log.add("windows", 1, encode(make.frame([make.row("B", partition=1)])))
    log.add("predictions", 1, make.prediction("B"), "B")
    log.add("outcomes", 0, msgspec.json.encode([make.outcome(0.1, 0.1)]))
    log.add("watchlist", 0, b'{"symbol": "W", "source": "yahoo"}', "W", age_s=1e6)
    log.add("watchlist", 1, b'{"symbol": "V", "source": "yahoo"}', "V", age_s=1e6)
    log.add("watchlist", 1, None, "V")
    log.add("feeds", 0, b"no feed", "W")
    log.add("gaps", 1, b'{"symbol": "W", "source": "yahoo", "from": 1, "to": 2, "reason": "silent"}', "W", age_s=80_000)
    log.add("sources", 0, b"null", "yahoo@host:1")
    tail = tail_of(log, live)
    assert not tail.ready()[0]
    await tail.start()
    await until(lambda: tail.caught_up and live.outcome_counts())
    assert [item.symbol for item in live.symbols(10).items] == ["A", "ALERT", "B", "META", "QUIET"]
    assert live.predictions(10).items[0].symbol == "B"
    assert [(entry.symbol, entry.state) for entry in live.sources.entries(0)] == [("W", "waiting")]
    assert [gap.symbol for gap in live.gaps.page(9).items] == ["W"]
    assert {topic: tail.summary()["unreadable"].get(topic) for topic in ("watchlist", "feeds", "sources", "gaps")} == {
        "watchlist": None, "feeds": 1, "sources": 1, "gaps": None,
    }  # fmt: skip
    assert tail.ready() == (True, "reading")
    log.add("windows", 1, encode(make.frame([make.row("C", partition=1)])))
    await until(lambda: live.known("C"))
    await tail.stop()
    assert not log.made[0].open and tail.state == "stopped"


async def test_each_topic_is_read_from_as_far_back_as_it_says(make: Any) -> None:
    log, live = Log().create(1), Live()
    for age in (400, 299, 1):
        log.add("windows", 0, encode(make.frame([make.row(f"W{age}")])), age_s=age)
    for age in (60, 9):
        log.add("predictions", 0, make.prediction(f"P{age}"), age_s=age)
    log.add("outcomes", 0, msgspec.json.encode([make.outcome(0.1, 0.1)]), age_s=60)
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: tail.caught_up)
    assert [item.symbol for item in live.symbols(10).items] == ["P9", "W1", "W299"]
    assert live.outcome_counts() == []
    await tail.stop()


async def test_a_broker_that_cannot_tell_by_time_is_read_a_bounded_way_back(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REACH, "windows", type(REACH["windows"])(300, 2))
    log, live = Log(by_time=False).create(1), Live()
    for i in range(5):
        log.add("windows", 0, encode(make.frame([make.row(f"W{i}")])))
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: tail.caught_up)
    assert [item.symbol for item in live.symbols(10).items] == ["W3", "W4"]
    await tail.stop()


async def test_an_end_offset_that_is_too_low_costs_nothing(make: Any) -> None:
    log, live = Log(end_lag=2).create(1), Live()
    for i in range(5):
        log.add("windows", 0, encode(make.frame([make.row(f"W{i}")])))
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: live.known("W4"))
    assert len(live.symbols(10).items) == 5
    await tail.stop()


async def test_what_cannot_be_read_is_counted_and_reported_once(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    log, live, metrics = Log().create(1), Live(), Metrics()
    for _ in range(5):
        for topic in REACH:
            log.add(topic, 0, b"\xff{", "KEY")
        log.add("alerts", 0, None)
        log.add("symbols", 0, b"{}", None)
    log.add("windows", 0, encode(make.frame([make.row("GOOD")])))
    log.add("alerts", 0, make.alert(symbol="FINE"))
    tail = tail_of(log, live, metrics)
    with caplog.at_level(logging.WARNING):
        await tail.start()
        await until(lambda: live.known("GOOD") and live.known("FINE"))
        await until(lambda: tail.caught_up)
    assert tail.summary()["unreadable"] == dict.fromkeys(REACH, 5) | {"symbols": 10, "alerts": 10}
    lines = [record.message for record in caplog.records if "cannot read" in record.message]
    assert len(lines) == 12 and all("offset" in line for line in lines)
    assert b"stockstream_tail_unreadable_total" in metrics.exposition()
    await tail.stop()


async def test_a_frame_in_parts_is_put_together(make: Any) -> None:
    log, live = Log().create(1), Live()
    frame = make.frame([make.row(f"S{i:04d}", offset=7) for i in range(500)])
    messages = list(encode_within(frame, 20_000))
    assert len(messages) > 2
    for message in messages:
        log.add("windows", 0, message)
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: tail.caught_up)
    assert len(live.symbols(1_000).items) == 500
    await tail.stop()


async def test_a_lost_broker_is_reported_and_reading_goes_on_where_it_was(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    log, live = Log().create(1), Live()
    log.add("alerts", 0, make.alert(1))
    tail = tail_of(log, live)
    with caplog.at_level(logging.INFO):
        await tail.start()
        await until(lambda: tail.caught_up)
        log.up = False
        await until(lambda: tail.state == "reconnecting")
        assert "nobody listens" in tail.ready()[1] and not tail.ready()[0]
        await until(lambda: len(log.made) > 5)
        log.add("alerts", 0, make.alert(2))
        log.up = True
        await until(lambda: tail.caught_up and len(live.alerts(10).items) == 2)
    assert sum("try again" in r.message for r in caplog.records) <= 2
    assert any("is back" in r.message for r in caplog.records)
    assert log.made[-1].positions[TopicPartition("stockstream.alerts", 0)] == 2
    assert not any(consumer.open for consumer in log.made[:-1])
    await tail.stop()


async def test_a_topic_made_again_is_read_from_its_start(make: Any) -> None:
    log, live = Log().create(1), Live()
    for number in range(5):
        log.add("alerts", 0, make.alert(number))
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: tail.caught_up)
    log.up = False
    await until(lambda: tail.state == "reconnecting")
    log.create(1)
    log.add("alerts", 0, make.alert(77))
    log.up = True
    await until(lambda: len(live.alerts(10).items) == 6)
    await tail.stop()


async def test_missing_topics_are_waited_for(make: Any) -> None:
    log, live = Log(), Live()
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: "waiting for the topics" in tail.ready()[1])
    assert "stockstream.windows" in tail.ready()[1]
    log.create(3)
    log.add("windows", 2, encode(make.frame([make.row("A")])))
    await until(lambda: live.known("A"))
    await tail.stop()


async def test_stop_at_any_moment(make: Any) -> None:
    log = Log().create(1)
    for moment in range(12):
        tail = tail_of(log, Live())
        await tail.start()
        await tail.start()
        for _ in range(moment):
            await asyncio.sleep(0)
        await tail.stop()
        await tail.stop()
        assert tail.state == "stopped"
    assert not any(consumer.open for consumer in log.made)


async def test_a_mistake_of_ours_costs_one_message(make: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    log, live = Log().create(1), Live()
    log.add("alerts", 0, make.alert(1))
    log.add("alerts", 0, make.alert(2))
    right = live.alert

    def wrong(data: bytes) -> None:
        monkeypatch.setattr(live, "alert", right)
        raise ZeroDivisionError("ours")

    monkeypatch.setattr(live, "alert", wrong)
    tail = tail_of(log, live)
    await tail.start()
    await until(lambda: tail.caught_up)
    assert len(live.alerts(10).items) == 1 and tail.summary()["unreadable"] == {"alerts": 1} and len(log.made) == 1
    assert any("[0]: ZeroDivisionError: ours" in record.getMessage() for record in caplog.records)
    await tail.stop()


HOSTILE: dict[str, list[tuple[str | None, bytes]]] = {
    "latest": [
        ("A", b'{"second": 1e400}'), ("A", b"[" * 100_000), ("A", b'{"symbol":"A","volume":' + b"9" * 30 + b"}"), ("A", b"\xff"), ("A", b"9" * 5_000),
    ],
    "symbols": [
        ("A", b'{"a":' * 100_000), ("A", b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"), ("A", b'{"name":"' + b"x" * 100_000 + b'"}'), (None, b"{}"),
        ("A" * 5_000, b"{}"), ("A", b'{"a":' + b"9" * 5_000 + b"}"),
    ],
    "predictions": [
        ("A", b'{"symbol":"A","as_of":' + b"9" * 30 + b',"offset":1}'), ("A", b'{"symbol":"' + b"A" * 99 + b'","as_of":1,"offset":1}'), ("A", b"null"),
        ("A", b'{"symbol":"A","as_of":1,"offset":' + b"9" * 30 + b"}"), ("A", b'{"symbol":"A","as_of":1,"offset":1,"horizons":"' + b"x" * 9_000 + b'"}'),
    ],
    "outcomes": [(None, b"[[[["), (None, b"[{}]"), (None, b"[" * 100_000)],
    "alerts": [("A", b"{}"), ("A", b"[" * 100_000), ("A", b'{"window":' + b"[" * 100_000)],
    "windows": [(None, b"no"), (None, b""), (None, b"\xff\xff\xff\xff\x00\x00\x00\x00")],
}  # fmt: skip


async def test_one_hostile_message_is_counted_and_reported_once_a_reason_and_the_next_ones_are_read(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    log, live, metrics = Log().create(), Live(), Metrics()
    row = make.row("A")
    wrong = [row | {"volume": 1 << 70}, row | {"second": 1 << 40}, row | {"source": "x" * 5_000}, row | {"symbol": ""}, row | {"partition": -1}]
    hostile = HOSTILE | {"latest": HOSTILE["latest"] + [("A", msgspec.json.encode(values)) for values in wrong]}
    alert = msgspec.json.decode(make.alert(symbol="A"))
    hostile |= {"alerts": hostile["alerts"] + [("A", msgspec.json.encode(alert | change)) for change in (
        {"window": {"a": "x" * 5_000}}, {"opened_at": 1 << 70}, {"as_of": -1}, {"symbol": "A" * 40}, {"id": "x" * 5_000},
    )]}  # fmt: skip
    outcome = msgspec.to_builtins(make.outcome(0.1, 0.1))
    hostile |= {"outcomes": hostile["outcomes"] + [(None, msgspec.json.encode([outcome, outcome | change])) for change in (
        {"predicted_return": 1e300}, {"horizon_s": 1 << 70}, {"as_of": -5}, {"model": "x" * 5_000}, {"symbol": ""},
    )]}  # fmt: skip
    for topic, messages in hostile.items():
        for key, value in messages:
            for partition in range(2):
                log.add(topic, partition, value, key)
    before = {name: repr(value) for name, value in vars(live).items()}
    tail = tail_of(log, live, metrics)
    await tail.start()
    with caplog.at_level(logging.WARNING):
        await until(lambda: tail.caught_up)
    assert tail.summary()["unreadable"] == {topic: 2 * len(messages) for topic, messages in hostile.items()}
    assert tail.state == "reading" and len(log.made) == 1, "the reader has not begun anew"
    assert {name: repr(value) for name, value in vars(live).items()} == before, "nothing of it was taken"
    reported = [record.getMessage() for record in caplog.records]
    assert len(reported) == len(set(reported)) < 25 and all(len(line) < 500 and "cannot read offset" in line for line in reported)
    log.add("symbols", 0, b'{"name":"Acme"}', "A")
    log.add("latest", 0, msgspec.json.encode(row), "A")
    log.add("predictions", 0, make.prediction("A"), "A")
    log.add("outcomes", 0, msgspec.json.encode([outcome]))
    log.add("alerts", 0, make.alert(symbol="A"), "A")
    await until(lambda: live.open_alerts() and live.outcome_counts() and live.predictions(1).items and live.symbols(1, search="acme").items)
    detail = live.symbol("A")
    assert detail is not None and msgspec.to_builtins(detail.last) == row
    await tail.stop()


async def test_messages_of_a_newer_stockstream_are_counted_reported_once_and_used(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    log, live, metrics = Log().create(), Live(), Metrics()
    for number, version in enumerate((b"1", b"2", b"7", b"x", b"", b"9" * 5_000, b"-3")):
        log.add("symbols", 0, b'{"name":"Acme","of_version_2":[1]}', f"S{number}")
        log.records[TopicPartition("stockstream.symbols", 0)][-1].headers = [("other", b"9"), ("schema_version", version)]
    tail = tail_of(log, live, metrics)
    await tail.start()
    await until(lambda: tail.caught_up)
    assert len(live.symbols(10, search="acme").items) == 7
    assert metrics.totals()["newer_messages"] == 2
    assert [record.getMessage() for record in caplog.records if "newer" in record.getMessage()] == [
        "symbols: a newer stockstream wrote messages here (schema version 2, this worker has 1). New fields are ignored: upgrade this worker"
    ]
    await tail.stop()

"""What the driver of a source adds to it: gaps, reports, and that nothing a source does or leaves undone disturbs another."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from stockstream.errors import DeliveryError, FencedError, SourceError
from stockstream.metrics import Metrics
from stockstream.records import Budget, Connection, Gap
from stockstream.settings import Settings
from stockstream.sources import driver as driving
from stockstream.sources.base import Batch, FeedNote, Health, SourceUnavailable, SymbolInfo
from stockstream.sources.feeds import LEAST_PAUSE_MS
from stockstream.sources.health import REMIND_MS
from stockstream.sources.ingestion import Ingest
from stockstream.sources.takeover import Newest
from stockstream.transforms.partitioning import home_partition
from tests.contracts.source import FakeClock
from tests.unit.sources.test_ingestion import ALL, Feed, Wire, failing, stop, until, watch

START = 1_750_000_000_000


@dataclass
class Session:
    state: str
    since: int | None = None
    until: int | None = None


def tick(symbol: str, time: int, source: str = "feed") -> bytes:
    return json.dumps({"symbol": symbol, "event_time": time, "price": 1.0, "size": 1, "source": source, "seq": time}).encode()


def batch(*ticks: tuple[str, int], gaps: Collection[Gap] = (), source: str = "feed") -> Batch:
    return Batch([s for s, _ in ticks], [t for _, t in ticks], [tick(s, t, source) for s, t in ticks], tuple(gaps))


class Given(Feed):
    """A source that yields what the test puts: a batch, or an error to raise."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: asyncio.Queue[Batch | BaseException] = asyncio.Queue()
        self.state = Health()
        self.calls: list[str] = []
        self.exchange: str | None = None

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    def health(self) -> Health:
        return self.state

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        return [SymbolInfo(symbol=symbol, source=self.name, exchange=self.exchange) for symbol in symbols]

    def stream(self) -> AsyncIterator[Batch]:
        return self._stream()

    async def _stream(self) -> AsyncIterator[Batch]:
        self.calls.append("stream")
        while True:
            item = await self.queue.get()
            if isinstance(item, BaseException):
                raise item
            yield item


class Scene:
    """An ingestion of the given sources, on a fake clock, with two watched symbols each."""

    def __init__(self, *sources: Feed, **more: Any) -> None:
        self.wire, self.clock, self.metrics = Wire(), FakeClock(START), Metrics()
        self.feed: Any = sources[0]
        named = {("feed" if number == 0 else f"other{number}"): source for number, source in enumerate(sources)}
        self.ingest = Ingest(
            Settings(), self.wire.send, clock=self.clock, sources=named, metrics=self.metrics, worker=lambda: "here:6066:7", chance=lambda: 1.0, **more,
        )  # fmt: skip
        self.ingest.assign(ALL)
        for number, kind in enumerate(named):
            for symbol in ("A", "B"):
                self.ingest.watch(*watch(symbol if number == 0 else f"{symbol}{number}", source=kind))
        self.task = asyncio.create_task(self.ingest.run())

    async def until(self, condition: Any) -> None:
        await until(condition, self.task)

    async def put(self, *items: Batch | BaseException) -> None:
        """Hands the items to the first source, each once the one before was taken."""
        before = len(self.ticks)
        await self.until(lambda: bool(self.ingest.live["feed"]))
        for item in items:
            self.feed.queue.put_nowait(item)
        wanted = before + sum(len(item) for item in items if isinstance(item, Batch))
        await self.until(lambda: len(self.ticks) >= wanted and self.feed.queue.empty())

    @property
    def ticks(self) -> list[dict[str, Any]]:
        return [value for _, _, value in self.wire.sent["stockstream.ticks.raw"]]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        return [value for _, _, value in self.wire.sent["stockstream.gaps"]]

    def state(self, kind: str = "feed") -> dict[str, Any]:
        return next(state for state in self.ingest.states() if state["source"] == kind)

    def marked(self) -> dict[tuple[str, int], int]:
        return {(tick["symbol"], tick["event_time"]): tick["gap_from"] for tick in self.ticks if "gap_from" in tick}


async def test_a_failure_that_leaves_out_ticks_is_a_gap_on_record_and_in_the_first_tick_after_it() -> None:
    scene = Scene(Given())
    await scene.put(batch(("A", START), ("B", START)), batch(("A", START + 1000), ("B", START + 1000)), SourceUnavailable("no answer"))
    await scene.put(batch(("A", START + 2000), ("B", START + 9000)), batch(("A", START + 3000), ("B", START + 10_000)))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.marked() == {("B", START + 9000): START + 1000}
    assert scene.gaps == [{"symbol": "B", "source": "feed", "from": START + 1000, "to": START + 9000, "reason": "source_away"}]
    ((partition, key, _),) = scene.wire.sent["stockstream.gaps"]
    assert (partition, key) == (home_partition("B", 8), b"B")
    assert scene.metrics.registry.get_sample_value("stockstream_gaps_total", {"source": "feed", "reason": "source_away"}) == 1


async def test_a_batch_that_is_sent_again_has_the_same_bytes_and_its_gap_once() -> None:
    scene = Scene(Given())
    await scene.put(batch(("A", START)), SourceUnavailable("no answer"))
    await scene.until(lambda: scene.feed.calls.count("stream") == 2)
    scene.wire.fail_once = DeliveryError("gone")
    await scene.put(batch(("A", START + 9000)))
    await scene.put(batch(("A", START + 9500)))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.marked() == {("A", START + 9000): START} and len(scene.gaps) == 1


async def test_a_gap_of_the_sources_own_is_carried_on_and_not_found_a_second_time() -> None:
    scene = Scene(Given())
    own = Gap(symbol="A", source="feed.LSE", from_=START + 500, to=START + 400_000, reason="halted")
    other = Gap(symbol="other", source="feed", from_=1, to=2, reason="silent")
    await scene.put(batch(("A", START)), SourceUnavailable("no answer"), batch(("B", START), ("A", START + 400_000), gaps=[own, other]))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.marked() == {("A", START + 400_000): START + 500}
    assert scene.gaps == [{"symbol": "A", "source": "feed.LSE", "from": START + 500, "to": START + 400_000, "reason": "halted"}]


async def test_the_gap_has_the_source_of_the_tick() -> None:
    scene = Scene(Given())
    await scene.put(batch(("A", START), source="feed.LSE"), SourceUnavailable("no answer"), batch(("A", START + 9000), source="feed.LSE"))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert [gap["source"] for gap in scene.gaps] == ["feed.LSE"]


async def test_silence_in_session_is_a_gap_where_the_exchange_is_known() -> None:
    feed = Given()
    feed.exchange = "NMS"
    scene = Scene(feed, sessions=SimpleNamespace(at=lambda exchange, ms: Session("regular" if exchange == "NMS" else "unknown", START - 1)))
    driver = scene.ingest._drivers["feed"]
    await scene.until(lambda: len(scene.wire.sent["stockstream.symbols"]) == 2)
    assert (found := driver.session_of("A", START)) is not None and found.state == "regular"
    await scene.put(batch(("A", START), ("B", START)), batch(("A", START + 61_000), ("B", START + 59_000)))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.marked() == {("A", START + 61_000): START}
    assert [(gap["symbol"], gap["reason"]) for gap in scene.gaps] == [("A", "silent")]


async def test_a_takeover_holds_the_symbols_back_until_their_newest_rows_are_known() -> None:
    answer: asyncio.Event = asyncio.Event()

    async def read(partitions: Collection[int]) -> dict[int, dict[str, Newest]]:
        await answer.wait()
        rows = {"A": Newest("feed", START - 5_000, 1_000.0), "B": Newest("another", START - 5_000, 1_000.0)}
        return {home_partition(symbol, 8): {symbol: row} for symbol, row in rows.items()}

    scene = Scene(Given(), read_newest=read)
    for _ in range(100):
        await asyncio.sleep(0)
    assert not scene.ingest.live["feed"]
    answer.set()
    await scene.put(batch(("A", START), ("B", START)))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.marked() == {("A", START): START - 5_000}
    assert scene.gaps == [{"symbol": "A", "source": "feed", "from": START - 5_000, "to": START, "reason": "worker_away"}]


async def test_without_sources_a_takeover_reads_nothing() -> None:
    asked: list[Collection[int]] = []

    async def read(partitions: Collection[int]) -> dict[int, dict[str, Newest]]:
        asked.append(partitions)
        return {}

    wire = Wire()
    ingest = Ingest(Settings(), wire.send, clock=FakeClock(START), sources={}, read_newest=read)
    task = asyncio.create_task(ingest.run())
    ingest.assign(ALL)
    await asyncio.sleep(0.05)
    await stop(task)
    assert asked == [] and not wire.sent


async def test_ticks_that_a_rebalance_drops_are_a_gap() -> None:
    scene = Scene(Given())
    await scene.put(batch(("A", START), ("B", START)))
    scene.ingest.release()
    scene.feed.queue.put_nowait(batch(("A", START + 2_000), ("B", START + 2_000)))
    await scene.until(scene.feed.queue.empty)
    assert len(scene.ticks) == 2
    scene.ingest.assign(set(ALL) - {home_partition("B", 8)})
    await scene.until(lambda: scene.ingest.live["feed"] == {"A"})
    await scene.put(batch(("A", START + 4_000)))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.gaps == [{"symbol": "A", "source": "feed", "from": START, "to": START + 4_000, "reason": "worker_away"}]


async def test_a_symbol_that_comes_back_to_the_watchlist_has_no_gap() -> None:
    scene = Scene(Given())
    await scene.put(batch(("A", START), ("B", START)))
    scene.ingest.watch(b"A", None)
    await scene.until(lambda: scene.ingest.live["feed"] == {"B"})
    scene.ingest.watch(*watch("A", source="feed"))
    await scene.until(lambda: scene.ingest.live["feed"] == {"A", "B"})
    await scene.put(batch(("A", START + 90_000)))
    await stop(scene.task)
    assert scene.marked() == {} and not scene.gaps


@pytest.mark.parametrize("by_source", [False, True])
async def test_what_is_missing_of_the_day_before_is_on_record_and_does_not_mark_the_new_day(by_source: bool) -> None:
    closes, opens = START + 60_000, START + 60_000_000
    source = Given()
    source.exchange = "X"
    scene = Scene(source, sessions=SimpleNamespace(
        at=lambda exchange, ms: Session("regular", START - 1_000, closes) if ms < closes else Session("regular", opens, opens + 60_000_000)
    ))  # fmt: skip
    await scene.put(batch(("A", START)))
    await scene.until(lambda: scene.ingest._drivers["feed"].session_of("A", START) is not None)
    gap = Gap(symbol="A", source="feed", from_=START, to=closes, reason="source_away")
    if by_source:
        await scene.put(batch(("A", opens + 1_000), gaps=[gap]))
    else:
        await scene.put(SourceUnavailable("no answer"), batch(("A", opens + 1_000)))
    await scene.until(lambda: bool(scene.gaps))
    await stop(scene.task)
    assert scene.marked() == {} and [(found["from"], found["to"]) for found in scene.gaps] == [(START, closes)]


async def test_a_batch_of_many_symbols_that_all_come_after_a_gap_is_marked_symbol_by_symbol() -> None:
    """Looking through all gaps for each symbol would take minutes."""
    scene = Scene(Given())
    driver = scene.ingest._drivers["feed"]
    symbols = [f"S{number}" for number in range(10_000)]
    driver.live = frozenset(symbols)
    gaps = [Gap(symbol=symbol, source="feed", from_=START - 9_000, to=START, reason="source_away") for symbol in symbols]
    began = time.process_time()
    marked = driver._mark_gaps(batch(*((symbol, START) for symbol in symbols), gaps=gaps))
    assert time.process_time() - began < 10
    assert all(b'"gap_from":' in value for value in marked.values) and len(driver.gaps) == 10_000
    await stop(scene.task)


async def test_gaps_that_the_broker_does_not_take_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(Given())
    driver = scene.ingest._drivers["feed"]
    send = scene.wire.send

    async def refuse(topic: str, partition: int, messages: Any) -> Any:
        if topic == "stockstream.gaps":
            raise DeliveryError("gone")
        return await send(topic, partition, messages)

    scene.ingest._publisher._send = refuse
    await scene.put(batch(("A", START)), SourceUnavailable("no answer"), batch(("A", START + 9000)), batch(("A", START + 9500)))
    await scene.until(lambda: scene.state()["state"] == "running")
    assert len(driver.gaps) == 1 and scene.state()["failures"] == 1
    scene.ingest._publisher._send = send
    await scene.ingest._reporter.publish_gaps()
    await stop(scene.task)
    assert len(scene.gaps) == 1 and not driver.gaps


# ---- one source leaves the others alone


@pytest.mark.parametrize("where", ["start", "stream", "describe"])
async def test_an_error_that_only_the_settings_can_mend_ends_that_source_alone(where: str, caplog: pytest.LogCaptureFixture) -> None:
    class Wrong(Given):
        async def start(self) -> None:
            await super().start()
            if where == "start":
                raise SourceError("the key is wrong", stops=True)

        async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
            if where == "describe":
                raise SourceError("the key is wrong", stops=True)
            return []

    wrong = Wrong()
    if where == "stream":
        wrong.queue.put_nowait(SourceError("the key is wrong", stops=True))
    with caplog.at_level(logging.INFO):
        scene = Scene(wrong, Feed(ticking_of("A1")))
        await scene.until(lambda: scene.state()["state"] == "stopped" and "stop" in wrong.calls and bool(scene.ticks))
        calls = list(wrong.calls)
        scene.clock.ms += REMIND_MS
        driver = scene.ingest._drivers["feed"]
        driver.health.check()
        driver.health.check()
        await scene.ingest._reporter.publish_feeds()
        await stop(scene.task)
    assert calls.count("start") == 1 and calls.count("stop") == 1 and wrong.calls == calls
    state = scene.state()
    assert (state["reason"], state["next_attempt"], state["failures"]) == ("the key is wrong", None, 1)
    assert scene.state("other1")["state"] == "running"
    assert caplog.text.count("source feed is stopped until the worker starts with other settings: the key is wrong") == 1
    assert caplog.text.count("source feed has been stopped for 300 s, until the worker starts with other settings: the key is wrong") == 1
    feeds = {feed["symbol"]: feed for _, _, feed in scene.wire.sent["stockstream.feeds"]}
    assert (feeds["A"]["state"], feeds["A"]["reason"], feeds["A1"]["source"]) == ("failed", "the key is wrong", "other1")


def ticking_of(symbol: str) -> Any:
    async def stream(feed: Feed) -> AsyncIterator[Batch]:
        while not feed.subscribed or not feed.subscribed[-1]:
            await asyncio.sleep(0)
        yield batch((symbol, START))
        await asyncio.Event().wait()

    return stream


@pytest.mark.parametrize("where", ["start", "describe", "stop"])
async def test_a_source_that_does_not_answer_fails_alone(where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Hanging(Given):
        async def hang(self, here: str) -> None:
            while where == here:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    if not self.patient:
                        return

        patient = True

        async def start(self) -> None:
            await self.hang("start")

        async def stop(self) -> None:
            await self.hang("stop")

        async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
            await self.hang("describe")
            return []

    for name in ("START_S", "DESCRIBE_S", "STOP_S"):
        monkeypatch.setattr(driving, name, 0.01)
    hanging = Hanging()
    with caplog.at_level(logging.INFO):
        scene = Scene(hanging, Feed(ticking_of("A1")))
        await scene.until(lambda: bool(scene.ticks))
        if where == "start":
            await scene.until(lambda: scene.state()["failures"] >= 2)
            assert scene.state()["reason"] == "starting it took more than 0.01 s"
        elif where == "describe":
            await scene.until(lambda: "metadata of feed could not be published: describing symbols took more than 0.01 s" in caplog.text)
        hanging.patient = where == "stop"
        await stop(scene.task)
        hanging.patient = False
    if where == "stop":
        assert "source feed did not stop cleanly: stopping it took more than 0.01 s" in caplog.text
    for task in asyncio.all_tasks() - {asyncio.current_task()}:          # those that did not react to their cancellation
        task.cancel()


async def test_a_source_starts_once_before_its_streams_and_stops_once_after_them() -> None:
    scene = Scene(Given())
    await scene.put(SourceUnavailable("one"), SourceUnavailable("two"), batch(("A", START)))
    await stop(scene.task)
    assert scene.feed.calls == ["start", "stream", "stream", "stream", "stop"]


async def test_health_that_raises_is_trouble_of_a_source_that_runs() -> None:
    class Ill(Given):
        def health(self) -> Health:
            raise ZeroDivisionError("ill")

    scene = Scene(Ill())
    await scene.put(batch(("A", START)))
    await scene.until(lambda: scene.state()["state"] == "running")
    await scene.ingest._reporter.publish_sources()
    await stop(scene.task)
    assert scene.state()["reason"].startswith("its health cannot be read: ZeroDivisionError: ill (at test_driver.py:")


# ---- reports


async def test_sources_are_reported_and_the_reports_deleted_at_the_end() -> None:
    feed = Given()
    feed.state = Health(
        trouble="one connection is down",
        connections=(Connection(name="1", state="open", symbols=2, since=START), Connection(name="2", state="closed", symbols=0, since=START, reason="reset")),
        budgets=(Budget(per="day", limit=25, left=24, resets_at=START + 1),),
    )
    scene = Scene(feed, Feed(failing(SourceError("no licence"))))
    await scene.put(batch(("A", START)))
    await scene.until(lambda: scene.state()["state"] == "running" and scene.state("other1")["failures"] == 1)
    await scene.ingest._reporter.publish_sources()
    reports = {key: value for _, key, value in scene.wire.sent["stockstream.sources"]}
    await scene.ingest.end()
    sent = len(scene.wire.sent["stockstream.sources"])
    await scene.ingest._reporter.publish_sources()
    await stop(scene.task)
    assert {partition for partition, _, _ in scene.wire.sent["stockstream.sources"]} == {0} and len(scene.wire.sent["stockstream.sources"]) == sent
    assert {key: value for _, key, value in scene.wire.sent["stockstream.sources"]} == {b"feed@here:6066:7": None, b"other1@here:6066:7": None}
    report = reports[b"feed@here:6066:7"]
    assert (report["state"], report["reason"], report["symbols"], report["worker"]) == ("running", "one connection is down", 2, "here:6066:7")
    assert [connection["state"] for connection in report["connections"]] == ["open", "closed"] and report["budgets"][0]["left"] == 24
    assert report["last_tick_at"] is not None and report["at"] >= START
    assert reports[b"other1@here:6066:7"]["last_error"] == "no licence"
    for name, label, value in (("source_connections", {"state": "open"}, 1), ("source_budget_left", {"per": "day"}, 24)):
        assert scene.metrics.registry.get_sample_value(f"stockstream_{name}", {"source": "feed"} | label) == value


async def test_feeds_follow_what_the_source_and_the_watchlist_report_of_them() -> None:
    scene = Scene(Given())
    reporter = scene.ingest._reporter
    await scene.put(batch(("A", START)))
    await scene.until(lambda: scene.state()["state"] == "running")
    scene.feed.state = Health(feeds={"B": FeedNote(state="unknown_symbol", reason="there is no B")})
    scene.clock.ms += LEAST_PAUSE_MS
    await reporter.publish_feeds()
    newest = {key: value for _, key, value in scene.wire.sent["stockstream.feeds"]}
    assert (newest[b"A"]["state"], newest[b"A"]["last_event_time"], newest[b"A"]["worker"]) == ("fresh", START, "here:6066:7")
    assert (newest[b"B"]["state"], newest[b"B"]["reason"], newest[b"B"]["last_event_time"]) == ("unknown_symbol", "there is no B", None)
    before = len(scene.wire.sent["stockstream.feeds"])
    await reporter.publish_feeds()
    assert len(scene.wire.sent["stockstream.feeds"]) == before
    scene.ingest.watch(b"A", None)
    await scene.until(lambda: scene.ingest.live["feed"] == {"B"})
    scene.ingest.assign(())
    await scene.until(lambda: not scene.ingest.live["feed"])
    await reporter.publish_feeds()
    await stop(scene.task)
    assert {key: value for _, key, value in scene.wire.sent["stockstream.feeds"][before:]} == {b"A": None}        # B's new owner reports it
    assert all(partition == home_partition(key.decode(), 8) for partition, key, _ in scene.wire.sent["stockstream.feeds"] if key)


async def test_reports_that_fail_do_not_disturb_the_ticks_and_the_fence_ends_them(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(Given())
    send = scene.wire.send

    async def refuse(topic: str, partition: int, messages: Any) -> Any:
        if topic in ("stockstream.feeds", "stockstream.sources"):
            raise DeliveryError("gone") if not fenced else FencedError("left")
        return await send(topic, partition, messages)

    fenced = False
    scene.ingest._publisher._send = refuse
    with caplog.at_level(logging.WARNING):
        await scene.put(batch(("A", START)))
        with pytest.raises(DeliveryError):
            await scene.ingest._reporter.publish_sources()
        await scene.until(lambda: "feeds and sources of this worker's sources could not be published" in caplog.text)
        await scene.until(lambda: scene.state()["state"] == "running")
    assert scene.state()["failures"] == 0
    fenced = True
    with pytest.raises(FencedError):
        await asyncio.wait_for(scene.task, 30)


async def test_a_value_without_room_for_a_field_stays_as_it_is() -> None:
    assert driving._with_gap(b'{"a":1}', 5) == b'{"a":1,"gap_from":5}'
    assert [driving._with_gap(value, 5) for value in (b"", b"{}", b"[1]", b"null")] == [b"", b"{}", b"[1]", b"null"]

from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiokafka.errors import KafkaTimeoutError, MessageSizeTooLargeError, NotEnoughReplicasError

from stockstream.errors import DeliveryError, FencedError, SourceError
from stockstream.metrics import Metrics
from stockstream.settings import Settings
from stockstream.sources import ingestion
from stockstream.sources.base import Batch, Health, SourceUnavailable, SymbolInfo
from stockstream.sources.health import REMIND_MS, SILENT_MS, STEADY_MS, UNWATCHED_MS, SourceHealth
from stockstream.sources.ingestion import Ingest
from stockstream.sources.opening import open_sources
from stockstream.sources.publishing import Messages
from stockstream.sources.simulated import default_symbols
from stockstream.transforms.partitioning import home_partition
from tests.contracts.source import FakeClock
from tests.patience import PATIENCE_S

NAMES = default_symbols(40)
ALL = range(8)


REPORTS = ("stockstream.gaps", "stockstream.feeds", "stockstream.sources")


class Wire:
    """What was sent, by topic; all deliveries can fail, or the next one that is no report."""

    def __init__(self) -> None:
        self.sent: dict[str, list[tuple[int, bytes | None, Any]]] = defaultdict(list)
        self.fail: Exception | None = None
        self.fail_once: Exception | None = None

    async def send(self, topic: str, partition: int, messages: Messages) -> Sequence[Awaitable[Any]]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        once = self.fail_once if topic not in REPORTS else None
        if (fail := self.fail or once) is not None:
            self.fail_once = None if once is not None else self.fail_once
            future.set_exception(fail)
        else:
            future.set_result(None)
            self.sent[topic] += [(partition, key, None if value is None else json.loads(value)) for key, value in messages]
        return [future]

    def ticks(self) -> list[tuple[int, str]]:
        """(second, symbol) of each tick, in order."""
        return [(tick["seq"], tick["symbol"]) for _, _, tick in self.sent["stockstream.ticks.raw"]]

    def symbols(self) -> set[str]:
        return {symbol for _, symbol in self.ticks()}


async def forever() -> AsyncIterator[Batch]:
    await asyncio.Event().wait()
    yield Batch((), (), ())


class Feed:
    """A source whose stream does what it is reported."""

    name, continuous = "feed", True

    def __init__(self, *streams: Callable[[Feed], AsyncIterator[Batch]]) -> None:
        self.streams, self.subscribed, self.describes = list(streams), list[frozenset[str]](), True

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    def health(self) -> Health:
        return Health()

    def subscribe(self, symbols: Collection[str]) -> None:
        self.subscribed.append(frozenset(symbols))

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        return [SymbolInfo(symbol=symbol, source=self.name) for symbol in sorted(symbols)] if self.describes else []

    def stream(self) -> AsyncIterator[Batch]:
        return self.streams.pop(0)(self) if self.streams else forever()


def settings(tmp_path: Path, **values: Any) -> Settings:
    return Settings(source=("simulated",), state_dir=tmp_path, **values)


def watch(symbol: str, source: str = "simulated", **more: Any) -> tuple[bytes, bytes]:
    return symbol.encode(), json.dumps({"symbol": symbol, "source": source} | more).encode()


async def until(condition: Callable[[], bool], task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            if task.done():
                task.result()
            await asyncio.sleep(0.001)


async def stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_symbol_of_our_partitions_has_a_tick_a_second_at_its_home(tmp_path: Path) -> None:
    wire, clock = Wire(), FakeClock()
    ingest = Ingest(settings(tmp_path), wire.send, clock=clock)
    ours = {home_partition(symbol, 8) for symbol in NAMES[:5]}
    ingest.assign(ours)
    for symbol in NAMES:
        ingest.watch(*watch(symbol))
    task = asyncio.create_task(ingest.run())
    mine = {symbol for symbol in NAMES if home_partition(symbol, 8) in ours}
    await until(lambda: len(wire.ticks()) >= 6 * len(mine) and len(wire.sent["stockstream.symbols"]) >= len(mine), task)
    await stop(task)
    records = wire.sent["stockstream.ticks.raw"]
    assert all(key == tick["symbol"].encode() and partition == home_partition(tick["symbol"], 8) for partition, key, tick in records)
    seconds = sorted({second for second, _ in wire.ticks()})[1:-1]
    assert len(seconds) >= 3 and seconds == list(range(seconds[0], seconds[-1] + 1))
    assert sorted(tick for tick in wire.ticks() if tick[0] in seconds) == sorted((second, symbol) for second in seconds for symbol in mine)
    reported = wire.sent["stockstream.symbols"]
    assert sorted(info["symbol"] for _, _, info in reported) == sorted(mine)
    assert all(key == info["symbol"].encode() and partition == home_partition(info["symbol"], 8) for partition, key, info in reported)


async def test_symbols_follow_partitions_and_the_watchlist(tmp_path: Path) -> None:
    wire, clock = Wire(), FakeClock()
    ingest = Ingest(settings(tmp_path), wire.send, clock=clock)
    task = asyncio.create_task(ingest.run())
    for symbol in NAMES:
        ingest.watch(*watch(symbol))
    await asyncio.sleep(0.01)
    assert not wire.ticks()
    ingest.assign(ALL)
    await until(lambda: wire.symbols() == set(NAMES), task)

    lost = home_partition(NAMES[0], 8)
    ingest.assign(set(ALL) - {lost})
    before = len(wire.ticks())
    ingest.watch(*watch(NAMES[1], active=False))
    ingest.watch(NAMES[2].encode(), None)
    ingest.watch(*watch(NAMES[3], source="none"))
    remaining = {symbol for symbol in NAMES[4:] if home_partition(symbol, 8) != lost}
    await until(lambda: ingest.live["simulated"] == remaining, task)
    assert all(home_partition(symbol, 8) != lost for _, symbol in wire.ticks()[before:])
    before = len(wire.ticks())
    await until(lambda: len(wire.ticks()) > before + 3 * len(NAMES), task)
    assert {symbol for _, symbol in wire.ticks()[before:]} == remaining
    ingest.assign(ALL)
    ingest.watch(*watch(NAMES[0]))                                       # with the partition its part of the watchlist is read again
    await until(lambda: any(symbol == NAMES[0] for _, symbol in wire.ticks()[before:]), task)
    await stop(task)
    assert len(set(wire.ticks())) == len(wire.ticks())
    assert len(wire.sent["stockstream.symbols"]) == len(NAMES)


UNUSABLE = [
    ((b"A", b"{"), "invalid_json"), ((b"A", b"[]"), "invalid_json"), ((b"A", b"\xff"), "invalid_json"), ((b"A", b""), "invalid_json"),
    ((b"A", b'{"symbol":"A"}'), "invalid_json"), ((b"A", b'{"symbol":5,"source":"simulated"}'), "invalid_json"),
    ((b"A", b'{"symbol":"A","source":"simulated","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), "invalid_json"),
    ((b"A", b"[" * 100_000), "invalid_json"), ((b"A", b'{"symbol":"\\ud800","source":"simulated"}'), "invalid_json"),
    ((b"\xff", b"{}"), "invalid_key"), ((None, b"{}"), "invalid_symbol"), (watch(""), "invalid_symbol"), (watch("A" * 33), "invalid_symbol"),
    (watch(" A"), "invalid_symbol"), (watch("A\x00"), "invalid_symbol"), (watch("\u202eA"), "invalid_symbol"), (watch("A" * 900_000), "invalid_symbol"),
    (watch("A")[:1] + watch("B")[1:], "other_key"), (watch("C", source="elsewhere"), "unknown_source"), (watch("C", source="x" * 900_000), "unknown_source"),
]  # fmt: skip


@pytest.mark.parametrize(("message", "reason"), UNUSABLE, ids=[f"{reason}-{number}" for number, (_, reason) in enumerate(UNUSABLE)])
async def test_what_the_watchlist_says_wrong_is_answered_with_its_reason_and_stops_nobody(
    message: tuple[bytes | None, bytes], reason: str, tmp_path: Path
) -> None:  # fmt: skip
    wire = Wire()
    ingest = Ingest(settings(tmp_path), wire.send, clock=FakeClock())
    ingest.assign(ALL)
    fault = ingest.watch(*message)
    assert fault is not None and fault.reason == reason and 0 < len(fault.detail) < 1_000
    assert ingest.watch(*watch("E")) is None
    task = asyncio.create_task(ingest.run())
    await until(lambda: bool(wire.ticks()), task)
    await stop(task)
    assert wire.symbols() == {"E"}


async def test_a_symbol_in_another_unicode_form_is_the_same(tmp_path: Path) -> None:
    ingest = Ingest(settings(tmp_path, symbols=("e\u0301",)), Wire().send, clock=FakeClock())
    ingest.assign(ALL)
    assert ingest.watch(*watch("e\u0301")) is None and set(ingest._watched) == {"\u00e9"} == set(settings(tmp_path, symbols=("e\u0301",)).symbols)
    ingest.watch("\u00e9".encode(), None)
    assert not ingest._watched


async def test_a_deletion_of_any_key_is_no_fault(tmp_path: Path) -> None:
    ingest = Ingest(settings(tmp_path), Wire().send, clock=FakeClock())
    assert [ingest.watch(key, None) for key in (None, b"", b"A", b"A" * 33)] == [None] * 4


async def test_the_symbols_that_a_worker_watches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingestion, "MAX_WATCHED", 100)
    ingest = Ingest(settings(tmp_path), Wire().send, clock=FakeClock())
    ingest.assign(ALL)
    faults = [ingest.watch(*watch(f"S{number}")) for number in range(1_000)]
    assert faults[:100] == [None] * 100 and {fault.reason for fault in faults[100:] if fault} == {"too_many_symbols"} and None not in faults[100:]
    assert len(ingest._watched) == 100
    assert ingest.watch(*watch("S5")) is None
    ingest.watch(b"S5", None)
    assert ingest.watch(*watch("S500")) is None
    for number in range(1_000):
        ingest.watch(*watch(f"T{number}", source=f"source {number}"))
    assert len(ingest._watched) == 100


async def test_a_partition_that_goes_takes_what_the_watchlist_reported_of_it_and_a_rebalance_does_not(tmp_path: Path) -> None:
    ingest = Ingest(settings(tmp_path), Wire().send, clock=FakeClock())
    ingest.assign(ALL)
    for symbol in NAMES:
        ingest.watch(*watch(symbol))
    ingest.release()
    assert set(ingest._watched) == set(NAMES)
    ingest.assign({0, 1})
    assert set(ingest._watched) == {symbol for symbol in NAMES if home_partition(symbol, 8) in (0, 1)}


async def test_the_settings_symbols_are_put_on_the_watchlist(tmp_path: Path) -> None:
    wire = Wire()
    await Ingest(settings(tmp_path, symbols=("A", "B")), wire.send).announce()
    sent = wire.sent["stockstream.watchlist"]
    assert sorted(sent) == sorted((home_partition(s, 8), s.encode(), {"symbol": s, "source": "simulated", "active": True}) for s in "AB")
    await Ingest(Settings(symbols=("C",)), wire.send).announce()
    assert len(wire.sent["stockstream.watchlist"]) == 2


async def test_without_symbols_in_settings_and_watchlist_some_are_simulated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def announced(held: dict[bytes, bytes], **values: Any) -> list[str]:
        async def read() -> dict[bytes, bytes]:
            return held

        wire = Wire()
        await Ingest(settings(tmp_path, **values), wire.send, read_watchlist=read).announce()
        return [watch["symbol"] for _, _, watch in wire.sent["stockstream.watchlist"]]

    with caplog.at_level(logging.WARNING):
        assert sorted(await announced({})) == sorted(default_symbols(20))
    assert "the watchlist is empty and STOCKSTREAM_SYMBOLS not set" in caplog.text
    assert await announced({b"A": b"anything"}) == []
    assert await announced({}, symbols=("B",)) == ["B"]


async def test_symbols_of_the_settings_that_are_none_are_left_out_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()
    with caplog.at_level(logging.WARNING):
        unchecked = settings(tmp_path).model_copy(update={"symbols": ("A", "B" * 33)})     # settings refuse it at the start
        await Ingest(unchecked, wire.send).announce()
        await Ingest(Settings(symbols=("C",)), wire.send).announce()
    assert [key for _, key, _ in wire.sent["stockstream.watchlist"]] == [b"A"]
    assert "symbol must have 1 to 32 characters, has 33" in caplog.text and "has no effect without a source" in caplog.text


async def test_symbols_of_a_real_market_are_announced_in_their_canonical_form(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()

    async def held() -> dict[bytes, bytes]:
        return dict([watch("B", source="simulated"), watch("C", source="alpha_vantage", active=False), (b"D", b"not json")])

    several = settings(tmp_path, symbols=("brk.b", "0700.hk", "a b c d e")).model_copy(update={"source": ("yahoo", "simulated", "alpha_vantage")})
    with caplog.at_level(logging.INFO):
        await Ingest(several, wire.send, sources={}, read_watchlist=held).announce()
    assert {(key, entry["source"]) for _, key, entry in wire.sent["stockstream.watchlist"]} >= {(b"BRK-B", "yahoo"), (b"0700.HK", "yahoo")}
    assert "belong to the first source, yahoo; use `stockstream watch add --source` for those of simulated, alpha_vantage" in caplog.text
    warned = [record.getMessage() for record in caplog.records if "the watchlist has no symbol" in record.getMessage()]
    assert warned == [
        "the watchlist has no symbol for source alpha_vantage: add some, for example with `stockstream watch add AAPL MSFT --source alpha_vantage`"
    ]


async def test_the_settings_symbols_are_announced_again_until_the_broker_takes_them(tmp_path: Path) -> None:
    wire = Wire()
    wire.fail = DeliveryError("gone")
    ingest = Ingest(settings(tmp_path, symbols=("A",)), wire.send, clock=FakeClock())
    task = asyncio.create_task(ingest.run())
    for _ in range(50):
        await asyncio.sleep(0)
    wire.fail = None
    await until(lambda: bool(wire.sent["stockstream.watchlist"]), task)
    await stop(task)


Stream = Callable[[Feed], AsyncIterator[Batch]]


def failing(error: BaseException) -> Stream:
    async def stream(feed: Feed) -> AsyncIterator[Batch]:
        raise error
        yield Batch((), (), ())

    return stream


def ticking(*seqs: int) -> Stream:
    """Ticks of A and of a symbol that nobody asked for; then silence."""

    async def stream(feed: Feed) -> AsyncIterator[Batch]:
        while not feed.subscribed or not feed.subscribed[-1]:
            await asyncio.sleep(0)
        for seq in seqs:
            yield Batch(["A", "other"], [1, 1], [b'{"seq":%d,"symbol":"A"}' % seq, b'{"seq":%d,"symbol":"other"}' % seq])
        await asyncio.Event().wait()

    return stream


class Scene:
    """One source `feed` and what becomes of it; `paused` are its states whenever somebody waited for the clock."""

    def __init__(self, *streams: Stream, describes: bool = True) -> None:
        self.wire, self.clock, self.metrics, self.feed = Wire(), FakeClock(), Metrics(), Feed(*streams)
        self.feed.describes = describes
        self.paused: list[dict[str, Any]] = []
        sleep = self.clock.sleep

        async def pause(seconds: float) -> None:
            self.paused.append(self.state)
            await sleep(seconds)

        self.clock.sleep = pause  # type: ignore[method-assign]
        self.ingest = Ingest(Settings(), self.wire.send, clock=self.clock, sources={"feed": self.feed}, metrics=self.metrics, chance=lambda: 1.0)
        self.ingest.assign(ALL)
        self.ingest.watch(*watch("A", source="feed"))
        self.task = asyncio.create_task(self.ingest.run())

    @property
    def state(self) -> dict[str, Any]:
        (state,) = self.ingest.states()
        return state

    async def until(self, condition: Callable[[], bool]) -> None:
        await until(condition, self.task)

    async def stop(self) -> None:
        await stop(self.task)

    def metric(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(f"stockstream_{name}", {"source": "feed"}) or 0.0


FAULTS = [SourceUnavailable("no answer"), SourceError("no licence"), OSError(28, "No space left on device"), KeyError("price"), RecursionError("deep"),
          MemoryError(), asyncio.CancelledError(), ExceptionGroup("several", [ValueError("x")]), AssertionError()]  # fmt: skip


@pytest.mark.parametrize("error", FAULTS, ids=[type(error).__name__ for error in FAULTS])
async def test_whatever_a_source_raises_it_alone_fails_with_its_reason_and_comes_back(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        scene = Scene(failing(error), failing(error), failing(error), ticking(1))
        begun = scene.clock.ms
        await scene.until(lambda: scene.state["state"] == "running")
        await scene.stop()
    failed = [state for state in scene.paused if state["state"] == "failed"]
    assert [state["next_attempt"] - state["since"] for state in failed] == [1_000, 1_000 + 2_000, 3_000 + 4_000]
    assert [state["failures"] for state in failed] == [1, 2, 3] and {state["reason"] for state in failed} == {failed[0]["reason"]} != {""}
    assert scene.clock.ms - begun >= 1_000 + 2_000 + 4_000
    assert scene.wire.symbols() == {"A"}
    assert (scene.state["failures"], scene.state["next_attempt"], scene.state["reason"]) == (3, None, "")
    assert (scene.metric("source_failures_total"), scene.metric("source_up")) == (3, 1)
    logged = [record.getMessage() for record in caplog.records if "source feed is" in record.getMessage()]
    assert [line.split()[3].rstrip(":;") for line in logged] == ["starting", "failed", "running"]      # one line a change, not one an attempt
    assert failed[0]["reason"] in logged[1] and "next attempt in" in logged[1]


async def test_another_source_goes_on_beside_one_that_fails_for_ever(tmp_path: Path) -> None:
    wire, clock = Wire(), FakeClock()
    bad = Feed(*[failing(SourceError("wrong key")) for _ in range(10_000)])
    good = open_sources(settings(tmp_path), clock)["simulated"]
    ingest = Ingest(settings(tmp_path), wire.send, clock=clock, sources={"feed": bad, "simulated": good})
    ingest.assign(ALL)
    ingest.watch(*watch("A", source="feed"))
    ingest.watch(*watch("B"))
    task = asyncio.create_task(ingest.run())
    await until(lambda: len(wire.ticks()) > 5, task)
    states = {state["source"]: state for state in ingest.states()}
    await stop(task)
    assert (states["feed"]["state"], states["feed"]["reason"]) == ("failed", "wrong key") and states["simulated"]["state"] == "running"


async def test_a_pause_is_half_random_and_bounded() -> None:
    health = SourceHealth("feed", "feed", Metrics(), (clock := FakeClock()).now_ms, chance=lambda: 0.0)
    pauses = []
    for _ in range(12):
        health.begin()
        pauses.append(health.fail(SourceError("x")))
    assert pauses[:6] == [0.5, 1, 2, 4, 8, 15] and set(pauses[5:]) == {15}
    health.begin()
    clock.ms += STEADY_MS
    assert health.fail(SourceError("x")) == 0.5
    assert SourceHealth("f", "f", Metrics(), clock.now_ms, chance=lambda: 1.0).fail(SourceError("x")) == 1.0


async def test_a_subscription_or_a_description_that_raises_ends_nothing() -> None:
    class Odd(Feed):
        refused = described = 0

        def subscribe(self, symbols: Collection[str]) -> None:
            if symbols and self.refused < 2:
                self.refused += 1
                raise KeyError("subscribe")
            super().subscribe(symbols)

        async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
            if self.described < 2:
                self.described += 1
                raise ZeroDivisionError("describe")
            return await super().describe(symbols)

    wire = Wire()
    odd = Odd(*[ticking(1)] * 4)
    ingest = Ingest(Settings(), wire.send, clock=FakeClock(), sources={"feed": odd})
    ingest.assign(ALL)
    ingest.watch(*watch("A", source="feed"))
    task = asyncio.create_task(ingest.run())
    await until(lambda: bool(wire.ticks()) and bool(wire.sent["stockstream.symbols"]), task)
    await stop(task)
    assert odd.refused == 2 and odd.described == 2 and ingest.states()[0]["failures"] == 2


async def test_metadata_is_bounded_and_only_of_what_was_asked_for() -> None:
    class Wordy(Feed):
        async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
            long = SymbolInfo(symbol="A", source="s" * 500_000, name="n" * 500_000, currency="c" * 500_000, exchange="e" * 500_000)
            return [SymbolInfo(symbol="B" * 500_000, source="s"), SymbolInfo(symbol="B", source="s"), long, long]

    scene_wire, metrics = Wire(), Metrics()
    ingest = Ingest(Settings(), scene_wire.send, clock=FakeClock(), sources={"feed": Wordy(ticking(1))}, metrics=metrics)
    ingest.assign(ALL)
    ingest.watch(*watch("A", source="feed"))
    task = asyncio.create_task(ingest.run())
    await until(lambda: bool(scene_wire.sent["stockstream.symbols"]), task)
    await stop(task)
    ((_, key, info),) = scene_wire.sent["stockstream.symbols"]
    assert key == b"A" and len(json.dumps(info)) < 4_000
    assert (metrics.registry.get_sample_value("stockstream_records_skipped_total", {"topic": "symbols", "reason": "not_asked_for"}) or 0) >= 2


@pytest.mark.parametrize("error", [DeliveryError("gone"), KafkaTimeoutError(), NotEnoughReplicasError()])
async def test_what_the_broker_does_not_confirm_is_the_sources_failure_and_is_sent_again(error: Exception) -> None:
    scene = Scene(ticking(1, 2), ticking(3), describes=False)
    scene.wire.fail_once = error
    await scene.until(lambda: len(scene.wire.ticks()) >= 2)
    await scene.stop()
    (failed,) = (state for state in scene.paused if state["state"] == "failed")
    assert type(error).__name__ in failed["reason"] or str(error) in failed["reason"]
    assert scene.wire.ticks() == [(1, "A"), (3, "A")]                    # the second was the old stream's: a source brings its own again, or not


async def test_what_the_broker_never_takes_is_left_out_and_counted() -> None:
    scene = Scene(ticking(1), ticking(2), describes=False)
    scene.wire.fail_once = MessageSizeTooLargeError()
    await scene.until(lambda: bool(scene.wire.ticks()))
    await scene.stop()
    assert scene.wire.ticks() == [(2, "A")]
    assert scene.metrics.registry.get_sample_value("stockstream_records_skipped_total", {"topic": "ticks.raw", "reason": "undeliverable"}) == 1


async def test_a_tick_that_can_never_be_sent_is_left_out() -> None:
    async def large(feed: Feed) -> AsyncIterator[Batch]:
        while not feed.subscribed or not feed.subscribed[-1]:
            await asyncio.sleep(0)
        yield Batch(["A", "A"], [1, 1], [b'{"seq":1,"symbol":"A","x":"' + b"x" * 2_000_000 + b'"}', b'{"seq":2,"symbol":"A"}'])
        await asyncio.Event().wait()

    scene = Scene(large)
    await scene.until(lambda: bool(scene.wire.ticks()))
    await scene.stop()
    assert scene.wire.ticks() == [(2, "A")] and scene.state["failures"] == 0


async def test_the_fence_ends_it() -> None:
    scene = Scene(ticking(1))
    scene.wire.fail = FencedError("this worker has left")
    with pytest.raises(FencedError, match="has left"):
        await asyncio.wait_for(scene.task, PATIENCE_S)


async def test_states_follow_what_there_is_to_bring(caplog: pytest.LogCaptureFixture) -> None:
    async def some(feed: Feed) -> AsyncIterator[Batch]:
        while not feed.subscribed or not feed.subscribed[-1]:
            await asyncio.sleep(0)
        yield Batch(["A"], [1], [b'{"seq":1,"symbol":"A"}'])
        await more.wait()
        yield Batch(["A"], [2], [b'{"seq":2,"symbol":"A"}'])
        await last.wait()

    more, last = asyncio.Event(), asyncio.Event()
    with caplog.at_level(logging.INFO):
        scene = Scene(some)
        assert (scene.state["state"], scene.metric("source_up")) == ("starting", 0)
        await scene.until(lambda: scene.state["state"] == "running")
        (health,) = (driver.health for driver in scene.ingest._drivers.values())
        scene.clock.ms += SILENT_MS
        health.check()
        assert scene.state["state"] == "idle" and "no ticks for" in scene.state["reason"] and scene.metric("source_up") == 1
        more.set()
        await scene.until(lambda: scene.state["state"] == "running")
        scene.ingest.watch(b"A", None)
        await scene.until(lambda: scene.state["state"] == "idle")
        assert "has no symbol for it in this worker's 8 of 8 partitions" in scene.state["reason"] and scene.state["symbols"] == 0
        for after, logged in ((0, 0), (UNWATCHED_MS, 1), (1_000, 1), (REMIND_MS, 2), (1_000, 2), (REMIND_MS, 3)):
            scene.clock.ms += after
            health.check()
            assert caplog.text.count("source feed has no symbols in this worker's 8 of 8 partitions: set STOCKSTREAM_SYMBOLS") == logged
        scene.ingest.assign(())
        await scene.until(lambda: "no partition" in scene.state["reason"])
        before = caplog.text.count("set STOCKSTREAM_SYMBOLS")
        scene.clock.ms += 2 * REMIND_MS
        health.check()
        assert caplog.text.count("set STOCKSTREAM_SYMBOLS") == before
        last.set()
        await scene.until(lambda: scene.state["reason"] == "its stream has ended")
        await scene.stop()


async def test_a_failure_that_lasts_is_reported_again_every_few_minutes(caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock()
    health = SourceHealth("feed", "feed", Metrics(), clock.now_ms)
    with caplog.at_level(logging.ERROR):
        for _ in range(1_200):
            health.begin()
            health.fail(SourceError("wrong key"))
            clock.ms += 1_000
            health.check()
    assert len(caplog.records) == 1 + 1_200_000 // REMIND_MS
    assert "in 1200 attempts: wrong key" in caplog.records[-1].getMessage()


async def test_a_source_with_trouble_beside_its_ticks_runs_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file where a folder must be")
    wire, clock = Wire(), FakeClock()
    ingest = Ingest(Settings(source=("simulated",), state_dir=tmp_path / "state"), wire.send, clock=clock)
    ingest.assign(ALL)
    for symbol in NAMES:
        ingest.watch(*watch(symbol))
    task = asyncio.create_task(ingest.run())
    await until(lambda: "cannot be written" in ingest.states()[0]["reason"], task)
    before = len(wire.ticks())
    await until(lambda: len(wire.ticks()) > before + 3 * len(NAMES), task)
    assert ingest.states()[0]["state"] == "running" and ingest.states()[0]["failures"] == 0
    (tmp_path / "state").unlink()
    await until(lambda: ingest.states()[0]["reason"] == "", task)
    await stop(task)
    lines = [json.loads(line) for line in (tmp_path / "state" / "simulated.1.events.jsonl").read_text().splitlines()]
    assert lines and all(line["symbol"] in NAMES for line in lines)


def test_the_settings_say_which_sources_there_are(tmp_path: Path) -> None:
    assert open_sources(Settings(), FakeClock()) == {}
    assert open_sources(settings(tmp_path, seed=9), FakeClock())["simulated"].name == "simulated.9"

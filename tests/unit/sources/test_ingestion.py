from __future__ import annotations

import asyncio
import json
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from stockstream.errors import DeliveryError, SourceError
from stockstream.settings import Settings
from stockstream.sources.base import Batch, SourceUnavailable, SymbolInfo
from stockstream.sources.ingestion import Ingest, Messages, open_sources
from stockstream.sources.simulated import default_symbols
from stockstream.transforms.partitioning import home_partition
from tests.patience import PATIENCE_S
from tests.unit.sources.source_contract import FakeClock

NAMES = default_symbols(40)
ALL = range(8)


class Wire:
    """What was sent, by topic; deliveries can be held or fail."""

    def __init__(self) -> None:
        self.sent: dict[str, list[tuple[int, bytes | None, Any]]] = defaultdict(list)
        self.fail: Exception | None = None

    async def send(self, topic: str, partition: int, messages: Messages) -> Sequence[Awaitable[Any]]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.fail:
            future.set_exception(self.fail)
        else:
            future.set_result(None)
            self.sent[topic] += [(partition, key, json.loads(value)) for key, value in messages]
        return [future]

    def ticks(self) -> list[tuple[int, str]]:
        """(second, symbol) of each tick, in order."""
        return [(tick["seq"], tick["symbol"]) for _, _, tick in self.sent["stockstream.ticks.raw"]]

    def symbols(self) -> set[str]:
        return {symbol for _, symbol in self.ticks()}


class Feed:
    """A source whose stream does what it is told."""

    name = "feed"

    def __init__(self, *streams: Callable[[Feed], AsyncIterator[Batch]]) -> None:
        self.streams, self.subscribed = list(streams), list[frozenset[str]]()

    def subscribe(self, symbols: Collection[str]) -> None:
        self.subscribed.append(frozenset(symbols))

    def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        return [SymbolInfo(symbol=symbol, source=self.name) for symbol in sorted(symbols)]

    def stream(self) -> AsyncIterator[Batch]:
        return self.streams.pop(0)(self)


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
    await until(lambda: len(wire.ticks()) >= 6 * len(mine), task)
    await stop(task)
    records = wire.sent["stockstream.ticks.raw"]
    assert all(key == tick["symbol"].encode() and partition == home_partition(tick["symbol"], 8) for partition, key, tick in records)
    seconds = sorted({second for second, _ in wire.ticks()})[1:-1]
    assert len(seconds) >= 3 and seconds == list(range(seconds[0], seconds[-1] + 1))
    assert sorted(tick for tick in wire.ticks() if tick[0] in seconds) == sorted((second, symbol) for second in seconds for symbol in mine)
    told = wire.sent["stockstream.symbols"]
    assert sorted(info["symbol"] for _, _, info in told) == sorted(mine)
    assert all(key == info["symbol"].encode() and partition == home_partition(info["symbol"], 8) for partition, key, info in told)


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
    await until(lambda: any(symbol == NAMES[0] for _, symbol in wire.ticks()[before:]), task)
    await stop(task)
    assert len(set(wire.ticks())) == len(wire.ticks())
    assert len(wire.sent["stockstream.symbols"]) == len(NAMES)


async def test_what_the_watchlist_says_wrong_is_told_and_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wire = Wire()
    ingest = Ingest(settings(tmp_path), wire.send, clock=FakeClock())
    ingest.assign(ALL)
    with caplog.at_level(logging.WARNING):
        for key, value in ((b"A", b"{"), (b"A", b"[]"), (b"\xff", b"{}"), (None, None), watch("A")[:1] + watch("B")[1:], watch("C", source="elsewhere")):
            ingest.watch(key, value)
        ingest.watch(*watch("D", source="elsewhere"))
    assert len(caplog.records) == 6
    assert "source 'elsewhere', which this worker does not run" in caplog.text
    ingest.watch(*watch("E"))
    task = asyncio.create_task(ingest.run())
    await until(lambda: bool(wire.ticks()), task)
    await stop(task)
    assert wire.symbols() == {"E"}


async def test_the_settings_symbols_are_put_on_the_watchlist(tmp_path: Path) -> None:
    wire = Wire()
    await Ingest(settings(tmp_path, symbols=("A", "B")), wire.send).announce()
    sent = wire.sent["stockstream.watchlist"]
    assert sorted(sent) == sorted((home_partition(s, 8), s.encode(), {"symbol": s, "source": "simulated", "active": True}) for s in "AB")
    await Ingest(Settings(symbols=("C",)), wire.send).announce()
    assert len(wire.sent["stockstream.watchlist"]) == 2


async def test_a_source_that_fails_for_now_is_tried_again_and_one_that_fails_for_good_ends_it(caplog: pytest.LogCaptureFixture) -> None:
    async def unavailable(feed: Feed) -> AsyncIterator[Batch]:
        raise SourceUnavailable("no answer")
        yield Batch((), (), ())

    async def one(feed: Feed) -> AsyncIterator[Batch]:
        while not feed.subscribed:
            await asyncio.sleep(0)
        yield Batch(["A", "other"], [1, 1], [b'{"seq":1,"symbol":"A"}', b'{"seq":1,"symbol":"other"}'])
        raise SourceError("no licence")

    wire, clock = Wire(), FakeClock()
    ingest = Ingest(Settings(), wire.send, clock=clock, sources={"feed": Feed(unavailable, unavailable, one)})
    ingest.assign(ALL)
    ingest.watch(*watch("A", source="feed"))
    begun = clock.ms
    with caplog.at_level(logging.WARNING), pytest.raises(SourceError, match="no licence"):
        await asyncio.wait_for(ingest.run(), PATIENCE_S)
    assert caplog.text.count("no answer; tried again") == 2 and clock.ms - begun >= 3000
    assert wire.symbols() == {"A"}


async def test_what_is_not_confirmed_ends_it(tmp_path: Path) -> None:
    wire = Wire()
    ingest = Ingest(settings(tmp_path), wire.send, clock=FakeClock())
    ingest.assign(ALL)
    ingest.watch(*watch("A"))
    wire.fail = DeliveryError("gone")
    with pytest.raises(DeliveryError, match="gone"):
        await asyncio.wait_for(ingest.run(), PATIENCE_S)


def test_the_settings_say_which_sources_there_are(tmp_path: Path) -> None:
    assert open_sources(Settings(), FakeClock()) == {}
    assert open_sources(settings(tmp_path, seed=9), FakeClock())["simulated"].name == "simulated.9"

"""Yahoo's stream as a source, against its stand-in: every fault of the server, and what a user is shown of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from itertools import pairwise
from typing import Any

import pytest

from stockstream.sources.base import Batch, Budget
from stockstream.sources.sessions import Session, State
from stockstream.sources.yahoo.connection import Connection, Timing
from stockstream.sources.yahoo.frames import Frame
from stockstream.sources.yahoo.streaming import YahooStream, _Feed
from tests.patience import PATIENCE_S
from tests.standins.yahoo_stream import Fault
from tests.standins.yahoo_stream import YahooStream as Server

QUICK = Timing(
    connect_s=0.5, message_s=1.0, proof_s=(0.2, 0.4), patience_s=0.6, thin_patience_s=2.0, most_patience_s=2.0, steady_s=1.0, first_pause_s=0.05,
    last_pause_s=0.3, refused_pause_s=0.6, ping_s=60.0, check_s=0.05,
)  # fmt: skip
SYMBOLS = ("AAPL", "BTC-USD", "MSFT", "NVDA", "VOD.L")


class Market:
    """Sessions that are all in one state, closed before a time."""

    def __init__(self, state: State, since: int = 0) -> None:
        self.state, self.since = state, since

    def at(self, exchange: str, ms: int) -> Session:
        return Session(self.state if ms >= self.since else "closed")


class Reader:
    """A source that is read in the background."""

    def __init__(self, source: YahooStream) -> None:
        self.source = source
        self.batches: list[Batch] = []
        self._task = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for batch in self.source.stream():
            self.batches.append(batch)

    @property
    def ticks(self) -> list[dict[str, Any]]:
        return [json.loads(value) for batch in self.batches for value in batch.values]

    @property
    def gaps(self) -> list[Any]:
        return [gap for batch in self.batches for gap in batch.gaps]

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert not self._task.done(), self._task.result()
            assert time.monotonic() < deadline, f"still not: {what}"
            await asyncio.sleep(0.02)

    async def until_all_are_heard(self, symbols: tuple[str, ...] = SYMBOLS, times: int = 1) -> float:
        """New ticks of each symbol. Returns the seconds that it took."""
        begun, seen = time.monotonic(), len(self.batches)

        def heard() -> bool:
            found = Counter(symbol for batch in self.batches[seen:] for symbol in batch.symbols)
            return all(found[symbol] >= times for symbol in symbols)

        await self.until(heard, f"ticks of {symbols}")
        return time.monotonic() - begun

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


@contextlib.asynccontextmanager
async def reading(
    server: Server, symbols: tuple[str, ...] = SYMBOLS, *, timing: Timing = QUICK, market: Market | None = None, of: int = 2, url: str = "",
) -> AsyncIterator[Reader]:  # fmt: skip
    source = YahooStream(url or server.url, timing=timing, session_at=market.at if market is not None else None, symbols_a_connection=of)
    source.subscribe(symbols)
    await source.start()
    reader = Reader(source)
    try:
        yield reader
    finally:
        await reader.stop()
        await source.stop()


def sized(ticks: list[dict[str, Any]]) -> dict[str, int]:
    """By symbol: the rise of the day volume from its first tick to the newest."""
    first: dict[str, int] = {}
    newest: dict[str, int] = {}
    for tick in ticks:
        first.setdefault(tick["symbol"], tick["day_volume"])
        newest[tick["symbol"]] = max(tick["day_volume"], newest.get(tick["symbol"], 0))
    return {symbol: newest[symbol] - first[symbol] for symbol in first}


async def test_each_frame_becomes_one_tick_and_symbols_are_shared_out() -> None:
    async with Server(rate=10, answers=False) as server, reading(server) as reader:
        await reader.until_all_are_heard(times=8)
        ticks = reader.ticks
        assert server.accepted == 3
        assert [connection.symbols for connection in reader.source.health().connections] == [2, 2, 1]
        assert {tick["source"] for tick in ticks if tick["symbol"] == "VOD.L"} == {"yahoo.LSE"}
        assert {tick["source"] for tick in ticks if tick["symbol"] != "VOD.L"} == {"yahoo"}
        assert reader.source.health().feeds["VOD.L"].exchange == "LSE"
        for symbol in SYMBOLS:
            volumes = [tick["day_volume"] for tick in ticks if tick["symbol"] == symbol]
            assert len(set(volumes)) == len(volumes)
            assert volumes[0] == server.stocks[symbol].first_volume
        for batch in reader.batches:
            assert len(set(batch.symbols)) == len(batch.symbols)          # so that a batch that is sent again is recognised
        assert reader.gaps == []
        assert reader.source.health().trouble == ""


@pytest.mark.parametrize("kind", ["silence", "close", "abort", "half_open", "refuse", "forget", "partial", "slow"])
@pytest.mark.slow
async def test_all_symbols_flow_again_after(kind: Fault) -> None:
    async with Server(rate=10) as server, reading(server) as reader:
        await reader.until_all_are_heard()
        if kind in ("refuse", "partial"):
            server.fault("close", 0.1)                                   # these are about new sockets
        server.fault(kind, 3.5)
        await asyncio.sleep(3.5)
        server.end_faults()
        took = await reader.until_all_are_heard(times=2)
        assert took < 5
        ticks = reader.ticks
        said = Counter((tick["symbol"], tick["event_time"], tick["price"], tick["day_volume"]) for tick in ticks)
        assert max(said.values()) == 1                                   # the state that a new subscription is answered with is not sent again
        assert all(0 <= server.stocks[symbol].day_volume - server.stocks[symbol].first_volume - size <= 4_000 for symbol, size in sized(ticks).items())
        if kind in ("close", "abort", "half_open"):
            assert {gap.symbol for gap in reader.gaps} <= set(SYMBOLS)
            assert all(gap.reason == "source_away" and gap.from_ < gap.to for gap in reader.gaps)
            assert {gap.symbol for gap in reader.gaps}


@pytest.mark.parametrize("kind", ["bad_base64", "bad_json", "bad_protobuf", "other_types", "heartbeats", "binary", "no_price"])
@pytest.mark.slow
async def test_messages_that_are_no_price_disturb_nothing(kind: Fault, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with Server(rate=10, answers=False) as server, reading(server) as reader:
        server.fault(kind, 60.0)
        await reader.until_all_are_heard(times=5)
        assert server.accepted == 3                                      # no connection was lost
        ticks = reader.ticks
        for symbol in SYMBOLS:
            assert server.stocks[symbol].sent - sum(tick["symbol"] == symbol for tick in ticks) <= 4      # on their way
        trouble = reader.source.health().trouble
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("stockstream.sources.yahoo")]
    ignored = kind in ("other_types", "heartbeats", "binary")
    assert len(lines) == (0 if ignored else 1), lines
    assert trouble.startswith("messages that cannot be read are left out: ") is not ignored


async def test_a_socket_that_is_open_and_dead_is_replaced_though_the_server_is_there() -> None:
    async with Server(rate=10) as server, reading(server) as reader:
        await reader.until_all_are_heard()
        server.fault("half_open", 0.0)                                   # only the sockets that are there
        await reader.until(lambda: server.accepted == 6, "new sockets")
        assert await reader.until_all_are_heard() < 5
        assert {gap.symbol for gap in reader.gaps} <= set(SYMBOLS)


async def test_a_ping_finds_a_dead_socket_while_the_market_is_closed() -> None:
    timing = Timing(connect_s=0.5, ping_s=0.4, check_s=0.05, first_pause_s=0.05)
    async with Server(rate=0.0) as server, reading(server, ("AAPL",), timing=timing, market=Market("closed")) as reader:
        await reader.until(lambda: server.clients, "a socket")
        await asyncio.sleep(1.0)
        assert server.accepted == 1                                      # silence is no fault then
        server.fault("half_open", 0.0)
        await reader.until(lambda: server.accepted == 2, "a new socket")


async def test_silence_counts_only_while_a_market_is_open() -> None:
    market = Market("closed")
    async with Server(rate=0.0) as server, reading(server, ("AAPL", "VOD.L"), market=market) as reader:
        await reader.until(lambda: server.clients, "a socket")
        await asyncio.sleep(1.5)
        assert server.accepted == 1
        assert reader.source.health().connections[0].state == "open"
        assert reader.source.health().feeds["AAPL"].state is None
        market.state = "regular"
        await reader.until(lambda: server.accepted == 2, "a new socket")


async def test_a_delayed_exchange_is_expected_later_than_it_opens() -> None:
    market = Market("regular", int(time.time() * 1000) - 60_000)
    source = YahooStream("ws://127.0.0.1:9/", session_at=market.at)
    assert source._market(["VOD.L"]) == "closed"
    assert source._market(["VOD.L", "AAPL"]) == "open"
    market.since -= 3_600_000
    assert source._market(["VOD.L"]) == "open"
    market.state = "post"
    assert source._market(["AAPL"]) == "thin"


@pytest.mark.slow
async def test_symbols_that_are_not_heard_are_subscribed_again_and_shown() -> None:
    async with Server(rate=10, unknown=["NVDA"]) as server, reading(server, of=5) as reader:
        others = tuple(symbol for symbol in SYMBOLS if symbol != "NVDA")
        await reader.until_all_are_heard(others)
        note = reader.source.health().feeds["NVDA"]
        assert note.state == "waiting"
        assert reader.source.health().connections[0].reason == "1 of 5 symbols without a price yet"
        await reader.until(lambda: [message for message in server.messages if message.get("subscribe") == ["NVDA"]], "it is subscribed again alone")
        await reader.until(lambda: any(message.get("unsubscribe") == ["NVDA"] for message in server.messages), "it is unsubscribed in between")
        server.unknown.clear()
        await reader.until_all_are_heard(("NVDA",))
        assert reader.source.health().feeds["NVDA"].state is None


async def test_what_the_metadata_know_is_shown() -> None:
    async with Server(rate=10, unknown=["NOPE"]) as server:
        budget = Budget(per="day", limit=5, left=3, resets_at=0)
        source = YahooStream(server.url, timing=QUICK, unknown={"AAPL": "", "NOPE": "Yahoo does not know NOPE"}.__getitem__, budgets=lambda: (budget,))
        source.subscribe(("AAPL", "NOPE"))
        await source.start()
        reader = Reader(source)
        await reader.until_all_are_heard(("AAPL",))
        health = source.health()
        assert (health.feeds["NOPE"].state, health.feeds["NOPE"].reason) == ("unknown_symbol", "Yahoo does not know NOPE")
        assert health.feeds["AAPL"].state is None
        assert health.budgets == (budget,)
        await reader.stop()
        await source.stop()


async def test_a_symbol_that_is_never_heard_while_others_are_has_a_dead_feed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sources.yahoo.streaming.DEAD_S", 0.5)
    async with Server(rate=10, unknown=["NVDA"]) as server, reading(server, of=5) as reader:
        await reader.until(lambda: reader.source.health().feeds["NVDA"].state == "feed_dead", "it is shown")
        assert reader.source.health().feeds["NVDA"].reason.startswith("no price in ")
        assert reader.source.health().feeds["AAPL"].state is None


@pytest.mark.slow
async def test_the_whole_list_goes_out_as_client_message_so_that_the_server_does_not_fall_silent() -> None:
    async with Server(rate=10, idle_s=2.5) as server, reading(server, of=5) as reader:
        begun = time.monotonic()
        await reader.until(lambda: time.monotonic() - begun > 4, "time passes")
        await reader.until_all_are_heard()
        assert server.accepted == 1
        assert sum(message.get("subscribe") == sorted(SYMBOLS) for message in server.messages) >= 3


async def test_symbols_come_and_go_while_it_streams() -> None:
    async with Server(rate=10) as server, reading(server, ("AAPL", "MSFT")) as reader:
        await reader.until_all_are_heard(("AAPL", "MSFT"))
        reader.source.subscribe(("AAPL", "NVDA", "VOD.L"))
        await reader.until_all_are_heard(("AAPL", "NVDA", "VOD.L"))
        assert server.accepted == 2                                      # AAPL keeps its socket, with a place that became free
        seen = len(reader.batches)
        await reader.until_all_are_heard(("AAPL",), times=3)
        assert not any("MSFT" in batch.symbols for batch in reader.batches[seen + 1 :])
        reader.source.subscribe(())
        await reader.until(lambda: not server.clients, "no symbols, no sockets")
        reader.source.subscribe(("AAPL",))
        await reader.until_all_are_heard(("AAPL",))


@pytest.mark.slow
async def test_without_a_server_there_is_one_line_and_it_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Server() as gone:
        pass
    async with reading(gone) as reader:
        await reader.until(lambda: reader.source.health().trouble, "trouble")
        await asyncio.sleep(2.5)
        health = reader.source.health()
        assert health.trouble.startswith("3 of 3 connections to 127.0.0.1 are away: cannot connect: ")
        assert {note.state for note in health.feeds.values()} == {"failed"}
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == 1, lines
        assert "\n" not in lines[0]
        async with Server(port=gone.port, rate=10):
            assert await reader.until_all_are_heard() < 5
            await reader.until(lambda: any("all connections are back" in record.getMessage() for record in caplog.records), "a line at the end")


@pytest.mark.slow
async def test_a_server_that_is_silent_is_one_line_until_prices_come(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with Server(rate=10) as server, reading(server) as reader:
        await reader.until_all_are_heard()
        server.fault("silence", 60.0)
        await reader.until(lambda: reader.source.health().trouble.startswith("3 of 3 connections"), "trouble of all")
        await asyncio.sleep(2.5)                                         # meanwhile each is opened again, without a price
        assert reader.source.health().trouble == "3 of 3 connections to 127.0.0.1 are away: it is silent while a market is open"
        assert {(note.state, note.reason.partition(": ")[2]) for note in reader.source.health().feeds.values()} == {
            ("failed", "it is silent while a market is open"),
        }
        server.end_faults()
        await reader.until(lambda: any("all connections are back" in record.getMessage() for record in caplog.records), "a line at the end")
        lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
        assert len(lines) == 1, lines


async def test_bare_frames_and_equal_frames() -> None:
    async with Server(rate=10, equal=0.5, answers=False) as server, reading(server, url=server.url.partition("?")[0]) as reader:
        await reader.until_all_are_heard(times=8)
        ticks = reader.ticks
        said = Counter((tick["symbol"], tick["event_time"], tick["price"], tick["day_volume"]) for tick in ticks)
        assert max(said.values()) == 2                                   # equal frames are both ticks: `clean` decides
        assert all(tick["snapshot"] for tick in ticks)


@pytest.mark.slow
async def test_a_reader_that_is_slow_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sources.yahoo.streaming.MOST_WAITING", 20)
    async with Server(rate=20, answers=False) as server:
        source = YahooStream(server.url, timing=QUICK)
        source.subscribe(SYMBOLS)
        await source.start()
        await asyncio.sleep(3.0)                                         # nobody reads: the sockets are held back, and that is no silence
        reader = Reader(source)
        await reader.until_all_are_heard(times=60)
        ticks = reader.ticks
        await reader.stop()
        await source.stop()
        assert server.accepted == 1
        for symbol in SYMBOLS:
            volumes = [tick["day_volume"] for tick in ticks if tick["symbol"] == symbol]
            assert volumes[0] == server.stocks[symbol].first_volume
            assert all(0 < later - earlier <= 400 for earlier, later in pairwise(volumes))      # one move each


async def test_it_can_be_stopped_and_started_again() -> None:
    async with Server(rate=10) as server:
        source = YahooStream(server.url, timing=QUICK)
        source.subscribe(SYMBOLS)
        for _ in range(2):
            await source.start()
            reader = Reader(source)
            await reader.until_all_are_heard()
            await reader.stop()
            await source.stop()
        assert server.accepted == 2


def test_a_connection_that_is_lost_at_night_leaves_no_gap() -> None:
    closes, opens = 1_750_000_000_000, 1_750_050_000_000

    def session_at(exchange: str, ms: int) -> Session:
        return Session("regular", 0, closes) if ms < closes else Session("closed", closes, opens) if ms < opens else Session("pre", opens, opens + 10_000_000)

    source, feed = YahooStream("ws://127.0.0.1:1", session_at=session_at), _Feed("NMS", 0)
    feed.key = closes - 60_000, 1.0, 0
    frame = Frame("A", opens + 1_000, 1.0, 0, "NMS", "USD", 8, 0, 0.0, 0.0, 0, 0)
    assert source._gap(frame, feed, "yahoo", closes + 3_600_000) is None
    found = source._gap(frame, feed, "yahoo", closes - 30_000)
    assert found is not None and (found.from_, found.to) == (closes - 60_000, closes)


def test_the_time_of_a_loss_is_that_of_the_first_one_after_a_price() -> None:
    now = 0
    connection = Connection("1", "", None, None, lambda: now, Timing())  # type: ignore[arg-type]
    for now in (10, 20, 30):
        connection._lost_at.append(now)
        connection.losses += 1
    assert [connection.lost_at(losses) for losses in (0, 1, 2)] == [10, 20, 30]
    connection.losses += 5
    assert connection.lost_at(0) == 10

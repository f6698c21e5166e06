"""Yahoo polling: ticks and metadata of quotes, and how often they are requested."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stockstream.budgets import Limits
from stockstream.settings import Settings
from stockstream.sources.base import Batch, FeedNote, SourceUnavailable, SymbolInfo, SystemClock
from stockstream.sources.opening import open_sources
from stockstream.sources.quota import MemoryRequestLog, Scheduler
from stockstream.sources.yahoo.polling import CLOSED_S, POLL_S, YahooPolling
from stockstream.sources.yahoo.query import YahooLimited, YahooQuery
from stockstream.sources.yahoo.quotes import info_of, note_of, tick_of
from tests.contracts.source import FakeClock, SourceContract, gather
from tests.patience import PATIENCE_S
from tests.standins.yahoo_query import Listing, YahooQueryServer, listings
from tests.standins.yahoo_stream import YahooStream as StreamServer

OPEN_MS = 1_764_600_000_000                                              # 2025-12-01 14:40 UTC
FROM_DOCS: dict[str, Any] = {
    "symbol": "AAPL", "regularMarketPrice": 244.6, "regularMarketTime": 1739566800, "regularMarketVolume": 40896227, "regularMarketPreviousClose": 241.53,
    "bid": 244.44, "ask": 253.37, "bidSize": 2, "askSize": 1, "marketState": "CLOSED", "exchange": "NMS", "currency": "USD", "shortName": "Apple Inc.",
    "quoteType": "EQUITY", "gmtOffSetMilliseconds": -18_000_000, "marketCap": 3_674_000_000_000,
}  # fmt: skip


class TestYahooPolling(SourceContract):
    @pytest.fixture(autouse=True)
    def _made(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.shared = FakeClock(OPEN_MS)
        self.server = YahooQueryServer(listings(self.symbols), now=lambda: self.shared.now_ms() / 1000)

    def clock(self) -> FakeClock:
        return self.shared

    def source(self, clock: FakeClock) -> YahooPolling:
        quota = Scheduler("yahoo", Limits.parse("1000/s,100000/d"), MemoryRequestLog(clock), clock=clock)
        return YahooPolling(YahooQuery(self.server.url, quota, self.folder), clock=clock)

    @property
    def symbols(self) -> list[str]:
        return ["AAPL", "MSFT"]

    def surroundings(self) -> AbstractAsyncContextManager[Any]:
        @asynccontextmanager
        async def running() -> AsyncIterator[None]:
            await self.server.start()
            try:
                yield
            finally:
                await self.server.stop()

        return running()


class Quotes:
    """Answers what is put into it, in place of `YahooQuery`."""

    def __init__(self, clock: FakeClock, limits: str = "1000/s") -> None:
        self.clock = clock
        self.known: dict[str, dict[str, Any]] = {}
        self.asked: list[tuple[int, list[str]]] = []
        self.fail: Exception | None = None
        self.quota = Scheduler("yahoo", Limits.parse(limits), MemoryRequestLog(clock), clock=clock)

    async def quotes(self, symbols: list[str]) -> dict[str, dict[str, Any]]:
        self.asked.append((self.clock.now_ms(), list(symbols)))
        if self.fail is not None:
            raise self.fail
        return {symbol: self.known[symbol] for symbol in symbols if symbol in self.known}

    async def stop(self) -> None:
        await self.quota.stop()


def polling(quotes: Quotes) -> YahooPolling:
    return YahooPolling(quotes, clock=quotes.clock)                      # type: ignore[arg-type]


def quote(symbol: str, at_s: int, price: float = 10.0, state: str = "REGULAR", **more: Any) -> dict[str, Any]:
    return FROM_DOCS | {"symbol": symbol, "regularMarketTime": at_s, "regularMarketPrice": price, "marketState": state} | more


def of(batches: list[Batch]) -> list[dict[str, Any]]:
    return [json.loads(value) for batch in batches for value in batch.values]


def test_the_tick_of_a_quote_has_the_time_of_its_trade() -> None:
    assert tick_of(FROM_DOCS, "AAPL", "yahoo_polling.AAPL") == {
        "symbol": "AAPL", "event_time": 1_739_566_800_000, "price": 244.6, "source": "yahoo_polling.AAPL", "snapshot": True, "day_volume": 40_896_227,
        "session": "regular 2025-02-14", "exchange": "NMS", "currency": "USD",
    }  # fmt: skip
    after = FROM_DOCS | {"postMarketPrice": 245.1, "postMarketTime": 1739570400, "marketState": "POST"}
    tick = tick_of(after, "AAPL", "s")
    assert tick is not None and (tick["event_time"], tick["price"], tick["size"], tick["session"]) == (1_739_570_400_000, 245.1, 0, "post 2025-02-14")
    assert "day_volume" not in tick


@pytest.mark.parametrize("change", [{"regularMarketPrice": None}, {"regularMarketPrice": 0}, {"regularMarketTime": "soon"}, {"regularMarketPrice": True}])
def test_a_quote_without_a_price_and_its_time_is_no_tick(change: dict[str, Any]) -> None:
    assert tick_of(FROM_DOCS | change, "AAPL", "s") is None


def test_the_volume_of_a_coin_is_not_that_of_a_day() -> None:
    tick = tick_of(FROM_DOCS | {"quoteType": "CRYPTOCURRENCY"}, "BTC-USD", "s")
    assert tick is not None and tick["size"] == 0 and "day_volume" not in tick


def test_metadata_and_notes_come_from_a_quote() -> None:
    assert info_of(FROM_DOCS, "AAPL", "yahoo") == SymbolInfo(
        symbol="AAPL", source="yahoo", name="Apple Inc.", currency="USD", exchange="NMS", previous_close=241.53, market_cap=3_674_000_000_000
    )
    assert info_of({}, "X", "yahoo") == SymbolInfo(symbol="X", source="yahoo")
    assert note_of(FROM_DOCS) == FeedNote(state="closed", reason="Yahoo's market state is CLOSED", exchange="NMS")
    assert note_of(FROM_DOCS | {"marketState": "PRE", "exchangeDataDelayedBy": 15}) == FeedNote(reason="delayed by 15 minutes", exchange="NMS")


def test_a_quote_that_has_not_changed_is_sent_once() -> None:
    async def main() -> None:
        quotes = Quotes(FakeClock(OPEN_MS))
        source = polling(quotes)
        source.subscribe(["A", "B"])
        quotes.known = {"A": quote("A", OPEN_MS // 1000), "B": quote("B", OPEN_MS // 1000)}
        stream = source.stream()
        first = await anext(stream)
        assert [(tick["symbol"], tick["source"]) for tick in of([first])] == [("A", "yahoo_polling.A"), ("B", "yahoo_polling.B")]
        quotes.known["B"] = quote("B", OPEN_MS // 1000 + 7, 11.0)
        quotes.known["A"] = quote("A", OPEN_MS // 1000 - 60, 9.0)        # older: Yahoo's servers do not agree
        assert [(tick["symbol"], tick["price"]) for tick in of([await anext(stream)])] == [("B", 11.0)]
        await stream.aclose()                                            # type: ignore[attr-defined]

    asyncio.run(main())


def times_of(quotes: Quotes, symbol: str) -> list[float]:
    return [(at - OPEN_MS) / 1000 for at, symbols in quotes.asked if symbol in symbols]


def watch(quotes: Quotes, symbols: list[str], seconds: float) -> YahooPolling:
    """Reads the source until so much time has passed."""
    source = polling(quotes)

    async def main() -> None:
        source.subscribe(symbols)

        async def read() -> None:
            async for _ in source.stream():
                await asyncio.sleep(0)

        task = asyncio.create_task(read())
        while quotes.clock.now_ms() < OPEN_MS + seconds * 1000 and not task.done():
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(main())
    return source


def test_closed_markets_and_unknown_symbols_are_requested_seldom() -> None:
    quotes = Quotes(FakeClock(OPEN_MS))
    quotes.known = {"A": quote("A", OPEN_MS // 1000), "C": quote("C", OPEN_MS // 1000, state="CLOSED")}
    source = watch(quotes, ["A", "C", "X"], 2 * CLOSED_S + 5)
    assert times_of(quotes, "A") == [POLL_S * number for number in range(round(2 * CLOSED_S / POLL_S) + 1)]
    assert times_of(quotes, "C") == [0.0, CLOSED_S, 2 * CLOSED_S] and times_of(quotes, "X") == [0.0]
    notes = source.health().feeds
    assert notes["X"] == FeedNote(state="unknown_symbol", reason="Yahoo does not know X") and notes["C"].state == "closed" and notes["A"].state is None


def test_the_requests_of_a_day_last_for_the_day() -> None:
    quotes = Quotes(FakeClock(OPEN_MS), "1000/s,100/d")
    quotes.known = {"A": quote("A", OPEN_MS // 1000)}
    watch(quotes, ["A"], 3_600)
    day_s = next(budget for budget in quotes.quota.budgets() if budget.per == "day").resets_at / 1000 - OPEN_MS / 1000
    assert times_of(quotes, "A")[1] == pytest.approx(day_s / 100, abs=2) and len(quotes.asked) <= 3_600 / (day_s / 100) + 2


def test_a_large_list_takes_turns_in_requests_of_99() -> None:
    names = [f"S{number:03d}" for number in range(250)]
    quotes = Quotes(FakeClock(OPEN_MS))
    quotes.known = {name: quote(name, OPEN_MS // 1000) for name in names}
    watch(quotes, names, POLL_S - 1)
    assert [len(symbols) for _, symbols in quotes.asked] == [99, 99, 52]
    assert sorted(symbol for _, symbols in quotes.asked for symbol in symbols) == names


def test_a_limit_is_shown_with_every_symbol_and_then_forgotten() -> None:
    async def main() -> None:
        quotes = Quotes(FakeClock(OPEN_MS))
        source = polling(quotes)
        source.subscribe(["A"])
        quotes.fail = YahooLimited("Yahoo limits the requests of this address (429 Too Many Requests)")
        with pytest.raises(YahooLimited):
            await gather(source, 1)
        assert source.health().feeds == {"A": FeedNote(state="rate_limited", reason=str(quotes.fail))}
        quotes.fail = SourceUnavailable("down")
        with pytest.raises(SourceUnavailable):
            await gather(source, 1)
        assert source.health().feeds == {}
        quotes.fail, quotes.known = None, {"A": quote("A", OPEN_MS // 1000)}
        assert len(await gather(source, 1)) == 1 and source.health().feeds["A"].state is None

    asyncio.run(main())


def test_real_quotes_through_yfinance_have_all_metadata(tmp_path: Path) -> None:
    async def main() -> list[SymbolInfo]:
        clock = FakeClock(OPEN_MS)
        server = YahooQueryServer([Listing("VOD.L", "Vodafone Group plc", "LSE", "GBp", delay_min=15)], now=lambda: clock.now_ms() / 1000)
        await server.start()
        try:
            quota = Scheduler("yahoo", Limits.parse("1000/s"), MemoryRequestLog(clock), clock=clock)
            source = YahooPolling(YahooQuery(server.url, quota, tmp_path), clock=clock)
            source.subscribe(["VOD.L"])
            (batch,) = await gather(source, 1)
            assert batch.event_times == (OPEN_MS - 900_000,), "never now for a delayed quote"
            return await source.describe(["VOD.L", "NOPE"])
        finally:
            await server.stop()

    (info,) = asyncio.run(main())
    assert (info.symbol, info.source, info.name, info.currency, info.exchange) == ("VOD.L", "yahoo_polling", "Vodafone Group plc", "GBp", "LSE")
    assert info.previous_close and info.market_cap == 1_000_000_000


async def test_the_stream_has_its_metadata_and_its_unknown_symbols_from_the_same_service(tmp_path: Path) -> None:
    query = YahooQueryServer(listings(["AAPL"]))
    await query.start()
    try:
        async with StreamServer(rate=20, unknown=["NOPE"]) as server:
            settings = Settings(
                source="yahoo,yahoo_polling", yahoo_stream_url=server.url, yahoo_query_url=query.url, state_dir=tmp_path, yahoo_budget="50/s,1000/d"
            )
            sources = open_sources(settings, SystemClock())
            assert sorted(sources) == ["yahoo", "yahoo_polling"]
            stream = sources["yahoo"]
            stream.subscribe(["AAPL", "NOPE"])
            await stream.start()
            try:
                (info,) = await stream.describe(["AAPL", "NOPE"])
                assert (info.symbol, info.source, info.name) == ("AAPL", "yahoo", "AAPL Inc.")
                await asyncio.wait_for(gather(stream, 1), PATIENCE_S)
                assert [(budget.per, budget.limit - budget.left) for budget in stream.health().budgets][1:] == [("day", len(query.requests))]
                notes = stream.health().feeds
                assert notes["NOPE"].state == "unknown_symbol" and notes["NOPE"].reason == "Yahoo does not know NOPE" and notes["AAPL"].state is None
            finally:
                await stream.stop()
    finally:
        await query.stop()


@pytest.mark.parametrize("name", ["yahoo", "yahoo_polling"])
async def test_a_source_closes_the_log_of_requests_that_it_uses(name: str, tmp_path: Path) -> None:
    class Log(MemoryRequestLog):
        stopped = 0

        async def stop(self) -> None:
            self.stopped += 1

    log = Log(clock := FakeClock(OPEN_MS))
    settings = Settings(source=name, state_dir=tmp_path, yahoo_budget="50/s,1000/d", yahoo_stream_url="ws://127.0.0.1:9/")
    source = open_sources(settings, clock, request_log=lambda: log)[name]
    await source.start()
    assert log.stopped == 0
    await source.stop()
    assert log.stopped == 1

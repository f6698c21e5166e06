"""The real yfinance against the stand-in for Yahoo's REST service: cookie, crumb, and each way in which an answer fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from stockstream.budgets import Limits
from stockstream.sources.base import SourceUnavailable
from stockstream.sources.quota import BudgetSpent, MemoryRequestLog, Scheduler
from stockstream.sources.yahoo import query
from stockstream.sources.yahoo.query import YahooLimited, YahooQuery, YahooRefused, plain, redirected
from tests.contracts.source import FakeClock
from tests.standins.yahoo_query import Fault, YahooQueryServer, bar_of, listings

T = TypeVar("T")
NOW_S = 1_764_600_000                                                    # 2025-12-01 14:40 UTC


@asynccontextmanager
async def yahoo(folder: Path, names: tuple[str, ...] = ("AAPL", "MSFT"), limits: str = "1000/s") -> AsyncIterator[tuple[YahooQueryServer, YahooQuery]]:
    clock = FakeClock(NOW_S * 1000)
    server = YahooQueryServer(listings(list(names)), now=lambda: NOW_S, quiet=frozenset((NOW_S - 180,)))
    await server.start()
    parsed = Limits.parse(limits)
    try:
        yield server, YahooQuery(server.url, Scheduler("yahoo", parsed, MemoryRequestLog(clock), clock=clock), folder / "yfinance")
    finally:
        await server.stop()


def clock_of(asked: YahooQuery) -> FakeClock:
    return asked.quota._clock                                            # type: ignore[return-value]


def run(folder: Path, use: Callable[[YahooQueryServer, YahooQuery], Awaitable[T]], **options: str) -> T:
    async def main() -> T:
        async with yahoo(folder, **options) as (server, asked):          # type: ignore[arg-type]
            return await use(server, asked)

    return asyncio.run(main())


def test_a_session_gets_its_cookie_and_crumb_once(tmp_path: Path) -> None:
    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        first, second = await asked.quotes(["AAPL", "NOPE"]), await asked.quotes(["MSFT"])
        assert list(first) == ["AAPL"] and list(second) == ["MSFT"]
        asked_for = [path for path, _ in server.requests if path != "/"]  # a cookie of 127.0.0.1 is not kept on disk, so yfinance requests it twice at first
        assert asked_for == ["/v1/test/getcrumb", "/v7/finance/quote", "/v7/finance/quote"]
        assert server.requests[-2][1]["symbols"] == "AAPL,NOPE" and server.requests[-1][1]["crumb"] == server.crumb

    run(tmp_path, use)


def test_every_http_request_counts_in_the_budget(tmp_path: Path) -> None:
    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        await asked.quotes(["AAPL"])
        await asked.quotes(["AAPL"])
        server.new_crumb()
        assert list(await asked.quotes(["AAPL"])) == ["AAPL"], "yfinance gets a new crumb by itself"
        day = next(budget for budget in asked.quota.budgets() if budget.per == "day")
        assert day.limit - day.left == len(server.requests)

    run(tmp_path, use, limits="1000/s,500/d")


def test_a_budget_that_is_spent_sends_nothing(tmp_path: Path) -> None:
    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        await asked.quotes(["AAPL"])
        with pytest.raises(BudgetSpent, match="all 3 requests of the day"):
            await asked.quotes(["AAPL"])
        assert server.count("/v7") == 1

    run(tmp_path, use, limits="1000/s,3/d")


@pytest.mark.parametrize(("fault", "kind", "text"), [
    ("rate_limited", YahooLimited, "Yahoo limits the requests of this address"),
    ("rate_limited_crumb", YahooLimited, "Yahoo limits the requests of this address"),
    ("html", SourceUnavailable, "Yahoo answered HTML instead of data .HTTP 200."),
    ("no_json", SourceUnavailable, "Yahoo answered no JSON instead of data .HTTP 200."),
    ("down", SourceUnavailable, "Yahoo answered HTML instead of data .HTTP 502."),
    ("unauthorized", YahooRefused, "Yahoo refuses cookie or crumb .401.: Unauthorized: Invalid Crumb"),
    ("html_crumb", YahooRefused, "Yahoo refuses cookie or crumb .401."),
    ("empty_crumb", YahooRefused, "Yahoo refuses cookie or crumb .401."),
    ("hang_up", SourceUnavailable, "Yahoo does not answer: "),
    ("slow", SourceUnavailable, "Yahoo does not answer: "),
])  # fmt: skip
def test_each_failure_has_its_own_line_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Fault, kind: type[SourceUnavailable], text: str
) -> None:
    if fault == "slow":
        monkeypatch.setattr(query, "REQUEST_S", 0.3)

    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        server.fail(fault)
        server.slow_s = 1.0
        with pytest.raises(kind, match=text) as failure:
            await asked.quotes(["AAPL"])
        assert "\n" not in str(failure.value) and len(str(failure.value)) < 400
        began = clock_of(asked).ms
        server.fail("")
        assert list(await asked.quotes(["AAPL"])) == ["AAPL"], "the next call begins anew"
        assert clock_of(asked).ms - began == (60_000 if kind is YahooLimited else 15_000), "after the pause of its class"

    run(tmp_path, use)


def test_a_call_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "CALL_S", 0.3)

    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        server.fail("slow", 1)
        server.slow_s = 1.0
        with pytest.raises(SourceUnavailable, match="did not answer /v7/finance within"):
            await asked.quotes(["AAPL"])

    run(tmp_path, use)


def test_no_server_is_one_line(tmp_path: Path) -> None:
    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        await server.stop()
        with pytest.raises(SourceUnavailable, match="Yahoo does not answer"):
            await asked.quotes(["AAPL"])

    run(tmp_path, use)


def test_bars_are_whole_minutes_with_plain_prices(tmp_path: Path) -> None:
    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        first = NOW_S // 60 * 60 - 600
        bars = await asked.bars("AAPL", first * 1000, NOW_S * 1000)
        starts = [start for start in range(first, NOW_S - 59, 60) if start != NOW_S // 60 * 60 - 180 or NOW_S % 60]
        model = [bar_of("AAPL", start) for start in starts if start not in server.quiet]
        assert bars == [(bar.start * 1000, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in model]
        assert await asked.bars("NOPE", first * 1000, NOW_S * 1000) == []
        assert await asked.bars("AAPL", (NOW_S + 60) // 60 * 60_000, (NOW_S + 120) * 1000) == []

    run(tmp_path, use)


def test_more_symbols_than_yahoo_answers_are_refused(tmp_path: Path) -> None:
    async def use(server: YahooQueryServer, asked: YahooQuery) -> None:
        with pytest.raises(ValueError, match="at most 99"):
            await asked.quotes([f"S{number}" for number in range(100)])
        assert await asked.quotes([]) == {} and server.requests == []

    run(tmp_path, use)


def test_only_yahoos_addresses_are_redirected() -> None:
    assert redirected("https://query1.finance.yahoo.com/v7/finance/quote?a=b", "http://127.0.0.1:1/") == "http://127.0.0.1:1/v7/finance/quote?a=b"
    assert redirected("https://fc.yahoo.com", "http://127.0.0.1:1") == "http://127.0.0.1:1"
    assert redirected("https://notyahoo.com/x", "http://127.0.0.1:1") == "https://notyahoo.com/x"
    assert redirected("https://fc.yahoo.com", "") == "https://fc.yahoo.com"


@pytest.mark.parametrize(("sent", "meant"), [(244.60000610351562, 244.6), (244.6, 244.6), (24.535, 24.535), (750_000.0625, 750_000.06), (0.1, 0.1)])
def test_a_price_that_is_a_float32_is_its_shortest_decimal(sent: float, meant: float) -> None:
    assert plain(sent) == meant

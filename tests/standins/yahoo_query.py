"""A stand-in for Yahoo's REST service, as faithful as the public record of it allows: cookie, crumb, quotes, charts, and each way in which they fail.

By hand: `python -m tests.standins.yahoo_query --port 8480`, then `STOCKSTREAM_YAHOO_QUERY_URL=http://127.0.0.1:8480`.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from aiohttp import web

Fault = Literal["", "rate_limited", "html", "no_json", "unauthorized", "slow", "down", "html_crumb", "empty_crumb", "rate_limited_crumb", "hang_up"]

COOKIE = "d=standin&S=standin"
NEW_YORK_MS = -5 * 3600 * 1000


@dataclass
class Listing:
    """One symbol as the service knows it."""

    symbol: str
    name: str
    exchange: str = "NMS"
    currency: str = "USD"
    kind: str = "EQUITY"
    delay_min: int = 0
    state: str = "REGULAR"
    market_cap: int | None = 1_000_000_000
    extra: dict[str, Any] = field(default_factory=dict)
    """Fields of its quote that replace the model's; None removes one."""
    last_trade_s: int | None = None
    """Epoch seconds of its last trade; now if None."""


@dataclass(frozen=True)
class Bar:
    """One minute of the model. `start` is in epoch seconds."""

    start: int
    open: float
    high: float
    low: float
    close: float
    volume: int


def listings(names: list[str]) -> list[Listing]:
    return [Listing(name, f"{name} Inc.") for name in names]


def float32(value: float) -> float:
    """What Yahoo answers for a price: the double of a float32, such as 244.60000610351562."""
    return float(np.float32(value))


def price_at(symbol: str, second: int) -> float:
    """The model's price: a slow wave around a level of the symbol, on a cent grid."""
    level = 20 + zlib.crc32(symbol.encode()) % 40_000 / 100
    return round(level * (1 + 0.01 * math.sin(second / 600) + 0.001 * math.sin(second / 7)), 2)


def bar_of(symbol: str, start: int) -> Bar:
    """The model's minute that begins at `start`, epoch seconds."""
    prices = [price_at(symbol, second) for second in range(start, start + 60, 5)]
    return Bar(start, prices[0], max(prices), min(prices), prices[-1], 100 + (zlib.crc32(symbol.encode()) + start // 60) % 900)


def volume_at(second: int) -> int:
    """Shares of the day so far; 100 a second since midnight in UTC."""
    return 100 * (second % 86_400)


class YahooQueryServer:
    """The server. `fault` and `times` make its next answers fail: for ever if `times` is None, else that many.

    Args:
        known: the symbols; others are unknown.
        now: epoch seconds.
        quiet: minutes (epoch seconds) in which nothing traded: nulls in the chart.
    """

    def __init__(self, known: list[Listing], now: Callable[[], float] = time.time, quiet: frozenset[int] = frozenset()) -> None:
        self.known = {listing.symbol: listing for listing in known}
        self.now, self.quiet = now, quiet
        self.fault: Fault = ""
        self.times: int | None = None
        self.slow_s = 5.0
        self.crumb = "s7aNdIn.CrUmB"
        self.requests: list[tuple[str, dict[str, str]]] = []
        """Path and parameters of every request, also of those that failed."""
        self._runner: web.AppRunner | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def count(self, path: str) -> int:
        """How many requests had a path that begins like this."""
        return sum(asked.startswith(path) for asked, _ in self.requests)

    def fail(self, fault: Fault, times: int | None = None) -> None:
        self.fault, self.times = fault, times

    def new_crumb(self) -> None:
        """Forgets the crumb that was given out: requests with it are answered with 401."""
        self.crumb = f"{self.crumb[:12]}{len(self.requests)}"

    async def start(self, port: int = 0) -> None:
        app = web.Application()
        app.router.add_get("/v1/test/getcrumb", self._crumb)
        app.router.add_get("/v7/finance/quote", self._quote)
        app.router.add_get("/v8/finance/chart/{symbol}", self._chart)
        app.router.add_get("/consent", self._consent)
        app.router.add_get("/{other:.*}", self._cookie)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    # ---- answers

    async def _cookie(self, request: web.Request) -> web.Response:
        """fc.yahoo.com: 404, with the cookie that everything else needs."""
        self._note(request)
        answer = web.Response(status=404, text="")
        answer.set_cookie("A3", COOKIE, max_age=31_536_000, path="/")
        return answer

    async def _consent(self, request: web.Request) -> web.Response:
        """guce.yahoo.com without a form: yfinance's second way to a cookie ends here."""
        self._note(request)
        return web.Response(text="<html><body>Yahoo is part of the Yahoo family of brands.</body></html>", content_type="text/html")

    async def _crumb(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if (fault := self._take("rate_limited_crumb", "html_crumb", "empty_crumb")) is not None:
            if fault == "rate_limited_crumb":
                return web.Response(status=429, text="Too Many Requests\r\n")
            return web.Response(text="<html><body>Will be right back...</body></html>" if fault == "html_crumb" else "")
        return web.Response(text=self.crumb if "A3" in request.cookies else "")

    async def _quote(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if (fault := await self._failed(request, "quoteResponse")) is not None:
            return fault
        symbols = [name for name in request.query.get("symbols", "").split(",") if name]
        if not symbols or len(symbols) > 99:
            error = {"code": "internal-error", "description": f"{len(symbols)} symbols"}
            return web.json_response({"quoteResponse": {"result": None, "error": error}}, status=400 if not symbols else 413)
        result = [self.quote(self.known[name]) for name in symbols if name in self.known]
        return web.json_response({"quoteResponse": {"result": result, "error": None}})

    def quote(self, listing: Listing) -> dict[str, Any]:
        second = listing.last_trade_s if listing.last_trade_s is not None else int(self.now()) - 60 * listing.delay_min
        price, before = price_at(listing.symbol, second), price_at(listing.symbol, second - second % 86_400 - 1)
        fields: dict[str, Any] = {
            "language": "en-US", "region": "US", "quoteType": listing.kind, "typeDisp": listing.kind.capitalize(), "quoteSourceName": "Nasdaq Real Time Price",
            "currency": listing.currency, "marketState": listing.state, "exchange": listing.exchange, "fullExchangeName": listing.exchange,
            "exchangeTimezoneName": "America/New_York", "exchangeTimezoneShortName": "EST", "gmtOffSetMilliseconds": NEW_YORK_MS,
            "exchangeDataDelayedBy": listing.delay_min, "sourceInterval": 15, "priceHint": 2, "tradeable": False, "symbol": listing.symbol,
            "shortName": listing.name, "longName": listing.name, "marketCap": listing.market_cap,
            "regularMarketPrice": float32(price), "regularMarketTime": second, "regularMarketVolume": volume_at(second),
            "regularMarketPreviousClose": float32(before), "regularMarketDayHigh": float32(price * 1.01), "regularMarketDayLow": float32(price * 0.99),
            "regularMarketChange": float32(price - before), "bid": float32(price - 0.01), "ask": float32(price + 0.01), "bidSize": 2, "askSize": 1,
        }  # fmt: skip
        if listing.state in ("PRE", "POST"):
            of = listing.state.lower()
            fields |= {f"{of}MarketPrice": float32(price + 0.5), f"{of}MarketTime": second, f"{of}MarketChange": 0.5}
            fields["regularMarketTime"] = second - 3_600
        return {name: value for name, value in (fields | listing.extra).items() if value is not None}

    async def _chart(self, request: web.Request) -> web.StreamResponse:
        self._note(request)
        if (fault := await self._failed(request, "chart")) is not None:
            return fault
        listing = self.known.get(request.match_info["symbol"])
        if listing is None:
            error = {"code": "Not Found", "description": "No data found, symbol may be delisted"}
            return web.json_response({"chart": {"result": None, "error": error}}, status=404)
        first, end = int(request.query.get("period1", 0)), int(request.query.get("period2", 0))
        if request.query.get("interval") == "1m" and end - first > 8 * 86_400:
            text = "1m data not available for startTime and endTime. Only 8 days worth of 1m granularity data are allowed to be fetched per request."
            return web.json_response({"chart": {"result": None, "error": {"code": "Unprocessable Entity", "description": text}}}, status=422)
        delayed = int(self.now()) - 60 * listing.delay_min
        starts = list(range(first // 60 * 60, min(end, delayed - 60) + 1, 60))
        bars = [bar_of(listing.symbol, start) for start in starts]
        columns: dict[str, list[Any]] = {
            name: [None if bar.start in self.quiet else float32(getattr(bar, name)) for bar in bars] for name in ("open", "high", "low", "close")
        }
        columns["volume"] = [None if bar.start in self.quiet else bar.volume for bar in bars]
        if end > delayed - 120 and starts:                                # Yahoo's own: the last trade as a bar beside the minutes
            starts.append(delayed if delayed % 60 else delayed + 1)
            for name in ("open", "high", "low", "close"):
                columns[name].append(float32(price_at(listing.symbol, delayed)))
            columns["volume"].append(0)
        meta = {
            "currency": listing.currency, "symbol": listing.symbol, "exchangeName": listing.exchange, "instrumentType": listing.kind, "gmtoffset": -18_000,
            "timezone": "EST", "exchangeTimezoneName": "America/New_York", "regularMarketPrice": float32(price_at(listing.symbol, delayed)),
            "regularMarketTime": delayed, "priceHint": 2, "dataGranularity": "1m", "range": "", "validRanges": ["1d", "5d", "1mo", "max"],
        }  # fmt: skip
        result: dict[str, Any] = {"meta": meta, "indicators": {"quote": [columns if starts else {}]}}
        if starts:
            result["timestamp"] = starts
        return web.json_response({"chart": {"result": [result], "error": None}})

    # ---- faults

    def _note(self, request: web.Request) -> None:
        self.requests.append((request.path, dict(request.query)))

    def _take(self, *faults: Fault) -> Fault | None:
        """The fault that is on, if it is one of these; one of `times` is used up."""
        if self.fault not in faults or self.times == 0:
            return None
        if self.times is not None:
            self.times -= 1
        return self.fault

    async def _failed(self, request: web.Request, endpoint: str) -> web.StreamResponse | None:
        match self._take("rate_limited", "html", "no_json", "unauthorized", "slow", "down", "hang_up"):
            case "rate_limited":
                return web.Response(status=429, text="Edge: Too Many Requests")
            case "html":
                return web.Response(text="<html><body>Will be right back...</body></html>", content_type="text/html")
            case "no_json":
                return web.Response(text='{"quoteResponse": {"result": [{"symb', content_type="application/json")
            case "down":
                return web.Response(status=502, text="<html>Bad Gateway</html>", content_type="text/html")
            case "hang_up":
                assert request.transport is not None
                request.transport.close()
                return web.Response()
            case "slow":
                await asyncio.sleep(self.slow_s)
            case "unauthorized":
                return self._unauthorized()
        if request.query.get("crumb") != self.crumb or "A3" not in request.cookies:
            return self._unauthorized()
        return None

    def _unauthorized(self) -> web.Response:
        error = {"code": "Unauthorized", "description": "Invalid Crumb"}
        return web.json_response({"finance": {"result": None, "error": error}}, status=401)


async def _serve(options: argparse.Namespace) -> None:
    server = YahooQueryServer(listings(options.symbols.split(",")))
    server.fail(options.fault, options.times)
    server.slow_s = options.slow_s
    await server.start(options.port)
    print(f"{server.url} answers for {options.symbols}: set STOCKSTREAM_YAHOO_QUERY_URL={server.url}", flush=True)
    printed = 0
    while True:
        await asyncio.sleep(1)
        for path, query in server.requests[printed:]:
            print(path, {name: value for name, value in query.items() if name in ("symbols", "period1", "period2")}, flush=True)
        printed = len(server.requests)


def main() -> None:
    parser = argparse.ArgumentParser(description="A stand-in for Yahoo's REST service: cookie, crumb, /v7/finance/quote, /v8/finance/chart.")
    parser.add_argument("--port", type=int, default=8480)
    parser.add_argument("--symbols", default="AAPL,MSFT,NVDA,TSLA,BRK-B,^GSPC", help="the symbols that it knows, by comma")
    parser.add_argument("--fault", default="", choices=list(Fault.__args__), help="how the answers fail")  # type: ignore[attr-defined]
    parser.add_argument("--times", type=int, default=None, help="how many answers fail; all if left out")
    parser.add_argument("--slow-s", type=float, default=5.0, help="seconds before an answer with --fault slow")
    asyncio.run(_serve(parser.parse_args()))


if __name__ == "__main__":
    main()

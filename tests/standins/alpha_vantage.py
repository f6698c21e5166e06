"""A local stand-in for Alpha Vantage, faithful to its documented answers and to its errors, which come with HTTP 200.

By hand:

    python -m tests.standins.alpha_vantage --port 8089 --key mine --daily 25
    STOCKSTREAM_ALPHA_VANTAGE_URL=http://127.0.0.1:8089/query STOCKSTREAM_ALPHA_VANTAGE_KEY=mine STOCKSTREAM_SOURCE=alpha_vantage stockstream worker
    curl 'http://127.0.0.1:8089/switch?fault=burst'      # and back: fault=none
    curl http://127.0.0.1:8089/requests                  # what was requested, as JSON

It has every symbol of letters, digits, dots and dashes but those that begin with NONE, which it does not know. Prices follow from symbol and time.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from zlib import crc32
from zoneinfo import ZoneInfo

from aiohttp import web

NEW_YORK = ZoneInfo("America/New_York")
FAULTS = (
    "none", "daily", "burst", "minute", "premium", "key", "symbol", "html", "invalid", "shape", "unknown_text", "429", "500", "slow", "abrupt", "truncated",
)  # fmt: skip
SYMBOL = re.compile(r"(?!NONE)[A-Z0-9.-]{1,20}")
THANKS = "Thank you for using Alpha Vantage!"
PLANS = "any of the premium plans at https://www.alphavantage.co/premium/ to"
PREMIUM = f"{THANKS} This is a premium endpoint. You may subscribe to {PLANS} instantly unlock all premium endpoints"
BURST = (
    f"{THANKS} Please consider spreading out your free API requests more sparingly (1 request per second). You may subscribe to {PLANS} lift the free key "
    "rate limit (25 requests per day), raise the per-second burst limit, and instantly unlock all premium endpoints"
)
MINUTE = (
    f"{THANKS} Our standard API call frequency is 5 calls per minute and 500 calls per day. Please visit https://www.alphavantage.co/premium/ if you would "
    "like to target a higher API call frequency."
)
KEY = (
    "the parameter apikey is invalid or missing. Please claim your free API key on (https://www.alphavantage.co/support/#api-key). It should take less than "
    "20 seconds."
)


def invalid_call(function: str) -> str:
    return f"Invalid API call. Please retry or visit the documentation (https://www.alphavantage.co/documentation/) for {function}."


def daily(key: str) -> str:
    return (
        f"We have detected your API key as {key} and our standard API rate limit is 25 requests per day. Please subscribe to {PLANS} instantly remove all "
        "daily rate limits."
    )


@dataclass
class StandIn:
    """The state of a stand-in: its plan, its switches, and what was requested.

    `requests` has one entry for each request with the right key that reached it, in order: function, symbol, time (epoch s) and the error's name, if any.
    """

    key: str = "right-key"
    daily: int | None = 25
    per_second: int | None = None
    premium: bool = False
    delayed: bool = False
    fault: str = "none"
    faults: dict[str, str] = field(default_factory=dict)
    """Of single symbols."""
    slow_s: float = 30.0
    now: Callable[[], float] = time.time
    requests: list[dict[str, Any]] = field(default_factory=list)
    refused_keys: int = 0

    async def query(self, request: web.Request) -> web.StreamResponse:
        asked = request.query
        function, symbol = asked.get("function", ""), asked.get("symbol", "")
        if asked.get("apikey", "") != self.key:
            self.refused_keys += 1
            return web.json_response({"Error Message": KEY})
        entry: dict[str, Any] = {"function": function, "symbol": symbol, "at": self.now(), "error": ""}
        self.requests.append(entry)
        answered = [one for one in self.requests[:-1] if one["error"] not in ("burst", "daily")]
        if self.per_second is not None and sum(one["at"] > entry["at"] - 1 for one in answered) >= self.per_second:
            entry["error"] = "burst"
            return web.json_response({"Information": BURST})
        if self.daily is not None and len(answered) >= self.daily:
            entry["error"] = "daily"
            return web.json_response({"Information": daily(self.key)})
        if (fault := self.faults.get(symbol, self.fault)) != "none":
            entry["error"] = fault
            if (answer := await self._fault(request, function, fault)) is not None:
                return answer
        return web.json_response(self._answer(function, symbol, asked.get("month", "")))

    async def _fault(self, request: web.Request, function: str, fault: str) -> web.StreamResponse | None:
        texts = {
            "daily": {"Information": daily(self.key)}, "burst": {"Information": BURST}, "minute": {"Note": MINUTE}, "premium": {"Information": PREMIUM},
            "key": {"Error Message": KEY}, "symbol": {"Error Message": invalid_call(function)}, "shape": {"something": "else"},
            "unknown_text": {"Information": f"The service is being moved. Your apikey={self.key} stays valid."},
        }  # fmt: skip
        if fault in texts:
            return web.json_response(texts[fault])
        if fault == "html":
            return web.Response(text="<!DOCTYPE html><html><body>Just a moment...</body></html>", content_type="text/html")
        if fault == "invalid":
            return web.Response(text='{"Global Quote": {', content_type="application/json")
        if fault == "429":
            return web.Response(status=429, text="Too Many Requests", headers={"Retry-After": "90"})
        if fault == "500":
            return web.Response(status=500, text="upstream error")
        if fault == "slow":
            await asyncio.sleep(self.slow_s)
            return None
        assert request.transport is not None
        if fault == "truncated":
            request.transport.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 500\r\n\r\n{\"Global Quote\":")
        request.transport.close()
        return web.Response()

    def _answer(self, function: str, symbol: str, month: str) -> dict[str, Any]:
        if function == "MARKET_STATUS":
            local = datetime.fromtimestamp(self.now(), NEW_YORK)
            is_open = local.weekday() < 5 and (9, 30) <= (local.hour, local.minute) < (16, 0)
            return {"endpoint": "Global Market Open & Close Status", "markets": [{
                "market_type": "Equity", "region": "United States", "primary_exchanges": "NASDAQ, NYSE, AMEX, BATS", "local_open": "09:30",
                "local_close": "16:15", "current_status": "open" if is_open else "closed", "notes": "",
            }]}  # fmt: skip
        if function == "REALTIME_BULK_QUOTES":
            if not self.premium:
                return {"Information": PREMIUM}
            known = [one for one in symbol.split(",")[:100] if SYMBOL.fullmatch(one)]
            return {"endpoint": "Realtime Bulk Quotes", "message": "success", "data": [self.bulk_quote(one) for one in known]}
        if function not in ("GLOBAL_QUOTE", "TIME_SERIES_INTRADAY"):
            return {"Error Message": "This API function () does not exist."}
        if not SYMBOL.fullmatch(symbol):
            return {"Global Quote": {}} if function == "GLOBAL_QUOTE" else {"Error Message": invalid_call(function)}
        if function == "TIME_SERIES_INTRADAY":
            return self.intraday(symbol, month)
        name = "Global Quote - DATA DELAYED BY 15 MINUTES" if self.delayed else "Global Quote"
        return {name: self.quote(symbol)}

    def price(self, symbol: str, second: int) -> float:
        seed = crc32(symbol.encode())
        return round(20 + seed % 400 + (crc32(f"{symbol}{second // 60}".encode()) % 1000 - 500) / 500, 2)

    def quote(self, symbol: str) -> dict[str, str]:
        at = self.now() - (900 if self.delayed else 0)
        local = datetime.fromtimestamp(at, NEW_YORK)
        price, opening = self.price(symbol, int(at)), self.price(symbol, int(at) // 86_400 * 86_400)
        day = local.date()
        while day.weekday() > 4:
            day -= timedelta(days=1)
        return {
            "01. symbol": symbol, "02. open": f"{opening:.4f}", "03. high": f"{max(price, opening):.4f}", "04. low": f"{min(price, opening):.4f}",
            "05. price": f"{price:.4f}", "06. volume": str(1_000_000 + local.hour * 360_000 + local.minute * 6_000 + local.second * 100),
            "07. latest trading day": day.isoformat(), "08. previous close": f"{opening:.4f}", "09. change": f"{price - opening:.4f}",
            "10. change percent": f"{(price / opening - 1) * 100:.4f}%",
        }  # fmt: skip

    def bulk_quote(self, symbol: str) -> dict[str, str]:
        at = datetime.fromtimestamp(self.now() - crc32(symbol.encode()) % 3, NEW_YORK)
        quote = self.quote(symbol)
        return {
            "symbol": symbol, "timestamp": at.strftime("%Y-%m-%d %H:%M:%S.%f")[:-3], "open": quote["02. open"], "high": quote["03. high"],
            "low": quote["04. low"], "close": quote["05. price"], "volume": quote["06. volume"], "previous_close": quote["08. previous close"],
            "change": quote["09. change"], "change_percent": quote["10. change percent"][:-1], "extended_hours_quote": "", "extended_hours_change": "",
            "extended_hours_change_percent": "",
        }  # fmt: skip

    def intraday(self, symbol: str, month: str) -> dict[str, Any]:
        """The minutes of two trading days of the month, or of the days before now."""
        first = datetime.strptime(f"{month}-02", "%Y-%m-%d").replace(tzinfo=NEW_YORK) if month else datetime.fromtimestamp(self.now(), NEW_YORK)
        bars = {}
        for day in (first.date(), first.date() - timedelta(days=1)):
            for minute in range(16 * 60 - 1, 9 * 60 + 29, -1):
                at = datetime(day.year, day.month, day.day, minute // 60, minute % 60, tzinfo=NEW_YORK)
                prices = [self.price(symbol, int(at.timestamp()) + offset) for offset in (0, 60)]
                bars[f"{at:%Y-%m-%d %H:%M:%S}"] = {
                    "1. open": f"{prices[0]:.4f}", "2. high": f"{max(prices):.4f}", "3. low": f"{min(prices):.4f}", "4. close": f"{prices[1]:.4f}",
                    "5. volume": str(100 + minute),
                }  # fmt: skip
        newest = next(iter(bars))
        return {
            "Meta Data": {
                "1. Information": "Intraday (1min) open, high, low, close prices and volume", "2. Symbol": symbol, "3. Last Refreshed": newest,
                "4. Interval": "1min", "5. Output Size": "Full size", "6. Time Zone": "US/Eastern",
            },
            "Time Series (1min)": bars,
        }  # fmt: skip

    async def switch(self, request: web.Request) -> web.Response:
        fault = request.query.get("fault", "none")
        if fault not in FAULTS:
            return web.Response(status=400, text=f"choose from: {' '.join(FAULTS)}\n")
        self.fault = fault
        return web.Response(text=f"{fault}\n")

    async def listed(self, request: web.Request) -> web.Response:
        return web.json_response({"requests": self.requests, "refused_keys": self.refused_keys})

    def application(self) -> web.Application:
        application = web.Application()
        application.add_routes([web.get("/query", self.query), web.get("/switch", self.switch), web.get("/requests", self.listed)])
        return application


class Running:
    """A stand-in in a thread of its own, for tests; `url` is its address. Use with `with`."""

    def __init__(self, standin: StandIn, port: int = 0) -> None:
        self.standin, self._port = standin, port
        self.url = ""
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="alpha vantage stand-in", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None

    async def _serve(self) -> None:
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        runner = web.AppRunner(self.standin.application(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", self._port)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}/query"
        self._ready.set()
        await self._end.wait()
        await runner.cleanup()

    def __enter__(self) -> Running:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._loop is not None
        assert self._end is not None
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join(10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8089)
    parser.add_argument("--key", default="right-key", help="the only key that it accepts")
    parser.add_argument("--daily", type=int, default=25, help="requests of a day; 0: no limit")
    parser.add_argument("--per-second", type=int, default=1, help="requests of a second; 0: no limit")
    parser.add_argument("--premium", action="store_true", help="has bulk quotes")
    parser.add_argument("--delayed", action="store_true", help="quotes are delayed by 15 minutes")
    parser.add_argument("--fault", choices=FAULTS, default="none", help="what it answers with; /switch?fault=... changes it")
    parser.add_argument("--slow-s", type=float, default=30.0, help="seconds before an answer of the fault `slow`")
    found = parser.parse_args()
    standin = StandIn(
        key=found.key, daily=found.daily or None, per_second=found.per_second or None, premium=found.premium, delayed=found.delayed, fault=found.fault,
        slow_s=found.slow_s,
    )  # fmt: skip
    print(json.dumps({"url": f"http://127.0.0.1:{found.port}/query", "key": found.key}), flush=True)
    web.run_app(standin.application(), host="127.0.0.1", port=found.port, print=None, access_log=None)


if __name__ == "__main__":
    main()

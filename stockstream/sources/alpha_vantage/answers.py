"""What Alpha Vantage answers: its errors, which come with HTTP 200 and differ only in their texts, and its data. Pure functions; no error text has the key.

The texts are those of the provider's documentation and of users' reports; docs/sources.md lists the states that follow from them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec

from stockstream.errors import SourceError
from stockstream.skipped import shortened
from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.transforms.cleaning.limits import MAX_DAY_VOLUME, MAX_PRICE, MIN_PRICE

ZONE = ZoneInfo("America/New_York")
"""Of all times in its answers, whose own name for it is US/Eastern."""

Kind = Literal["daily", "burst", "minute", "rate", "premium", "key", "symbol", "html", "status", "invalid", "refused", "unsent", "timeout", "broken"]
"""Why a request brought nothing, as TEXTS describes it. symbol: unknown, or without a price. minute: an older text. refused: an error that is none of these.
unsent: no connection, so that no request was made. broken: the connection ended before the answer did."""

TEXTS: Mapping[Kind, str] = {
    "daily": "the day's requests of this key are spent",
    "burst": "too many requests in one second",
    "minute": "too many requests in one minute",
    "rate": "too many requests (HTTP 429)",
    "premium": "this request is not in the plan of this key",
    "key": "the key is wrong or missing: set STOCKSTREAM_ALPHA_VANTAGE_KEY (a free key: https://www.alphavantage.co/support/#api-key)",
    "symbol": "it has no data of the symbol",
    "html": "it answered with a web page instead of JSON",
    "status": "it answered with an HTTP error",
    "invalid": "its answer is not what its documentation describes",
    "refused": "it refused the request",
    "unsent": "it cannot be reached",
    "timeout": "it did not answer in time",
    "broken": "the connection ended before the answer was complete",
}
_DELAY = re.compile(r"DELAYED BY (\d{1,4}) MINUTES", re.IGNORECASE)
_KEY_IN_TEXT = re.compile(r"(api ?key as\s+)\S+", re.IGNORECASE)


class AnswerError(SourceError):
    """A request that brought nothing. `kind` is its class; `str()` is one line without the key."""

    def __init__(self, kind: Kind, detail: str = "", *, retry_after_s: float = 0.0) -> None:
        super().__init__("Alpha Vantage: " + TEXTS[kind] + (f": {detail}" if detail else ""), stops=kind == "key")
        self.kind, self.retry_after_s = kind, retry_after_s


@dataclass(frozen=True, slots=True)
class Quote:
    """A symbol's last price. `volume` is that of its trading day so far; one of `day` (ISO date) and `at` (epoch ms) is given."""

    symbol: str
    price: float
    volume: float | None
    previous_close: float | None = None
    day: str = ""
    at: int | None = None
    delay_ms: int = 0
    """The least age of the data by the provider's own statement."""


@dataclass(frozen=True, slots=True)
class Minute:
    """A one-minute bar. `time` is its start as the provider writes it, in US/Eastern."""

    time: str
    open: str
    high: str
    low: str
    close: str
    volume: str


def redacted(text: str, key: str) -> str:
    """The text without the key: neither ours nor one that the provider repeats."""
    text = _KEY_IN_TEXT.sub(r"\1***", text)
    return text.replace(key, "***") if key else text


def decoded(status: int, body: bytes, key: str, *, retry_after: str = "") -> dict[str, Any]:
    """The answer's JSON object. Raises `AnswerError` if it is an error."""
    if status == 429:
        raise AnswerError("rate", retry_after_s=float(retry_after) if retry_after.isdigit() else 0.0)
    start = body[:512].lstrip().lower()
    if start.startswith(b"<"):
        raise AnswerError("html", f"HTTP {status}")
    if status == 401:
        raise AnswerError("key")
    if status != 200:
        raise AnswerError("status", f"HTTP {status}")
    try:
        answer = msgspec.json.decode(body)
    except UNREADABLE:
        raise AnswerError("invalid", f"{len(body):,} bytes that are no JSON") from None
    if not isinstance(answer, dict):
        raise AnswerError("invalid", "JSON that is no object")
    for name in ("Error Message", "Information", "Note"):
        if isinstance(text := answer.get(name), str):
            raise _error_of(text, key)
    return answer


def _error_of(text: str, key: str) -> AnswerError:
    """The error of a text. The order matters: the text about bursts also names the daily limit and the premium plans."""
    found = " ".join(text.lower().split())
    if "sparingly" in found or "per second" in found:
        return AnswerError("burst")
    if "calls per minute" in found or "requests per minute" in found or "call frequency" in found:
        return AnswerError("minute")
    if "per day" in found or "daily" in found:
        return AnswerError("daily")
    if ("apikey" in found or "api key" in found) and any(word in found for word in ("invalid", "missing", "claim your free", "demo")):
        return AnswerError("key")
    if "premium" in found:
        return AnswerError("premium")
    if "invalid api call" in found:
        return AnswerError("symbol")
    return AnswerError("refused", shortened(redacted(text, key)))


def quote_of(answer: Mapping[str, Any], symbol: str) -> Quote:
    """Of GLOBAL_QUOTE, for the symbol as the provider writes it. Raises `AnswerError`: `symbol` if the answer is empty."""
    name = next((name for name in answer if name.startswith("Global Quote")), None)
    fields = answer[name] if name is not None else None
    if not isinstance(fields, dict):
        raise AnswerError("invalid", f"no Global Quote for {symbol}")
    if not fields:
        raise AnswerError("symbol", symbol)
    delay = _DELAY.search(name or "")
    day = str(fields.get("07. latest trading day", ""))
    try:
        datetime.strptime(day, "%Y-%m-%d").replace(tzinfo=ZONE)
    except ValueError:
        raise AnswerError("invalid", f"no trading day for {symbol}") from None
    return Quote(
        symbol, _price(fields.get("05. price"), symbol), _volume(fields.get("06. volume")), _optional(fields.get("08. previous close")), day=day,
        delay_ms=int(delay[1]) * 60_000 if delay else 0,
    )  # fmt: skip


def bulk_quotes_of(answer: Mapping[str, Any], symbols: list[str]) -> tuple[list[Quote], list[str]]:
    """Of REALTIME_BULK_QUOTES: the quotes, and the symbols that are missing. A row without a price or a time is left out. Raises `AnswerError`."""
    data = answer.get("data")
    if not isinstance(data, list):
        raise AnswerError("premium" if "sample" in str(answer.get("message", "")).lower() else "invalid", "no bulk quotes")
    missing, found = set(symbols), {}
    for row in data:
        if not isinstance(row, dict) or row.get("symbol") not in missing:
            continue
        missing.discard(row["symbol"])
        try:
            moment = datetime.fromisoformat(str(row.get("timestamp"))).replace(tzinfo=ZONE)
            quote = Quote(
                row["symbol"], _price(row.get("close"), row["symbol"]), _volume(row.get("volume")), _optional(row.get("previous_close")),
                at=math.floor(moment.timestamp() * 1000),
            )  # fmt: skip
        except (AnswerError, ValueError):
            continue
        found[quote.symbol] = quote
    return [found[symbol] for symbol in symbols if symbol in found], [symbol for symbol in symbols if symbol in missing]


def minutes_of(answer: Mapping[str, Any], symbol: str) -> list[Minute]:
    """Of TIME_SERIES_INTRADAY with interval 1min, in the order of time. Raises `AnswerError`."""
    series = answer.get("Time Series (1min)")
    if not isinstance(series, dict):
        raise AnswerError("invalid", f"no one-minute bars of {symbol}")
    found = []
    for time, bar in series.items():
        values = [str(bar.get(name, "")) if isinstance(bar, dict) else "" for name in ("1. open", "2. high", "3. low", "4. close", "5. volume")]
        try:
            datetime.strptime(time, "%Y-%m-%d %H:%M:%S").replace(tzinfo=ZONE)
            if not all(math.isfinite(float(value)) for value in values):
                raise ValueError
        except ValueError:
            raise AnswerError("invalid", f"a bar of {symbol} at {time[:40]!r}") from None
        found.append(Minute(time, *values))
    return sorted(found, key=lambda minute: minute.time)


def us_market_is_open(answer: Mapping[str, Any]) -> bool | None:
    """Of MARKET_STATUS: whether the US equity market is open; None if the answer does not have it."""
    markets = answer.get("markets")
    for market in markets if isinstance(markets, list) else ():
        if isinstance(market, dict) and market.get("region") == "United States" and market.get("market_type") == "Equity":
            return bool(market.get("current_status") == "open")
    return None


def _price(value: Any, symbol: str) -> float:
    price = _optional(value)
    if price is None:
        raise AnswerError("symbol", f"{symbol} (no price)")
    return price


def _optional(value: Any) -> float | None:
    """A price, or None if there is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if MIN_PRICE <= number <= MAX_PRICE else None


def _volume(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if 0 <= number <= MAX_DAY_VOLUME else None

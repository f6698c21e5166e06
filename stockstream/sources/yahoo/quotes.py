"""Yahoo's quotes as ticks and metadata. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from stockstream.sources.base import FeedNote, SymbolInfo
from stockstream.sources.yahoo.query import plain

SESSIONS = ("regular", "pre", "post", "overnight")
"""Each has its price and time in a quote, as in `preMarketPrice`."""
COUNTED = frozenset(("EQUITY", "ETF", "INDEX", "FUTURE", "MUTUALFUND"))
"""Types whose volume counts from the beginning of a session. That of a coin is of the last 24 hours, and falls as well as rises."""
CLOSED = frozenset(("CLOSED", "PREPRE", "POSTPOST"))


def info_of(quote: Mapping[str, Any], symbol: str, source: str) -> SymbolInfo:
    """The metadata in a quote; null where it has none."""
    exchange, currency = _text(quote, "exchange"), _text(quote, "currency")
    return SymbolInfo(
        symbol=symbol, source=source, name=_text(quote, "longName") or _text(quote, "shortName"), currency=currency, exchange=exchange,
        previous_close=_price(quote, "regularMarketPreviousClose"), market_cap=_number(quote, "marketCap"),
    )  # fmt: skip


def tick_of(quote: Mapping[str, Any], symbol: str, source: str) -> dict[str, Any] | None:
    """The newest price in a quote, as a tick that is a snapshot; None if there is no price with a time.

    The event time is that of the last trade, in whole seconds, however old. Volume counts in the regular session only. Bid and ask are left out: a quote does
    not give their time, and they stay after the market has closed.
    """
    found = [
        (round(time * 1000), price, session)
        for session in SESSIONS
        if (price := _price(quote, f"{session}MarketPrice")) is not None and (time := _number(quote, f"{session}MarketTime")) is not None
    ]
    if not found:
        return None
    event_time, price, session = max(found, key=lambda item: item[0])
    tick: dict[str, Any] = {"symbol": symbol, "event_time": event_time, "price": price, "source": source, "snapshot": True}
    volume = _number(quote, "regularMarketVolume")
    if session == "regular" and volume is not None and volume >= 0 and quote.get("quoteType") in COUNTED:
        tick["day_volume"] = volume
    else:
        tick["size"] = 0
    local_ms = event_time + (_number(quote, "gmtOffSetMilliseconds") or 0)
    tick["session"] = f"{session} {datetime.fromtimestamp(local_ms / 1000, UTC):%Y-%m-%d}"
    for name in ("exchange", "currency"):
        if (text := _text(quote, name)) is not None:
            tick[name] = text
    return tick


def note_of(quote: Mapping[str, Any]) -> FeedNote:
    """What a quote shows about the market of its symbol."""
    state, exchange = str(quote.get("marketState", "")), _text(quote, "exchange")
    delay = _number(quote, "exchangeDataDelayedBy") or 0
    reason = f"delayed by {delay:.0f} minutes" if delay else ""
    if state in CLOSED:
        return FeedNote(state="closed", reason=", ".join(filter(None, (f"Yahoo's market state is {state}", reason))), exchange=exchange)
    return FeedNote(reason=reason, exchange=exchange)


def _text(quote: Mapping[str, Any], name: str) -> str | None:
    value = quote.get(name)
    return value[:64] if isinstance(value, str) and value else None


def _number(quote: Mapping[str, Any], name: str) -> float | None:
    value = quote.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _price(quote: Mapping[str, Any], name: str) -> float | None:
    value = _number(quote, name)
    return plain(value) if value is not None and value > 0 else None

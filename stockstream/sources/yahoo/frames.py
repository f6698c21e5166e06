"""Frames of Yahoo's stream: `{"type": "pricing", "message": "<base64 of a protobuf PricingData>"}`, or the bare base64. One price becomes one tick.

Pure, but for the import of yfinance, whose protobuf is the contract: the package takes a second to import, so `load_protobuf` does that on first use.
"""

from __future__ import annotations

import binascii
import math
import re
import struct
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import msgspec

from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.transforms.cleaning.limits import MAX_TEXT, MAX_TIME, MIN_TIME

NAME = "yahoo"
"""The `source` of ticks in real time; those of a delayed exchange have `yahoo.<EXCHANGE>`, because their clock is another one."""

HEARTBEAT, CRYPTO = 7, 41
"""Values of `quote_type`."""
REAL_TIME = frozenset(("NMS", "NGM", "NCM", "NYQ", "ASE", "PCX", "BTS", "CCC", "CCY"))
"""Exchanges whose prices Yahoo streams without a delay: those of US shares and funds, coins and currencies. An exchange that is missing here only gets a
clock of its own; one that were here wrongly would have its ticks rejected as late."""
ALWAYS_OPEN = frozenset(("CCC", "CCY"))
SESSIONS = {0: "pre", 1: "regular", 2: "post", 3: "extended", 4: "overnight"}
"""By `market_hours`. Zero values are absent in a frame, so that one without is pre-market."""

_NEW_YORK, _FUTURES = ("America/New_York", 20), ("America/New_York", 18)
_DAYS = dict.fromkeys(("CME", "CBT", "NYM", "CMX", "NYB"), _FUTURES) | {"ASX": ("Australia/Sydney", 24), "NZE": ("Pacific/Auckland", 24)} | dict.fromkeys(
    REAL_TIME - ALWAYS_OPEN, _NEW_YORK
)
"""By exchange: a time zone, and the local hour from which on a session belongs to the next day. For others the day is that of UTC, which their sessions do
not cross."""

_EXCHANGE = re.compile(r"[A-Z0-9]{1,16}")
_float32 = struct.Struct("<f")


class Frame(NamedTuple):
    """A price as Yahoo sends it. A frame with the `key` of the one before brings nothing new."""

    symbol: str
    event_time: int
    price: float
    day_volume: int
    exchange: str
    currency: str
    quote_type: int
    market_hours: int
    bid: float
    ask: float
    bid_size: int
    ask_size: int

    @property
    def key(self) -> tuple[int, float, int]:
        return self.event_time, self.price, self.day_volume


class FrameFault(Exception):
    """A message that is no price. `reason` is a label, `detail` a text for a log line."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class _Envelope(msgspec.Struct):
    type: str = ""
    message: str = ""


_open = msgspec.json.Decoder(_Envelope).decode
_encode = msgspec.json.Encoder().encode

Parse = Callable[[bytes], Any]
"""A PricingData from its bytes. Raises `google.protobuf.message.DecodeError`."""


def load_protobuf() -> Parse:
    """yfinance's `PricingData`. The import takes about a second: call it in a thread."""
    from yfinance.pricing_pb2 import PricingData

    parse: Parse = PricingData.FromString
    return parse


def read(message: bytes, parse: Parse) -> Frame | None:
    """The price in a message of the stream; None for a heartbeat and for messages of other types. Raises `FrameFault` if it is unreadable."""
    data = message
    if message[:1] == b"{":
        try:
            envelope = _open(message)
        except UNREADABLE as error:
            raise FrameFault("invalid_json", str(error)) from error
        if envelope.type != "pricing":
            return None
        data = envelope.message.encode()
    try:
        pricing = parse(binascii.a2b_base64(data, strict_mode=True))
    except binascii.Error as error:
        raise FrameFault("invalid_base64", str(error)) from error
    except Exception as error:                                       # protobuf's own error, whose class moves between its releases
        raise FrameFault("invalid_protobuf", str(error)) from error
    if pricing.quote_type == HEARTBEAT:
        return None
    symbol, event_time, price = pricing.id, pricing.time, pricing.price
    if not symbol:
        raise FrameFault("no_symbol")
    if not event_time or not price or not math.isfinite(price):
        raise FrameFault("no_price", f"{symbol[:40]!r} has price {price} at {event_time}")
    hint = pricing.price_hint
    return Frame(
        symbol, event_time, rounded(price, hint), pricing.day_volume, pricing.exchange, pricing.currency, pricing.quote_type, pricing.market_hours,
        rounded(pricing.bid, hint), rounded(pricing.ask, hint), pricing.bid_size, pricing.ask_size,
    )  # fmt: skip


def rounded(price: float, decimals: int) -> float:
    """The decimal number that a float32 stands for: the one with `decimals` places if it is the same float32, else the shortest that is.

    So 24.535 stays a price of three places, though its `price_hint` is 2.
    """
    if not price:
        return 0.0
    if 0 < decimals <= 9 and _same(near := round(price, decimals), price):
        return near
    return next((near for digits in range(6, 9) if _same(near := float(f"{price:.{digits}g}"), price)), float(f"{price:.9g}"))


def _same(near: float, price: float) -> bool:
    try:
        return bool(_float32.unpack(_float32.pack(near))[0] == price)
    except OverflowError:
        return False


def source_of(exchange: str) -> str:
    """The `source` of the ticks of an exchange; without a (known) code the one in real time."""
    return NAME if exchange in REAL_TIME or not _EXCHANGE.fullmatch(exchange) else f"{NAME}.{exchange}"


def session_of(frame: Frame) -> str | None:
    """The session of a frame's day volume, such as `regular 2026-11-30`; None where trading never ends, so that there is no day."""
    if frame.quote_type == CRYPTO or frame.exchange in ALWAYS_OPEN or not MIN_TIME <= frame.event_time < MAX_TIME:
        return None
    return f"{SESSIONS.get(frame.market_hours, 'other')} {_day(frame.exchange, frame.event_time // 3_600_000)}"


@lru_cache(maxsize=4_096)
def _day(exchange: str, hour: int) -> str:
    """The day to which an hour (since the epoch) belongs at an exchange."""
    at = datetime.fromtimestamp(hour * 3_600, UTC)
    if exchange in _DAYS:
        zone, end = _DAYS[exchange]
        at = at.astimezone(ZoneInfo(zone))
        at += timedelta(days=at.hour >= end)
    return at.date().isoformat()


def tick_of(frame: Frame, symbol: str, source: str, received_at: int) -> bytes:
    """The tick of a frame, as JSON for `ticks.raw`.

    It is a `snapshot`: the stream gives the present state of a symbol, so that one that equals the one before is a duplicate. Without a day volume, as
    before and after the regular session, nobody knows how much was traded: the size is 0.
    """
    tick: dict[str, Any] = {"symbol": symbol, "event_time": frame.event_time, "price": frame.price, "source": source, "snapshot": True}
    if frame.day_volume > 0:
        tick["day_volume"] = frame.day_volume
    else:
        tick["size"] = 0
    for name, value in (("bid", frame.bid), ("ask", frame.ask), ("bid_size", frame.bid_size), ("ask_size", frame.ask_size)):
        if value > 0:
            tick[name] = value
    if frame.exchange:
        tick["exchange"] = frame.exchange[:MAX_TEXT]
    if frame.currency:
        tick["currency"] = frame.currency[:MAX_TEXT]
    session = session_of(frame)
    if session is not None:
        tick["session"] = session
    tick["received_at"] = received_at
    return _encode(tick)

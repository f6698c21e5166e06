"""What a tick's fields may hold, once: `rejections` rejects what is beyond, `columns` decodes within, `frame_checks` checks frames by it, and the published
schema states it."""

from __future__ import annotations

from collections.abc import Mapping

from stockstream.records import TEXTS

MAX_SYMBOL = 32
MAX_SOURCE = 128
MAX_TEXT = 64
"""Characters of each of the optional texts. The longest of real feeds have about 30: names of venues, four condition codes with separators."""
MIN_PRICE, MAX_PRICE = 1e-9, 1e9
MAX_SIZE = 10**11
"""Sums of sizes stay within int64 for 92 million ticks of the largest size in one window."""
MAX_QUOTE_SIZE = 1e12
MAX_DAY_VOLUME = 10**15
MAX_TIME = 1 << 42
"""The year 2109 in epoch milliseconds: a time in microseconds is beyond it."""
MAX_INT = (1 << 63) - 1
MAX_ARRAY = 100_000
"""Ticks of one record: each of them may become a rejection of its own."""
MAX_OFFSET = 1 << 62
"""Offsets are counted on from here by one, in int64."""

LENGTHS: Mapping[str, tuple[int, int]] = {"symbol": (1, MAX_SYMBOL), "source": (1, MAX_SOURCE)} | dict.fromkeys(TEXTS, (0, MAX_TEXT))
"""Characters of a text, at least and at most."""
RANGES: Mapping[str, tuple[float, float]] = {
    "event_time": (1, MAX_TIME - 1), "price": (MIN_PRICE, MAX_PRICE), "size": (0, MAX_SIZE), "seq": (0, MAX_INT), "day_volume": (0, MAX_DAY_VOLUME),
    "bid": (MIN_PRICE, MAX_PRICE), "ask": (MIN_PRICE, MAX_PRICE), "bid_size": (0, MAX_QUOTE_SIZE), "ask_size": (0, MAX_QUOTE_SIZE),
}  # fmt: skip
"""Least and greatest of a number, both included."""


def symbol_fault(symbol: str) -> str | None:
    """Why a text cannot be a symbol, in words; None where it can. What has no fault is also UTF-8."""
    if not 0 < len(symbol) <= MAX_SYMBOL:
        return f"symbol must have 1 to {MAX_SYMBOL} characters, has {len(symbol)}"
    if not symbol.isprintable() or symbol.strip() != symbol:
        return "symbol must be printable, without blanks around it"
    return None

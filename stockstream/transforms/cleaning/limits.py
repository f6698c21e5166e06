"""What a tick's fields may hold, once: `rejections` rejects what is beyond, `columns` decodes within, `frame_checks` checks frames by it, and the published
schema states it."""

from __future__ import annotations

from collections.abc import Mapping
from unicodedata import normalize

from stockstream.records import TEXTS

MAX_SYMBOL = 32
MAX_SOURCE = 128
MAX_TEXT = 64
"""Characters of each of the optional texts. The longest of real feeds have about 30: names of venues, four condition codes with separators."""
MIN_PRICE, MAX_PRICE = 1e-10, 1e11
"""From coins at a ten-billionth of a dollar to shares in currencies of many zeros."""
MAX_SIZE = 10**11
"""Sums of whole shares stay within int64 for 92 million ticks of the largest size in one window."""
MAX_QUOTE_SIZE = 1e12
MAX_DAY_VOLUME = 10**15
MIN_TIME = 631_152_000_000
"""1990 in epoch milliseconds: a time in seconds is below it."""
MAX_TIME = 1 << 42
"""The year 2109 in epoch milliseconds: a time in microseconds is beyond it."""
MAX_INTERVAL_S = 366 * 86_400
"""A bar of a year."""
MAX_INT = (1 << 63) - 1
MAX_ARRAY = 100_000
"""Ticks of one record: each of them may become a rejection of its own."""
MAX_OFFSET = 1 << 62
"""Offsets are counted on from here by one, in int64."""

UNITS: Mapping[str, tuple[int, int]] = {
    "seconds": (MIN_TIME // 1000, MAX_TIME // 1000), "milliseconds": (MIN_TIME, MAX_TIME), "microseconds": (MIN_TIME * 1000, MAX_TIME * 1000),
    "nanoseconds": (MIN_TIME * 1_000_000, MAX_TIME * 1_000_000), "a date (YYYYMMDD)": (19_900_101, 21_100_101),
}  # fmt: skip
"""By unit, the numbers of the times from MIN_TIME on and before MAX_TIME."""
LONGEST_DECOMPOSED = 4
"""Characters of which one character is composed at most (https://www.unicode.org/faq/normalization.html)."""

LENGTHS: Mapping[str, tuple[int, int]] = {"symbol": (1, MAX_SYMBOL), "source": (1, MAX_SOURCE)} | dict.fromkeys(TEXTS, (0, MAX_TEXT))
"""Characters of a text, at least and at most."""
RANGES: Mapping[str, tuple[float, float]] = {
    "event_time": (MIN_TIME, MAX_TIME - 1), "price": (MIN_PRICE, MAX_PRICE), "size": (0, MAX_SIZE), "seq": (0, MAX_INT), "epoch": (0, MAX_INT),
    "day_volume": (0, MAX_DAY_VOLUME), "bid": (MIN_PRICE, MAX_PRICE), "ask": (MIN_PRICE, MAX_PRICE), "bid_size": (0, MAX_QUOTE_SIZE),
    "ask_size": (0, MAX_QUOTE_SIZE), "gap_from": (MIN_TIME, MAX_TIME - 1), "interval_s": (0, MAX_INTERVAL_S),
}  # fmt: skip
"""Least and greatest of a number, both included."""

NO_DATA = frozenset((
    -1.0, float((1 << 31) - 1), float((1 << 32) - 1),                    # "unknown", the greatest int32 and uint32: vendors of many kinds
    float((1 << 63) - 1), ((1 << 63) - 1) / 1e9,                         # the greatest int64, as it is and with 9 decimals: Databento's UNDEF_PRICE
    1.7976931348623157e308,                                              # the greatest double: Interactive Brokers' UNSET_DOUBLE
))  # fmt: skip
"""What feeds send in a number that they do not have."""
PLACEHOLDERS: Mapping[str, frozenset[float]] = dict.fromkeys(("bid", "ask"), NO_DATA | {0.0}) | dict.fromkeys(
    ("bid_size", "ask_size", "size", "day_volume"), NO_DATA
)
"""By field, what feeds send where they have no value: as if it were null. A `size` is then 0."""


def symbol_fault(symbol: str) -> str | None:
    """Why a text cannot be a symbol, in words; None where it can. What has no fault is also UTF-8."""
    if not 0 < len(symbol) <= MAX_SYMBOL:
        return f"symbol must have 1 to {MAX_SYMBOL} characters, has {len(symbol)}"
    if not symbol.isprintable() or symbol.strip() != symbol:
        return "symbol must be printable, without blanks around it"
    return None


def composed(symbol: str) -> str:
    """The symbol in Unicode's form NFC, the one in which it is stored, published and assigned to a partition."""
    # a text that is too long for a symbol in any form stays: composing takes time that grows with the square of the length
    return symbol if symbol.isascii() or len(symbol) > LONGEST_DECOMPOSED * MAX_SYMBOL else normalize("NFC", symbol)


def unit_fault(time: int) -> str:
    """The unit that a time of a wrong one looks like, as the end of a sentence; empty where it looks like none of UNITS."""
    unit = unit_of(time)
    return f": that looks like {unit}" if unit else ""


def unit_of(time: int) -> str:
    """The unit of a time between MIN_TIME and MAX_TIME, by its magnitude; empty where it is none of UNITS. The ranges do not overlap."""
    for unit, (low, high) in UNITS.items():
        if low <= time < high:
            return unit
    return ""

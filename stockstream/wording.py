"""Formats counts, prices, sizes and times for messages."""

from __future__ import annotations

from datetime import UTC, datetime


def one_line(text: object) -> str:
    """The text, of an error for example, on one line: each run of white space is a blank."""
    return " ".join(str(text).split())


def counted(count: int, noun: str) -> str:
    """The count with its noun, in the plural unless the count is 1: `1 symbol`, `1,200 symbols`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def figure(value: float, decimals: int = 2, digits: int = 6) -> str:
    """A finite number with at least `decimals` decimal places, and with more where it takes them to show `digits` significant digits.

    Further zeros are left out: with the defaults 98.5 is `98.50`, 750000.5 is `750,000.50`, 0.000318 is `0.000318`. `figure` of `web/static/format.js`
    gives the same text.
    """
    places = max(decimals, digits - 1 - int(f"{value:.{digits - 1}e}".partition("e")[2]))
    text = f"{value:,.{places}f}"
    whole, _, fraction = text.partition(".")
    fraction = fraction[:decimals] + fraction[decimals:].rstrip("0")
    return f"{whole}.{fraction}" if fraction else whole


def span(seconds: float) -> str:
    """A span of time in its largest unit: `3 min`. `ago` of `web/static/format.js` gives the same text."""
    for unit, length in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:,.0f} {unit}"
    return f"{seconds:,.0f} s"


def utc_time(ms: float) -> str:
    """A time in epoch ms with its date, to the second: `2026-11-30 14:30:00 UTC`."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def clock_time(ms: float) -> str:
    """A time in epoch ms without its date: `14:30 UTC`."""
    return f"{datetime.fromtimestamp(ms / 1000, UTC):%H:%M} UTC"

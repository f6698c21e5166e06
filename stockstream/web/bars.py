"""Rings of one-second bars: one slot a second, as many seconds as the rolling window looks back, 1,024 symbols to a block."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import numpy.typing as npt

from stockstream.transforms.shares import total
from stockstream.transforms.timing import WINDOW_S
from stockstream.web.answers import Bar, or_null, whole_or_null

BLOCK = 1_024
Array = npt.NDArray[Any]

_BAR = np.dtype([
    ("second", "u4"), ("source", "i4"), ("offset", "i8"), ("open", "f8"), ("high", "f8"), ("low", "f8"), ("close", "f8"),
    ("volume", "f8"), ("ticks", "u4"), ("quotes", "u4"),
])  # fmt: skip
NO_BARS: Array = np.zeros(0, _BAR)


class BarRings:
    """The bars of the last WINDOW_S seconds of every symbol; a symbol is identified by its place, a number from 0."""

    def __init__(self) -> None:
        self._blocks: list[Array] = []

    def write(self, at: Array, rows: dict[str, Array]) -> None:
        """Writes rows of `windows`, by column, of the symbols at these places. A bar is replaced by one of a later second or a higher offset."""
        bars = np.zeros(len(at), _BAR)
        for name in ("second", "offset", "open", "high", "low", "close", "volume", "ticks", "quotes"):
            bars[name] = rows[name]
        bars["source"] = [_code(source) for source in rows["source"].tolist()]
        slots = bars["second"] % WINDOW_S
        for number in np.unique(at // BLOCK).tolist():
            while number >= len(self._blocks):
                self._blocks.append(np.zeros((WINDOW_S, BLOCK), _BAR))
            block = self._blocks[number]
            mine = np.flatnonzero(at // BLOCK == number)
            slot, column, new = slots[mine], at[mine] % BLOCK, bars[mine]
            held = block[slot, column]
            counts = (
                (held["second"] < new["second"])
                | ((held["second"] == new["second"]) & (held["offset"] <= new["offset"]))
                | ((held["source"] != new["source"]) & (held["offset"] < new["offset"]))
            )
            block[slot[counts], column[counts]] = new[counts]       # rows are sorted by second, then offset, so that the last row of a place wins

    def clear(self, at: int) -> None:
        """Forgets the bars of one symbol."""
        if at // BLOCK < len(self._blocks):
            self._blocks[at // BLOCK][:, at % BLOCK] = np.zeros((), _BAR)

    def read(self, at: int, source: str, last: int, clock: int) -> Array:
        """The bars of one symbol that has some, oldest first: of this source, up to second `last`, of the WINDOW_S seconds up to `clock`."""
        ring = self._blocks[at // BLOCK][:, at % BLOCK]
        ring = ring[(ring["second"] > clock - WINDOW_S) & (ring["second"] <= last) & (ring["source"] == _code(source))]
        ordered: Array = ring[np.argsort(ring["second"])]
        return ordered


def _code(source: str) -> int:
    """A source's number in the rings: a hash, because a number for each source ever seen would grow without bound."""
    return zlib.crc32(source.encode()) & 0x7FFFFFFF


def answered(ring: Array, interval_s: int) -> list[Bar]:
    """The bars as they are answered, each of `interval_s` seconds."""
    if interval_s > 1:
        return [_merged(group, interval_s) for group in _by_interval(ring, interval_s)]
    return [_bar(*values) for values in ring[["second", "open", "high", "low", "close", "volume", "ticks", "quotes"]].tolist()]


def _by_interval(ring: Array, interval_s: int) -> list[Array]:
    starts = ring["second"] // interval_s
    return [group for group in np.split(ring, np.flatnonzero(np.diff(starts)) + 1) if len(group)]


def _bar(second: int, open: float, high: float, low: float, close: float, volume: float, ticks: int, quotes: int) -> Bar:
    return Bar(
        second=second, open=or_null(open), high=or_null(high), low=or_null(low), close=or_null(close), volume=whole_or_null("volume", volume),
        ticks=ticks, quotes=quotes, seconds=1,
    )  # fmt: skip


def _merged(group: Array, interval_s: int) -> Bar:
    """Bars of consecutive seconds as one: first open, highest high, lowest low, last close, sums."""
    priced = group[~np.isnan(group["close"])]
    return Bar(
        second=int(group["second"][0]) // interval_s * interval_s,
        open=float(priced["open"][0]) if len(priced) else None,
        high=float(priced["high"].max()) if len(priced) else None,
        low=float(priced["low"].min()) if len(priced) else None,
        close=float(priced["close"][-1]) if len(priced) else None,
        volume=total(group["volume"]), ticks=int(group["ticks"].sum()), quotes=int(group["quotes"].sum()), seconds=len(group),
    )  # fmt: skip

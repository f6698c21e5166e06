"""Columns of one source's ticks in a frame, with each symbol as its index in the source's `Ring`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.records import AFTER_FEED_GAP
from stockstream.transforms.cleaning.limits import MAX_TIME
from stockstream.transforms.windows.cells import Floats, Ints


@dataclass(slots=True)
class Ticks:
    """Columns of one source's ticks, in log order."""

    symbol: Ints
    """Its index in the ring."""
    second: Ints
    price: Floats
    size: Floats
    offset: Ints
    quotes: dict[str, Floats]
    """Columns of `QUOTES`, `gap_s` and `price_before_gap` that any tick has."""
    flags: Ints | None = None
    """None where no tick has any."""
    away_s: Ints | None = None
    """Seconds in which the feed was away before the tick, up to and including the tick's; 0 where it was not. None where it never was."""

    def take(self, which: slice | NDArray[np.bool_]) -> Ticks:
        quotes = {name: column[which] for name, column in self.quotes.items()}
        flags, away_s = (None if column is None else column[which] for column in (self.flags, self.away_s))
        return Ticks(self.symbol[which], self.second[which], self.price[which], self.size[which], self.offset[which], quotes, flags, away_s)


def flags_of(rows: pa.RecordBatch) -> Ints | None:
    """The flags of ticks; None where no tick has any."""
    flags = rows.column("flags")
    found = (flags.fill_null(0) if flags.null_count else flags).to_numpy()
    return found if found.any() else None


def away_of(rows: pa.RecordBatch, flags: Ints | None, seconds: Ints) -> Ints | None:
    """Of each tick, in how many seconds its feed was away, its own included; None where no tick comes after a gap of its feed.

    The second of `gap_from` counts as whole: it may be closed and sent by then.
    """
    if flags is None or not (after := (flags & AFTER_FEED_GAP) > 0).any():
        return None
    gap_from = rows.column("gap_from").fill_null(MAX_TIME).to_numpy()
    return np.where(after, np.maximum(seconds - gap_from // 1000, 1), 0)

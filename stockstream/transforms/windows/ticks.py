"""Columns of one source's ticks in a frame, with each symbol as its index in the source's `Ring`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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

    def take(self, which: slice | NDArray[np.bool_]) -> Ticks:
        quotes = {name: column[which] for name, column in self.quotes.items()}
        flags = None if self.flags is None else self.flags[which]
        return Ticks(self.symbol[which], self.second[which], self.price[which], self.size[which], self.offset[which], quotes, flags)


"""Whether a price is another one after a stock split, as it looks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = (1.5, 2.0, 3.0, 4.0, 5.0, 10.0, 15.0, 20.0, 25.0, 30.0, 40.0, 50.0, 100.0)
"""New shares for an old one; 3:2 is 1.5. Reverse splits are the inverses."""
TOLERANCE = 0.02
"""The price moves as well, by so much of it at most."""
_FACTORS = (*SPLITS, *(1 / split for split in SPLITS))


def possible_split(before: NDArray[Any], price: NDArray[Any]) -> NDArray[np.bool_]:
    """By row, whether a price is within TOLERANCE of what a split would have made of the one before. NaN is no price."""
    with np.errstate(divide="ignore", invalid="ignore"):
        change = price / before
    possible = np.zeros(len(change), np.bool_)
    far = np.flatnonzero((change < 0.7) | (change > 1.4))                # of few rows of a market
    for factor in _FACTORS if len(far) else ():
        possible[far] |= np.abs(change[far] - factor) <= TOLERANCE * factor
    return possible

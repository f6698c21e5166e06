"""How long the bars of a recording last, by their times."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

DAY_S = 86_400
OF_DAYS = ((27 * DAY_S, 30 * DAY_S), (6 * DAY_S, 7 * DAY_S), (20 * 3600, DAY_S))
"""Bars that are so far apart last so long: months differ, weeks and days have an hour less or more when the clocks change."""


def interval_of(times: NDArray[np.int64], symbols: NDArray[np.int64]) -> int:
    """Seconds from one bar to the next, by the times (epoch ms) and symbols of some rows; 0 if no symbol has two.

    It is the least distance that comes more than once, so that neither a quiet minute nor an unfinished bar at the end counts.
    """
    order = np.lexsort((times, symbols))
    times, symbols = times[order], symbols[order]
    apart = np.diff(times)[(np.diff(symbols) == 0) & (np.diff(times) > 0)]
    if not len(apart):
        return 0
    counts = Counter((apart // 1000).tolist())
    often = [seconds for seconds, count in counts.items() if count > 1 and seconds > 0]
    least = min(often or [seconds for seconds in counts if seconds > 0] or [1])
    return next((length for bound, length in OF_DAYS if least >= bound), int(least))


def midnights(times: NDArray[np.int64], offsets_h: tuple[int, ...] = (0, 4, 5)) -> bool:
    """Whether all times (epoch ms) are midnight in UTC or in New York: bars of days."""
    return bool(len(times)) and any(bool((times % (DAY_S * 1000) == hours * 3_600_000).all()) for hours in offsets_h)

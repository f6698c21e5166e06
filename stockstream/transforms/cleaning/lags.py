"""How far ticks come behind their source's watermark: what `clean` counts of it. No verdict depends on these counts, and they are not stored.

The lag of a tick is the watermark before its record less its `event_time`, 0 where it is ahead. What it needs is the lateness with which its second would
still have been open: the watermark less the second's end, plus 1 ms.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stockstream.records import Tick

Ints = NDArray[np.int64]

_SHOWN_MS = (0, 100, 200, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000)
EDGES_MS: Ints = np.array(sorted({*_SHOWN_MS, *np.rint(1.1 ** np.arange(140)).astype(np.int64).tolist()}))
"""Upper edges of the counts, to 10 minutes: a percentile is at most a tenth too high. One more count is of what lies beyond."""
SHOWN: Ints = EDGES_MS.searchsorted(_SHOWN_MS)
"""Places of the few edges that a histogram for a monitoring system has."""
SYMBOLS_KEPT = 2_000
"""Symbols of one source with late ticks."""
_NONE: Ints = np.zeros(0, np.int64)
RECENT = 1_000
"""Ticks of a symbol from which on its counts are halved: what it did long ago counts less and less."""
LEAST = 20
"""Ticks of a symbol below which nothing is concluded from them."""


class SourceLags:
    """Counts of one source's ticks; `late` ticks are accepted ones whose second was closed, `rejected` ones are too late for that."""

    def __init__(self) -> None:
        self.ticks = self.late = self.rejected = self.lateness_ms = 0
        self.lag: Ints = np.zeros(len(EDGES_MS) + 1, np.int64)
        self.needed: Ints = np.zeros(len(EDGES_MS) + 1, np.int64)
        self.symbols: dict[str, list[int]] = {}
        """Late ticks, rejected ones among them, and all ticks, of symbols that have late ones."""

    def add(self, lag: Ints, event_time: Ints, ticks: int, late: int, rejected: int = 0) -> None:
        """Counts so many accepted and rejected ticks: those behind the watermark by `lag` ms, and the rest, which are not behind it."""
        self.ticks, self.late, self.rejected = self.ticks + ticks, self.late + late, self.rejected + rejected
        if not len(lag):
            self.lag[0] += ticks + rejected
            self.needed[0] += ticks + rejected
            return
        needed = lag - (1_000 - event_time % 1_000) + 1
        for counts, values in ((self.lag, lag), (self.needed, np.maximum(needed, 0))):
            counts += np.bincount(EDGES_MS.searchsorted(values), minlength=len(counts))
            counts[0] += ticks + rejected - len(values)

    def add_symbols(self, late: Iterable[str], ticks: Iterable[tuple[str, int]]) -> None:
        """Counts late ticks by symbol, and of symbols that have late ones all ticks: (symbol, how many)."""
        symbols = self.symbols
        for symbol in late:
            if symbol in symbols:
                symbols[symbol][0] += 1
            elif len(symbols) < SYMBOLS_KEPT:
                symbols[symbol] = [1, 0]
        if not symbols:
            return
        for symbol, count in ticks:
            found = symbols.get(symbol)
            if found is not None:
                found[1] += count
        self._fade()

    def merge(self, other: SourceLags) -> None:
        """Adds another's counts. Its lateness replaces this one's."""
        self.ticks, self.late, self.rejected = self.ticks + other.ticks, self.late + other.late, self.rejected + other.rejected
        self.lateness_ms = other.lateness_ms
        self.lag += other.lag
        self.needed += other.needed
        for symbol, (late, ticks) in other.symbols.items():
            if symbol in self.symbols or len(self.symbols) < SYMBOLS_KEPT:
                found = self.symbols.setdefault(symbol, [0, 0])
                found[0], found[1] = found[0] + late, found[1] + ticks
        self._fade()

    def _fade(self) -> None:
        for symbol, found in list(self.symbols.items()):
            if found[1] >= RECENT:
                found[0], found[1] = found[0] // 2, found[1] // 2
                if not found[0]:
                    del self.symbols[symbol]

    def slow_symbols(self, most: int) -> list[str]:
        """Symbols more than half of whose ticks come late, those with the most late ticks first."""
        slow = [(-late, symbol) for symbol, (late, ticks) in self.symbols.items() if ticks >= LEAST and 2 * late > ticks]
        return [symbol for _, symbol in sorted(slow)[:most]]


class Behind(NamedTuple):
    """A tick that came behind its source's watermark: accepted, or rejected as too late."""

    source: str
    symbol: str
    event_time: int
    lag: int
    """Milliseconds."""
    late: bool
    """Whether its second was closed."""
    rejected: bool


def count(behind: Iterable[Behind], accepted: Sequence[Tick], lags_of: Callable[[str], SourceLags | None]) -> None:
    """Counts ticks that were judged one by one: those behind, among all that were accepted. `lags_of` is None for a source that is forgotten."""
    by_source: dict[str, list[Behind]] = {}
    for one in behind:
        by_source.setdefault(one.source, []).append(one)
    for name, ticks in Counter({**dict.fromkeys(by_source, 0), **Counter(map(attrgetter("source"), accepted))}).items():
        lags, some = lags_of(name), by_source.get(name, [])
        if lags is None:
            continue
        if not some and not lags.symbols:
            lags.add(_NONE, _NONE, ticks, 0)
            continue
        lag, event_time = (np.array([getattr(one, field) for one in some], np.int64) for field in ("lag", "event_time"))
        late = [one.symbol for one in some if one.late]
        rejected = [one.symbol for one in some if one.rejected]
        lags.add(lag, event_time, ticks, len(late) - len(rejected), len(rejected))
        if late or lags.symbols:
            lags.add_symbols(late, Counter([*rejected, *(tick.symbol for tick in accepted if tick.source == name)]).items())


def percentiles(counts: Ints, shares: Sequence[float]) -> list[int | None]:
    """Upper edges (ms) at or below which these shares of the ticks lie; None without ticks."""
    if not counts.any():
        return [None] * len(shares)
    upto = counts.cumsum()
    places = np.minimum(upto.searchsorted([np.ceil(share * upto[-1]) for share in shares]), len(EDGES_MS) - 1)
    found: list[int | None] = EDGES_MS[places].tolist()
    return found

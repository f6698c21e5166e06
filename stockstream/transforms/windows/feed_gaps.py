"""Gaps of a feed that reach over a row from behind: rows inside a gap, whose tick after the gap is of a later second.

Most rows know their gaps from the seconds of their own window (`last_away` in `cells`). A row inside a gap does not: its tick came late, or out of order.
It has the flag `gap` where the tick after the gap is in the log before the closing that sends the row. So the flag does not depend on how the log is cut.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from stockstream.transforms.windows.cells import NEVER, Ints
from stockstream.transforms.windows.ticks import Ticks

_FAR = 1 << 40
"""Beyond any second."""


class FeedGaps:
    """The gaps of one source's symbols that end in seconds which may still be sent again: symbol index, first and last second, offset of the tick behind."""

    def __init__(self) -> None:
        self._gaps: Ints = np.zeros((4, 0), np.int64)

    def __len__(self) -> int:
        count: int = self._gaps.shape[1]
        return count

    def note(self, ticks: Ticks) -> None:
        """Notes the gaps before these ticks. A gap within the tick's own second reaches over no other."""
        if ticks.away_s is not None and (long := ticks.away_s > 1).any():
            last = ticks.second[long]
            self._add(ticks.symbol[long], last - ticks.away_s[long] + 1, last, ticks.offset[long])

    def restored(self, indexes: Ints, second: int, away_s: Ints) -> None:
        """Notes the gaps that a stored second has. No row is sent any more that was closed before their ticks."""
        long = away_s > 1
        if long.any():
            last = np.full(int(long.sum()), second)
            self._add(indexes[long], last - away_s[long] + 1, last, np.full(len(last), NEVER))

    def _add(self, indexes: Ints, first: Ints, last: Ints, offset: Ints) -> None:
        self._gaps = np.concatenate([self._gaps, np.stack([indexes, first, last, offset])], axis=1)

    def forget(self, second: int) -> None:
        """Forgets gaps that end at or before this second: rows behind a gap know it from their windows."""
        if len(self):
            self._gaps = self._gaps[:, self._gaps[2] > second]

    def renumber(self, number_of: Mapping[int, int]) -> None:
        """Gives the symbols other indexes; those that have none are forgotten."""
        if len(self):
            numbers = np.array([number_of.get(index, NEVER) for index in self._gaps[0].tolist()], np.int64)
            self._gaps[0] = numbers
            self._gaps = self._gaps[:, numbers != NEVER]

    def inside(self, indexes: Ints, seconds: Ints, offsets: Ints) -> NDArray[np.bool_]:
        """Which of these rows lie inside a gap that their closing (`offsets`) knows."""
        found = np.zeros(len(indexes), np.bool_)
        index, first, last, _ = self._gaps
        if last.max() <= seconds.min():
            return found
        symbols = int(max(index.max(), indexes.max())) + 1
        begin, end = np.full(symbols, _FAR), np.full(symbols, NEVER)
        np.minimum.at(begin, index, first)
        np.maximum.at(end, index, last)
        candidates = np.flatnonzero((begin[indexes] <= seconds) & (seconds < end[indexes]))
        if len(candidates):
            order = index.argsort(kind="stable")
            index, first, last, offset = self._gaps[:, order]
            bounds = index.searchsorted(np.stack([indexes[candidates], indexes[candidates] + 1]))
            for row, low, high in zip(candidates.tolist(), *bounds.tolist(), strict=True):
                its = slice(low, high)
                found[row] = ((first[its] <= seconds[row]) & (seconds[row] < last[its]) & (offset[its] <= offsets[row])).any()
        return found

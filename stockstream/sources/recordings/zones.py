"""Local times of a zone as UTC. Which of the two a time is that comes twice, when daylight saving ends, is found by the rows around it."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.errors import SourceError

QUARTER_MS = 900_000
"""Offsets of zones change only at whole quarters of an hour of local time."""
OUT_OF_ORDER_MS = 60_000
"""A row that goes back by less than this is out of order; by more, the hour has begun again."""
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001
_LEAST, _MOST = -2_208_988_800_000, 7_258_118_400_000
"""1900 and 2200 in epoch ms: a time outside is invalid."""


class LocalTimes:
    """Turns local times into UTC, piece by piece in the order of the file. `descending`: the file has its newest rows first.

    Raises `SourceError` if there is no such zone.
    """

    def __init__(self, zone: str, *, descending: bool = False) -> None:
        try:
            self._zone = ZoneInfo(zone)
        except (ValueError, OSError):                            # ZoneInfoNotFoundError is a KeyError, and of a folder's name an OSError
            raise _unknown(zone) from None
        except KeyError:
            raise _unknown(zone) from None
        self._descending = descending
        self._reached: int | None = None
        self._offsets: dict[int, tuple[int, int]] = {}
        self._single: dict[tuple[str | None, int], bool] = {}
        """By symbol and local time of a bar: whether it was the second of the two hours. The other bar of that time may follow."""

    def to_utc(self, local: NDArray[np.int64], symbols: pa.DictionaryArray | None = None) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Epoch ms, and whether the clocks showed that time at all. `local` is in ms since 1970 of the local clock.

        `symbols` are those of bars. A symbol has one bar of each time, so of two with the same local time one is of each hour. Trades have none: many may
        happen at once.
        """
        quarters, place = np.unique(np.clip(local, _LEAST, _MOST) // QUARTER_MS, return_inverse=True)
        known = np.array([self._offset(int(quarter)) for quarter in quarters], dtype=np.int64).reshape(-1, 2)
        first, second = local - known[place, 0], local - known[place, 1]
        exists = first <= second
        utc = np.minimum(first, second)
        twice = np.flatnonzero(first < second).tolist()
        bars = _bars(local, symbols, twice)
        left = Counter(bars)
        for number, row in enumerate(twice):
            before = self._reached if row == 0 else int(utc[row - 1])
            if bars:
                bar = bars[number]
                left[bar] -= 1
                later = self._is_second(bar, int(first[row]), int(second[row]), before, another=left[bar] > 0)
            else:
                later = self._follows_in_second(int(first[row]), int(second[row]), before)
            utc[row] = second[row] if later else first[row]
        if len(utc):
            self._reached = int(utc[-1])
        return utc, exists

    def _offset(self, quarter: int) -> tuple[int, int]:
        found = self._offsets.get(quarter)
        if found is None:
            moment = (_EPOCH + timedelta(milliseconds=quarter * QUARTER_MS)).replace(tzinfo=self._zone)
            found = self._offsets[quarter] = (_ms(moment), _ms(moment.replace(fold=1)))
        return found

    def _is_second(self, bar: tuple[str | None, int], first: int, second: int, before: int | None, *, another: bool) -> bool:
        """Whether a bar is of the second hour; `another` one of its time follows in this piece."""
        if (other := self._single.pop(bar, None)) is not None:
            return not other
        later = self._descending if another else self._follows_in_second(first, second, before)
        self._single[bar] = later
        return later

    def _follows_in_second(self, first: int, second: int, before: int | None) -> bool:
        """Whether of the two moments of a time the second one follows the row before."""
        if self._descending:
            return before is None or not first <= before + OUT_OF_ORDER_MS < second
        return before is not None and first < before - OUT_OF_ORDER_MS <= second


def _bars(local: NDArray[np.int64], symbols: pa.DictionaryArray | None, rows: list[int]) -> list[tuple[str | None, int]]:
    if symbols is None:
        return []
    names = symbols.take(pa.array(rows, pa.int64())).to_pylist()
    return list(zip(names, local[rows].tolist(), strict=True))


def _ms(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None
    return round(offset.total_seconds() * 1000)


def _unknown(zone: str) -> SourceError:
    return SourceError(f"there is no time zone {zone!r}: use a name such as America/New_York or UTC (--zone)")

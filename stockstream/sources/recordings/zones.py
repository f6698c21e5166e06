"""Local times of a zone as UTC. An hour that comes twice, when daylight saving ends, is found by the rows around it."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
from numpy.typing import NDArray

from stockstream.errors import SourceError

QUARTER_MS = 900_000
"""Offsets of zones change only at whole quarters of an hour of local time."""
OUT_OF_ORDER_MS = 60_000
"""A row that goes back by less than this is out of order; by more, the hour has begun again."""
_EPOCH = datetime(1970, 1, 1)  # noqa: DTZ001
_LEAST, _MOST = -2_208_988_800_000, 7_258_118_400_000
"""1900 and 2200 in epoch ms: beyond, times are no times."""


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

    def to_utc(self, local: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Epoch ms, and whether the clocks showed that time at all. `local` is in ms since 1970 of the local clock."""
        quarters, place = np.unique(np.clip(local, _LEAST, _MOST) // QUARTER_MS, return_inverse=True)
        known = np.array([self._offset(int(quarter)) for quarter in quarters], dtype=np.int64).reshape(-1, 2)
        first, second = local - known[place, 0], local - known[place, 1]
        exists = first <= second
        utc = np.minimum(first, second)
        for row in np.flatnonzero(first < second).tolist():
            before = self._reached if row == 0 else int(utc[row - 1])
            utc[row] = self._chosen(int(first[row]), int(second[row]), before)
        if len(utc):
            self._reached = int(utc[-1])
        return utc, exists

    def _offset(self, quarter: int) -> tuple[int, int]:
        found = self._offsets.get(quarter)
        if found is None:
            moment = (_EPOCH + timedelta(milliseconds=quarter * QUARTER_MS)).replace(tzinfo=self._zone)
            found = self._offsets[quarter] = (_ms(moment), _ms(moment.replace(fold=1)))
        return found

    def _chosen(self, first: int, second: int, before: int | None) -> int:
        """Of the two moments of a time the one that follows the row before."""
        if self._descending:
            return second if before is None or not first <= before + OUT_OF_ORDER_MS < second else first
        return first if before is None or not first < before - OUT_OF_ORDER_MS <= second else second


def _ms(moment: datetime) -> int:
    offset = moment.utcoffset()
    assert offset is not None
    return round(offset.total_seconds() * 1000)


def _unknown(zone: str) -> SourceError:
    return SourceError(f"there is no time zone {zone!r}: use a name such as America/New_York or UTC (--zone)")

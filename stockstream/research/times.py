"""Spans of time and intervals of bars, as the methods of `Archive` take them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any

Moment = date | datetime | str
"""A date is its midnight in UTC; a time without a zone is in UTC; a text is ISO 8601. pandas' Timestamp and numpy's datetime64 count as times."""

DAY_S = 86_400
_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": DAY_S}
_INTERVAL = re.compile(r"(\d{1,5})([smhd])")
_DATE = re.compile(r"\d{4}-?\d\d-?\d\d")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(milliseconds=1)
"""The last millisecond that a datetime has, in epoch ms."""


@dataclass(frozen=True, slots=True)
class Span:
    """Times from `begin` on and before `end`, in epoch ms; None: from the first, to the last."""

    begin: int | None = None
    end: int | None = None

    @classmethod
    def of_date(cls, day: str) -> Span:
        """The whole date, `YYYY-MM-DD`."""
        return span(day, None)

    @property
    def first_date(self) -> date | None:
        """The UTC date of the first time."""
        return None if self.begin is None else time_of(self.begin).date()

    @property
    def last_date(self) -> date | None:
        """The UTC date of the last time."""
        return None if self.end is None else time_of(self.end - 1).date()

    def conditions(self, column: str, *, hours: bool = False) -> str:
        """SQL, to be appended to a WHERE: the column (TIMESTAMP, UTC) lies in the span, and so do the folders' dates and, if the area has them, hours."""
        parts = []
        if self.begin is not None:
            parts += [f'"{column}" >= {timestamp(self.begin)}', f"\"date\" >= DATE '{self.first_date}'"]
        if self.end is not None:
            parts += [f'"{column}" < {timestamp(self.end)}', f"\"date\" <= DATE '{self.last_date}'"]
        if hours and self.begin is not None and self.end is not None and self.first_date == self.last_date:
            parts.append(f"hour BETWEEN {time_of(self.begin).hour} AND {time_of(self.end - 1).hour}")
        return "".join(f" AND {part}" for part in parts)


def time_of(ms: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=ms)


def timestamp(ms: int) -> str:
    """A time (epoch ms) in SQL."""
    return f"TIMESTAMP '{time_of(ms):%Y-%m-%d %H:%M:%S.%f}'"


def span(start: Moment | None, end: Moment | None) -> Span:
    """The times from `start` on and before `end`. If there is no `end`, a date is that whole day, and a time goes on to the last.

    Raises `ValueError` for a text that is no time, and for an end before the start; `TypeError` for what is neither a time nor a text.
    """
    begin = None if start is None else _milliseconds(start)
    if end is not None:
        until: int | None = _milliseconds(end)
    else:
        until = min(begin + DAY_S * 1000, _LAST) if begin is not None and _is_date(start) else None
    if begin is not None and until is not None and until < begin:
        raise ValueError(f"end {end} is before start {start}")
    return Span(begin, until)


def interval_s(interval: str) -> int:
    """Seconds of an interval such as `1s`, `5m`, `1h` or `1d`. Raises `ValueError` if it is none, or does not divide a day."""
    match = _INTERVAL.fullmatch(interval) if isinstance(interval, str) else None
    seconds = int(match[1]) * _UNITS[match[2]] if match else 0
    if not seconds or DAY_S % seconds:
        raise ValueError(f"interval {interval!r} is not like 1s, 1m, 5m, 1h or 1d, or does not divide a day")
    return seconds


def _is_date(value: Any) -> bool:
    return (isinstance(value, date) and not isinstance(value, datetime)) or (isinstance(value, str) and _DATE.fullmatch(value.strip()) is not None)


def _milliseconds(value: Any) -> int:
    """Epoch ms, rounded up: the first millisecond that is not before the time; `_LAST` after that."""
    if type(value).__name__ == "datetime64":
        value = str(value)[:26]                                          # ISO 8601, to the microsecond
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"{value!r} is no time like 2025-10-09, 2025-10-09T14:30 or 2025-10-09T14:30:00+02:00") from None
    elif isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if not isinstance(value, datetime) or value != value:                # pandas' NaT is a datetime, and unequal to itself
        raise TypeError(f"{value!r} is no date, no time and no text in ISO 8601")
    moment = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
    return min(-((_EPOCH - moment) // timedelta(milliseconds=1)), _LAST)

"""The event times of a recording as epoch milliseconds, whatever its column holds: timestamps, dates, texts, or numbers of any unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.errors import SourceError
from stockstream.sources.recordings.zones import LocalTimes
from stockstream.transforms.cleaning.limits import UNITS, unit_of

DATE = "a date (YYYYMMDD)"
NAMED_UNITS = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "date": DATE}
"""By what `--unit` calls it."""
DAY_MS = 86_400_000
_PER_MS = {"s": 1000, "ms": 1, "us": 1000, "ns": 1_000_000}
_TOO_LARGE = 1 << 62
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Times(NamedTuple):
    """Epoch ms, and a mask of the rows that have a time."""

    ms: NDArray[np.int64]
    known: NDArray[np.bool_]


class _Shown(NamedTuple):
    """Times as they stand in the file: ms, which rows have one, and which of these are local times of the zone."""

    ms: NDArray[np.int64]
    known: NDArray[np.bool_]
    local: NDArray[np.bool_]


class EventTimes:
    """The event times of one recording, read in pieces, in the order of the file.

    `unit` is a name of UNITS: the one that is given, else the one of the first number that is a time in one of them; empty before that, and in a column of
    timestamps or dates. Numbers before it count as milliseconds. `pattern` is how texts are read (strptime). Times without a zone are those of `zone`, UTC
    without one. With a `day`, the column holds times of that day, as digits `HHMMSS` and a fraction.

    Raises `SourceError` for an unknown zone or a pattern that is none.
    """

    def __init__(self, path: Path, *, unit: str = "", zone: str = "", day: date | None = None, descending: bool = False) -> None:
        self.path = path
        self.unit = NAMED_UNITS.get(unit, "")
        self._given = self.unit
        self._pattern = unit if unit and not self.unit else ""
        if self._pattern and "%" not in self._pattern:
            raise SourceError(f"there is no unit {unit!r}: use --unit s, ms, us, ns or date, or a pattern such as '%d.%m.%Y %H:%M:%S'")
        self._local = LocalTimes(zone, descending=descending) if zone else None
        self._day = day
        self.without_zone = False
        """Whether a time of day without a zone was read as UTC."""
        self.zone_unused = bool(zone)
        """Whether a zone was given, and no time has needed it so far."""
        self.skipped_by_clock = 0
        """The number of local times that its clocks skipped."""

    def read(self, column: pa.Array, symbols: pa.DictionaryArray | None = None) -> Times:
        """The times of some rows; `symbols` of bars, each of which has a time of its own. Raises `SourceError` where the column is of another type."""
        times = self._read(column)
        rows = np.flatnonzero(times.local)
        if not len(rows):
            return Times(times.ms, times.known)
        if self._local is None:
            self.without_zone = self.without_zone or bool((times.ms[rows] % DAY_MS).any())
            return Times(times.ms, times.known)
        self.zone_unused = False
        utc, exists = self._local.to_utc(times.ms[rows], None if symbols is None else symbols.take(pa.array(rows)))
        ms, known = times.ms.copy(), times.known.copy()
        ms[rows], known[rows] = utc, exists
        self.skipped_by_clock += int((~exists).sum())
        return Times(ms, known)

    def _read(self, column: pa.Array) -> _Shown:
        if self._day is not None:
            return self._of_clock(column, self._day)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            if self._pattern:
                return self._of_pattern(column.to_pylist())
            converted = _converted(column)
            if converted is None:
                return self._of_texts(column.to_pylist())
            column = converted
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            per_ms = _PER_MS[column.type.unit]
            ticks = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
            ms = np.asarray(ticks * per_ms if column.type.unit == "s" else ticks // per_ms)
            known = column.is_valid().to_numpy(zero_copy_only=False)
            return _Shown(ms, known, known if column.type.tz is None else _none(known))
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return self._of_numbers(column)
        raise SourceError(f"{self.path}: column event_time is {column.type}: it must be a timestamp, a date or a number")

    def _of_numbers(self, column: pa.Array) -> _Shown:
        whole = pa.types.is_integer(column.type)
        known = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.cast(pa.int64() if whole else pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        if not whole:
            known = known & (np.abs(values) < _TOO_LARGE)               # and no NaN
            values = np.where(known, values, 0.0)
        looks_like = next((unit for value in values[known].tolist() if (unit := unit_of(int(value)))), "") if not self.unit or self._given else ""
        if not self.unit:
            self.unit = looks_like
        elif looks_like and self._given not in ("", looks_like):
            raise SourceError(f"{self.path}: the times look like {looks_like}, not like {self._given}: leave out --unit")
        if self.unit in ("", "milliseconds"):
            return _Shown(np.floor(values).astype(np.int64), known, _none(known))
        low, high = UNITS[self.unit]
        known = known & (values >= low) & (values < high)
        return _Shown(_in_ms(np.where(known, values, low), self.unit), known, known if self.unit == DATE else _none(known))

    def _of_texts(self, texts: Sequence[str | None]) -> _Shown:
        """Numbers and ISO 8601 in one column."""
        numbers = self._of_numbers(pa.array(list(map(_whole, texts)), pa.int64()))
        times, known, local = numbers.ms.copy(), numbers.known.copy(), numbers.local.copy()
        for row, text in enumerate(texts):
            if not known[row] and text is not None and (moment := _moment(text.strip())) is not None:
                times[row], known[row], local[row] = _ms(moment), True, moment.tzinfo is None
        return _Shown(times, known, local)

    def _of_pattern(self, texts: Sequence[str | None]) -> _Shown:
        times, known, local = np.zeros(len(texts), dtype=np.int64), np.zeros(len(texts), dtype=bool), np.zeros(len(texts), dtype=bool)
        for row, text in enumerate(texts):
            try:
                moment = datetime.strptime((text or "").strip(), self._pattern)  # noqa: DTZ007
            except ValueError:
                continue
            times[row], known[row], local[row] = _ms(moment), True, moment.tzinfo is None
        return _Shown(times, known, local)

    def _of_clock(self, column: pa.Array, day: date) -> _Shown:
        texts = column.cast(pa.string())
        digits = pc.utf8_length(texts).fill_null(0).to_numpy(zero_copy_only=False)
        try:
            values = texts.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            values = np.array([-1 if (value := _whole(text)) is None else value for text in texts.to_pylist()], dtype=np.int64)
        fraction = 10 ** np.clip(digits - 6, 0, 12).astype(np.int64)
        clock, rest = values // fraction, values % fraction
        hours, minutes, seconds = clock // 10_000, clock // 100 % 100, clock % 100
        known = (values >= 0) & (digits >= 6) & (hours < 24) & (minutes < 60) & (seconds < 60)
        midnight = (day.toordinal() - _EPOCH.toordinal()) * DAY_MS
        ms = midnight + ((hours * 60 + minutes) * 60 + seconds) * 1000 + rest * 1000 // fraction
        return _Shown(np.where(known, ms, midnight), known, known)


def _none(known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.zeros(len(known), dtype=bool)


def _in_ms(values: NDArray[Any], unit: str) -> NDArray[np.int64]:
    """Numbers of a unit that is not milliseconds, all of them within its range."""
    if unit == DATE:
        dates = pc.strptime(pa.array(values.astype(np.int64)).cast(pa.string()), "%Y%m%d", "ms", error_is_null=True).cast(pa.int64())
        return np.asarray(dates.fill_null(0).to_numpy(zero_copy_only=False))
    if unit == "seconds":
        # a double has seconds to the microsecond: rounded to that, 0.123 s are not 122 ms
        return np.asarray(values * 1000 if values.dtype.kind == "i" else np.rint(values * 1e6).astype(np.int64) // 1000)
    per_ms = {"microseconds": 1000, "nanoseconds": 1_000_000}[unit]
    return np.asarray(np.floor(values).astype(np.int64) // per_ms)


def _converted(column: pa.Array) -> pa.Array | None:
    """Texts that are all of one kind, as that."""
    for kind in (pa.int64(), pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.timestamp("ns", "UTC"), pa.timestamp("ns"), pa.float64()):
        try:
            return column.cast(kind)
        except pa.ArrowInvalid:
            continue
    return None


def _whole(text: str | None) -> int | None:
    try:
        number = int(text or "")
    except ValueError:
        return None
    return number if abs(number) < _TOO_LARGE else None


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _ms(moment: datetime) -> int:
    return math.floor((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def epoch_ms_of(text: str) -> int | None:
    """A moment in ISO 8601, in UTC where it names no zone, as epoch ms; None where the text is none."""
    moment = _moment(text)
    return None if moment is None else _ms(moment)

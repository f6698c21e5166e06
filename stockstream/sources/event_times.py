"""The event times of a recording as epoch milliseconds, whatever its column holds: timestamps, dates, texts, or numbers of any unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.errors import SourceError
from stockstream.transforms.cleaning.limits import UNITS, unit_of

DATE = "a date (YYYYMMDD)"
_PER_MS = {"s": 1000, "ms": 1, "us": 1000, "ns": 1_000_000}
_TOO_LARGE = 1 << 62
Times = tuple[NDArray[np.int64], NDArray[np.bool_]]
"""Epoch ms, and a mask of the rows that have a time."""


class EventTimes:
    """The event times of one recording, read in pieces.

    `unit` is a name of UNITS, empty before the first number that is a time in one of them, and in a column of timestamps or dates. Numbers before it count as
    milliseconds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unit = ""

    def read(self, column: pa.Array) -> Times:
        """The times of some rows. Raises `SourceError` where the column is of another type."""
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            converted = _converted(column)
            if converted is None:
                return self._of_texts(column.to_pylist())
            column = converted
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("ms"))
        if pa.types.is_timestamp(column.type):
            per_ms = _PER_MS[column.type.unit]
            ticks = column.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False)
            return np.asarray(ticks * per_ms if column.type.unit == "s" else ticks // per_ms), column.is_valid().to_numpy(zero_copy_only=False)
        if pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
            return self._of_numbers(column)
        raise SourceError(f"{self.path}: column event_time is {column.type}: it must be a timestamp, a date or a number")

    def _of_numbers(self, column: pa.Array) -> Times:
        whole = pa.types.is_integer(column.type)
        known = column.is_valid().to_numpy(zero_copy_only=False)
        values = column.cast(pa.int64() if whole else pa.float64()).fill_null(0).to_numpy(zero_copy_only=False)
        if not whole:
            known = known & (np.abs(values) < _TOO_LARGE)               # and no NaN
            values = np.where(known, values, 0.0)
        if not self.unit:
            self.unit = next((unit for value in values[known].tolist() if (unit := unit_of(int(value)))), "")
        if self.unit in ("", "milliseconds"):
            return np.floor(values).astype(np.int64), known
        low, high = UNITS[self.unit]
        known = known & (values >= low) & (values < high)
        return _in_ms(np.where(known, values, low), self.unit), known

    def _of_texts(self, texts: Sequence[str | None]) -> Times:
        """Numbers and ISO 8601 in one column."""
        times, known = self._of_numbers(pa.array(list(map(_whole, texts)), pa.int64()))
        times, known = times.copy(), known.copy()
        for row, text in enumerate(texts):
            if not known[row] and text is not None and (moment := epoch_ms_of(text.strip())) is not None:
                times[row], known[row] = moment, True
        return times, known


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
    for kind in (pa.int64(), pa.timestamp("us", "UTC"), pa.timestamp("us"), pa.float64()):
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


def epoch_ms_of(text: str) -> int | None:
    """A moment in ISO 8601, in UTC where it names no zone, as epoch ms; None where the text is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return math.floor(moment.timestamp() * 1000)

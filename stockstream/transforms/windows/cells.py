"""Arrays of the last seconds of one source: fields, their layout and room for seconds and symbols.

`Cells` holds some fields as an array (field, second, symbol) of 8 bytes a cell. The seconds go round: the newest takes the place of the oldest.
A `Ring` has two of them: `PAST` are the fields that windows look up as far back as they reach, `CURRENT` those of a row's own second or the one before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.errors import FrameError
from stockstream.transforms.timing import WINDOW_S
from stockstream.transforms.windows.state import STORED

FAR_S = 60
MOST_SECONDS, MOST_BYTES = 1_024, 1 << 28
"""Laid out at once. What `clean` sends closes seconds as it goes; a frame that does not is somebody else's."""
SPARE_S = 8
"""Seconds laid out beyond what is needed, at least: a second then seldom asks for new room. A chunk of a backlog has many, and the next may have more:
as many again then, up to FAR_S."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SUMMED = ("notional", "log_return", "price")
_PREFIXES = tuple(f"{name}_prefix" for name in (*_SUMMED, "squares", "high", "low"))
SUFFIXES = tuple(f"{name}_suffix" for name in (*_SUMMED, "squares", "high", "low"))
_COUNTS = ("volume", "ticks", "volume_part", "accrued")
"""`volume` has whole shares and `volume_part` their parts of 1e-8 (`transforms.shares`), `accrued` parts of 1e-6."""
_TOTALS = tuple(f"{name}_total" for name in _COUNTS)
PAST = ("high", "low", *_SUMMED, *_TOTALS, *SUFFIXES)
"""The fields that windows look up as far back as they reach."""
CURRENT = (*(name for name in STORED if name not in PAST), "series_start", *_PREFIXES, "last", "last_away")
"""The fields that are looked up in a row's own second, or in the one before. `away_s` is how many seconds the feed was away, up to and including this one;
`last_away` the last second with such a gap."""
INTS = {"quotes", *_COUNTS, "gap_s", "new_series", "away_s", "series_start", *_TOTALS, "last", "last_away"}
NOTHING = np.array([0.0, 0.0, 0.0, 0.0, -np.inf, np.inf])
"""The prefix and suffix sums of no seconds."""
NOT_YET = -WINDOW_S - 1
"""`last` and `series_start` before the first trade, `last_away` before the first gap: longer ago than any series lasts."""
_EMPTY = {"high": -np.inf, "low": np.inf, "notional": 0.0, "log_return": 0.0, "last": NOT_YET, "series_start": NOT_YET, "last_away": NOT_YET}
_EMPTY |= dict.fromkeys((*_COUNTS, "quotes", "gap_s", "price_before_gap", "new_series", "away_s", *_TOTALS), 0)
_EMPTY |= dict(zip((*_PREFIXES, *SUFFIXES), (*NOTHING, *NOTHING), strict=True))
NEVER = -1


def _fields(of: tuple[str, ...], first: str, last: str) -> slice:
    """The fields from one to another, where they are neighbours."""
    return slice(of.index(first), of.index(last) + 1)


SUM, SUFFIX, TOTAL = _fields(PAST, _SUMMED[0], _SUMMED[-1]), _fields(PAST, SUFFIXES[0], SUFFIXES[-1]), _fields(PAST, _TOTALS[0], _TOTALS[-1])
PREFIX, COUNT = _fields(CURRENT, _PREFIXES[0], _PREFIXES[-1]), _fields(CURRENT, _COUNTS[0], _COUNTS[-1])
WHOLE_TOTAL, WHOLE_COUNT = _fields(PAST, "volume_total", "ticks_total"), _fields(CURRENT, "volume", "ticks")
"""Those of the counts that are not 0 where no cell has parts of shares."""
ROW_CURRENT, ROW_PAST = _fields(CURRENT, "open", _PREFIXES[-1]), _fields(PAST, "high", _TOTALS[-1])
"""What `statistics` looks up in a row's own second."""
STORED_CURRENT, STORED_PAST = (np.array([STORED.index(name) for name in fields if name in STORED]) for fields in (CURRENT, PAST))
"""Places in a bucket of the stored fields, which are the first."""


_CODEC = pa.Codec("zstd", 1)


@dataclass(frozen=True, slots=True)
class Packed:
    """Cells at rest."""

    shape: tuple[int, ...]
    size: int
    data: bytes


class Cells:
    """Some fields of the last seconds: array (field, column, symbol).

    A second's column is the second modulo the width, so the newest takes the oldest's.
    """

    def __init__(self, fields: tuple[str, ...], depth: int) -> None:
        self.fields = {name: number for number, name in enumerate(fields)}
        self.depth = depth
        """Seconds before the oldest open one that are still looked at."""
        nothing = ((name, np.float64(_EMPTY.get(name, np.nan))) for name in fields)
        self.nothing: Ints = np.array([value.astype(np.int64) if name in INTS else value.view(np.int64) for name, value in nothing])[:, None, None]
        self.not_zero = np.flatnonzero(self.nothing).tolist()
        """The fields of which nothing is not zero."""
        self.stored = sum(name in STORED for name in fields)
        """So many of the fields, the first, are in buckets."""
        self.cells: Ints = np.empty((len(fields), depth + SPARE_S, 0), np.int64)
        """The fields that are not `INTS` are floats: `floats` and `of` show them so."""
        self.parts = False
        """Whether a cell has ever had parts of shares, or accrued volume. Before, they are neither summed nor looked up."""
        self.last_gap = NEVER
        """The newest second with a gap of the feed. More than a window after it, `last_away` is neither carried nor looked up: what its columns still hold is
        older than that."""
        self.blank = True
        """Whether no second has a column yet."""
        self.last = NEVER
        """Newest second that has a column."""
        self.most = 0
        """Seconds asked for at once at most since the columns began again."""

    @property
    def width(self) -> int:
        width: int = self.cells.shape[1]
        return width

    @property
    def base(self) -> int:
        """Oldest second that has a column."""
        return self.last - self.width + 1

    @property
    def floats(self) -> Floats:
        return self.cells.view(np.float64)

    def of(self, name: str) -> NDArray[Any]:
        """One field: array (column, symbol)."""
        array: NDArray[Any] = (self.cells if name in INTS else self.floats)[self.fields[name]]
        return array

    def flat(self, name: str) -> NDArray[Any]:
        """One field by column * symbols + symbol index."""
        return self.of(name).reshape(-1)

    def at(self, indexes: Ints, seconds: Ints) -> Ints:
        """Where these cells lie in `flat`: from 0 where the columns last began again, below it before. numpy counts that from the end, which is their place."""
        at: Ints = (seconds - (self.last - self.last % self.width)) * self.cells.shape[2] + indexes
        return at

    def unbroken(self, second: int) -> int:
        """Last of the seconds whose columns follow upon this one's."""
        return second + self.width - 1 - second % self.width

    def columns(self, first: int, last: int) -> list[slice]:
        """The columns of consecutive seconds: one slice, or two where they go round the end. None where `last` is before `first`."""
        if last < first:
            return [slice(0, 0)]
        begin, end, middle = first % self.width, last % self.width + 1, self.unbroken(first)
        return [slice(begin, end)] if last <= middle else [slice(begin, self.width), slice(0, end)]

    def read(self, fields: slice, first: int, last: int, indexes: slice | Ints) -> Ints:
        """These fields in consecutive seconds: array (field, second, symbol)."""
        parts = [self.cells[fields, columns, indexes] for columns in self.columns(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _forget(self, columns: slice, indexes: slice) -> None:
        """Cells as they are where nothing has happened, from zeros."""
        for number in self.not_zero:
            self.cells[number, columns, indexes] = self.nothing[number]

    def ensure_symbols(self, symbols: int) -> None:
        """Makes room for more symbols. Before the first second the number of columns is not known: none is written."""
        if self.blank:
            self.cells = np.zeros((len(self.fields), self.width, symbols), np.int64)
        else:
            self.resize(symbols, self.width)

    def resize(self, symbols: int, width: int) -> None:
        """Makes room for this many symbols and seconds; the newest seconds stay. Raises `FrameError` where that is more than any feed of ours asks for."""
        if width > MOST_SECONDS and 8 * len(self.fields) * width * symbols > MOST_BYTES:
            raise FrameError(f"ticks and closings of one source lie {width} s apart")
        old, last = self.cells, self.last
        known = 0 if self.blank else old.shape[2]
        begin = max(last - width, last - old.shape[1]) + 1 if known else last + 1
        self.cells, self.blank = np.zeros((len(self.fields), width, symbols), np.int64), False
        for columns in self.columns(last - width + 1, begin - 1) if known else ():
            self._forget(columns, slice(known))
        self._forget(slice(None), slice(known, None))
        while begin <= last:
            end = min(last, self.unbroken(begin), begin + old.shape[1] - 1 - begin % old.shape[1])
            source, target, length = begin % old.shape[1], begin % width, end - begin + 1
            self.cells[:, target : target + length, :known] = old[:, source : source + length]
            begin = end + 1

    def take(self, indexes: Ints, room: int) -> None:
        """Keeps the symbols at these indexes, in this order, with room for so many."""
        kept = self.cells[:, :, indexes]
        self.cells = np.zeros((len(self.fields), self.width, room), np.int64)
        if not self.blank:
            self.cells[:, :, : len(indexes)] = kept
            self._forget(slice(None), slice(len(indexes), None))

    def rest(self) -> Packed:
        """Packs the cells; nothing else may be done before `wake`. A second differs little from the one before: only that is kept."""
        shape, differences = self.cells.shape, self.cells.copy()
        differences[:, 1:] ^= self.cells[:, :-1]
        data = differences.tobytes()
        self.cells = np.empty((shape[0], shape[1], 0), np.int64)
        return Packed(shape, len(data), _CODEC.compress(data, asbytes=True))

    def wake(self, packed: Packed) -> None:
        differences = np.frombuffer(_CODEC.decompress(packed.data, packed.size, asbytes=True), np.int64).reshape(packed.shape)
        self.cells = np.bitwise_xor.accumulate(differences, axis=1)

    def ensure_capacity(self, since: int, last: int) -> None:
        """Makes room for the seconds up to `last`, keeping `depth` seconds before `since`. What is not stored is written when they close."""
        last = max(last, self.last)
        needed = last - since + 1
        self.most = max(self.most, needed)
        around = last // self.width > self.last // self.width
        if needed > self.width - self.depth or (around and self.width - self.depth > 2 * (self.most + SPARE_S)):
            self.resize(self.cells.shape[2], self.depth + self.most + max(SPARE_S, min(self.most, FAR_S)))
        elif self.blank:
            self.resize(self.cells.shape[2], self.width)
        if around:
            self.most = needed
        if last > self.last:
            for columns in self.columns(max(self.last, last - self.width) + 1, last):
                self.cells[: self.stored, columns] = self.nothing[: self.stored]
            self.last = last

    def forget(self, indexes: Ints, last: int) -> None:
        """Forgets what some symbols had in the seconds through `last`."""
        for columns in self.columns(self.base, min(last, self.last)):
            self.cells[:, columns, indexes] = self.nothing

    def reset(self, second: int) -> None:
        """Forgets every second; `second` is the newest that has a column."""
        self.last, self.blank = second, True
        self.resize(self.cells.shape[2], self.depth + SPARE_S)

"""What `aggregate` adds up: one-second bars and the rolling 5-minute window of every symbol and source of one partition.

`Windows` takes `ticks.clean` frames and, at each closing, gives the rows of the seconds that close and those that late ticks have changed. Sums are
taken in one order whatever the frames, so any cutting of the log gives the same bits: within a second tick by tick in log order, within a window in an
order that follows from its last second and its series' first alone (`_Ring`).

A `_Ring` holds one source's last seconds as arrays (second, symbol): what windows look up as far back as they reach, the rest
as far as ticks may be late. Records for the state (`records`): buckets, the seconds that closed or were revised, and a head, which says how far the log
is counted and where to go on. A key names the writer's term (the group's generation, modulo TERMS) besides its
slot in the ring: so a frozen worker that wakes can only replace what it wrote itself, and compaction, which keeps the last of a key, keeps the highest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise, repeat
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream import accelerated
from stockstream.errors import FrameError, StateError
from stockstream.records import QUOTES, WINDOWS_SCHEMA, Closing
from stockstream.transforms.changelog_index import ChangelogIndex, Range
from stockstream.transforms.frames import Frame, bounds_of_runs, coded, empty, nullable, numbers, plain, spread
from stockstream.transforms.timing import FORGET_MS, LAGS_S, WINDOW_S
from stockstream.transforms.versioned import MAX_VALUE_BYTES, TERMS
from stockstream.transforms.windows import state as window_state
from stockstream.transforms.windows.state import FORMAT, STORED, Bucket, Head, Second, Source

RESTORE_S = 2 * WINDOW_S + 1
"""Seconds of buckets that a restart needs besides REVISE_S: two windows, to know where each living series began."""
SLOTS = 2 * RESTORE_S + 121
"""Ring of record keys: a record of up to SPAN_S seconds goes when its first second's slot comes round, and none of them is needed by then."""
SPAN_S = 480
REST_MS = 5 * 60_000
REST_FRAMES = 2_000
"""Of the log's time, or frames where that is not known, in which a source was in no frame: then its arrays are packed."""
SILENT_S = 2 * WINDOW_S + 60
"""Besides REVISE_S: a symbol that was not heard for so long has left no trace in any window or series, and gives up its row."""
FAR_S = 60
MOST_SECONDS, MOST_BYTES = 1_024, 1 << 28
"""Laid out at once. What `clean` sends closes seconds as it goes; a frame that does not is somebody else's."""
SPARE_S = 8
"""Seconds laid out beyond what is needed, at least: a second then seldom asks for new room. A chunk of a backlog has many, and the next may have more:
as many again then, up to FAR_S."""
CELLS_AT_ONCE = 250_000
"""Bound on symbols x seconds laid out at once beyond the window, and so on a ring's memory (30 fields of 8 bytes a cell)."""
LONG_SYMBOLS = 3_000
"""Of a source: room for more takes longer to lay out than other partitions should wait."""
MANY_SYMBOLS = 150
"""Where one numpy call for each second begins to be cheaper than `accumulate`, which strides through memory (measured: 2.3 to 7 ns a cell against 1)."""
ROWS_AT_ONCE = 128
"""Symbols whose tails are summed at once: what that takes then stays near the processor (measured with 1,250: 45 ns a cell against 80)."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SUMMED = ("notional", "log_return", "price")
_HEADS = tuple(f"{name}_head" for name in (*_SUMMED, "squares", "high", "low"))
_TAILS = tuple(f"{name}_tail" for name in (*_SUMMED, "squares", "high", "low"))
_TOTALS = ("volume_total", "ticks_total")
_PAST = ("high", "low", *_SUMMED, *_TOTALS, *_TAILS)
"""The fields that windows look up as far back as they reach."""
_OWN = (*(name for name in STORED if name not in _PAST), "begun", *_HEADS, "last")
"""The fields that are looked up in a row's own second, or in the one before."""
_INTS = {"quotes", "volume", "ticks", "begun", *_TOTALS, "last"}
_NOTHING = np.array([0.0, 0.0, 0.0, 0.0, -np.inf, np.inf])
"""Heads and tails of no seconds."""
_NOT_YET = -WINDOW_S - 1
"""`last` and `begun` before the first trade: longer ago than any series lasts."""
_EMPTY = {"high": -np.inf, "low": np.inf, "notional": 0.0, "log_return": 0.0, "last": _NOT_YET, "begun": _NOT_YET}
_EMPTY |= dict.fromkeys(("volume", "ticks", "quotes", *_TOTALS), 0) | dict(zip((*_HEADS, *_TAILS), (*_NOTHING, *_NOTHING), strict=True))
Row = msgspec.defstruct("Row", WINDOWS_SCHEMA.names, gc=False)
"""A row of `windows` as it is for JSON, which makes null of a NaN."""
_QUALITY = ["", "partial"]
_NEVER = -1


@dataclass(slots=True)
class _Ticks:
    """Columns of one source's ticks, in log order."""

    symbol: Ints
    second: Ints
    price: Floats
    size: Ints
    offset: Ints
    quotes: dict[str, Floats]
    """Columns of `QUOTES` that any tick has."""

    def take(self, which: slice | NDArray[np.bool_]) -> _Ticks:
        quotes = {name: column[which] for name, column in self.quotes.items()}
        return _Ticks(self.symbol[which], self.second[which], self.price[which], self.size[which], self.offset[which], quotes)


def _fields(of: tuple[str, ...], first: str, last: str) -> slice:
    """The fields from one to another, where they are neighbours."""
    return slice(of.index(first), of.index(last) + 1)


_SUM, _TAIL, _TOTAL = _fields(_PAST, _SUMMED[0], _SUMMED[-1]), _fields(_PAST, _TAILS[0], _TAILS[-1]), _fields(_PAST, *_TOTALS)
_HEAD, _COUNT = _fields(_OWN, _HEADS[0], _HEADS[-1]), _fields(_OWN, "volume", "ticks")
_ROW_OWN, _ROW_PAST = _fields(_OWN, "open", _HEADS[-1]), _fields(_PAST, "high", _TOTALS[-1])
"""What `statistics` looks up in a row's own second."""
_STORED_OWN, _STORED_PAST = (np.array([STORED.index(name) for name in fields if name in STORED]) for fields in (_OWN, _PAST))
"""Places in a bucket of the stored fields, which are the first."""


def _running(operation: np.ufunc, carried: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Running results along the seconds (last axis but one), going on from `carried`: always one second after the other."""
    if values.shape[-2] == 1:
        one: NDArray[Any] = operation(carried[..., None, :], values)
        return one
    if values.shape[-1] < MANY_SYMBOLS:
        return operation.accumulate(np.concatenate([carried[..., None, :], values], axis=-2), axis=-2)[..., 1:, :]
    out = np.empty_like(values)
    for second in range(values.shape[-2]):
        carried = operation(carried, values[..., second, :], out=out[..., second, :])
    return out


def _some_at_once(rows: slice | Ints) -> list[slice | Ints]:
    if isinstance(rows, slice):
        return [slice(at, min(at + ROWS_AT_ONCE, rows.stop)) for at in range(rows.start, rows.stop, ROWS_AT_ONCE)]
    return [rows[at : at + ROWS_AT_ONCE] for at in range(0, len(rows), ROWS_AT_ONCE)]


def _as_slice(rows: Ints) -> slice | Ints:
    """The rows, as a slice where they follow upon each other."""
    return slice(int(rows[0]), int(rows[0]) + len(rows)) if len(rows) and (np.diff(rows) == 1).all() else rows


def _squares_added(change: Floats, before: Floats, count: Ints) -> Floats:
    """What each return adds to the squares of deviations from the mean, with the sum and count of those before it (Welford, 1962)."""
    return np.square(change - before / np.maximum(count, 1)) * (count / (count + 1))


if accelerated.ring is not None:
    accelerated.ring.fields(_OWN, _PAST)

_CODEC = pa.Codec("zstd", 1)


@dataclass(frozen=True, slots=True)
class _Packed:
    """Cells at rest."""

    shape: tuple[int, ...]
    size: int
    data: bytes


class _Cells:
    """Some fields of the last seconds: array (field, column, row). A second's column is the second modulo the width, so that the newest takes the oldest's."""

    def __init__(self, fields: tuple[str, ...], depth: int) -> None:
        self.fields = {name: number for number, name in enumerate(fields)}
        self.depth = depth
        """Seconds before the oldest open one that are still looked at."""
        nothing = ((name, np.float64(_EMPTY.get(name, np.nan))) for name in fields)
        self.nothing: Ints = np.array([value.astype(np.int64) if name in _INTS else value.view(np.int64) for name, value in nothing])[:, None, None]
        self.not_zero = np.flatnonzero(self.nothing).tolist()
        """The fields of which nothing is not zero."""
        self.stored = sum(name in STORED for name in fields)
        """So many of the fields, the first, are in buckets."""
        self.cells: Ints = np.empty((len(fields), depth + SPARE_S, 0), np.int64)
        """The fields that are not `_INTS` are floats: `floats` and `of` show them so."""
        self.blank = True
        """Whether no second was covered yet."""
        self.last = _NEVER
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
        """One field: array (column, row)."""
        array: NDArray[Any] = (self.cells if name in _INTS else self.floats)[self.fields[name]]
        return array

    def flat(self, name: str) -> NDArray[Any]:
        """One field by column * rows + row."""
        return self.of(name).reshape(-1)

    def at(self, rows: Ints, seconds: Ints) -> Ints:
        """Where these cells lie in `flat`: from 0 where the columns last began again, below it before. numpy counts that from the end, which is their place."""
        at: Ints = (seconds - (self.last - self.last % self.width)) * self.cells.shape[2] + rows
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

    def read(self, fields: slice, first: int, last: int, rows: slice | Ints) -> Ints:
        """These fields in consecutive seconds: array (field, second, row)."""
        parts = [self.cells[fields, columns, rows] for columns in self.columns(first, last)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)

    def _forget(self, columns: slice, rows: slice) -> None:
        """Cells as they are where nothing has happened, from zeros."""
        for number in self.not_zero:
            self.cells[number, columns, rows] = self.nothing[number]

    def know(self, rows: int) -> None:
        """Room for more rows. Before the first second is covered nobody knows how many columns there must be: none is written."""
        if self.blank:
            self.cells = np.zeros((len(self.fields), self.width, rows), np.int64)
        else:
            self.resize(rows, self.width)

    def resize(self, rows: int, width: int) -> None:
        """New room for this many rows and seconds; the newest seconds stay. Raises `FrameError` where that is more than any feed of ours asks for."""
        if width > MOST_SECONDS and 8 * len(self.fields) * width * rows > MOST_BYTES:
            raise FrameError(f"ticks and closings of one source lie {width} s apart")
        old, last = self.cells, self.last
        known = 0 if self.blank else old.shape[2]
        begin = max(last - width, last - old.shape[1]) + 1 if known else last + 1
        self.cells, self.blank = np.zeros((len(self.fields), width, rows), np.int64), False
        for columns in self.columns(last - width + 1, begin - 1) if known else ():
            self._forget(columns, slice(known))
        self._forget(slice(None), slice(known, None))
        while begin <= last:
            end = min(last, self.unbroken(begin), begin + old.shape[1] - 1 - begin % old.shape[1])
            source, target, length = begin % old.shape[1], begin % width, end - begin + 1
            self.cells[:, target : target + length, :known] = old[:, source : source + length]
            begin = end + 1

    def take(self, rows: Ints, room: int) -> None:
        """Keeps these rows, in this order, with room for so many."""
        kept = self.cells[:, :, rows]
        self.cells = np.zeros((len(self.fields), self.width, room), np.int64)
        if not self.blank:
            self.cells[:, :, : len(rows)] = kept
            self._forget(slice(None), slice(len(rows), None))

    def rest(self) -> _Packed:
        """Packs the cells; nothing else may be done before `wake`. A second differs little from the one before: only that is kept."""
        shape, differences = self.cells.shape, self.cells.copy()
        differences[:, 1:] ^= self.cells[:, :-1]
        data = differences.tobytes()
        self.cells = np.empty((shape[0], shape[1], 0), np.int64)
        return _Packed(shape, len(data), _CODEC.compress(data, asbytes=True))

    def wake(self, packed: _Packed) -> None:
        differences = np.frombuffer(_CODEC.decompress(packed.data, packed.size, asbytes=True), np.int64).reshape(packed.shape)
        self.cells = np.bitwise_xor.accumulate(differences, axis=1)

    def cover(self, since: int, last: int) -> None:
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

    def begin_anew(self, second: int) -> None:
        """Forgets every second; `second` is the newest that has a column."""
        self.last, self.blank = second, True
        self.resize(self.cells.shape[2], self.depth + SPARE_S)


class _Ring:
    """One source's seconds, in two depths of `_Cells`; rows are symbols in the order first heard.

    Stretches of WINDOW_S seconds begin at multiples of it in epoch seconds; a window is the end of one and the beginning of the next. Heads are sums from
    the stretch's beginning (prices: of the series, where that is later) through the second, tails sums from the second through the stretch's end.

    No second up to `closed` - `revise_s` changes any more: `clean` rejects what is older, and after a restart its ticks are counted already.
    """

    def __init__(self, revise_s: int) -> None:
        self.revise_s = revise_s
        self.symbols: dict[str, int] = {}
        self.own, self.past = _Cells(_OWN, 1 + revise_s), _Cells(_PAST, WINDOW_S + 1 + revise_s)
        self.closed = _NEVER
        self.rank: Ints = np.zeros(0, np.int64)
        self.by_rank: Ints = np.zeros(0, np.int64)
        """Rows in the order of the symbols' names."""
        self.names: NDArray[np.object_] = np.zeros(0, object)
        self.bytes: Ints = np.zeros(0, np.int64)
        """By row: bytes of a symbol's second in a record, at most."""
        self.heard: Ints = np.zeros(0, np.int64)
        """By row: about the last second with a tick or quote."""
        self.touched = 0
        """The log's time (epoch ms) when the source was last in a frame; 0: the next that is known."""
        self.frame = 0
        """Number of the frame that it was last in."""
        self._packed: list[_Packed] = []
        self.unsaved: dict[int, int] = {}
        """Second -> first raw offset with an effect that no stored bucket has."""
        self.stored = _NEVER
        """Newest second that has a bucket."""
        self.counted = _NEVER
        """Last closing's offset: all ticks up to it in seconds up to `closed` are in buckets."""
        self.begun = _NEVER
        """Raw offset from which on the source tells of this series; what is stored of another one before counts no more."""
        self.through: dict[int, int] = {}
        """After a restart: second -> offset that its stored bucket counts through."""
        self.resumed = _NEVER
        """The last second of the life before, while ticks of another life have come that begins far behind it, and not its first closing."""
        self.restored: tuple[int, int] = (_NEVER, _NEVER)
        """After a restart: `closed` and `counted` of the head."""
        self.waiting: dict[int, list[Second]] = {}
        """After a restart: stored seconds beyond `closed`, put in place when the log gets there again."""
        self.changed: set[tuple[int, int]] = set()
        """(Row, closed second) of late ticks whose revision was not sent."""

    # -- room ---------------------------------------------------------------

    @property
    def at_once(self) -> int:
        """Seconds that may be laid out at once."""
        return max(FAR_S, CELLS_AT_ONCE // max(len(self.symbols), 8))

    def know(self, symbols: Collection[str]) -> Ints:
        """Row numbers of these (different) symbols, new ones added."""
        table = self.symbols
        try:
            return np.fromiter(map(table.__getitem__, symbols), np.int64, len(symbols))
        except KeyError:
            new = [symbol for symbol in symbols if symbol not in table]
        table.update(zip(new, range(len(table), len(table) + len(new)), strict=True))
        if len(table) > self.own.cells.shape[2]:
            rows = len(table) + max(8, len(table) // 16)
            for cells in (self.own, self.past):
                cells.know(rows)
        self.heard = np.concatenate([self.heard, np.full(len(new), max(self.closed, 0))])
        self.bytes = np.concatenate([self.bytes, np.fromiter((8 * len(STORED) + 5 + len(symbol.encode()) for symbol in new), np.int64, len(new))])
        self._name()
        return self.know(symbols)

    def _name(self) -> None:
        self.names = np.array(list(self.symbols), object)
        self.by_rank = np.argsort(self.names.astype(str), kind="stable")
        self.rank = np.empty(len(self.names), np.int64)
        self.rank[self.by_rank] = np.arange(len(self.names))

    def make_room(self, symbols: Collection[str]) -> None:
        """Where there is no row left for these symbols, those that were silent for longer than anything reaches give theirs up, if they are many."""
        free = self.own.cells.shape[2] - len(self.symbols)
        if not len(self.symbols) or self.closed == _NEVER or sum(symbol not in self.symbols for symbol in symbols) <= free:
            return
        kept = np.flatnonzero(self.heard > self.closed - SILENT_S - self.revise_s)
        if len(self.symbols) - len(kept) < max(8, len(self.symbols) // 8):
            return
        number_of = dict(zip(kept.tolist(), range(len(kept)), strict=True))
        self.changed = {(number_of[row], second) for row, second in self.changed}
        self.symbols = dict(zip(self.names[kept].tolist(), range(len(kept)), strict=True))
        self.heard, self.bytes = self.heard[kept], self.bytes[kept]
        for cells in (self.own, self.past):
            cells.take(kept, len(kept) + max(8, len(kept) // 16))
        self._name()

    def rest(self) -> None:
        """Packs the arrays until `wake`."""
        if not self._packed:
            self._packed = [cells.rest() for cells in (self.own, self.past)]

    def wake(self) -> None:
        if self._packed:
            for cells, packed in zip((self.own, self.past), self._packed, strict=True):
                cells.wake(packed)
            self._packed = []

    @property
    def array_bytes(self) -> int:
        """Memory of the arrays, packed or not."""
        return self.own.cells.nbytes + self.past.cells.nbytes + sum(len(packed.data) for packed in self._packed)

    def cover(self, first: int, last: int) -> None:
        """Makes room for the seconds `first` to `last`, keeping what windows up to `closed` and later still need."""
        if self.closed - self.revise_s < first and last <= self.own.last and self.closed != _NEVER:
            return
        since = min([first, *self.unsaved]) if self.closed == _NEVER else min(first + self.revise_s, self.closed + 1)
        for cells in (self.own, self.past):
            cells.cover(since, last)

    def skip_to(self, second: int) -> None:
        """Where nothing is heard for longer than anything is kept, begins anew with `second` as the last closed: no window or series reaches over that."""
        if second - self.closed > self.past.depth and self.closed != _NEVER and not self.unsaved:
            for cells in (self.own, self.past):
                cells.begin_anew(second)
            self.closed = second

    def resume_far(self, second: int) -> None:
        """A source that `clean` had forgotten is heard again, first at `second`, before its first closing: no room is needed for what lies between.

        That closing will say after which second the series begins: one of the two before `second`, as the milliseconds have it.
        """
        if self.closed != _NEVER and second - self.closed > self.past.depth + self.revise_s and not self.unsaved:
            self.resumed = self.closed
            self.skip_to(second - 2)

    @property
    def known_closed(self) -> int:
        """The last second that a closing has named: what a restart goes on from."""
        return self.closed if self.resumed == _NEVER else self.resumed

    # -- ticks --------------------------------------------------------------

    def reach(self, offset: int) -> None:
        """The log goes on with this offset: stored buckets that count through less have had their effect."""
        if (self.through or self.restored != (_NEVER, _NEVER)) and offset > max(self.restored[1], *self.through.values(), _NEVER):
            self.restored, self.through = (_NEVER, _NEVER), {}

    def uncounted(self, ticks: _Ticks) -> _Ticks:
        """The ticks that no stored bucket counts; all of them but for a while after a restart."""
        if self.restored == (_NEVER, _NEVER) and not self.through:
            return ticks
        closed, counted = self.restored
        through = np.fromiter((self.through.get(s, _NEVER) for s in ticks.second.tolist()), np.int64, len(ticks.second))
        return ticks.take((ticks.offset > through) & ((ticks.offset > counted) | (ticks.second > closed)))

    def add(self, ticks: _Ticks) -> None:
        """Adds ticks to their seconds, one after the other in log order."""
        for first in bounds_of_runs(ticks.second)[:-1]:
            self.unsaved.setdefault(int(ticks.second[first]), int(ticks.offset[first]))
        self.heard[ticks.symbol] = ticks.second
        own, past = self.own, self.past
        if accelerated.ring is not None:
            accelerated.ring.add(own.cells, past.cells, ticks.symbol, ticks.second, ticks.price, ticks.size)
        else:
            self._add(ticks)
        for name, values in ticks.quotes.items():
            told = ~np.isnan(values)
            own.flat(name)[own.at(ticks.symbol[told], ticks.second[told])] = values[told]

    def _add(self, ticks: _Ticks) -> None:
        own, past = self.own, self.past
        at, before = own.at(ticks.symbol, ticks.second), past.at(ticks.symbol, ticks.second)
        price, size = ticks.price, ticks.size
        priced = ~np.isnan(price)
        if not priced.all():
            np.add.at(own.flat("quotes"), at[~priced], 1)
            at, before, price, size = at[priced], before[priced], price[priced], size[priced]
        np.add.at(own.flat("ticks"), at, 1)
        np.add.at(own.flat("volume"), at, size)
        np.add.at(past.flat("notional"), before, price * size)
        np.maximum.at(past.flat("high"), before, price)
        np.minimum.at(past.flat("low"), before, price)
        opened = own.flat("open")
        unopened = np.isnan(opened[at])
        opened[at[unopened][::-1]] = price[unopened][::-1]
        own.flat("close")[at] = price

    # -- closings -----------------------------------------------------------

    def close(self, second: int) -> None:
        """Carries prices forward through `second`; nothing is sent."""
        if second > self.closed:
            first = self.closed + 1 if self.closed != _NEVER else self.own.base + 1
            self._carry(slice(0, len(self.symbols)), first, second)
            self.closed = second

    def _carry(self, rows: slice | Ints, first: int, last: int) -> None:
        """Price, return, last traded second, beginning of the series and sums in the seconds `first` to `last`, from the second before."""
        own, past = self.own, self.past
        numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
        while first <= last:
            stretch = first // WINDOW_S * WINDOW_S
            end = min(last, stretch + WINDOW_S - 1, own.unbroken(first), past.unbroken(first))
            if accelerated.ring is not None:
                accelerated.ring.carry_prices(own.cells, past.cells, numbers, first, end)
                (there,), returns = past.columns(first, end), past.of("log_return")
                returns[there, rows] = np.log(returns[there, rows])
                accelerated.ring.sum_heads(own.cells, past.cells, numbers, first, end, stretch)
            else:
                self._carry_prices(rows, first, end)
                self._sum_heads(rows, first, end, stretch)
            if end == stretch + WINDOW_S - 1:
                begin = max(stretch, past.base)
                if accelerated.ring is not None:
                    accelerated.ring.sum_tails(past.cells, numbers, begin, end)
                else:
                    for some in _some_at_once(rows):
                        self._sum_tails(some, begin, end)
            first = end + 1

    def _carry_prices(self, rows: slice | Ints, first: int, last: int) -> None:
        own, past = self.own, self.past
        (here,), (there,) = own.columns(first, last), past.columns(first, last)
        before_own, before_past = here.start - 1, there.start - 1         # of column 0: the last, -1
        close = own.of("close")[here, rows]
        second = np.arange(first, last + 1)[:, None]
        traded = ~np.isnan(close)
        newest = own.of("last")[before_own, rows]
        seen = _running(np.maximum, newest, np.where(traded, second, _NOT_YET))
        before = np.concatenate([newest[None], seen[:-1]])
        anew = traded & (second - before > WINDOW_S)
        begun = _running(np.maximum, own.of("begun")[before_own, rows], np.where(anew, second, _NOT_YET))
        known = np.concatenate([past.of("price")[before_past, rows][None], close])
        at = np.maximum(seen - (first - 1), 0)                           # where in `known` the newest price stands
        price = known.take(at * known.shape[1] + np.arange(known.shape[1]))
        price[second - seen > WINDOW_S] = np.nan
        former = np.concatenate([known[:1], price[:-1]])
        moved = (price != former) & (second > begun) & ~np.isnan(price)
        change = np.zeros(price.shape)
        change[moved] = np.log(price[moved] / former[moved])
        own.of("last")[here, rows], own.of("begun")[here, rows] = seen, begun
        past.of("price")[there, rows], past.of("log_return")[there, rows] = price, change
        past.cells[_TOTAL, there, rows] = _running(np.add, past.cells[_TOTAL, before_past, rows], own.cells[_COUNT, here, rows])

    def _sum_heads(self, rows: slice | Ints, first: int, last: int, stretch: int) -> None:
        """Heads in some seconds of the stretch that begins with second `stretch`."""
        own, past = self.own, self.past
        (here,), (there,) = own.columns(first, last), past.columns(first, last)
        second = np.arange(first, last + 1)[:, None]
        begun = own.of("begun")[here, rows]
        carried = own.floats[_HEAD, here.start - 1, rows]
        if first == stretch:
            carried = np.broadcast_to(_NOTHING[:, None], carried.shape)
        values = past.floats[_SUM, there, rows].copy()
        price = values[2]
        price[np.isnan(price)] = 0.0
        sums = _running(np.add, carried[:3], values)
        again = np.flatnonzero(begun[-1] >= first)                       # a stretch is too short for two beginnings
        if len(again):
            inside = second >= begun[-1, again]
            alone = np.add.accumulate(np.where(inside, price[:, again], 0.0), axis=0)
            sums[2][:, again] = np.where(inside, alone, sums[2][:, again])
        count = np.maximum(second - np.maximum(stretch, begun + 1), 0)
        added = _squares_added(values[1], np.concatenate([carried[1:2], sums[1, :-1]]), count)
        own.floats[_HEAD, here, rows] = np.concatenate([
            sums, _running(np.add, carried[3], added)[None],
            _running(np.maximum, carried[4], past.of("high")[there, rows])[None],
            _running(np.minimum, carried[5], past.of("low")[there, rows])[None],
        ])  # fmt: skip

    def _sum_tails(self, rows: slice | Ints, first: int, last: int) -> None:
        """Tails of a stretch whose seconds are all closed. Before a series' beginning they mean nothing."""
        past = self.past
        high, low, *_ = backwards = past.read(slice(0, _SUM.stop), first, last, rows).view(np.float64)[:, ::-1]
        values = backwards[_SUM]
        sums = np.add.accumulate(values, axis=1)
        before = np.concatenate([np.zeros_like(sums[1, :1]), sums[1, :-1]])
        added = _squares_added(values[1], before, np.arange(last - first + 1)[:, None])
        tails = np.concatenate([
            sums, np.add.accumulate(added, axis=0)[None], np.maximum.accumulate(high, axis=0)[None], np.minimum.accumulate(low, axis=0)[None],
        ])[:, ::-1]  # fmt: skip
        at = 0
        for columns in past.columns(first, last):
            length = columns.stop - columns.start
            past.floats[_TAIL, columns, rows] = tails[:, at : at + length]
            at += length

    def revise(self) -> tuple[Ints, Ints]:
        """Carries prices again from the changed seconds on; returns (rows, seconds) of the cells up to `closed` that are to be sent again, in their order."""
        since: dict[int, int] = {}
        for row, second in self.changed:
            since[row] = min(since.get(row, second), second)
        rows = np.fromiter(since, np.int64, len(since))
        first = np.fromiter(since.values(), np.int64, len(since))
        order = self.rank[rows].argsort()
        rows, first = rows[order], first[order]
        lowest = int(first.min())
        if lowest <= self.own.base:
            raise FrameError(f"a late tick {self.closed - lowest} s before the last closed second")
        self._carry(rows, lowest, self.closed)
        since_of = np.zeros(len(self.symbols), np.int64)
        since_of[rows] = first
        live, seconds = self._live(rows, np.arange(lowest, self.closed + 1))
        due = seconds >= since_of[live]
        return live[due], seconds[due]

    def cells_between(self, after: int, second: int) -> tuple[Ints, Ints]:
        """(rows, seconds) with ticks or quotes in the seconds after < s <= second, by second and symbol."""
        first = max(after + 1, self.own.base)
        return self._live(self.by_rank, np.arange(first, second + 1))

    def _live(self, rows: Ints, seconds: Ints) -> tuple[Ints, Ints]:
        """(rows, seconds) of the cells that have ticks or quotes, by second, in the order of `rows`."""
        if accelerated.ring is not None:
            found: tuple[Ints, Ints] = accelerated.ring.live(self.own.cells, rows, seconds)
            return found
        cells = (seconds % self.own.width)[:, None], rows
        at, which = (self.own.of("ticks")[cells] + self.own.of("quotes")[cells]).nonzero()
        return rows[which], seconds[at]

    def statistics(self, rows: Ints, seconds: Ints) -> dict[str, NDArray[Any]]:
        """The row values of these cells, by column name of `windows`."""
        if accelerated.ring is not None:
            floats, ints = accelerated.ring.statistics(self.own.cells, self.past.cells, rows, seconds)
            returns = floats[-len(LAGS_S) :]
            np.log(returns, out=returns)
            return dict(zip(accelerated.ring.FLOATS, floats, strict=True)) | dict(zip(accelerated.ring.INTS, ints, strict=True))
        past, symbols = self.past, self.past.cells.shape[2]
        at = past.at(rows, seconds)
        here = self.own.cells[_ROW_OWN].reshape(-1, self.own.width * symbols).take(self.own.at(rows, seconds), axis=1)
        there = past.cells[_ROW_PAST].reshape(-1, past.width * symbols).take(at, axis=1)
        get = {name: values if name in _INTS else values.view(np.float64)
               for name, values in zip((*_OWN[_ROW_OWN], *_PAST[_ROW_PAST]), (*here, *there), strict=True)}  # fmt: skip
        second, begun, carried = seconds, get["begun"], get["price"]
        traded, alive = get["ticks"] > 0, ~np.isnan(carried)
        length = np.where(alive, np.minimum(second - begun + 1, WINDOW_S), 0)
        returns = length - (second - begun < WINDOW_S)                   # the first second of a series has no return
        out = {name: get[name] for name in ("open", "close", "volume", "ticks", "quotes", "bid", "ask", "bid_size", "ask_size")}
        out["high"], out["low"] = np.where(traded, get["high"], np.nan), np.where(traded, get["low"], np.nan)
        out["second"], out["seconds_5m"] = second, length
        volumes = get["volume_total"] - past.flat("volume_total").take(at - np.array([[10], [60], [WINDOW_S]]) * symbols)
        ticks = get["ticks_total"] - past.flat("ticks_total").take(at - np.array([[10], [WINDOW_S]]) * symbols)
        out["volume_10s"], out["volume_60s"], out["volume_5m"] = volumes
        out["ticks_10s"], out["ticks_5m"] = ticks
        notional, price, squares, high, low = self._windows(here[_HEAD].view(np.float64), at, second, begun, returns)
        with np.errstate(divide="ignore", invalid="ignore"):
            out["mean_5m"] = np.where(length > 0, price / length, np.nan)
            out["vwap_5m"] = np.where(volumes[2] > 0, notional / volumes[2], np.nan)
            out["return_std_5m"] = np.where(returns > 1, np.sqrt(squares / (returns - 1)), np.nan)
            out["high_5m"], out["low_5m"] = np.where(ticks[1] > 0, high, np.nan), np.where(ticks[1] > 0, low, np.nan)
            mid = (get["bid"] + get["ask"]) / 2
            out["mid"] = mid
            out["price"] = np.where(np.isnan(mid), np.where(np.isnan(get["close"]), carried, get["close"]), mid)
            lags = np.array(LAGS_S)[:, None]
            before = np.where(alive & (second - lags >= begun), past.flat("price").take(at - lags * symbols), np.nan)
            for lag, change in zip(LAGS_S, np.log(carried / before), strict=True):
                out[f"return_{lag}s"] = change
            out["price_60s"] = before[-1]
        return out

    def _windows(self, head: Floats, at: Ints, second: Ints, begun: Ints, returns: Ints) -> tuple[Floats, ...]:
        """Over the windows that end in these cells: notional, prices, squares of the returns' deviations, greatest and least price."""
        past, symbols, stretch = self.past, self.past.cells.shape[2], second // WINDOW_S * WINDOW_S
        first = np.maximum(second - (WINDOW_S - 1), begun)
        older = first < stretch
        there = np.where(older, at - (second - first) * symbols, at)
        tail = np.where(older, past.floats[_TAIL].reshape(len(_TAILS), -1).take(there, axis=1), _NOTHING[:, None])
        # the tail's returns begin one second later where the series begins there
        returning = np.maximum(stretch - np.maximum(first, begun + 1), 0)
        here = returns - returning
        tail_squares = np.where(returning > 0, past.flat("squares_tail").take(there + ((returning > 0) & (first == begun)) * symbols), 0.0)
        # squares of deviations, of two groups with means of their own (Chan, Golub, LeVeque: Updating formulae for sample variances, 1979)
        apart = tail[1] / np.maximum(returning, 1) - head[1] / np.maximum(here, 1)
        squares = head[3] + (tail_squares + np.square(apart) * (returning * here / np.maximum(returns, 1)))
        return head[0] + tail[0], head[2] + tail[2], squares, np.maximum(head[4], tail[4]), np.minimum(head[5], tail[5])

    # -- state --------------------------------------------------------------

    def buckets(self, seconds: list[int]) -> Iterator[tuple[list[Second], int]]:
        """The stored form of each of these seconds, in parts that fit a message, and about their bytes."""
        second = np.array(seconds, np.int64)
        rows, seconds_of = self._live(np.arange(len(self.symbols)), second)
        if accelerated.ring is not None:
            told = accelerated.ring.stored(self.own.cells, self.past.cells, rows, seconds_of, _STORED_OWN, _STORED_PAST)
        else:
            told = np.empty((len(STORED), len(rows)), np.int64)
            for cells, places in self._stored():
                told[places] = cells.cells[: len(places)].reshape(len(places), -1).take(cells.at(rows, seconds_of), axis=1)
        ends = seconds_of.searchsorted(second, "right").tolist()
        names, sizes = self.names[rows].tolist(), np.concatenate([[0], self.bytes[rows].cumsum()])
        begin = 0
        for number, end in zip(seconds, ends, strict=True):
            size, cuts = int(sizes[end] - sizes[begin]), [begin, end]
            if size > MAX_VALUE_BYTES:
                numbers_of = (sizes[begin:end] - sizes[begin]) // MAX_VALUE_BYTES
                cuts[1:1] = (begin + 1 + np.flatnonzero(np.diff(numbers_of))).tolist()
            parts = [slice(*pair) for pair in pairwise(cuts)] if end > begin else []
            yield [Second(number, names[part], told[:, part].tobytes()) for part in parts], size
            begin = end

    def settle(self, second: int) -> None:
        """Puts stored seconds up to this one back in their place."""
        due = sorted(s for s in self.waiting if s <= second)
        while due and due[0] < second - RESTORE_S - self.revise_s:
            del self.waiting[due.pop(0)]                                 # of no use to any window by then
        if due:
            self.cover(due[0], second)
        known: list[str] = []
        for waiting in due:
            for part in self.waiting.pop(waiting):
                if part.symbols is not known:
                    known, rows = part.symbols, _as_slice(self.know(part.symbols))
                told = np.frombuffer(part.data, np.int64).reshape(len(STORED), -1)
                self.heard[rows] = waiting
                for cells, places in self._stored():
                    cells.cells[: len(places), waiting % cells.width, rows] = told[places]

    def _stored(self) -> tuple[tuple[_Cells, Ints], ...]:
        return (self.own, _STORED_OWN), (self.past, _STORED_PAST)


def _quality(values: Mapping[str, NDArray[Any]]) -> Ints:
    """Which of `_QUALITY` rows have."""
    return (values["seconds_5m"] < WINDOW_S).astype(np.int64)


@dataclass(slots=True)
class Part:
    """Rows of one source, by offset of the closing, second and symbol."""

    source: str
    symbols: list[str]
    symbol: Ints
    """Which of `symbols` each row is of."""
    values: dict[str, NDArray[Any]]
    """The columns of `windows` that differ from row to row; NaN where there is none."""

    def told(self, rows: list[int], partition: int) -> list[Any]:
        """Some of the rows, each as a `Row`."""
        places = np.array(rows)
        columns: dict[str, Iterable[Any]] = {name: array[places].tolist() for name, array in self.values.items()}
        columns |= {
            "symbol": [self.symbols[number] for number in self.symbol[places].tolist()], "source": repeat(self.source), "partition": repeat(partition),
            "quality": [_QUALITY[number] for number in _quality(self.values)[places].tolist()],
        }  # fmt: skip
        return list(map(Row, *(columns[name] for name in WINDOWS_SCHEMA.names)))


@dataclass(slots=True)
class Rows:
    """What one frame brings: the closings to send, all of them in order, and their rows."""

    start: int
    through: int
    clock: int = 0
    """Newest Kafka time (epoch ms) of an accepted record up to `through`; 0: not known."""
    closings: list[Closing] = field(default_factory=list)
    parts: list[Part] = field(default_factory=list)

    def newest(self) -> list[tuple[Part, dict[str, int]]]:
        """By part and symbol the row that is the last of the symbol to have a price."""
        found: list[tuple[Part, dict[str, int]]] = []
        for part in sorted(self.parts, key=lambda part: part.source):
            priced = np.flatnonzero(~np.isnan(part.values["price"]))
            last = np.full(len(part.symbols), -1)
            last[part.symbol[priced]] = priced                           # of several the last stays
            numbers = np.flatnonzero(last >= 0)
            newest = {part.symbols[number]: row for number, row in zip(numbers.tolist(), last[numbers].tolist(), strict=True)}
            for other, rows in found:
                for symbol in newest.keys() & rows.keys():
                    older = part.values["offset"][newest[symbol]] < other.values["offset"][rows[symbol]]
                    del (newest if older else rows)[symbol]
            found.append((part, newest))
        return found

    def batch(self, partition: int) -> pa.RecordBatch:
        """The rows as WINDOWS_SCHEMA, ordered by closing (offset, source), second, symbol."""
        parts = sorted(self.parts, key=lambda part: part.source)
        if not parts:
            return empty(WINDOWS_SCHEMA)
        values, symbols = parts[0].values, [spread(part.symbols, part.symbol) for part in parts]
        if len(parts) > 1:
            values = {name: np.concatenate([part.values[name] for part in parts]) for name in values}
        columns = {
            "symbol": pa.concat_arrays(symbols) if len(symbols) > 1 else symbols[0],
            "source": spread([part.source for part in parts], np.repeat(np.arange(len(parts)), [len(part.symbol) for part in parts])),
            "quality": spread(_QUALITY, _quality(values)),
            "partition": plain(np.full(len(values["second"]), partition, np.int32)),
        }
        columns |= {name: plain(array) for name, array in values.items() if array.dtype.kind != "f"}
        columns |= nullable({name: array for name, array in values.items() if array.dtype.kind == "f"})
        batch = pa.RecordBatch.from_arrays([columns[spec.name] for spec in WINDOWS_SCHEMA], schema=WINDOWS_SCHEMA)
        if parts[0].source != parts[-1].source:
            batch = batch.take(pa.array(np.argsort(values["offset"], kind="stable")))
        return batch


class Windows:
    """Bars and rolling windows of one partition.

    Args:
        partition: number of this partition, for the rows.
        revise_s: seconds back that a late tick may change; belongs to the log.
    """

    def __init__(self, partition: int, *, revise_s: int) -> None:
        self.partition, self.revise_s = partition, revise_s
        self.log = ""
        self.expect = -1
        """Next raw offset; -1: accepts any first frame."""
        self.sent = -1
        """Closings up to here were delivered before a restart."""
        self.resume_input = 0
        """Offset in `ticks.clean` of the frame to go on from after a restart."""
        self._rings: dict[str, _Ring] = {}
        self._inputs: deque[tuple[int, int]] = deque()
        self._records: list[tuple[list[str | int], Bucket]] = []
        self._head_slot = 0
        self._frames = 0
        self._last = self._head_last = -1
        self._sent_from = -1
        self._taking = False
        """While a frame is taken, and after one that failed."""
        self.index = ChangelogIndex()

    def frame(self, frame: Frame, input_offset: int = 0) -> Rows | None:
        """Takes a `ticks.clean` frame; returns the closings and rows to send, or None where the frame is of no use now.

        A frame that starts beyond `expect` is somebody else's future: dropped. `input_offset` is the frame's own offset in its topic.
        Raises `FrameError` where the frame asks for more than any of ours, and from then on: only `restore` gives a state that is whole again.
        """
        if self._taking:
            raise FrameError("the frame before could not be taken and may have changed some of the state: it must be restored first")
        if self.log and frame.log < self.log:
            return None
        if frame.log != self.log:
            index = self.index
            self.__init__(self.partition, revise_s=self.revise_s)  # type: ignore[misc]
            index.clear()
            self.log, self.index = frame.log, index
        if self.expect < 0:
            self.expect = self._sent_from = frame.start
        if frame.start > self.expect:
            return None
        out = Rows(self._sent_from, frame.through, frame.clock)
        if frame.through < self.expect:
            return out
        done = self.expect - 1
        self._taking = True
        self._frames += 1
        self._inputs.append((frame.through, input_offset))
        closings: dict[str, list[Closing]] = {}
        for closing in frame.closings:
            if closing.offset > done:
                closings.setdefault(closing.source, []).append(closing)
        heard = self._by_source(frame, done)
        sources = {*heard, *closings}
        for source, ticks in heard.items():
            self._source(source, ticks, closings.pop(source, []), out)
        for source, only in closings.items():
            self._source(source, None, only, out)
        self._look_after(sources, frame.clock)
        out.closings.sort(key=lambda c: (c.offset, c.source))
        self.expect = frame.through + 1
        self._last = max([self._last, *(c.offset for c in frame.closings)])
        if out.closings:
            self._sent_from = self.expect
        self._taking = False
        return out

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = max(self.expect, start)

    def takes_long(self, rows: pa.RecordBatch) -> bool:
        """Whether new room for symbols or seconds may be needed that takes long to lay out: 0.4 to 1 s for 20,000 symbols."""
        if max((len(ring.symbols) for ring in self._rings.values()), default=0) >= LONG_SYMBOLS:
            return True
        return rows.num_rows >= LONG_SYMBOLS and len(rows.column("symbol").unique()) >= LONG_SYMBOLS

    def _ring(self, name: str, begun: int) -> _Ring:
        """The ring of a source, awake; a new one tells of raw offsets from `begun` on."""
        ring = self._rings.get(name)
        if ring is None:
            ring = self._rings[name] = _Ring(self.revise_s)
            ring.begun = begun
        ring.wake()
        return ring

    def _look_after(self, heard: Collection[str], clock: int) -> None:
        """After a whole frame: drops sources that were in no frame for FORGET_MS of the log's time, and packs those that were in none for a while."""
        for name in heard:
            ring = self._rings[name]
            ring.touched, ring.frame = clock, self._frames
        for name, ring in list(self._rings.items()):
            if name in heard:
                continue
            if not ring.touched:
                ring.touched = clock
            elif clock - ring.touched > FORGET_MS and not ring.unsaved:
                del self._rings[name]
                self.index.forget(name)
                continue
            if clock - ring.touched > REST_MS or self._frames - ring.frame > REST_FRAMES:
                ring.rest()

    def _by_source(self, frame: Frame, done: int) -> dict[str, _Ticks]:
        rows = frame.rows
        offsets = rows.column("offset").to_numpy()
        skip = int(offsets.searchsorted(done, "right"))
        if skip:
            rows, offsets = rows.slice(skip), offsets[skip:]
        if not rows.num_rows:
            return {}
        sources, which = coded(rows.column("source"))
        price = numbers(rows, "price")
        quotes = {name: numbers(rows, name) for name in QUOTES if rows.column(name).null_count < rows.num_rows}
        seconds = rows.column("event_time").to_numpy() // 1000
        sizes = rows.column("size").to_numpy()
        table, codes = coded(rows.column("symbol"))
        out = {}
        for code, source in enumerate(sources):
            mine = slice(None) if len(sources) == 1 else which == code
            ring = self._ring(source, done + 1)
            present = codes[mine]
            used = np.flatnonzero(np.bincount(present, minlength=len(table)))
            rows_of = np.full(len(table), -1, np.int64)
            symbols = [table[i] for i in used.tolist()]
            if len(ring.symbols) + len(symbols) > ring.own.cells.shape[2]:
                ring.make_room(symbols)
            rows_of[used] = ring.know(symbols)
            told = {name: column[mine] for name, column in quotes.items()}
            out[source] = _Ticks(rows_of[present], seconds[mine], price[mine], sizes[mine], offsets[mine], told)
        return out

    def _source(self, name: str, ticks: _Ticks | None, closings: list[Closing], out: Rows) -> None:
        """One source's part of a frame: ticks up to each closing, the closing, and the ticks behind the last; of one series after the other."""
        while True:
            ring = self._ring(name, self.expect)
            closed = None if ticks is None else self._closed_before(ring, ticks, closings)
            anew = self._anew(ring, ticks, closed, closings)
            if anew is None:
                self._series(ring, name, ticks, closed, closings, out)
                return
            # what was before this raw offset goes to the series that was, all of whose seconds are closed by then; the rest to another one
            at = 0 if ticks is None else int(ticks.offset.searchsorted(anew))
            before = [c for c in closings if c.offset < anew]
            if before or at:
                some = ticks.take(slice(0, at)) if ticks is not None and at else None
                self._series(ring, name, some, None if some is None else self._closed_before(ring, some, before), before, out)
            self._begin_anew(name, anew)
            closings = closings[len(before) :]
            ticks = ticks.take(slice(at, len(ticks.offset))) if ticks is not None and at < len(ticks.offset) else None

    def _series(self, ring: _Ring, name: str, ticks: _Ticks | None, closed: Ints | None, closings: list[Closing], out: Rows) -> None:
        if ticks is None or closed is None:
            for closing in closings:
                self._step(ring, name, None, [closing], out)
        else:
            self._ticks(ring, name, ticks, ticks.second <= closed, closings, out)

    def _anew(self, ring: _Ring, ticks: _Ticks | None, closed_before: Ints | None, closings: list[Closing]) -> int | None:
        """Raw offset from which on the source, heard again after `clean` forgot it, tells of earlier seconds: of another series; None where it does not."""
        found: list[int] = []
        closed, offset = ring.closed, ring.counted
        for closing in closings:
            if closing.offset > ring.counted:
                first = closed == _NEVER or (ring.resumed != _NEVER and closing is closings[0])
                if closing.after != closed and not first:               # closings of one life follow upon each other
                    found.append(offset + 1)
                    break
                closed, offset = closing.second, closing.offset
        if ticks is not None and closed_before is not None:
            far = (ticks.second <= closed_before - self.revise_s) & (ticks.offset > ring.counted)
            if ring.closed == _NEVER and closings:
                far &= ticks.offset > closings[0].offset
            if far.any():
                found.append(int(ticks.offset[far.argmax()]))
        return min(found, default=None)

    def _begin_anew(self, name: str, offset: int) -> None:
        """From this raw offset on the source tells of another series."""
        known = self._rings[name].symbols
        ring = self._rings[name] = _Ring(self.revise_s)
        ring.know(known)
        ring.begun = offset
        self.index.forget(name)

    def _ticks(self, ring: _Ring, name: str, ticks: _Ticks, late: NDArray[np.bool_], closings: list[Closing], out: Rows) -> None:
        """Ticks of one series, `late` where their second was closed before their record, with their closings."""
        offsets = ticks.offset
        ring.reach(int(offsets[0]))
        any_late = bool(late.any())
        span = ring.at_once
        if ring.closed == _NEVER and closings and ticks.second.max() - closings[0].after <= span:
            ring.cover(closings[0].after, int(ticks.second.max()))       # once for all steps
        steps: list[tuple[int, list[Closing]]] = []
        begin = 0
        ends = offsets.searchsorted([closing.offset for closing in closings], "right").tolist()
        for closing, end in zip(closings, ends, strict=True):
            at, step = steps[-1] if steps else (0, [])
            alike = (
                step and (step[-1].offset > self.sent) == (closing.offset > self.sent) and closing.second - step[0].after < span
                and max(c.second - c.after for c in (step[-1], closing)) <= FAR_S
            )  # fmt: skip
            ready = len(steps) > 1 or (ring.closed != _NEVER and not ring.changed)       # what came before its first step is cleared there
            if alike and ready and not (any_late and late[at:end].any()):
                step.append(closing)
            else:
                steps.append((begin, [closing]))
            begin = end
        for at, step in steps:
            end = int(offsets.searchsorted(step[-1].offset, "right"))
            if step is steps[-1][1] and not any_late:
                begin = end = len(offsets)                               # what comes after the last closing waits for the next: it may go with the rest
            which = slice(at, end)
            self._step(ring, name, (ticks.take(which), late[which]), step, out)
        if begin < len(offsets):
            self._add(ring, ticks.take(slice(begin, len(offsets))), late[begin:])

    @staticmethod
    def _closed_before(ring: _Ring, ticks: _Ticks, closings: list[Closing]) -> Ints:
        """The last second that was closed before each tick's record."""
        if not closings:
            return np.full(len(ticks.second), ring.closed)
        ends = np.array([c.offset for c in closings])
        closed = np.array([closings[0].after, *(c.second for c in closings)])
        return closed[ends.searchsorted(ticks.offset, "left")]

    @staticmethod
    def _add(ring: _Ring, ticks: _Ticks, late: NDArray[np.bool_]) -> None:
        late = late & (ticks.second > ring.closed - ring.revise_s)       # read again after a restart, of long ago: its revision was sent
        if late.any():
            ring.changed.update(zip(ticks.symbol[late].tolist(), ticks.second[late].tolist(), strict=True))
        Windows._put(ring, ring.uncounted(ticks))

    @staticmethod
    def _put(ring: _Ring, ticks: _Ticks) -> None:
        """Adds ticks where there is room for them by then, behind what is stored of their seconds."""
        if len(ticks.second):
            ring.resume_far(int(ticks.second[ticks.offset == ticks.offset[0]].min()))
            ring.cover(int(ticks.second.min()), int(ticks.second.max()))
            ring.settle(int(ticks.second.max()))
            ring.add(ticks)

    def _step(self, ring: _Ring, name: str, ticks: tuple[_Ticks, NDArray[np.bool_]] | None, closings: list[Closing], out: Rows) -> None:
        """Ticks, then the closings that they lead to: several where no tick is late and no second far, else one."""
        first, last = closings[0].after, closings[-1]
        send = last.offset > self.sent
        fresh: _Ticks | None = None
        if ticks is not None:
            fresh, late = ticks
            if late.any():
                self._add(ring, fresh.take(late), late[late])
                fresh = fresh.take(~late)
            fresh = ring.uncounted(fresh)
        if ring.closed == _NEVER or ring.resumed != _NEVER:
            ring.resumed = _NEVER
            ring.cover(first, first)
            ring.settle(first)
            rows, seconds = ring.cells_between(ring.own.base, first)             # heard before anything closed, and late already
            ring.changed.update(zip(rows.tolist(), seconds.tolist(), strict=True))
            ring.close(first)
        if ring.changed:
            rows, seconds = ring.revise()
            if send:
                self._emit(ring, name, rows, seconds, np.full(len(rows), last.offset), True, out)
            ring.changed.clear()
        ends, offsets = np.array([c.second for c in closings]), np.array([c.offset for c in closings])
        ring.counted = max(ring.counted, last.offset)
        if fresh is not None and not ring.waiting and last.second - ring.closed <= (FAR_S if len(closings) == 1 else ring.at_once):
            self._put(ring, fresh)                                       # later seconds are not looked at before they close
            fresh = None
        after = first
        for begin, end in self._spans(ring, fresh, first, last.second):
            ring.skip_to(begin - 1)
            ring.settle(end)
            if fresh is not None:
                self._add_fresh(ring, fresh, after, end)
            ring.cover(max(end, ring.closed), max(end, ring.closed))
            ring.close(end)
            if send:
                rows, seconds = ring.cells_between(after, end)
                self._emit(ring, name, rows, seconds, offsets[ends.searchsorted(seconds, "left")], False, out)
            self._save(ring, name, end, last.offset)
            after = end
        ring.skip_to(last.second)
        ring.cover(max(last.second, ring.closed), max(last.second, ring.closed))
        ring.close(last.second)
        self._save(ring, name, last.second, last.offset)
        if fresh is not None:
            self._add_fresh(ring, fresh, last.second, None)
        if send:
            out.closings += closings

    @staticmethod
    def _add_fresh(ring: _Ring, ticks: _Ticks, after: int, end: int | None) -> None:
        which = ticks.second > after
        if end is not None:
            which &= ticks.second <= end
        Windows._put(ring, ticks if which.all() else ticks.take(which))

    @staticmethod
    def _spans(ring: _Ring, ticks: _Ticks | None, after: int, second: int) -> list[tuple[int, int]]:
        """The seconds after < s <= second that have ticks, as (first, last) of stretches short enough to lay out at once."""
        if second - after <= FAR_S:
            return [(after + 1, second)]
        active = {s for s in (*ring.unsaved, *ring.waiting) if after < s <= second}
        if ticks is not None:
            active.update(np.unique(ticks.second[(ticks.second > after) & (ticks.second <= second)]).tolist())
        longest = ring.at_once
        spans: list[tuple[int, int]] = []
        for s in sorted(active):
            if spans and s - spans[-1][1] <= FAR_S and s - spans[-1][0] < longest:
                spans[-1] = spans[-1][0], s
            else:
                spans.append((s, s))
        return spans

    def _save(self, ring: _Ring, name: str, closed: int, offset: int) -> None:
        """Packs the seconds that are closed and not stored as they are now, counted through the closing at `offset`."""
        seconds = sorted(second for second in ring.unsaved if second <= closed)
        if not seconds:
            return
        run: list[Second] = []
        size = 0
        for second, (parts, more) in zip(seconds, ring.buckets(seconds), strict=True):
            del ring.unsaved[second]
            if second <= ring.stored or len(parts) > 1:
                for number, part in enumerate(parts):
                    self._record(name, "one", second, number, offset, [part])
                continue
            size += more
            if run and (size > MAX_VALUE_BYTES or second - run[0].second >= SPAN_S):
                self._record(name, "run", run[0].second, 0, offset, run)
                run, size = [], more
            run += parts
        if run:
            self._record(name, "run", run[0].second, 0, offset, run)
        ring.stored = max(ring.stored, seconds[-1])

    def _record(self, source: str, kind: str, second: int, part: int, through: int, seconds: list[Second]) -> None:
        self._records.append(([source, kind, second % SLOTS, part], Bucket(v=FORMAT, through=through, log=self.log, source=source, seconds=seconds)))

    @staticmethod
    def _emit(ring: _Ring, name: str, rows: Ints, seconds: Ints, offsets: Ints, revised: bool, out: Rows) -> None:
        if not len(rows):
            return
        values = ring.statistics(rows, seconds)
        values["offset"], values["revised"] = offsets, np.full(len(rows), revised)
        out.parts.append(Part(name, ring.names.tolist(), rows, values))

    # -- state --------------------------------------------------------------

    def records(self, term: int) -> list[tuple[bytes, bytes]]:
        """State records to write, in this order, once what the frames so far brought is delivered; none where nothing closed since the last call.

        Where they have come to lie is told to `index.confirmed`.
        """
        if not self._records and self._last <= self._head_last:
            return []
        records = [window_state.bucket_record(key, term % TERMS, bucket) for key, bucket in self._records]
        newest: dict[str, int] = {}
        for _, bucket in self._records:
            newest[bucket.source] = max(bucket.seconds[-1].second, newest.get(bucket.source, _NEVER))
        self._records = []
        self._head_last = self._last
        resume = min((min(ring.unsaved.values()) for ring in self._rings.values() if ring.unsaved), default=self.expect)
        while len(self._inputs) > 1 and self._inputs[0][0] < resume:
            self._inputs.popleft()
        through, self.resume_input = self._inputs[0] if self._inputs else (resume - 1, self.resume_input)
        if through < resume:
            self.resume_input += 1
        sources = {
            name: Source(ring.known_closed, ring.counted, ring.stored, ring.begun, ring.touched) for name, ring in self._rings.items() if ring.closed != _NEVER
        }
        needed = self.index.needed({name: ring.known_closed - RESTORE_S - self.revise_s + 1 for name, ring in self._rings.items()})
        self.index.written(newest)
        self._head_slot = 1 - self._head_slot
        head = Head(
            v=FORMAT, last=self._last, log=self.log, resume=resume, resume_input=self.resume_input, sent_from=self._sent_from, sources=sources,
            ranges=needed, slot=self._head_slot,
        )  # fmt: skip
        return [*records, *window_state.head_records(head, term % TERMS)]

    @staticmethod
    def readable(key: bytes, value: bytes) -> str:
        """Why a record is none of `aggregate`; empty where it can be read. Raises `StateError` where a newer stockstream wrote it."""
        return window_state.readable(key, value)

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the best whole head among these records names; None where there is none."""
        heads = window_state.heads_in((key, value) for key, value in records.items() if window_state.is_head(key))
        return max(heads, key=window_state.furthest).ranges if heads else None

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None = None, *, revise_s: int) -> Windows:
        """The state in a partition's records: those of the newest log, for each second the ones that count the furthest. `offsets` in the changelog, by key.

        Raises `StateError`.
        """
        windows = cls(partition, revise_s=revise_s)
        windows.log, head, buckets = window_state.restored(partition, records, offsets)
        sources: dict[str, Source] = {}
        if head is not None:
            windows._last, windows.expect, windows.resume_input, windows._sent_from = head.last, head.resume, head.resume_input, head.sent_from
            windows._head_last, windows._head_slot, sources = head.last, head.slot, head.sources
        windows.sent = max([windows._last, *(bucket.through for bucket, _ in buckets)])
        for bucket, offset in sorted(buckets, key=lambda pair: pair[1]):
            windows.index.restored(offset, {bucket.source: bucket.seconds[-1].second})
        best: dict[str, dict[int, tuple[int, list[Second]]]] = {}
        for bucket, _ in buckets:
            seconds = best.setdefault(bucket.source, {})
            for part in bucket.seconds:
                known = seconds.get(part.second)
                if known is None or bucket.through > known[0]:
                    seconds[part.second] = (bucket.through, [part])
                elif bucket.through == known[0]:
                    known[1].append(part)
        clock = max((source.touched for source in sources.values()), default=0)
        try:
            for name in {*best, *sources}:
                state = sources.get(name, Source(begun=windows._last + 1))
                ring = windows._rings[name] = cls._restore_ring(best.get(name, {}), state, revise_s)
                if ring.touched and clock - ring.touched > REST_MS:
                    ring.rest()
        except FrameError as error:
            raise StateError(f"partition {partition}: the state of aggregate cannot be restored: {error}") from error
        return windows

    @staticmethod
    def _restore_ring(seconds: dict[int, tuple[int, list[Second]]], state: Source, revise_s: int) -> _Ring:
        ring = _Ring(revise_s)
        closed, ring.counted, ring.stored, ring.begun, ring.touched = state.closed, state.counted, state.stored, state.begun, state.touched
        ring.restored = closed, ring.counted
        newest = closed if closed != _NEVER else min(seconds, default=_NEVER)
        needed = {s: bucket for s, bucket in seconds.items() if s > newest - RESTORE_S - revise_s}
        ring.stored = max([ring.stored, *needed])
        told: list[list[str]] = [[]]
        for second, (through, parts) in sorted(needed.items()):
            ring.through[second] = through
            ring.waiting[second] = parts
            for part in parts:
                if part.symbols != told[-1]:
                    told.append(part.symbols)
                part.symbols = told[-1]                                       # most seconds have the symbols of the one before: `settle` tells that by identity
        ring.know(dict.fromkeys(chain.from_iterable(told)))
        if closed != _NEVER:
            # a few seconds at a time, as live: only the newest stay
            first = min([*needed, closed])
            ring.closed = first - 1
            for second in [*range(first + SPARE_S - 1, closed, SPARE_S), closed]:
                ring.cover(second, second)
                ring.settle(second)
                ring.close(second)
        return ring

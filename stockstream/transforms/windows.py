"""What `aggregate` adds up: one-second bars and the rolling 5-minute window of every symbol and source of one partition.

`Windows` takes `ticks.clean` frames and, at each closing, gives the rows of the seconds that close and those that late ticks have changed. Sums are
taken in one order whatever the frames, so any cutting of the log gives the same bits: within a second tick by tick in log order, within a window in an
order that follows from its last second alone (`_whole_windows`).

A `_Ring` holds one source's last seconds as arrays (symbol, second). Records for the state (`records`): buckets, the seconds that closed or were revised,
and a head, which says how far the log is counted and where to go on. A key names the writer's term (the group's generation, modulo TERMS) besides its
slot in the ring: so a frozen worker that wakes can only replace what it wrote itself, and compaction, which keeps the last of a key, keeps the highest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from stockstream.errors import StateError
from stockstream.records import WINDOWS_SCHEMA, Closing
from stockstream.transforms.changelog import ChangelogIndex, Range
from stockstream.transforms.frames import Frame, empty

WINDOW_S = 300
RESTORE_S = 601
"""Seconds of buckets that a restart needs besides REVISE_S: two windows, to know where each living series began."""
SLOTS = 2 * RESTORE_S + 121
"""Ring of record keys: a record of up to SPAN_S seconds goes when its first second's slot comes round, and none of them is needed by then."""
SPAN_S = 480
TERMS = 8
MAX_RECORD_BYTES = 500_000
LAGS_S = (1, 5, 10, 30, 60)
BLOCK_S = 20
"""Seconds whose sums are kept ready; blocks begin at multiples of it in epoch seconds. A window is 14 of them and 20 single seconds around."""
FAR_S = 60
CELLS_AT_ONCE = 250_000
"""Bound on symbols x seconds laid out at once beyond the window, and so on a ring's memory (16 arrays of 8 bytes a cell)."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_FLOATS = ("open", "high", "low", "close", "notional", "bid", "ask", "bid_size", "ask_size")
_INTS = ("volume", "ticks", "quotes")
_EMPTY = {"high": -np.inf, "low": np.inf, "notional": 0.0, "volume": 0, "ticks": 0, "quotes": 0, "last": -1, "begun": -1, "log_return": 0.0}
_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder().decode
_SUMMED = ("price", "log_return", "notional", "volume", "ticks")
_NEVER = -1


@dataclass(slots=True)
class _Ticks:
    """Columns of one source's ticks, in log order."""

    symbol: Ints
    second: Ints
    price: Floats
    size: Ints
    bid: Floats
    ask: Floats
    bid_size: Floats
    ask_size: Floats
    offset: Ints

    def take(self, which: slice | NDArray[np.bool_]) -> _Ticks:
        return _Ticks(*(getattr(self, name)[which] for name in self.__slots__))


def _is_head(key: bytes) -> bool:
    kind, *place = _unpack(key)
    return bool(kind == "head" and len(place) == 1)


def _best(head: list[Any]) -> tuple[str, int, int]:
    """What the head of a state that counts further has more of."""
    return head[1], head[0], head[2]


def _down(seconds: int) -> int:
    return seconds // BLOCK_S * BLOCK_S


def _up(seconds: int) -> int:
    return -(-seconds // BLOCK_S) * BLOCK_S


class _Ring:
    """One source's seconds. Column c of every array is second `base` + c; rows are symbols in the order first heard."""

    def __init__(self, revise_s: int) -> None:
        self.keep = WINDOW_S + 1 + revise_s
        """Seconds before the last closed one that windows still look at."""
        self.symbols: dict[str, int] = {}
        self.base = _NEVER
        self.closed = _NEVER
        self.width = _up(self.keep + 128)
        self.rank: Ints = np.zeros(0, np.int64)
        self.names: NDArray[np.object_] = np.zeros(0, object)
        self.arrays: dict[str, NDArray[Any]] = {}
        for name in (*_FLOATS, "price", "log_return"):
            self.arrays[name] = np.zeros((0, self.width), np.float64)
        for name in (*_INTS, "last", "begun"):
            self.arrays[name] = np.zeros((0, self.width), np.int64)
        self.blocks: dict[str, NDArray[Any]] = {}
        """For each block (array (symbol, block), the first begins at `base`): sums, greatest and least, and `squares`, of returns from the block's mean."""
        for name in (*_SUMMED, "high", "low", "squares"):
            self.blocks[name] = np.zeros((0, self.width // BLOCK_S), np.int64 if name in _INTS else np.float64)
        self.unsaved: dict[int, int] = {}
        """Second -> first raw offset with an effect that no stored bucket has."""
        self.stored = _NEVER
        """Newest second that has a bucket."""
        self.counted = _NEVER
        """Last closing's offset: all ticks up to it in seconds up to `closed` are in buckets."""
        self.through: dict[int, int] = {}
        """After a restart: second -> offset that its stored bucket counts through."""
        self.restored: tuple[int, int] = (_NEVER, _NEVER)
        """After a restart: `closed` and `counted` of the head."""
        self.waiting: dict[int, list[list[Any]]] = {}
        """After a restart: stored seconds beyond `closed`, put in place when the log gets there again."""
        self.changed: set[tuple[int, int]] = set()
        """(Row, closed second) of late ticks whose revision was not sent."""

    # -- room ---------------------------------------------------------------

    def _resize(self, rows: int, width: int, shift: int) -> None:
        """New arrays of this size; columns move `shift` to the left (to the right where it is negative). Widths and shifts are whole blocks."""
        for arrays, size, by in ((self.arrays, width, shift), (self.blocks, width // BLOCK_S, shift // BLOCK_S)):
            source, target = max(by, 0), max(-by, 0)
            for name, old in arrays.items():
                new = np.full((rows, size), _EMPTY.get(name, np.nan), old.dtype)
                columns = max(0, min(old.shape[1] - source, size - target))
                new[: len(old), target : target + columns] = old[:, source : source + columns]
                arrays[name] = new
        self.width = width
        self.base += shift

    def know(self, symbols: Iterable[str]) -> Ints:
        """Row numbers, new symbols added."""
        table = self.symbols
        before = len(table)
        rows = np.fromiter((table.setdefault(s, len(table)) for s in symbols), np.int64)
        if len(table) > before:
            if len(table) > len(self.arrays["close"]):
                self._resize(max(8, len(table) + len(table) // 4), self.width, 0)
            self.names = np.array(list(table), object)
            self.rank = np.empty(len(table), np.int64)
            self.rank[np.argsort(self.names.astype(str), kind="stable")] = np.arange(len(table))
        return rows

    def cover(self, first: int, last: int) -> None:
        """Makes room for the seconds `first` to `last`, keeping what windows up to `closed` and later still need."""
        if self.base == _NEVER:
            self.base = _down(first - self.keep)
        if first < self.base:
            more = _up(self.base - first)
            self._resize(len(self.arrays["close"]), self.width + more, -more)
        if last - self.base < self.width:
            return
        start = min(first, min(self.unsaved, default=first), self.closed + 1 if self.closed != _NEVER else first) - self.keep
        shift = _down(max(0, start - self.base))
        self._resize(len(self.arrays["close"]), _up(max(self.keep + 128, last - (self.base + shift) + FAR_S)), shift)

    def skip_to(self, second: int) -> None:
        """Where nothing is heard for longer than anything is kept, begins anew with `second` as the last closed: no window or series reaches over that."""
        if second - self.closed > self.keep and self.closed != _NEVER and not self.unsaved:
            self._resize(len(self.arrays["close"]), _up(self.keep + 128), self.width)
            self.base, self.closed = _down(second - self.keep), second

    # -- ticks --------------------------------------------------------------

    def uncounted(self, ticks: _Ticks) -> _Ticks:
        """The ticks that no stored bucket counts; all of them but for a while after a restart."""
        if self.restored == (_NEVER, _NEVER) and not self.through:
            return ticks
        closed, counted = self.restored
        through = np.fromiter((self.through.get(s, _NEVER) for s in ticks.second.tolist()), np.int64, len(ticks.second))
        return ticks.take((ticks.offset > through) & ((ticks.offset > counted) | (ticks.second > closed)))

    def add(self, ticks: _Ticks) -> None:
        """Adds ticks to their seconds, one after the other in log order."""
        seconds, firsts = np.unique(ticks.second, return_index=True)
        for second, at in zip(seconds.tolist(), firsts.tolist(), strict=True):
            self.unsaved.setdefault(second, int(ticks.offset[at]))
        cell = ticks.symbol * self.width + (ticks.second - self.base)
        flat = {name: array.reshape(-1) for name, array in self.arrays.items()}
        priced = ~np.isnan(ticks.price)
        at, price = cell[priced], ticks.price[priced]
        np.add.at(flat["quotes"], cell[~priced], 1)
        np.add.at(flat["ticks"], at, 1)
        np.add.at(flat["volume"], cell, ticks.size)
        np.add.at(flat["notional"], at, price * ticks.size[priced])
        np.maximum.at(flat["high"], at, price)
        np.minimum.at(flat["low"], at, price)
        unopened = np.isnan(flat["open"][at])
        flat["open"][at[unopened][::-1]] = price[unopened][::-1]
        flat["close"][at] = price
        for name in ("bid", "ask", "bid_size", "ask_size"):
            values: Floats = getattr(ticks, name)
            told = ~np.isnan(values)
            if told.any():
                flat[name][cell[told]] = values[told]

    # -- closings -----------------------------------------------------------

    def close(self, second: int) -> None:
        """Carries prices forward through `second`; nothing is sent."""
        if second > self.closed:
            first = max(self.closed + 1 if self.closed != _NEVER else self.base + 1, self.base + 1)
            if first <= second:
                self._carry(slice(0, len(self.symbols)), first - self.base, second - self.base)
            self.closed = second

    def _carry(self, rows: slice | Ints, first: int, last: int) -> None:
        """Price, return, last traded second and beginning of the series in columns `first` to `last`, from the column before."""
        close = self.arrays["close"][rows, first - 1 : last + 1]
        width = last - first + 2
        column = np.arange(self.base + first - 1, self.base + last + 1)
        seen = np.where(np.isnan(close), _NEVER, column)
        seen[:, 0] = self.arrays["last"][rows, first - 1]
        before = np.maximum.accumulate(seen, axis=1)                     # the newest second with a price, up to each column
        begun = np.full(close.shape, _NEVER, np.int64)
        begun[:, 0] = self.arrays["begun"][rows, first - 1]
        traded = ~np.isnan(close[:, 1:])
        anew = traded & ((before[:, :-1] == _NEVER) | (column[1:] - before[:, :-1] > WINDOW_S))
        begun[:, 1:][anew] = np.broadcast_to(column[1:], anew.shape)[anew]
        begun = np.maximum.accumulate(begun, axis=1)
        at = np.where(before >= self.base + first, before - (self.base + first - 1), 0)
        filled = close.copy()
        filled[:, 0] = self.arrays["price"][rows, first - 1]
        price = np.take_along_axis(filled, at, axis=1)
        price[(before == _NEVER) | (column - before > WINDOW_S)] = np.nan
        if width > 1:
            change = np.zeros((len(price), width - 1))
            moved = (price[:, 1:] != price[:, :-1]) & (column[1:] > begun[:, 1:]) & ~np.isnan(price[:, 1:])
            change[moved] = np.log(price[:, 1:][moved] / price[:, :-1][moved])
            self.arrays["log_return"][rows, first : last + 1] = change
        self.arrays["price"][rows, first : last + 1] = price[:, 1:]
        self.arrays["last"][rows, first : last + 1] = before[:, 1:]
        self.arrays["begun"][rows, first : last + 1] = begun[:, 1:]
        for block in range(first // BLOCK_S, (last + 1) // BLOCK_S):
            self._sum_block(rows, block)

    def _sum_block(self, rows: slice | Ints, block: int) -> None:
        """Sums a block whose seconds are all closed."""
        columns = slice(block * BLOCK_S, (block + 1) * BLOCK_S)
        for name in _SUMMED:
            self.blocks[name][rows, block] = self.arrays[name][rows, columns].sum(axis=1)
        self.blocks["high"][rows, block] = self.arrays["high"][rows, columns].max(axis=1)
        self.blocks["low"][rows, block] = self.arrays["low"][rows, columns].min(axis=1)
        change = self.arrays["log_return"][rows, columns]
        deviation = change - (self.blocks["log_return"][rows, block] / BLOCK_S)[:, None]
        self.blocks["squares"][rows, block] = np.square(deviation).sum(axis=1)

    def revise(self) -> tuple[Ints, Ints]:
        """Carries prices again from the changed seconds on; returns (rows, columns) of the cells up to `closed` that are to be sent again."""
        since: dict[int, int] = {}
        for row, second in self.changed:
            since[row] = min(since.get(row, second), second)
        rows = np.fromiter(since, np.int64, len(since))
        first = np.fromiter(since.values(), np.int64, len(since)) - self.base
        last = self.closed - self.base
        self._carry(rows, int(first.min()), last)
        lowest = int(first.min())
        live = (self.arrays["ticks"][rows, lowest : last + 1] + self.arrays["quotes"][rows, lowest : last + 1]) > 0
        live &= np.arange(lowest, last + 1) >= first[:, None]
        at, column = np.nonzero(live)
        return rows[at], column + lowest

    def cells(self, after: int, second: int) -> tuple[Ints, Ints]:
        """(rows, columns) with ticks or quotes in the seconds after < s <= second."""
        first, n = max(after + 1 - self.base, 0), len(self.symbols)
        last = second - self.base
        live = (self.arrays["ticks"][:n, first : last + 1] + self.arrays["quotes"][:n, first : last + 1]) > 0
        rows, columns = np.nonzero(live)
        return rows, columns + first

    def statistics(self, rows: Ints, columns: Ints) -> dict[str, NDArray[Any]]:
        """The row values of these cells, by column name of `windows`."""
        out: dict[str, NDArray[Any]] = {}
        get = {name: self.arrays[name][rows, columns] for name in (*_FLOATS, *_INTS, "price", "last", "begun")}
        second = columns + self.base
        traded = get["ticks"] > 0
        for name in ("high", "low"):
            get[name] = np.where(traded, get[name], np.nan)
        carried, begun = get["price"], get["begun"]
        alive = ~np.isnan(carried)
        length = np.where(alive, np.minimum(second - begun + 1, WINDOW_S), 0)
        returns = length - (second - begun < WINDOW_S)                   # the first second of a series has no return
        sums = {name: np.zeros(len(rows), np.int64 if name in _INTS else np.float64) for name in (*_SUMMED, "squares", "high", "low")}
        whole = returns == WINDOW_S
        for which, window in ((np.flatnonzero(whole), self._whole_windows), (np.flatnonzero(~whole), self._young_windows)):
            if len(which):
                for name, values in window(rows[which], columns[which], length[which]).items():
                    sums[name][which] = values
        high, low = sums["high"], sums["low"]
        with np.errstate(divide="ignore", invalid="ignore"):
            out["mean_5m"] = np.where(length > 0, sums["price"] / length, np.nan)
            out["vwap_5m"] = np.where(sums["volume"] > 0, sums["notional"] / sums["volume"], np.nan)
            out["return_std_5m"] = np.where(returns > 1, np.sqrt(sums["squares"] / (returns - 1)), np.nan)
        out["volume_5m"], out["ticks_5m"], out["seconds_5m"] = sums["volume"], sums["ticks"], length
        out["high_5m"] = np.where(sums["ticks"] > 0, high, np.nan)
        out["low_5m"] = np.where(sums["ticks"] > 0, low, np.nan)
        mid = (get["bid"] + get["ask"]) / 2
        out["mid"] = mid
        out["price"] = np.where(np.isnan(mid), np.where(np.isnan(get["close"]), carried, get["close"]), mid)
        prices = self.arrays["price"]
        with np.errstate(invalid="ignore"):
            for lag in LAGS_S:
                before = np.where(alive & (second - lag >= begun), prices[rows, columns - lag], np.nan)
                out[f"return_{lag}s"] = np.log(carried / before)
            out["price_60s"] = before
        for name, lag, source in (("volume_10s", 10, "volume"), ("volume_60s", 60, "volume"), ("ticks_10s", 10, "ticks")):
            out[name] = sliding_window_view(self.arrays[source], lag, axis=1)[rows, columns - lag + 1].sum(axis=1)
        for name in ("open", "high", "low", "close", "volume", "ticks", "quotes", "bid", "ask", "bid_size", "ask_size"):
            out[name] = get[name]
        out["second"] = second
        out["quality"] = length < WINDOW_S
        return out

    def _places(self, rows: Ints, columns: Ints) -> tuple[Ints, Ints]:
        """Windows as columns: their 20 single seconds, oldest first, and the first seconds of the 14 blocks among them."""
        start = columns - (WINDOW_S - 1)
        head = -start % BLOCK_S                                          # single seconds before the first whole block
        position = np.arange(BLOCK_S)
        single = start[:, None] + position + np.where(position < head[:, None], 0, WINDOW_S - BLOCK_S)
        return single, (start + head)[:, None] + np.arange(0, WINDOW_S - BLOCK_S, BLOCK_S)

    def _sums(self, names: Sequence[str], single: Ints, block: Ints) -> dict[str, NDArray[Any]]:
        """Sums of these arrays over windows, and the greatest and least prices; places are those of the flattened arrays."""
        out: dict[str, NDArray[Any]] = {}
        for name in names:
            out[name] = self.arrays[name].take(single).sum(axis=1) + self.blocks[name].take(block).sum(axis=1)
        out["high"] = np.maximum(self.arrays["high"].take(single).max(axis=1), self.blocks["high"].take(block).max(axis=1))
        out["low"] = np.minimum(self.arrays["low"].take(single).min(axis=1), self.blocks["low"].take(block).min(axis=1))
        return out

    def _whole_windows(self, rows: Ints, columns: Ints, length: Ints) -> dict[str, NDArray[Any]]:
        """Sums over windows that lie in the series, each second with a return: 20 single seconds, oldest first, then 14 blocks."""
        single, block = self._places(rows, columns)
        single += (rows * self.width)[:, None]
        block = block // BLOCK_S + (rows * (self.width // BLOCK_S))[:, None]
        out = self._sums(_SUMMED, single, block)
        # squares of deviations, of groups with means of their own (Chan, Golub, LeVeque: Updating formulae for sample variances, 1979)
        mean = (out["log_return"] / WINDOW_S)[:, None]
        of_singles = np.square(self.arrays["log_return"].take(single) - mean).sum(axis=1)
        of_means = np.square(self.blocks["log_return"].take(block) / BLOCK_S - mean).sum(axis=1) * BLOCK_S
        out["squares"] = of_singles + (self.blocks["squares"].take(block).sum(axis=1) + of_means)
        return out

    def _young_windows(self, rows: Ints, columns: Ints, length: Ints) -> dict[str, NDArray[Any]]:
        """Sums over windows in which the series began, or that it did not reach.

        What is before the series counts as 0: of the 14 blocks those after its first second are taken whole, the one that it began in second by second.
        """
        single, block = self._places(rows, columns)
        begun = np.where(length > 0, columns - length + 1, columns + 1)[:, None]
        first = begun // BLOCK_S * BLOCK_S                               # of the block that the series began in
        partial = first + np.arange(BLOCK_S)
        among = (first >= block[:, :1]) & (first <= block[:, -1:])
        at, by_block = (rows * self.width)[:, None], (rows * (self.width // BLOCK_S))[:, None]
        seconds = np.concatenate([single, partial], axis=1)
        counts = np.concatenate([np.ones_like(single, bool), np.broadcast_to(among, partial.shape)], axis=1)
        priced, moved, whole = counts & (seconds >= begun), counts & (seconds > begun), block > begun
        seconds, single, block = at + np.minimum(seconds, self.width - 1), at + single, by_block + block // BLOCK_S
        out = self._sums(("notional", "volume", "ticks"), single, block)
        out["price"] = np.where(priced, self.arrays["price"].take(seconds), 0.0).sum(axis=1)
        out["price"] += np.where(whole, self.blocks["price"].take(block), 0.0).sum(axis=1)
        change = np.where(moved, self.arrays["log_return"].take(seconds), 0.0)
        changes = np.where(whole, self.blocks["log_return"].take(block), 0.0)
        out["log_return"] = change.sum(axis=1) + changes.sum(axis=1)
        mean = (out["log_return"] / np.maximum(length - 1, 1))[:, None]
        of_seconds = np.where(moved, np.square(change - mean), 0.0).sum(axis=1)
        of_blocks = self.blocks["squares"].take(block) + np.square(changes / BLOCK_S - mean) * BLOCK_S
        out["squares"] = of_seconds + np.where(whole, of_blocks, 0.0).sum(axis=1)
        return out

    # -- state --------------------------------------------------------------

    def buckets(self, second: int) -> list[list[Any]]:
        """The stored form of one second, in parts that fit a message: [second, symbols, then one array for each field]."""
        n, column = len(self.symbols), second - self.base
        rows = np.flatnonzero((self.arrays["ticks"][:n, column] + self.arrays["quotes"][:n, column]) > 0)
        size = MAX_RECORD_BYTES // 150
        out: list[list[Any]] = []
        for at in range(0, len(rows), size):
            part = rows[at : at + size]
            out.append([second, self.names[part].tolist(), *(self.arrays[name][part, column].tobytes() for name in (*_FLOATS, *_INTS))])
        return out

    def settle(self, second: int) -> None:
        """Puts stored seconds up to this one back in their place."""
        for waiting in sorted(s for s in self.waiting if s <= second):
            self.cover(waiting, second)
            for _, symbols, *fields in self.waiting.pop(waiting):
                rows = self.know(symbols)
                for name, data in zip((*_FLOATS, *_INTS), fields, strict=True):
                    array = self.arrays[name]
                    array[rows, waiting - self.base] = np.frombuffer(data, array.dtype)


@dataclass(slots=True)
class Rows:
    """What one frame brings: the closings to send, all of them in order, and their rows."""

    start: int
    through: int
    closings: list[Closing] = field(default_factory=list)
    parts: list[dict[str, NDArray[Any]]] = field(default_factory=list)

    def batch(self, partition: int) -> pa.RecordBatch:
        """The rows as WINDOWS_SCHEMA, ordered by closing (offset, source), second, symbol."""
        if not self.parts:
            return empty(WINDOWS_SCHEMA)
        columns = {name: np.concatenate([part[name] for part in self.parts]) for name in self.parts[0]}
        order = np.lexsort((columns["symbol"], columns["second"], columns["source"], columns["offset"])) if len(self.parts) > 1 else None
        arrays = []
        for spec in WINDOWS_SCHEMA:
            if spec.name == "partition":
                arrays.append(pa.array(np.full(len(columns["second"]), partition, np.int32)))
                continue
            values = columns[spec.name]
            if order is not None:
                values = values[order]
            if spec.name == "quality":
                values = np.where(values, "partial", "").astype(object)
            arrays.append(pa.array(values, spec.type, from_pandas=True))
        return pa.RecordBatch.from_arrays(arrays, schema=WINDOWS_SCHEMA)


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
        self._records: list[tuple[list[Any], list[Any]]] = []
        self._last = self._head_last = -1
        self._sent_from = -1
        self.index = ChangelogIndex()

    def frame(self, frame: Frame, input_offset: int = 0) -> Rows | None:
        """Takes a `ticks.clean` frame; returns the closings and rows to send, or None where the frame is of no use now.

        A frame that starts beyond `expect` is somebody else's future: dropped. `input_offset` is the frame's own offset in its topic.
        """
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
        out = Rows(self._sent_from, frame.through)
        if frame.through < self.expect:
            return out
        done = self.expect - 1
        self._inputs.append((frame.through, input_offset))
        closings: dict[str, list[Closing]] = {}
        for closing in frame.closings:
            if closing.offset > done:
                closings.setdefault(closing.source, []).append(closing)
        for source, ticks in self._by_source(frame, done).items():
            self._source(source, ticks, closings.pop(source, []), out)
        for source, only in closings.items():
            self._source(source, None, only, out)
        out.closings.sort(key=lambda c: (c.offset, c.source))
        self.expect = frame.through + 1
        self._last = max([self._last, *(c.offset for c in frame.closings)])
        if out.closings:
            self._sent_from = self.expect
        return out

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = max(self.expect, start)

    def _by_source(self, frame: Frame, done: int) -> dict[str, _Ticks]:
        rows = frame.rows
        offsets = rows.column("offset").to_numpy()
        skip = int(offsets.searchsorted(done, "right"))
        if skip:
            rows, offsets = rows.slice(skip), offsets[skip:]
        if not rows.num_rows:
            return {}
        names = rows.column("source").dictionary_encode()
        floats = {name: rows.column(name).to_numpy(zero_copy_only=False) for name in ("price", "bid", "ask", "bid_size", "ask_size")}
        seconds = rows.column("event_time").to_numpy() // 1000
        sizes = rows.column("size").to_numpy()
        symbols = rows.column("symbol").dictionary_encode()
        table, codes = symbols.dictionary.to_pylist(), symbols.indices.to_numpy()
        sources = names.dictionary.to_pylist()
        which = names.indices.to_numpy()
        out = {}
        for code, source in enumerate(sources):
            mine = slice(None) if len(sources) == 1 else which == code
            ring = self._rings.get(source)
            if ring is None:
                ring = self._rings[source] = _Ring(self.revise_s)
            present = codes[mine]
            used = np.unique(present)
            rows_of = np.full(len(table), -1, np.int64)
            rows_of[used] = ring.know([table[i] for i in used.tolist()])
            out[source] = _Ticks(rows_of[present], seconds[mine], floats["price"][mine], sizes[mine], floats["bid"][mine], floats["ask"][mine],
                                 floats["bid_size"][mine], floats["ask_size"][mine], offsets[mine])  # fmt: skip
        return out

    def _source(self, name: str, ticks: _Ticks | None, closings: list[Closing], out: Rows) -> None:
        """One source's part of a frame: ticks up to each closing, the closing, and the ticks behind the last."""
        ring = self._rings.get(name)
        if ring is None:
            ring = self._rings[name] = _Ring(self.revise_s)
        if ticks is None:
            for closing in closings:
                self._step(ring, name, None, [closing], out)
            return
        fresh = ticks.offset > self.sent
        if ring.closed != _NEVER and fresh.any() and int(ticks.second[fresh].min()) <= ring.closed - ring.keep:
            ring, known = _Ring(self.revise_s), ring                     # heard again after clean forgot the source: another series
            ring.know(known.symbols)
            self._rings[name] = ring
        offsets = ticks.offset
        late = self._late(ring, ticks, closings)
        span = max(FAR_S, CELLS_AT_ONCE // max(len(ring.symbols), 8))
        steps: list[tuple[int, list[Closing]]] = []
        begin = 0
        for closing in closings:
            end = int(offsets.searchsorted(closing.offset, "right"))
            at, step = steps[-1] if steps else (0, [])
            alike = (
                step and (step[-1].offset > self.sent) == (closing.offset > self.sent) and closing.second - step[0].after < span
                and max(c.second - c.after for c in (step[-1], closing)) <= FAR_S
            )  # fmt: skip
            if alike and ring.closed != _NEVER and not ring.changed and not late[at:end].any():
                step.append(closing)
            else:
                steps.append((begin, [closing]))
            begin = end
        for at, step in steps:
            which = slice(at, int(offsets.searchsorted(step[-1].offset, "right")))
            self._step(ring, name, (ticks.take(which), late[which]), step, out)
        if begin < len(offsets):
            self._add(ring, ticks.take(slice(begin, len(offsets))), late[begin:])

    @staticmethod
    def _late(ring: _Ring, ticks: _Ticks, closings: list[Closing]) -> NDArray[np.bool_]:
        """Which ticks belong to a second that was closed before their record."""
        if not closings:
            return ticks.second <= ring.closed
        ends = np.array([c.offset for c in closings])
        closed = np.array([closings[0].after, *(c.second for c in closings)])
        return ticks.second <= closed[ends.searchsorted(ticks.offset, "left")]

    @staticmethod
    def _add(ring: _Ring, ticks: _Ticks, late: NDArray[np.bool_]) -> None:
        late = late & (ticks.second > ring.closed - ring.keep)           # read again after a restart, from before a jump: its revision was sent
        if late.any():
            ring.changed.update(zip(ticks.symbol[late].tolist(), ticks.second[late].tolist(), strict=True))
        ticks = ring.uncounted(ticks)
        if len(ticks.second):
            ring.cover(int(ticks.second.min()), int(ticks.second.max()))
            ring.settle(int(ticks.second.max()))
            ring.add(ticks)

    def _step(self, ring: _Ring, name: str, ticks: tuple[_Ticks, NDArray[np.bool_]] | None, closings: list[Closing], out: Rows) -> None:
        """Ticks, then the closings that they lead to: several where no tick is late and no second far, else one."""
        first, last = closings[0].after, closings[-1]
        send = last.offset > self.sent
        fresh: _Ticks | None = None
        if ticks is not None:
            late = ticks[1]
            if late.any():
                self._add(ring, ticks[0].take(late), late[late])
            fresh = ring.uncounted(ticks[0].take(~late))
        if ring.closed == _NEVER:
            ring.cover(first, first)
            ring.settle(first)
            rows, columns = ring.cells(ring.base - 1, first)             # heard before anything closed, and late already
            ring.changed.update(zip(rows.tolist(), (columns + ring.base).tolist(), strict=True))
            ring.close(first)
        if ring.changed:
            rows, columns = ring.revise()
            if send:
                self._emit(ring, name, rows, columns, np.full(len(rows), last.offset), True, out)
            ring.changed.clear()
        ends, numbers = np.array([c.second for c in closings]), np.array([c.offset for c in closings])
        ring.counted = max(ring.counted, last.offset)
        after = first
        for begin, end in self._spans(ring, fresh, first, last.second):
            ring.skip_to(begin - 1)
            ring.settle(end)
            if fresh is not None:
                self._add_fresh(ring, fresh, after, end)
            ring.cover(end, end)
            ring.close(end)
            if send:
                rows, columns = ring.cells(after, end)
                self._emit(ring, name, rows, columns, numbers[ends.searchsorted(columns + ring.base, "left")], False, out)
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
        if which.all():
            part = ticks
        else:
            part = ticks.take(which)
        if len(part.second):
            ring.cover(int(part.second.min()), int(part.second.max()))
            if ring.waiting:
                ring.settle(int(part.second.max()))
            ring.add(part)

    @staticmethod
    def _spans(ring: _Ring, ticks: _Ticks | None, after: int, second: int) -> list[tuple[int, int]]:
        """The seconds after < s <= second that have ticks, as (first, last) of stretches short enough to lay out at once."""
        if second - after <= FAR_S:
            return [(after + 1, second)]
        active = {s for s in (*ring.unsaved, *ring.waiting) if after < s <= second}
        if ticks is not None:
            active.update(np.unique(ticks.second[(ticks.second > after) & (ticks.second <= second)]).tolist())
        longest = max(FAR_S, CELLS_AT_ONCE // max(len(ring.symbols), 8))
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
        run: list[list[Any]] = []
        size = 0
        for second in seconds:
            del ring.unsaved[second]
            parts = ring.buckets(second)
            if second <= ring.stored or len(parts) > 1:
                for number, part in enumerate(parts):
                    self._record(name, "one", second, number, offset, [part])
                continue
            size += 150 * len(parts[0][1]) if parts else 0
            if run and (size > MAX_RECORD_BYTES or second - int(run[0][0]) >= SPAN_S):
                self._record(name, "run", int(run[0][0]), 0, offset, run)
                run, size = [], 0
            run += parts
        if run:
            self._record(name, "run", int(run[0][0]), 0, offset, run)
        ring.stored = max(ring.stored, seconds[-1] if seconds else _NEVER)

    def _record(self, source: str, kind: str, second: int, part: int, through: int, buckets: list[list[Any]]) -> None:
        self._records.append(([source, kind, second % SLOTS, part], [through, self.log, source, buckets]))

    @staticmethod
    def _emit(ring: _Ring, name: str, rows: Ints, columns: Ints, offsets: Ints, revised: bool, out: Rows) -> None:
        if not len(rows):
            return
        order = np.lexsort((ring.rank[rows], columns, offsets))
        rows, columns, offsets = rows[order], columns[order], offsets[order]
        part = ring.statistics(rows, columns)
        part["symbol"] = ring.names[rows]
        part["source"] = np.full(len(rows), name, object)
        part["offset"] = offsets
        part["revised"] = np.full(len(rows), revised)
        out.parts.append(part)

    # -- state --------------------------------------------------------------

    def records(self, term: int) -> list[tuple[bytes, bytes]]:
        """State records to write, in this order, once what the frames so far brought is delivered; none where nothing closed since the last call.

        Where they have come to lie is told to `index.confirmed`.
        """
        if not self._records and self._last <= self._head_last:
            return []
        records = [(_pack([*key, term % TERMS]), _pack(value)) for key, value in self._records]
        newest: dict[str, int] = {}
        for _, (_, _, source, buckets) in self._records:
            newest[source] = max(buckets[-1][0], newest.get(source, _NEVER))
        self._records = []
        self._head_last = self._last
        resume = min((min(ring.unsaved.values()) for ring in self._rings.values() if ring.unsaved), default=self.expect)
        while len(self._inputs) > 1 and self._inputs[0][0] < resume:
            self._inputs.popleft()
        through, self.resume_input = self._inputs[0] if self._inputs else (resume - 1, self.resume_input)
        if through < resume:
            self.resume_input += 1
        sources = {name: [ring.closed, ring.counted, ring.stored] for name, ring in self._rings.items() if ring.closed != _NEVER}
        needed = self.index.needed({name: ring.closed - RESTORE_S - self.revise_s + 1 for name, ring in self._rings.items()})
        self.index.written(newest)
        head = [self._last, self.log, resume, self.resume_input, self._sent_from, sources, needed]
        return [*records, (_pack(["head", term % TERMS]), _pack(head))]

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the best head among these records names; None where there is no head."""
        heads = [_unpack(value) for key, value in records.items() if _is_head(key)]
        return [(first, last) for first, last in max(heads, key=_best)[6]] if heads else None

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None = None, *, revise_s: int) -> Windows:
        """The state in a partition's records: those of the newest log, for each second the ones that count the furthest. `offsets` in the changelog, by key."""
        windows = cls(partition, revise_s=revise_s)
        heads: list[list[Any]] = []
        buckets: list[list[Any]] = []
        try:
            for key, value in records.items():
                if _is_head(key):
                    heads.append(_unpack(value))
                else:
                    buckets.append([*_unpack(value), offsets[key] if offsets else 0])
        except (msgspec.MsgspecError, IndexError, TypeError) as error:
            raise StateError(f"partition {partition}: a record of aggregate cannot be read: {error}") from error
        log = max((value[1] for value in heads + buckets), default="")
        heads, buckets = [h for h in heads if h[1] == log], [b for b in buckets if b[1] == log]
        windows.log = log
        for _, _, source, parts, offset in sorted(buckets, key=lambda bucket: bucket[-1]):
            windows.index.restored(offset, {source: parts[-1][0]})
        best: dict[str, dict[int, tuple[int, list[list[Any]]]]] = {}
        for through, _, source, parts, _ in buckets:
            windows.sent = max(windows.sent, through)
            seconds = best.setdefault(source, {})
            for part in parts:
                known = seconds.get(part[0])
                if known is None or through > known[0]:
                    seconds[part[0]] = (through, [part])
                elif through == known[0]:
                    known[1].append(part)
        sources: dict[str, list[int]] = {}
        if heads:
            windows._last, _, windows.expect, windows.resume_input, windows._sent_from, sources, _ = max(heads, key=_best)
            windows.sent = max(windows.sent, windows._last)
            windows._head_last = windows._last
        for source in {*best, *sources}:
            windows._rings[source] = cls._restore_ring(best.get(source, {}), sources.get(source), revise_s)
        return windows

    @staticmethod
    def _restore_ring(seconds: dict[int, tuple[int, list[list[Any]]]], state: list[int] | None, revise_s: int) -> _Ring:
        ring = _Ring(revise_s)
        closed, ring.counted, ring.stored = state or (_NEVER, _NEVER, _NEVER)
        ring.restored = closed, ring.counted
        newest = closed if closed != _NEVER else min(seconds)
        needed = {s: bucket for s, bucket in seconds.items() if s > newest - RESTORE_S - revise_s}
        ring.stored = max([ring.stored, *needed])
        for second, (through, parts) in needed.items():
            ring.through[second] = through
            ring.waiting[second] = parts
        if closed != _NEVER:
            ring.cover(min([*needed, closed]) - 1, closed)
            ring.settle(closed)
            ring.close(closed)
        return ring

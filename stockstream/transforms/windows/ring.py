"""One source's last seconds, symbol by symbol.

A `Ring` adds ticks to their seconds, closes seconds, finds what late ticks change, and packs closed seconds for the state. A symbol's
index is its place in the order in which symbols were first heard. What is computed in each cell stands in `arithmetic`, the layout of the arrays in `cells`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockstream.errors import FrameError
from stockstream.records import CORRECTION, NEW_SERIES
from stockstream.transforms.frames import bounds_of_runs
from stockstream.transforms.timing import WINDOW_S
from stockstream.transforms.versioned import MAX_VALUE_BYTES
from stockstream.transforms.windows import arithmetic
from stockstream.transforms.windows.cells import CURRENT, FAR_S, NEVER, PAST, Cells, Ints, Packed
from stockstream.transforms.windows.feed_gaps import FeedGaps
from stockstream.transforms.windows.state import FIRST_STORED, STORED, Second
from stockstream.transforms.windows.ticks import Ticks

RESTORE_S = 2 * WINDOW_S + 1
"""Seconds of buckets that a restart needs besides REVISE_S: two windows, to know where each living series began."""
SILENT_S = 2 * WINDOW_S + 60
"""Besides REVISE_S: a symbol that was not heard for so long has left no trace in any window or series, and gives up its place."""
_PARTS = [STORED.index("volume_part"), STORED.index("accrued")]
_AWAY = STORED.index("away_s")
CELLS_AT_ONCE = 250_000
"""Bound on symbols x seconds laid out at once beyond the window, and so on a ring's memory (30 fields of 8 bytes a cell)."""


def _as_slice(indexes: Ints) -> slice | Ints:
    """The indexes, as a slice where they follow upon each other."""
    return slice(int(indexes[0]), int(indexes[0]) + len(indexes)) if len(indexes) and (np.diff(indexes) == 1).all() else indexes


class Ring:
    """One source's seconds, in two depths of `Cells`.

    No second up to `closed` - `revise_s` changes any more: `clean` rejects what is older, and after a restart its ticks are counted already.
    """

    def __init__(self, revise_s: int) -> None:
        self.revise_s = revise_s
        self.symbols: dict[str, int] = {}
        self.current, self.past = Cells(CURRENT, 1 + revise_s), Cells(PAST, WINDOW_S + 1 + revise_s)
        self.closed = NEVER
        self.rank: Ints = np.zeros(0, np.int64)
        self.by_rank: Ints = np.zeros(0, np.int64)
        """Symbol indexes in the order of the symbols' names."""
        self.names: NDArray[np.object_] = np.zeros(0, object)
        self.bytes: Ints = np.zeros(0, np.int64)
        """By symbol index: bytes of a symbol's second in a record, at most."""
        self.heard: Ints = np.zeros(0, np.int64)
        """By symbol index: about the last second with a tick or quote."""
        self.touched = 0
        """The log's time (epoch ms) when the source was last in a frame; 0: the next that is known."""
        self.frame = 0
        """Number of the frame that it was last in."""
        self._packed: list[Packed] = []
        self.unsaved: dict[int, int] = {}
        """Second -> first raw offset with an effect that no stored bucket has."""
        self.stored = NEVER
        """Newest second that has a bucket."""
        self.counted_through = NEVER
        """Last closing's offset: all ticks up to it in seconds up to `closed` are in buckets."""
        self.series_offset = NEVER
        """First raw offset of the source's present series; what is stored of an earlier one counts no more."""
        self.through: dict[int, int] = {}
        """After a restart: second -> offset that its stored bucket counts through."""
        self.closed_before_gap = NEVER
        """The last second that was closed before a long gap, between the first ticks after the gap and their first closing."""
        self.restored: tuple[int, int] = (NEVER, NEVER)
        """After a restart: `closed` and `counted_through` of the checkpoint."""
        self.pending_restored: dict[int, list[Second]] = {}
        """After a restart: stored seconds beyond `closed`; `apply_restored` puts them in place when the log gets there again."""
        self.stored_fields: tuple[str, ...] = FIRST_STORED
        """The fields of the last `buckets`: few seconds have others than the first."""
        self.changed: set[tuple[int, int]] = set()
        """(Symbol index, closed second) of late ticks whose rows were not sent."""
        self.unsent: set[tuple[int, int]] = set()
        """Those of them that had no tick or quote before: no row of theirs was ever sent."""
        self.begun: dict[int, set[int]] = {}
        """Second -> indexes of the symbols that begin a new series with it and have not yet forgotten what was before."""
        self.gaps = FeedGaps()

    # -- room ---------------------------------------------------------------

    @property
    def at_once(self) -> int:
        """Seconds that may be laid out at once."""
        return max(FAR_S, CELLS_AT_ONCE // max(len(self.symbols), 8))

    def register_symbols(self, symbols: Collection[str]) -> Ints:
        """Indexes of these (different) symbols; new ones are added."""
        table = self.symbols
        try:
            return np.fromiter(map(table.__getitem__, symbols), np.int64, len(symbols))
        except KeyError:
            new = [symbol for symbol in symbols if symbol not in table]
        table.update(zip(new, range(len(table), len(table) + len(new)), strict=True))
        if len(table) > self.current.cells.shape[2]:
            room = len(table) + max(8, len(table) // 16)
            for cells in (self.current, self.past):
                cells.ensure_symbols(room)
        self.heard = np.concatenate([self.heard, np.full(len(new), max(self.closed, 0))])
        self.bytes = np.concatenate([self.bytes, np.fromiter((8 * len(STORED) + 5 + len(symbol.encode()) for symbol in new), np.int64, len(new))])
        self._sort_names()
        return self.register_symbols(symbols)

    def _sort_names(self) -> None:
        self.names = np.array(list(self.symbols), object)
        self.by_rank = np.argsort(self.names.astype(str), kind="stable")
        self.rank = np.empty(len(self.names), np.int64)
        self.rank[self.by_rank] = np.arange(len(self.names))

    def make_room(self, symbols: Collection[str]) -> None:
        """Where there is no room for these symbols, drops those that were silent for longer than anything reaches, if they are many."""
        free = self.current.cells.shape[2] - len(self.symbols)
        if not len(self.symbols) or self.closed == NEVER or sum(symbol not in self.symbols for symbol in symbols) <= free:
            return
        kept = np.flatnonzero(self.heard > self.closed - SILENT_S - self.revise_s)
        if len(self.symbols) - len(kept) < max(8, len(self.symbols) // 8):
            return
        number_of = dict(zip(kept.tolist(), range(len(kept)), strict=True))
        self.changed = {(number_of[index], second) for index, second in self.changed}
        self.unsent = {(number_of[index], second) for index, second in self.unsent}
        self.begun = {second: {number_of[index] for index in indexes if index in number_of} for second, indexes in self.begun.items()}
        self.gaps.renumber(number_of)
        self.symbols = dict(zip(self.names[kept].tolist(), range(len(kept)), strict=True))
        self.heard, self.bytes = self.heard[kept], self.bytes[kept]
        for cells in (self.current, self.past):
            cells.take(kept, len(kept) + max(8, len(kept) // 16))
        self._sort_names()

    def rest(self) -> None:
        """Packs the arrays until `wake`."""
        if not self._packed:
            self._packed = [cells.rest() for cells in (self.current, self.past)]

    def wake(self) -> None:
        if self._packed:
            for cells, packed in zip((self.current, self.past), self._packed, strict=True):
                cells.wake(packed)
            self._packed = []

    @property
    def array_bytes(self) -> int:
        """Memory of the arrays, packed or not."""
        return self.current.cells.nbytes + self.past.cells.nbytes + sum(len(packed.data) for packed in self._packed)

    def ensure_capacity(self, first: int, last: int) -> None:
        """Makes room for the seconds `first` to `last`, keeping what windows up to `closed` and later still need."""
        if self.closed - self.revise_s < first and last <= self.current.last and self.closed != NEVER:
            return
        since = min([first, *self.unsaved]) if self.closed == NEVER else min(first + self.revise_s, self.closed + 1)
        for cells in (self.current, self.past):
            cells.ensure_capacity(since, last)

    def skip_to(self, second: int) -> None:
        """Where nothing is heard for longer than anything is kept, begins anew with `second` as the last closed: no window or series reaches over that."""
        if second - self.closed > self.past.depth and self.closed != NEVER and not self.unsaved:
            for cells in (self.current, self.past):
                cells.reset(second)
            self.closed = second

    def jump_gap(self, second: int) -> None:
        """A source that `clean` had forgotten is heard again, first at `second`, before its first closing: no room is needed for what lies between.

        That closing will have the second after which the series begins: one of the two before `second`, as the milliseconds have it.
        """
        if self.closed != NEVER and second - self.closed > self.past.depth + self.revise_s and not self.unsaved:
            self.closed_before_gap = self.closed
            self.skip_to(second - 2)

    @property
    def known_closed(self) -> int:
        """The last second that a closing has named: what a restart goes on from."""
        return self.closed if self.closed_before_gap == NEVER else self.closed_before_gap

    # -- ticks --------------------------------------------------------------

    def reach(self, offset: int) -> None:
        """The log goes on with this offset: stored buckets that count through less have had their effect."""
        if (self.through or self.restored != (NEVER, NEVER)) and offset > max(self.restored[1], *self.through.values(), NEVER):
            self.restored, self.through = (NEVER, NEVER), {}

    def not_yet_stored(self, ticks: Ticks) -> Ticks:
        """The ticks that no stored bucket counts; all of them but for a while after a restart."""
        if self.restored == (NEVER, NEVER) and not self.through:
            return ticks
        closed, counted = self.restored
        through = np.fromiter((self.through.get(s, NEVER) for s in ticks.second.tolist()), np.int64, len(ticks.second))
        return ticks.take((ticks.offset > through) & ((ticks.offset > counted) | (ticks.second > closed)))

    def add(self, ticks: Ticks) -> None:
        """Adds ticks to their seconds, one after the other in log order."""
        for first in bounds_of_runs(ticks.second)[:-1]:
            self.unsaved.setdefault(int(ticks.second[first]), int(ticks.offset[first]))
        self.heard[ticks.symbol] = ticks.second
        if ticks.flags is not None:
            ticks = self._note_series(ticks)
        arithmetic.add(self.current, self.past, ticks)
        for name, values in ticks.quotes.items():
            known = ~np.isnan(values)
            if ticks.flags is not None:
                known &= (ticks.flags & CORRECTION) == 0
            self.current.flat(name)[self.current.at(ticks.symbol[known], ticks.second[known])] = values[known]


    def _note_series(self, ticks: Ticks) -> Ticks:
        """Notes which series the ticks begin. Leaves out what came before that in their first second: it is of the series before."""
        assert ticks.flags is not None
        kept = np.ones(len(ticks.flags), np.bool_)
        for number in np.flatnonzero(ticks.flags & NEW_SERIES).tolist():
            index, second = int(ticks.symbol[number]), int(ticks.second[number])
            kept[:number] &= (ticks.symbol[:number] != index) | (ticks.second[:number] != second)
            for cells in (self.current, self.past):
                cells.cells[: cells.stored, second % cells.width, index] = cells.nothing[: cells.stored, 0, 0]
            self.current.of("new_series")[second % self.current.width, index] = 1
            self.begun.setdefault(second, set()).add(index)
        return ticks if kept.all() else ticks.take(kept)

    # -- closings -----------------------------------------------------------

    def parts(self, first: int, last: int) -> list[tuple[int, int]]:
        """These seconds, cut before each with which a series begins."""
        begins = [first, *sorted(second for second in self.begun if first < second <= last)]
        return list(zip(begins, [*(second - 1 for second in begins[1:]), last], strict=True))

    def _begin_series(self, second: int) -> None:
        """Forgets what the symbols had before `second` that begin a series with it."""
        indexes = self.begun.pop(second, None)
        if indexes:
            for cells in (self.current, self.past):
                cells.forget(np.array(sorted(indexes)), second - 1)

    def close(self, second: int, *, begin_series: bool = True) -> None:
        """Carries prices forward through `second`; nothing is sent. Without `begin_series`, series that begin by then are left to `revise`."""
        if second > self.closed:
            first = self.closed + 1 if self.closed != NEVER else self.current.base + 1
            for begin, end in self.parts(first, second) if begin_series else [(first, second)]:
                if begin_series:
                    self._begin_series(begin)
                arithmetic.carry(self.current, self.past, slice(0, len(self.symbols)), begin, end)
            self.closed = second

    def mark_late(self, indexes: Ints, seconds: Ints) -> None:
        """Late ticks are about to be added to these cells, whose seconds are closed.

        What a cell holds by now was sent by the closing before, or is of late ticks that were marked: a stored bucket holds nothing else either.
        """
        cells = set(zip(indexes.tolist(), seconds.tolist(), strict=True)) - self.changed
        if self.closed == NEVER or self.closed_before_gap != NEVER:
            self.unsent |= cells                                         # nothing of this series was sent
        elif cells:
            index, second = np.array(sorted(cells)).T
            if second.min() <= self.current.base or second.max() > self.closed:
                raise FrameError(f"late ticks of seconds {second.min()} to {second.max()} where {self.closed} is closed")
            at = self.current.at(index, second)
            heard = self.current.flat("ticks").take(at) + self.current.flat("quotes").take(at)
            self.unsent.update(cell for cell, ticks in zip(sorted(cells), heard.tolist(), strict=True) if not ticks)
        self.changed |= cells

    def revise(self) -> Iterator[tuple[Ints, Ints, NDArray[np.bool_]]]:
        """Carries prices again from the changed seconds on.

        Yields (indexes, seconds) of the cells up to `closed` that are to be sent, in their order, and whether each of them was sent before. Take their
        statistics before asking for the next: series that begin there forget what was before.
        """
        since: dict[int, int] = {}
        for index, second in self.changed:
            since[index] = min(since.get(index, second), second)
        indexes = np.fromiter(since, np.int64, len(since))
        first = np.fromiter(since.values(), np.int64, len(since))
        order = self.rank[indexes].argsort()
        indexes, first = indexes[order], first[order]
        lowest = int(first.min())
        if lowest <= self.current.base:
            raise FrameError(f"a late tick {self.closed - lowest} s before the last closed second")
        since_of = np.zeros(len(self.symbols), np.int64)
        since_of[indexes] = first
        for begin, end in self.parts(lowest, self.closed):
            self._begin_series(begin)
            arithmetic.carry(self.current, self.past, indexes, begin, end)
            live, seconds = arithmetic.live(self.current, indexes, np.arange(begin, end + 1))
            due = seconds >= since_of[live]
            live, seconds = live[due], seconds[due]
            sent = np.ones(len(live), bool)
            if self.unsent:
                sent[[place for place, cell in enumerate(zip(live.tolist(), seconds.tolist(), strict=True)) if cell in self.unsent]] = False
            yield live, seconds, sent
        self.changed.clear()
        self.unsent.clear()

    def cells_between(self, after: int, second: int) -> tuple[Ints, Ints]:
        """(indexes, seconds) with ticks or quotes in the seconds after < s <= second, by second and symbol."""
        first = max(after + 1, self.current.base)
        return arithmetic.live(self.current, self.by_rank, np.arange(first, second + 1))


    def statistics(self, indexes: Ints, seconds: Ints) -> dict[str, NDArray[Any]]:
        """The row values of these cells, by column name of `windows`; `quality` as bits."""
        return arithmetic.statistics(self.current, self.past, indexes, seconds)

    # -- state --------------------------------------------------------------

    def buckets(self, seconds: list[int]) -> Iterator[tuple[list[Second], int]]:
        """The stored form of each of these seconds, in pieces that fit a message, and about their bytes."""
        second = np.array(seconds, np.int64)
        indexes, seconds_of = arithmetic.live(self.current, np.arange(len(self.symbols)), second)
        kept = arithmetic.stored(self.current, self.past, indexes, seconds_of)
        self.stored_fields = STORED if kept[len(FIRST_STORED) :].any() else FIRST_STORED
        kept = kept[: len(self.stored_fields)]
        ends = seconds_of.searchsorted(second, "right").tolist()
        names, sizes = self.names[indexes].tolist(), np.concatenate([[0], self.bytes[indexes].cumsum()])
        begin = 0
        for number, end in zip(seconds, ends, strict=True):
            size, cuts = int(sizes[end] - sizes[begin]), [begin, end]
            if size > MAX_VALUE_BYTES:
                numbers_of = (sizes[begin:end] - sizes[begin]) // MAX_VALUE_BYTES
                cuts[1:1] = (begin + 1 + np.flatnonzero(np.diff(numbers_of))).tolist()
            pieces = [slice(*pair) for pair in pairwise(cuts)] if end > begin else []
            yield [Second(number, names[piece], kept[:, piece].tobytes()) for piece in pieces], size
            begin = end

    def apply_restored(self, second: int) -> None:
        """Puts stored seconds up to this one back in their place."""
        due = sorted(s for s in self.pending_restored if s <= second)
        while due and due[0] < second - RESTORE_S - self.revise_s:
            del self.pending_restored[due.pop(0)]                                 # of no use to any window by then
        if due:
            self.ensure_capacity(due[0], second)
        known: list[str] = []
        for pending in due:
            for piece in self.pending_restored.pop(pending):
                if piece.symbols is not known:
                    known, indexes = piece.symbols, _as_slice(self.register_symbols(piece.symbols))
                stored = np.frombuffer(piece.data, np.int64).reshape(len(STORED), -1)
                self.heard[indexes] = pending
                self.current.parts |= bool(stored[_PARTS].any())
                if stored[_AWAY].any():
                    self.current.last_gap = max(self.current.last_gap, pending)
                    self.gaps.restored(np.arange(len(self.symbols))[indexes], pending, stored[_AWAY])
                begun = np.flatnonzero(stored[STORED.index("new_series")])
                if len(begun):
                    self.begun.setdefault(pending, set()).update(np.arange(len(self.symbols))[indexes][begun].tolist())
                for cells, places in arithmetic.stored_places(self.current, self.past):
                    cells.cells[: len(places), pending % cells.width, indexes] = stored[places]

"""Accepted ticks that wait for their frame."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
import pyarrow as pa

from stockstream.records import CORRECTION, TICKS_SCHEMA, Tick
from stockstream.transforms.cleaning.columns import EXTRAS
from stockstream.transforms.frames import empty, plain


@dataclass(slots=True)
class AcceptedTicks:
    """Accepted ticks that wait for their frame: whole batches, and behind them ticks, as lists of all: a list of tuples costs twice the time.

    Where `indexes` ends early, the rest is 0.
    """

    batches: list[pa.RecordBatch] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    flags: dict[int, int] = field(default_factory=dict)
    """By place among `ticks`: the flags of a tick that has some."""
    gaps: dict[int, tuple[int, float]] = field(default_factory=dict)
    """By place among `ticks`: seconds of silence before the tick, and the price before them."""
    corrections: int = 0
    """How many of the rows are corrections."""
    bare: bool = True
    """Whether certainly none of `ticks` has one of `EXTRAS`."""

    def __len__(self) -> int:
        count: int = sum(batch.num_rows for batch in self.batches)
        return count + len(self.ticks)

    @property
    def accepted(self) -> int:
        """How many rows are accepted ticks; the others are corrections."""
        return len(self) - self.corrections

    def add(self, tick: Tick, offset: int, index: int, flags: int = 0) -> None:
        """Adds a tick with its flags, if any."""
        if index:
            self.indexes += [0] * (len(self.ticks) - len(self.indexes))
            self.indexes.append(index)
        if flags:
            self.flag_next(flags)
        self.ticks.append(tick)
        self.offsets.append(offset)

    def flag_next(self, flags: int) -> None:
        """Sets flags of the tick that is added next."""
        place = len(self.ticks)
        self.flags[place] = self.flags.get(place, 0) | flags
        self.corrections += flags & CORRECTION == CORRECTION

    def gap_before_next(self, gap: tuple[int, float]) -> None:
        """Sets the gap (s) before the tick that is added next, and the price before the gap."""
        self.gaps[len(self.ticks)] = gap

    def add_batch(self, batch: pa.RecordBatch) -> None:
        self._gather()
        self.batches.append(batch)

    def cut(self, offset: int) -> None:
        """Takes back the ticks of this offset and those behind it."""
        count = bisect_left(self.offsets, offset)
        del self.ticks[count:], self.offsets[count:], self.indexes[count:]
        self.corrections -= sum(flags & CORRECTION == CORRECTION for place, flags in self.flags.items() if place >= count)
        for notes in (self.flags, self.gaps):
            for place in [place for place in notes if place >= count]:
                del notes[place]

    def take(self) -> pa.RecordBatch:
        """All rows as TICKS_SCHEMA; none are left."""
        self._gather()
        batches, self.batches, self.corrections = self.batches, [], 0
        if len(batches) == 1:
            return batches[0]
        return pa.concat_batches(batches) if batches else empty(TICKS_SCHEMA)

    def _gather(self) -> None:
        """Makes a batch of the ticks."""
        ticks, count = self.ticks, len(self.ticks)
        if not count:
            return
        columns = {
            "symbol": [tick.symbol for tick in ticks],
            "source": [tick.source for tick in ticks],
            "event_time": [tick.event_time for tick in ticks],
            "price": [tick.price for tick in ticks],
            "size": [tick.size for tick in ticks],
            "flags": [self.flags.get(place, 0) for place in range(count)] if self.flags else plain(np.zeros(count, np.int32)),
            "offset": self.offsets,
            "index": self.indexes + [0] * (count - len(self.indexes)),
        }
        if self.gaps:
            found = [self.gaps.get(place, (None, None)) for place in range(count)]
            columns |= {"gap_s": [gap for gap, _ in found], "price_before_gap": [price for _, price in found]}
        if not self.bare:
            columns |= {name: list(map(attrgetter(name), ticks)) for name in EXTRAS}
        self.batches.append(pa.RecordBatch.from_arrays(
            [pa.array(columns[column.name], column.type) if column.name in columns else pa.nulls(count, column.type) for column in TICKS_SCHEMA],
            schema=TICKS_SCHEMA,
        ))  # fmt: skip
        self.ticks, self.offsets, self.indexes, self.bare = [], [], [], True
        self.flags, self.gaps = {}, {}

"""Predictions that wait for their outcomes: what the models answered for the rows of one source and second, until every horizon has passed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np

from stockstream.records import Role
from stockstream.transforms.scoring.asking import RING_S, UNITS_OF_P_UP, UNITS_OF_RETURN, Units
from stockstream.transforms.scoring.roster import Member
from stockstream.transforms.scoring.rows import RowsToScore
from stockstream.transforms.scoring.scored import Floats, Ints, Outcomes, Predictions

NAMES_KEPT: Final = 1_024
"""Symbols of a source before those without a prediction to judge are looked for."""
_REALISED_DIGITS: Final = 12


@dataclass(slots=True)
class ModelAnswer:
    """What one model answered for the rows of one second; units (n, h)."""

    role: Role
    name: str
    version: str
    horizons_s: tuple[int, ...]
    returns: Units
    p_up: Units

    def rows(self, low: int, high: int) -> ModelAnswer:
        """Its answer for some of the rows."""
        return ModelAnswer(self.role, self.name, self.version, self.horizons_s, self.returns[low:high], self.p_up[low:high])


@dataclass(slots=True)
class Pending:
    """Scored rows of one source and second that one closing brought; `index` are numbers of the source's symbols."""

    second: int
    index: Ints
    price: Floats
    answers: list[ModelAnswer]
    offset: int = -1
    """Raw offset of the closing that brought them; -1: not known."""

    @property
    def horizons(self) -> set[int]:
        return {horizon for answer in self.answers for horizon in answer.horizons_s}


@dataclass(frozen=True, slots=True)
class Judged:
    """What one model answered for a slot over one horizon, the `column`-th, and the prices at its end; `names` are the source's symbols."""

    names: list[str]
    slot: Pending
    answer: ModelAnswer
    column: int
    price_then: Floats


class SourcePredictions:
    """One source's closed seconds, last prices, and the seconds whose predictions are, or may be, to judge."""

    def __init__(self, closed: int, series_offset: int = -1, heard: int = 0) -> None:
        self.closed = closed
        self.series_offset = series_offset
        """First raw offset of the source's present series; what is stored of an earlier one counts no more."""
        self.heard = heard
        """The log clock (epoch ms) when it was last in a frame; 0 until the clock is known."""
        self._compact_at = NAMES_KEPT
        self.names: list[str] = []
        self.last = np.full(64, np.nan)
        self.last_second = np.full(64, -1)
        """Of the price in `last`."""
        self.pending: dict[int, list[Pending]] = {}
        """By second its slots, in the order of their closings: rows that come late have one of their own."""
        self.due: dict[int, list[Pending]] = {}
        """By the second that judges them."""
        self.began: dict[str, set[int]] = {}
        """By symbol the seconds with which another currency began; no prediction from before is judged by a price from then on."""
        self._number: dict[str, int] = {}

    def register_symbols(self, symbols: Sequence[str]) -> Ints:
        """Numbers of these symbols, new ones added."""
        number, names = self._number, self.names
        for symbol in symbols:
            if symbol not in number:
                number[symbol] = len(names)
                names.append(symbol)
        if len(names) > len(self.last):
            self.last = np.concatenate([self.last, np.full(len(names), np.nan)])
            self.last_second = np.concatenate([self.last_second, np.full(len(names), -1)])
        return np.fromiter(map(number.__getitem__, symbols), np.int64, len(symbols))

    def compact(self) -> None:
        """Forgets symbols without a prediction to judge, once they may be half of all."""
        if len(self.names) <= self._compact_at:
            return
        none = np.zeros(0, np.int64)
        slots = [slot for of_second in self.pending.values() for slot in of_second]
        kept = np.unique(np.concatenate([none, *(slot.index for slot in slots)]))
        place = np.full(len(self.names), -1)
        place[kept] = np.arange(len(kept))
        for slot in slots:
            slot.index = place[slot.index]
        self.last, self.last_second = self.last[kept], self.last_second[kept]
        self.names = [self.names[number] for number in kept.tolist()]
        self._number = {name: number for number, name in enumerate(self.names)}
        self._compact_at = max(NAMES_KEPT, 2 * len(kept))

    def add(self, slot: Pending, *, judged: bool = False) -> int:
        """Takes the slot's prices where they are the last ones, and waits for its outcomes; with `judged` only for those behind the last closed second.

        Returns the slot's number among those of its second.
        """
        newer = slot.second >= self.last_second[slot.index]
        self.last[slot.index[newer]], self.last_second[slot.index[newer]] = slot.price[newer], slot.second
        slots = self.pending.setdefault(slot.second, [])
        slots.append(slot)
        for horizon in slot.horizons:
            if slot.second + horizon > self.closed or not judged:
                self.due.setdefault(slot.second + horizon, []).append(slot)
        return len(slots) - 1

    def price_at(self, slot: Pending, moment: int) -> Floats:
        """The last price of each of the slot's symbols up to second `moment`; all rows up to it that have come are added, and later ones only where
        `moment` was closed already: then the slot has come late."""
        if moment > self.closed:
            return self.last[slot.index]
        prices = np.full(len(self.names), np.nan)
        for second in range(slot.second, moment + 1):
            for other in self.pending.get(second, ()):
                prices[other.index] = other.price
        return prices[slot.index]

    def advance(self, second: int) -> None:
        """Closes through `second` and forgets what no horizon reaches."""
        self.closed = max(self.closed, second)
        if self.began:
            self.began = {symbol: kept for symbol, seconds in self.began.items() if (kept := {second for second in seconds if second > self.closed - RING_S})}
        for old in [made for made in self.pending if made <= self.closed - RING_S]:
            del self.pending[old]


def predictions_of(rows: RowsToScore, which: slice, answer: ModelAnswer, skip: int, feature_hash: str) -> Predictions:
    return Predictions(
        answer.name, answer.version, feature_hash, answer.horizons_s,
        rows.symbol[which], (rows.second[which] + 1) * 1000, rows.price[which], rows.offset[which],
        as_return(answer.returns[skip:]), as_probability(answer.p_up[skip:]),
    )  # fmt: skip


def pending_of(source: SourcePredictions, second: int, rows: RowsToScore, span: slice, answers: Sequence[ModelAnswer], start: int) -> Pending:
    """Of the rows in `span` and of the models' answers for the run of rows from `start` on."""
    within_run = slice(span.start - start, span.stop - start)
    # copies: a view would keep the whole frame in memory
    mine = [ModelAnswer(v.role, v.name, v.version, v.horizons_s, v.returns[within_run].copy(), v.p_up[within_run].copy()) for v in answers]
    return Pending(second, source.register_symbols(rows.symbol[span]), rows.price[span].copy(), mine, int(rows.offset[span.start]))


def judge(source: SourcePredictions, slot: Pending, moment: int) -> Iterator[Judged]:
    price_then = source.price_at(slot, moment)
    if source.began:
        slot, price_then = _of_one_currency(source, slot, price_then, moment)
    if not len(price_then):
        return
    for answer in slot.answers:
        for column, horizon in enumerate(answer.horizons_s):
            if slot.second + horizon == moment:
                yield Judged(source.names, slot, answer, column, price_then)


def _of_one_currency(source: SourcePredictions, slot: Pending, price_then: Floats, moment: int) -> tuple[Pending, Floats]:
    """The rows of a slot whose symbols have not changed their currency until `moment`, and their prices."""
    began = [source.began.get(source.names[number], ()) for number in slot.index.tolist()]
    kept = np.array([not any(slot.second < second <= moment for second in seconds) for seconds in began], np.bool_)
    if kept.all():
        return slot, price_then
    answers = [ModelAnswer(v.role, v.name, v.version, v.horizons_s, v.returns[kept], v.p_up[kept]) for v in slot.answers]
    return Pending(slot.second, slot.index[kept], slot.price[kept], answers, slot.offset), price_then[kept]


def outcomes_of(judged: Sequence[Judged]) -> Outcomes | None:
    """Computed for a frame at once, as it may bring hundreds of seconds of a few rows each."""
    if not judged:
        return None
    sizes = [len(one.price_then) for one in judged]
    price_then = np.concatenate([one.price_then for one in judged])
    realised = np.round(np.log(price_then / np.concatenate([one.slot.price for one in judged])), _REALISED_DIGITS) + 0.0
    by = groupby(zip(judged, sizes, strict=True), lambda pair: (pair[0].answer.role, pair[0].answer.name, pair[0].answer.version))
    return Outcomes(
        [(Member(*who), sum(size for _, size in run)) for who, run in by],
        [one.names[number] for one in judged for number in one.slot.index.tolist()],
        np.repeat([(one.slot.second + 1) * 1000 for one in judged], sizes),
        np.repeat([one.answer.horizons_s[one.column] for one in judged], sizes),
        as_return(np.concatenate([one.answer.returns[:, one.column] for one in judged])),
        as_probability(np.concatenate([one.answer.p_up[:, one.column] for one in judged])),
        realised,
        price_then,
    )


def as_return(units: Units) -> Floats:
    return np.asarray(units / UNITS_OF_RETURN, np.float64)


def as_probability(units: Units) -> Floats:
    return np.asarray(units / UNITS_OF_P_UP, np.float64)

"""A symbol's last trade, the silence before the next one, its currency, and gaps of its feed: what `clean` remembers of a series for those who read its ticks.

A trade whose second is more than GAP_S and at most MAX_GAP_S after that of the newest one before it, in the order of the log, carries the gap and the price
before it. Another currency begins another series: no gap leads there, and ticks of earlier seconds are late from then on. Neither is an empty currency
one, nor none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stockstream.records import Tick
from stockstream.transforms.cleaning.columns import Columns, Floats, Ints, require_none
from stockstream.transforms.cleaning.rejections import Fault
from stockstream.transforms.cleaning.state import Held, SourceState
from stockstream.transforms.timing import GAP_S, MAX_GAP_S

_SPAN = 1 << 34
"""More than any second."""


def take_trade(held: Held, second: int, price: float) -> tuple[int, float] | None:
    """Remembers a trade; returns the gap (s) and the price before it where there is one to carry."""
    silent = second - held.traded
    if silent < 0:
        return None
    before, held.traded, held.price = held.price, second, price
    return (silent, before) if GAP_S < silent <= MAX_GAP_S else None


def keep_gap(held: Held | None, tick: Tick) -> None:
    """A tick is late: if its feed was away before it, the next accepted tick of the symbol comes after that gap."""
    if held is not None and held.source == tick.source and tick.gap_from is not None:
        held.gap_from = min(held.gap_from or tick.gap_from, tick.gap_from)


def take_gap(held: Held, tick: Tick) -> None:
    """The tick is accepted: it comes after the gaps before the late ticks before it."""
    if held.gap_from:
        tick.gap_from, held.gap_from = min(held.gap_from, tick.gap_from or held.gap_from), 0


def changes_currency(held: Held, tick: Tick) -> bool:
    """Whether the tick is in another currency than the symbol's last one that named its own."""
    return bool(tick.currency) and held.currency is not None and tick.currency != held.currency


def series_fault(held: Held, source: SourceState | None, tick: Tick) -> Fault | None:
    """Why a tick comes too late for its symbol's series: it is older than its currency, or its currency is newer than what is closed of its second."""
    second = tick.event_time // 1000
    if tick.event_time < held.since:
        return "late", f"{tick.symbol} is in another currency since second {held.since // 1000}, in {held.currency}"
    if changes_currency(held, tick):
        closed = source.closed if source is not None and source.closed is not None else -1
        if second < held.newest or second == held.newest <= closed:
            return "late", f"{tick.symbol} was in {held.currency} until second {held.newest}: {tick.currency} begins with a later one"
    return None


def begin_series(held: Held, tick: Tick) -> None:
    """The tick's currency is another one: what was known of trades is in the one before."""
    held.traded, held.price, held.since = 0, 0.0, tick.event_time // 1000 * 1000


@dataclass(frozen=True, slots=True)
class Trades:
    """The newest trade of each symbol once some plain ticks are accepted, and what those carry."""

    second: list[int]
    price: list[float]
    columns: dict[str, pa.Array]
    """Of TICKS_SCHEMA; empty where no tick carries a gap."""


def require_series(plain: Columns, held: list[Held]) -> None:
    """Raises `OddRecord` at a tick that names its symbol's first or another currency, is older than its symbol's, or comes after the gap before a late tick."""
    after_gap = np.array([holder.gap_from > 0 for holder in held])
    if after_gap.any():
        require_none(after_gap[plain.symbol], plain.record)
    since = np.array([holder.since for holder in held])
    if since.any():
        require_none(plain.event_time < since[plain.symbol], plain.record)
    if plain.currency is not None:
        known = {currency: number for number, currency in enumerate(plain.currencies)}
        present = np.array([-2 if holder.currency is None else known.get(holder.currency, -2) for holder in held])
        require_none((plain.currency >= 0) & (plain.currency != present[plain.symbol]), plain.record)


def trades_of(plain: Columns, held: list[Held]) -> Trades:
    """As `take_trade` of each trade in turn, as columns. `held` is by symbol, and stays as it is."""
    price: Floats = plain.columns["price"].to_numpy(zero_copy_only=False)
    place: Ints = np.flatnonzero(~np.isnan(price))
    symbol, second, prices = plain.symbol[place], plain.event_time[place] // 1000, price[place]
    before, price_before = np.array([holder.traded for holder in held], np.int64), np.array([holder.price for holder in held])
    newest, last = before.copy(), price_before.copy()
    np.maximum.at(newest, symbol, second)
    at_newest = second == newest[symbol]
    last[symbol[at_newest]] = prices[at_newest]                                   # of several the last stays
    columns: dict[str, pa.Array] = {}
    silent = newest - before > GAP_S                                              # only these symbols can have a gap
    if silent.any():
        some = np.flatnonzero(silent[symbol])
        which, gap_s, price_then = _gaps(symbol[some], second[some], prices[some], np.flatnonzero(silent), before, price_before)
        if len(which):
            ticks = place[some[which]]
            none, gap_of, price_of = np.ones(len(price), np.bool_), np.zeros(len(price), np.int64), np.zeros(len(price))
            none[ticks], gap_of[ticks], price_of[ticks] = False, gap_s, price_then
            columns = {"gap_s": pa.array(gap_of, mask=none), "price_before_gap": pa.array(price_of, mask=none)}
    return Trades(newest.tolist(), last.tolist(), columns)


def _gaps(symbol: Ints, second: Ints, price: Floats, symbols: Ints, before: Ints, price_before: Floats) -> tuple[Ints, Ints, Floats]:
    """Which of some trades, in the order of the log, come after a gap, how long it is, and the price before it. `before` and `price_before` are what is held
    of each symbol; `symbols` are those that trade here."""
    # behind what is held of each symbol come its trades
    count = len(symbols)
    owner, prices = np.concatenate([symbols, symbol]), np.concatenate([price_before[symbols], price])
    order = owner.argsort(kind="stable")
    key, prices = (owner * _SPAN + np.concatenate([before[symbols], second]))[order], prices[order]
    newest = np.maximum.accumulate(key)
    at = np.maximum.accumulate(np.where(key == newest, np.arange(len(key)), 0))
    silent = key[1:] - newest[:-1]                                                # where another symbol begins it is beyond any gap
    gaps = np.flatnonzero((silent > GAP_S) & (silent <= MAX_GAP_S))
    return order[gaps + 1] - count, silent[gaps], prices[at[gaps]]

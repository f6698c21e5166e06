"""Judges many records at once, as columns. They are accepted if all their ticks are plain, of known symbols and sources, and none is late.

`weigh` changes nothing: it returns what accepting the ticks would change, or raises `OddRecord` at a record that must be judged by itself. A test checks
that the verdicts are those of judging the records one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from stockstream.records import Closing
from stockstream.transforms.cleaning.columns import Columns, Ints, OddRecord, require_none
from stockstream.transforms.cleaning.limits import MAX_TIME
from stockstream.transforms.cleaning.memory import Memory
from stockstream.transforms.cleaning.numbering import accept_next, trade_key
from stockstream.transforms.cleaning.series import Trades, require_series, trades_of
from stockstream.transforms.cleaning.state import Feed, Held, SourceState
from stockstream.transforms.timing import FORGET_MS, FUTURE_MS


@dataclass(frozen=True, slots=True)
class Move:
    """What plain ticks of one source do to it: for each of their records that closes something its offset, and the last second closed before and by it."""

    source: SourceState
    name: str
    watermark: int
    newest: int
    ts: int
    closings: list[Closing]
    ends_closed: bool
    """Whether the last record closes something."""
    ticks: int
    reached: int
    """The highest event_time of its ticks."""
    behind: Ints
    """How far ticks come behind that, in ms, of those that do."""
    behind_times: Ints
    """Their event_time."""
    late: Ints
    """The symbols of those whose second was closed before their record."""


def holders(plain: Columns, memory: Memory, now: int) -> list[Held]:
    """The living series of each symbol. Raises `OddRecord` where one is not known or may be forgotten, or belongs to another source."""
    found = [memory.held.get(symbol) for symbol in plain.symbols]
    numbers = {name: number for number, name in enumerate(plain.sources)}
    remembered = now - FORGET_MS
    owners = [-1 if holder is None or holder.ts < remembered else numbers.get(holder.source, -1) for holder in found]
    require_none(np.array(owners)[plain.symbol] != plain.source, plain.record)
    return [holder for holder in found if holder is not None]


def numbered(plain: Columns, memory: Memory, held: list[Held], now: int) -> list[tuple[Feed, Any]]:
    """What numbers each symbol, and its last tick, where the ticks have numbers. Raises `OddRecord` where a number does not rise, is the first or of another
    epoch."""
    if plain.seq is None:
        if plain.epoch is not None:
            require_none(plain.epoch >= 0, plain.record)
        return []
    found = [memory.sources[holder.source].feeds.get(symbol) if holder.source in memory.sources else None
             for symbol, holder in zip(plain.symbols, held, strict=True)]  # fmt: skip
    unknown = np.array([feed is None or bool(feed.snapshot) or now - feed.ts > FORGET_MS for feed in found])
    require_none(unknown[plain.symbol], plain.record)
    feeds = [feed for feed in found if feed is not None]
    order = plain.symbol.argsort(kind="stable")
    symbol, seq = plain.symbol[order], plain.seq[order]
    begins = np.flatnonzero(np.diff(symbol, prepend=-1))
    before = np.concatenate([seq[:1], seq[:-1]])
    before[begins] = [feed.seq for feed in feeds]
    require_none(seq <= before, plain.record[order])
    if plain.epoch is not None:
        require_none((plain.epoch >= 0) & (plain.epoch != np.array([feed.epoch for feed in feeds])[plain.symbol]), plain.record)
    return [(feed, plain.ticks[place]) for feed, place in zip(feeds, order[np.append(begins[1:], len(seq)) - 1].tolist(), strict=True)]


def trade_ids(plain: Columns, memory: Memory) -> list[tuple[bytes, int]]:
    """What is to be remembered of the ticks' trade ids, and the number of each one's record. Raises `OddRecord` where one may be there already."""
    if "trade_id" not in plain.columns or plain.columns["trade_id"].null_count == len(plain.record):
        return []
    found: dict[bytes, int] = {}
    rows = zip(plain.columns["trade_id"].to_pylist(), plain.ticks, plain.source.tolist(), plain.symbol.tolist(), plain.record.tolist(), strict=True)
    for trade_id, tick, source, symbol, record in rows:
        if not trade_id or tick.price is None:
            continue
        key = trade_key(plain.sources[source], plain.symbols[symbol], trade_id)
        if key in found or key in memory.trade_ids.times:
            raise OddRecord(record)
        found[key] = record
    return list(found.items())


def move(plain: Columns, memory: Memory, number: int, now: Ints, *, revise_s: int) -> Move:
    """What the ticks of one source do to it. Raises `OddRecord` where one of them is late or ahead, or the source is not known for sure."""
    name = plain.sources[number]
    source = memory.sources.get(name)
    mine = plain.source == number
    times, record = plain.event_time[mine], plain.record[mine]
    timestamp = plain.timestamp[record]
    if (
        source is None or source.closed is None or (source.feeds and plain.seq is None)
        or int(now[-1]) - source.ts > FORGET_MS
    ):  # fmt: skip
        raise OddRecord(int(record[0]))
    log_clock = now[record]
    latest = np.where(timestamp > 0, timestamp + FUTURE_MS, np.where(log_clock > 0, log_clock + FORGET_MS, MAX_TIME))
    require_none(times > latest, record)
    begins = np.arange(len(times)) if plain.alone else np.flatnonzero(np.diff(record, prepend=-1))
    single = len(begins) == len(times)
    ahead = np.maximum.accumulate(times if single else np.maximum.reduceat(times, begins))
    watermark = np.maximum(ahead, source.watermark)
    closed = np.maximum((watermark - source.lateness_ms) // 1000 - 1, source.closed)
    before = np.concatenate([[source.closed], closed[:-1]])
    reached = np.concatenate([[source.reached], np.maximum(ahead[:-1], source.reached)])
    counts = None if single else np.diff(begins, append=len(times))
    before_tick, reached_tick = (before, reached) if counts is None else (np.repeat(before, counts), np.repeat(reached, counts))
    require_none(times < (before_tick - revise_s + 1) * 1000, record)
    lag = reached_tick - times
    behind = np.flatnonzero(lag > 0)
    late = plain.symbol[mine][behind[times[behind] < (before_tick[behind] + 1) * 1000]] if len(behind) else behind
    at = np.flatnonzero(closed > before)
    closed_by = zip(plain.offset[record[begins[at]]].tolist(), before[at].tolist(), closed[at].tolist(), strict=True)
    closings = [Closing(offset, name, after, second) for offset, after, second in closed_by]
    return Move(source, name, int(watermark[-1]), int(times.max()) // 1000, int(now[record[-1]]), closings, bool(closed[-1] > before[-1]),
                len(times), max(int(ahead[-1]), source.reached), lag[behind], times[behind], late)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Accepted:
    """What accepting plain ticks changes."""

    now: Ints
    """The log clock after each record."""
    held: list[Held]
    """By symbol."""
    feeds: list[tuple[Feed, Any]]
    """What numbers each symbol, and its last tick; none where the ticks have no numbers."""
    trade_ids: list[tuple[bytes, int]]
    """What is to be remembered of trade ids, and the number of each one's record."""
    moves: list[Move]
    """By source."""
    trades: Trades

    def apply(self, plain: Columns, memory: Memory) -> None:
        """Brings the symbols, their numbering and the log clock up to date. The sources are the caller's."""
        newest, heard = np.zeros(len(self.held), np.int64), np.empty(len(self.held), np.int64)
        np.maximum.at(newest, plain.symbol, plain.event_time)
        heard[plain.symbol] = self.now[plain.record]                              # of several the last stays
        memory.log_clock = int(self.now[-1])
        trades = self.trades
        for holder, event_time, ts, traded, price in zip(self.held, newest.tolist(), heard.tolist(), trades.second, trades.price, strict=True):
            holder.newest, holder.ts, holder.traded, holder.price = max(holder.newest, event_time // 1000), ts, traded, price
        for (feed, last), event_time, ts in zip(self.feeds, newest.tolist(), heard.tolist(), strict=False):
            accept_next(last, feed)
            feed.newest, feed.ts = max(feed.newest, event_time), ts
        now = self.now.tolist()
        for key, record in self.trade_ids:
            memory.trade_ids.add(key, now[record])


def weigh(plain: Columns, memory: Memory, *, revise_s: int) -> Accepted:
    """What accepting all of these ticks would change; nothing is changed yet. Raises `OddRecord` where one of them must be judged by itself."""
    if not memory.log_clock:
        require_none(plain.timestamp > 0, np.arange(len(plain.timestamp)))     # the first record with a time dates all before it
    now = np.maximum(np.maximum.accumulate(plain.timestamp), memory.log_clock)
    held = holders(plain, memory, int(now[-1]))
    require_series(plain, held)
    feeds = numbered(plain, memory, held, int(now[-1]))
    moves = [move(plain, memory, number, now, revise_s=revise_s) for number in range(len(plain.sources))]
    return Accepted(now, held, feeds, trade_ids(plain, memory), moves, trades_of(plain, held))

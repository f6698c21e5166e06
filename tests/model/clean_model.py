"""What `clean` must decide, slow and plain: whose a tick is, whether it is told again, late or one too many, what closes, what is forgotten when, and how
many shares a cumulative volume stands for.

It keeps everything for ever and never drops an entry: what is forgotten is worked out anew for each record. The log's clock is the greatest Kafka time of
a record of which something was accepted. An entry is forgotten for a record where the later of that clock, as it was before, and the record's own time is
more than a day after the log's clock at the entry's last acceptance; a source only where nothing that it has said is still to be sent.

Times are those of 1990 to 2109. A record that has no time (0 or less) makes no tick one of the future, and the first that has one dates all
before it. Symbols are the same where they look the same: they are kept in Unicode's form NFC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from unicodedata import normalize

WINDOW_S, LATENESS_MS, REVISE_S, FUTURE_MS = 300, 200, 30, 2_000
GAP_S, MAX_GAP_S = 60, 8 * 3600
FORGET_MS = 24 * 3600 * 1000
FIRST_MS = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp()) * 1000
LAST_MS = (1 << 42) - 1                                                  # in 2109
NOTHING = (-1, 2147483647, 4294967295)
MOST_SHARES = Decimal(10**11)
RUN, CONTENTS, TRADES_MS = 10, 16, 120_000
ACCRUED, CORRECTION, AFTER_FEED_GAP = 1, 2, 8
LONGEST_INTERVAL_S = 366 * 86_400


@dataclass
class _Numbers:
    """The numbering of one symbol by one source."""

    last: int
    epoch: int | None
    ticks: list[dict[str, Any]]
    """The contents that have come under the last number."""
    run: list[int] = field(default_factory=list)
    """The numbers of the duplicates in a row that are newer than everything and rise."""


@dataclass
class _Count:
    """The cumulative volume of one symbol from one source, in exact decimals."""

    highest: Decimal | None = None
    at: int = 0
    session: str | None = None
    rise: tuple[Decimal, int, int, float, Decimal, int] | None = None
    """The newest rise: the figure before, its time, the rising tick's time and price, its shares and flags."""
    fall: tuple[Decimal, int] | None = None
    """Where the newest figure has begun a count by falling: the figure before, and its time."""

    def take(self, tick: dict[str, Any], late_before: int) -> tuple[Decimal, int, tuple[int, float, Decimal, int] | None]:
        """Shares and flags of the tick, and the row that corrects an earlier one (time, price, shares, flags)."""
        figure, time, session = Decimal(str(tick["day_volume"])), tick["event_time"], tick.get("session")
        other = None not in (session, self.session) and session != self.session
        none = Decimal(0), 0, None
        if figure in NOTHING or (figure == 0 and self.highest and not other):
            return none
        if self.highest is None:
            self._begin(figure, time, session)
            return none
        if time < self.at and (other or figure < self.highest):
            return none
        if other or time - self.at > WINDOW_S * 1000:
            before = self.highest, self.at
            self._begin(figure, time, session)
            if not other and figure > before[0]:
                self.rise = (*before, time, tick["price"], Decimal(0), 0)
            elif not other and figure < before[0]:
                self.fall = before
            return none
        highest, since, correction = self.highest, self.at, None
        rise = fall = None
        if self.rise and self.rise[0] <= figure < highest:
            highest, since, at, price, shares, flags = self.rise
            if shares and at >= late_before:
                correction = at, price, -shares, flags | CORRECTION
        elif self.fall and figure >= self.fall[0]:
            highest, since = self.fall
        elif figure < highest / 2:
            self._begin(figure, time, session)
            self.fall = highest, since
            return none
        elif figure < highest:
            self.at = time
            return none
        else:
            rise, fall = self.rise, self.fall
        shares, flags = Decimal(0), 0
        if time - since <= WINDOW_S * 1000 and tick.get("size", -1) in NOTHING:
            shares = min(figure - highest, MOST_SHARES)
            flags = ACCRUED if shares and (time - since > 2_000 or _is_bar(tick)) else 0
        self._begin(figure, time, session)
        self.rise, self.fall = ((highest, since, time, tick["price"], shares, flags), None) if figure > highest else (rise, fall)
        return shares, flags, correction

    def _begin(self, figure: Decimal, time: int, session: str | None) -> None:
        self.highest, self.at, self.session, self.rise, self.fall = figure, max(self.at, time), session or self.session, None, None


@dataclass
class _Source:
    at: int
    lateness_ms: int
    """Fixed when it is first heard, and again where it was forgotten."""
    clock: int = 0
    closed: int | None = None
    newest: int = -1
    unsent: bool = False
    feeds: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Symbol -> the log's clock at its last acceptance and the newest event time, since it was numbered or had a cumulative volume."""
    numbers: dict[str, _Numbers] = field(default_factory=dict)
    counts: dict[str, _Count] = field(default_factory=dict)


@dataclass
class CleanModel:
    """One partition. Ticks are dicts of symbol, source, event_time, price and optionally size, seq, epoch, trade_id, day_volume, session, currency, gap_from
    and interval_s; punctuations have `punctuate` and source."""

    most_sources: int = 1_000
    most_symbols: int = 100_000
    most_trades: int = 50_000
    log_clock: int = 0
    sources: dict[str, _Source] = field(default_factory=dict)
    owner: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Symbol -> source, newest second, the log's clock at the last acceptance."""
    rejected: list[tuple[int, int, str]] = field(default_factory=list)
    closings: list[tuple[int, str, int, int]] = field(default_factory=list)
    lateness_ms: dict[str, int] = field(default_factory=dict)
    """The setting as it is now: by source where it is not LATENESS_MS."""
    trades: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Symbol -> seconds and prices of its trades in its present currency, as they came."""
    currency: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Symbol -> the last currency that was named, and the second with which it began (-1: the first)."""
    rows: list[tuple[int, int, int, float, int, int | None, float | None, int | None]] = field(default_factory=list)
    """Offset, index, event time, size, flags, gap and price before it, and gap_from of what `ticks.clean` has: ticks, and corrections before the tick that
    brought them."""
    ids: list[tuple[str, str, str, int]] = field(default_factory=list)
    """Source, symbol, trade_id and the log's clock of every accepted trade."""
    late_gaps: dict[str, list[int]] = field(default_factory=dict)
    """Symbol -> gap_from of the late ticks since its last accepted one: the next has the least of them."""
    seen: dict[str, int] = field(default_factory=dict)
    """How often which rule was used."""
    anew: int = 0
    """How many sources and symbols were heard again after they had been forgotten."""

    def record(self, offset: int, ts: int, item: list[dict[str, Any]] | dict[str, Any] | None) -> None:
        """Judges a record; None is one that is nothing of ours."""
        if item is None:
            self.rejected.append((offset, 0, "invalid_json"))
            return
        self.now = max(self.log_clock, ts)
        self.judged_at = self.now if self.log_clock else 0                # no record so far has a time: nothing is older than a day
        if isinstance(item, dict) and "punctuate" in item:
            self._punctuation(offset, ts, item["punctuate"], item["source"])
            return
        clocks: dict[str, int] = {}
        first: dict[str, int] = {}
        for index, given in enumerate(item if isinstance(item, list) else [item]):
            tick = given | {"symbol": normalize("NFC", given["symbol"])}
            reason = self._fault(ts, tick)
            name, second = tick["source"], tick["event_time"] // 1000
            held = self._holder(tick["symbol"])
            missed = self.late_gaps.get(tick["symbol"], []) if held and held[0] == name else []
            if reason:
                self.rejected.append((offset, index, reason))
                if reason == "late" and held and held[0] == name and tick.get("gap_from") is not None:
                    self.late_gaps[tick["symbol"]] = [*missed, tick["gap_from"]]
            else:
                self.late_gaps.pop(tick["symbol"], None)
                if missed:
                    tick["gap_from"] = min([*missed, tick.get("gap_from") or LAST_MS])
                    self._saw("gap of a late tick")
                self._accept(tick)
                flags, gap, before = self._series(tick)
                size, more, correction = self._shares(tick)
                if correction:
                    time, _, shares, its = correction
                    self.rows.append((offset, index, time, float(shares), its, None, None, None))
                away = tick.get("gap_from")
                flags |= AFTER_FEED_GAP if away is not None else 0
                self.rows.append((offset, index, tick["event_time"], size, flags | more, gap, before, away))
                first[name] = min(second, first.get(name, second))
            if reason in ("", "late"):
                clocks[name] = max(tick["event_time"], clocks.get(name, 0))
        for name in sorted(clocks):
            source = self.sources[name]
            source.clock = max(source.clock, clocks[name])
            self._close(offset, name, first.get(name), always=False)

    def _living(self, name: str) -> _Source | None:
        source = self.sources.get(name)
        return None if source is None or (self.judged_at - source.at > FORGET_MS and not source.unsent) else source

    def _holder(self, symbol: str) -> tuple[str, int, int] | None:
        held = self.owner.get(symbol)
        return None if held is None or self.judged_at - held[2] > FORGET_MS else held

    def _is_future(self, ts: int, time: int) -> bool:
        """A record without a time is compared with the log clock, generously."""
        return time > ts + FUTURE_MS if ts > 0 else 0 < self.log_clock < time - FORGET_MS

    def _fault(self, ts: int, tick: dict[str, Any]) -> str:
        symbol, name, second, seq = tick["symbol"], tick["source"], tick["event_time"] // 1000, tick.get("seq")
        source, held = self._living(name), self._holder(symbol)
        if not FIRST_MS <= tick["event_time"] <= LAST_MS or not FIRST_MS <= (tick.get("gap_from") or FIRST_MS) <= LAST_MS:
            return "out_of_range"
        if not 0 <= (tick.get("interval_s") or 0) <= LONGEST_INTERVAL_S:
            return "out_of_range"
        if self._is_future(ts, tick["event_time"]):
            return "future"
        if source and seq is not None and self._repeats(source, tick):
            return "duplicate"
        trade = name, symbol, tick.get("trade_id")
        if trade[2] and tick["price"] is not None and self._has(trade):
            return "duplicate"
        if held and held[0] != name and second - held[1] <= WINDOW_S:
            return "other_source"
        if source and source.closed is not None and second <= source.closed - REVISE_S:
            return "late"
        if held and symbol in self.currency:
            currency, since = self.currency[symbol]
            if second < since:
                return "late"                                            # that was in another currency
            other = tick.get("currency") and tick["currency"] != currency
            if other and (second < held[1] or (second == held[1] and source and source.closed is not None and second <= source.closed)):
                return "late"                                            # a row of the second is sent, or the series is further
        if source is None and sum(self._living(other) is not None for other in self.sources) >= self.most_sources:
            return "too_many_sources"
        if held is None and sum(self._holder(other) is not None for other in self.owner) >= self.most_symbols:
            return "too_many_symbols"
        return ""

    def _source(self, name: str) -> _Source:
        source = self._living(name)
        if source is None:
            self.anew += name in self.sources
            source = self.sources[name] = _Source(self.now, self.lateness_ms.get(name, LATENESS_MS))
        if not self.log_clock and self.now:
            for other in self.sources.values():
                other.at, other.feeds = self.now, {symbol: (self.now, newest) for symbol, (_, newest) in other.feeds.items()}
            self.ids = [(*trade[:3], self.now) for trade in self.ids]
            self.owner = {symbol: (owner, second, self.now) for symbol, (owner, second, _) in self.owner.items()}
        self.log_clock = source.at = self.now
        return source

    def _has(self, trade: tuple[str, str, str | None]) -> bool:
        return any(known[:3] == trade and self.judged_at - known[3] <= TRADES_MS for known in self.ids[-self.most_trades :])

    def _repeats(self, source: _Source, tick: dict[str, Any]) -> bool:
        """Whether the tick's number makes it a duplicate."""
        symbol, seq, epoch = tick["symbol"], tick["seq"], tick.get("epoch")
        numbers = source.numbers.get(symbol)
        if numbers is None or self.judged_at - source.feeds[symbol][0] > FORGET_MS:
            return False
        if epoch is not None and epoch != numbers.epoch:
            return numbers.epoch is not None and epoch < numbers.epoch
        if seq > numbers.last or (seq == numbers.last and _content(tick) not in numbers.ticks):
            return False
        if (numbers.epoch is None or epoch is None) and tick["event_time"] > source.feeds[symbol][1] and seq not in numbers.run[-1:]:
            run = [*numbers.run, seq] if not numbers.run or seq > numbers.run[-1] else [seq]
            if len(run) == RUN:
                return False                                             # accepted, unless something else is wrong with it
            numbers.run = run
        return True

    def _number(self, source: _Source, tick: dict[str, Any]) -> None:
        symbol, seq, epoch = tick["symbol"], tick["seq"], tick.get("epoch")
        numbers = source.numbers.get(symbol)
        known = numbers.ticks if numbers and numbers.last == seq and epoch in (None, numbers.epoch) else []
        self._saw("same number", bool(known))
        if numbers:
            self._saw("epoch", epoch is not None and numbers.epoch is not None and epoch > numbers.epoch)
            self._saw("begun again", seq < numbers.last and epoch in (None, numbers.epoch))
            epoch = numbers.epoch if epoch is None else epoch
        source.numbers[symbol] = _Numbers(seq, epoch, [*known, _content(tick)][-CONTENTS:])

    def _saw(self, rule: str, used: bool = True) -> None:
        self.seen[rule] = self.seen.get(rule, 0) + used

    def _accept(self, tick: dict[str, Any]) -> None:
        symbol, name, second, seq = tick["symbol"], tick["source"], tick["event_time"] // 1000, tick.get("seq")
        held = self._holder(symbol)
        self.anew += held is None and symbol in self.owner
        if held is None:
            self.trades.pop(symbol, None), self.currency.pop(symbol, None)
        source = self._source(name)
        if symbol in source.feeds and self.judged_at - source.feeds[symbol][0] > FORGET_MS:
            source.feeds.pop(symbol)
            source.numbers.pop(symbol, None)
            source.counts.pop(symbol, None)
        if seq is not None or tick.get("day_volume") is not None or symbol in source.feeds:
            newest = source.feeds.get(symbol, (0, 0))[1]
            source.feeds[symbol] = self.now, max(newest, tick["event_time"])     # it is heard of, with its number
        if seq is not None:
            self._number(source, tick)
        if tick.get("trade_id") and tick["price"] is not None:
            self.ids.append((name, symbol, tick["trade_id"], self.log_clock))
        self.owner[symbol] = name, max(second, held[1]) if held and held[0] == name else second, self.now
        source.newest, source.unsent = max(source.newest, second), True

    def _shares(self, tick: dict[str, Any]) -> tuple[float, int, tuple[int, float, Decimal, int] | None]:
        """Size and flags of an accepted tick, and what it corrects."""
        symbol, source = tick["symbol"], self.sources[tick["source"]]
        size, flags, correction = tick.get("size", 0), 0, None
        if tick.get("day_volume") is not None and tick["price"] is not None:
            late_before = 0 if source.closed is None else (source.closed - REVISE_S + 1) * 1000
            late_before = max(late_before, self.currency.get(symbol, ("", 0))[1] * 1000)
            shares, flags, correction = source.counts.setdefault(symbol, _Count()).take(tick, late_before)
            size = float(shares) if size in NOTHING or "size" not in tick else size
            self._saw("accrued", bool(flags))
            self._saw("correction", bool(correction))
        size = 0.0 if size in NOTHING else size
        self._saw("bar", bool(size and _is_bar(tick)))
        return size, flags | (ACCRUED if size and _is_bar(tick) else 0), correction

    def _series(self, tick: dict[str, Any]) -> tuple[int, int | None, float | None]:
        """Flags, gap and price before it of an accepted tick."""
        symbol, second, price, currency = tick["symbol"], tick["event_time"] // 1000, tick.get("price"), tick.get("currency")
        flags, gap, before = 0, None, None
        if currency:
            known, since = self.currency.get(symbol, (currency, -1))
            if currency != known:
                flags, since = 4, second
                self.trades.pop(symbol, None)
                count = self.sources[tick["source"]].counts.get(symbol)
                if count and count.rise:
                    count.rise = (*count.rise[:4], Decimal(0), 0)        # its shares are of the series before
            self.currency[symbol] = currency, since
        trades = self.trades.setdefault(symbol, [])
        if price is not None:
            newest = max((s for s, _ in trades), default=None)
            if newest is not None and GAP_S < second - newest <= MAX_GAP_S:
                gap, before = second - newest, [p for s, p in trades if s == newest][-1]
            trades.append((second, price))
        return flags, gap, before

    def _punctuation(self, offset: int, ts: int, second: int, name: str) -> None:
        if self._is_future(ts, second * 1000):
            self.rejected.append((offset, 0, "future"))
            return
        if self._living(name) is None and sum(self._living(other) is not None for other in self.sources) >= self.most_sources:
            self.rejected.append((offset, 0, "too_many_sources"))
            return
        source = self._source(name)
        source.clock = max(source.clock, (second + 1) * 1000 + source.lateness_ms)
        self._close(offset, name, None, always=True)

    def _close(self, offset: int, name: str, first: int | None, *, always: bool) -> None:
        source = self.sources[name]
        new = (source.clock - source.lateness_ms) // 1000 - 1
        if source.closed is None:
            source.closed = new if first is None else min(new, first - 1)
        if new > source.closed or always:
            self.closings.append((offset, name, source.closed, max(new, source.closed)))
            source.closed = max(new, source.closed)
            source.unsent = source.newest > source.closed


def _is_bar(tick: dict[str, Any]) -> bool:
    """Whether its shares were traded over more than 2 s: nobody knows in which second."""
    return (tick.get("interval_s") or 0) > 2


def _content(tick: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tick.items() if name not in ("received_at", "seq", "gap_from", "interval_s") and value is not None}

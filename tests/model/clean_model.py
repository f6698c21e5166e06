"""What `clean` must decide, slow and plain: whose a tick is, whether it is told again, late or one too many, what closes, and what is forgotten when.

It keeps everything for ever and never drops an entry: what is forgotten is worked out anew for each record. The log's clock is the greatest Kafka time of
a record of which something was accepted. An entry is forgotten for a record where the later of that clock, as it was before, and the record's own time is
more than a day after the log's clock at the entry's last acceptance; a source only where nothing that it has said is still to be sent.

Times are those of 1990 to 2109. A record that has no time (0 or less) makes no tick one of the future, and the first that has one dates all
before it. Symbols are the same where they look the same: they are kept in Unicode's form NFC.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from unicodedata import normalize

WINDOW_S, LATENESS_MS, REVISE_S, FUTURE_MS = 300, 200, 30, 2_000
GAP_S, MAX_GAP_S = 60, 8 * 3600
FORGET_MS = 24 * 3600 * 1000
FIRST_MS = int(datetime(1990, 1, 1, tzinfo=UTC).timestamp()) * 1000
LAST_MS = (1 << 42) - 1                                                  # in 2109


@dataclass
class _Source:
    at: int
    lateness_ms: int
    """Fixed when it is first heard, and again where it was forgotten."""
    clock: int = 0
    closed: int | None = None
    newest: int = -1
    unsent: bool = False
    seq: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Symbol -> last number, and the log's clock then."""


@dataclass
class CleanModel:
    """One partition. Ticks are dicts of symbol, source, event_time and optionally seq, price and currency; punctuations have `punctuate` and source."""

    most_sources: int = 1_000
    most_symbols: int = 100_000
    log_clock: int = 0
    sources: dict[str, _Source] = field(default_factory=dict)
    owner: dict[str, tuple[str, int, int]] = field(default_factory=dict)
    """Symbol -> source, newest second, the log's clock at the last acceptance."""
    rejected: list[tuple[int, int, str]] = field(default_factory=list)
    accepted: list[tuple[int, int]] = field(default_factory=list)
    closings: list[tuple[int, str, int, int]] = field(default_factory=list)
    lateness_ms: dict[str, int] = field(default_factory=dict)
    """The setting as it is now: by source where it is not LATENESS_MS."""
    trades: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    """Symbol -> seconds and prices of its trades in its present currency, as they came."""
    currency: dict[str, tuple[str, int]] = field(default_factory=dict)
    """Symbol -> the last currency that was named, and the second with which it began (-1: the first)."""
    carried: list[tuple[int, int, int | None, float | None]] = field(default_factory=list)
    """What each accepted tick carries: offset, flags, gap and price before it."""
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
            if reason:
                self.rejected.append((offset, index, reason))
            else:
                self._accept(tick)
                self.accepted.append((offset, index))
                self.carried.append((offset, *self._series(tick)))
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

    def _fault(self, ts: int, tick: dict[str, Any]) -> str:
        symbol, name, second, seq = tick["symbol"], tick["source"], tick["event_time"] // 1000, tick.get("seq")
        source, held = self._living(name), self._holder(symbol)
        if not FIRST_MS <= tick["event_time"] <= LAST_MS:
            return "out_of_range"
        if ts > 0 and tick["event_time"] > ts + FUTURE_MS:
            return "future"
        if source and seq is not None and symbol in source.seq:
            number, at = source.seq[symbol]
            if self.judged_at - at <= FORGET_MS and seq <= number:
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
                other.at, other.seq = self.now, {symbol: (number, self.now) for symbol, (number, _) in other.seq.items()}
            self.owner = {symbol: (owner, second, self.now) for symbol, (owner, second, _) in self.owner.items()}
        self.log_clock = source.at = self.now
        return source

    def _accept(self, tick: dict[str, Any]) -> None:
        symbol, name, second, seq = tick["symbol"], tick["source"], tick["event_time"] // 1000, tick.get("seq")
        held = self._holder(symbol)
        self.anew += held is None and symbol in self.owner
        if held is None:
            self.trades.pop(symbol, None), self.currency.pop(symbol, None)
        source = self._source(name)
        if seq is not None:
            source.seq[symbol] = seq, self.now
        elif symbol in source.seq and self.judged_at - source.seq[symbol][1] <= FORGET_MS:
            source.seq[symbol] = source.seq[symbol][0], self.now         # it is heard of, with its number
        self.owner[symbol] = name, max(second, held[1]) if held and held[0] == name else second, self.now
        source.newest, source.unsent = max(source.newest, second), True

    def _series(self, tick: dict[str, Any]) -> tuple[int, int | None, float | None]:
        """Flags, gap and price before it of an accepted tick."""
        symbol, second, price, currency = tick["symbol"], tick["event_time"] // 1000, tick.get("price"), tick.get("currency")
        flags, gap, before = 0, None, None
        if currency:
            known, since = self.currency.get(symbol, (currency, -1))
            if currency != known:
                flags, since = 4, second
                self.trades.pop(symbol, None)
            self.currency[symbol] = currency, since
        trades = self.trades.setdefault(symbol, [])
        if price is not None:
            newest = max((s for s, _ in trades), default=None)
            if newest is not None and GAP_S < second - newest <= MAX_GAP_S:
                gap, before = second - newest, [p for s, p in trades if s == newest][-1]
            trades.append((second, price))
        return flags, gap, before

    def _punctuation(self, offset: int, ts: int, second: int, name: str) -> None:
        if ts > 0 and second * 1000 > ts + FUTURE_MS:
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

"""What `clean` remembers of sources, symbols and feeds, how much of it at most, and when it is forgotten.

The log clock is the greatest Kafka time of an accepted record. A source or symbol is forgotten a day after its last accepted tick by that clock, or by the
Kafka time of the record that is judged where that is greater. Rejected records and snapshots change nothing. A Kafka time of 0 or less is unknown: where all
accepted records so far have none, nothing is forgotten, and the first one with a time dates what was accepted before it.
"""

from __future__ import annotations

from stockstream.transforms.cleaning.lags import SourceLags
from stockstream.transforms.cleaning.numbering import TradeIds, contents
from stockstream.transforms.cleaning.rejections import Fault
from stockstream.transforms.cleaning.state import Held, SourceState
from stockstream.transforms.timing import FORGET_MS, Lateness

MAX_SOURCES = 1_000
"""Living sources of a partition: the closings of one raw offset, one for each source, fit into a message. A feed is a source, not a connection or a run."""
MAX_SYMBOLS = 100_000
"""Living symbols of a partition; more than there are listed in the world."""
MAX_FEEDS = 200_000
"""Symbols of a partition whose numbering, day_volume or snapshot is remembered, counted once for each source."""

LIMITS = {"source": MAX_SOURCES, "symbol": MAX_SYMBOLS, "feed": MAX_FEEDS}


class Memory:
    """The living sources, symbols and feeds of one partition."""

    def __init__(self, lateness: Lateness) -> None:
        self.lateness = lateness
        """Of sources that are heard from now on."""
        self.arrived = 0.0
        """When the records arrived that are judged: a time of the worker's, which only `Idle` has. No verdict depends on it."""
        self.new_source = False
        """Whether a source was heard for the first time since the last snapshot."""
        self.log_clock = 0
        """Greatest Kafka time (epoch ms) among the records of which something was accepted; 0 before the first."""
        self.sources: dict[str, SourceState] = {}
        self.held: dict[str, Held] = {}
        """By symbol: its living series."""
        self.feed_count = 0
        """Feeds of all sources."""
        self.trade_ids = TradeIds()
        self._oldest = dict.fromkeys(LIMITS, 0)
        """By kind of entry: no entry's `ts` is below that."""

    def living_source(self, name: str, now: int) -> SourceState | None:
        """The source, unless it is unknown or forgotten."""
        source = self.sources.get(name)
        return None if source is None or source.forgotten(now) else source

    def heard_source(self, name: str, ts: int) -> SourceState:
        """The source, of which something is accepted in a record of this time."""
        if not self.log_clock and ts > 0:
            self._date(ts)
        now = self.log_clock = max(self.log_clock, ts)
        source = self.sources.get(name)
        if source is None or source.forgotten(now):
            self.feed_count -= len(source.feeds) if source is not None else 0
            self.new_source = True
            source = self.sources[name] = SourceState(lateness_ms=self.lateness.of(name))
        source.ts, source.heard = now, self.arrived
        return source

    def forgotten_by(self, ts: int) -> int:
        """The time by which a record of this time is judged: what is older by more than a day is forgotten."""
        return max(self.log_clock, ts) if self.log_clock else 0

    def _date(self, ts: int) -> None:
        for source in self.sources.values():
            source.ts = ts
            for feed in source.feeds.values():
                feed.ts = ts
        for held in self.held.values():
            held.ts = ts
        self.trade_ids.date(ts)

    def lags_of(self, name: str) -> SourceLags | None:
        """What is counted of a source; None where it is not known."""
        source = self.sources.get(name)
        return None if source is None else source.lags

    def take_lags(self) -> dict[str, SourceLags]:
        """By source, how far its ticks came behind its watermark since the last call."""
        found: dict[str, SourceLags] = {}
        for name, source in self.sources.items():
            if source.lags.ticks or source.lags.rejected:
                found[name], source.lags = source.lags, SourceLags()
                found[name].lateness_ms = source.lateness_ms
        return found

    def _counts(self) -> dict[str, int]:
        return {"source": len(self.sources), "symbol": len(self.held), "feed": self.feed_count}

    def crowded(self, kind: str, now: int) -> bool:
        """Whether as many entries of a kind are alive at `now` as there may be: those that are forgotten make room, dropped already or not."""
        limit = LIMITS[kind]
        if self._counts()[kind] < limit:
            return False
        self.purge()
        if now - self._oldest[kind] <= FORGET_MS:
            return self._counts()[kind] >= limit                         # none is forgotten
        if kind == "source":
            return sum(not source.forgotten(now) for source in self.sources.values()) >= limit
        if kind == "symbol":
            return sum(now - held.ts <= FORGET_MS for held in self.held.values()) >= limit
        living = [source for source in self.sources.values() if not source.forgotten(now)]
        return sum(now - feed.ts <= FORGET_MS for source in living for feed in source.feeds.values()) >= limit

    def make_room(self) -> None:
        """Drops what is forgotten where more is kept than may be."""
        if len(self.sources) > MAX_SOURCES or len(self.held) > MAX_SYMBOLS or self.feed_count > MAX_FEEDS:
            self.purge()

    def digest(self) -> None:
        """Digests the ticks that feeds still hold, as their stored form needs."""
        for source in self.sources.values():
            for feed in source.feeds.values():
                contents(feed)

    def purge(self) -> None:
        """Drops what is forgotten by `log_clock`: every later verdict treats it as forgotten too."""
        self.trade_ids.purge(self.log_clock)
        now, oldest = self.log_clock, self._oldest
        if now - min(oldest.values()) <= FORGET_MS:
            return
        self.sources = {name: source for name, source in self.sources.items() if not source.forgotten(now)}
        for source in self.sources.values():
            if any(now - feed.ts > FORGET_MS for feed in source.feeds.values()):
                source.feeds = {symbol: feed for symbol, feed in source.feeds.items() if now - feed.ts <= FORGET_MS}
        self.held = {symbol: held for symbol, held in self.held.items() if now - held.ts <= FORGET_MS}
        self.feed_count = sum(len(source.feeds) for source in self.sources.values())
        oldest["source"] = min((source.ts for source in self.sources.values()), default=now)
        oldest["symbol"] = min((held.ts for held in self.held.values()), default=now)
        oldest["feed"] = min((feed.ts for source in self.sources.values() for feed in source.feeds.values()), default=now)


def too_many_sources(name: str) -> Fault:
    return "too_many_sources", (
        f"{name} would be one more than the {MAX_SOURCES} sources that this partition has heard within the last day: "
        "write under the name of the feed, not of a connection or run"
    )


def too_many_symbols() -> Fault:
    return "too_many_symbols", (
        f"this partition has {MAX_SYMBOLS} symbols, or {MAX_FEEDS} that sources number, heard within the last day: "
        "use more partitions (another STOCKSTREAM_TOPIC_PREFIX with a larger STOCKSTREAM_PARTITIONS)"
    )

"""What `clean` decides about one tick: whether it is accepted, and with how many shares.

`Judge` accepts a tick into `memory` and the rows of the next frame, or returns why not. What most ticks are has a short way, `_accept_plain`, with the same
verdicts: a test holds both to each other.
"""

from __future__ import annotations

import logging
from collections import Counter

import msgspec
from msgspec import UNSET

from stockstream.records import ACCRUED, AFTER_FEED_GAP, CORRECTION, NEW_SERIES, Tick
from stockstream.transforms.cleaning import day_volume, numbering
from stockstream.transforms.cleaning.day_volume import is_interval
from stockstream.transforms.cleaning.limits import MAX_INT, MAX_PRICE, MAX_SIZE, MAX_TIME, MIN_PRICE, MIN_TIME, NO_DATA
from stockstream.transforms.cleaning.memory import Memory, too_many_sources, too_many_symbols
from stockstream.transforms.cleaning.rejections import Fault, drop_placeholders, extras_fit, normalise, range_fault
from stockstream.transforms.cleaning.rows import AcceptedTicks
from stockstream.transforms.cleaning.series import begin_series, changes_currency, keep_gap, series_fault, take_gap, take_trade
from stockstream.transforms.cleaning.state import DIGESTED, Feed, Held, SourceState, digest
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.shares import rounded
from stockstream.transforms.timing import FORGET_MS, FUTURE_MS, WINDOW_S

logger = logging.getLogger(__name__)
ABOUT_THE_FEED = ("gap_from", "interval_s")
"""Fields of a tick that are about its feed, and not about the market: two snapshots that differ in nothing else are the same."""
_OF_SNAPSHOTS = tuple(name for name in Tick.__struct_fields__ if name not in ABOUT_THE_FEED)
_encode = msgspec.json.Encoder().encode


class Judge:
    """Judges the ticks of one partition in the order of the log."""

    def __init__(self, partition: int, partitions: int, memory: Memory, *, revise_s: int) -> None:
        self.partition, self.partitions = partition, partitions
        self.revise_s = revise_s
        self.memory = memory
        self.noted: Counter[tuple[str, str]] = Counter()
        """What was unusual about accepted ticks and duplicates, and what foreign messages were ignored, by subject (`volume`, `numbering`, `ignored`) and
        reason, for the metrics: the caller empties it."""
        self._rows = AcceptedTicks()

    def _accept_plain(self, tick: Tick, ts: int) -> SourceState | None:
        """Accepts what most ticks are, a tick of a known symbol and source with nothing unusual about it; None leaves it to `_judge`, unchanged.

        The same verdicts in a third of the time: a test holds both to each other.
        """
        symbol, name, event_time = tick.symbol, tick.source, tick.event_time
        memory = self.memory
        held = memory.held.get(symbol)
        source = memory.sources.get(name)
        price, size, seq = tick.price, tick.size, tick.seq
        clock = memory.log_clock
        now = ts if ts > clock else clock
        remembered = now - FORGET_MS
        if (
            not clock
            or held is None
            or source is None
            or held.source != name
            or held.ts < remembered                                      # and so is its source's
            or (type(size) is not int and type(size) is not float)
            or not 0 <= size <= MAX_SIZE
            or size in NO_DATA
            or (size if price is None else not MIN_PRICE <= price <= MAX_PRICE)
            or not source.late_before <= event_time <= ts + FUTURE_MS
            or not MIN_TIME <= event_time < MAX_TIME
            or event_time < held.since
            or held.gap_from
            or tick.day_volume is not None
            or tick.snapshot
        ):
            return None
        trade, extras = None, tick.has_extras()
        if extras:
            drop_placeholders(tick)
            if not extras_fit(tick) or (tick.currency and tick.currency != held.currency):
                return None
            if tick.trade_id and price is not None:
                trade = numbering.trade_key(name, symbol, tick.trade_id)
                if memory.trade_ids.has(trade, now):
                    return None
            self._rows.bare = False
        if seq is not None:
            feed = source.feeds.get(symbol)
            if feed is None or not feed.seq < seq <= MAX_INT or feed.snapshot or feed.ts < remembered:
                return None
            if tick.epoch is not None and not 0 <= tick.epoch == feed.epoch:
                return None
            feed.ts = now
            numbering.accept_next(tick, feed)
        elif tick.epoch is not None or (source.feeds and symbol in source.feeds):
            return None
        if trade is not None:
            memory.trade_ids.add(trade, now)
        if type(size) is float:
            tick.size = rounded(size)
        second = event_time // 1000
        if price is not None and (gap := take_trade(held, second, price)):
            self._rows.gap_before_next(gap)
        if extras and (flags := flags_of(tick)):
            self._rows.flag_next(flags)
        if second > held.newest:
            held.newest = second
        if second > source.newest:
            source.newest = second
        held.ts = source.ts = memory.log_clock = now
        source.heard, source.unsent = memory.arrived, True
        return source

    def _judge(self, tick: Tick, ts: int, offset: int, index: int) -> Fault | None:
        """Accepts the tick and sets its size to the shares traded, or returns why not."""
        memory = self.memory
        normalise(tick)
        fault = range_fault(tick)
        if fault is not None:
            return fault
        symbol, name, event_time = tick.symbol, tick.source, tick.event_time
        now = memory.forgotten_by(ts)
        held = memory.held.get(symbol)
        if held is None:
            home = home_partition(symbol, self.partitions)
            if home != self.partition:
                form = "" if symbol.isascii() else " in Unicode's form NFC"
                return "wrong_partition", f"the home of {symbol} is partition {home}: murmur2 of the symbol{form} (librdkafka: partitioner=murmur2_random)"
        elif now - held.ts > FORGET_MS:
            held = None
        if in_future(event_time, ts, now):
            return "future", f"event_time is {ahead_of(event_time, ts, now)}"
        known = memory.living_source(name, now)
        kept = tick.seq is not None or tick.snapshot or tick.day_volume is not None
        feed = known.feeds.get(symbol) if known is not None else None
        if feed is not None and now - feed.ts > FORGET_MS:
            feed = None
        numbered: numbering.Numbered = "rises"
        if feed is not None and kept:
            if tick.seq is not None and (numbered := numbering.judge(tick, feed)) == "duplicate":
                numbering.add_duplicate(tick, feed)
                return "duplicate", numbering.duplicate_detail(tick, feed)
            if tick.snapshot and feed.snapshot and feed.snapshot == digest_of(tick):
                return "duplicate", "the snapshot equals the one before"
        trade = None if not tick.trade_id or tick.price is None else numbering.trade_key(name, symbol, tick.trade_id)
        if trade is not None and memory.trade_ids.has(trade, now):
            self.noted["numbering", "trade_id"] += 1
            return "duplicate", f"trade_id {tick.trade_id} was accepted within the last {numbering.TRADE_IDS_MS // 1000} s"
        second = event_time // 1000
        if held is not None and held.source != name and second - held.newest <= WINDOW_S:
            return "other_source", f"{symbol} belongs to source {held.source} until {WINDOW_S} s after its newest second, {held.newest}"
        if known is not None and event_time < known.late_before:
            fault = "late", f"second {second} closed more than {self.revise_s} s ago: {known.closed} is closed"
        elif held is not None:
            fault = series_fault(held, known, tick)
        if fault is not None:
            keep_gap(held, tick)
            return fault
        if known is None and memory.crowded("source", now):
            return too_many_sources(name)
        if (held is None and memory.crowded("symbol", now)) or (feed is None and kept and memory.crowded("feed", now)):
            return too_many_symbols()

        source = memory.heard_source(name, ts)
        now = memory.log_clock
        begins = False
        if held is None:
            held = memory.held[symbol] = Held(name, second, now)
        else:
            if changes_currency(held, tick):
                begin_series(held, tick)
                begins = True
                if feed is not None and feed.step is not None:
                    feed.step = msgspec.structs.replace(feed.step, size=0.0)     # its shares are of the series before: nothing can take them back
            if held.source != name:
                held.source, held.newest, held.gap_from = name, second, 0
            elif second > held.newest:
                held.newest = second
            held.ts = now
        if second > source.newest:
            source.newest = second
        source.unsent = True
        if feed is None and kept:
            memory.feed_count += symbol not in source.feeds
            feed = source.feeds[symbol] = Feed()
        if trade is not None:
            memory.trade_ids.add(trade, now)
        self._rows.bare = False
        counted = day_volume.Counted()
        if feed is not None:
            if tick.seq is not None:
                self._note_numbering(tick, feed, numbered, offset)
                numbering.accept(tick, feed, numbered)
            feed.ts, feed.newest = now, max(feed.newest, event_time)
            feed.snapshot = digest_of(tick) if tick.snapshot else b""
            counted = day_volume.count(tick, feed)
            self._note_volume(tick, counted, max(source.late_before, held.since), offset, index)
        if tick.size is not UNSET and tick.size in NO_DATA:
            self.noted["volume", "no_size"] += 1
            tick.size = UNSET
        tick.size = counted.size if tick.size is UNSET else rounded(float(tick.size))
        held.currency = tick.currency or held.currency
        take_gap(held, tick)
        if tick.price is not None and (gap := take_trade(held, second, tick.price)):
            self._rows.gap_before_next(gap)
        if flags := flags_of(tick) | (NEW_SERIES if begins else 0):
            self._rows.flag_next(flags)
        memory.make_room()
        return None

    def _note_numbering(self, tick: Tick, feed: Feed, numbered: numbering.Numbered, offset: int) -> None:
        if numbered == "rises":
            return
        self.noted["numbering", numbered] += 1
        if numbered == "begins_again":
            logger.warning(
                "ticks.raw[%d] offset %d: the numbering of %s in source %s has begun again: its last seq was %d, and now %d ticks in a row rise to %d while "
                "time goes on. The first %d of them were rejected as duplicate. A producer that writes an epoch with each tick loses none",
                self.partition, offset, tick.symbol, tick.source, feed.seq, numbering.RUN, tick.seq, numbering.RUN - 1,
            )  # fmt: skip

    def _note_volume(self, tick: Tick, counted: day_volume.Counted, late_before: int, offset: int, index: int) -> None:
        """Counts what a cumulative volume has brought besides shares, and corrects a rise that it takes back, if its second can still be revised."""
        if counted.reason:
            self.noted["volume", counted.reason] += 1
        step = counted.taken_back
        if step is not None and step.event_time >= late_before:
            row = Tick(symbol=tick.symbol, source=tick.source, event_time=step.event_time, price=step.price, size=-step.size)
            self._rows.add(row, offset, index, CORRECTION | (ACCRUED if step.accrued else 0))
        elif step is not None:
            self.noted["volume", "not_revised"] += 1
        if counted.accrued:
            self._rows.flag_next(ACCRUED)


def flags_of(tick: Tick) -> int:
    """The flags that follow from the tick's own fields, once its size is the shares that were traded in it."""
    return (AFTER_FEED_GAP if tick.gap_from is not None else 0) | (ACCRUED if tick.size and is_interval(tick) else 0)


def in_future(time: int, ts: int, now: int) -> bool:
    """Whether a time is further ahead of its record's Kafka time than clocks differ.

    A Kafka time of 0 or less is unknown: then a day ahead of the log clock `now` is too far, if that is known.
    """
    return time > ts + FUTURE_MS if ts > 0 else 0 < now < time - FORGET_MS


def ahead_of(time: int, ts: int, now: int) -> str:
    """How far a time is in the future, and of what, in words."""
    return f"{time - ts} ms ahead of the record's Kafka time" if ts > 0 else f"{time - now} ms ahead of the log, and the record has no time"


def digest_of(tick: Tick) -> bytes:
    fields = {name: value for name in _OF_SNAPSHOTS if (value := getattr(tick, name)) is not UNSET and (value is not None or name in DIGESTED)}
    if tick.day_volume is not None and tick.day_volume.is_integer():
        fields["day_volume"] = int(tick.day_volume)                      # as it was digested when it was an integer
    return digest(_encode(fields | {"received_at": None}))

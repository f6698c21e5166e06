"""What `clean` decides about every tick of one partition of `ticks.raw`: valid, duplicate, late, whose, which clock, what closes.

`Cleaner` is a state machine over the log. Its verdicts are a function of the records alone, in offset order, so any cutting of the log into chunks
gives the same. It judges in this order: shape and range, `wrong_partition`, `future`, `duplicate`, `other_source`, `late`; only accepted ticks change
its state. A record's ticks are judged by the clock as it was before the record; then the clock moves and closes what it has passed.

The log's own clock (`Cleaner.clock`) is the greatest Kafka time of an accepted record. What a source or symbol was known for is forgotten a day after its
last accepted tick by that clock, or by the Kafka time of the record that is judged where that is greater: rejected records and snapshots change nothing.
"""

from __future__ import annotations

import logging
import zlib
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET
from numpy.typing import NDArray

from stockstream.errors import StateError
from stockstream.records import TICKS_SCHEMA, Closing, Punctuation, Rejection, Tick
from stockstream.transforms.cleaning import state as cleaning_state
from stockstream.transforms.cleaning.columns import EXTRAS, MANY, Columns, Ints, Record, read
from stockstream.transforms.cleaning.limits import MAX_INT, MAX_PRICE, MAX_SIZE, MAX_SOURCE, MAX_TIME, MIN_PRICE
from stockstream.transforms.cleaning.rejections import Fault, decoding_fault, extras_fit, range_fault, rejection
from stockstream.transforms.cleaning.state import SLOTS, VERSION, Feed, Held, Source, State, digest
from stockstream.transforms.frames import Frame, empty
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.timing import FORGET_MS, FUTURE_MS, WINDOW_S

logger = logging.getLogger(__name__)

MAX_SOURCES = 1_000
"""Living sources of a partition: the closings of one raw offset, one for each source, fit into a message. A feed is a source, not a connection or a run."""
MAX_SYMBOLS = 100_000
"""Living symbols of a partition; more than there are listed in the world."""
MAX_FEEDS = 200_000
"""Symbols of a partition whose numbering, day_volume or snapshot is remembered, counted once for each source."""
MAX_ARRAY = 100_000
"""Items of one array: each of them may become a rejection of its own."""
FRAME_TICKS = 4_000
RUN = 500
"""More records than that are not decoded as any JSON on the chance that they can be."""


@dataclass(slots=True)
class _Rows:
    """Accepted ticks that wait for their frame: whole batches, and behind them ticks, as lists of all: a list of tuples costs twice the time.

    Where `indexes` ends early, the rest is 0.
    """

    batches: list[pa.RecordBatch] = field(default_factory=list)
    ticks: list[Tick] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    indexes: list[int] = field(default_factory=list)
    bare: bool = True
    """Whether certainly none of `ticks` has one of `EXTRAS`."""

    def __len__(self) -> int:
        count: int = sum(batch.num_rows for batch in self.batches)
        return count + len(self.ticks)

    def add_record(self, offset: int, ticks: list[Tick], indexes: list[int]) -> None:
        self.indexes += [0] * (len(self.ticks) - len(self.indexes))
        self.indexes += indexes
        self.ticks += ticks
        self.offsets += [offset] * len(ticks)

    def add_batch(self, batch: pa.RecordBatch) -> None:
        self._gather()
        self.batches.append(batch)

    def cut(self, offset: int) -> None:
        """Takes back the ticks of this offset and those behind it."""
        count = bisect_left(self.offsets, offset)
        del self.ticks[count:], self.offsets[count:], self.indexes[count:]

    def take(self) -> pa.RecordBatch:
        """All rows as TICKS_SCHEMA; none are left."""
        self._gather()
        batches, self.batches = self.batches, []
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
            "offset": self.offsets,
            "index": self.indexes + [0] * (count - len(self.indexes)),
        }
        if not self.bare:
            columns |= {name: list(map(attrgetter(name), ticks)) for name in EXTRAS}
        self.batches.append(pa.RecordBatch.from_arrays(
            [pa.array(columns[column.name], column.type) if column.name in columns else pa.nulls(count, column.type) for column in TICKS_SCHEMA],
            schema=TICKS_SCHEMA,
        ))  # fmt: skip
        self.ticks, self.offsets, self.indexes, self.bare = [], [], [], True


@dataclass(frozen=True, slots=True)
class _Move:
    """What plain ticks of one source do to it: for each of their records that closes something its offset, and the last second closed before and by it."""

    source: Source
    name: str
    clock: int
    newest: int
    ts: int
    heard: int
    closings: list[Closing]
    ends_closed: bool
    """Whether the last record closes something."""


class _OddRecord(Exception):
    """The first of the records that cannot be taken at once."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def _none(odd: NDArray[np.bool_], record: Ints) -> None:
    """Raises `_OddRecord` where a tick is odd; `record` has the number of each one's."""
    if odd.any():
        raise _OddRecord(int(record[odd].min()))


@dataclass(frozen=True, slots=True)
class Idle:
    """A source with something to close, should it be quiet: what a punctuation would say, and Kafka's time (ms) when it was heard last."""

    source: str
    second: int
    heard: int


_decode_tick = msgspec.json.Decoder(Tick | list[Tick]).decode
_decode_one = msgspec.json.Decoder(Tick).decode
_decode_raw = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_punctuation = msgspec.json.Decoder(Punctuation).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What the decoder raises: for a text that is not UTF-8 an error of Python's, not one of its own."""
_encode = msgspec.json.Encoder().encode


_LIMITS = {"source": MAX_SOURCES, "symbol": MAX_SYMBOLS, "feed": MAX_FEEDS}


class Cleaner:
    """Judges the records of one partition in offset order.

    `chunk` takes consecutive records and returns the rejections; what was accepted and closed waits until `frame` takes it. `snapshot` is exact at
    `expect`: restored from it and given the log from there, a Cleaner says the same again.

    Args:
        partition: number of this partition.
        partitions: how many the topic has.
        lateness_ms, revise_s: belong to the log; a snapshot made with others is refused.
        log: id of the raw log's life.
    """

    def __init__(self, partition: int, partitions: int, *, lateness_ms: int, revise_s: int, log: str, expect: int = -1) -> None:
        self.partition, self.partitions = partition, partitions
        self.lateness_ms, self.revise_s = lateness_ms, revise_s
        self.log = log
        self.expect = expect
        """Raw offset that the next record should have; -1 before the first."""
        self.frame_from = expect
        """First raw offset that the next frame covers."""
        self.last_record = (0, 0)
        """Kafka time and CRC-32 of the last record, to know the log again."""
        self.clock = 0
        """Greatest Kafka time (epoch ms) among the records of which something was accepted; 0 before the first."""
        self.accepted = self.rejected = 0
        self._sources: dict[str, Source] = {}
        self._held: dict[str, Held] = {}
        self._feed_count = 0
        self._oldest = dict.fromkeys(_LIMITS, 0)
        """By kind of entry: no entry's `ts` is below that."""
        self._slot = 0
        """Where the next snapshot that is too large for a message goes."""
        self._rows = _Rows()
        self._closings: list[Closing] = []
        self._only_trades = True
        """Whether the last records that were taken at once had nothing but trades; only how the next are tried first."""
        self._decoded = True
        """Whether the last such had to be decoded as any JSON: else that is not tried with many, of which only one will be odd."""

    # -- the log ------------------------------------------------------------

    def chunk(self, records: Sequence[Record]) -> list[Rejection]:
        """Judges records (ascending offsets, from `expect` on) and returns the rejections, in log order."""
        rejections: list[Rejection] = []
        if not records:
            return rejections
        if self.expect < 0:
            self.expect = self.frame_from = records[0].offset
        before = len(self._rows)
        at, step, alone = 0, len(records), 0
        while at < len(records):
            some = records[at : at + step]
            taken = self._try_many(some) if len(some) >= MANY else 0
            at += taken
            if taken == len(some):
                step, alone = 4 * step, 0
                continue
            alone = 1 if taken >= MANY else max(MANY, 2 * alone)         # where many are odd it is not tried again and again
            self._each(records[at : at + alone], rejections)
            at += alone
            step = 2 * max(MANY, taken)
        self.expect = records[-1].offset + 1
        self.last_record = (records[-1].timestamp, zlib.crc32(records[-1].value or b""))
        self.accepted += len(self._rows) - before
        self.rejected += len(rejections)
        return rejections

    def _each(self, records: Sequence[Record], rejections: list[Rejection]) -> None:
        """Judges one record after the other. One that raises what nobody foresaw is rejected as a whole, and the next is judged."""
        rows, rest, record = self._rows, iter(records), records[0]
        while True:
            try:
                for record in rest:
                    try:
                        item = _decode_tick(record.value)  # type: ignore[arg-type]
                    except (*_UNREADABLE, TypeError):
                        item = self._salvage(record, rejections)
                    if type(item) is not Tick:
                        if item is not None:
                            self._several(item, record, rejections)
                        continue
                    offset, ts = record.offset, record.timestamp
                    fault = None
                    source = self._accept_plain(item, ts)
                    if source is None:
                        fault = self._judge(item, ts)
                        if fault is not None:
                            rejections.append(self._reject(fault, offset, 0, record.value))
                            if fault[0] != "late":
                                continue
                        source = self._sources[item.source]
                    if fault is None:
                        rows.ticks.append(item)
                        rows.offsets.append(offset)
                    event_time = item.event_time
                    if event_time > source.clock:
                        source.clock = event_time
                        if event_time >= source.closes_at:
                            self._close(source, item.source, offset, None if fault else event_time // 1000)
                return
            except MemoryError:
                raise                                                    # says nothing of the record
            except Exception as error:  # noqa: BLE001 (whatever it is, it stays with this record; the line in the log has its traceback)
                self._reject_unforeseen(record, error, rejections)

    def _reject_unforeseen(self, record: Record, error: Exception, rejections: list[Rejection]) -> None:
        """Rejects a record that could not be judged, in the place of all that it has told so far."""
        place = "ticks.raw[%d] offset %d: a record could not be judged and is rejected (internal_error)"
        logger.error(place, self.partition, record.offset, exc_info=error)
        self._rows.cut(record.offset)
        while rejections and rejections[-1].offset == record.offset:
            rejections.pop()
        detail = f"{type(error).__name__}: {error}: a fault of stockstream, not of the record; please report it with this message"
        rejections.append(self._reject(("internal_error", detail), record.offset, 0, record.value))

    # -- many records at once -----------------------------------------------

    def _try_many(self, records: Sequence[Record]) -> int:
        """As `_accept_many`, which changes nothing before all is known to be well: where it raises what nobody foresaw, none are taken."""
        try:
            return self._accept_many(records)
        except MemoryError:
            raise
        except Exception:
            logger.exception("ticks.raw[%d] offsets %d to %d: judging them one by one", self.partition, records[0].offset, records[-1].offset)
            return 0

    def _accept_many(self, records: Sequence[Record]) -> int:
        """Accepts records whose ticks are all plain, of known symbols and sources, and none late, from the first record on; returns how many.

        The next one is left to `_each`, or fewer than `MANY` are. The same verdicts in half the time: a test holds both to each other.
        """
        if not self._held:
            return 0                                                     # at the log's beginning no symbol is known
        plain = read(records, trades_first=self._only_trades, any_json=len(records) <= RUN or self._decoded)
        if plain is None:
            return 0
        self._only_trades, self._decoded = plain.only_trades, plain.decoded
        now = np.maximum(np.maximum.accumulate(plain.timestamp), self.clock)       # the log's clock after each record
        last = int(now[-1])
        try:
            if not plain.alone:
                _none(np.bincount(plain.record) > MAX_ARRAY, np.arange(len(plain.offset)))
            held = self._holders(plain, last)
            feeds = self._numbered(plain, held, last)
            moves = [self._move(plain, number, now) for number in range(len(plain.sources))]
        except _OddRecord as odd:
            return self._accept_many(records[: odd.number]) if odd.number >= MANY else 0
        batch = plain.batch()

        newest, heard = np.zeros(len(held), np.int64), np.empty(len(held), np.int64)
        np.maximum.at(newest, plain.symbol, plain.event_time // 1000)
        heard[plain.symbol] = now[plain.record]                                   # of several the last stays
        self._rows.add_batch(batch)
        self.clock = last
        for holder, second, ts in zip(held, newest.tolist(), heard.tolist(), strict=True):
            holder.newest, holder.ts = max(holder.newest, second), ts
        for (feed, seq), ts in zip(feeds, heard.tolist(), strict=False):
            feed.seq, feed.ts = seq, ts
        closings: list[Closing] = []
        for move in moves:
            source = move.source
            source.clock, source.ts, source.heard = move.clock, move.ts, move.heard
            source.newest, source.unsent = max(source.newest, move.newest), True
            if move.closings:
                source.closed = move.closings[-1].second
                self._settle(source)
                source.unsent = not move.ends_closed or source.newest > source.closed
                closings += move.closings
        self._closings += sorted(closings, key=lambda closing: (closing.offset, closing.source))
        return len(plain.offset)

    def _holders(self, plain: Columns, now: int) -> list[Held]:
        """The living series of each symbol. Raises `_OddRecord` where one is not known or may be forgotten, or belongs to another source."""
        found = [self._held.get(symbol) for symbol in plain.symbols]
        numbers = {name: number for number, name in enumerate(plain.sources)}
        remembered = now - FORGET_MS
        owners = [-1 if holder is None or holder.ts < remembered else numbers.get(holder.source, -1) for holder in found]
        if plain.source is not None or any(owners):
            _none(np.array(owners)[plain.symbol] != (0 if plain.source is None else plain.source), plain.record)
        return [holder for holder in found if holder is not None]

    def _numbered(self, plain: Columns, held: list[Held], now: int) -> list[tuple[Feed, int]]:
        """What numbers each symbol, and its last number, where the ticks have numbers. Raises `_OddRecord` where one does not rise, or is the first."""
        if plain.seq is None:
            return []
        found = [self._sources[holder.source].feeds.get(symbol) if holder.source in self._sources else None
                 for symbol, holder in zip(plain.symbols, held, strict=True)]  # fmt: skip
        unknown = np.array([feed is None or bool(feed.snapshot) or now - feed.ts > FORGET_MS for feed in found])
        _none(unknown[plain.symbol], plain.record)
        feeds = [feed for feed in found if feed is not None]
        order = plain.symbol.argsort(kind="stable")
        symbol, seq = plain.symbol[order], plain.seq[order]
        begins = np.flatnonzero(np.diff(symbol, prepend=-1))
        before = np.concatenate([seq[:1], seq[:-1]])
        before[begins] = [feed.seq for feed in feeds]
        _none(seq <= before, plain.record[order])
        return list(zip(feeds, seq[np.append(begins[1:], len(seq)) - 1].tolist(), strict=True))

    def _move(self, plain: Columns, number: int, now: Ints) -> _Move:
        """What the ticks of one source do to it. Raises `_OddRecord` where one of them is late or ahead, or the source is not known for sure."""
        name = plain.sources[number]
        source = self._sources.get(name)
        times, record = plain.event_time, plain.record
        if plain.source is not None:
            mine = plain.source == number
            times, record = times[mine], record[mine]
        heard = plain.timestamp[record]
        if (
            source is None or source.closed is None or (source.feeds and plain.seq is None)
            or int(now[-1]) - source.ts > FORGET_MS
        ):  # fmt: skip
            raise _OddRecord(int(record[0]))
        _none(times > heard + FUTURE_MS, record)
        begins = np.arange(len(times)) if plain.alone else np.flatnonzero(np.diff(record, prepend=-1))
        single = len(begins) == len(times)
        clock = np.maximum(np.maximum.accumulate(times if single else np.maximum.reduceat(times, begins)), source.clock)
        closed = np.maximum((clock - self.lateness_ms) // 1000 - 1, source.closed)
        before = np.concatenate([[source.closed], closed[:-1]])
        open_from = (before - self.revise_s + 1) * 1000
        _none(times < (open_from if single else np.repeat(open_from, np.diff(begins, append=len(times)))), record)
        at = np.flatnonzero(closed > before)
        told = zip(plain.offset[record[begins[at]]].tolist(), before[at].tolist(), closed[at].tolist(), strict=True)
        closings = [Closing(offset, name, after, second) for offset, after, second in told]
        return _Move(source, name, int(clock[-1]), int(times.max()) // 1000, int(now[record[-1]]), int(heard[-1]), closings, bool(closed[-1] > before[-1]))

    # -- one record at a time -----------------------------------------------

    def _accept_plain(self, tick: Tick, ts: int) -> Source | None:
        """Accepts what most ticks are, a tick of a known symbol and source with nothing unusual about it; None leaves it to `_judge`, unchanged.

        The same verdicts in a third of the time: a test holds both to each other.
        """
        symbol, name, event_time = tick.symbol, tick.source, tick.event_time
        held = self._held.get(symbol)
        source = self._sources.get(name)
        price, size, seq = tick.price, tick.size, tick.seq
        now = ts if ts > self.clock else self.clock
        remembered = now - FORGET_MS
        if (
            held is None
            or source is None
            or held.source != name
            or held.ts < remembered                                      # and so is its source's
            or type(size) is not int
            or not 0 <= size <= MAX_SIZE
            or (size if price is None else not MIN_PRICE <= price <= MAX_PRICE)
            or not source.late_before <= event_time <= ts + FUTURE_MS
            or not 0 < event_time < MAX_TIME
            or tick.day_volume is not None
            or tick.snapshot
        ):
            return None
        if tick.has_extras():
            if not extras_fit(tick):
                return None
            self._rows.bare = False
        if seq is not None:
            feed = source.feeds.get(symbol)
            if feed is None or not feed.seq < seq <= MAX_INT or feed.snapshot or feed.ts < remembered:
                return None
            feed.seq, feed.ts = seq, now
        elif source.feeds and symbol in source.feeds:
            return None
        second = event_time // 1000
        if second > held.newest:
            held.newest = second
        if second > source.newest:
            source.newest = second
        held.ts = source.ts = self.clock = now
        source.heard, source.unsent = ts, True
        return source

    def _several(self, item: Any, record: Record, rejections: list[Rejection]) -> None:
        """A frame, as ticks or as [(index, tick or fault)], or a punctuation."""
        offset, ts, value = record.offset, record.timestamp, record.value
        if type(item) is Punctuation:
            self._punctuate(item, offset, ts, value, rejections)
            return
        if not item:
            rejections.append(self._reject(("invalid_shape", "a frame without ticks"), offset, 0, value))
            return
        if len(item) > MAX_ARRAY:
            fault = "invalid_shape", f"an array of {len(item)} items: write several records of at most {MAX_ARRAY}"
            rejections.append(self._reject(fault, offset, 0, value))
            return
        ticks: list[Tick] = []
        indexes: list[int] = []
        clocks: dict[str, int] = {}
        earliest: dict[str, int] = {}
        texts: list[msgspec.Raw] | None = None
        for index, tick in enumerate(item) if type(item[0]) is Tick else item:
            why: Fault | None = tick if type(tick) is tuple else None if self._accept_plain(tick, ts) else self._judge(tick, ts)
            if why is not None:
                if texts is None:
                    texts = _decode_raw(value)  # type: ignore[arg-type]
                rejections.append(self._reject(why, offset, index, bytes(texts[index])))
                if why[0] != "late":
                    continue
            name, event_time = tick.source, tick.event_time
            if why is None:
                ticks.append(tick)
                indexes.append(index)
                if event_time < earliest.get(name, MAX_TIME):
                    earliest[name] = event_time
            if event_time > clocks.get(name, 0):
                clocks[name] = event_time
        self._rows.add_record(offset, ticks, indexes)
        for name in sorted(clocks):
            source = self._sources[name]
            source.clock = max(source.clock, clocks[name])
            if source.clock >= source.closes_at:
                self._close(source, name, offset, earliest[name] // 1000 if name in earliest else None)

    def _punctuate(self, item: Punctuation, offset: int, ts: int, value: bytes | None, rejections: list[Rejection]) -> None:
        fault = None
        if not 0 < item.punctuate < MAX_TIME // 1000:
            fault = "out_of_range", f"punctuate must be epoch seconds, is {item.punctuate}"
        elif not 0 < len(item.source) <= MAX_SOURCE:
            fault = "out_of_range", f"source must have 1 to {MAX_SOURCE} characters, has {len(item.source)}"
        elif item.punctuate * 1000 > ts + FUTURE_MS:
            fault = "future", f"punctuate is {item.punctuate * 1000 - ts} ms ahead of the record's Kafka time"
        now = max(self.clock, ts)
        if fault is None and self._known(item.source, now) is None and self._crowded("source", now):
            fault = _too_many_sources(item.source)
        if fault:
            rejections.append(self._reject(fault, offset, 0, value))
            return
        source = self._source(item.source, ts)
        source.clock = max(source.clock, (item.punctuate + 1) * 1000 + self.lateness_ms)
        self._close(source, item.source, offset, None, punctuation=True)
        self._make_room()

    def _known(self, name: str, now: int) -> Source | None:
        """The source, where it is known and not forgotten."""
        source = self._sources.get(name)
        return None if source is None or source.forgotten(now) else source

    def _source(self, name: str, ts: int) -> Source:
        """The source, of which something is accepted in a record of this time."""
        now = self.clock = max(self.clock, ts)
        source = self._sources.get(name)
        if source is None or source.forgotten(now):
            self._feed_count -= len(source.feeds) if source is not None else 0
            source = self._sources[name] = Source()
        source.ts, source.heard = now, ts
        return source

    def _judge(self, tick: Tick, ts: int) -> Fault | None:
        """Accepts the tick and sets its size to what the row says, or says why not."""
        fault = range_fault(tick)
        if fault is not None:
            return fault
        symbol, name, event_time = tick.symbol, tick.source, tick.event_time
        now = max(self.clock, ts)
        held = self._held.get(symbol)
        if held is None:
            home = home_partition(symbol, self.partitions)
            if home != self.partition:
                return "wrong_partition", f"the home of {symbol} is partition {home}: murmur2 of the symbol (librdkafka: partitioner=murmur2_random)"
        elif now - held.ts > FORGET_MS:
            held = None
        if event_time > ts + FUTURE_MS:
            return "future", f"event_time is {event_time - ts} ms ahead of the record's Kafka time"
        known = self._known(name, now)
        kept = tick.seq is not None or tick.snapshot or tick.day_volume is not None
        feed = known.feeds.get(symbol) if known is not None else None
        if feed is not None and now - feed.ts > FORGET_MS:
            feed = None
        if feed is not None and kept:
            if tick.seq is not None and tick.seq <= feed.seq:
                return "duplicate", f"seq {tick.seq} is not above the last accepted, {feed.seq}"
            if tick.snapshot and feed.snapshot and feed.snapshot == _digest_of(tick):
                return "duplicate", "the snapshot equals the one before"
        second = event_time // 1000
        if held is not None and held.source != name and second - held.newest <= WINDOW_S:
            return "other_source", f"{symbol} belongs to source {held.source} until {WINDOW_S} s after its newest second, {held.newest}"
        if known is not None and event_time < known.late_before:
            return "late", f"second {second} closed more than {self.revise_s} s ago: {known.closed} is closed"
        if known is None and self._crowded("source", now):
            return _too_many_sources(name)
        if (held is None and self._crowded("symbol", now)) or (feed is None and kept and self._crowded("feed", now)):
            return "too_many_symbols", (
                f"this partition has {MAX_SYMBOLS} symbols, or {MAX_FEEDS} that sources number, heard within the last day: "
                "use more partitions (another STOCKSTREAM_TOPIC_PREFIX with a larger STOCKSTREAM_PARTITIONS)"
            )

        source = self._source(name, ts)
        if held is None:
            self._held[symbol] = Held(name, second, now)
        else:
            if held.source != name:
                held.source, held.newest = name, second
            elif second > held.newest:
                held.newest = second
            held.ts = now
        if second > source.newest:
            source.newest = second
        source.unsent = True
        if feed is None and kept:
            self._feed_count += symbol not in source.feeds
            feed = source.feeds[symbol] = Feed()
        if feed is None:
            tick.size = int(tick.size)  # type: ignore[arg-type]
        else:
            feed.ts = now
            if tick.seq is not None:
                feed.seq = tick.seq
            feed.snapshot = _digest_of(tick) if tick.snapshot else b""
            tick.size = _size(tick, feed)
        self._rows.bare = False
        self._make_room()
        return None

    # -- what it remembers ---------------------------------------------------

    def _counts(self) -> dict[str, int]:
        return {"source": len(self._sources), "symbol": len(self._held), "feed": self._feed_count}

    def _crowded(self, kind: str, now: int) -> bool:
        """Whether as many entries of a kind are alive at `now` as there may be: those that are forgotten make room, dropped already or not."""
        limit = _LIMITS[kind]
        if self._counts()[kind] < limit:
            return False
        self._purge()
        if now - self._oldest[kind] <= FORGET_MS:
            return self._counts()[kind] >= limit                         # none is forgotten
        if kind == "source":
            return sum(not source.forgotten(now) for source in self._sources.values()) >= limit
        if kind == "symbol":
            return sum(now - held.ts <= FORGET_MS for held in self._held.values()) >= limit
        living = [source for source in self._sources.values() if not source.forgotten(now)]
        return sum(now - feed.ts <= FORGET_MS for source in living for feed in source.feeds.values()) >= limit

    def _make_room(self) -> None:
        """Drops what is forgotten where more is kept than may be."""
        if len(self._sources) > MAX_SOURCES or len(self._held) > MAX_SYMBOLS or self._feed_count > MAX_FEEDS:
            self._purge()

    def _purge(self) -> None:
        """Drops what is forgotten by `clock`, which every later verdict has forgotten too."""
        now, oldest = self.clock, self._oldest
        if now - min(oldest.values()) <= FORGET_MS:
            return
        self._sources = {name: source for name, source in self._sources.items() if not source.forgotten(now)}
        for source in self._sources.values():
            if any(now - feed.ts > FORGET_MS for feed in source.feeds.values()):
                source.feeds = {symbol: feed for symbol, feed in source.feeds.items() if now - feed.ts <= FORGET_MS}
        self._held = {symbol: held for symbol, held in self._held.items() if now - held.ts <= FORGET_MS}
        self._feed_count = sum(len(source.feeds) for source in self._sources.values())
        oldest["source"] = min((source.ts for source in self._sources.values()), default=now)
        oldest["symbol"] = min((held.ts for held in self._held.values()), default=now)
        oldest["feed"] = min((feed.ts for source in self._sources.values() for feed in source.feeds.values()), default=now)

    def _close(self, source: Source, name: str, offset: int, first: int | None, *, punctuation: bool = False) -> None:
        """The clock has moved: closes what it has passed. `first` is the earliest second that the record brought for this source."""
        new = (source.clock - self.lateness_ms) // 1000 - 1
        if source.closed is None:
            source.closed = new if first is None else min(new, first - 1)
        if new > source.closed or punctuation:
            after = source.closed
            source.closed = max(after, new)
            self._closings.append(Closing(offset, name, after, source.closed))
            source.unsent = source.newest > source.closed
        self._settle(source)

    def _settle(self, source: Source) -> None:
        """Sets what follows from the last closed second."""
        assert source.closed is not None
        source.closes_at = (source.closed + 2) * 1000 + self.lateness_ms
        source.late_before = (source.closed - self.revise_s + 1) * 1000

    def _salvage(self, record: Record, rejections: list[Rejection]) -> Any:
        """What can be had of a record that is not plainly a tick or a frame of ticks."""
        value = record.value
        if not value:
            rejections.append(self._reject(("empty_message", "the record has no value"), record.offset, 0, value))
            return None
        if b'"punctuate"' in value:
            try:
                return _decode_punctuation(value)
            except msgspec.ValidationError as error:
                if not value.lstrip().startswith(b"[") and b'"symbol"' not in value:
                    rejections.append(self._reject(decoding_fault(error), record.offset, 0, value))
                    return None
            except _UNREADABLE:
                pass                                                     # said below, as of any record
        try:
            texts = _decode_raw(value)
        except _UNREADABLE:
            try:
                _decode_tick(value)
            except _UNREADABLE as error:
                rejections.append(self._reject(decoding_fault(error), record.offset, 0, value))
            return None
        several: list[tuple[int, Any]] = []
        for index, text in enumerate(texts):
            try:
                several.append((index, _decode_one(text)))
            except _UNREADABLE as error:
                several.append((index, decoding_fault(error)))
        return several

    def _reject(self, fault: Fault, offset: int, index: int, value: bytes | None) -> Rejection:
        return rejection(fault, self.partition, offset, index, value)

    # -- what it sends ------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether a frame should go now: seconds have closed, or many ticks wait."""
        return bool(self._closings) or len(self._rows) >= FRAME_TICKS

    @property
    def waiting(self) -> int:
        """Offsets that no frame covers yet."""
        return self.expect - self.frame_from

    def frame(self) -> Frame | None:
        """Takes what waits as the next frame of the log; None where no offset waits."""
        if self.expect <= self.frame_from:
            return None
        frame = Frame(self.log, self.frame_from, self.expect - 1, tuple(self._closings), self._rows.take(), clock=min(self.clock, MAX_TIME))
        self.frame_from = self.expect
        self._closings = []
        return frame

    def idle(self) -> Iterable[Idle]:
        """Sources with an open second that has ticks, or a revision not sent."""
        return [Idle(name, source.newest, source.heard) for name, source in self._sources.items() if source.unsent and source.newest >= 0]

    # -- its state ----------------------------------------------------------

    def snapshot(self) -> bytes:
        """The state at `frame_from`, which must be `expect`: take the frame first."""
        if self.expect != self.frame_from:
            raise StateError(f"partition {self.partition}: snapshot at {self.expect} while a frame from {self.frame_from} waits")
        self._purge()
        state = State(
            v=VERSION, expect=self.expect, log=self.log, lateness_ms=self.lateness_ms, revise_s=self.revise_s, partitions=self.partitions,
            last_record=self.last_record, accepted=self.accepted, rejected=self.rejected, clock=self.clock,
        )  # fmt: skip
        state.put(self._sources, self._held)
        return cleaning_state.encoded(state)

    def records(self, term: int) -> list[tuple[bytes, bytes]]:
        """The snapshot as records for the changelog, key and value, under the writer's term."""
        found = cleaning_state.records(self.snapshot(), term, self._slot)
        if len(found) > 1:
            self._slot = (self._slot + 1) % SLOTS
        return found

    @staticmethod
    def readable(key: bytes, value: bytes) -> str:
        """Empty where this is a record of `clean`'s changelog, else why it is not. Raises `StateError` where a newer stockstream wrote it."""
        return cleaning_state.readable(key, value)

    @staticmethod
    def complete(records: Mapping[bytes, bytes]) -> bool:
        """Whether some snapshot is there as a whole. Raises `StateError` where a newer stockstream wrote one."""
        return cleaning_state.furthest(records) is not None

    @classmethod
    def restore(cls, partition: int, partitions: int, records: Mapping[bytes, bytes], *, lateness_ms: int, revise_s: int) -> Cleaner:
        """The Cleaner of the furthest complete snapshot in a changelog's last records by key.

        Raises `StateError` where there is none, it belongs to other settings, or a newer stockstream wrote one.
        """
        try:
            found = cleaning_state.furthest(records)
            if found is None:
                raise StateError("its changelog holds no complete snapshot: use another STOCKSTREAM_TOPIC_PREFIX, or delete the changelog to begin a new log")
            state, slot = found
            cleaning_state.require_settings(state, lateness_ms=lateness_ms, revise_s=revise_s, partitions=partitions)
            cleaner = cls(partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=state.log, expect=state.expect)
            cleaner._sources, cleaner._held = state.sources(), state.held()
        except StateError as error:
            raise StateError(f"clean, partition {partition}: {error}") from error
        cleaner.last_record, cleaner.clock = state.last_record, state.clock
        cleaner.accepted, cleaner.rejected = state.accepted, state.rejected
        cleaner._slot = (slot + 1) % SLOTS                                # never into the pieces that this was made of
        cleaner._feed_count = sum(len(source.feeds) for source in cleaner._sources.values())
        for source in cleaner._sources.values():
            if source.closed is not None:
                cleaner._settle(source)
        return cleaner


def _too_many_sources(name: str) -> Fault:
    return "too_many_sources", (
        f"{name} would be one more than the {MAX_SOURCES} sources that this partition has heard within the last day: "
        "write under the name of the feed, not of a connection or run"
    )


def _digest_of(tick: Tick) -> bytes:
    return digest(_encode(msgspec.structs.replace(tick, received_at=None)))


def _size(tick: Tick, feed: Feed) -> int:
    """Shares traded in this tick: as said, or what the day's cumulative volume rose by since the symbol's last trade.

    The first cumulative figure says nothing of this tick (0). One below the last restarts the count where the session or the UTC day is another; otherwise
    it is out of order or a correction (0, and the highest figure stays).
    """
    volume = tick.day_volume
    if volume is None or tick.price is None:
        return 0 if tick.size is UNSET else int(tick.size)
    before, day = feed.day_volume, feed.day_time // 86_400_000
    restarted = before >= 0 and (tick.session != feed.session or tick.event_time // 86_400_000 > day) and volume < before
    derived = 0 if before < 0 else volume if restarted else max(0, volume - before)
    if volume >= before or restarted:
        feed.day_volume, feed.session = volume, tick.session
        feed.day_time = max(feed.day_time, tick.event_time)
    return min(derived, MAX_SIZE) if tick.size is UNSET else int(tick.size)

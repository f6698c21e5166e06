"""What `clean` decides about every tick of one partition of `ticks.raw`: valid, duplicate, late, whose, which clock, what closes.

`Cleaner` is a state machine over the log. Its verdicts are a function of the records alone, in offset order, so any cutting of the log into chunks
gives the same. It judges in this order: shape and range, `wrong_partition`, `future`, `duplicate`, `other_source`, `late`; only accepted ticks change
its state. A record's ticks are judged by the clock as it was before the record; then the clock moves and closes what it has passed.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import UNSET
from numpy.typing import NDArray

from stockstream.errors import StateError
from stockstream.records import TICKS_SCHEMA, Closing, Punctuation, Rejection, Tick
from stockstream.transforms.columns import MANY, Columns, Ints, Record, read
from stockstream.transforms.frames import Frame, empty
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.ranges import (
    MAX_DAY_VOLUME,
    MAX_INT,
    MAX_PRICE,
    MAX_QUOTE_SIZE,
    MAX_SIZE,
    MAX_SOURCE,
    MAX_TEXT,
    MAX_TIME,
    MIN_PRICE,
    symbol_fault,
)  # fmt: skip

WINDOW_S = 300
FUTURE_MS = 2_000
FORGET_MS = 24 * 3600 * 1000
MAX_REJECTED_BYTES = 100_000
"""Of an original in its rejection: even where each byte becomes six characters of JSON, it fits into a message."""
FRAME_TICKS = 4_000
RUN = 500
"""More records than that are not decoded as any JSON on the chance that they can be."""
COMPRESSED_FROM = 500_000
"""Bytes of a snapshot, which must fit into a message: 60 a symbol that is numbered, 350 where its last snapshot is kept; compressed a fifth."""


@dataclass(slots=True)
class _Feed:
    """What one source said last of one symbol, kept where numbering, cumulative volume or snapshots need it."""

    seq: int = -1
    day_volume: int = -1
    day_time: int = 0
    session: str | None = None
    snapshot: bytes = b""
    ts: int = 0


@dataclass(slots=True)
class _Source:
    """A source's clock in this partition. Where nothing is closed yet, `closed` is None."""

    clock: int = 0
    closed: int | None = None
    closes_at: int = 0
    late_before: int = 0
    ts: int = 0
    newest: int = -1
    unsent: bool = False
    feeds: dict[str, _Feed] = field(default_factory=dict)

    def forgotten(self, ts: int) -> bool:
        """Whether it was not heard for a day of the log's time; what is still to be closed keeps it."""
        return ts - self.ts > FORGET_MS and not self.unsent


@dataclass(slots=True)
class _Held:
    """The living series of a symbol: its source, newest second, and Kafka's time of the last tick."""

    source: str
    newest: int
    ts: int


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
    """Whether certainly none of `ticks` has a quote, exchange or condition."""

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
            columns |= {
                "bid": [tick.bid for tick in ticks],
                "ask": [tick.ask for tick in ticks],
                "bid_size": [tick.bid_size for tick in ticks],
                "ask_size": [tick.ask_size for tick in ticks],
                "exchange": [tick.exchange for tick in ticks],
                "condition": [tick.condition for tick in ticks],
            }
        self.batches.append(pa.RecordBatch.from_arrays(
            [pa.array(columns[column.name], column.type) if column.name in columns else pa.nulls(count, column.type) for column in TICKS_SCHEMA],
            schema=TICKS_SCHEMA,
        ))  # fmt: skip
        self.ticks, self.offsets, self.indexes, self.bare = [], [], [], True


@dataclass(frozen=True, slots=True)
class _Move:
    """What plain ticks of one source do to it: for each of their records that closes something its offset, and the last second closed before and by it."""

    source: _Source
    name: str
    clock: int
    newest: int
    ts: int
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
_pack = msgspec.msgpack.Encoder().encode


def _range_fault(tick: Tick) -> tuple[str, str] | None:
    """Why a well-formed tick cannot be used, as (reason, detail)."""
    price, size = tick.price, tick.size
    if (fault := symbol_fault(tick.symbol)) is not None:
        return "out_of_range", fault
    if not 0 < len(tick.source) <= MAX_SOURCE:
        return "out_of_range", f"source must have 1 to {MAX_SOURCE} characters, has {len(tick.source)}"
    for name in ("exchange", "condition", "currency", "session"):
        value = getattr(tick, name)
        if value is not None and len(value) > MAX_TEXT:
            return "out_of_range", f"{name} must have at most {MAX_TEXT} characters, has {len(value)}"
    if not 0 < tick.event_time < MAX_TIME:
        return "out_of_range", f"event_time must be epoch milliseconds, is {tick.event_time}"
    if price is not None and not MIN_PRICE <= price <= MAX_PRICE:
        return "out_of_range", f"price must be above 0 and at most {MAX_PRICE:.0f}, is {price}"
    if size is UNSET:
        if tick.day_volume is None:
            return "missing_field", "size may be missing only where day_volume is given"
    else:
        if isinstance(size, float) and not size.is_integer():
            return "invalid_type", f"size must be a whole number of shares, is {size}"
        if not 0 <= size <= MAX_SIZE:
            return "out_of_range", f"size must be 0 to {MAX_SIZE}, is {size}"
        if price is None and size:
            return "size_without_price", f"a quote (price null) has size 0, this has {size}"
    for name in ("bid", "ask"):
        value = getattr(tick, name)
        if value is not None and not MIN_PRICE <= value <= MAX_PRICE:
            return "out_of_range", f"{name} must be above 0 and at most {MAX_PRICE:.0f} (null where there is none), is {value}"
    for name in ("bid_size", "ask_size"):
        value = getattr(tick, name)
        if value is not None and not 0 <= value <= MAX_QUOTE_SIZE:
            return "out_of_range", f"{name} must be 0 to {MAX_QUOTE_SIZE:.0f}, is {value}"
    if tick.day_volume is not None and not 0 <= tick.day_volume <= MAX_DAY_VOLUME:
        return "out_of_range", f"day_volume must be 0 to {MAX_DAY_VOLUME}, is {tick.day_volume}"
    if tick.seq is not None and not 0 <= tick.seq <= MAX_INT:
        return "out_of_range", f"seq must be 0 to {MAX_INT}, is {tick.seq}"
    return None


def _extras_fit(tick: Tick) -> bool:
    """Whether `_range_fault` finds nothing in the tick's quote and texts."""
    bid, ask, bid_size, ask_size = tick.bid, tick.ask, tick.bid_size, tick.ask_size
    return (
        (bid is None or MIN_PRICE <= bid <= MAX_PRICE)
        and (ask is None or MIN_PRICE <= ask <= MAX_PRICE)
        and (bid_size is None or 0 <= bid_size <= MAX_QUOTE_SIZE)
        and (ask_size is None or 0 <= ask_size <= MAX_QUOTE_SIZE)
        and (tick.exchange is None or len(tick.exchange) <= MAX_TEXT)
        and (tick.condition is None or len(tick.condition) <= MAX_TEXT)
        and (tick.currency is None or len(tick.currency) <= MAX_TEXT)
        and (tick.session is None or len(tick.session) <= MAX_TEXT)
    )


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _reason(error: Exception) -> tuple[str, str]:
    """The rejection's (reason, detail) for what the decoder said."""
    text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if not isinstance(error, msgspec.ValidationError):
        return "invalid_json", text
    at = text.partition(" - at `$")[2].rstrip("`")
    if text.startswith("Expected `object") and "." not in at:
        return "invalid_shape", text
    if text.startswith("Object missing required field") or ", got `null`" in text:
        return "missing_field", text
    if "out of range" in text:
        return "out_of_range", text
    return "invalid_type", text


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
        self.accepted = self.rejected = 0
        self._sources: dict[str, _Source] = {}
        self._held: dict[str, _Held] = {}
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
            taken = self._accept_many(some) if len(some) >= MANY else 0
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
        """Judges one record after the other."""
        rows = self._rows
        for record in records:
            try:
                item = _decode_tick(record.value)  # type: ignore[arg-type]
            except (*_UNREADABLE, TypeError):
                item = self._salvage(record, rejections)
            if type(item) is Tick:
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
            elif item is not None:
                self._several(item, record, rejections)

    # -- many records at once -----------------------------------------------

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
        try:
            held = self._holders(plain)
            feeds = self._numbered(plain, held, int(plain.timestamp.max()))
            moves = [self._move(plain, number) for number in range(len(plain.sources))]
        except _OddRecord as odd:
            return self._accept_many(records[: odd.number]) if odd.number >= MANY else 0

        newest, heard = np.zeros(len(held), np.int64), np.empty(len(held), np.int64)
        np.maximum.at(newest, plain.symbol, plain.event_time // 1000)
        heard[plain.symbol] = plain.timestamp[plain.record]                       # of several the last stays
        for holder, second, ts in zip(held, newest.tolist(), heard.tolist(), strict=True):
            holder.newest, holder.ts = max(holder.newest, second), ts
        for (feed, seq), ts in zip(feeds, heard.tolist(), strict=False):
            feed.seq, feed.ts = seq, ts
        closings: list[Closing] = []
        for move in moves:
            source = move.source
            source.clock, source.ts, source.newest, source.unsent = move.clock, move.ts, max(source.newest, move.newest), True
            if move.closings:
                source.closed = move.closings[-1].second
                self._settle(source)
                source.unsent = not move.ends_closed or source.newest > source.closed
                closings += move.closings
        self._closings += sorted(closings, key=lambda closing: (closing.offset, closing.source))
        self._rows.add_batch(plain.batch())
        return len(plain.offset)

    def _holders(self, plain: Columns) -> list[_Held]:
        """The living series of each symbol. Raises `_OddRecord` where one is not known, or belongs to another source."""
        found = [self._held.get(symbol) for symbol in plain.symbols]
        numbers = {name: number for number, name in enumerate(plain.sources)}
        owners = [-1 if holder is None else numbers.get(holder.source, -1) for holder in found]
        if plain.source is not None or any(owners):
            _none(np.array(owners)[plain.symbol] != (0 if plain.source is None else plain.source), plain.record)
        return [holder for holder in found if holder is not None]

    def _numbered(self, plain: Columns, held: list[_Held], now: int) -> list[tuple[_Feed, int]]:
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

    def _move(self, plain: Columns, number: int) -> _Move:
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
            or int(heard.max()) - min(source.ts, int(heard.min())) > FORGET_MS
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
        return _Move(source, name, int(clock[-1]), int(times.max()) // 1000, int(heard[-1]), closings, bool(closed[-1] > before[-1]))

    # -- one record at a time -----------------------------------------------

    def _accept_plain(self, tick: Tick, ts: int) -> _Source | None:
        """Accepts what most ticks are, a tick of a known symbol and source with nothing unusual about it; None leaves it to `_judge`, unchanged.

        The same verdicts in a third of the time: a test holds both to each other.
        """
        symbol, name, event_time = tick.symbol, tick.source, tick.event_time
        held = self._held.get(symbol)
        source = self._sources.get(name)
        price, size, seq = tick.price, tick.size, tick.seq
        remembered = ts - FORGET_MS
        if (
            held is None
            or source is None
            or held.source != name
            or type(size) is not int
            or not 0 <= size <= MAX_SIZE
            or (size if price is None else not MIN_PRICE <= price <= MAX_PRICE)
            or not source.late_before <= event_time <= ts + FUTURE_MS
            or not 0 < event_time < MAX_TIME
            or source.ts < remembered
            or tick.day_volume is not None
            or tick.snapshot
        ):
            return None
        if (
            tick.bid is not None or tick.ask is not None or tick.bid_size is not None or tick.ask_size is not None
            or tick.exchange is not None or tick.condition is not None or tick.currency is not None or tick.session is not None
        ):  # fmt: skip
            if not _extras_fit(tick):
                return None
            self._rows.bare = False
        if seq is not None:
            feed = source.feeds.get(symbol)
            if feed is None or not feed.seq < seq <= MAX_INT or feed.snapshot or feed.ts < remembered:
                return None
            feed.seq, feed.ts = seq, ts
        elif source.feeds:
            return None
        second = event_time // 1000
        if second > held.newest:
            held.newest = second
        if second > source.newest:
            source.newest = second
        held.ts = source.ts = ts
        source.unsent = True
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
        ticks: list[Tick] = []
        indexes: list[int] = []
        clocks: dict[str, int] = {}
        earliest: dict[str, int] = {}
        texts: list[msgspec.Raw] | None = None
        for index, tick in enumerate(item) if type(item[0]) is Tick else item:
            fault = tick if type(tick) is tuple else None if self._accept_plain(tick, ts) else self._judge(tick, ts)
            if fault is not None:
                if texts is None:
                    texts = _decode_raw(value)  # type: ignore[arg-type]
                rejections.append(self._reject(fault, offset, index, bytes(texts[index])))
                if fault[0] != "late":
                    continue
            name, event_time = tick.source, tick.event_time
            if fault is None:
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
        if fault:
            rejections.append(self._reject(fault, offset, 0, value))
            return
        source = self._source(item.source, ts)
        source.clock = max(source.clock, (item.punctuate + 1) * 1000 + self.lateness_ms)
        self._close(source, item.source, offset, None, punctuation=True)

    def _source(self, name: str, ts: int) -> _Source:
        source = self._sources.get(name)
        if source is None or source.forgotten(ts):
            source = self._sources[name] = _Source()
        source.ts = ts
        return source

    def _judge(self, tick: Tick, ts: int) -> tuple[str, str] | None:
        """Accepts the tick and sets its size to what the row says, or says why not as (reason, detail)."""
        fault = _range_fault(tick)
        if fault is not None:
            return fault
        symbol, name, event_time = tick.symbol, tick.source, tick.event_time
        held = self._held.get(symbol)
        if held is None:
            home = home_partition(symbol, self.partitions)
            if home != self.partition:
                return "wrong_partition", f"the home of {symbol} is partition {home}: murmur2 of the symbol (librdkafka: partitioner=murmur2_random)"
        if event_time > ts + FUTURE_MS:
            return "future", f"event_time is {event_time - ts} ms ahead of the record's Kafka time"
        known = self._sources.get(name)
        if known is not None and known.forgotten(ts):
            known = None
        feed = None
        if tick.seq is not None or tick.snapshot or tick.day_volume is not None:
            feed = known.feeds.get(symbol) if known is not None else None
            if feed is not None and ts - feed.ts > FORGET_MS:
                feed = None
            if feed is not None:
                if tick.seq is not None and tick.seq <= feed.seq:
                    return "duplicate", f"seq {tick.seq} is not above the last accepted, {feed.seq}"
                if tick.snapshot and feed.snapshot and feed.snapshot == _snapshot_of(tick):
                    return "duplicate", "the snapshot equals the one before"
        second = event_time // 1000
        if held is not None and held.source != name and second - held.newest <= WINDOW_S and ts - held.ts <= FORGET_MS:
            return "other_source", f"{symbol} belongs to source {held.source} until {WINDOW_S} s after its newest second, {held.newest}"
        if known is not None and event_time < known.late_before:
            return "late", f"second {second} closed more than {self.revise_s} s ago: {known.closed} is closed"

        source = self._source(name, ts)
        if held is None:
            self._held[symbol] = _Held(name, second, ts)
        else:
            if held.source != name:
                held.source, held.newest = name, second
            elif second > held.newest:
                held.newest = second
            held.ts = ts
        if second > source.newest:
            source.newest = second
        source.unsent = True
        if feed is None and (tick.seq is not None or tick.snapshot or tick.day_volume is not None or source.feeds):
            feed = source.feeds.get(symbol)
            if feed is None or ts - feed.ts > FORGET_MS:
                feed = source.feeds[symbol] = _Feed()
        if feed is None:
            tick.size = int(tick.size)  # type: ignore[arg-type]
        else:
            feed.ts = ts
            if tick.seq is not None:
                feed.seq = tick.seq
            feed.snapshot = _snapshot_of(tick) if tick.snapshot else b""
            tick.size = _size(tick, feed)
        self._rows.bare = False
        return None

    def _close(self, source: _Source, name: str, offset: int, first: int | None, *, punctuation: bool = False) -> None:
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

    def _settle(self, source: _Source) -> None:
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
                    rejections.append(self._reject(_reason(error), record.offset, 0, value))
                    return None
            except _UNREADABLE:
                pass                                                     # said below, as of any record
        try:
            texts = _decode_raw(value)
        except _UNREADABLE:
            try:
                _decode_tick(value)
            except _UNREADABLE as error:
                rejections.append(self._reject(_reason(error), record.offset, 0, value))
            return None
        several: list[tuple[int, Any]] = []
        for index, text in enumerate(texts):
            try:
                several.append((index, _decode_one(text)))
            except _UNREADABLE as error:
                several.append((index, _reason(error)))
        return several

    def _reject(self, fault: tuple[str, str], offset: int, index: int, value: bytes | None) -> Rejection:
        text, coded = None, None
        reason, detail = fault
        if value is not None:
            kept = value[:MAX_REJECTED_BYTES]
            if len(value) > len(kept):
                detail = f"{detail} (the first {MAX_REJECTED_BYTES} of {len(value)} bytes follow)"
            try:
                text = value.decode() if kept is value else kept.decode(errors="ignore" if _is_text(value) else "strict")
            except UnicodeDecodeError:
                coded = base64.b64encode(kept).decode()
        return Rejection(reason=reason, detail=detail, partition=self.partition, offset=offset, index=index, value=text, value_base64=coded)

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
        frame = Frame(self.log, self.frame_from, self.expect - 1, tuple(self._closings), self._rows.take())
        self.frame_from = self.expect
        self._closings = []
        return frame

    def idle(self) -> Iterable[Idle]:
        """Sources with an open second that has ticks, or a revision not sent."""
        return [Idle(name, source.newest, source.ts) for name, source in self._sources.items() if source.unsent and source.newest >= 0]

    # -- its state ----------------------------------------------------------

    def snapshot(self) -> bytes:
        """The state at `frame_from`, which must be `expect`: take the frame first."""
        if self.expect != self.frame_from:
            raise StateError(f"partition {self.partition}: snapshot at {self.expect} while a frame from {self.frame_from} waits")
        self._forget()
        names = list(self._sources)
        index = {name: i for i, name in enumerate(names)}
        data = _pack([
            self.expect, self.log, self.lateness_ms, self.revise_s, self.partitions, self.last_record, self.accepted, self.rejected,
            [(name, s.clock, s.closed, s.ts, s.newest, s.unsent, list(s.feeds),
              [(f.seq, f.day_volume, f.day_time, f.session, f.snapshot, f.ts) for f in s.feeds.values()])
             for name, s in self._sources.items()],
            list(self._held), [index.get(h.source, -1) if h.source in index else h.source for h in self._held.values()],
            [h.newest for h in self._held.values()], [h.ts for h in self._held.values()],
        ])  # fmt: skip
        return data if len(data) < COMPRESSED_FROM else zlib.compress(data, 1)

    @classmethod
    def restore(cls, partition: int, partitions: int, data: bytes, *, lateness_ms: int, revise_s: int) -> Cleaner:
        """The Cleaner of a snapshot. Raises `StateError` where the snapshot belongs to other settings."""
        try:
            if data[:1] == b"\x78":                                       # zlib's first byte; a packed snapshot begins with an array's
                data = zlib.decompress(data)
            expect, log, lateness, revise, of, last_record, accepted, rejected, sources, symbols, owners, newest, seen = msgspec.msgpack.decode(data)
        except (msgspec.MsgspecError, ValueError, zlib.error) as error:
            raise StateError(f"partition {partition}: the snapshot of clean cannot be read: {error}") from error
        for name, then, now in (("LATENESS_MS", lateness, lateness_ms), ("REVISE_S", revise, revise_s), ("PARTITIONS", of, partitions)):
            if then != now:
                raise StateError(f"STOCKSTREAM_{name} is {now} but this log was begun with {then}: use another STOCKSTREAM_TOPIC_PREFIX")
        cleaner = cls(partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=log, expect=expect)
        cleaner.last_record = (last_record[0], last_record[1])
        cleaner.accepted, cleaner.rejected = accepted, rejected
        names = []
        for name, clock, closed, ts, newest_second, unsent, feeds, states in sources:
            source = _Source(clock, closed, 0, 0, ts, newest_second, unsent, {s: _Feed(*f) for s, f in zip(feeds, states, strict=True)})
            if closed is not None:
                cleaner._settle(source)
            cleaner._sources[name] = source
            names.append(name)
        cleaner._held = {
            symbol: _Held(owner if isinstance(owner, str) else names[owner], second, ts)
            for symbol, owner, second, ts in zip(symbols, owners, newest, seen, strict=True)
        }
        return cleaner

    def _forget(self) -> None:
        """Drops what is older than a day of the log's time; the verdicts ignore it already."""
        now = self.last_record[0]
        for name in [name for name, s in self._sources.items() if s.forgotten(now)]:
            del self._sources[name]
        for symbol in [symbol for symbol, h in self._held.items() if now - h.ts > FORGET_MS]:
            del self._held[symbol]


def _snapshot_of(tick: Tick) -> bytes:
    return _encode(msgspec.structs.replace(tick, received_at=None))


def _size(tick: Tick, feed: _Feed) -> int:
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

"""What `clean` decides about every tick of one partition of `ticks.raw`: whether it is accepted, and which seconds close.

`Cleaner` is a state machine over the log. Its verdicts are a function of the records alone, in offset order, so any cutting of the log into chunks
gives the same. It judges in this order: shape and range, `wrong_partition`, `future`, `duplicate`, `other_source`, `late`. Only accepted ticks change
its state, apart from duplicates that may belong to a numbering that has begun again. A record's ticks are judged by the watermark before the record; then
the watermark moves and closes the seconds that it has passed.

`judging` judges one tick, `many` plain records as columns, `memory` holds what is known of sources and symbols, `rows` the accepted ticks until their frame
goes.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np

from stockstream.errors import StateError
from stockstream.records import Closing, Punctuation, Rejection, Tick
from stockstream.transforms.cleaning import state as cleaning_state
from stockstream.transforms.cleaning.columns import OddRecord, Record, read
from stockstream.transforms.cleaning.decoding import UNREADABLE, decode_raw, decode_tick, salvage
from stockstream.transforms.cleaning.judging import Judge, ahead_of, in_future
from stockstream.transforms.cleaning.lags import Behind, count
from stockstream.transforms.cleaning.limits import MAX_ARRAY, MAX_SOURCE, MAX_TIME, unit_fault
from stockstream.transforms.cleaning.many import weigh
from stockstream.transforms.cleaning.memory import Memory, too_many_sources
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.cleaning.rejections import Fault, rejection
from stockstream.transforms.cleaning.state import VERSION, SourceState, State
from stockstream.transforms.frames import Frame
from stockstream.transforms.timing import Lateness
from stockstream.transforms.versioned import next_slot

logger = logging.getLogger(__name__)

FRAME_TICKS = 4_000
MANY = 400
"""Records from which on it is cheaper to judge them as columns: the CPU is the same at 400, and at 4,000 it is 0.6 of that one by one."""


@dataclass(frozen=True, slots=True)
class Idle:
    """A source with something to close, should it be quiet: the second of a punctuation, and when its last accepted record arrived, as `chunk` was given it."""

    source: str
    second: int
    heard: float


class Cleaner(Judge):
    """Judges the records of one partition in offset order.

    `chunk` takes consecutive records and returns the rejections; what was accepted and closed waits until `make_frame` takes it. `snapshot` is exact at
    `expect`: restored from it and given the log from there, a Cleaner gives the same results again.

    Args:
        partition: number of this partition.
        partitions: how many the topic has.
        lateness_ms: by source, or one for all. A source's is fixed when it is first heard, or heard again after it was forgotten.
        revise_s: belongs to the log; a snapshot made with another is refused.
        log: id of the raw log's life.
        raw_format: of foreign messages; belongs to the log as well.
    """

    def __init__(
        self, partition: int, partitions: int, *, lateness_ms: int | Lateness, revise_s: int, log: str, expect: int = -1, raw_format: RawFormat | None = None
    ) -> None:
        self.lateness = lateness_ms if isinstance(lateness_ms, Lateness) else Lateness(lateness_ms)
        super().__init__(partition, partitions, Memory(self.lateness), revise_s=revise_s)
        self.log = log
        self.raw_format = raw_format
        self.expect = expect
        """Raw offset that the next record should have; -1 before the first."""
        self.frame_from = expect
        """First raw offset that the next frame accounts for."""
        self.last_record = (0, 0)
        """Kafka time and CRC-32 of the last record, to recognise the log."""
        self.accepted = self.rejected = 0
        self._slot = 0
        """Where the next snapshot that is too large for a message goes."""
        self._closings: list[Closing] = []

    def from_beginning(self) -> Cleaner:
        """A Cleaner at the beginning of the same log. The sources keep the lateness that they have here."""
        by_source = dict(self.lateness.by_source) | {name: source.lateness_ms for name, source in self.memory.sources.items()}
        lateness = replace(self.lateness, by_source=tuple(by_source.items()))
        return Cleaner(self.partition, self.partitions, lateness_ms=lateness, revise_s=self.revise_s, log=self.log, raw_format=self.raw_format)

    @property
    def sent_before(self) -> int:
        """The frames for all raw offsets before this one were delivered when the state was stored; -1 without state."""
        return self.expect

    @property
    def log_clock(self) -> int:
        """The log clock: the greatest Kafka time (epoch ms) among the records of which something was accepted; 0 before the first."""
        return self.memory.log_clock

    @property
    def new_source(self) -> bool:
        """Whether a source, and so its lateness, is in no snapshot yet."""
        return self.memory.new_source

    # -- the log ------------------------------------------------------------

    def chunk(self, records: Sequence[Record], arrived: float = 0.0) -> list[Rejection]:
        """Judges records (ascending offsets, from `expect` on) and returns the rejections, in log order.

        `arrived` is when the worker got them, by whatever clock reads `idle`.
        """
        self.memory.arrived = arrived
        rejections: list[Rejection] = []
        if not records:
            return rejections
        if self.expect < 0:
            self.expect = self.frame_from = records[0].offset
        before = self._rows.accepted
        at, step, alone = 0, len(records), 0
        while at < len(records):
            some = records[at : at + step]
            taken = self._try_accept_many(some) if len(some) >= MANY else 0
            at += taken
            if taken == len(some):
                step, alone = 4 * step, 0
                continue
            alone = 1 if taken >= MANY else max(MANY, 2 * alone)         # where many are odd it is not tried again and again
            self._judge_one_by_one(records[at : at + alone], rejections)
            at += alone
            step = 2 * max(MANY, taken)
        self.expect = records[-1].offset + 1
        self.last_record = (records[-1].timestamp, zlib.crc32(records[-1].value or b""))
        self.accepted += self._rows.accepted - before
        self.rejected += len(rejections)
        return rejections

    def _judge_one_by_one(self, records: Sequence[Record], rejections: list[Rejection]) -> None:
        """Judges one record after the other. One that raises what nobody foresaw is rejected as a whole, and the next is judged."""
        rows, rest, record = self._rows, iter(records), records[0]
        begin, behind = len(rows.ticks), list[Behind]()
        while True:
            try:
                for record in rest:
                    try:
                        item = decode_tick(record.value)  # type: ignore[arg-type]
                    except (*UNREADABLE, TypeError):
                        item = salvage(record.value, self.raw_format, self._note_ignored)
                    if type(item) is not Tick:
                        if type(item) is tuple:
                            rejections.append(self._reject(item, record.offset, 0, record.value))
                        elif item is not None:
                            self._judge_array(item, record, rejections, behind)
                        continue
                    offset, ts = record.offset, record.timestamp
                    fault = None
                    source = self._accept_plain(item, ts)
                    if source is None:
                        fault = self._judge(item, ts, offset, 0)
                        if fault is not None:
                            rejections.append(self._reject(fault, offset, 0, record.value))
                            if fault[0] != "late":
                                continue
                        source = self.memory.sources[item.source]
                    if fault is None:
                        rows.ticks.append(item)
                        rows.offsets.append(offset)
                    event_time = item.event_time
                    if event_time > source.watermark:
                        source.watermark = source.reached = event_time
                        if event_time >= source.closes_at:
                            self._close(source, item.source, offset, None if fault else event_time // 1000)
                    elif event_time >= source.reached:
                        source.reached = event_time
                    else:
                        lag, late = source.reached - event_time, source.has_closed(event_time)
                        behind.append(Behind(item.source, item.symbol, event_time, lag, late, fault is not None))
                count(behind, rows.ticks[begin:], self.memory.lags_of)
                return
            except MemoryError:
                raise                                                    # is no fault of the record
            except Exception as error:  # noqa: BLE001 (whatever it is, it stays with this record; the line in the log has its traceback)
                self._reject_unforeseen(record, error, rejections)

    def _reject_unforeseen(self, record: Record, error: Exception, rejections: list[Rejection]) -> None:
        """Rejects a record that could not be judged, in place of all rejections that it has brought so far."""
        place = "ticks.raw[%d] offset %d: a record could not be judged and is rejected (internal_error)"
        logger.error(place, self.partition, record.offset, exc_info=error)
        self._rows.cut(record.offset)
        while rejections and rejections[-1].offset == record.offset:
            rejections.pop()
        detail = f"{type(error).__name__}: {error}: a fault of stockstream, not of the record; please report it with this message"
        rejections.append(self._reject(("internal_error", detail), record.offset, 0, record.value))

    # -- many records at once -----------------------------------------------

    def _try_accept_many(self, records: Sequence[Record]) -> int:
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

        The next one is left to `_judge_one_by_one`, and so are all if fewer than `MANY` could be accepted. The verdicts are the same: a test checks it.
        """
        if not self.memory.held:
            return 0                                                     # at the log's beginning no symbol is known
        try:
            plain = read(records)
            accepted = weigh(plain, self.memory, revise_s=self.revise_s)
        except OddRecord as odd:
            return self._accept_many(records[: odd.number]) if odd.number >= MANY else 0
        self._rows.add_batch(plain.batch(accepted.trades.columns))
        accepted.apply(plain, self.memory)
        closings: list[Closing] = []
        for move in accepted.moves:
            source = move.source
            source.watermark, source.ts, source.heard = move.watermark, move.ts, self.memory.arrived
            source.newest, source.unsent, source.reached = max(source.newest, move.newest), True, move.reached
            lags = source.lags
            lags.add(move.behind, move.behind_times, move.ticks, len(move.late))
            if len(move.late) or lags.symbols:
                lags.add_symbols([plain.symbols[number] for number in move.late.tolist()], zip(plain.symbols, np.bincount(plain.symbol).tolist(), strict=True))
            if move.closings:
                source.closed = move.closings[-1].second
                self._set_thresholds(source)
                source.unsent = not move.ends_closed or source.newest > source.closed
                closings += move.closings
        self._closings += sorted(closings, key=lambda closing: (closing.offset, closing.source))
        return len(plain.offset)

    # -- one record at a time -----------------------------------------------

    def _judge_array(self, item: Any, record: Record, rejections: list[Rejection], behind: list[Behind]) -> None:
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
        watermarks: dict[str, int] = {}
        earliest: dict[str, int] = {}
        texts: Sequence[bytes | msgspec.Raw] | None = None
        for index, tick in enumerate(item) if type(item[0]) is Tick else item:
            why: Fault | None = tick if type(tick) is tuple else None if self._accept_plain(tick, ts) else self._judge(tick, ts, offset, index)
            if why is not None:
                if texts is None:
                    texts = self._texts(value)
                rejections.append(self._reject(why, offset, index, bytes(texts[index])))
                if why[0] != "late":
                    continue
            name, event_time = tick.source, tick.event_time
            source = self.memory.sources[name]
            if event_time < source.reached:
                behind.append(Behind(name, tick.symbol, event_time, source.reached - event_time, source.has_closed(event_time), why is not None))
            if why is None:
                self._rows.add(tick, offset, index)
                if event_time < earliest.get(name, MAX_TIME):
                    earliest[name] = event_time
            if event_time > watermarks.get(name, 0):
                watermarks[name] = event_time
        for name in sorted(watermarks):
            source = self.memory.sources[name]
            source.watermark, source.reached = max(source.watermark, watermarks[name]), max(source.reached, watermarks[name])
            if source.watermark >= source.closes_at:
                self._close(source, name, offset, earliest[name] // 1000 if name in earliest else None)

    def _texts(self, value: bytes | None) -> Sequence[bytes | msgspec.Raw]:
        """The ticks of a frame as JSON."""
        assert value is not None
        return decode_raw(value) if self.raw_format is None else self.raw_format.texts(value)

    def _note_ignored(self, kind: str) -> None:
        self.noted["ignored", kind] += 1

    def _punctuate(self, item: Punctuation, offset: int, ts: int, value: bytes | None, rejections: list[Rejection]) -> None:
        fault = None
        log_clock = self.memory.forgotten_by(ts)
        if not 0 < item.punctuate < MAX_TIME // 1000:
            fault = "out_of_range", f"punctuate must be epoch seconds, is {item.punctuate}{unit_fault(item.punctuate)}"
        elif not 0 < len(item.source) <= MAX_SOURCE:
            fault = "out_of_range", f"source must have 1 to {MAX_SOURCE} characters, has {len(item.source)}"
        elif in_future(item.punctuate * 1000, ts, log_clock):
            fault = "future", f"punctuate is {ahead_of(item.punctuate * 1000, ts, log_clock)}"
        now = self.memory.forgotten_by(ts)
        if fault is None and self.memory.living_source(item.source, now) is None and self.memory.crowded("source", now):
            fault = too_many_sources(item.source)
        if fault:
            rejections.append(self._reject(fault, offset, 0, value))
            return
        source = self.memory.heard_source(item.source, ts)
        source.watermark = max(source.watermark, (item.punctuate + 1) * 1000 + source.lateness_ms)
        self._close(source, item.source, offset, None, punctuation=True)
        self.memory.make_room()

    def _close(self, source: SourceState, name: str, offset: int, first: int | None, *, punctuation: bool = False) -> None:
        """The watermark has moved: closes the seconds that it has passed. `first` is the earliest second that the record brought for this source."""
        new = (source.watermark - source.lateness_ms) // 1000 - 1
        if source.closed is None:
            source.closed = new if first is None else min(new, first - 1)
        if new > source.closed or punctuation:
            after = source.closed
            source.closed = max(after, new)
            self._closings.append(Closing(offset, name, after, source.closed))
            source.unsent = source.newest > source.closed
        self._set_thresholds(source)

    def _set_thresholds(self, source: SourceState) -> None:
        """Sets what follows from the last closed second."""
        assert source.closed is not None
        source.closes_at = (source.closed + 2) * 1000 + source.lateness_ms
        source.late_before = (source.closed - self.revise_s + 1) * 1000

    def _reject(self, fault: Fault, offset: int, index: int, value: bytes | None) -> Rejection:
        return rejection(fault, self.partition, offset, index, value)

    # -- what it sends ------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether a frame should go now: seconds have closed, or many ticks wait."""
        return bool(self._closings) or len(self._rows) >= FRAME_TICKS

    @property
    def pending_offsets(self) -> int:
        """How many offsets no frame accounts for yet."""
        return self.expect - self.frame_from

    def make_frame(self) -> Frame | None:
        """Makes the next frame of the log from all that waits; None where no offset waits."""
        if self.expect <= self.frame_from:
            return None
        frame = Frame(self.log, self.frame_from, self.expect - 1, tuple(self._closings), self._rows.take(), log_clock=min(self.memory.log_clock, MAX_TIME))
        self.frame_from = self.expect
        self._closings = []
        return frame

    def idle(self) -> Iterable[Idle]:
        """Sources with an open second that has ticks, or a revision not sent."""
        return [Idle(name, source.newest, source.heard) for name, source in self.memory.sources.items() if source.unsent and source.newest >= 0]

    # -- its state ----------------------------------------------------------

    def snapshot(self) -> bytes:
        """The state at `frame_from`, which must be `expect`: take the frame first."""
        if self.expect != self.frame_from:
            raise StateError(f"partition {self.partition}: snapshot at {self.expect} while a frame from {self.frame_from} waits")
        self.memory.purge()
        self.memory.digest()
        state = State(
            v=VERSION, expect=self.expect, log=self.log, lateness_ms=self.lateness.default_ms, revise_s=self.revise_s, partitions=self.partitions,
            last_record=self.last_record, accepted=self.accepted, rejected=self.rejected, log_clock=self.memory.log_clock,
            raw_format=self.raw_format.identity if self.raw_format is not None else "",
        )  # fmt: skip
        state.put(self.memory.sources, self.memory.held, self.memory.trade_ids.times)
        self.memory.new_source = False
        return cleaning_state.encoded(state)

    def records(self, term: int) -> list[tuple[bytes, bytes]]:
        """The snapshot as records for the changelog, key and value, under the writer's term."""
        found = cleaning_state.records(self.snapshot(), term, self._slot)
        if len(found) > 1:
            self._slot = next_slot(self._slot)
        return found

    @staticmethod
    def readable(key: bytes, value: bytes) -> str:
        """Empty where this is a record of `clean`'s changelog, else why it is not. Raises `StateError` where a newer stockstream wrote it."""
        return cleaning_state.readable(key, value)

    @staticmethod
    def complete(records: Mapping[bytes, bytes]) -> bool:
        """Whether some snapshot is there as a whole. Raises `StateError` where a newer stockstream wrote one."""
        return cleaning_state.highest_snapshot(records) is not None

    @classmethod
    def restore(
        cls, partition: int, partitions: int, records: Mapping[bytes, bytes], *, lateness_ms: int | Lateness, revise_s: int, raw_format: RawFormat | None = None
    ) -> Cleaner:
        """The Cleaner of the highest complete snapshot in a changelog's last records by key.

        Raises `StateError` where there is none, it belongs to other settings, or a newer stockstream wrote one.
        """
        try:
            found = cleaning_state.highest_snapshot(records)
            if found is None:
                raise StateError("its changelog holds no complete snapshot: use another STOCKSTREAM_TOPIC_PREFIX, or delete the changelog to begin a new log")
            state, slot = found
            cleaning_state.require_settings(state, revise_s=revise_s, partitions=partitions)
            cleaning_state.require_format(state, raw_format.identity if raw_format is not None else "")
            cleaner = cls(
                partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=state.log, expect=state.expect, raw_format=raw_format
            )  # fmt: skip
            cleaner.memory.sources, cleaner.memory.held = state.sources(), state.held()
        except StateError as error:
            raise StateError(f"clean, partition {partition}: {error}") from error
        cleaner.memory.trade_ids.times.update(state.trades())
        cleaner.last_record, cleaner.memory.log_clock = state.last_record, state.log_clock
        cleaner.accepted, cleaner.rejected = state.accepted, state.rejected
        cleaner._slot = next_slot(slot)                                  # never into the pieces that this was made of
        cleaner.memory.feed_count = sum(len(source.feeds) for source in cleaner.memory.sources.values())
        for source in cleaner.memory.sources.values():
            source.reached = min(source.watermark, source.newest * 1000 + 999)
            if source.closed is not None:
                cleaner._set_thresholds(source)
        return cleaner

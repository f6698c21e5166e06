"""The state machine of `aggregate`: one-second bars and the rolling 5-minute window of every symbol and source of one partition.

`Windows` takes `ticks.clean` frames and, at each closing, gives the rows of the seconds that close and those that late ticks have changed. A row is `revised`
where one of its symbol and second was sent before; a row of a second that was closed already, and that is the first of its symbol, is `late`. Sums are
taken in one order whatever the frames, so any cutting of the log gives the same bits: within a second tick by tick in log order, within a window in an
order that follows from its last second and its series' first alone (`arithmetic`).

Each source has a `Ring` of its last seconds. The state records (`records`) are buckets, with the seconds that closed or were revised, and a checkpoint:
through which offset the log is counted, and where to go on. A key names the writer's term (the group's generation, modulo TERMS) besides its slot in the
ring. So a frozen worker that wakes can only replace what it wrote itself, and compaction, which keeps the last record of a key, keeps the highest.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Mapping
from itertools import chain

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.errors import FrameError, StateError
from stockstream.records import QUOTES, TRADE_GAPS, Closing
from stockstream.transforms.changelog_index import ChangelogIndex, Range
from stockstream.transforms.frames import Frame, coded, numbers
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import MAX_VALUE_BYTES, TERMS, next_slot
from stockstream.transforms.windows import state as window_state
from stockstream.transforms.windows.cells import FAR_S, NEVER, SPARE_S, Ints
from stockstream.transforms.windows.quality import quality_bits
from stockstream.transforms.windows.ring import RESTORE_S, Ring
from stockstream.transforms.windows.rows import SourceRows, WindowRows
from stockstream.transforms.windows.state import FORMAT, Bucket, Checkpoint, RingProgress, Second
from stockstream.transforms.windows.ticks import Ticks, away_of, flags_of

SLOTS = 2 * RESTORE_S + 121
"""Ring of record keys: a record of up to SPAN_S seconds goes when its first second's slot comes round, and none of them is needed by then."""
SPAN_S = 480
REST_MS = 5 * 60_000
REST_FRAMES = 2_000
"""Of the log's time, or frames where that is not known, in which a source was in no frame: then its arrays are packed."""
LONG_SYMBOLS = 3_000
"""Symbols of one source. Allocating arrays for more takes so long (0.4 to 1 s for 20,000) that other partitions should not wait for it."""


class Windows:
    """Bars and rolling windows of one partition.

    Args:
        partition: number of this partition, for the rows.
        revise_s: seconds back that a late tick may change; belongs to the log.
    """

    def __init__(self, partition: int, *, revise_s: int) -> None:
        self.partition, self.revise_s = partition, revise_s
        self.log = ""
        self.expect = -1
        """Next raw offset; -1: accepts any first frame."""
        self.sent = -1
        """Closings up to here were delivered before a restart."""
        self.resume_input = 0
        """Offset in `ticks.clean` of the frame to go on from after a restart."""
        self._rings: dict[str, Ring] = {}
        self._inputs: deque[tuple[int, int]] = deque()
        self._records: list[tuple[list[str | int], Bucket]] = []
        self._checkpoint_slot = 0
        self._frames = 0
        self._last = self._checkpoint_last = -1
        self._sent_from = -1
        self._taking = False
        """While a frame is taken, and after one that failed."""
        self.index = ChangelogIndex()

    def take_frame(self, frame: Frame, input_offset: int = 0) -> WindowRows | None:
        """Takes a `ticks.clean` frame; returns the closings and rows to send, or None where the frame is of no use now.

        A frame that starts beyond `expect` is dropped: this partition's owner sends its rows again. `input_offset` is the frame's own offset in its topic.
        Raises `FrameError` where the frame asks for more than any of ours, and from then on: only `restore` gives a state that is whole again.
        """
        if self._taking:
            raise FrameError("the frame before could not be taken and may have changed some of the state: it must be restored first")
        if self.log and frame.log < self.log:
            return None
        if frame.log != self.log:
            index = self.index
            self.__init__(self.partition, revise_s=self.revise_s)  # type: ignore[misc]
            index.clear()
            self.log, self.index = frame.log, index
        if self.expect < 0:
            self.expect = self._sent_from = frame.start
        if frame.start > self.expect:
            return None
        out = WindowRows(self._sent_from, frame.through, frame.log_clock)
        if frame.through < self.expect:
            return out
        done = self.expect - 1
        self._taking = True
        self._frames += 1
        self._inputs.append((frame.through, input_offset))
        closings: dict[str, list[Closing]] = {}
        for closing in frame.closings:
            if closing.offset > done:
                closings.setdefault(closing.source, []).append(closing)
        heard = self._by_source(frame, done)
        sources = {*heard, *closings}
        for source, ticks in heard.items():
            self._process_source(source, ticks, closings.pop(source, []), out)
        for source, only in closings.items():
            self._process_source(source, None, only, out)
        self._forget_or_rest(sources, frame.log_clock)
        out.closings.sort(key=lambda c: (c.offset, c.source))
        self.expect = frame.through + 1
        self._last = max([self._last, *(c.offset for c in frame.closings)])
        if out.closings:
            self._sent_from = self.expect
        self._taking = False
        return out

    def from_beginning(self) -> Windows:
        """Windows without any frame, of the same partition."""
        return Windows(self.partition, revise_s=self.revise_s)

    @property
    def sent_before(self) -> int:
        """The frames for all raw offsets before this one were delivered when the state was stored; -1 without state."""
        return max(self._sent_from, self.sent + 1) if self.expect >= 0 else -1

    def skip_to(self, start: int) -> None:
        """The input has lost what was before: goes on from a frame that starts there."""
        self.expect = max(self.expect, start)

    def takes_long(self, rows: pa.RecordBatch) -> bool:
        """Whether new room for symbols or seconds may be needed that takes long to lay out: 0.4 to 1 s for 20,000 symbols."""
        if max((len(ring.symbols) for ring in self._rings.values()), default=0) >= LONG_SYMBOLS:
            return True
        return rows.num_rows >= LONG_SYMBOLS and len(rows.column("symbol").unique()) >= LONG_SYMBOLS

    def _ring(self, name: str, series_offset: int) -> Ring:
        """The ring of a source, awake; a new one begins with raw offset `series_offset`."""
        ring = self._rings.get(name)
        if ring is None:
            ring = self._rings[name] = Ring(self.revise_s)
            ring.series_offset = series_offset
        ring.wake()
        return ring

    def _forget_or_rest(self, heard: Collection[str], log_clock: int) -> None:
        """After a whole frame: drops sources that were in no frame for FORGET_MS of the log's time, and packs those that were in none for a while."""
        for name in heard:
            ring = self._rings[name]
            ring.touched, ring.frame = log_clock, self._frames
        for name, ring in list(self._rings.items()):
            if name in heard:
                continue
            if not ring.touched:
                ring.touched = log_clock
            elif log_clock - ring.touched > FORGET_MS and not ring.unsaved:
                del self._rings[name]
                self.index.forget(name)
                continue
            if log_clock - ring.touched > REST_MS or self._frames - ring.frame > REST_FRAMES:
                ring.rest()

    def _by_source(self, frame: Frame, done: int) -> dict[str, Ticks]:
        rows = frame.rows
        offsets = rows.column("offset").to_numpy()
        skip = int(offsets.searchsorted(done, "right"))
        if skip:
            rows, offsets = rows.slice(skip), offsets[skip:]
        if not rows.num_rows:
            return {}
        sources, which = coded(rows.column("source"))
        price = numbers(rows, "price")
        quotes = {name: numbers(rows, name) for name in (*QUOTES, *TRADE_GAPS) if rows.column(name).null_count < rows.num_rows}
        seconds = rows.column("event_time").to_numpy() // 1000
        sizes = rows.column("size").to_numpy()
        flags = flags_of(rows)
        away_s = away_of(rows, flags, seconds)
        table, codes = coded(rows.column("symbol"))
        out = {}
        for code, source in enumerate(sources):
            mine = slice(None) if len(sources) == 1 else which == code
            ring = self._ring(source, done + 1)
            present = codes[mine]
            used = np.flatnonzero(np.bincount(present, minlength=len(table)))
            index_of = np.full(len(table), -1, np.int64)
            symbols = [table[i] for i in used.tolist()]
            if len(ring.symbols) + len(symbols) > ring.current.cells.shape[2]:
                ring.make_room(symbols)
            index_of[used] = ring.register_symbols(symbols)
            of_source = {name: column[mine] for name, column in quotes.items()}
            noted = (None if column is None else column[mine] for column in (flags, away_s))
            out[source] = Ticks(index_of[present], seconds[mine], price[mine], sizes[mine], offsets[mine], of_source, *noted)
        return out

    def _process_source(self, name: str, ticks: Ticks | None, closings: list[Closing], out: WindowRows) -> None:
        """One source's part of a frame: ticks up to each closing, the closing, and the ticks behind the last; of one series after the other."""
        while True:
            ring = self._ring(name, self.expect)
            closed = None if ticks is None else self._closed_before(ring, ticks, closings)
            new_series = self._new_series_offset(ring, ticks, closed, closings)
            if new_series is None:
                self._process_series(ring, name, ticks, closed, closings, out)
                return
            # what was before this raw offset goes to the series that was, all of whose seconds are closed by then; the rest to another one
            at = 0 if ticks is None else int(ticks.offset.searchsorted(new_series))
            before = [c for c in closings if c.offset < new_series]
            if before or at:
                some = ticks.take(slice(0, at)) if ticks is not None and at else None
                self._process_series(ring, name, some, None if some is None else self._closed_before(ring, some, before), before, out)
            self._reset_series(name, new_series)
            closings = closings[len(before) :]
            ticks = ticks.take(slice(at, len(ticks.offset))) if ticks is not None and at < len(ticks.offset) else None

    def _process_series(self, ring: Ring, name: str, ticks: Ticks | None, closed: Ints | None, closings: list[Closing], out: WindowRows) -> None:
        if ticks is None or closed is None:
            for closing in closings:
                self._process_step(ring, name, None, [closing], out)
        else:
            self._process_ticks(ring, name, ticks, ticks.second <= closed, closings, out)

    def _new_series_offset(self, ring: Ring, ticks: Ticks | None, closed_before: Ints | None, closings: list[Closing]) -> int | None:
        """Raw offset from which the source, back after `clean` forgot it, has earlier seconds, that is, another series; None where there is none."""
        found: list[int] = []
        closed, offset = ring.closed, ring.counted_through
        for closing in closings:
            if closing.offset > ring.counted_through:
                first = closed == NEVER or (ring.closed_before_gap != NEVER and closing is closings[0])
                if closing.after != closed and not first:               # closings of one life follow upon each other
                    found.append(offset + 1)
                    break
                closed, offset = closing.second, closing.offset
        if ticks is not None and closed_before is not None:
            far = (ticks.second <= closed_before - self.revise_s) & (ticks.offset > ring.counted_through)
            if ring.closed == NEVER and closings:
                far &= ticks.offset > closings[0].offset
            if far.any():
                found.append(int(ticks.offset[far.argmax()]))
        return min(found, default=None)

    def _reset_series(self, name: str, offset: int) -> None:
        """Begins another series of the source from this raw offset on."""
        known = self._rings[name].symbols
        ring = self._rings[name] = Ring(self.revise_s)
        ring.register_symbols(known)
        ring.series_offset = offset
        self.index.forget(name)

    def _process_ticks(self, ring: Ring, name: str, ticks: Ticks, late: NDArray[np.bool_], closings: list[Closing], out: WindowRows) -> None:
        """Ticks of one series, `late` where their second was closed before their record, with their closings."""
        offsets = ticks.offset
        ring.reach(int(offsets[0]))
        ring.gaps.note(ticks)
        any_late = bool(late.any())
        span = ring.at_once
        if ring.closed == NEVER and closings and ticks.second.max() - closings[0].after <= span:
            ring.ensure_capacity(closings[0].after, int(ticks.second.max()))       # once for all steps
        steps: list[tuple[int, list[Closing]]] = []
        begin = 0
        ends = offsets.searchsorted([closing.offset for closing in closings], "right").tolist()
        for closing, end in zip(closings, ends, strict=True):
            at, step = steps[-1] if steps else (0, [])
            alike = (
                step and (step[-1].offset > self.sent) == (closing.offset > self.sent) and closing.second - step[0].after < span
                and max(c.second - c.after for c in (step[-1], closing)) <= FAR_S
            )  # fmt: skip
            ready = len(steps) > 1 or (ring.closed != NEVER and not ring.changed)       # what came before its first step is cleared there
            if alike and ready and not (any_late and late[at:end].any()):
                step.append(closing)
            else:
                steps.append((begin, [closing]))
            begin = end
        for at, step in steps:
            end = int(offsets.searchsorted(step[-1].offset, "right"))
            if step is steps[-1][1] and not any_late:
                begin = end = len(offsets)                               # what comes after the last closing waits for the next: it may go with the rest
            which = slice(at, end)
            self._process_step(ring, name, (ticks.take(which), late[which]), step, out)
        if begin < len(offsets):
            self._add(ring, ticks.take(slice(begin, len(offsets))), late[begin:])

    @staticmethod
    def _closed_before(ring: Ring, ticks: Ticks, closings: list[Closing]) -> Ints:
        """The last second that was closed before each tick's record."""
        if not closings:
            return np.full(len(ticks.second), ring.closed)
        ends = np.array([c.offset for c in closings])
        closed = np.array([closings[0].after, *(c.second for c in closings)])
        return closed[ends.searchsorted(ticks.offset, "left")]

    @staticmethod
    def _add(ring: Ring, ticks: Ticks, late: NDArray[np.bool_]) -> None:
        late = late & (ticks.second > ring.closed - ring.revise_s)       # read again after a restart, of long ago: its revision was sent
        if late.any():
            ring.mark_late(ticks.symbol[late], ticks.second[late])
        Windows._add_with_capacity(ring, ring.not_yet_stored(ticks))

    @staticmethod
    def _add_with_capacity(ring: Ring, ticks: Ticks) -> None:
        """Adds ticks where there is room for them by then, behind what is stored of their seconds."""
        if len(ticks.second):
            ring.jump_gap(int(ticks.second[ticks.offset == ticks.offset[0]].min()))
            ring.ensure_capacity(int(ticks.second.min()), int(ticks.second.max()))
            ring.apply_restored(int(ticks.second.max()))
            ring.add(ticks)

    def _process_step(self, ring: Ring, name: str, ticks: tuple[Ticks, NDArray[np.bool_]] | None, closings: list[Closing], out: WindowRows) -> None:
        """Ticks, then the closings that they lead to: several where no tick is late and no second far, else one."""
        first, last = closings[0].after, closings[-1]
        send = last.offset > self.sent
        fresh: Ticks | None = None
        if ticks is not None:
            fresh, late = ticks
            if late.any():
                self._add(ring, fresh.take(late), late[late])
                fresh = fresh.take(~late)
            fresh = ring.not_yet_stored(fresh)
        if ring.closed == NEVER or ring.closed_before_gap != NEVER:
            ring.ensure_capacity(first, first)
            ring.apply_restored(first)
            ring.mark_late(*ring.cells_between(ring.current.base, first))               # heard before anything closed, and late already
            ring.closed_before_gap = NEVER
            ring.close(first, begin_series=False)                                       # the rows before that are still to be sent
        if ring.changed:
            for indexes, seconds, sent in ring.revise():
                if send:
                    self._emit(ring, name, indexes, seconds, np.full(len(indexes), last.offset), sent, out)
        ends, offsets = np.array([c.second for c in closings]), np.array([c.offset for c in closings])
        ring.counted_through = max(ring.counted_through, last.offset)
        if fresh is not None and not ring.pending_restored and last.second - ring.closed <= (FAR_S if len(closings) == 1 else ring.at_once):
            self._add_with_capacity(ring, fresh)                                       # later seconds are not looked at before they close
            fresh = None
        after = first
        for begin, end in self._spans(ring, fresh, first, last.second):
            ring.skip_to(begin - 1)
            ring.apply_restored(end)
            if fresh is not None:
                self._add_fresh(ring, fresh, after, end)
            ring.ensure_capacity(max(end, ring.closed), max(end, ring.closed))
            for _, through in ring.parts(after + 1, end):                               # what a new series forgets is sent and stored before
                ring.close(through)
                if send:
                    indexes, seconds = ring.cells_between(after, through)
                    self._emit(ring, name, indexes, seconds, offsets[ends.searchsorted(seconds, "left")], None, out)
                self._save(ring, name, through, last.offset)
                after = through
        ring.skip_to(last.second)
        ring.ensure_capacity(max(last.second, ring.closed), max(last.second, ring.closed))
        ring.close(last.second)
        self._save(ring, name, last.second, last.offset)
        ring.gaps.forget(ring.closed - ring.revise_s)
        if fresh is not None:
            self._add_fresh(ring, fresh, last.second, None)
        if send:
            out.closings += closings

    @staticmethod
    def _add_fresh(ring: Ring, ticks: Ticks, after: int, end: int | None) -> None:
        which = ticks.second > after
        if end is not None:
            which &= ticks.second <= end
        Windows._add_with_capacity(ring, ticks if which.all() else ticks.take(which))

    @staticmethod
    def _spans(ring: Ring, ticks: Ticks | None, after: int, second: int) -> list[tuple[int, int]]:
        """The seconds after < s <= second that have ticks, as (first, last) of stretches short enough to lay out at once."""
        if second - after <= FAR_S:
            return [(after + 1, second)]
        active = {s for s in (*ring.unsaved, *ring.pending_restored) if after < s <= second}
        if ticks is not None:
            active.update(np.unique(ticks.second[(ticks.second > after) & (ticks.second <= second)]).tolist())
        longest = ring.at_once
        spans: list[tuple[int, int]] = []
        for s in sorted(active):
            if spans and s - spans[-1][1] <= FAR_S and s - spans[-1][0] < longest:
                spans[-1] = spans[-1][0], s
            else:
                spans.append((s, s))
        return spans

    def _save(self, ring: Ring, name: str, closed: int, offset: int) -> None:
        """Packs the seconds that are closed and not stored as they are now, counted through the closing at `offset`."""
        seconds = sorted(second for second in ring.unsaved if second <= closed)
        if not seconds:
            return
        run: list[Second] = []
        size = 0
        for second, (pieces, more) in zip(seconds, ring.buckets(seconds), strict=True):
            del ring.unsaved[second]
            if second <= ring.stored or len(pieces) > 1:
                for number, piece in enumerate(pieces):
                    self._record(ring, name, "one", second, number, offset, [piece])
                continue
            size += more
            if run and (size > MAX_VALUE_BYTES or second - run[0].second >= SPAN_S):
                self._record(ring, name, "run", run[0].second, 0, offset, run)
                run, size = [], more
            run += pieces
        if run:
            self._record(ring, name, "run", run[0].second, 0, offset, run)
        ring.stored = max(ring.stored, seconds[-1])

    def _record(self, ring: Ring, source: str, kind: str, second: int, piece: int, through: int, seconds: list[Second]) -> None:
        bucket = Bucket(v=FORMAT, through=through, log=self.log, source=source, seconds=seconds, fields=ring.stored_fields)
        self._records.append(([source, kind, second % SLOTS, piece], bucket))

    @staticmethod
    def _emit(ring: Ring, name: str, indexes: Ints, seconds: Ints, offsets: Ints, sent: NDArray[np.bool_] | None, out: WindowRows) -> None:
        """Rows of seconds that close, or, with `sent`, of seconds that were closed already: which of them were sent before."""
        if not len(indexes):
            return
        values = ring.statistics(indexes, seconds)
        values["offset"], values["revised"] = offsets, np.zeros(len(indexes), bool) if sent is None else sent
        if len(ring.gaps):
            values["quality"] |= quality_bits({"gap": ring.gaps.inside(indexes, seconds, offsets)})
        if sent is not None:
            values["quality"] |= quality_bits({"late": ~sent})
        out.by_source.append(SourceRows(name, ring.names.tolist(), indexes, values))

    # -- state --------------------------------------------------------------

    def records(self, term: int) -> list[tuple[bytes, bytes]]:
        """State records to write, in this order, once what the frames so far brought is delivered; none where nothing closed since the last call.

        Pass to `index.confirmed` the offsets where they were written.
        """
        if not self._records and self._last <= self._checkpoint_last:
            return []
        records = [window_state.bucket_record(key, term % TERMS, bucket) for key, bucket in self._records]
        newest: dict[str, int] = {}
        for _, bucket in self._records:
            newest[bucket.source] = max(bucket.seconds[-1].second, newest.get(bucket.source, NEVER))
        self._records = []
        self._checkpoint_last = self._last
        resume_raw = min((min(ring.unsaved.values()) for ring in self._rings.values() if ring.unsaved), default=self.expect)
        while len(self._inputs) > 1 and self._inputs[0][0] < resume_raw:
            self._inputs.popleft()
        through, self.resume_input = self._inputs[0] if self._inputs else (resume_raw - 1, self.resume_input)
        if through < resume_raw:
            self.resume_input += 1
        sources = {
            name: RingProgress(ring.known_closed, ring.counted_through, ring.stored, ring.series_offset, ring.touched)
            for name, ring in self._rings.items() if ring.closed != NEVER
        }
        needed = self.index.needed({name: ring.known_closed - RESTORE_S - self.revise_s + 1 for name, ring in self._rings.items()})
        self.index.written(newest)
        self._checkpoint_slot = next_slot(self._checkpoint_slot)
        checkpoint = Checkpoint(
            v=FORMAT, last=self._last, log=self.log, resume_raw=resume_raw, resume_input=self.resume_input, sent_from=self._sent_from, sources=sources,
            ranges=needed, slot=self._checkpoint_slot,
        )  # fmt: skip
        return [*records, *window_state.checkpoint_records(checkpoint, term % TERMS)]

    @staticmethod
    def readable(key: bytes, value: bytes) -> str:
        """Why a record is none of `aggregate`; empty where it can be read. Raises `StateError` where a newer stockstream wrote it."""
        return window_state.readable(key, value)

    @staticmethod
    def needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
        """The ranges of the changelog that the highest whole checkpoint among these records names; None where there is none."""
        checkpoints = window_state.checkpoints_in((key, value) for key, value in records.items() if window_state.is_checkpoint(key))
        return max(checkpoints, key=window_state.progress).ranges if checkpoints else None

    @classmethod
    def restore(cls, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int] | None = None, *, revise_s: int) -> Windows:
        """The state in a partition's records: those of the newest log, for each second the ones with the highest offset. `offsets` in the changelog, by key.

        Raises `StateError`.
        """
        windows = cls(partition, revise_s=revise_s)
        windows.log, checkpoint, buckets = window_state.restored(partition, records, offsets)
        sources: dict[str, RingProgress] = {}
        if checkpoint is not None:
            windows._last, windows.expect = checkpoint.last, checkpoint.resume_raw
            windows.resume_input, windows._sent_from = checkpoint.resume_input, checkpoint.sent_from
            windows._checkpoint_last, windows._checkpoint_slot, sources = checkpoint.last, checkpoint.slot, checkpoint.sources
        windows.sent = max([windows._last, *(bucket.through for bucket, _ in buckets)])
        for bucket, offset in sorted(buckets, key=lambda pair: pair[1]):
            windows.index.restored(offset, {bucket.source: bucket.seconds[-1].second})
        best: dict[str, dict[int, tuple[int, list[Second]]]] = {}
        for bucket, _ in buckets:
            seconds = best.setdefault(bucket.source, {})
            for piece in bucket.seconds:
                known = seconds.get(piece.second)
                if known is None or bucket.through > known[0]:
                    seconds[piece.second] = (bucket.through, [piece])
                elif bucket.through == known[0]:
                    known[1].append(piece)
        log_clock = max((source.touched for source in sources.values()), default=0)
        try:
            for name in {*best, *sources}:
                state = sources.get(name, RingProgress(series_offset=windows._last + 1))
                ring = windows._rings[name] = cls._restore_ring(best.get(name, {}), state, revise_s)
                if ring.touched and log_clock - ring.touched > REST_MS:
                    ring.rest()
        except FrameError as error:
            raise StateError(f"partition {partition}: the state of aggregate cannot be restored: {error}") from error
        return windows

    @staticmethod
    def _restore_ring(seconds: dict[int, tuple[int, list[Second]]], state: RingProgress, revise_s: int) -> Ring:
        ring = Ring(revise_s)
        closed, ring.stored, ring.touched = state.closed, state.stored, state.touched
        ring.counted_through, ring.series_offset = state.counted_through, state.series_offset
        ring.restored = closed, ring.counted_through
        newest = closed if closed != NEVER else min(seconds, default=NEVER)
        needed = {s: bucket for s, bucket in seconds.items() if s > newest - RESTORE_S - revise_s}
        ring.stored = max([ring.stored, *needed])
        lists: list[list[str]] = [[]]
        for second, (through, pieces) in sorted(needed.items()):
            ring.through[second] = through
            ring.pending_restored[second] = pieces
            for piece in pieces:
                if piece.symbols != lists[-1]:
                    lists.append(piece.symbols)
                piece.symbols = lists[-1]                                       # mostly the symbols of the second before: `apply_restored` compares by identity
        ring.register_symbols(dict.fromkeys(chain.from_iterable(lists)))
        if closed != NEVER:
            # a few seconds at a time, as live: only the newest stay
            first = min([*needed, closed])
            ring.closed = first - 1
            for second in [*range(first + SPARE_S - 1, closed, SPARE_S), closed]:
                ring.ensure_capacity(second, second)
                ring.apply_restored(second)
                ring.close(second)
        return ring

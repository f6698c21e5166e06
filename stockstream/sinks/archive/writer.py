"""Writes the archive of a worker's partitions: raw objects as records come, processed ones as verdicts come."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import pyarrow as pa

from stockstream.errors import ArchiveError, BrokerError, StockstreamError
from stockstream.records import TICKS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.processed import processed_objects, unprocessed
from stockstream.sinks.archive.raw_objects import Extent, Piece, RawRecord, after, encode, lines, read_extent, through
from stockstream.sinks.archive.threads import T, in_thread
from stockstream.sinks.stores import Store
from stockstream.transforms.frames import Assembler, Frame

logger = logging.getLogger(__name__)


MAX_RECORDS = 100_000
FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
REMIND_S = 60.0
QUIET_S = 10.0
"""A store that fails at random is told to be back after this long without a failure."""
REPAIRS_AT_ONCE = 2
CALLS_AT_ONCE = 2
"""Threads that compress take turns with the event loop: with more of them at once, seconds close late while the partitions' objects are written."""
BETWEEN_CLOSINGS_S = 0.4
"""After a second is due: by then its predictions are made, and the objects are written before the next is."""
ALIGNED_FROM_S = 10.0
CLOSE_S = 4.0
VERDICTS_S = 10.0
"""A raw object that is due waits this long for the first of its verdicts, then it is written without: raw records come first."""


class RawReader(Protocol):
    """Reads `ticks.raw` back. Both raise `BrokerError` where Kafka does not answer, or does not hold what is asked for yet."""

    async def begin(self, partition: int) -> int:
        """First offset that is kept: what is below has expired."""

    def read(self, partition: int, first: int, last: int) -> AsyncGenerator[Sequence[RawRecord], None]:
        """The records from `first` to `last`, ascending. When it ends, nothing else is there between them."""


class CleanReader(Protocol):
    """Reads `ticks.clean` back. Both raise `BrokerError` where Kafka does not answer."""

    async def newest(self, partition: int) -> tuple[str, int] | None:
        """Log id and last raw offset of the newest frame; None where the topic holds none."""

    def read(self, partition: int, log: str, first: int, last: int) -> AsyncGenerator[Frame, None]:
        """Whole frames of the log, ascending, that cover raw offsets `first` to `last`. What none of them covers is not to be had any more."""


@dataclass(slots=True)
class _Clean:
    """A frame's offsets and rows."""

    start: int
    through: int
    rows: pa.RecordBatch


@dataclass(slots=True)
class _Life:
    """One partition of one log while we own it: what is held, what is known."""

    partition: int
    log: str | None = None
    chain: Chain | None = None
    verified: bool = False
    pieces: deque[Piece] = field(default_factory=deque)
    seen: int = -1
    missed: int = -1
    rewound: bool = False
    since: float = 0.0
    frames: deque[_Clean] = field(default_factory=deque)
    clean_through: int = -1
    backlog: deque[str] = field(default_factory=deque)
    processed: int = -1
    raw_held: int = 0
    held: int = 0
    final: bool = False
    state: str = "starting"
    fault: str = ""
    failures: int = 0
    idle_since: float = 0.0
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    ending: asyncio.Event = field(default_factory=asyncio.Event)

    def finish(self) -> None:
        """Write what is held, then end."""
        self.final = True
        self.ending.set()
        self.wake.set()


class _Trouble:
    """One line at the first failure, one each minute, one when it is over."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.since: float | None = None
        self._last = self._told = 0.0

    def failed(self, error: Exception) -> None:
        now = self._clock()
        if self.since is None:
            self.since = self._told = now
            logger.warning("archive: %s; it is tried again, and read back from Kafka once that goes well", error)
        elif now - self._told >= REMIND_S:
            self._told = now
            logger.warning("archive: failing for %.0f s: %s", now - self.since, error)
        self._last = now

    def worked(self) -> None:
        if self.since is not None and self._clock() - self._last >= QUIET_S:
            logger.info("archive: works again, %.0f s after the first failure", self._clock() - self.since)
            self.since = None


class Archive:
    """The archive of the partitions that this worker owns. All methods belong to one event loop; the store is called in threads.

    `add_raw` and `add_clean` never wait for the store and never raise for what it does: what does not fit into `archive_buffer_bytes` is dropped and
    read back later.
    """

    def __init__(self, settings: Settings, store: Store, raw: RawReader, clean: CleanReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._store, self._raw, self._clean, self._clock = settings, store, raw, clean, clock
        self._lives: dict[int, _Life] = {}
        self._tasks: dict[asyncio.Task[None], _Life] = {}
        self._assemblers: dict[int, Assembler] = {}
        self._held = 0
        self._trouble = _Trouble(clock)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._repairs = asyncio.Semaphore(REPAIRS_AT_ONCE)
        self._closing = False

    # What the agent calls

    def assign(self, partition: int) -> None:
        """We own the partition now: finds its chain and what is missing from it."""
        if partition not in self._lives and not self._closing:
            self._start(_Life(partition))

    def revoke(self, partition: int) -> None:
        """We own it no more: what is held is forgotten, and read back by the next owner."""
        life = self._lives.pop(partition, None)
        self._assemblers.pop(partition, None)
        for task, of in list(self._tasks.items()):
            if of.partition == partition:
                task.cancel()
        if life:
            self._forget(life)

    async def add_raw(self, partition: int, records: Sequence[RawRecord], start: int | None = None) -> None:
        """Records of one chunk, ascending by offset; those of a partition that is not assigned are ignored.

        `start`: the caller vouches that Kafka holds nothing else from there through the last one. Without it a gap is read back, to be sure.
        """
        life = self._lives.get(partition)
        if life is None or not records:
            return
        last = records[-1].offset
        life.idle_since = self._clock()
        if records[0].offset <= life.seen or life.rewound:      # read again, or another log in the same place: Kafka will tell
            self._rewind(life, last)
            return
        if life.chain and last <= life.chain.end and life.verified:
            life.seen = last
            return
        was_due = self._raw_due(life)
        expected = life.pieces[-1].last + 1 if life.pieces else None
        vouched = None if start is None else max(start, life.seen + 1)
        life.seen = last
        for piece in encode(partition, records, vouched):
            if (expected is not None and piece.start > expected) or self._held + piece.nbytes > self._settings.archive_buffer_bytes:
                life.missed = last
                break
            if not life.pieces:
                life.since = self._begun()
                life.wake.set()
            life.pieces.append(piece)
            self._hold_raw(life, piece.nbytes)
            expected = piece.last + 1
        if not was_due and (self._raw_due(life) or not life.pieces):
            life.wake.set()

    async def add_clean(self, partition: int, frame: Frame) -> None:
        """One message of `ticks.clean`; a message that is one of several parts waits for the others. Raises `FrameError` where parts do not match."""
        life = self._lives.get(partition)
        if life is None:
            return
        whole = self._assemblers.setdefault(partition, Assembler()).feed(frame)
        if whole is None or (life.log is not None and whole.log < life.log):
            return
        if life.log is not None and whole.log > life.log:
            life = self._next_life(life)
        if life.log is None:
            life.log = whole.log
            life.wake.set()
        begins_before = life.clean_through
        life.clean_through = max(life.clean_through, whole.through)
        self._take_frame(life, whole)
        if life.clean_through > begins_before and (life.backlog or self._raw_due(life)):
            life.wake.set()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Writes what is held and judged, as far as `timeout_s` allows; the rest is read back from Kafka at the next start.

        Raw records that `clean` has not judged yet are left to that start too: so what is archived is processed as well.
        """
        self._closing = True
        for life in self._tasks.values():
            life.finish()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for partition in list(self._lives):
            self.revoke(partition)

    def progress(self) -> list[dict[str, Any]]:
        """For each partition: `log`, `offset` (archived through), `processed` (likewise), `seen` (raw records have come through), `judged`
        (their verdicts have come through), `buffered_bytes`, `fault`, `failing_s` and `state`.

        A state is `starting`, `live`, `repairing` or `failing`.
        """
        now = self._clock()
        return [
            {
                "partition": life.partition, "log": life.log, "offset": life.chain.end if life.chain else -1, "processed": life.processed,
                "seen": life.seen, "judged": life.clean_through, "buffered_bytes": life.held, "state": life.state, "fault": life.fault,
                "failing_s": round(now - self._trouble.since, 1) if self._trouble.since is not None and life.state == "failing" else 0.0,
            }
            for _, life in sorted(self._lives.items())
        ]  # fmt: skip

    # Lives

    def _start(self, life: _Life) -> None:
        life.idle_since = self._clock()
        self._lives[life.partition] = life
        task = asyncio.get_running_loop().create_task(self._work(life), name=f"archive-{life.partition}")
        self._tasks[task] = life
        task.add_done_callback(self._tasks.pop)

    def _next_life(self, old: _Life) -> _Life:
        """The topic was made again: what is held of the old log is written, and what the new one holds is read from Kafka."""
        logger.info("archive: partition %d begins a new log after %s", old.partition, old.log)
        old.finish()
        life = _Life(old.partition)
        self._start(life)
        return life

    def _forget(self, life: _Life) -> None:
        self._hold(life, -life.held)
        life.raw_held = 0
        life.pieces.clear()
        life.frames.clear()

    def _rewind(self, life: _Life, last: int) -> None:
        """What is held is written, if we know whose it is; nothing more is taken until the chain's last record was found in Kafka."""
        if not life.verified:
            self._hold_raw(life, -life.raw_held)
            life.pieces.clear()
        life.rewound = True
        life.seen = life.missed = max(life.seen, last)
        life.wake.set()

    def _hold(self, life: _Life, nbytes: int) -> None:
        life.held += nbytes
        self._held += nbytes

    def _hold_raw(self, life: _Life, nbytes: int) -> None:
        life.raw_held += nbytes
        self._hold(life, nbytes)

    async def _work(self, life: _Life) -> None:
        while True:
            life.wake.clear()
            try:
                wait = await self._step(life)
            except StockstreamError as error:
                if life.final and not error.retriable:
                    self._forget(life)
                    return
                wait = self._failed(life, error)
            except Exception as error:          # whatever it is, alerts and predictions go on, and the archive tries again
                logger.exception("archive: partition %d", life.partition)
                wait = self._failed(life, error)
            else:
                life.failures, life.fault = 0, ""
                if life.final:
                    self._forget(life)
                    return
            told = life.ending if life.failures else life.wake      # what comes meanwhile does not shorten the wait after a failure
            if told is life.ending and life.final:
                await asyncio.sleep(wait or 0)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(told.wait(), wait)

    def _failed(self, life: _Life, error: Exception) -> float:
        self._trouble.failed(error)
        life.state, life.fault = "failing", str(error)
        life.failures += 1
        if not isinstance(error, StockstreamError) or not error.retriable:
            return LAST_RETRY_S
        return float(min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(life.failures - 1, 10)))

    async def _step(self, life: _Life) -> float | None:
        """Does what is due; returns after how many seconds something may be due next."""
        if life.log is None and life.final:
            return None
        if life.log is None:
            newest = await self._clean.newest(life.partition)
            if life.log is None and newest is None:
                return None
            if newest is not None and (life.log is None or life.log == newest[0]):
                life.log = newest[0]
                life.clean_through = max(life.clean_through, newest[1])
                life.missed = max(life.missed, newest[1])
        if life.chain is None:
            chain = Chain(self._store, str(life.log), life.partition)
            await self._call(chain.open)
            backlog = await self._call(partial(unprocessed, chain))
            oldest = parse_name(backlog[0]) if backlog else None
            life.processed = oldest.first - 1 if oldest else chain.end
            life.backlog.extend(backlog)
            life.chain = chain
        await self._archive_raw(life, life.chain)
        await self._archive_processed(life, life.chain)
        self._trouble.worked()
        life.state = "live"
        return max(0.0, self._deadline(life) - self._clock())

    def _deadline(self, life: _Life) -> float:
        if life.pieces:
            due = life.since + self._settings.archive_flush_s
            return due if self._clock() < due else due + VERDICTS_S
        return max(life.idle_since, self._clock() - self._settings.archive_flush_s + 1) + self._settings.archive_flush_s

    def _begun(self) -> float:
        """Now, for what has just come first; up to a second earlier where that lets it be written while no second closes, if sources are prompt."""
        lands = time.time() + self._settings.archive_flush_s - self._settings.lateness_ms / 1_000
        early = (lands - BETWEEN_CLOSINGS_S) % 1.0 if self._settings.archive_flush_s >= ALIGNED_FROM_S else 0.0
        return self._clock() - early

    # Raw records

    def _object_bytes(self) -> int:
        """What an object may hold, so that all partitions' together, with their clean ticks, stay well within the bound."""
        return min(self._settings.archive_max_bytes, self._settings.archive_buffer_bytes // (4 * max(1, len(self._lives))))

    def _raw_due(self, life: _Life) -> bool:
        if not life.pieces:
            return False
        by_time = self._clock() >= life.since + self._settings.archive_flush_s
        return life.final or by_time or life.pieces[-1].hour > life.pieces[0].hour or self._raw_pressed(life)

    def _raw_pressed(self, life: _Life) -> bool:
        """Whether what is held must be written now, judged or not: there is no room for more, or nothing can follow it."""
        first, last = life.pieces[0], life.pieces[-1]
        return last.last - first.start >= MAX_RECORDS or life.raw_held >= self._object_bytes() or life.missed > last.last or life.rewound

    async def _archive_raw(self, life: _Life, chain: Chain) -> None:
        while True:
            if life.pieces and not life.verified:
                self._verify_by_overlap(life, chain)
            self._trim(life, chain.end)
            if life.pieces and life.pieces[0].start == chain.end + 1 and life.verified:
                if not self._raw_due(life):
                    return
                pieces = self._judged(life, self._next_object(life))
                if not pieces:
                    return
                await self._append(life, chain, pieces)
                continue
            if life.rewound and not life.pieces:
                life.rewound = life.verified = False
            last = life.pieces[0].start - 1 if life.pieces else self._missing(life)
            done = last <= chain.end and (life.verified or not life.pieces)
            if done or (life.final and (last > chain.end or not life.pieces)):
                return
            async with self._repairs:
                life.state = "repairing"
                await self._verify(life, chain)
                if last > chain.end:
                    await self._repair(life, chain, last)

    def _missing(self, life: _Life) -> int:
        """Last offset that must be read back: dropped here, told of by a frame at the start, or told of by a frame and not seen for long."""
        if self._clock() - life.idle_since >= self._settings.archive_flush_s:
            return max(life.missed, life.seen, life.clean_through)
        return max(life.missed, life.seen)

    def _next_object(self, life: _Life) -> list[Piece]:
        taken: list[Piece] = []
        limit = self._object_bytes()
        for piece in life.pieces:
            if taken and (piece.hour > taken[0].hour or limit <= 0 or piece.last - taken[0].start >= MAX_RECORDS):
                break
            taken.append(piece)
            limit -= piece.nbytes
        return taken

    def _judged(self, life: _Life, pieces: list[Piece]) -> list[Piece]:
        """The pieces up to where the verdicts of `clean` end, so that the object can be processed at once.

        Where none of them is judged: none while the verdicts are waited for (the worker's end leaves them to the next start), all of them after that.
        """
        judged = [part for part in (through(piece, life.clean_through) for piece in pieces) if part]
        if judged:
            return judged
        if life.rewound or (life.final and not self._closing):      # Kafka may hold them no more
            return pieces
        waits = life.final or (not self._raw_pressed(life) and self._clock() < life.since + self._settings.archive_flush_s + VERDICTS_S)
        return [] if waits else pieces

    async def _append(self, life: _Life, chain: Chain, pieces: Sequence[Piece]) -> None:
        if pieces[0].start < pieces[0].offsets[0] and await self._raw.begin(life.partition) > pieces[0].start:
            pieces = [replace(pieces[0], expired=True), *pieces[1:]]
        before = chain.newest
        await self._call(partial(chain.append, pieces))
        self._appended(life, chain, before)

    def _appended(self, life: _Life, chain: Chain, before: str) -> None:
        if chain.newest != before:
            life.backlog.append(chain.newest)
        self._trim(life, chain.end)

    def _trim(self, life: _Life, end: int) -> None:
        while life.pieces and life.pieces[0].start <= end:
            piece = life.pieces.popleft()
            rest = after(piece, end)
            self._hold_raw(life, -piece.nbytes)
            life.since = self._begun()
            if rest:
                life.pieces.appendleft(rest)
                self._hold_raw(life, rest.nbytes)

    def _verify_by_overlap(self, life: _Life, chain: Chain) -> None:
        """The first live records of a life may hold the chain's last one: then they show whether it is the same log."""
        for piece in life.pieces:
            if chain.tail and piece.start <= chain.tail.offset <= piece.last and chain.tail.offset in piece.offsets:
                line = piece.data.split(b"\n")[piece.offsets.index(chain.tail.offset)] + b"\n"
                self._must_be(life, chain, zlib.crc32(line))

    async def _verify(self, life: _Life, chain: Chain) -> None:
        """Whether Kafka still holds the chain's last record: a topic that was made again must not be taken for the old one."""
        if life.verified:
            return
        tail = chain.tail
        if tail is None or await self._raw.begin(life.partition) > tail.offset:
            life.verified = True
            return
        async with aclosing(self._raw.read(life.partition, tail.offset, tail.offset)) as found:
            async for records in found:
                self._must_be(life, chain, zlib.crc32(lines(life.partition, records[:1])))
        if not life.verified and await self._raw.begin(life.partition) <= tail.offset:
            raise ArchiveError(f"partition {life.partition}: Kafka holds no offset {tail.offset} of log {chain.log}: the topic was made again")
        life.verified = True

    def _must_be(self, life: _Life, chain: Chain, crc32: int) -> None:
        if not chain.tail or crc32 != chain.tail.crc32:
            raise ArchiveError(f"partition {life.partition}: what Kafka holds is not log {chain.log} any more: the topic was made again")
        life.verified = True

    async def _repair(self, life: _Life, chain: Chain, last: int) -> None:
        """Adds what Kafka holds from the chain's end through `last`, in objects of bounded size."""
        cursor = chain.end + 1
        held: list[Piece] = []
        size = 0
        async with aclosing(self._raw.read(life.partition, cursor, last)) as found:
            async for records in found:
                for piece in encode(life.partition, records, cursor):
                    if held and (piece.hour > held[0].hour or size >= self._object_bytes() or piece.last - held[0].start >= MAX_RECORDS):
                        await self._append_all(life, chain, held)
                        held, size = [], 0
                    held.append(piece)
                    size += piece.nbytes
                    cursor = piece.last + 1
        if held:
            await self._append_all(life, chain, held)
        if chain.end < last:
            await self._pass_hole(life, chain, last)

    async def _append_all(self, life: _Life, chain: Chain, pieces: Sequence[Piece]) -> None:
        last = pieces[-1].last
        while chain.end < last:
            rest = [piece for piece in (after(piece, chain.end) for piece in pieces) if piece]
            await self._append(life, chain, rest)

    async def _pass_hole(self, life: _Life, chain: Chain, last: int) -> None:
        """Kafka holds nothing from the chain's end through `last`."""
        if life.pieces and life.pieces[0].start == last + 1:
            life.pieces[0] = replace(life.pieces[0], start=chain.end + 1)
        elif await self._raw.begin(life.partition) > last:
            before = chain.newest
            await self._call(partial(chain.append_hole, last))
            self._appended(life, chain, before)
        else:
            raise BrokerError(f"partition {life.partition}: Kafka does not give offsets {chain.end + 1} to {last}, though they have not expired")

    # Accepted ticks

    def _take_frame(self, life: _Life, frame: Frame) -> None:
        end = life.frames[-1].through if life.frames else None
        if frame.through <= life.processed or (end is not None and (frame.start > end + 1 or frame.through <= end)):
            return
        rows = frame.rows if end is None or frame.start > end else _rows_between(frame.rows, end + 1, frame.through)
        if self._held + rows.nbytes > self._settings.archive_buffer_bytes:
            return
        life.frames.append(_Clean(frame.start if end is None else end + 1, frame.through, rows))
        self._hold(life, rows.nbytes)

    async def _archive_processed(self, life: _Life, chain: Chain) -> None:
        while life.backlog:
            name = life.backlog[0]
            extent = await self._call(partial(read_extent, self._store, name))
            first, last = extent.first, extent.last
            if extent.count:
                missing: list[tuple[int, int]] = []
                covered = life.frames and life.frames[0].start <= first and life.frames[-1].through >= last
                if covered:
                    batches = [_rows_between(frame.rows, first, last) for frame in life.frames if frame.start <= last]
                elif life.clean_through >= last and not self._closing:
                    async with self._repairs:
                        batches, missing = await self._read_clean(life, chain.log, first, last)
                else:
                    return
                await self._call(partial(self._create_processed, extent, name, batches, missing))
            life.backlog.popleft()
            life.processed = last
            while life.frames and life.frames[0].through <= last:
                self._hold(life, -life.frames.popleft().rows.nbytes)

    def _create_processed(self, extent: Extent, name: str, batches: Sequence[pa.RecordBatch], missing: Sequence[tuple[int, int]]) -> None:
        rows = pa.Table.from_batches(batches, schema=TICKS_SCHEMA)
        for processed, data in processed_objects(extent, name, rows, missing):
            self._store.create(processed, data)

    async def _read_clean(self, life: _Life, log: str, first: int, last: int) -> tuple[list[pa.RecordBatch], list[tuple[int, int]]]:
        batches: list[pa.RecordBatch] = []
        missing: list[tuple[int, int]] = []
        expect = first
        async with aclosing(self._clean.read(life.partition, log, first, last)) as found:
            async for frame in found:
                if frame.through < expect or expect > last:
                    continue
                if frame.start > expect:
                    missing.append((expect, min(frame.start - 1, last)))
                batches.append(_rows_between(frame.rows, max(expect, frame.start), last))
                expect = frame.through + 1
        if expect <= last:
            missing.append((expect, last))
        if missing:
            logger.warning("archive: partition %d: ticks.clean no longer tells of raw offsets %s; they are recorded as missing", life.partition, missing)
        return batches, missing

    # Threads

    async def _call(self, call: Callable[[], T]) -> T:
        async with self._calls:
            return await in_thread(call)


def _rows_between(rows: pa.RecordBatch, first: int, last: int) -> pa.RecordBatch:
    offsets = rows.column("offset").to_numpy()
    begin, end = offsets.searchsorted(first), offsets.searchsorted(last, side="right")
    return rows.select(TICKS_SCHEMA.names).slice(begin, end - begin).replace_schema_metadata(None)

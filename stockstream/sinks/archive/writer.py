"""Writes the archive of a worker's partitions: raw objects as records arrive, processed objects as the verdicts of `clean` arrive."""

from __future__ import annotations

import asyncio
import logging
import time
import zlib
from collections.abc import Callable, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pyarrow as pa

from stockstream.errors import ArchiveError, BrokerError, StockstreamError
from stockstream.records import TICKS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.assignment import Assignment, CleanRows, rows_between
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.clean_settings import clean_settings
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.processed import processed_objects, unprocessed
from stockstream.sinks.archive.raw_objects import Extent, Piece, RawRecord, after, encode, lines, read_extent, through
from stockstream.sinks.archive.readers import CleanReader, RawReader
from stockstream.sinks.archive.store_failures import CLOSE_S, FIRST_RETRY_S, LAST_RETRY_S, StoreFailures
from stockstream.sinks.stores import Store
from stockstream.threads import T, in_thread
from stockstream.transforms.frames import Assembler, Frame

logger = logging.getLogger(__name__)


MAX_RECORDS = 100_000
REPAIRS_AT_ONCE = 2
CALLS_AT_ONCE = 2
"""Threads that compress compete with the event loop for the interpreter. With more of them, seconds close late while objects are written."""
BETWEEN_CLOSINGS_S = 0.4
"""Objects are written this long after a second is due: its predictions are then made, and the next second is not due yet."""
ALIGNED_FROM_S = 10.0
NEW_LOG = "ticks.raw was deleted and created again; archiving continues with the new log after its first frame in ticks.clean"
VERDICTS_S = 10.0
"""A raw object that is due waits this long for its first verdict. Then it is written without one, because raw records matter most."""


class Archive:
    """The archive of the partitions that this worker owns. All methods belong to one event loop; the store is called in threads.

    `add_raw` and `add_clean` never wait for the store, and never raise its errors. What does not fit into `archive_buffer_bytes` is dropped and read back
    from Kafka later.
    """

    def __init__(self, settings: Settings, store: Store, raw: RawReader, clean: CleanReader, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings, self._store, self._raw, self._clean, self._clock = settings, store, raw, clean, clock
        self._clean_settings = clean_settings(settings)
        self._assignments: dict[int, Assignment] = {}
        self._tasks: dict[asyncio.Task[None], Assignment] = {}
        self._assemblers: dict[int, Assembler] = {}
        self._held = 0
        self._failures = StoreFailures(clock)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._repairs = asyncio.Semaphore(REPAIRS_AT_ONCE)
        self._closing = False

    # What the agent calls

    def assign(self, partition: int) -> None:
        """Starts archiving a partition that this worker now owns: finds its chain and what is missing from it."""
        if partition not in self._assignments and not self._closing:
            self._start(Assignment(partition))

    def revoke(self, partition: int) -> None:
        """Stops archiving a partition that this worker no longer owns. Its buffer is dropped; the next owner reads the records back."""
        assignment = self._assignments.pop(partition, None)
        self._assemblers.pop(partition, None)
        for task, of in list(self._tasks.items()):
            if of.partition == partition:
                task.cancel()
        if assignment:
            self._forget(assignment)

    async def add_raw(self, partition: int, records: Sequence[RawRecord], start: int | None = None) -> None:
        """Buffers the records of one chunk, in ascending order of offset. Records of a partition that is not assigned are ignored.

        `start`: from this offset through the last record, Kafka has only these records. Without it, a gap is read back from Kafka.
        """
        assignment = self._assignments.get(partition)
        if assignment is None or not records:
            return
        last = records[-1].offset
        assignment.idle_since = self._clock()
        if records[0].offset <= assignment.seen or assignment.rewound:      # read again, or another log: Kafka shows which
            self._rewind(assignment, last)
            return
        if assignment.chain and last <= assignment.chain.end and assignment.verified:
            assignment.seen = last
            return
        was_due = self._raw_due(assignment)
        expected = assignment.pieces[-1].last + 1 if assignment.pieces else None
        complete_from = None if start is None else max(start, assignment.seen + 1)
        assignment.seen = last
        for piece in encode(partition, records, complete_from):
            if (expected is not None and piece.start > expected) or self._held + piece.nbytes > self._settings.archive_buffer_bytes:
                assignment.missed = last
                break
            if not assignment.pieces:
                assignment.since = self._buffering_since()
                assignment.wake.set()
            assignment.pieces.append(piece)
            self._hold_raw(assignment, piece.nbytes)
            expected = piece.last + 1
        if not was_due and (self._raw_due(assignment) or not assignment.pieces):
            assignment.wake.set()

    async def add_clean(self, partition: int, frame: Frame) -> None:
        """Takes one message of `ticks.clean`. A part of a frame waits for the other parts. Raises `FrameError` if parts do not match."""
        assignment = self._assignments.get(partition)
        if assignment is None:
            return
        whole = self._assemblers.setdefault(partition, Assembler()).feed(frame)
        if whole is None or (assignment.log is not None and whole.log < assignment.log):
            return
        if assignment.log is not None and whole.log > assignment.log:
            assignment = self._next_log(assignment)
        if assignment.log is None:
            assignment.log = whole.log
            assignment.wake.set()
        begins_before = assignment.clean_through
        assignment.clean_through = max(assignment.clean_through, whole.through)
        self._take_frame(assignment, whole)
        if assignment.clean_through > begins_before and (assignment.backlog or self._raw_due(assignment)):
            assignment.wake.set()

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Writes the buffered records that have verdicts, for at most `timeout_s` seconds. The next start reads the rest back from Kafka.

        Raw records without a verdict also wait for that start, so that everything archived is also processed.
        """
        self._closing = True
        for assignment in self._tasks.values():
            assignment.finish()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        for partition in list(self._assignments):
            self.revoke(partition)

    def progress(self) -> list[dict[str, Any]]:
        """The state of each partition: `log`, `buffered_bytes`, `fault`, `failing_s`, `state`, and four raw offsets.

        The offsets are the last one archived (`offset`), processed (`processed`), received (`seen`), and received with its verdict (`judged`).
        The state is `starting`, `live`, `repairing` or `failing`.
        """
        now = self._clock()
        return [
            {
                "partition": one.partition, "log": one.log, "offset": one.chain.end if one.chain else -1, "processed": one.processed,
                "seen": one.seen, "judged": one.clean_through, "buffered_bytes": one.held, "state": one.state, "fault": one.fault,
                "failing_s": round(now - self._failures.since, 1) if self._failures.since is not None and one.state == "failing" else 0.0,
            }
            for _, one in sorted(self._assignments.items())
        ]  # fmt: skip

    # Assignments

    def _start(self, assignment: Assignment) -> None:
        assignment.idle_since = self._clock()
        self._assignments[assignment.partition] = assignment
        task = asyncio.get_running_loop().create_task(self._work(assignment), name=f"archive-{assignment.partition}")
        self._tasks[task] = assignment
        task.add_done_callback(self._tasks.pop)

    def _next_log(self, old: Assignment) -> Assignment:
        """Starts the archive of a topic that was created again: writes what is buffered of the old log, and reads the new log from Kafka."""
        logger.info("archive: partition %d: a new log follows log %s", old.partition, old.log)
        old.finish()
        assignment = Assignment(old.partition)
        self._start(assignment)
        return assignment

    def _forget(self, assignment: Assignment) -> None:
        self._hold(assignment, -assignment.held)
        assignment.raw_held = 0
        assignment.pieces.clear()
        assignment.frames.clear()

    def _rewind(self, assignment: Assignment, last: int) -> None:
        """Buffers nothing more until the chain's last record is found in Kafka. Writes what is buffered, if its log is verified."""
        if not assignment.verified:
            self._hold_raw(assignment, -assignment.raw_held)
            assignment.pieces.clear()
        assignment.rewound = True
        assignment.seen = assignment.missed = max(assignment.seen, last)
        assignment.wake.set()

    def _hold(self, assignment: Assignment, nbytes: int) -> None:
        assignment.held += nbytes
        self._held += nbytes

    def _hold_raw(self, assignment: Assignment, nbytes: int) -> None:
        assignment.raw_held += nbytes
        self._hold(assignment, nbytes)

    async def _work(self, assignment: Assignment) -> None:
        while True:
            assignment.wake.clear()
            try:
                wait = await self._step(assignment)
            except StockstreamError as error:
                if assignment.final and not error.retriable:
                    self._forget(assignment)
                    return
                wait = self._failed(assignment, error)
            except Exception as error:          # alerts and predictions must continue, so the archive tries again
                logger.exception("archive: partition %d: an unexpected error; the step is tried again", assignment.partition)
                wait = self._failed(assignment, error)
            else:
                assignment.failures, assignment.fault = 0, ""
                if assignment.final:
                    self._forget(assignment)
                    return
            event = assignment.ending if assignment.failures else assignment.wake      # new records do not shorten the wait after a failure
            if event is assignment.ending and assignment.final:
                await asyncio.sleep(wait or 0)
                continue
            with suppress(TimeoutError):
                await asyncio.wait_for(event.wait(), wait)

    def _failed(self, assignment: Assignment, error: Exception) -> float:
        self._failures.failed(error)
        assignment.state, assignment.fault = "failing", str(error)
        assignment.failures += 1
        if not isinstance(error, StockstreamError) or not error.retriable:
            return LAST_RETRY_S
        return float(min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(assignment.failures - 1, 10)))

    async def _step(self, assignment: Assignment) -> float | None:
        """Does what is due. Returns the seconds until something may be due again; None if only an event can make it due."""
        if assignment.log is None and assignment.final:
            return None
        if assignment.log is None:
            newest = await self._clean.newest(assignment.partition)
            if assignment.log is None and newest is None:
                return None
            if newest is not None and (assignment.log is None or assignment.log == newest[0]):
                assignment.log = newest[0]
                assignment.clean_through = max(assignment.clean_through, newest[1])
                assignment.missed = max(assignment.missed, newest[1])
        if assignment.chain is None:
            chain = Chain(self._store, str(assignment.log), assignment.partition, self._clean_settings)
            await self._call(chain.open)
            backlog = await self._call(partial(unprocessed, chain))
            oldest = parse_name(backlog[0]) if backlog else None
            assignment.processed = oldest.first - 1 if oldest else chain.end
            assignment.backlog.extend(backlog)
            assignment.chain = chain
        await self._archive_raw(assignment, assignment.chain)
        await self._archive_processed(assignment, assignment.chain)
        self._failures.worked()
        assignment.state = "live"
        return max(0.0, self._deadline(assignment) - self._clock())

    def _deadline(self, assignment: Assignment) -> float:
        if assignment.pieces:
            due = assignment.since + self._settings.archive_flush_s
            return due if self._clock() < due else due + VERDICTS_S
        return max(assignment.idle_since, self._clock() - self._settings.archive_flush_s + 1) + self._settings.archive_flush_s

    def _buffering_since(self) -> float:
        """The time from which the first buffered record counts: now, or up to a second earlier, so that the write falls between the closings of two seconds."""
        lands = time.time() + self._settings.archive_flush_s - self._settings.lateness.default_ms / 1_000
        early = (lands - BETWEEN_CLOSINGS_S) % 1.0 if self._settings.archive_flush_s >= ALIGNED_FROM_S else 0.0
        return self._clock() - early

    # Raw records

    def _object_bytes(self) -> int:
        """The size limit of an object. All partitions' objects together, with their accepted ticks, stay well within the buffer."""
        return min(self._settings.archive_max_bytes, self._settings.archive_buffer_bytes // (4 * max(1, len(self._assignments))))

    def _raw_due(self, assignment: Assignment) -> bool:
        if not assignment.pieces:
            return False
        by_time = self._clock() >= assignment.since + self._settings.archive_flush_s
        return assignment.final or by_time or assignment.pieces[-1].hour > assignment.pieces[0].hour or self._raw_pressed(assignment)

    def _raw_pressed(self, assignment: Assignment) -> bool:
        """Whether the buffer must be written now, with or without verdicts: it is full, or no record can follow it."""
        first, last = assignment.pieces[0], assignment.pieces[-1]
        return last.last - first.start >= MAX_RECORDS or assignment.raw_held >= self._object_bytes() or assignment.missed > last.last or assignment.rewound

    async def _archive_raw(self, assignment: Assignment, chain: Chain) -> None:
        while True:
            if assignment.pieces and not assignment.verified:
                self._verify_by_overlap(assignment, chain)
            self._trim(assignment, chain.end)
            if assignment.pieces and assignment.pieces[0].start == chain.end + 1 and assignment.verified:
                if not self._raw_due(assignment):
                    return
                pieces = self._judged(assignment, self._next_object(assignment))
                if not pieces:
                    return
                await self._append(assignment, chain, pieces)
                continue
            if assignment.rewound and not assignment.pieces:
                assignment.rewound = assignment.verified = False
            last = assignment.pieces[0].start - 1 if assignment.pieces else self._missing(assignment)
            done = last <= chain.end and (assignment.verified or not assignment.pieces)
            if done or (assignment.final and (last > chain.end or not assignment.pieces)):
                return
            async with self._repairs:
                assignment.state = "repairing"
                await self._verify(assignment, chain)
                if last > chain.end:
                    await self._repair(assignment, chain, last)

    def _missing(self, assignment: Assignment) -> int:
        """The last offset that must be read back: dropped here, or in a frame of the start, or in a frame and not received for long."""
        if self._clock() - assignment.idle_since >= self._settings.archive_flush_s:
            return max(assignment.missed, assignment.seen, assignment.clean_through)
        return max(assignment.missed, assignment.seen)

    def _next_object(self, assignment: Assignment) -> list[Piece]:
        taken: list[Piece] = []
        limit = self._object_bytes()
        for piece in assignment.pieces:
            if taken and (piece.hour > taken[0].hour or limit <= 0 or piece.last - taken[0].start >= MAX_RECORDS):
                break
            taken.append(piece)
            limit -= piece.nbytes
        return taken

    def _judged(self, assignment: Assignment, pieces: list[Piece]) -> list[Piece]:
        """The pieces up to the last verdict of `clean`, so that the object can be processed at once.

        If there is no verdict: none while verdicts may still arrive (a worker that stops leaves them to the next start), then all.
        """
        judged = [part for part in (through(piece, assignment.clean_through) for piece in pieces) if part]
        if judged:
            return judged
        if assignment.rewound or (assignment.final and not self._closing):      # Kafka may no longer have them
            return pieces
        waits = assignment.final or (not self._raw_pressed(assignment) and self._clock() < assignment.since + self._settings.archive_flush_s + VERDICTS_S)
        return [] if waits else pieces

    async def _append(self, assignment: Assignment, chain: Chain, pieces: Sequence[Piece]) -> None:
        if pieces[0].start < pieces[0].offsets[0] and await self._raw.begin(assignment.partition) > pieces[0].start:
            pieces = [replace(pieces[0], expired=True), *pieces[1:]]
        before = chain.newest
        await self._call(partial(chain.append, pieces))
        self._appended(assignment, chain, before)

    def _appended(self, assignment: Assignment, chain: Chain, before: str) -> None:
        if chain.newest != before:
            assignment.backlog.append(chain.newest)
        self._trim(assignment, chain.end)

    def _trim(self, assignment: Assignment, end: int) -> None:
        while assignment.pieces and assignment.pieces[0].start <= end:
            piece = assignment.pieces.popleft()
            rest = after(piece, end)
            self._hold_raw(assignment, -piece.nbytes)
            assignment.since = self._buffering_since()
            if rest:
                assignment.pieces.appendleft(rest)
                self._hold_raw(assignment, rest.nbytes)

    def _verify_by_overlap(self, assignment: Assignment, chain: Chain) -> None:
        """Verifies the log without reading Kafka, if the first live records include the chain's last record."""
        for piece in assignment.pieces:
            if chain.tail and piece.start <= chain.tail.offset <= piece.last and chain.tail.offset in piece.offsets:
                line = piece.data.split(b"\n")[piece.offsets.index(chain.tail.offset)] + b"\n"
                self._require_checksum(assignment, chain, zlib.crc32(line))

    async def _verify(self, assignment: Assignment, chain: Chain) -> None:
        """Verifies that Kafka still has the chain's last record, because a topic that was created again must not continue the old log."""
        if assignment.verified:
            return
        tail = chain.tail
        if tail is None or await self._raw.begin(assignment.partition) > tail.offset:
            assignment.verified = True
            return
        async with aclosing(self._raw.read(assignment.partition, tail.offset, tail.offset)) as found:
            async for records in found:
                self._require_checksum(assignment, chain, zlib.crc32(lines(assignment.partition, records[:1])))
        if not assignment.verified and await self._raw.begin(assignment.partition) <= tail.offset:
            raise ArchiveError(f"partition {assignment.partition}: Kafka has no offset {tail.offset} of log {chain.log}: {NEW_LOG}")
        assignment.verified = True

    def _require_checksum(self, assignment: Assignment, chain: Chain, crc32: int) -> None:
        if not chain.tail or crc32 != chain.tail.crc32:
            raise ArchiveError(f"partition {assignment.partition}: Kafka no longer has log {chain.log}: {NEW_LOG}")
        assignment.verified = True

    async def _repair(self, assignment: Assignment, chain: Chain, last: int) -> None:
        """Archives what Kafka has from the chain's end through `last`, in objects of bounded size."""
        cursor = chain.end + 1
        held: list[Piece] = []
        size = 0
        async with aclosing(self._raw.read(assignment.partition, cursor, last)) as found:
            async for records in found:
                for piece in encode(assignment.partition, records, cursor):
                    if held and (piece.hour > held[0].hour or size >= self._object_bytes() or piece.last - held[0].start >= MAX_RECORDS):
                        await self._append_all(assignment, chain, held)
                        held, size = [], 0
                    held.append(piece)
                    size += piece.nbytes
                    cursor = piece.last + 1
        if held:
            await self._append_all(assignment, chain, held)
        if chain.end < last:
            await self._pass_hole(assignment, chain, last)

    async def _append_all(self, assignment: Assignment, chain: Chain, pieces: Sequence[Piece]) -> None:
        last = pieces[-1].last
        while chain.end < last:
            rest = [piece for piece in (after(piece, chain.end) for piece in pieces) if piece]
            await self._append(assignment, chain, rest)

    async def _pass_hole(self, assignment: Assignment, chain: Chain, last: int) -> None:
        """Records a hole: Kafka has nothing from the chain's end through `last`."""
        if assignment.pieces and assignment.pieces[0].start == last + 1:
            assignment.pieces[0] = replace(assignment.pieces[0], start=chain.end + 1)
        elif await self._raw.begin(assignment.partition) > last:
            before = chain.newest
            await self._call(partial(chain.append_hole, last))
            self._appended(assignment, chain, before)
        else:
            where = f"partition {assignment.partition}, offsets {chain.end + 1} to {last}"
            raise BrokerError(f"{where}: Kafka returned no records, though retention has not deleted them; they are read again later")

    # Accepted ticks

    def _take_frame(self, assignment: Assignment, frame: Frame) -> None:
        end = assignment.frames[-1].through if assignment.frames else None
        if frame.through <= assignment.processed or (end is not None and (frame.start > end + 1 or frame.through <= end)):
            return
        rows = frame.rows if end is None or frame.start > end else rows_between(frame.rows, end + 1, frame.through)
        if self._held + rows.nbytes > self._settings.archive_buffer_bytes:
            return
        assignment.frames.append(CleanRows(frame.start if end is None else end + 1, frame.through, rows))
        self._hold(assignment, rows.nbytes)

    async def _archive_processed(self, assignment: Assignment, chain: Chain) -> None:
        while assignment.backlog:
            name = assignment.backlog[0]
            extent = await self._call(partial(read_extent, self._store, name))
            first, last = extent.first, extent.last
            if extent.count:
                missing: list[tuple[int, int]] = []
                covered = assignment.frames and assignment.frames[0].start <= first and assignment.frames[-1].through >= last
                if covered:
                    batches = [rows_between(frame.rows, first, last) for frame in assignment.frames if frame.start <= last]
                elif assignment.clean_through >= last and not self._closing:
                    async with self._repairs:
                        batches, missing = await self._read_clean(assignment, chain.log, first, last)
                else:
                    return
                await self._call(partial(self._create_processed, extent, name, batches, missing))
            assignment.backlog.popleft()
            assignment.processed = last
            while assignment.frames and assignment.frames[0].through <= last:
                self._hold(assignment, -assignment.frames.popleft().rows.nbytes)

    def _create_processed(self, extent: Extent, name: str, batches: Sequence[pa.RecordBatch], missing: Sequence[tuple[int, int]]) -> None:
        rows = pa.Table.from_batches(batches, schema=TICKS_SCHEMA)
        for processed, data in processed_objects(extent, name, rows, missing):
            self._store.create(processed, data)

    async def _read_clean(self, assignment: Assignment, log: str, first: int, last: int) -> tuple[list[pa.RecordBatch], list[tuple[int, int]]]:
        batches: list[pa.RecordBatch] = []
        missing: list[tuple[int, int]] = []
        expect = first
        async with aclosing(self._clean.read(assignment.partition, log, first, last)) as found:
            async for frame in found:
                if frame.through < expect or expect > last:
                    continue
                if frame.start > expect:
                    missing.append((expect, min(frame.start - 1, last)))
                batches.append(rows_between(frame.rows, max(expect, frame.start), last))
                expect = frame.through + 1
        if expect <= last:
            missing.append((expect, last))
        if missing:
            text = "archive: partition %d: ticks.clean no longer has frames for raw offsets %s; the archive records them as missing"
            logger.warning(text, assignment.partition, missing)
        return batches, missing

    # Threads

    async def _call(self, call: Callable[[], T]) -> T:
        async with self._calls:
            return await in_thread(call, "archive-store")

"""Rows of `windows`: frames in, rows out, each raw offset once.

A frame has all rows of its raw offsets `from` to `through`, whoever wrote it. So the ranges of raw offsets that are accounted for decide exactly: rows within
them are left out, whether a crashed worker sent them again or a worker that had lost its partition wrote them early. Frames of an older raw log are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa

from stockstream.errors import FrameError
from stockstream.records import WINDOWS_SCHEMA
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.sinks.archive.schemas import STORED_WINDOWS, times_of
from stockstream.sinks.archive.topics.gathered import Gathered
from stockstream.sinks.archive.topics.positions import State, ranges_with
from stockstream.transforms.frame_checks import MAX_PARTS
from stockstream.transforms.frames import Assembler, Frame, received

ABANDONED = 2 * MAX_PARTS
"""A frame in parts whose first part lies this many records back is not waited for: its writer died, and another one has sent it again or will."""
MAX_RANGES = 1_000
"""Ranges of raw offsets that a position has at the most. What lies between the two lowest then counts as accounted for: no worker will send it any more."""
_COLUMNS = [name for name in STORED_WINDOWS.names if name in WINDOWS_SCHEMA.names and name != "partition"]

Ranges = tuple[tuple[int, int], ...]


class FrameGatherer:
    """`Gatherer` of `windows`.

    Args:
        state: before the first record.
        elsewhere: by raw log, the ranges that other lives of the topic account for.
    """

    def __init__(self, state: State, elsewhere: Mapping[str, Ranges]) -> None:
        self._log, self._covered, self._elsewhere = state.log, state.covered, elsewhere
        self._assembler = Assembler()
        self._begun: dict[tuple[str, int, int, int], int] = {}
        """By log, `from`, `through` and `parts`: the record with the first part of an incomplete frame."""
        self._waiting: list[tuple[int, pa.RecordBatch]] = []
        """Offset of the record, and rows that came after the last record without an incomplete frame."""
        self._records = self._repeated = 0

    def gather(self, records: Sequence[RawRecord]) -> Gathered:
        faults: list[tuple[int, str]] = []
        ready: list[tuple[int, pa.RecordBatch]] = []
        last: RawRecord | None = None
        counts = 0, 0
        state = State(log=self._log, covered=self._covered)
        for record in records:
            self._records += 1
            try:
                frame = received(record.value or b"", WINDOWS_SCHEMA, record.timestamp)
                rows = self._take(frame, record.offset)
            except FrameError as error:
                faults.append((record.offset, str(error)))
            else:
                if rows is not None and rows.num_rows:
                    self._waiting.append((record.offset, rows))
            if self._complete(record.offset):
                ready += self._waiting
                self._waiting = []
                last, state = record, State(log=self._log, covered=self._covered)
                counts = counts[0] + self._records, counts[1] + self._repeated
                self._records = self._repeated = 0
        return Gathered(_stored(ready), last, *counts, state, faults)

    def _take(self, frame: Frame, offset: int) -> pa.RecordBatch | None:
        """The rows that the frame, or the frame whose last part it is, adds. Raises `FrameError` where parts do not match."""
        if frame.log < self._log or (frame.log == self._log and _within(self._covered, frame.start, frame.through)):
            self._repeated += frame.rows.num_rows
            return None
        key = frame.log, frame.start, frame.through, frame.parts
        if frame.parts > 1 and frame.part == 0:
            self._begun.setdefault(key, offset)
        whole = self._assembler.feed(frame, offset)
        if whole is None:
            return None
        self._begun.pop(key, None)
        if whole.log != self._log:
            self._log, self._covered = whole.log, self._elsewhere.get(whole.log, ())
        rows = _outside(whole.rows, self._covered)
        self._repeated += whole.rows.num_rows - rows.num_rows
        covered = ranges_with(self._covered, whole.start, whole.through)
        self._covered = covered if len(covered) <= MAX_RANGES else ((covered[0][0], covered[1][1]), *covered[2:])
        return rows

    def _complete(self, offset: int) -> bool:
        """Whether no frame that adds rows is incomplete after the record at this offset."""
        for key, first in list(self._begun.items()):
            log, start, through, _ = key
            if log < self._log or offset - first >= ABANDONED or (log == self._log and _within(self._covered, start, through)):
                del self._begun[key]
        if not self._begun:
            self._assembler = Assembler()                                # so what comes is a function of the state and of later records alone
        return not self._begun


def _within(ranges: Ranges, first: int, last: int) -> bool:
    return any(begin <= first and last <= end for begin, end in reversed(ranges))


def _outside(rows: pa.RecordBatch, ranges: Ranges) -> pa.RecordBatch:
    """The rows whose raw offset is in none of the ranges."""
    if not rows.num_rows:
        return rows
    offsets = rows.column("offset").to_numpy()
    keep = np.ones(len(offsets), bool)
    for begin, end in ranges:
        if begin <= offsets[-1] and end >= offsets[0]:
            keep &= (offsets < begin) | (offsets > end)
    return rows if keep.all() else rows.filter(pa.array(keep))


def _stored(batches: Sequence[tuple[int, pa.RecordBatch]]) -> pa.Table:
    schema = pa.schema([WINDOWS_SCHEMA.field(name) for name in _COLUMNS])
    rows = pa.Table.from_batches([rows.select(_COLUMNS).replace_schema_metadata(None) for _, rows in batches], schema=schema)
    offsets = np.repeat(np.array([offset for offset, _ in batches], np.int64), [rows.num_rows for _, rows in batches])
    rows = rows.append_column("time", times_of(rows.column("second")))
    return rows.append_column("record_offset", pa.array(offsets, pa.int64()))

"""Checks that the offsets of each partition are contiguous."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, NamedTuple

from faust.types import TP

logger = logging.getLogger(__name__)


HOLES_KEPT = 1_000
"""Only the newest holes are kept."""
offset_of = attrgetter("offset")


class Hole(NamedTuple):
    """Offsets that the broker no longer has: records deleted by retention, or whole batches removed by compaction."""

    topic: str
    partition: int
    first: int
    last: int


class Offsets(NamedTuple):
    """The offsets from `first` to before `end`."""

    first: int
    end: int


def without_record(records: Sequence[Any], batch: Offsets) -> list[Offsets]:
    """The offsets of a batch that hold no record, given its records in offset order: control batches, aborted ones, and records removed by compaction."""
    first, end = batch
    if len(records) == end - first:
        return []
    empty = []
    for record in records:
        if record.offset > first:
            empty.append(Offsets(first, record.offset))
        first = record.offset + 1
    if first < end:
        empty.append(Offsets(first, end))
    return empty


@dataclass(slots=True)
class Guard:
    """Checks that the offsets of each partition are contiguous.

    An offset is accounted for if a record has it, or if the header of a fetched batch covers it and the batch holds no record there. All others are a hole.
    """

    expected: dict[TP, int | None] = field(default_factory=dict)
    """By partition: the next offset, after the last one that is accounted for. `None` accepts any."""
    probed: dict[TP, int] = field(default_factory=dict)
    rereads: int = 0
    holes: deque[Hole] = field(default_factory=lambda: deque(maxlen=HOLES_KEPT))
    holes_passed: int = 0
    repeats: int = 0
    on_hole: Callable[[str, int], None] | None = None
    """Called for each hole with `reread` (it is read again) or `passed` (the broker has no records there), and the number of offsets."""

    def admit(self, tp: TP, records: Sequence[Any], empty: Sequence[Offsets] = ()) -> tuple[Sequence[Any], int | None]:
        """Splits records into what may be delivered and what must be read again.

        Returns the records to deliver, and the offset to seek back to, or None. A hole is read again once; after that the guard skips it.

        Args:
            tp: their partition.
            records: in offset order.
            empty: the offsets that the fetched batches account for without a record, in order.
        """
        expected = self.expected.get(tp)
        if expected is not None and records and records[0].offset < expected:
            keep = bisect_left(records, expected, key=offset_of)
            self.repeats += keep
            records = records[keep:]
        if expected is not None and empty and empty[0].first < expected:
            empty = [Offsets(max(part.first, expected), part.end) for part in empty if part.end > expected]
        end = max(records[-1].offset + 1 if records else -1, empty[-1].end if empty else -1)
        if end < 0:
            return [], None
        if expected is not None and end - expected == len(records) + sum(part.end - part.first for part in empty):
            self.expected[tp] = end
            return records, None
        back = self._check_gaps(tp, records, empty)
        return (records, None) if back is None else (records[: bisect_left(records, back, key=offset_of)], back)

    def _check_gaps(self, tp: TP, records: Sequence[Any], empty: Sequence[Offsets]) -> int | None:
        """Moves the expected offset to the first gap that must be read again, and returns that; past the last offset, and returns None, if there is none."""
        expected = self.expected.get(tp)
        for first, end in sorted([*(Offsets(record.offset, record.offset + 1) for record in records), *empty]):
            if expected is not None and first > expected:
                if self.probed.get(tp) != expected:
                    self.probed[tp] = self.expected[tp] = expected
                    self.rereads += 1
                    if self.on_hole is not None:
                        self.on_hole("reread", first - expected)
                    return expected
                self.holes.append(Hole(tp.topic, tp.partition, expected, first - 1))
                self.holes_passed += 1
                if self.on_hole is not None:
                    self.on_hole("passed", first - expected)
                logger.warning("%s[%d]: the broker has no offsets %d to %d: passed", tp.topic, tp.partition, expected, first - 1)
            expected = end
        self.expected[tp] = expected
        return None

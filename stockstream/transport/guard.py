"""Checks that the offsets of each partition are contiguous."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from faust.types import TP

logger = logging.getLogger(__name__)


HOLES_KEPT = 1_000
"""A transactional producer leaves a hole after every transaction, so only the newest are kept."""


class Hole(NamedTuple):
    """Offsets that the broker does not have: transaction markers, or records deleted by retention."""

    topic: str
    partition: int
    first: int
    last: int


@dataclass(slots=True)
class Guard:
    """Checks that the offsets of each partition are contiguous. An expected offset of `None` accepts any."""

    expected: dict[TP, int | None] = field(default_factory=dict)
    probed: dict[TP, int] = field(default_factory=dict)
    rereads: int = 0
    holes: deque[Hole] = field(default_factory=lambda: deque(maxlen=HOLES_KEPT))
    holes_passed: int = 0
    repeats: int = 0
    on_hole: Callable[[str, int], None] | None = None
    """Called for each hole with `reread` (it is read again) or `passed` (the broker has no records there), and the number of offsets."""

    def admit(self, tp: TP, records: Sequence[Any]) -> tuple[Sequence[Any], int | None]:
        """Splits records into what may be delivered and what must be read again.

        Returns the records to deliver, and the offset to seek back to, or None. A hole is read again once; after that the guard skips it.
        """
        expected = self.expected.get(tp)
        if expected is not None and records[0].offset < expected:
            keep = next((i for i, r in enumerate(records) if r.offset >= expected), len(records))
            self.repeats += keep
            records = records[keep:]
            if not records:
                return [], None
        if expected is None or records[-1].offset - expected + 1 != len(records):
            for number, record in enumerate(records):
                if expected is not None and record.offset != expected:
                    if self.probed.get(tp) != expected:
                        self.probed[tp] = expected
                        self.rereads += 1
                        self.expected[tp] = expected
                        if self.on_hole is not None:
                            self.on_hole("reread", record.offset - expected)
                        return records[:number], expected
                    self.holes.append(Hole(tp.topic, tp.partition, expected, record.offset - 1))
                    self.holes_passed += 1
                    if self.on_hole is not None:
                        self.on_hole("passed", record.offset - expected)
                    logger.warning("%s[%d]: the broker has no offsets %d to %d: passed", tp.topic, tp.partition, expected, record.offset - 1)
                expected = record.offset + 1
        self.expected[tp] = records[-1].offset + 1
        return records, None

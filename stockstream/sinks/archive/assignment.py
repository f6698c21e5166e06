"""The archive's state of one partition while this worker owns it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

import pyarrow as pa

from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.raw_objects import Piece


@dataclass(slots=True)
class CleanRows:
    """The accepted rows of a frame, and the range of raw offsets that it accounts for."""

    start: int
    through: int
    rows: pa.RecordBatch


@dataclass(slots=True)
class Assignment:
    """One partition of one log while this worker owns it: the buffers, and the position of the archive."""

    partition: int
    log: str | None = None
    chain: Chain | None = None
    verified: bool = False
    pieces: deque[Piece] = field(default_factory=deque)
    seen: int = -1
    missed: int = -1
    rewound: bool = False
    since: float = 0.0
    frames: deque[CleanRows] = field(default_factory=deque)
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
        """Asks the partition's task to write the buffers and end."""
        self.final = True
        self.ending.set()
        self.wake.set()


def rows_between(rows: pa.RecordBatch, first: int, last: int) -> pa.RecordBatch:
    """The accepted ticks of raw offsets `first` to `last`, as TICKS_SCHEMA."""
    offsets = rows.column("offset").to_numpy()
    begin, end = offsets.searchsorted(first), offsets.searchsorted(last, side="right")
    return rows.select(TICKS_SCHEMA.names).slice(begin, end - begin).replace_schema_metadata(None)

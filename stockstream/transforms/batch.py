"""The whole line as one pure function of a log's records: the very state machines that the agents drive, without Kafka between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import pyarrow as pa

from models import ScoringModel
from stockstream.records import WINDOWS_SCHEMA, Alert, Rejection
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.columns import Record
from stockstream.transforms.frames import Frame
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import Scored, Scorer
from stockstream.transforms.timing import LATENESS_MS, REVISE_S
from stockstream.transforms.windows.windows import Windows

CHUNK = 5_000


class RawRecord(NamedTuple):
    """A record of `ticks.raw`: offset, Kafka's time (epoch ms), value."""

    offset: int
    timestamp: int
    value: bytes | None


@dataclass(slots=True)
class Results:
    """All that a partition's log says, in the order in which it is said."""

    rejections: list[Rejection] = field(default_factory=list)
    clean: list[Frame] = field(default_factory=list)
    windows: list[Frame] = field(default_factory=list)
    alerts: list[Alert] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)

    def rows(self) -> pa.Table:
        """The rows of all closings, as WINDOWS_SCHEMA."""
        return pa.Table.from_batches([frame.rows for frame in self.windows], schema=WINDOWS_SCHEMA)


def run(
    records: Iterable[Record],
    *,
    partition: int,
    partitions: int,
    lateness_ms: int = LATENESS_MS,
    revise_s: int = REVISE_S,
    log: str = "batch",
    model: ScoringModel | None = None,
    chunk: int = CHUNK,
    keep_clean: bool = True,
) -> Results:
    """Runs one partition's records (offset order) through clean, aggregate, detect and, where there is a model, score.

    `chunk` is how many records are judged at once; the results do not depend on it.
    """
    out = Results()
    cleaner = Cleaner(partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=log)
    windows, detector, scorer = Windows(partition, revise_s=revise_s), Detector(partition), Scorer(partition)
    if model is not None:
        scorer.set_champion(model, 0)
    for some in _chunks(records, chunk):
        out.rejections += cleaner.chunk(some)
        frame = cleaner.make_frame()
        if frame is None:
            continue
        if keep_clean:
            out.clean.append(frame)
        rows = windows.take_frame(frame)
        windows.records(0)
        if rows is None or not rows.closings:
            continue
        closed = Frame(log, rows.start, rows.through, tuple(rows.closings), rows.batch(partition), log_clock=rows.log_clock)
        out.windows.append(closed)
        found = detector.take_frame(closed)
        if found is not None:
            out.alerts += found.alerts
        if model is not None:
            scored = scorer.take_frame(closed)
            if scored is not None:
                out.scored.append(scored)
    return out


def _chunks(records: Iterable[Record], size: int) -> Iterator[Sequence[Record]]:
    some: list[Record] = []
    for record in records:
        some.append(record)
        if len(some) >= size:
            yield some
            some = []
    if some:
        yield some


def windows_of(ticks: pa.Table, *, lateness_ms: int = LATENESS_MS, revise_s: int = REVISE_S) -> pa.Table:
    """Rows of `windows` for a table of ticks in the order of arrival, as one log of one partition that is closed at its end.

    `ticks` has the columns symbol, source, event_time (epoch ms), price, size and, where known, bid, ask, bid_size, ask_size. Ticks that `clean` would
    refuse are left out. Returns WINDOWS_SCHEMA.
    """
    encode = msgspec.json.Encoder().encode
    newest: dict[str, int] = {}

    def records() -> Iterator[RawRecord]:
        offset = 0
        for batch in ticks.to_batches(max_chunksize=50_000):
            for row in batch.to_pylist():
                newest[row["source"]] = max(newest.get(row["source"], 0), row["event_time"])
                yield RawRecord(offset, row["event_time"], encode(row))
                offset += 1
        for source, event_time in newest.items():
            yield RawRecord(offset, event_time + 1_000, encode({"punctuate": event_time // 1000, "source": source}))
            offset += 1

    return run(records(), partition=0, partitions=1, lateness_ms=lateness_ms, revise_s=revise_s, keep_clean=False).rows()

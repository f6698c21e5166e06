"""The whole line as one pure function of a log's records: the very state machines that the agents drive, without Kafka between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from models import ScoringModel
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA, Alert, Closing, Punctuation, Rejection
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.columns import Record
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.frames import Frame
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import Scored, Scorer
from stockstream.transforms.timing import LATENESS_MS, REVISE_S, Lateness
from stockstream.transforms.windows.windows import Windows

CHUNK = 5_000
_encode = msgspec.json.Encoder().encode


class RawRecord(NamedTuple):
    """A record of `ticks.raw`: offset, Kafka's time (epoch ms), value."""

    offset: int
    timestamp: int
    value: bytes | None


@dataclass(slots=True)
class Step:
    """What some consecutive records have brought: the rejections, the frames of `ticks.clean` and `windows`, the alerts, the predictions and outcomes."""

    rejections: list[Rejection]
    clean: Frame | None = None
    windows: Frame | None = None
    alerts: Sequence[Alert] = ()
    scored: Scored | None = None


class Pipeline:
    """The state machines of one partition, one behind the other, without Kafka between them.

    Args:
        partition, partitions: number of this partition, and how many the topic has.
        lateness_ms, revise_s: as the settings of a worker.
        log: id of the raw log's life.
        model: the champion from the first record on; without one nothing is predicted.
        raw_format: of foreign messages, as the settings of a worker.
        detect: whether alerts are wanted.
    """

    def __init__(
        self, partition: int, partitions: int, *, lateness_ms: int | Lateness = LATENESS_MS, revise_s: int = REVISE_S, log: str = "batch",
        model: ScoringModel | None = None, raw_format: RawFormat | None = None, detect: bool = True,
    ) -> None:  # fmt: skip
        self.log, self.partition = log, partition
        self.cleaner = Cleaner(partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=log, raw_format=raw_format)
        self._windows, self._detector = Windows(partition, revise_s=revise_s), Detector(partition) if detect else None
        self._scorer = Scorer(partition) if model is not None else None
        if self._scorer is not None and model is not None:
            self._scorer.set_champion(model, 0)

    def feed(self, records: Sequence[Record]) -> Step:
        """Takes the log's next records, ascending by offset; the results together do not depend on how the log is cut."""
        step = Step(self.cleaner.chunk(records))
        step.clean = frame = self.cleaner.make_frame()
        if frame is None:
            return step
        rows = self._windows.take_frame(frame)
        _drop_records(self._windows)
        if rows is None or not rows.closings:
            return step
        step.windows = closed = Frame(self.log, rows.start, rows.through, tuple(rows.closings), rows.batch(self.partition), log_clock=rows.log_clock)
        found = self._detector.take_frame(closed) if self._detector is not None else None
        if found is not None:
            step.alerts = found.alerts
        if self._scorer is not None:
            step.scored = self._scorer.take_frame(closed)
            _drop_records(self._scorer)
        return step

    def punctuations(self) -> list[RawRecord]:
        """The records that close every open second, to be fed last: one for each source that has one, as a worker writes them for quiet sources."""
        offset, clock = max(self.cleaner.expect, 0), self.cleaner.log_clock
        return [
            RawRecord(offset + number, max(clock, idle.second * 1000), _encode(Punctuation(punctuate=idle.second, source=idle.source)))
            for number, idle in enumerate(sorted(self.cleaner.idle(), key=lambda idle: idle.source))
        ]


def _drop_records(core: Windows | Scorer) -> None:
    """Takes the core's state records, which nobody writes here, so that it does not keep everything for the next call."""
    if core.records(0):
        core.index.confirmed(-1, -1)


@dataclass(slots=True)
class Results:
    """All results of a partition's log, in the order in which the agents publish them."""

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
    lateness_ms: int | Lateness = LATENESS_MS,
    revise_s: int = REVISE_S,
    log: str = "batch",
    model: ScoringModel | None = None,
    chunk: int = CHUNK,
    keep_clean: bool = True,
    raw_format: RawFormat | None = None,
) -> Results:
    """Runs one partition's records (offset order) through clean, aggregate, detect and, where there is a model, score.

    `chunk` is how many records are judged at once; the results do not depend on it.
    """
    out = Results()
    pipeline = Pipeline(partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=log, model=model, raw_format=raw_format)
    for some in _chunks(records, chunk):
        step = pipeline.feed(some)
        out.rejections += step.rejections
        if keep_clean and step.clean is not None:
            out.clean.append(step.clean)
        if step.windows is not None:
            out.windows.append(step.windows)
        out.alerts += step.alerts
        if step.scored is not None:
            out.scored.append(step.scored)
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


def windows_of(ticks: pa.Table, *, lateness_ms: int | Lateness = LATENESS_MS, revise_s: int = REVISE_S) -> pa.Table:
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


def windows_of_clean(ticks: pa.Table, closings: Sequence[Closing], *, partition: int, revise_s: int = REVISE_S) -> pa.Table:
    """Rows of `windows` for the accepted ticks of some symbols of one partition, as `aggregate` computes them, revisions included.

    `ticks` (TICKS_SCHEMA) and `closings` are in log order, those of each source without a gap between them. A row has the same bits as in a worker if the
    ticks of the RESTORE_S + revise_s seconds before it are there, and its second closed at the same offset. Returns WINDOWS_SCHEMA.
    """
    offsets = ticks.column("offset").to_numpy()
    ends = np.asarray([closing.offset for closing in closings], np.int64)
    windows = Windows(partition, revise_s=revise_s)
    batches: list[pa.RecordBatch] = []
    begin = begin_closing = 0
    start = int(min([*offsets[:1], *ends[:1]], default=0))
    last = int(max([*offsets[-1:], *ends[-1:]], default=-1))
    while start <= last:
        through = last if begin + CHUNK >= len(offsets) else int(offsets[begin + CHUNK])
        end, end_closing = (int(of.searchsorted(through, "right")) for of in (offsets, ends))
        (rows,) = ticks.slice(begin, end - begin).combine_chunks().to_batches() or [pa.RecordBatch.from_pylist([], TICKS_SCHEMA)]
        found = windows.take_frame(Frame("batch", start, through, tuple(closings[begin_closing:end_closing]), rows))
        _drop_records(windows)
        if found is not None and found.closings:
            batches.append(found.batch(partition))
        start, begin, begin_closing = through + 1, end, end_closing
    return pa.Table.from_batches(batches, schema=WINDOWS_SCHEMA)


def closings_of(source: str, offsets: Sequence[int], seconds: Sequence[int]) -> list[Closing]:
    """The closings of one source of a partition. At raw offset `offsets[i]`, in any order, its watermark is where second `seconds[i]` closes, or later."""
    closings: list[Closing] = []
    closed: int | None = None
    for offset, second in sorted(zip(offsets, seconds, strict=True)):
        if closed is None:
            closed = second
        elif second > closed:
            if closings and closings[-1].offset == offset:
                closings[-1] = Closing(offset, source, closings[-1].after, second)
            else:
                closings.append(Closing(offset, source, closed, second))
            closed = second
    return closings

"""Runs the pipeline over an input and writes what it brings."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

from models import ScoringModel
from stockstream.backtest.inputs import Input, Log, check_partition
from stockstream.backtest.result_files import Part, ResultFiles
from stockstream.errors import SourceError
from stockstream.records import CORRECTION, Alert
from stockstream.skipped import shortened
from stockstream.transforms.batch import CHUNK, Pipeline, RawRecord, Step
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.timing import Lateness


class NoRecords(SourceError):
    """The input holds no record, or none that is wanted."""


@dataclass(slots=True)
class Summary:
    """What a backtest has read and written. Times are event times of accepted ticks in epoch ms; `seconds` is how many seconds have a row.

    `records` were read, `punctuations` added at the end to close what was open. `ticks` are `accepted` or `rejected`, by reason, of
    which `first_rejection` is the first with its detail. `rows` counts the
    `revised` and the `late` ones too. `alerts` has by rule how many were opened, updated and closed; `not_predicted` by reason how many rows the model
    did not predict.
    """

    input: str = ""
    out: str = ""
    model: str = ""
    model_note: str = ""
    logs: int = 0
    partitions: int = 0
    records: int = 0
    punctuations: int = 0
    ticks: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    first_rejection: str = ""
    symbols: int = 0
    seconds: int = 0
    rows: int = 0
    revised: int = 0
    late: int = 0
    alerts: dict[str, dict[str, int]] = field(default_factory=dict)
    predictions: int = 0
    not_predicted: dict[str, int] = field(default_factory=dict)
    outcomes: int = 0
    first_event_time: int | None = None
    last_event_time: int | None = None
    elapsed_s: float = 0.0
    records_per_s: float = 0.0


class _Counts:
    """What the summary counts, while it is computed."""

    def __init__(self) -> None:
        self.summary = Summary()
        self._rejected: Counter[str] = Counter()
        self._alerts: dict[str, Counter[str]] = {}
        self._symbols: set[str] = set()
        self._seconds: dict[int, int] = {}
        """By minute a bit for each second with a row."""

    def add(self, step: Step) -> None:
        summary = self.summary
        self._rejected.update(rejection.reason for rejection in step.rejections)
        if step.rejections and not summary.first_rejection:
            first = step.rejections[0]
            summary.first_rejection = shortened(f"{first.reason}: {first.detail}" if first.detail else first.reason)
        if step.clean is not None and step.clean.rows.num_rows:
            times = pc.min_max(step.clean.rows.column("event_time")).as_py()
            flags = step.clean.rows.column("flags").to_numpy()
            summary.accepted += int((flags & CORRECTION == 0).sum())
            summary.first_event_time = times["min"] if summary.first_event_time is None else min(summary.first_event_time, times["min"])
            summary.last_event_time = times["max"] if summary.last_event_time is None else max(summary.last_event_time, times["max"])
            self._symbols.update(pc.unique(step.clean.rows.column("symbol")).to_pylist())
        if step.windows is not None:
            self._rows(step.windows.rows)
        self._count_alerts(step.alerts)
        if step.scored is not None:
            summary.predictions += sum(len(of.symbol) for of in step.scored.predictions)
            summary.outcomes += len(step.scored.outcomes.symbol) if step.scored.outcomes is not None else 0
            for missed in step.scored.missed:
                summary.not_predicted[missed.reason] = summary.not_predicted.get(missed.reason, 0) + missed.rows

    def _rows(self, rows: pa.RecordBatch) -> None:
        self.summary.rows += rows.num_rows
        self.summary.revised += pc.sum(rows.column("revised")).as_py() or 0
        qualities = pc.value_counts(rows.column("quality")).to_pylist()
        self.summary.late += sum(one["counts"] for one in qualities if "late" in one["values"].split(","))
        for second in pc.unique(rows.column("second")).to_pylist():
            minute, place = divmod(second, 60)
            self._seconds[minute] = self._seconds.get(minute, 0) | 1 << place

    def _count_alerts(self, alerts: Sequence[Alert]) -> None:
        for alert in alerts:
            self._alerts.setdefault(alert.rule, Counter(opened=0, updated=0, closed=0))[alert.state] += 1

    def done(self) -> Summary:
        summary = self.summary
        summary.rejected = dict(self._rejected.most_common())
        summary.ticks = summary.accepted + sum(self._rejected.values())
        summary.symbols = len(self._symbols)
        summary.seconds = sum(bits.bit_count() for bits in self._seconds.values())
        summary.alerts = {rule: dict(states) for rule, states in sorted(self._alerts.items())}
        return summary


def backtest(
    source: Input,
    files: ResultFiles,
    *,
    partitions: int,
    lateness_ms: int | Lateness,
    revise_s: int,
    model: ScoringModel | None = None,
    close: bool = True,
    chunk: int = CHUNK,
    raw_format: RawFormat | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Summary:
    """Runs the pipeline over all partitions of the input, writes the results and puts the files in place.

    Partitions follow each other in the files, in the order in which they begin in the input; the files do not depend on `chunk`.

    Args:
        partitions: how many the log has, for an input that does not say so itself.
        lateness_ms, revise_s, raw_format: as the settings of a worker.
        close: whether seconds that are open at the end are closed, as by a punctuation.

    Raises:
        NoRecords: the input holds no record.
        SourceError: it cannot be used.
    """
    started = time.monotonic()
    partitions = source.partitions() or partitions
    counts, running, seen = _Counts(), dict[Log, tuple[Pipeline, Part]](), set[Log]()

    def feed(log: Log, records: Sequence[RawRecord]) -> None:
        pipeline, part = running[log]
        step = pipeline.feed(records)
        counts.add(step)
        part.rejected(step.rejections)
        if step.windows is not None:
            part.windows(step.windows.rows)
        part.alerts(step.alerts)
        if step.scored is not None:
            part.scored(step.scored)

    def end(log: Log) -> None:
        if close and (last := running[log][0].punctuations()):
            counts.summary.punctuations += len(last)
            feed(log, last)
        files.end(running.pop(log)[1])

    for log, records in source.blocks(chunk, advance):
        if log not in running:
            check_partition(log, partitions)
            if source.one_by_one:
                for other in list(running):
                    end(other)
            pipeline = Pipeline(
                log.partition, partitions, lateness_ms=lateness_ms, revise_s=revise_s, log=log.name or "backtest", model=model, raw_format=raw_format
            )  # fmt: skip
            running[log] = pipeline, files.begin()
            seen.add(log)
        counts.summary.records += len(records)
        feed(log, records)
    for log in list(running):
        end(log)
    if not seen:
        raise NoRecords("there is no record")
    files.commit()
    summary = counts.done()
    summary.logs, summary.partitions = len({log.name for log in seen}), len(seen)
    summary.elapsed_s = round(time.monotonic() - started, 3)
    summary.records_per_s = round(summary.records / max(summary.elapsed_s, 1e-3), 1)
    return summary

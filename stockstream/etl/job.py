"""Runs the pipeline's pure functions over the raw records of some dates, and writes what they give.

The state that a date begins with comes from the records before it: those of `history` dates, or of all. Everything that `clean` remembers of what is quiet is
forgotten after a day of the log's time. So with one date of history the results are those of the whole log, but for what has been alive for longer:

- which of two sources a symbol belongs to that both have it all the time (`other_source`),
- the lateness of a source that was set when the source was heard first,
- the last bits of sums of a series without a pause of 300 s for more than a day: their order begins with the series.
"""

from __future__ import annotations

import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta

import msgspec
import pyarrow as pa

from stockstream.backtest.result_files import SCHEMAS
from stockstream.errors import ArchiveError, SourceError
from stockstream.etl.inputs import PARTITIONED_LOG, PLAIN_LOG, Chunk, RawFolder
from stockstream.etl.outputs import DateRecord, Target, Written
from stockstream.records import CORRECTION, TICKS_SCHEMA, WINDOWS_SCHEMA, Rejection
from stockstream.sinks.archive.clean_settings import KnownSettings, Verdicts
from stockstream.sinks.archive.layout import HOUR_MS, folder_of_hour
from stockstream.sinks.archive.processed import Made, by_span, of_schema, parquet, tables_of
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.schemas import STORED_WINDOWS, times_of
from stockstream.skipped import shortened
from stockstream.transforms.batch import Pipeline, RawRecord, Step

PART_ROWS = 500_000
"""An object ends at so many rows of ticks, or of windows."""
PART_BYTES = 32_000_000
"""And at so many bytes of rejected records."""
ALL = -1
"""Dates of history: all that are there."""


@dataclass(slots=True)
class Summary:
    """What a run has read and written, without its history. Rows by area; objects by what became of them."""

    source: str = ""
    target: str = ""
    begin: str = ""
    end: str = ""
    history_from: str = ""
    records: int = 0
    accepted: int = 0
    rejected: dict[str, int] = field(default_factory=dict)
    first_rejection: str = ""
    rows: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    ignored: int = 0
    elapsed_s: float = 0.0
    raw_dates: list[str] = field(default_factory=list)
    """All dates of which the source has raw records."""


@dataclass(slots=True)
class _Part:
    """The results of consecutive records of one raw folder, until they are written."""

    folder: str
    first: int
    last: int
    ticks: list[pa.RecordBatch] = field(default_factory=list)
    windows: list[pa.RecordBatch] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    rejected_bytes: int = 0

    @property
    def full(self) -> bool:
        rows = max(sum(batch.num_rows for batch in some) for some in (self.ticks, self.windows))
        return rows >= PART_ROWS or self.rejected_bytes >= PART_BYTES


@dataclass(slots=True)
class _Date:
    """What was made of one date of one partition so far."""

    day: date
    before: DateRecord | None
    records: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    objects: dict[str, Written] = field(default_factory=dict)


class _Partition:
    """One partition of one log: its pipeline, and what it has brought."""

    def __init__(self, job: Job, log: str, partition: int, verdicts: Verdicts) -> None:
        self._job, self.log, self.partition, self._verdicts = job, log, partition, verdicts
        partitions = 1 if log == PLAIN_LOG else verdicts.partitions
        if partition >= partitions:
            raise SourceError(f"the input has partition {partition}, and the log has {partitions}: set STOCKSTREAM_PARTITIONS to its number")
        self._pipeline = Pipeline(
            partition, partitions, lateness_ms=verdicts.lateness, revise_s=verdicts.revise_s, log=log, raw_format=verdicts.raw_format, detect=False
        )  # fmt: skip
        self._date: _Date | None = None
        self._part: _Part | None = None
        self.last = -1

    def take(self, chunk: Chunk, verdicts: Verdicts) -> None:
        if (verdicts.revise_s, verdicts.partitions) != (self._verdicts.revise_s, self._verdicts.partitions):
            raise ArchiveError(f"{chunk.name}: STOCKSTREAM_REVISE_S and STOCKSTREAM_PARTITIONS belong to the log, but this object records others than before")
        self._pipeline.cleaner.lateness = self._pipeline.cleaner.memory.lateness = verdicts.lateness
        if chunk.records[0].offset <= self.last:
            raise SourceError(f"{chunk.name}: offset {chunk.records[0].offset} comes after offset {self.last}: records must be in the order of their log")
        self.last = chunk.records[-1].offset
        day = date.fromisoformat(chunk.folder[5:15])
        if not self._job.begin <= day <= self._job.end:
            self._pipeline.feed(chunk.records)
            return
        if self._part is not None and self._part.folder != chunk.folder:
            self._flush()
        if self._date is None or self._date.day != day:
            self._end_date()
            self._date = _Date(day, self._job.target.before(self.log, self.partition, f"{day}"))
        self._date.records += len(chunk.records)
        self._feed(chunk.folder, chunk.records)

    def close(self) -> None:
        """The log ends here: closes the seconds that are open, as a punctuation does."""
        if self._date is not None and (last := self._pipeline.punctuations()):
            self._feed(self._part.folder if self._part is not None else f"date={self._date.day}/hour=23", last)

    def end(self) -> None:
        """The input has nothing more of this partition."""
        self._flush()
        self._end_date()

    def _feed(self, folder: str, records: Sequence[RawRecord]) -> None:
        assert self._date is not None
        step = self._pipeline.feed(records)
        if self._part is None:
            self._part = _Part(folder, records[0].offset, records[-1].offset)
        part = self._part
        part.last = records[-1].offset
        if step.clean is not None and step.clean.rows.num_rows:
            part.ticks.append(step.clean.rows)
            self._date.accepted += int((step.clean.rows.column("flags").to_numpy() & CORRECTION == 0).sum())
        if step.windows is not None and step.windows.rows.num_rows:
            part.windows.append(step.windows.rows)
        self._count_rejections(step, part)
        if part.full:
            self._flush()

    def _count_rejections(self, step: Step, part: _Part) -> None:
        assert self._date is not None
        part.rejections += step.rejections
        part.rejected_bytes += sum(len(rejection.value or "") + len(rejection.detail or "") for rejection in step.rejections)
        self._date.rejected.update(rejection.reason for rejection in step.rejections)
        if step.rejections and not self._job.summary.first_rejection:
            first = step.rejections[0]
            self._job.summary.first_rejection = shortened(f"{first.reason}: {first.detail}" if first.detail else first.reason)

    def _flush(self) -> None:
        """Writes the part: ticks, bars and windows by their own times, and what was rejected in the raw records' folder."""
        part, self._part = self._part, None
        if part is None:
            return
        stem = f"{self.log}-{self.partition:05d}-{part.first:020d}.parquet"
        ticks = pa.Table.from_batches(part.ticks, TICKS_SCHEMA)
        tables = tables_of(self.log, self.partition, part.first, ticks)
        tables += _windows_of(self.log, pa.Table.from_batches(part.windows, WINDOWS_SCHEMA))
        if part.rejections:
            tables.append((f"rejected/{part.folder}", pa.Table.from_pylist([msgspec.structs.asdict(one) for one in part.rejections], SCHEMAS["rejected"])))
        assert self._date is not None
        before = self._date.before.objects if self._date.before is not None else {}
        names = {f"{folder}/{stem}" for folder, _ in tables}
        self._job.target.announce(self.log, self.partition, f"{self._date.day}", names - before.keys())
        for folder, table in tables:
            footer = encode_json(Made(self.log, self.partition, part.first, part.last, table.num_rows))
            self._write(f"{folder}/{stem}", table.num_rows, parquet(table, footer))

    def _write(self, name: str, rows: int, data: bytes) -> None:
        assert self._date is not None
        written = Written(rows, zlib.crc32(data))
        before = self._date.before.objects if self._date.before is not None else {}
        self._job.changed(self._job.target.put(name, data, written, before))
        self._date.objects[name] = written
        area = name.removeprefix("processed/").partition("/")[0]
        self._job.summary.rows[area] = self._job.summary.rows.get(area, 0) + rows

    def _end_date(self) -> None:
        of, self._date = self._date, None
        if of is None:
            return
        job = self._job
        record = DateRecord(
            self.log, self.partition, f"{of.day}", job.summary.history_from, of.records, of.accepted, dict(sorted(of.rejected.items())), of.objects
        )  # fmt: skip
        job.changed("deleted", job.target.end(record, of.before))
        job.summary.records += of.records
        job.summary.accepted += of.accepted
        for reason, count in of.rejected.items():
            job.summary.rejected[reason] = job.summary.rejected.get(reason, 0) + count


def _windows_of(log: str, rows: pa.Table) -> list[tuple[str, pa.Table]]:
    """Folder and table of rows of windows, by the hour of their seconds. There is no topic that they come from: the raw offset stands for a record's."""
    rows = rows.sort_by([(name, "ascending") for name in ("symbol", "second", "source", "offset")])
    rows = rows.append_column("time", times_of(rows.column("second")))
    rows = rows.append_column("log", pa.repeat(pa.scalar(log, pa.string()), rows.num_rows)).append_column("record_offset", rows.column("offset"))
    return [
        (f"processed/windows/{folder_of_hour(hour)}", of_schema(table, STORED_WINDOWS)) for hour, table in by_span(rows, HOUR_MS // 1000, "second")
    ]


class Job:
    """The run of the dates `begin` to `end`.

    Args:
        history: how many dates before `begin` are read for the state; ALL for all.
    """

    def __init__(self, source: RawFolder, target: Target, known: KnownSettings, begin: date, end: date, *, history: int = 1) -> None:
        self.source, self.target, self.begin, self.end = source, target, begin, end
        self._known = known
        earlier = [day for day in source.dates if day < begin and (history == ALL or day >= begin - timedelta(days=history))]
        self._from = min(earlier, default=begin)
        self.summary = Summary(source.store.url, target.store.url, f"{begin}", f"{end}", f"{self._from}" if earlier else "", ignored=source.ignored)
        self.summary.raw_dates = [str(day) for day in source.dates]

    @property
    def size(self) -> int:
        """Bytes to read."""
        return self.source.size(self._from, self.end)

    def changed(self, what: str, count: int = 1) -> None:
        """Counts objects by what became of them."""
        if count:
            self.summary.objects[what] = self.summary.objects.get(what, 0) + count

    def run(self, advance: Callable[[int], None] = lambda done: None) -> Summary:
        """Reads and writes. Raises `StockstreamError`: the next run of a date deletes what was written of it, if it has no record yet."""
        started = time.monotonic()
        running: dict[tuple[str, int], _Partition] = {}
        for number in range((self.end - self.begin).days + 1):
            self.changed("deleted", self.target.clear(f"{self.begin + timedelta(days=number)}"))
        for chunk in self.source.chunks(self._from, self.end, advance):
            key = chunk.log, chunk.partition
            verdicts = self._known.of(chunk.settings, chunk.name)
            if key not in running:
                for other in [one for one in running if one[0] not in (PLAIN_LOG, PARTITIONED_LOG)]:
                    self._end(running.pop(other))
                running[key] = _Partition(self, *key, verdicts)
            running[key].take(chunk, verdicts)
        for partition in running.values():
            self._end(partition)
        self.summary.elapsed_s = round(time.monotonic() - started, 3)
        self.summary.rejected = dict(sorted(self.summary.rejected.items(), key=lambda item: -item[1]))
        return self.summary

    def _end(self, partition: _Partition) -> None:
        if self.source.ends(partition.log, partition.partition, self.end):
            partition.close()
        partition.end()

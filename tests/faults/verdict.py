"""Reads back all output and archive objects of a pipeline, and compares them with the results that its raw log requires."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from models import ScoringModel
from stockstream.kafka.admin import STATE_TABLES, changelog
from stockstream.kafka.client import client_options
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.archive.verifying.verification import check
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.frames import decode
from stockstream.transport.sending import misplaced
from tests.faults.archived_rows import archived_records, archived_topics, processed_ticks
from tests.faults.expected import KINDS, ExpectedLog, Key, expect, of_alert, of_outcomes, of_prediction, of_rejection, of_rows, state_faults
from tests.faults.places import Place
from tests.faults.workers import PATIENCE, Worker

FOREIGN = "fuzz"
"""Header of messages that a case has forged. They are not checked."""
QUIET_S = 2.5
"""The workers close what is open one idle time (1 s) after the last tick: a raw log that has not grown for this long will not, if they are well."""


@dataclass(slots=True)
class Verdict:
    """The result of the checks. `lost`, `invented`, `different` count by topic; `repeated` messages with the same content are allowed."""

    offsets: int = 0
    rows: int = 0
    alerts: int = 0
    predictions: int = 0
    outcomes: int = 0
    rejected: int = 0
    repeated: int = 0
    archived: int = 0
    ticks: int = 0
    """Accepted ticks in the archive; `archived` are its raw records."""
    lost: Counter[str] = field(default_factory=Counter)
    duplicated: Counter[str] = field(default_factory=Counter)
    invented: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    done: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not (self.faults or self.lost or self.duplicated or self.invented or self.different)

    def fault(self, text: str) -> None:
        self.faults.append(text)

    def __str__(self) -> str:
        counts = (
            f"{self.offsets} offsets checked: {self.rows} rows, {self.alerts} alerts, {self.predictions} predictions, {self.outcomes} outcomes, "
            f"{self.rejected} rejections, {self.archived} archived; lost {sum(self.lost.values())}, duplicated {sum(self.duplicated.values())}, "
            f"different {sum(self.different.values())}, invented {sum(self.invented.values())}, repeated {self.repeated}"
        )
        wrong = [f"{name} {dict(counter)}" for name in ("lost", "duplicated", "different", "invented") if (counter := getattr(self, name))]
        shown = self.faults[:12] + ([f"... and {len(self.faults) - 12} more"] if len(self.faults) > 12 else [])
        return "\n  ".join([counts, *wrong, *shown])


class Observer:
    """Reads the topics of a pipeline from outside: `raw[p]` is partition p's log as it was read, before any deletion."""

    def __init__(self, settings: Settings, model: ScoringModel | None) -> None:
        self.settings, self.model = settings, model
        self.raw_logs: list[dict[int, list[RawRecord]]] = [{p: [] for p in range(settings.partitions)}]
        self.published: dict[str, dict[Key, Counter[bytes]]] = {kind: {} for kind in KINDS}
        self.closings: set[Key] = set()
        self.logs: dict[int, set[str]] = defaultdict(set)
        self.stored: dict[str, dict[int, dict[bytes, bytes]]] = {table: defaultdict(dict) for table in STATE_TABLES}
        self.published_at: list[tuple[int, float]] = []
        """Partition and Kafka's time (epoch s) of each frame of `windows`."""
        self._closed_at: dict[tuple[int, str, int], float] = {}
        self.reasons: dict[Key, str] = {}
        """The reason of each rejection."""
        self.ignored: set[int] = set()
        """Partitions that are not checked, because forged messages have taken the place of the pipeline's."""
        self._state_records: dict[TopicPartition, int] = {}
        self._positions: dict[TopicPartition, int] = {}
        self.forged = False
        """Whether a case has forged messages: an archive may have those that could be genuine."""
        self._topics = {settings.topic(kind if kind != "rejected" else "ticks.rejected"): kind for kind in KINDS}
        self._clean = settings.topic("ticks.clean")
        self._raw = settings.topic("ticks.raw")
        self._tables = {changelog(settings, table): table for table in STATE_TABLES}

    @property
    def raw(self) -> dict[int, list[RawRecord]]:
        return self.raw_logs[-1]

    def raw_end(self) -> dict[int, int]:
        return {p: records[-1].offset + 1 if records else 0 for p, records in self.raw.items()}

    def new_log(self) -> None:
        """Called after `ticks.raw` was deleted and created again: records read from now on belong to a new log."""
        self.raw_logs.append({p: [] for p in range(self.settings.partitions)})
        self._positions = {tp: at for tp, at in self._positions.items() if tp.topic != self._raw}

    def forget_state(self) -> None:
        """Makes the next reading read the changelogs from their beginning, as a restart would."""
        self.stored = {table: defaultdict(dict) for table in STATE_TABLES}
        self._state_records = {}
        self._positions = {tp: at for tp, at in self._positions.items() if tp.topic not in self._tables}

    def forget_output(self) -> None:
        """Makes the next reading read every topic but `ticks.raw` from its beginning, as a new subscriber would: the logs may have lost records."""
        self.forget_state()
        self._positions = {tp: at for tp, at in self._positions.items() if tp.topic == self._raw}
        self.published = {kind: {} for kind in KINDS}
        self.closings, self.logs, self.reasons = set(), defaultdict(set), {}

    def state_offsets(self) -> tuple[Counter[str], Counter[str]]:
        """By table: how many offsets its changelog has had, and how many records were read of them since `forget_state`."""
        spans: Counter[str] = Counter()
        counts: Counter[str] = Counter()
        for place, at in self._positions.items():
            if place.topic in self._tables:
                spans[self._tables[place.topic]] += at
                counts[self._tables[place.topic]] += self._state_records.get(place, 0)
        return spans, counts

    def read(self, *, raw_only: bool = False, timeout_s: float = 60.0) -> None:
        """Reads what was published since the last reading."""
        deadline = time.monotonic() + PATIENCE * timeout_s
        while True:
            try:
                asyncio.run(self._read(raw_only))
                return
            except (KafkaError, OSError, asyncio.CancelledError):        # aiokafka's stop() raises the last where a request has just timed out
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    async def _read(self, raw_only: bool) -> None:
        consumer = AIOKafkaConsumer(
            **client_options(self.settings),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        try:
            names = [self._raw] if raw_only else [self._raw, self._clean, *self._topics, *self._tables]
            places = [TopicPartition(name, p) for name in names for p in range(self.settings.partitions)]
            ends = await consumer.end_offsets(places)
            begins = await consumer.beginning_offsets(places)
            open_places = []
            for place in places:
                start = max(self._positions.get(place, 0), begins[place])
                self._positions[place] = start
                if ends[place] > start:
                    open_places.append(place)
            consumer.assign(open_places)
            for place in open_places:
                consumer.seek(place, self._positions[place])
            left = set(open_places)
            while left:
                for place, records in (await consumer.getmany(*left, timeout_ms=500, max_records=20_000)).items():
                    for record in records:
                        self._take(place, record)
                for place in list(left):
                    at = await consumer.position(place)
                    self._positions[place] = at
                    if at >= ends[place]:
                        left.discard(place)
        finally:
            await consumer.stop()

    def _take(self, place: TopicPartition, record: Any) -> None:
        if place.topic == self._raw:
            self.raw[place.partition].append(RawRecord(record.offset, record.timestamp, record.value))
            return
        if place.partition in self.ignored:
            return
        if any(name == FOREIGN for name, _ in record.headers):
            self.forged = True
            return
        if place.topic in self._tables:
            if misplaced(record):
                return
            stored = self.stored[self._tables[place.topic]][place.partition]
            self._state_records[place] = self._state_records.get(place, 0) + 1
            if record.value is None:
                stored.pop(record.key, None)
            else:
                stored[record.key] = record.value
        elif place.topic == self._clean:
            self.logs[place.partition].add(decode(record.value, TICKS_SCHEMA).log)
        else:
            kind = self._topics[place.topic]
            if kind == "windows":
                frame = decode(record.value, WINDOWS_SCHEMA)
                self.logs[place.partition].add(frame.log)
                self.published_at.append((place.partition, record.timestamp / 1000))
                for closing in frame.closings:
                    self._closed_at.setdefault((place.partition, closing.source, closing.second), record.timestamp / 1000)
                self.closings |= {(frame.log, place.partition, c.offset, c.source, c.after, c.second) for c in frame.closings}
                items = list(of_rows(frame))
            elif kind == "outcomes":
                items = list(of_outcomes(record.value))
            else:
                items = [{"alerts": of_alert, "predictions": of_prediction, "rejected": of_rejection}[kind](record.value)]
            if kind == "rejected":
                self.reasons[items[0][0]] = msgspec.json.decode(record.value)["reason"]
            published = self.published[kind]
            for key, content in items:
                published.setdefault(key, Counter())[content] += 1

    def closed_at(self) -> Iterator[tuple[int, str, int, float]]:
        """(partition, source, end of its last second, Kafka's time of the frame that closed it first) of each closing; times in epoch s."""
        for (partition, source, second), at in self._closed_at.items():
            yield partition, source, second + 1, at

    def frames(self) -> list[str]:
        """Every frame of `ticks.clean` and `windows` in a line, for whoever looks into a failure."""
        out: list[str] = []

        async def read() -> None:
            consumer = AIOKafkaConsumer(**client_options(self.settings), group_id=None, auto_offset_reset="earliest", isolation_level="read_committed")
            await consumer.start()
            try:
                places = [TopicPartition(self.settings.topic(name), p) for name in ("ticks.clean", "windows") for p in range(self.settings.partitions)]
                consumer.assign(places)
                await consumer.seek_to_beginning(*places)
                while got := await consumer.getmany(timeout_ms=1_000):
                    for record in (record for some in got.values() for record in some):
                        frame = decode(record.value, WINDOWS_SCHEMA if record.topic == self.settings.topic("windows") else TICKS_SCHEMA)
                        closings = ",".join(f"{c.offset}:{c.source}:{c.after}-{c.second}" for c in frame.closings[:3])
                        place = f"{record.topic}[{record.partition}] {record.offset} at {record.timestamp}"
                        out.append(f"{place}: {frame.log} {frame.start}..{frame.through} part {frame.part}/{frame.parts} {frame.rows.num_rows} rows {closings}")
            finally:
                await consumer.stop()

        asyncio.run(read())
        return sorted(out)

    # -- what must be -------------------------------------------------------

    def expected_logs(self) -> list[ExpectedLog]:
        """The expected output of every partition, for each log in the order of creation."""
        out = []
        for number, raw_log in enumerate(self.raw_logs):
            for partition, records in raw_log.items():
                ids = sorted(self.logs[partition])
                if partition in self.ignored:
                    continue
                at = number - len(self.raw_logs) + len(ids)
                log_id = ids[at] if 0 <= at < len(ids) else "none"
                if records:
                    out.append(expect(records, partition, self.settings, self.model, log_id))
        return out

    def missing(self, expected_logs: list[ExpectedLog]) -> str:
        """A short text on the output that is still missing; empty if none is."""
        short = {kind: sum(1 for expected in expected_logs for key in getattr(expected.output, kind) if key not in self.published[kind]) for kind in KINDS}
        short["closings"] = sum(1 for expected in expected_logs for key in expected.output.closings if key not in self.closings)
        return ", ".join(f"{count} {kind}" for kind, count in short.items() if count)

    def wait_until_complete(self, timeout_s: float) -> tuple[list[ExpectedLog], str]:
        """Waits until the raw log is idle, every second is closed and all output is there. Returns the logs, and what is missing after `timeout_s`."""
        deadline = time.monotonic() + PATIENCE * timeout_s
        expected_logs: list[ExpectedLog] = []
        missing = "not read yet"
        seen: dict[int, int] = {}
        since = time.monotonic()
        judged: tuple[dict[int, int], dict[int, set[str]]] | None = None
        while True:
            self.read()
            now = self.raw_end()
            if now != seen:
                seen, since = now, time.monotonic()
            late = time.monotonic() >= deadline
            if time.monotonic() - since >= QUIET_S or late:
                logs = {p: set(ids) for p, ids in self.logs.items()}
                if judged != (now, logs):
                    expected_logs = self.expected_logs()
                    judged = (dict(now), logs)
                unclosed = sum(expected.open_seconds for expected in expected_logs[-len(self.raw) :])
                missing = self.missing(expected_logs) or (f"{unclosed} sources with an open second" if unclosed else "")
                if not missing or late:
                    return expected_logs, missing
            time.sleep(0.3)

    def verdict(
        self, *, workers: list[Worker] | tuple[Worker, ...] = (), archive: Place | None = None, timeout_s: float = 60.0, states: bool = True,
        same_snapshots: bool = True, view_partitions: Collection[int] | None = None,
    ) -> Verdict:  # fmt: skip
        """Waits until the pipeline is idle, then checks everything; the workers' views only of these partitions, if they are given."""
        out = Verdict()
        expected_logs, missing = self.wait_until_complete(timeout_s)
        if missing:
            out.fault(f"after {PATIENCE * timeout_s:.0f} s still missing: {missing}")
        out.offsets = sum(len(expected.records) for expected in expected_logs)
        for partition, ids in self.logs.items():
            if len(ids) != len([1 for expected in expected_logs if expected.partition == partition]):
                out.fault(f"partition {partition}: log ids {sorted(ids)} for {len(self.raw_logs)} logs")
        want: dict[str, dict[Key, set[bytes]]] = {kind: {} for kind in KINDS}
        closings: set[Key] = set()
        for expected in expected_logs:
            closings |= expected.output.closings
            for kind in KINDS:
                for key, content in getattr(expected.output, kind).items():
                    want[kind].setdefault(key, set()).add(content)  # a place in two logs may have been rejected in each
        for kind, name in zip(KINDS, ("rows", "alerts", "predictions", "outcomes", "rejected"), strict=True):
            self._judge(kind, want[kind], out)
            if kind == "windows" and out.different[kind]:
                out.faults += self.explain(expected_logs)
            setattr(out, name, len(self.published[kind]))
        if lost := len(closings - self.closings):
            out.lost["closings"] = lost
        if invented := self.closings - closings:
            out.invented["closings"] = len(invented)
            out.fault(f"closing {min(invented)} was published, but the log has no such closing")
        newest = {expected.partition: expected for expected in expected_logs}
        if states:
            for partition, expected in newest.items():
                stored = {table: self.stored[table][partition] for table in STATE_TABLES}
                for fault in state_faults(expected, stored, self.settings, self.model, same_snapshots):
                    out.fault(fault)
        if archive is not None:
            self._judge_archive(expected_logs, archive, out, timeout_s)
        for worker in workers:
            self._judge_views({p: expected for p, expected in newest.items() if view_partitions is None or p in view_partitions}, worker, out)
        return out

    def _judge(self, kind: str, want: Mapping[Key, set[bytes]], out: Verdict) -> None:
        published = self.published[kind]
        for key, content in want.items():
            got = published.get(key)
            if got is None:
                out.lost[kind] += 1
                if out.lost[kind] == 1:
                    out.fault(f"{kind}: {key} was never published")
            elif set(got) != content:
                out.different[kind] += 1
                if out.different[kind] == 1:
                    out.fault(f"{kind}: {key} was published with {len(got)} contents, {'one of them right' if content & set(got) else 'none of them right'}")
        for key, got in published.items():
            out.repeated += got.total() - 1
            if key not in want:
                out.invented[kind] += 1
                if out.invented[kind] == 1:
                    out.fault(f"{kind}: {key} was published, but does not follow from the log")

    def explain(self, expected_logs: list[ExpectedLog], most: int = 4) -> list[str]:
        """Describes the first differing rows, after reading the topic once more with its contents."""
        wanted = {
            (expected.log, row["symbol"], row["second"], row["offset"]): row
            for expected in expected_logs for frame in expected.windows for row in frame.rows.to_pylist()
        }  # fmt: skip
        out: list[str] = []

        async def read() -> None:
            consumer = AIOKafkaConsumer(**client_options(self.settings), group_id=None, auto_offset_reset="earliest", isolation_level="read_committed")
            await consumer.start()
            try:
                places = [TopicPartition(self.settings.topic("windows"), p) for p in range(self.settings.partitions)]
                consumer.assign(places)
                await consumer.seek_to_beginning(*places)
                left = 1
                while left and len(out) < most:
                    got = await consumer.getmany(timeout_ms=1_000)
                    left = sum(map(len, got.values()))
                    for record in (record for some in got.values() for record in some):
                        frame = decode(record.value, WINDOWS_SCHEMA)
                        for row in frame.rows.to_pylist():
                            want = wanted.get((frame.log, row["symbol"], row["second"], row["offset"]))
                            if want is not None and want != row and len(out) < most:
                                names = [name for name in row if row[name] != want[name]]
                                shown = ", ".join(f"{name} {row[name]!r} for {want[name]!r}" for name in names[:5])
                                where = f"{record.topic}[{record.partition}] offset {record.offset}"
                                out.append(f"{where}, from {frame.start} through {frame.through}, {row['symbol']} {row['second']} {row['offset']}: {shown}")
            finally:
                await consumer.stop()

        asyncio.run(read())
        return out

    # -- the archive --------------------------------------------------------

    def _judge_archive(self, expected_logs: list[ExpectedLog], place: Place, out: Verdict, timeout_s: float) -> None:
        """Every raw offset once, with its bytes; every accepted tick once."""
        want = {(expected.log, expected.partition, record.offset): record for expected in expected_logs for record in expected.records}
        deadline = time.monotonic() + PATIENCE * timeout_s
        got: Counter[Key] = Counter()
        ticks: Counter[Key] = Counter()
        accepted = {(expected.log, expected.partition, offset, index) for expected in expected_logs for offset, index in expected.accepted}
        while True:
            store = place.read()
            report = check(store) if store is not None else None
            got, wrong = archived_records(place.folder, want)
            ticks = processed_ticks(place.folder)
            for found in (got, ticks):
                for key in [key for key in found if key[1] in self.ignored]:
                    del found[key]
            topics = archived_topics(place.folder, self.published, self.ignored) if place.folder.exists() else {}
            whole = not want.keys() - got.keys() and not accepted - ticks.keys() and not any(lost for lost, _, _ in topics.values())
            if report is not None and not report.faults and whole:
                break
            if time.monotonic() >= deadline:
                break
            time.sleep(0.5)
        if store is not None:                                            # what raw gives is computed once: it takes as long as clean takes
            report = check(store, known=KnownSettings(self.settings))
        out.archived, out.ticks = got.total(), ticks.total()
        for fault in report.faults if report else ["there is no archive"]:
            out.fault(f"verify: {fault}")
        for name, wanted, found in (("archive", set(want), got), ("processed ticks", accepted, ticks)):
            if absent := wanted - found.keys():
                out.lost[name] = len(absent)
                out.fault(f"{name}: {min(absent)} is missing")
            if foreign := found.keys() - wanted:
                out.invented[name] = len(foreign)
                out.fault(f"{name}: {min(foreign)} is not in the log")
            if doubled := [key for key, count in found.items() if count > 1]:
                out.duplicated[name] = len(doubled)
                out.fault(f"{name}: {min(doubled)} is there {found[min(doubled)]} times")
        for name, (lost, twice, invented) in topics.items():
            for what, keys, count in (("is missing", lost, out.lost), ("is there twice", twice, out.duplicated), ("was not published", invented, out.invented)):
                if keys and not (self.forged and what == "was not published"):
                    count[f"archived {name}"] = len(keys)
                    out.fault(f"archived {name}: {min(keys)} {what}")
        if wrong:
            out.different["archive"] = len(wrong)
            out.fault(f"archive: {wrong[0]} has other bytes than the log")

    # -- the views ----------------------------------------------------------

    def _judge_views(self, newest: Mapping[int, ExpectedLog], worker: Worker, out: Verdict, timeout_s: float = 15.0) -> None:
        deadline = time.monotonic() + PATIENCE * timeout_s
        rows = [row for expected in newest.values() for row in expected.last_rows.values() if row["symbol"] not in expected.several]
        rows = rows[:: max(1, len(rows) // 24)]
        while True:
            wrong = []
            for row in rows:
                answer = worker.get(f"/api/symbols/{row['symbol']}")
                last = (answer or {}).get("last") or {}
                different = [
                    name
                    for name in ("second", "offset", "close", "volume", "volume_5m", "mean_5m", "high_5m", "low_5m", "ticks_5m")
                    if last.get(name) != _shown(row[name])
                ]
                if different:
                    wrong.append(
                        f"{worker.name}: the view of {row['symbol']} has another {', '.join(different)}: {last.get(different[0])!r} for {row[different[0]]!r}"
                    )
            if not wrong or time.monotonic() >= deadline:
                break
            time.sleep(0.5)
        out.faults += wrong[:3]


def _shown(value: Any) -> Any:
    """A number as the views write it: with twelve significant digits."""
    return float(f"{value:.12g}") if isinstance(value, float) else value

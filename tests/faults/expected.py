"""The expected results, computed from the raw log in Kafka by the pure function, and checked by the model in `tests/model`."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from models import ScoringModel
from stockstream.records import Closing
from stockstream.settings import Settings
from stockstream.transforms import batch
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import state as cleaning_state
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import Frame
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import Scored, Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.windows.windows import Windows
from tests.model import windows_model

TIMES = ("made_at", "judged_at", "latency_ms")
"""Fields that may differ between two messages with the same result."""

Key = tuple[Any, ...]
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode


def digest(content: Any) -> bytes:
    """A short form of content in which two messages are the same or not."""
    return hashlib.blake2b(repr(content).encode(), digest_size=12).digest()


def of_rows(frame: Frame) -> Iterable[tuple[Key, bytes]]:
    """Key (symbol, second, offset) and digest of each row of a `windows` frame."""
    names = frame.rows.schema.names
    columns = [frame.rows.column(name).to_pylist() for name in names]
    at = [names.index(name) for name in ("symbol", "second", "offset")]
    for row in zip(*columns, strict=True):
        yield (row[at[0]], row[at[1]], row[at[2]]), digest(row)


def of_alert(value: bytes) -> tuple[Key, bytes]:
    item = _decode(value)
    return (item["id"], item["state"], item["as_of"]), digest(sorted(item.items(), key=lambda kv: kv[0]))


def of_prediction(value: bytes) -> tuple[Key, bytes]:
    item = _decode(value)
    return (item["id"],), digest(sorted((k, v) for k, v in item.items() if k not in TIMES))


def of_outcomes(value: bytes) -> Iterable[tuple[Key, bytes]]:
    for item in _decode(value):
        yield (item["id"], item["horizon_s"]), digest(sorted((k, v) for k, v in item.items() if k not in TIMES))


def of_rejection(value: bytes) -> tuple[Key, bytes]:
    item = _decode(value)
    return (item["partition"], item["offset"], item.get("index", -1)), digest(sorted(item.items(), key=lambda kv: kv[0]))


@dataclass(slots=True)
class Output:
    """The actual or expected output, by topic: key -> digest of the content. `closings` are (log, partition, offset, source, after, second)."""

    windows: dict[Key, bytes] = field(default_factory=dict)
    alerts: dict[Key, bytes] = field(default_factory=dict)
    predictions: dict[Key, bytes] = field(default_factory=dict)
    outcomes: dict[Key, bytes] = field(default_factory=dict)
    rejected: dict[Key, bytes] = field(default_factory=dict)
    closings: set[Key] = field(default_factory=set)

    def add(self, other: Output) -> None:
        for name in ("windows", "alerts", "predictions", "outcomes", "rejected"):
            getattr(self, name).update(getattr(other, name))
        self.closings |= other.closings


KINDS = ("windows", "alerts", "predictions", "outcomes", "rejected")


@dataclass(slots=True)
class ExpectedLog:
    """One partition of one raw log: its records, the output expected of them, and the expected state of the cores at its end."""

    partition: int
    log: str
    records: list[RawRecord]
    output: Output
    last_rows: dict[str, dict[str, Any]]
    several: set[str]
    """Symbols with rows of more than one source: which of them is the last is for the view to say."""
    cores: Cores
    clean: list[Frame]
    windows: list[Frame]
    accepted: set[tuple[int, int]]
    open_seconds: int

    @property
    def end(self) -> int:
        """Offset after the last record."""
        return self.records[-1].offset + 1 if self.records else 0


class Cores:
    """The state machines of one partition."""

    def __init__(self, cleaner: Cleaner, windows: Windows, detector: Detector, scorer: Scorer) -> None:
        self.cleaner, self.windows, self.detector, self.scorer = cleaner, windows, detector, scorer

    def frame(self, frame: Frame) -> tuple[Frame | None, list[Any], Scored | None]:
        """What a frame of `ticks.clean` brings: the frame of `windows` with its rows, alerts, and what was scored."""
        windows = self.windows
        if windows.expect >= 0 and frame.through < windows.expect:
            return None, [], None
        rows = windows.take_frame(frame)
        windows.records(0)
        if rows is None or not rows.closings:
            return None, [], None
        closed = Frame(windows.log, rows.start, rows.through, tuple(rows.closings), rows.batch(windows.partition))
        found = self.detector.take_frame(closed)
        return closed, found.alerts if found else [], self.scorer.take_frame(closed)


def expect(records: Sequence[RawRecord], partition: int, settings: Settings, model: ScoringModel | None, log: str) -> ExpectedLog:
    """Computes the expected output of one partition's log."""
    out = batch.run(
        records, partition=partition, partitions=settings.partitions, lateness_ms=settings.lateness, revise_s=settings.revise_s, log=log, model=model
    )
    output = Output()
    last_rows: dict[str, dict[str, Any]] = {}
    several: set[str] = set()
    for frame in out.windows:
        output.windows.update(of_rows(frame))
        output.closings |= {(log, partition, *_of_closing(c)) for c in frame.closings}
        for row in frame.rows.to_pylist():
            known = last_rows.get(row["symbol"])
            if known is not None and known["source"] != row["source"]:
                several.add(row["symbol"])
            if known is None or (row["second"], row["offset"]) >= (known["second"], known["offset"]):
                last_rows[row["symbol"]] = row
    output.alerts.update(of_alert(_encode(alert)) for alert in out.alerts)
    for scored in out.scored:
        output.predictions.update(of_prediction(value) for value in encode_predictions(scored, 0, {}))
        for value in encode_outcomes(scored, 0):
            output.outcomes.update(of_outcomes(value))
    output.rejected.update(of_rejection(_encode(rejection)) for rejection in out.rejections)
    cleaner = Cleaner(partition, settings.partitions, lateness_ms=settings.lateness, revise_s=settings.revise_s, log=log)
    cleaner.chunk(records)
    cleaner.make_frame()
    cores = Cores(cleaner, Windows(partition, revise_s=settings.revise_s), Detector(partition), Scorer(partition))
    if model is not None:
        cores.scorer.set_champion(model, 0)
    accepted = set()
    for frame in out.clean:
        cores.frame(frame)
        accepted |= set(zip(frame.rows.column("offset").to_pylist(), frame.rows.column("index").to_pylist(), strict=True))
    return ExpectedLog(partition, log, list(records), output, last_rows, several, cores, out.clean, out.windows, accepted, len(list(cleaner.idle())))


def _of_closing(closing: Closing) -> tuple[Any, ...]:
    return closing.offset, closing.source, closing.after, closing.second


# -- the model ----------------------------------------------------------


def model_faults(expected: ExpectedLog, most_records: int, settings: Settings) -> list[str]:
    """Where the rows of the log's first records are not those of `windows_model.py`; it is slow."""
    some = expected.records[:most_records]
    if not some:
        return []
    last = some[-1].offset
    out = batch.run(some, partition=expected.partition, partitions=settings.partitions, lateness_ms=settings.lateness, revise_s=settings.revise_s)
    got = {(row["symbol"], row["second"], row["offset"]): row for frame in out.windows for row in frame.rows.to_pylist()}
    closings = windows_model.closings(_as_the_model_reads(some, expected))
    want = {(row["symbol"], row["second"], row["offset"]): row for closing in closings for row in closing["rows"]}
    faults = [f"the model has row {key}, through offset {last}" for key in want.keys() - got.keys()]
    faults += [f"the model has no row {key}, through offset {last}" for key in got.keys() - want.keys()]
    for key in want.keys() & got.keys():
        for name, value in want[key].items():
            mine = got[key][name]
            tolerance = 1e-12 if name == "return_std_5m" else 0.0
            same = math.isclose(mine, value, rel_tol=1e-9, abs_tol=tolerance) if isinstance(value, float) and mine is not None else mine == value
            if not same:
                faults.append(f"row {key}: {name} is {mine!r}, the model's {value!r}")
    return faults


def _as_the_model_reads(records: Sequence[RawRecord], expected: ExpectedLog) -> list[tuple[int, Any, int]]:
    """The log after cleaning, with what the model judges itself (late, other_source) still in it, sizes as `clean` derived them."""
    ticks: dict[int, list[dict[str, Any]]] = {}
    for frame in expected.clean:
        for row in frame.rows.to_pylist():
            ticks.setdefault(row["offset"], []).append(row)
    like = expected.cores.cleaner
    cleaner = Cleaner(expected.partition, like.partitions, lateness_ms=like.lateness, revise_s=like.revise_s, log="x")
    own: dict[int, list[tuple[int, dict[str, Any]]]] = {}
    for rejection in cleaner.chunk(records):
        if rejection.reason in ("late", "other_source"):
            tick = {"source": "default", "size": 0} | json.loads(rejection.value or "")
            own.setdefault(rejection.offset, []).append((max(rejection.index, 0), tick))
    log: list[tuple[int, Any, int]] = []
    for record in records:
        item = None
        if record.value and b'"punctuate"' in record.value:
            item = json.loads(record.value)
            if not (isinstance(item, dict) and 0 < item["punctuate"] * 1000 <= record.timestamp + 2_000):
                continue
            log.append((record.offset, {"source": "default"} | item, record.timestamp))
            continue
        some = [(row["index"], row) for row in ticks.get(record.offset, [])] + own.get(record.offset, [])
        if some:
            log.append((record.offset, [tick for _, tick in sorted(some, key=lambda pair: pair[0])], record.timestamp))
    return log


# -- the state in the changelogs --------------------------------------------------


def state_faults(
    expected: ExpectedLog, stored: Mapping[str, Mapping[bytes, bytes]], settings: Settings, model: ScoringModel | None, same_snapshot: bool = True
) -> list[str]:
    """Where the state that the changelogs hold (`stored`: records by table) is not the one that the log makes.

    A core restored from them and given the rest of the log must be the model's core: the snapshot of `clean` says the same, and all say the same of a
    continuation of the log that touches every symbol, late ticks included. Without `same_snapshot` only the continuation counts: a snapshot that an earlier
    release began knows less of when each entry was last accepted.
    """
    faults: list[str] = []
    partition = expected.partition
    if not expected.records:
        return faults

    def load(name: str, version: str) -> ScoringModel:
        assert model is not None and (model.name, model.version) == (name, version)
        return model

    if not stored["clean"]:
        return [f"partition {partition}: the changelog of clean is empty"]
    cleaner = Cleaner.restore(partition, settings.partitions, stored["clean"], lateness_ms=settings.lateness, revise_s=settings.revise_s)
    if cleaner.log != expected.log:
        return [f"partition {partition}: clean's log is {cleaner.log}, the frames' is {expected.log}"]
    cleaner.chunk([record for record in expected.records if record.offset >= cleaner.expect])
    cleaner.make_frame()
    if same_snapshot and cleaner.expect >= 0 and _plain(cleaner.snapshot()) != _plain(expected.cores.cleaner.snapshot()):
        faults.append(f"partition {partition}: the snapshot of clean is another")
    restored = Cores(
        cleaner,
        Windows.restore(partition, stored["aggregate"], revise_s=settings.revise_s),
        Detector.restore(partition, stored["detect"]),
        Scorer.restore(partition, stored["score"], load),
    )
    for name, core in (("aggregate", restored.windows), ("detect", restored.detector), ("score", restored.scorer)):
        if core.expect < 0 and expected.output.closings:
            faults.append(f"partition {partition}: the changelog of {name} is empty")
            return faults
        if core.log != expected.log and expected.output.closings:
            faults.append(f"partition {partition}: {name}'s log is {core.log}, the frames' is {expected.log}")
            return faults
    closed: list[Frame] = []
    mine = Windows(partition, revise_s=settings.revise_s)
    for frame in expected.clean:
        rows = mine.take_frame(frame)
        mine.records(0)
        if rows is not None and rows.closings:
            closed.append(Frame(mine.log, rows.start, rows.through, tuple(rows.closings), rows.batch(partition), log_clock=rows.log_clock))
    for frame in expected.clean:
        if frame.through >= restored.windows.expect and restored.windows.take_frame(frame) is None:
            faults.append(f"partition {partition}: aggregate's state goes on at {restored.windows.expect}, which no frame follows")
            return faults
        restored.windows.records(0)
    for frame in closed:
        for core in (restored.detector, restored.scorer):
            if frame.through >= core.expect and core.take_frame(frame) is None:
                faults.append(f"partition {partition}: the state of {type(core).__name__} goes on at {core.expect}, which no frame follows")
                return faults
    probe = _continuation(expected)
    got, want = _answers(restored, probe), _answers(expected.cores, probe)
    for name, values in want.items():
        if got[name] != values:
            different = sum(1 for key, value in values.items() if got[name].get(key) != value) + len(got[name].keys() - values.keys())
            first = next(key for key in [*values, *got[name]] if got[name].get(key) != values.get(key))
            faults.append(
                f"partition {partition}: after the state in the changelogs {different} of {len(values)} {name} of the log's continuation differ, first {first}"
            )
    return faults


def _plain(snapshot: bytes) -> Any:
    """A snapshot's content, whatever the order in which its sources and symbols became known."""
    state = cleaning_state.decoded(snapshot)
    columns = (state.expect, state.log, state.lateness_ms, state.revise_s, state.partitions, state.last_record, state.accepted, state.rejected, state.log_clock)
    return columns, state.sources(), state.held()


def _continuation(expected: ExpectedLog) -> list[RawRecord]:
    """What might follow: three more seconds of every symbol, late ticks among them, and a minute later a punctuation that closes all."""
    newest: dict[str, int] = {}
    for row in expected.last_rows.values():
        newest[row["source"]] = max(newest.get(row["source"], 0), row["second"])
    offset, stamp = expected.end, expected.records[-1].timestamp + 120_000
    records: list[RawRecord] = []
    for step in range(1, 4):
        ticks = []
        for symbol, row in sorted(expected.last_rows.items()):
            second = newest[row["source"]] + step
            price = (row["close"] or row["price"] or 10.0) * (1.001 if step != 2 else 0.97)
            ticks.append({"symbol": symbol, "source": row["source"], "event_time": second * 1000 + 10 * step, "price": round(price, 4), "size": 100 * step})
            if step == 2:
                ticks.append(ticks[-1] | {"event_time": (newest[row["source"]] - 9) * 1000, "size": 7})
        records.append(RawRecord(offset, stamp, _encode(ticks)))
        offset += 1
    for source, second in sorted(newest.items()):
        records.append(RawRecord(offset, stamp, _encode({"punctuate": second + 65, "source": source})))
        offset += 1
    return records


def _answers(cores: Cores, probe: Sequence[RawRecord]) -> dict[str, dict[Key, bytes]]:
    output = Output()
    for record in probe:
        output.rejected.update(of_rejection(_encode(rejection)) for rejection in cores.cleaner.chunk([record]))
        frame = cores.cleaner.make_frame()
        if frame is None:
            continue
        closed, alerts, scored = cores.frame(frame)
        if closed is not None:
            output.windows.update(of_rows(closed))
        output.alerts.update(of_alert(_encode(alert)) for alert in alerts)
        if scored is not None:
            output.predictions.update(of_prediction(value) for value in encode_predictions(scored, 0, {}))
            for value in encode_outcomes(scored, 0):
                output.outcomes.update(of_outcomes(value))
    return {name: getattr(output, name) for name in KINDS}

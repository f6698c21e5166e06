"""Every producer of messages and state at its largest: whatever is in the log, each message fits, and what was stored brings the same machines back.

`Pipeline` drives the four state machines as the agents do, over the bytes that would be sent. A message that is too large ends the test where it is made.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import msgspec
import pytest

from stockstream.kafka.client import MAX_BATCH_BYTES
from stockstream.records import TEXTS, TICKS_SCHEMA, WINDOWS_SCHEMA, Rejection
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TEXT
from stockstream.transforms.frames import Assembler, Frame, decode, encode_within
from stockstream.transforms.rules.detector import Detected, Detector
from stockstream.transforms.scoring.scorer import Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.windows.rows import WindowRows
from stockstream.transforms.windows.windows import Windows
from tests.fixtures.make import Model

LIMIT = MAX_BATCH_BYTES - 2_000
"""Bytes of a value: keys, headers and the record batch around them need the rest."""
SYMBOLS = 20_000
BEGIN_S = 1_700_000_000
OF_A_RECORD = 2_000
Tick = dict[str, Any]
Records = list[tuple[bytes, bytes]]


def fits(values: Iterable[bytes | tuple[bytes, bytes]], what: str) -> None:
    for value in values:
        size = len(value) if isinstance(value, bytes) else sum(map(len, value))
        assert size <= LIMIT, f"{what}: a message of {size:,} bytes"


class Pipeline:
    """The state machines of one partition, the frames between them, and what their changelogs hold."""

    def __init__(self) -> None:
        self.cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="a")
        self.windows, self.detector, self.scorer = Windows(0, revise_s=30), Detector(0), Scorer(0)
        self.scorer.set_champion(Model(), 0)
        self.frames: list[Frame] = []
        self.stored: dict[str, dict[bytes, bytes]] = {table: {} for table in ("clean", "aggregate", "detect", "score")}
        self.at = 0
        self.results: dict[str, list[Any]] = {}
        self.taken: list[dict[str, list[Any]]] = []

    def feed(self, values: Sequence[Any], ts_s: int) -> dict[str, list[Any]]:
        """A chunk of messages (JSON values or bytes) that arrive at `ts_s`; returns all that comes of it."""
        records = [RawRecord(self.at + n, ts_s * 1000, v if isinstance(v, bytes) else json.dumps(v).encode()) for n, v in enumerate(values)]
        self.at += len(records)
        rejections = self.cleaner.chunk(records)
        fits(map(msgspec.json.encode, rejections), "ticks.rejected")
        out: dict[str, list[Any]] = {"rejections": [(r.reason, r.offset, r.index) for r in rejections]} | {name: [] for name in ("rows", "alerts", "told")}
        frame = self.cleaner.make_frame()
        assert frame is not None
        self._store("clean", self.cleaner.records(1))
        assembler = Assembler()
        for data in encode_within(frame):
            fits([data], "ticks.clean")
            whole = assembler.feed(decode(data, TICKS_SCHEMA))
            if whole is not None:
                self.frames.append(whole)
                self._clean(whole, len(self.frames) - 1, out)
        return out

    def _clean(self, frame: Frame, number: int, out: dict[str, list[Any]]) -> None:
        rows = self.windows.take_frame(frame, number)
        assert rows is not None
        if rows.closings:
            closed = Frame("a", rows.start, rows.through, tuple(rows.closings), rows.batch(0))
            assembler = Assembler()
            for data in encode_within(closed):
                fits([data], "windows")
                whole = assembler.feed(decode(data, WINDOWS_SCHEMA))
                if whole is not None:
                    self._windows(whole, out)
        self._store("aggregate", self.windows.records(1), self.windows)
        self._store("detect", self.detector.records(1), self.detector)
        self._store("score", self.scorer.records(1), self.scorer)

    def _windows(self, frame: Frame, out: dict[str, list[Any]]) -> None:
        out["rows"] += frame.rows.to_pylist()
        found, scored = self.detector.take_frame(frame), self.scorer.take_frame(frame)
        assert found is not None and scored is not None
        alerts = [msgspec.json.encode(alert) for alert in found.alerts]
        told = [*encode_predictions(scored, 0, {}), *encode_outcomes(scored, 0)]
        fits(alerts, "alerts")
        fits(map(msgspec.json.encode, found.markets), "market")
        fits(told, "predictions and outcomes")
        out["alerts"] += alerts
        out["told"] += told

    def _store(self, table: str, records: Records, machine: Any = None) -> None:
        fits(records, f"the changelog of {table}")
        self.stored[table].update(records)
        if records and machine is not None:
            machine.index.confirmed(-1, -1)

    def restored(self) -> Pipeline:
        """Another one, from what the changelogs hold and the frames that are read again."""
        again = Pipeline()
        again.cleaner = Cleaner.restore(0, 1, self.stored["clean"], lateness_ms=200, revise_s=30)
        again.windows = Windows.restore(0, self.stored["aggregate"], revise_s=30)
        again.detector = Detector.restore(0, self.stored["detect"])
        again.scorer = Scorer.restore(0, self.stored["score"], lambda name, version: Model(name, version))
        again.at, again.stored = self.at, self.stored
        for number, frame in enumerate(self.frames):
            if number >= again.windows.resume_input:
                rows = again.windows.take_frame(frame, number)
                assert rows is not None
        return again


class Noted(Windows):
    """Windows that note for each frame whether they said that it takes long."""

    long: ClassVar[list[bool]] = []

    def take_frame(self, frame: Frame, input_offset: int = 0) -> WindowRows | None:
        self.long.append(self.takes_long(frame.rows))
        return super().take_frame(frame, input_offset)


def arrays(ticks: Sequence[Tick]) -> list[list[Tick]]:
    return [list(ticks[at : at + OF_A_RECORD]) for at in range(0, len(ticks), OF_A_RECORD)]


def goes_on_alike(pipeline: Pipeline, chunks: Sequence[tuple[Sequence[Any], int]]) -> dict[str, list[Any]]:
    """Feeds the chunks to the pipeline and to one that was restored from its changelogs; both must tell the same."""
    again = pipeline.restored()
    together: dict[str, list[Any]] = {}
    for values, ts_s in chunks:
        got, want = again.feed(values, ts_s), pipeline.feed(values, ts_s)
        for kind, items in want.items():
            assert got[kind] == items, f"after a restart, other {kind}"
            together.setdefault(kind, []).extend(items)
    return together


def cjk(number: int, length: int) -> str:
    """A text of its own of so many letters, three bytes each."""
    return f"{number:05d}".translate({48 + digit: 0x4E00 + digit for digit in range(10)}).ljust(length, "漢")


@pytest.mark.slow
def test_a_partition_of_20000_symbols_that_all_alert_and_are_restored_in_the_midst() -> None:
    pipeline = Pipeline()
    price, volume = 100.0, 10

    def ticks(second: int) -> list[list[Tick]]:
        at = (BEGIN_S + second) * 1000
        return arrays([{"symbol": f"S{n:06d}", "event_time": at, "price": price, "size": volume} for n in range(SYMBOLS)])

    for second in (0, 70, 130):
        pipeline.feed(ticks(second), BEGIN_S + second)
    price, volume = 98.0, 10_000
    pipeline.feed(ticks(135), BEGIN_S + 135)
    told = pipeline.feed([{"punctuate": BEGIN_S + 135}], BEGIN_S + 137)
    assert len(told["alerts"]) == 2 * SYMBOLS
    price, volume = 96.0, 20_000
    told = goes_on_alike(pipeline, [(ticks(270), BEGIN_S + 270), ([{"punctuate": BEGIN_S + 270}], BEGIN_S + 272)])
    assert len(told["alerts"]) == 4 * SYMBOLS, "all closed, all opened again"


def test_frames_that_hold_others_up_are_known_before_they_are_taken() -> None:
    """Thousands of symbols that are new or known, alerts that open, stay open or close; not a plain second, however many ticks it has."""
    pipeline = Pipeline()
    pipeline.windows = Noted(0, revise_s=30)
    many = 4_000
    said: list[bool] = []
    feed = pipeline.detector.take_frame

    def noted(frame: Frame) -> Detected | None:
        said.append(pipeline.detector.takes_long(frame.rows))
        return feed(frame)

    pipeline.detector.take_frame = noted  # type: ignore[method-assign, assignment]

    def second(number: int, count: int, price: float, size: int) -> tuple[bool, bool]:
        Noted.long.clear()
        said.clear()
        at = (BEGIN_S + number) * 1000
        ticks = [{"symbol": f"S{n % count:06d}", "event_time": at, "price": price, "size": size} for n in range(many)]
        pipeline.feed(arrays(ticks), BEGIN_S + number)
        pipeline.feed([{"punctuate": BEGIN_S + number}], BEGIN_S + number + 1)
        return any(Noted.long), any(said)

    assert second(0, 100, 100.0, 10) == (False, False)
    assert second(70, many, 100.0, 10) == (True, False)
    assert second(130, many, 100.0, 10) == (True, False)
    assert second(135, many, 98.0, 10_000) == (True, True), "all open two alerts"
    assert second(136, 1, 98.0, 10) == (True, True), "so many that may close"


@pytest.mark.slow
def test_a_partition_of_20000_symbols_with_the_longest_names_numbers_and_snapshots() -> None:
    pipeline = Pipeline()
    longest = dict.fromkeys(TEXTS, "漢" * MAX_TEXT)

    def ticks(second: int, seq: int) -> list[list[Tick]]:
        at = (BEGIN_S + second) * 1000
        some = [{"symbol": cjk(n, 32), "event_time": at, "price": 10.0, "day_volume": 100 + seq, "seq": seq, "snapshot": True} for n in range(SYMBOLS)]
        return [array[k : k + 200] for array in arrays([tick | longest for tick in some]) for k in range(0, OF_A_RECORD, 200)]

    pipeline.feed(ticks(0, 1), BEGIN_S)
    told = goes_on_alike(pipeline, [(ticks(0, 1)[:3], BEGIN_S + 1), (ticks(2, 2)[:10], BEGIN_S + 2), ([{"punctuate": BEGIN_S + 3}], BEGIN_S + 5)])
    assert {reason for reason, *_ in told["rejections"]} == {"duplicate"}


@pytest.mark.parametrize("length", [MAX_TEXT, 1_024])
def test_snapshots_with_texts_at_their_limit_and_beyond(length: int) -> None:
    pipeline = Pipeline()
    texts = dict.fromkeys(TEXTS, "x" * length)
    ticks = [{"symbol": f"S{n}", "event_time": BEGIN_S * 1000, "price": 10.0, "size": 1, "snapshot": True} | texts for n in range(150)]
    told = pipeline.feed(ticks, BEGIN_S)
    assert not told["rejections"] or length > MAX_TEXT
    goes_on_alike(pipeline, [([tick | {"event_time": (BEGIN_S + 5) * 1000} for tick in ticks], BEGIN_S + 5)])


@pytest.mark.slow
def test_2000_sources_with_the_longest_names() -> None:
    pipeline = Pipeline()

    def ticks(second: int) -> list[list[Tick]]:
        at = (BEGIN_S + second) * 1000
        return [
            [{"symbol": f"S{n}", "source": cjk(n, MAX_SOURCE), "event_time": at, "price": 10.0, "size": 1} for n in range(begin, begin + 500)]
            for begin in range(0, 2_000, 500)
        ]

    for second in (0, 2):
        pipeline.feed(ticks(second), BEGIN_S + second)
    told = goes_on_alike(pipeline, [(ticks(4), BEGIN_S + 4)])
    assert told["rows"]


@pytest.mark.slow
def test_one_record_with_two_ticks_of_each_of_2500_sources() -> None:
    pipeline = Pipeline()
    ticks = [
        {"symbol": f"S{n}", "source": cjk(n, MAX_SOURCE), "event_time": (BEGIN_S + second) * 1000, "price": 10.0, "size": 1}
        for n in range(2_500) for second in (0, 2)
    ]  # fmt: skip
    told = pipeline.feed([msgspec.json.encode(ticks)], BEGIN_S + 3)
    assert len({tuple(row) for row in told["rejections"]}) == len(told["rejections"])
    goes_on_alike(pipeline, [([{"symbol": "S1", "source": cjk(1, MAX_SOURCE), "event_time": (BEGIN_S + 5) * 1000, "price": 10.0, "size": 1}], BEGIN_S + 6)])


@pytest.mark.slow
def test_4000_punctuations_of_sources_with_long_names() -> None:
    pipeline = Pipeline()
    names = [cjk(n, MAX_SOURCE) for n in range(4_000)]
    pipeline.feed([{"punctuate": BEGIN_S, "source": name} for name in names], BEGIN_S + 1)
    goes_on_alike(pipeline, [([{"punctuate": BEGIN_S + 1, "source": name} for name in names], BEGIN_S + 2)])


def test_a_punctuation_with_an_unknown_field_that_is_named_by_640_kilobytes() -> None:
    pipeline = Pipeline()
    told = pipeline.feed([{"punctuate": BEGIN_S, "x" * 640_000: 1}, {"punctuate": BEGIN_S, "漢" * 300_000: 1}], BEGIN_S + 1)
    assert len(told["rejections"]) == 2


LARGEST = {"zeros": b"\0" * 999_000, "slashes": b'"' + b"\\" * 900_000 + b'"', "letters": "漢".encode() * 300_000, "deep": b"[" * 900_000}


@pytest.mark.parametrize("value", LARGEST.values(), ids=LARGEST)
def test_a_rejection_of_the_largest_record_fits(value: bytes) -> None:
    cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="a")
    rejections: list[Rejection] = cleaner.chunk([RawRecord(0, BEGIN_S * 1000, value)])
    assert len(rejections) == 1
    fits(map(msgspec.json.encode, rejections), "ticks.rejected")


def test_a_record_of_which_every_tick_is_rejected() -> None:
    """More than a megabyte of rejections comes of one offset: each is a message of its own."""
    pipeline = Pipeline()
    told = pipeline.feed([[{"symbol": "漢" * 40, "event_time": BEGIN_S * 1000, "price": -1}] * 8_000], BEGIN_S)
    assert len(told["rejections"]) == 8_000

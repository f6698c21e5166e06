"""What hostile input is given to: the product's own readers, with the errors that each documents. Anything else that comes out is a fault.

A target makes a batch of inputs from a seeded generator and gives each to a reader; inputs that are refused must leave the reader as it was, which a good
message afterwards shows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from models import ScoringModel
from stockstream.errors import FrameError, StateError
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.sources.ingestion import Ingest
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import Assembler, Frame, decode, encode_within, received
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.windows.windows import Windows
from stockstream.web.live import Live
from tests.fixtures.make import BEGIN_S, LATENESS_MS, PARTITION, PARTITIONS, REVISE_S, Model
from tests.fuzz.corpus import CUT_S, Corpus, Machines, clean_records, corpus
from tests.fuzz.frames import hostile_frame
from tests.fuzz.mutations import Rng, changed, changed_bytes, changed_json, leaf

LOUD = 16
"""Of the messages that a machine makes of a forged frame, so many are looked at."""


class Found(AssertionError):
    """A reader did what it must not; one line says what."""


@dataclass
class Batch:
    """Inputs of one target, the count of them and of those that were refused with a documented error."""

    kept: Path | None = None
    """Holds each input while it is given away: what it was is known even where the process dies of it."""
    inputs: int = 0
    refused: int = 0

    def given(self, data: bytes) -> None:
        self.inputs += 1
        if self.kept is not None:
            self.kept.write_bytes(data)


Run = Callable[[Rng, int, Batch], None]


@dataclass(frozen=True)
class Target:
    """`share` of all inputs, `size` of them in a batch."""

    name: str
    share: float
    size: int
    run: Run = field(repr=False)


# -- JSON -----------------------------------------------------------------------


def raw_ticks(rng: Rng, count: int, batch: Batch) -> None:
    """`clean` takes whatever is in `ticks.raw`: nothing is an error, and each place is accepted or rejected once."""
    source = corpus()
    machines = source.machines.copy()
    cleaner = machines.cleaner
    good = [record.value for record in source.records_after if record.value]
    ts = (BEGIN_S + CUT_S + 30) * 1000
    while batch.inputs < count:
        records: list[RawRecord] = []
        for _ in range(min(rng.choice((1, 40, 500)), count - batch.inputs)):
            value: bytes | None = rng.choice(good) if rng.random() < 0.2 else changed_json(rng, source.messages["ticks.raw"])
            if rng.random() < 0.005:
                value = None
            batch.given(value or b"")
            stamp = ts + rng.choice((0, 0, 0, -1, 5_000, -(10**9), 10**9, 2**62)) if rng.random() < 0.01 else ts
            records.append(RawRecord(cleaner.expect + len(records), stamp, value))
        rejections = cleaner.chunk(records)
        batch.refused += len(rejections)
        if any(not records[0].offset <= r.offset <= records[-1].offset for r in rejections):
            raise Found("a rejection of an offset that was not in the chunk")
        for rejection in rejections[:LOUD]:
            msgspec.json.encode(rejection)
        frame = cleaner.make_frame()
        if frame is None:
            raise Found("no frame after records")
        read = [decode(data, TICKS_SCHEMA) for data in encode_within(frame)]
        assembled = _assembled(read)
        rows = [machines.windows.take_frame(part) for part in assembled]
        machines.windows.records(1)
        if any(row is None for row in rows):
            raise Found("aggregate has no use for a frame that clean has made")
        for row in rows:
            if row is not None and row.closings:
                _after_windows(machines, Frame(machines.windows.log, row.start, row.through, tuple(row.closings), row.batch(PARTITION)))
    state = clean_records(cleaner)
    again = _restored_cleaner(dict(state))
    probe = [RawRecord(cleaner.expect + n, ts, value) for n, value in enumerate(good[:20])]
    if [r.reason for r in again.chunk(probe)] != [r.reason for r in cleaner.chunk(probe)]:
        raise Found("clean restored from its state judges otherwise")


def _assembled(frames: list[Frame]) -> list[Frame]:
    assembler = Assembler()
    return [whole for frame in frames if (whole := assembler.feed(frame)) is not None]


def watchlist(rng: Rng, count: int, batch: Batch) -> None:
    """`ingest` reads the watchlist: nothing is an error."""

    async def nowhere(topic: str, partition: int, messages: Any) -> list[Any]:
        return []

    ingest = Ingest(Settings(), nowhere, sources={})
    for _ in range(count):
        value = changed_json(rng, corpus().messages["watchlist"])
        key = rng.choice((b"AAPL", b"MSFT", b"", None, b"\xff\xfe", b"A" * 33, b"a" * 5_000))
        if rng.random() < 0.5:
            with suppress(ValueError, AttributeError, TypeError, LookupError, RecursionError):
                key = json.loads(value)["symbol"].encode()
        batch.given(value)
        ingest.watch(key, None if rng.random() < 0.02 else value)


VIEWED: dict[str, Callable[[Live, bytes], None]] = {
    "latest": Live.latest, "predictions": Live.prediction, "outcomes": Live.outcomes, "alerts": Live.alert,
    "symbols": lambda live, data: live.metadata("AAPL", data), "market": lambda live, data: None,
}  # fmt: skip
"""What the views read as JSON. Nobody of ours reads `market` yet."""


def views(rng: Rng, count: int, batch: Batch) -> None:
    """The views refuse what they cannot read with the errors that `Live` documents; every question has an answer then."""
    live = Live(max_symbols=200, max_alerts=200)
    topics = [name for name in VIEWED if name != "market"]
    while batch.inputs < count:
        topic = rng.choice(topics)
        data = changed_json(rng, corpus().messages[topic])
        batch.given(data)
        try:
            VIEWED[topic](live, data)
        except (FrameError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            batch.refused += 1
        if batch.inputs % 200 == 0:
            ask(live)
    ask(live)
    good = json.loads(corpus().messages["latest"][-1]) | {"symbol": "GOOD"}
    fresh = Live()
    for some in (live, fresh):
        if some.counts["symbols"] < 200:
            some.latest(msgspec.json.encode(good))
            if msgspec.to_builtins(some.symbol("GOOD"))["last"] != good:
                raise Found("a good row of latest is not shown")


def ask(live: Live) -> None:
    """Every question that the HTTP views ask; the answers are encoded, as for a client."""
    page = live.symbols(50)
    answers: list[Any] = [page, live.counts, live.newest_second, live.alerts(50), live.alerts(50, "open"), live.predictions(50), live.outcome_counts()]
    for symbol in [item.symbol for item in page.items][:LOUD]:
        answers += [live.symbol(symbol), live.bars(symbol, 1, 300), live.bars(symbol, 60, 5)]
    changes = live.take_changes()
    answers += [live.summary_columns(changes.symbols), live.prediction_columns(changes.predictions)]
    msgspec.json.encode(answers)


# -- frames -----------------------------------------------------------------------


def windows_frames(rng: Rng, count: int, batch: Batch) -> None:
    """`detect`, `score` and the views read `windows`."""
    source = corpus()
    machines, live = source.machines.copy(), Live(max_symbols=500)
    assemblers = [Assembler(), Assembler()]
    moved = False
    for _ in range(count):
        data = hostile_frame(rng, source.windows_after)
        batch.given(data)
        try:
            frame = received(data, WINDOWS_SCHEMA, 0)
            wholes = [assembler.feed(frame) for assembler in assemblers]
        except FrameError:
            batch.refused += 1
            continue
        if wholes[0] is None or wholes[1] is None:
            continue
        moved |= _take(machines, wholes[0], batch)
        try:
            live.frame(PARTITION, wholes[1])
        except FrameError:
            batch.refused += 1
    ask(live)
    if not moved:
        _exact_after(source, machines)


def _take(machines: Machines, frame: Frame, batch: Batch) -> bool:
    """Gives a frame to `detect` and `score`; whether either of them counts it."""
    before = machines.detector.expect, machines.detector.log, machines.scorer.expect, machines.scorer.log
    try:
        _after_windows(machines, frame)
    except FrameError:
        batch.refused += 1
    return before != (machines.detector.expect, machines.detector.log, machines.scorer.expect, machines.scorer.log)


def _after_windows(machines: Machines, frame: Frame) -> None:
    """What the agents `detect` and `score` do with a frame. Raises `FrameError`."""
    faults = []
    try:
        found = machines.detector.take_frame(frame)
        if found is not None:
            msgspec.json.encode([*found.alerts[:LOUD], *found.markets[:LOUD]])
            machines.detector.records(1)
    except FrameError as error:
        faults.append(error)
    try:
        scored = machines.scorer.take_frame(frame)
        if scored is not None:
            encode_predictions(scored, 0, {})
            encode_outcomes(scored, 0)
            machines.scorer.records(1)
    except FrameError as error:
        faults.append(error)
    if faults:
        raise faults[0]


def _exact_after(source: Corpus, machines: Machines) -> None:
    """Refused frames must have changed nothing: the good ones bring what they bring without them."""
    fresh = source.machines.copy()
    for data in source.windows_after:
        frame = decode(data, WINDOWS_SCHEMA)
        got, want = machines.detector.take_frame(frame), fresh.detector.take_frame(frame)
        mine, theirs = machines.scorer.take_frame(frame), fresh.scorer.take_frame(frame)
        if got != want:
            raise Found("after frames that were refused, detect says otherwise of good ones")
        if mine is None or theirs is None or encode_predictions(mine, 0, {}) != encode_predictions(theirs, 0, {}):
            raise Found("after frames that were refused, score says otherwise of good ones")


def clean_frames(rng: Rng, count: int, batch: Batch) -> None:
    """`aggregate` reads `ticks.clean`."""
    source = corpus()
    machines, assembler, moved = source.machines.copy(), Assembler(), False
    windows = machines.windows
    for _ in range(count):
        data = hostile_frame(rng, source.clean_after)
        batch.given(data)
        before = windows.expect, windows.log
        try:
            frame = assembler.feed(received(data, TICKS_SCHEMA, 0))
        except FrameError:
            batch.refused += 1
            continue
        if frame is None:
            continue
        try:
            rows = windows.take_frame(frame)
            if rows is not None and rows.closings:
                closed = Frame(windows.log, rows.start, rows.through, tuple(rows.closings), rows.batch(PARTITION))
                if closed.rows.schema.names != WINDOWS_SCHEMA.names:
                    raise Found("aggregate makes rows of other columns")
                windows.records(1)
        except FrameError:
            batch.refused += 1
            windows = source.machines.copy().windows                     # as `FrameStage` does: built anew from what is stored
            moved = False
            continue
        moved |= before != (windows.expect, windows.log)
    if not moved:
        fresh = source.machines.copy()
        for data in source.clean_after:
            frame = decode(data, TICKS_SCHEMA)
            mine, theirs = windows.take_frame(frame), fresh.windows.take_frame(frame)
            if mine is None or theirs is None or mine.batch(PARTITION) != theirs.batch(PARTITION):
                raise Found("after frames that were refused, aggregate says otherwise of good ones")


# -- state ------------------------------------------------------------------------


def _restored_cleaner(records: Mapping[bytes, bytes]) -> Cleaner:
    return Cleaner.restore(PARTITION, PARTITIONS, records, lateness_ms=LATENESS_MS, revise_s=REVISE_S)


def _load(name: str, version: str) -> ScoringModel:
    return Model(name, version)


RESTORED: dict[str, Callable[[dict[bytes, bytes]], Any]] = {
    "clean": _restored_cleaner,
    "aggregate": lambda records: Windows.restore(PARTITION, records, dict.fromkeys(records, 5), revise_s=REVISE_S),
    "detect": lambda records: Detector.restore(PARTITION, records, dict.fromkeys(records, 5)),
    "score": lambda records: Scorer.restore(PARTITION, records, _load, dict.fromkeys(records, 5)),
}
NEEDS: dict[str, Callable[[dict[bytes, bytes]], Any]] = {
    "clean": Cleaner.complete, "aggregate": Windows.needs, "detect": Detector.needs, "score": Scorer.needs,
}  # fmt: skip
READABLE: dict[str, Callable[[bytes, bytes], str]] = {
    table: getattr(machine, "readable", lambda key, value: "")
    for table, machine in (("clean", Cleaner), ("aggregate", Windows), ("detect", Detector), ("score", Scorer))
}
"""What a reader of the changelogs asks of each record: what is not readable is passed over."""


def states(rng: Rng, count: int, batch: Batch) -> None:
    """A table restored from records that somebody else has written: `StateError`, or a machine that works."""
    source = corpus()
    for _ in range(count):
        table = rng.choice(list(source.states))
        records = hostile_state(rng, source.states[table])
        batch.given(msgspec.msgpack.encode(list(records.items())))
        try:
            records = {key: value for key, value in records.items() if not READABLE[table](key, value)}
            NEEDS[table](records)
            machine = RESTORED[table](records)
        except StateError:
            batch.refused += 1
            continue
        with suppress(FrameError, StateError):
            _use(machine, source)


def hostile_state(rng: Rng, real: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """The records of a table with a few of them changed or forged under keys like ours, some missing."""
    records = dict(real)
    keys = list(records)
    for _ in range(rng.choice((1, 1, 2, 5))):
        key = rng.choice(keys)
        draw = rng.random()
        if draw < 0.1 and len(records) > 1:
            records.pop(key, None)
        elif draw < 0.3:
            records[_packed_change(rng, key) if rng.random() < 0.5 else changed_bytes(rng, key)] = real[key]
        elif draw < 0.6:
            records[key] = changed_bytes(rng, real[key])
        elif draw < 0.65:
            records[key] = rng.choice((b"", b"\xc0", b"\x80", b"\x90", b"{}", b"\x78\x9c", b"\xdd\xff\xff\xff\xff", msgspec.msgpack.encode(leaf_of(rng))))
        else:
            records[key] = _packed_change(rng, real[key])
    return records


def leaf_of(rng: Rng) -> Any:
    """A value that msgpack can hold."""
    while True:
        value = leaf(rng)
        try:
            msgspec.msgpack.encode(value)
        except (OverflowError, UnicodeEncodeError, TypeError, ValueError):
            continue
        return value


def _packed_change(rng: Rng, data: bytes) -> bytes:
    """The msgpack value in the bytes, changed; the bytes changed where there is none."""
    try:
        value = changed(rng, msgspec.msgpack.decode(data))
        return msgspec.msgpack.encode(value)
    except (msgspec.MsgspecError, OverflowError, UnicodeEncodeError, UnicodeDecodeError, TypeError, ValueError):
        return changed_bytes(rng, data)


def _use(machine: Any, source: Corpus) -> None:
    """Good input after a restart: a machine may have no use for it, and must say so in the documented way."""
    if isinstance(machine, Cleaner):
        machine.chunk([RawRecord(max(0, machine.expect) + n, r.timestamp, r.value) for n, r in enumerate(source.records_after)])
        machine.make_frame()
        clean_records(machine)
        list(machine.idle())
    elif isinstance(machine, Windows):
        for data in source.clean_after[:3]:
            rows = machine.take_frame(decode(data, TICKS_SCHEMA))
            machine.records(2)
            if rows is not None:
                rows.batch(PARTITION)
    else:
        for data in source.windows_after[:3]:
            frame = decode(data, WINDOWS_SCHEMA)
            if isinstance(machine, Detector):
                machine.take_frame(frame)
            else:
                machine.take_frame(frame)
            machine.records(2)


TARGETS = (
    Target("ticks.raw", 0.55, 2_000, raw_ticks),
    Target("views", 0.25, 2_000, views),
    Target("watchlist", 0.10, 2_000, watchlist),
    Target("windows", 0.045, 300, windows_frames),
    Target("ticks.clean", 0.045, 300, clean_frames),
    Target("states", 0.01, 100, states),
)


def batch_of(seed: int, number: int, targets: Sequence[Target]) -> tuple[Target, Rng]:
    """The target and the generator of a batch: the same for a seed and number, always."""
    rng = random.Random(seed * 1_000_003 + number)
    return rng.choices(targets, [target.share / target.size for target in targets])[0], rng

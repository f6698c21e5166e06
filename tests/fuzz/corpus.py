"""What good neighbours write: frames, state records and messages of every topic, made by the state machines from a small log."""

from __future__ import annotations

import copy
import functools
import json
from dataclasses import dataclass, field
from typing import Any

import msgspec

from stockstream.kafka.admin import STATE_TABLES
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import Frame, encode
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.windows.windows import Windows
from tests.fixtures.make import BEGIN_S, HISTORY_S, LATENESS_MS, LOG, PARTITION, PARTITIONS, REVISE_S, Model, log_of

FIRST_S, CUT_S, LAST_S = HISTORY_S - 70, HISTORY_S, HISTORY_S + 20
"""Seconds of the fixtures' log: short, so that restoring its state is cheap."""
FRAME_RECORDS = 4


@dataclass
class Machines:
    """The four state machines of one partition."""

    cleaner: Cleaner
    windows: Windows
    detector: Detector
    scorer: Scorer

    def copy(self) -> Machines:
        """Another of the same state."""
        return copy.deepcopy(self)


@dataclass
class Corpus:
    """`before` and `after` a cut in the log; the machines are as they are at the cut."""

    machines: Machines
    records_after: list[RawRecord] = field(default_factory=list)
    clean: list[bytes] = field(default_factory=list)
    clean_after: list[bytes] = field(default_factory=list)
    windows: list[bytes] = field(default_factory=list)
    windows_after: list[bytes] = field(default_factory=list)
    states: dict[str, dict[bytes, bytes]] = field(default_factory=dict)
    messages: dict[str, list[bytes]] = field(default_factory=dict)
    """JSON by topic."""


@functools.cache
def corpus() -> Corpus:
    """The corpus; made once."""
    machines = Machines(
        Cleaner(PARTITION, PARTITIONS, lateness_ms=LATENESS_MS, revise_s=REVISE_S, log=LOG),
        Windows(PARTITION, revise_s=REVISE_S), Detector(PARTITION), Scorer(PARTITION),
    )  # fmt: skip
    machines.scorer.set_champion(Model(), 0)
    out = Corpus(machines)
    states: dict[str, dict[bytes, bytes]] = {table: {} for table in STATE_TABLES}
    messages: dict[str, list[Any]] = {name: [] for name in ("ticks.raw", "ticks.rejected", "latest", "alerts", "market", "predictions", "outcomes")}
    log = [r for r in log_of() if (BEGIN_S + FIRST_S) * 1000 <= r.timestamp <= (BEGIN_S + LAST_S) * 1000]
    cut = False
    live = machines
    for number, record in enumerate(log):
        if not cut and record.timestamp >= (BEGIN_S + CUT_S) * 1000 and live.cleaner.expect == live.cleaner.frame_from:
            cut, out.machines = True, machines.copy()
            states["clean"] = dict(clean_records(live.cleaner))
            out.states = copy.deepcopy(states)
        (messages["ticks.raw"].append(json.loads(record.value)) if record.value and record.value[:1] in b"[{" and record.value != b"{" else None)
        if cut:
            out.records_after.append(record)
        messages["ticks.rejected"] += [msgspec.to_builtins(r) for r in live.cleaner.chunk([record])]
        if number % FRAME_RECORDS:
            continue
        frame = live.cleaner.make_frame()
        rows = live.windows.take_frame(frame) if frame is not None else None
        assert frame is not None and rows is not None
        (out.clean_after if cut else out.clean).append(encode(frame))
        states["aggregate"].update(live.windows.records(1))
        if not rows.closings:
            continue
        closed = Frame(LOG, rows.start, rows.through, tuple(rows.closings), rows.batch(PARTITION))
        (out.windows_after if cut else out.windows).append(encode(closed))
        messages["latest"] += closed.rows.to_pylist()
        found, scored = live.detector.take_frame(closed), live.scorer.take_frame(closed)
        assert found is not None and scored is not None
        messages["alerts"] += [msgspec.to_builtins(alert) for alert in found.alerts]
        messages["market"] += found.markets
        messages["predictions"] += [json.loads(value) for value in encode_predictions(scored, 5, {"clean": 1})]
        messages["outcomes"] += [json.loads(value) for value in encode_outcomes(scored, 5)]
        states["detect"].update(live.detector.records(1))
        states["score"].update(live.scorer.records(1))
    messages["ticks.raw"] += [{"punctuate": BEGIN_S + CUT_S, "source": "fast"}, {"punctuate": BEGIN_S + CUT_S + 3}]
    messages["watchlist"] = [{"symbol": "AAPL", "source": "simulated", "active": True}, {"symbol": "MSFT", "source": "simulated"}]
    messages["symbols"] = [{"symbol": "AAPL", "name": "Apple", "currency": "USD", "exchange": "X", "sector": "Technology"}, {"symbol": "MSFT", "name": None}]
    assert all(messages.values()) and all(out.states.values()), "the corpus lacks a kind"
    # few ticks a message: what is tried is what one tick can be, and how they are together
    messages["ticks.raw"] += [tick for ticks in messages["ticks.raw"] if isinstance(ticks, list) for tick in ticks]
    out.messages = {topic: [msgspec.json.encode(value) for value in values] for topic, values in messages.items()}
    return out


def clean_records(cleaner: Cleaner) -> list[tuple[bytes, bytes]]:
    """The state records of `clean`."""
    return cleaner.records(1)

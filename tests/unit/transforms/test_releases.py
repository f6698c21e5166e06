"""What earlier releases have stored and sent is read, and the log goes on from it with the same results.

The fixtures are what `tests/fixtures/make.py` has written inside each release's checkout.
"""

from __future__ import annotations

import base64
import gzip
import json
import math
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import Assembler, Frame, decode
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.scoring.scorer import Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.windows.windows import Windows
from tests.fixtures.make import BEGIN_S, MANY_SYMBOLS, Model

FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"
RELEASES = sorted(path.name.partition("-")[2] for path in FIXTURES.glob("state-*"))


def unpacked(path: Path) -> Any:
    return msgspec.msgpack.decode(gzip.decompress(path.read_bytes()))


class Release:
    """What one release left behind."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.then: dict[str, Any] = json.loads(gzip.decompress((FIXTURES / f"state-{name}" / "continuation.json.gz").read_bytes()))

    def state(self, table: str) -> tuple[dict[bytes, bytes], dict[bytes, int]]:
        """Records by key, and their offsets in the changelog."""
        stored = unpacked(FIXTURES / f"state-{self.name}" / f"{table}.msgpack.gz")
        return {key: value for _, key, value in stored}, {key: offset for offset, key, _ in stored}

    def frames(self, topic: str) -> list[tuple[int, Frame]]:
        """Whole frames, each with the offset of its first part."""
        assembler, out, first = Assembler(), [], 0
        for offset, value in unpacked(FIXTURES / f"frames-{self.name}" / f"{topic}.msgpack.gz"):
            part = decode(value, TICKS_SCHEMA if topic == "clean" else WINDOWS_SCHEMA)
            first = first if part.part else offset
            whole = assembler.feed(part)
            if whole is not None:
                out.append((first, whole))
        return out

    def records(self) -> list[RawRecord]:
        return [RawRecord(offset, ts, None if value is None else base64.b64decode(value)) for offset, ts, value in self.then["records"]]


@pytest.fixture(params=RELEASES)
def release(request: pytest.FixtureRequest) -> Release:
    return Release(request.param)


def restored_cleaner(records: Mapping[bytes, bytes], *, partition: int, partitions: int, lateness_ms: int, revise_s: int) -> Cleaner:
    return Cleaner.restore(partition, partitions, records, lateness_ms=lateness_ms, revise_s=revise_s)


def restored(release: Release) -> tuple[Cleaner, Windows, Detector, Scorer]:
    """The four state machines from the release's state, put forward to the cut by the release's own frames."""
    then = release.then
    partition, revise_s = then["partition"], then["revise_s"]
    cleaner = restored_cleaner(
        release.state("clean")[0], partition=partition, partitions=then["partitions"], lateness_ms=then["lateness_ms"], revise_s=revise_s
    )
    windows = Windows.restore(partition, *release.state("aggregate"), revise_s=revise_s)
    detector = Detector.restore(partition, *release.state("detect"))
    scorer = Scorer.restore(partition, release.state("score")[0], lambda name, version: Model(name, version), release.state("score")[1])
    for offset, frame in release.frames("clean"):
        if offset >= windows.resume_input:
            rows = windows.take_frame(frame, offset)
            assert rows is not None and not rows.closings, f"{release.name}: a closing that the release had told is told anew"
            windows.records(4)
    newest = release.frames("windows")[-1][0]
    assert detector.resume_input == scorer.resume_input == newest + 1, f"{release.name}: every frame that was sent had been counted"
    assert cleaner.expect == windows.expect == then["cut"]
    assert detector.open_alerts, f"{release.name}: alerts were open at the cut"
    return cleaner, windows, detector, scorer


def results_of(machines: tuple[Cleaner, Windows, Detector, Scorer], records: list[RawRecord], partition: int) -> dict[str, list[Any]]:
    cleaner, windows, detector, scorer = machines
    out: dict[str, list[Any]] = {"rows": [], "alerts": [], "predictions": [], "outcomes": [], "rejections": []}
    for record in records:
        out["rejections"] += [msgspec.to_builtins(rejection) for rejection in cleaner.chunk([record])]
        frame = cleaner.make_frame()
        rows = windows.take_frame(frame) if frame is not None else None
        if rows is None or not rows.closings:
            continue
        closed = Frame(windows.log, rows.start, rows.through, tuple(rows.closings), rows.batch(partition))
        out["rows"] += closed.rows.to_pylist()
        found, scored = detector.take_frame(closed), scorer.take_frame(closed)
        assert found is not None and scored is not None
        out["alerts"] += [msgspec.to_builtins(alert) for alert in found.alerts]
        out["predictions"] += [json.loads(value) for value in encode_predictions(scored, 0, {})]
        out["outcomes"] += [item for value in encode_outcomes(scored, 0) for item in json.loads(value)]
    return out


def same(got: Any, want: Any) -> bool:
    """Whether `got` says what `want` does; fields that a later release has added are let pass, floats may differ in their last bits."""
    if isinstance(want, dict):
        return isinstance(got, dict) and all(name in got and same(got[name], value) for name, value in want.items())
    if isinstance(want, list):
        return isinstance(got, list) and len(got) == len(want) and all(map(same, got, want))
    if isinstance(want, float) and isinstance(got, float):
        return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-12)
    return bool(got == want)


def as_revised(row: dict[str, Any]) -> dict[str, Any]:
    """A first row that comes late, as releases before `late` sent it."""
    flags = row["quality"].split(",")
    return row | {"quality": ",".join(flag for flag in flags if flag != "late"), "revised": True} if "late" in flags else row


def order(kind: str, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In an order that does not depend on how the log was cut into frames."""
    keys = {
        "rows": ("offset", "symbol", "second"), "alerts": ("as_of", "id", "state"), "predictions": ("id",), "outcomes": ("id", "horizon_s"),
        "rejections": ("offset", "index"),
    }[kind]  # fmt: skip
    return sorted(items, key=lambda item: [item[key] for key in keys])


def test_there_are_releases() -> None:
    assert "v1" in RELEASES


def test_a_log_goes_on_from_the_state_of_an_earlier_release_with_the_same_results(release: Release) -> None:
    got = results_of(restored(release), release.records(), release.then["partition"])
    late = {(row["symbol"], 1000 * row["second"] + 1000) for row in got["rows"] if "late" in row["quality"]}
    """Rows that releases before `late` did not score."""
    for kind, items in got.items():
        want = order(kind, release.then[kind])
        items = order(kind, items)
        if kind == "rows":
            items = [as_revised(item) for item in items]
        elif kind in ("predictions", "outcomes"):
            items = [item for item in items if (item["symbol"], item["as_of"]) not in late]
        # texts are for people, and their wording may change
        items, want = ([{key: value for key, value in item.items() if key not in ("detail", "message")} for item in some] for some in (items, want))
        assert len(items) == len(want), f"{kind}: {len(items)} for {len(want)}"
        wrong = [(mine, theirs) for mine, theirs in zip(items, want, strict=True) if not same(mine, theirs)]
        assert not wrong, f"{kind}: {len(wrong)} of {len(want)} differ, first {wrong[0]}"


@pytest.mark.parametrize("topic", ["clean", "windows"])
def test_frames_of_an_earlier_release_are_read(release: Release, topic: str) -> None:
    frames = [frame for _, frame in release.frames(topic)]
    assert len(frames) > 10
    assert {frame.log for frame in frames} == {release.then["log"]}
    assert all(after.start == before.through + 1 for before, after in pairwise(frames))
    if topic == "windows":
        assert frames[-1].rows.schema.names == WINDOWS_SCHEMA.names
        assert any(frame.closings for frame in frames)


def test_a_compressed_snapshot_of_an_earlier_release_is_read(release: Release) -> None:
    then = release.then
    records, _ = release.state("clean-compressed")
    cleaner = restored_cleaner(records, partition=0, partitions=1, lateness_ms=then["lateness_ms"], revise_s=then["revise_s"])
    assert (cleaner.log, cleaner.accepted) == (then["log"], MANY_SYMBOLS)
    ticks = [{"symbol": f"MANY{number:05d}", "event_time": BEGIN_S * 1000, "price": 10.0, "size": 1, "seq": 5} for number in (0, 11_999)]
    assert [r.reason for r in cleaner.chunk([RawRecord(cleaner.expect, BEGIN_S * 1000 + 200, json.dumps(ticks).encode())])] == ["duplicate"] * 2

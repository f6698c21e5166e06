"""How the agents feed frames to their machines: what is of no use is counted, and a gap that nobody can fill is passed."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace
from typing import Any

import pytest

from stockstream.errors import FencedError
from stockstream.records import WINDOWS_SCHEMA
from stockstream.set_aside import SetAside
from stockstream.settings import Settings
from stockstream.state.frame_reader import FrameReader
from stockstream.transforms.frames import Frame, empty, encode, received
from stockstream.transport.fence import Fence
from stockstream.transport.guard import Hole
from stockstream.transport.hops import hops_of
from stockstream.transport.messages import Chunk


class Core:
    """Takes frames of one log that follow each other."""

    log = "b"
    resume_input = 0

    def __init__(self, expect: int) -> None:
        self.expect = expect

    def take(self, frame: Frame, offset: int) -> str | None:
        if frame.log < self.log or frame.start > self.expect:
            return None
        self.expect = frame.through + 1
        return f"{frame.start} at {offset}"

    def skip_to(self, start: int) -> None:
        self.expect = start


@pytest.fixture
def dropped(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    counted: list[tuple[str, str]] = []
    monkeypatch.setattr("stockstream.state.frame_reader.metrics", SimpleNamespace(frame_dropped=lambda agent, why: counted.append((agent, why))))
    holes = [Hole("ticks.clean", 3, 5, 7), Hole("ticks.clean", 4, 5, 8)]
    fence = Fence(6.0, lambda why: counted.append(("fence", why)))
    app = SimpleNamespace(chunk_consumer=SimpleNamespace(guard=SimpleNamespace(holes=holes)), set_aside=SetAside(), settings=Settings(), fence=fence)
    monkeypatch.setattr("stockstream.state.frame_reader.app", app)
    return counted


def feed(core: Core, start: int, offset: int, log: str = "b") -> Any:
    frame = Frame(log, start, start + 9, (), empty(WINDOWS_SCHEMA))
    return FrameReader("aggregate", WINDOWS_SCHEMA).feed(core, core.take, Chunk("ticks.clean", 3, []), frame, offset)


def test_a_frame_is_decoded_once_for_all_agents_of_a_worker(dropped: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[bytes] = []

    def counted(data: bytes, schema: Any, timestamp: int) -> Frame:
        decoded.append(data)
        return received(data, schema, timestamp)

    monkeypatch.setattr("stockstream.state.frame_reader.received", counted)
    values = [encode(Frame("018bcfe5687-0123abcd", start, start + 9, (), empty(WINDOWS_SCHEMA))) for start in (0, 10)]
    chunk = Chunk("windows", 3, [SimpleNamespace(offset=offset, value=value, timestamp=0) for offset, value in enumerate([values[0], b"no", values[1]])])
    found = [[(frame.start, offset) for frame, offset, _ in FrameReader(agent, WINDOWS_SCHEMA).frames(chunk)] for agent in ("score", "detect")]
    assert found == [[(0, 0), (10, 2)]] * 2 and [decoded.count(value) for value in values] == [1, 1]
    assert dropped == [("score", "unreadable"), ("detect", "unreadable")], "each tells what it cannot read"


def test_frames_that_follow_are_taken(dropped: list[tuple[str, str]]) -> None:
    core = Core(100)
    assert (feed(core, 100, 8), feed(core, 110, 9), dropped) == ("100 at 8", "110 at 9", [])


@pytest.mark.parametrize(("start", "offset", "log", "why"), [(200, 9, "b", "beyond"), (100, 8, "a", "older_log")])
def test_what_is_of_no_use_is_counted(dropped: list[tuple[str, str]], start: int, offset: int, log: str, why: str) -> None:
    core = Core(100)
    assert feed(core, start, offset, log) is None
    assert (core.expect, dropped) == (100, [("aggregate", why)])


def test_a_gap_is_told_once(dropped: list[tuple[str, str]], caplog: pytest.LogCaptureFixture) -> None:
    core, reader = Core(100), FrameReader("aggregate", WINDOWS_SCHEMA)
    chunk = Chunk("ticks.clean", 3, [])
    for start in (200, 210, 100, 300):
        reader.feed(core, core.take, chunk, Frame("b", start, start + 9, (), empty(WINDOWS_SCHEMA)), 9)
    assert [record.getMessage() for record in caplog.records] == [
        "ticks.clean[3]: no frame has raw offsets 100 to 199 yet: waiting for it", "ticks.clean[3]: no frame has raw offsets 110 to 299 yet: waiting for it",
    ]  # fmt: skip


@pytest.mark.parametrize(("offset", "sent", "ends"), [(19, 200, False), (20, 100, False), (20, 200, True)])
def test_a_confirmed_frame_that_is_not_there_ends_the_worker(dropped: list[tuple[str, str]], offset: int, sent: int, ends: bool) -> None:
    """The topic ended at offset 20 when it was assigned, and its writer counts the frames before raw offset `sent` as confirmed."""
    core, reader, frame = Core(100), FrameReader("aggregate", WINDOWS_SCHEMA), Frame("b", 200, 209, (), empty(WINDOWS_SCHEMA))
    reader.confirmed[3] = 20, sent
    with pytest.raises(FencedError) if ends else contextlib.nullcontext():
        reader.feed(core, core.take, Chunk("ticks.clean", 3, []), frame, offset)
    reasons = [why for name, why in dropped if name == "fence"]
    assert len(reasons) == ends and all(why.startswith("ticks.clean[3] has no frame for raw offset 100, which was confirmed") for why in reasons)


def test_behind_what_the_input_has_lost_the_log_goes_on(dropped: list[tuple[str, str]]) -> None:
    core = Core(100)
    assert (feed(core, 200, 8), core.expect, dropped) == ("200 at 8", 210, [])


@pytest.mark.parametrize(
    ("value", "times"),
    [
        (b"[1, 2, 3]", [1, 2, 3]), (b"[]", []), (b"[1e999]", []), (b"[" + b"9" * 400 + b"]", []), (b"[1,1,1,1]", []), (b"[-1]", []), (b"[" * 100_000, []),
        (b"{}", []), (b"\xff", []), (None, []),
    ],
)  # fmt: skip
def test_a_header_of_times_is_read_or_left_out_whatever_it_holds(value: bytes | None, times: list[int]) -> None:
    assert hops_of(SimpleNamespace(headers=[("schema_version", b"1"), ("hops", value)])) == times

"""Frames that a broker has lost are found at an assignment, and their writer sends them again."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition
from faust.types import TP

from stockstream.records import WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.state import lost_frames
from stockstream.state.frame_stage import FrameStage
from stockstream.state.lost_frames import check, covered
from stockstream.transforms.frames import Frame, empty, encode

LOG, OLDER = "00000000001-00000001", "00000000000-00000001"
TOPIC = "stockstream.windows"
PLACE = TP(TOPIC, 0)


def frame(start: int, through: int, log: str = LOG, part: int = 0, parts: int = 1) -> Frame:
    return Frame(log, start, through, (), empty(WINDOWS_SCHEMA), part, parts)


@pytest.mark.parametrize(
    ("frames", "through", "expected"),
    [
        ([frame(0, 9), frame(10, 19)], -1, 19),
        ([frame(5, 9), frame(20, 29)], -1, 9),                           # a gap
        ([frame(5, 9), frame(20, 29)], 19, 29),                          # the reader has what is missing
        ([frame(0, 9), frame(20, 29), frame(8, 19), frame(20, 25)], -1, 25),
        ([frame(0, 9), frame(10, 19, OLDER)], -1, 9),
        ([frame(0, 9), frame(10, 19, part=0, parts=2)], -1, 9),          # not whole
        ([frame(0, 9), frame(10, 19, part=0, parts=2), frame(10, 19, part=1, parts=2)], -1, 19),
        ([], -1, -1), ([], 7, 7),
    ],
)  # fmt: skip
def test_covered(frames: list[Frame], through: int, expected: int) -> None:
    assert covered(frames, LOG, through) == expected


class Writer:
    """The agent that writes the frames, in place of `aggregate`."""

    output = TOPIC

    def __init__(self, sent: int) -> None:
        self.sent, self.again = sent, list[int]()

    def log_of(self, partition: int) -> str:
        return LOG

    def sent_before(self, partition: int) -> int:
        return self.sent

    def send_again(self, partition: int, first: int) -> Mapping[TP, int | None]:
        self.again.append(first)
        return {TP("input", partition): None}


class Broker:
    """`AIOKafkaConsumer` of one partition, whose first frame has offset `begin`."""

    def __init__(self, frames: list[Frame], begin: int = 0) -> None:
        self.begin = begin
        self.records = [SimpleNamespace(offset=begin + at, timestamp=0, value=encode(one)) for at, one in enumerate(frames)]
        self.at = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self.begin)

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self.begin + len(self.records))

    def assign(self, places: list[TopicPartition]) -> None: ...

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at = offset

    async def position(self, place: TopicPartition) -> int:
        return self.at

    async def getmany(self, *places: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Any]]:
        found = self.records[self.at - self.begin : self.at - self.begin + 2]
        self.at += len(found)
        return dict.fromkeys(places, found)


class Line:
    """A writer and a reader of one partition. `position` and `expect` are the reader's, `sent` is the writer's."""

    def __init__(self, position: int, expect: int, sent: int) -> None:
        self.writer = Writer(sent)
        self.reader: Any = object.__new__(FrameStage)
        self.seen: Any = SimpleNamespace(schema=WINDOWS_SCHEMA, confirmed={})
        vars(self.reader).update(topic=TOPIC, cores={0: SimpleNamespace(expect=expect, resume_input=position)}, reader=self.seen)
        self.ends: list[tuple[str, int, int]] = []
        self.app: Any = SimpleNamespace(
            parts=[self.reader, self.writer], settings=Settings(), embedded=False, chunk_consumer=SimpleNamespace(assignment_number=1),
            sender=SimpleNamespace(note_end=lambda *place: self.ends.append(place)),
        )  # fmt: skip


async def found(monkeypatch: pytest.MonkeyPatch, line: Line, broker: Broker) -> tuple[dict[TP, int | None], list[int]]:
    monkeypatch.setattr(lost_frames, "AIOKafkaConsumer", lambda **_: broker)
    changes = await check(line.app)
    return changes, line.writer.again


TEN = [frame(10 * number, 10 * number + 9) for number in range(10)]


@pytest.mark.parametrize(("position", "expect"), [(10, 100), (7, 70), (5, 73), (0, 0)])
async def test_a_topic_that_has_everything_changes_nothing(monkeypatch: pytest.MonkeyPatch, position: int, expect: int) -> None:
    line = Line(position, expect, 100)
    assert await found(monkeypatch, line, Broker(TEN)) == ({}, [])
    assert line.ends == [(TOPIC, 0, 10)] and line.seen.confirmed == {0: (10, 100)}


async def test_a_topic_that_ends_before_the_reading_position_is_read_from_before_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await found(monkeypatch, Line(10, 100, 100), Broker(TEN[:6])) == ({PLACE: 0, TP("input", 0): None}, [60])


async def test_lost_frames_that_no_reader_needs_are_sent_again_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await found(monkeypatch, Line(12, 100, 100), Broker(TEN[:9])))[1] == [90]


async def test_other_frames_at_the_offsets_of_lost_ones_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frames of raw offsets 60 to 99 are lost, and newer ones have their offsets."""
    frames = [*TEN[:6], *(frame(100 + number, 100 + number) for number in range(8))]
    assert await found(monkeypatch, Line(10, 80, 104), Broker(frames)) == ({PLACE: 0, TP("input", 0): None}, [60])


async def test_frames_that_were_sent_again_already_are_only_read(monkeypatch: pytest.MonkeyPatch) -> None:
    frames = [*TEN[:6], frame(100, 109), *TEN[6:], frame(100, 109)]
    assert await found(monkeypatch, Line(7, 60, 110), Broker(frames)) == ({}, [])
    assert await found(monkeypatch, Line(11, 80, 110), Broker(frames)) == ({PLACE: 0}, [])


async def test_frames_that_retention_has_deleted_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await found(monkeypatch, Line(7, 70, 100), Broker([], begin=10)) == ({}, [])


async def test_without_state_nothing_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await found(monkeypatch, Line(0, -1, 100), Broker(TEN[:2])) == ({}, [])
    assert await found(monkeypatch, Line(9, 90, -1), Broker(TEN[:2])) == ({}, [])

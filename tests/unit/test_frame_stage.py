"""What a stage does with a frame that its core cannot take: the partition is built anew in place, everything else goes on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from stockstream.errors import StateError
from stockstream.records import WINDOWS_SCHEMA
from stockstream.set_aside import SetAside
from stockstream.settings import Settings
from stockstream.state import frame_stage
from stockstream.state.changelog_table import Needs, Readable, Stored
from stockstream.state.frame_reader import FrameReader
from stockstream.state.frame_stage import FrameStage
from stockstream.transforms import frames
from stockstream.transforms.frames import Frame, empty, encode
from stockstream.transport.fence import Fence
from stockstream.transport.loopback import LoopbackRecord
from stockstream.transport.messages import Chunk, Message, Outgoing
from stockstream.transport.pacing import Pace
from tests.patience import PATIENCE_S

TOPIC = "stockstream.windows"


def frame(number: int) -> bytes:
    """The frame at offset `number` of each partition: raw offsets 10 x number and the nine behind."""
    return encode(Frame("00000000001-00000001", 10 * number, 10 * number + 9, (), empty(WINDOWS_SCHEMA)))


class Core:
    """Sums up the frames that it has taken; fails on request, half changed."""

    def __init__(self, line: Line, partition: int, records: Mapping[bytes, bytes]) -> None:
        self._line, self.partition = line, partition
        self.log = "00000000001-00000001"
        self.expect, self.resume_input, self.taken = -1, 0, ""
        if records:
            expect, resume, self.taken = records[b"head"].decode().split("/")
            self.expect, self.resume_input = int(expect), int(resume)

    def feed(self, frame: Frame, offset: int) -> str | None:
        if 0 <= self.expect < frame.start:
            return None
        if frame.through < self.expect:
            return ""
        self.taken += f"[{frame.start}"
        self._line.fail(self.partition, offset)
        self.taken += "]"
        self.expect, self.resume_input = frame.through + 1, offset + 1
        return f"{frame.start}"

    def skip_to(self, start: int) -> None:
        self.expect = start


class Summing(FrameStage[Any]):
    """An agent: sends what each frame brings, then stores the sum."""

    async def process(self, chunk: Chunk) -> None:
        core = self.core_of(chunk)
        if core is None:
            return
        sends = []
        for some, offset, _ in self.reader.frames(chunk):
            found = await self.feed(core, core.feed, chunk, some, offset)
            if found:
                sends.append(Outgoing("out", chunk.partition, [Message(None, found.encode())]))
            await asyncio.sleep(0)
        self.line.fail(chunk.partition, -chunk.last)                     # behind the frames
        await self.submit(core, chunk.partition, sends, [(b"head", f"{core.expect}/{core.resume_input}/{core.taken}".encode())])

    line: Line


class Line:
    """Topic, changelog and broker in memory, and a stage upon them."""

    name = "summing"
    changelog_topic = SimpleNamespace(get_topic_name=lambda: "changelog")

    def __init__(self) -> None:
        self.left: list[str] = []
        self.long: set[int] = set()
        """Partitions whose frames take long."""
        self.failures: dict[tuple[int, int], list[Exception]] = {}
        self.log: dict[int, list[bytes]] = {partition: [frame(number) for number in range(12)] for partition in range(2)}
        self.stored: dict[int, dict[bytes, bytes]] = {}
        self.out: dict[int, list[str]] = {0: [], 1: []}
        self.again: list[tuple[int, int | None, int]] = []
        self.read_fault: Exception | None = None
        self.app: Any = SimpleNamespace(
            parts=[], chunk_consumer=SimpleNamespace(assignment_number=1, pace=Pace(200), guard=SimpleNamespace(holes=[])), sender=self,
            fence=Fence(6.0, self.left.append), set_aside=SetAside("stockstream."), settings=Settings(),
        )  # fmt: skip
        self.stage = Summing(
            self.app, self, TOPIC, lambda partition, records, _: Core(self, partition, records),  # type: ignore[arg-type]
            lambda _: None, FrameReader("summing", WINDOWS_SCHEMA), takes_long=lambda core, rows: core.partition in self.long,
        )  # fmt: skip
        self.stage.line = self

    def fail(self, partition: int, offset: int) -> None:
        left = self.failures.get((partition, offset), [])
        if left:
            raise left.pop()

    async def read(self, partitions: Sequence[int], needs: Needs, readable: Readable) -> dict[int, Stored]:
        if self.read_fault is not None:
            raise self.read_fault
        return {partition: Stored(dict(self.stored.get(partition, {}))) for partition in partitions}

    async def send(self, out: Outgoing) -> list[asyncio.Future[Any]]:
        for message in out.messages:
            if out.topic == "changelog":
                self.stored.setdefault(out.partition, {})[message.key or b""] = message.value
            else:
                self.out[out.partition].append(message.value.decode())
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.set_result(SimpleNamespace(offset=0))
        return [future]

    async def records_between(self, app: Any, topic: str, partition: int, begin: int | None, end: int) -> AsyncGenerator[Any, None]:
        self.again.append((partition, begin, end))
        for record in self.records(partition, begin or 0, end):
            await asyncio.sleep(0)
            yield record

    def records(self, partition: int, begin: int, end: int) -> list[Any]:
        return [SimpleNamespace(offset=at, timestamp=0, value=self.log[partition][at]) for at in range(begin, end)]

    def chunk(self, partition: int, begin: int, end: int) -> Chunk:
        return Chunk(TOPIC, partition, self.records(partition, begin, end), self.app.chunk_consumer.assignment_number)

    async def stream(self) -> AsyncIterator[Chunk]:
        for begin in range(0, 12, 4):
            for partition in range(2):
                yield self.chunk(partition, begin, begin + 4)

    async def run(self) -> None:
        """All twelve frames of both partitions, in chunks of four, and what follows from failures."""
        self.app.chunk_consumer.assignment_number += 1
        await self.stage.assign({TOPIC: [0, 1]})
        await self.stage.work(self.stream())
        async with asyncio.timeout(PATIENCE_S):
            while self.stage.apart:
                await asyncio.sleep(0.001)
            for pipe in list(self.stage.pipes.values()):
                await pipe.drain()

    def aside(self) -> list[tuple[int, int]]:
        return [(aside.partition, aside.offset) for aside in self.app.set_aside.newest]


@pytest.fixture
async def line(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Line]:
    made = Line()
    monkeypatch.setattr(frame_stage, "records_between", made.records_between)
    monkeypatch.setattr("stockstream.state.frame_reader.app", made.app)
    monkeypatch.setattr("stockstream.state.frame_reader.metrics", SimpleNamespace(frame_dropped=lambda agent, why: None))
    yield made
    await made.stage.release(0)


def brought(*without: int) -> list[str]:
    return [str(10 * number) for number in range(12) if number not in without]


def errors(count: int) -> list[Exception]:
    return [KeyError("x") for _ in range(count)]


async def test_without_failures_every_frame_is_taken_once(line: Line) -> None:
    await line.run()
    assert line.out == {0: brought(), 1: brought()} and not line.left and not line.again


@pytest.mark.parametrize("number", [0, 2, 3, 4, 7, 11])
async def test_a_frame_that_fails_once_is_taken_the_second_time_and_nothing_is_lost(line: Line, number: int) -> None:
    line.failures = {(0, number): errors(1)}
    await line.run()
    assert line.out == {0: brought(), 1: brought()} and not line.left and not line.aside()
    assert line.stored[0] == line.stored[1], "as if nothing had happened"


@pytest.mark.parametrize("number", [0, 2, 3, 4, 7, 11])
async def test_a_frame_that_fails_always_is_set_aside_and_everything_else_goes_on(line: Line, number: int, caplog: pytest.LogCaptureFixture) -> None:
    line.failures = {(0, number): errors(9)}
    await line.run()
    assert line.out == {0: brought(number), 1: brought()} and not line.left
    assert line.aside() == [(0, number)]
    (aside,) = line.app.set_aside.newest
    assert (aside.topic, aside.agent, aside.reason) == (TOPIC, "summing", "KeyError: 'x'") and aside.at > 1_600_000_000_000
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert lines == [
        f"{TOPIC}[0] offset {number} failed: rebuilding the core and trying once more",
        f"summing: {TOPIC}[0] offset {number} set aside, KeyError: 'x'",
    ]  # fmt: skip


async def test_several_frames_of_a_chunk_are_set_aside_one_after_the_other(line: Line) -> None:
    line.failures = {(0, 1): errors(9), (0, 2): errors(9), (0, 9): errors(9)}
    await line.run()
    assert line.out == {0: brought(1, 2, 9), 1: brought()} and not line.left
    assert line.aside() == [(0, 1), (0, 2), (0, 9)]


async def test_an_older_frame_that_was_set_aside_stays_so_when_the_core_is_built_anew(line: Line) -> None:
    line.failures = {(0, 5): errors(2), (0, 7): errors(1)}
    await line.run()
    assert line.out == {0: brought(5), 1: brought()} and line.aside() == [(0, 5)]


async def test_a_failure_behind_the_frames_shows_by_single_records_which_it_is(line: Line) -> None:
    """Storing a chunk fails whenever the frame at 6 is in it."""
    line.failures = {(0, -7): errors(1), (0, -6): errors(2)}
    await line.run()
    assert not line.left and line.aside() == [(0, 6)]
    assert line.out == {0: brought(6), 1: brought()}


async def test_the_other_partition_goes_on_while_a_core_is_built_anew(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()
    read = line.read

    async def slow(partitions: Sequence[int], needs: Needs, readable: Readable) -> dict[int, Stored]:
        if line.out[1]:
            await held.wait()
        return await read(partitions, needs, readable)

    monkeypatch.setattr(line, "read", slow)
    line.failures = {(0, 5): errors(1)}
    running = asyncio.create_task(line.run())
    async with asyncio.timeout(PATIENCE_S):
        while line.out[1] != brought():
            await asyncio.sleep(0.001)
    assert line.stage.rebuilding == [0]
    held.set()
    await running
    assert line.out[0] == brought()


async def test_the_other_partition_goes_on_while_a_frame_takes_long(line: Line) -> None:
    go_on = threading.Event()
    threads: set[bool] = set()
    line.long = {0}
    fail = line.fail

    def slow(partition: int, offset: int) -> None:
        if partition == 0 and offset >= 0:
            threads.add(threading.current_thread() is threading.main_thread())
            assert go_on.wait(PATIENCE_S)
        fail(partition, offset)

    line.fail = slow  # type: ignore[method-assign]
    running = asyncio.create_task(line.run())
    async with asyncio.timeout(PATIENCE_S):
        while line.out[1] != brought():
            await asyncio.sleep(0.001)
    assert line.stage.apart == [0] and not line.stage.rebuilding and line.out[0] == []
    go_on.set()
    await running
    assert line.out[0] == brought() and threads == {False} and not line.stage.apart


@pytest.mark.parametrize("number", [0, 5, 11])
async def test_a_frame_that_takes_long_and_fails_is_tried_again_or_set_aside(line: Line, number: int) -> None:
    line.long = {0, 1}
    line.failures = {(0, number): errors(9), (1, number): errors(1)}
    await line.run()
    assert line.out == {0: brought(number), 1: brought()} and line.aside() == [(0, number)] and not line.left


async def test_an_assignment_while_a_frame_takes_long_leaves_nothing_behind(line: Line) -> None:
    go_on = threading.Event()
    line.long = {0}
    line.fail = lambda partition, offset: (go_on.wait(PATIENCE_S), None)[1]  # type: ignore[method-assign]
    await line.stage.assign({TOPIC: [0]})
    await line.stage.handle(line.chunk(0, 0, 8))
    assert line.stage.apart == [0]
    line.app.chunk_consumer.assignment_number += 1
    await line.stage.assign({TOPIC: [0]})
    assert not line.stage.apart
    go_on.set()
    await line.stage.handle(line.chunk(0, 0, 12))
    async with asyncio.timeout(PATIENCE_S):
        while line.stage.apart:
            await asyncio.sleep(0.001)
    await line.stage.pipes[0].drain()
    assert line.out[0] == brought() and not line.left


async def test_what_fails_although_it_is_passed_over_ends_the_worker_with_its_place(line: Line) -> None:
    line.failures = {(0, -3): errors(1), (0, -1): errors(9)}
    await line.run()
    assert len(line.left) == 1 and line.left[0].startswith(f"summing: {TOPIC}[0]: offset 1: KeyError: 'x', even though the frame was set aside")


@pytest.mark.parametrize("error", [StateError("written by a newer stockstream"), KafkaConnectionError("gone")])
async def test_state_and_broker_failures_keep_their_meaning(line: Line, error: Exception) -> None:
    line.failures = {(0, 5): [error]}
    await line.run()
    assert len(line.left) == 1 and line.left[0].startswith(f"summing: {TOPIC}[0] from offset 4: {type(error).__name__}") and not line.again


async def test_state_that_cannot_be_read_again_ends_the_worker(line: Line) -> None:
    line.failures = {(0, 5): errors(1)}
    await line.stage.assign({TOPIC: [0, 1]})
    line.read_fault = StateError("not ours")
    await line.stage.handle(line.chunk(0, 0, 8))
    async with asyncio.timeout(PATIENCE_S):
        while not line.left:
            await asyncio.sleep(0.001)
    assert line.left == [f"summing: {TOPIC}[0]: StateError: not ours"]


async def test_an_assignment_meanwhile_ends_the_rebuild(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    held = asyncio.Event()

    async def endless(app: Any, topic: str, partition: int, begin: int | None, end: int) -> AsyncGenerator[Any, None]:
        await held.wait()
        yield

    monkeypatch.setattr(frame_stage, "records_between", endless)
    line.failures = {(0, 5): errors(1)}
    await line.stage.assign({TOPIC: [0, 1]})
    await line.stage.handle(line.chunk(0, 0, 8))
    while not line.stage.rebuilding:
        await asyncio.sleep(0)
    line.app.chunk_consumer.assignment_number += 1
    await line.stage.assign({TOPIC: [0]})
    assert not line.stage.rebuilding and list(line.stage.cores) == [0]
    await line.stage.handle(line.chunk(0, 0, 12))
    await line.stage.pipes[0].drain()
    assert line.out[0] == brought()


async def test_a_frame_that_fails_after_its_assignment_has_gone_takes_no_chunk_from_the_next(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    failing, go_on = asyncio.Event(), asyncio.Event()
    chunk_of = line.stage.process

    async def slow(chunk: Chunk) -> None:
        if not go_on.is_set():
            failing.set()
            await go_on.wait()
            raise KeyError("x")
        await chunk_of(chunk)

    monkeypatch.setattr(line.stage, "process", slow)
    await line.stage.assign({TOPIC: [0]})
    old = asyncio.create_task(line.stage.handle(line.chunk(0, 0, 8)))
    await failing.wait()
    line.app.chunk_consumer.assignment_number += 1
    await line.stage.assign({TOPIC: [0]})
    go_on.set()
    await old
    await line.stage.handle(line.chunk(0, 0, 12))
    async with asyncio.timeout(PATIENCE_S):
        while line.stage.rebuilding:
            await asyncio.sleep(0.001)
    await line.stage.pipes[0].drain()
    assert line.out[0] == brought() and not line.aside() and not line.left


def test_it_logs_one_line_a_minute_of_a_kind_and_keeps_the_newest(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    counted: list[tuple[str, str]] = []
    aside = SetAside("stockstream.", lambda: now[0])
    aside.count = lambda topic, agent: counted.append((topic, agent))
    for offset in range(250):
        aside.add(TOPIC, 3, offset, "score", "unreadable", "no frame\nat all " + "x" * 5_000)
    now[0] = 61.0
    aside.add(TOPIC, 3, 250, "score", "unreadable", "no frame")
    aside.add(TOPIC, 3, -1, "detect", "too large", "1,200,000 bytes")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3 and lines[0].startswith(f"score: {TOPIC}[3] offset 0 set aside, unreadable: no frame at all xxx") and len(lines[0]) < 400
    assert lines[1].endswith("(249 more since the last such line)") and lines[2] == f"detect: {TOPIC}[3] set aside, too large: 1,200,000 bytes"
    assert [one.offset for one in aside.newest] == [*range(152, 251), -1] and aside.total == len(counted) == 252
    assert set(counted) == {("windows", "score"), ("windows", "detect")}


def test_only_what_this_worker_has_written_itself_is_not_validated(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    validated: list[int] = []
    of = frames.received

    def noted(data: bytes, schema: Any, timestamp: int) -> Frame:
        validated.append(timestamp)
        return of(data, schema, timestamp)

    monkeypatch.setattr("stockstream.state.frame_reader.received", noted)
    own = LoopbackRecord(0, 77, 0, None, line.log[0][0], ())
    fetched = SimpleNamespace(offset=1, timestamp=0, value=line.log[0][1])
    assert [offset for _, offset, _ in line.stage.reader.frames(Chunk(TOPIC, 0, [own, fetched]))] == [0, 1]
    assert validated == [0]


def test_frames_that_cannot_be_read_are_set_aside_with_their_place(line: Line) -> None:
    chunk = Chunk(TOPIC, 1, [SimpleNamespace(offset=7, timestamp=0, value=b"no"), *line.records(1, 8, 9)])
    read: Iterator[Any] = line.stage.reader.frames(chunk)
    assert [offset for _, offset, _ in read] == [8] and line.aside() == [(1, 7)]

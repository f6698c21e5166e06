"""Reading state, and the stage that lives on it, with small fakes: no Kafka."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition
from faust.types import TP

from stockstream.errors import FencedError, StateError
from stockstream.set_aside import SetAside
from stockstream.settings import Settings
from stockstream.state.changelog_table import TAIL, Needs, Readable, StateTable, Stored, anything
from stockstream.state.stage import Stage
from stockstream.transport.fence import Fence
from stockstream.transport.messages import Chunk, Message, Outgoing
from stockstream.transport.pacing import Pace
from tests.patience import PATIENCE_S

TOPIC = "ticks.clean"


def everything(_: Mapping[bytes, bytes]) -> None:
    """Of a table that does not say what it needs."""


@dataclass(eq=False)
class Core:
    """What a stage keeps for a partition."""

    partition: int
    records: Mapping[bytes, bytes]


class Table:
    """A changelog that can be made to wait."""

    name = "test"
    changelog_topic = SimpleNamespace(get_topic_name=lambda: "test-changelog")

    def __init__(self) -> None:
        self.stored: dict[int, dict[bytes, bytes]] = {}
        self.reads = 0
        self.wait: asyncio.Event | None = None

    async def read(self, partitions: Sequence[int], needs: Needs, readable: Readable) -> dict[int, Stored]:
        self.reads += 1
        if self.wait is not None:
            await self.wait.wait()
        return {partition: Stored(dict(self.stored.get(partition, {}))) for partition in partitions}


class Sender:
    """Keeps what is sent; nothing is ever confirmed while `stuck`."""

    def __init__(self) -> None:
        self.sent: list[Outgoing] = []
        self.stuck = False

    async def send(self, out: Outgoing) -> list[asyncio.Future[None]]:
        self.sent.append(out)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self.stuck:
            future.set_result(None)
        return [future]


class Line:
    """A stage, its table, and the app that it needs."""

    def __init__(self) -> None:
        self.left: list[str] = []
        self.table, self.sender = Table(), Sender()
        consumer = SimpleNamespace(assignment_number=1, pace=Pace(200))
        self.app: Any = SimpleNamespace(parts=[], chunk_consumer=consumer, sender=self.sender, fence=Fence(6.0, self.left.append))
        self.stage: Stage[Core] = Stage(
            self.app, self.table, TOPIC, lambda partition, records, _: Core(partition, records),  # type: ignore[arg-type]
            lambda core: int(core.records[b"head"]) if core.records else None, everything,
        )  # fmt: skip

    async def assign(self, *partitions: int) -> Mapping[TP, int | None]:
        self.app.chunk_consumer.assignment_number += 1
        return await self.stage.assign({TOPIC: list(partitions), "another": [7]})

    async def stream(self) -> AsyncIterator[Chunk]:
        for partition in range(3):
            yield self.chunk(partition)

    def chunk(self, partition: int, assignment_number: int | None = None) -> Chunk:
        number = self.app.chunk_consumer.assignment_number if assignment_number is None else assignment_number
        return Chunk(TOPIC, partition, [SimpleNamespace(offset=5)], number)


@pytest.fixture
async def line() -> AsyncIterator[Line]:
    made = Line()
    yield made
    await made.stage.release(0)


async def test_assign_makes_a_core_and_a_pipe_of_each_partition_and_tells_where_it_goes_on(line: Line) -> None:
    line.table.stored = {0: {b"head": b"17"}}
    assert await line.assign(0, 2) == {TP(TOPIC, 0): 17, TP(TOPIC, 2): None}
    assert sorted(line.stage.cores) == sorted(line.stage.pipes) == [0, 2]
    assert line.stage in line.app.parts


async def test_assign_builds_every_core_anew_also_of_partitions_that_stay(line: Line) -> None:
    line.table.stored = {0: {b"head": b"17"}}
    await line.assign(0, 1)
    before, pipe = line.stage.cores[0], line.stage.pipes[0]
    line.table.stored = {0: {b"head": b"40"}}                            # somebody else had it in between
    assert await line.assign(0) == {TP(TOPIC, 0): 40}
    assert line.stage.cores[0] is not before and line.stage.pipes[0] is not pipe
    assert list(line.stage.cores) == [0]
    await pipe.submit([Outgoing("t", 0, [Message(None, b"stale")])])
    assert not line.sender.sent


async def test_core_of_drops_chunks_of_another_assignment_and_of_partitions_that_have_gone(line: Line) -> None:
    await line.assign(0)
    now = line.app.chunk_consumer.assignment_number
    assert line.stage.core_of(line.chunk(0)) is line.stage.cores[0]
    assert line.stage.core_of(line.chunk(0, now - 1)) is None
    assert line.stage.core_of(line.chunk(1)) is None


async def test_an_assign_that_a_newer_one_has_overtaken_builds_nothing(line: Line) -> None:
    waiting = line.table.wait = asyncio.Event()
    old = asyncio.create_task(line.assign(0))
    while not line.table.reads:
        await asyncio.sleep(0)
    line.table.wait = None
    await line.assign(1)
    waiting.set()
    assert await old == {}
    assert list(line.stage.cores) == list(line.stage.pipes) == [1]


async def test_submit_sends_then_stores_in_the_changelog_partition(line: Line) -> None:
    await line.assign(3)
    send = Outgoing("windows", 3, [Message(None, b"w")])
    await line.stage.submit(line.stage.cores[3], 3, [send], [(b"k", b"v")])
    await line.stage.pipes[3].drain()
    assert line.sender.sent == [send, Outgoing("test-changelog", 3, [Message(b"k", b"v")])]


async def test_what_an_earlier_core_brought_is_not_sent_for_its_successor(line: Line) -> None:
    await line.assign(3)
    earlier = line.stage.cores[3]
    await line.assign(3)
    await line.stage.submit(earlier, 3, [Outgoing("windows", 3, [Message(None, b"w")])], [(b"k", b"v")])
    await line.stage.pipes[3].drain()
    assert not line.sender.sent


async def test_partitions_settle_side_by_side(line: Line) -> None:
    """A broker that stands still must not keep a rebalance waiting once for each partition."""
    await line.assign(*range(8))
    line.sender.stuck = True
    closing: list[float] = []
    begun = asyncio.Event()
    for partition, pipe in line.stage.pipes.items():
        await line.stage.submit(line.stage.cores[partition], partition, [Outgoing("windows", partition, [Message(None, b"w")])])

        async def close(timeout_s: float) -> None:
            closing.append(timeout_s)
            await begun.wait()

        pipe.close = close  # type: ignore[method-assign]
    releasing = asyncio.create_task(line.stage.release(2.0))
    async with asyncio.timeout(PATIENCE_S):
        while len(closing) < 8:
            await asyncio.sleep(0)
    begun.set()
    await releasing
    assert closing == [2.0] * 8 and not line.stage.cores and not line.stage.pipes


async def test_an_error_in_an_agent_ends_the_worker_and_no_further_chunk_is_taken(line: Line) -> None:
    taken: list[int] = []

    async def take(chunk: Chunk) -> None:
        taken.append(chunk.partition)
        if chunk.partition == 1:
            raise KeyError("x")

    line.stage.process = take  # type: ignore[method-assign]
    await line.stage.work(line.stream())
    assert (taken, line.left) == ([0, 1], ["test: ticks.clean[1] from offset 5: KeyError: 'x'"])


async def test_a_fenced_worker_takes_no_further_chunk(line: Line) -> None:
    taken: list[int] = []

    async def take(chunk: Chunk) -> None:
        taken.append(chunk.partition)
        raise FencedError("gone")

    line.stage.process = take  # type: ignore[method-assign]
    await line.stage.work(line.stream())
    assert taken == [0]


# -- reading a changelog ----------------------------------------------------


class Record(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


class Changelog:
    """`AIOKafkaConsumer` over logs by partition; `tail`: offsets after the last record that hold none, as a transaction's marker."""

    def __init__(self, logs: dict[int, list[Record]], tail: int = 0) -> None:
        self.logs, self.tail = logs, tail
        self.at: dict[int, int] = {}
        self.running = False
        self.asked: list[Record] = []

    async def start(self) -> None:
        self.running = True

    async def stop(self) -> None:
        self.running = False

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: log[-1].offset + 1 + self.tail if (log := self.logs[place.partition]) else 0 for place in places}

    def assign(self, places: list[TopicPartition]) -> None:
        self.at = {place.partition: -1 for place in places}

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return {place: log[0].offset if (log := self.logs[place.partition]) else 0 for place in places}

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at[place.partition] = offset

    async def position(self, place: TopicPartition) -> int:
        return self.at[place.partition]

    async def getmany(self, *places: TopicPartition, timeout_ms: int) -> dict[TopicPartition, list[Record]]:
        for place in places:
            left = [record for record in self.logs[place.partition] if record.offset >= self.at[place.partition]]
            if left:
                self.asked += left[:2]
                self.at[place.partition] = left[:2][-1].offset + 1
                return {place: left[:2]}
            self.at[place.partition] = (await self.end_offsets([place]))[place]
        return {}


async def read(
    monkeypatch: pytest.MonkeyPatch, consumer: Changelog, *partitions: int,
    needs: Needs = everything, readable: Readable = anything, aside: SetAside | None = None,
) -> dict[int, dict[bytes, bytes]]:  # fmt: skip
    table: Any = StateTable.__new__(StateTable)
    sender = SimpleNamespace(note_end=lambda topic, partition, end: None)
    table._app = SimpleNamespace(settings=Settings(), embedded=False, set_aside=aside or SetAside(), sender=sender)
    table._set_aside, table.name = set(), "test"
    table._changelog_topic = SimpleNamespace(get_topic_name=lambda: "changelog")
    monkeypatch.setattr("stockstream.state.changelog_table.aiokafka.AIOKafkaConsumer", lambda **_: consumer)
    async with asyncio.timeout(PATIENCE_S):
        found: dict[int, Stored] = await table.read(partitions, needs, readable)
    assert not consumer.running
    for partition, kept in found.items():
        assert {(kept.offsets[key], key, value) for key, value in kept.records.items()} <= {record[:3] for record in consumer.logs[partition]}
    return {partition: kept.records for partition, kept in found.items()}


async def test_the_last_record_of_each_key_is_read_up_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    logs = {0: [Record(0, b"a", b"1"), Record(1, b"b", b"2"), Record(4, b"a", b"3")], 1: [], 2: [Record(9, b"c", b"4"), Record(10, b"c", None)]}
    assert await read(monkeypatch, Changelog(logs), 0, 1, 2) == {0: {b"a": b"3", b"b": b"2"}, 1: {}, 2: {b"c": b"4"}}


async def test_a_log_that_ends_with_what_is_no_record_is_read_through(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await read(monkeypatch, Changelog({0: [Record(0, b"a", b"1")]}, tail=3), 0) == {0: {b"a": b"1"}}


async def test_without_partitions_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Changelog({})
    assert await read(monkeypatch, consumer) == {}


async def test_what_the_end_names_is_read_and_what_lies_between_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    log = [Record(offset, b"%d" % (offset % 3_000), b"%d" % offset) for offset in range(5_000)]
    consumer = Changelog({0: log})

    def needs(records: Mapping[bytes, bytes]) -> list[tuple[int, int]] | None:
        return [(100, 101), (4_000, 4_009)] if records else None

    found = (await read(monkeypatch, consumer, 0, needs=needs))[0]
    wanted = {100, 101, *range(4_000, 4_010), *range(5_000 - TAIL, 5_000)}
    assert wanted - {101} <= {int(value) for value in found.values()} | {100} and {r.offset for r in consumer.asked} <= wanted | {102, 4_010}
    assert found[b"1000"] == b"4000", "a newer record of the key"


async def test_a_better_head_on_the_way_names_more(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Changelog({0: [Record(offset, b"%d" % offset, b"x") for offset in range(1_000)]})

    def needs(records: Mapping[bytes, bytes]) -> list[tuple[int, int]]:
        return [(300, 300)] if b"500" in records else [(500, 500)]

    found = (await read(monkeypatch, consumer, 0, needs=needs))[0]
    assert b"300" in found and b"500" in found and b"400" not in found


async def test_an_end_that_names_nothing_leads_to_the_whole_log(monkeypatch: pytest.MonkeyPatch) -> None:
    consumer = Changelog({0: [Record(offset, b"%d" % offset, b"x") for offset in range(1_000)]})
    assert len((await read(monkeypatch, consumer, 0, needs=lambda records: None))[0]) == 1_000


async def test_a_record_whose_writer_had_seen_a_higher_end_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """After an unclean leader election: its writer counts on records that are lost."""
    log = [
        Record(3, b"a", b"1", (("least-offset", b"3"),)), Record(4, b"head", b"2", (("least-offset", b"4"),)),
        Record(5, b"b", b"3", (("least-offset", b"9"),)), Record(6, b"head", b"4", (("least-offset", b"10"),)), Record(7, b"c", b"5"),
    ]  # fmt: skip
    aside = SetAside()
    assert (await read(monkeypatch, Changelog({0: log}), 0, aside=aside))[0] == {b"a": b"1", b"head": b"2", b"c": b"5"}
    assert [one.offset for one in aside.newest] == [5, 6] and "lost confirmed records" in aside.newest[0].reason


async def test_what_is_not_ours_is_passed_over_with_its_place_and_an_earlier_record_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rubbish under a key of ours, tombstones, records without key: nobody of ours writes them."""
    log = [
        Record(0, b"a", b"good"), Record(1, b"a", b"rubbish"), Record(2, b"a", None), Record(3, None, b"good"), Record(4, None, None),
        Record(5, b"b", b"raises"), Record(6, b"c", b"x" * 5_000_000), Record(7, b"c", b"good"),
    ]  # fmt: skip
    aside = SetAside()

    def readable(key: bytes, value: bytes) -> str:
        if value == b"raises":
            raise RecursionError("deep")
        return "" if value == b"good" else "no msgpack"

    assert await read(monkeypatch, Changelog({0: log}), 0, readable=readable, aside=aside) == {0: {b"a": b"good", b"c": b"good"}}
    assert [(one.topic, one.offset, one.agent) for one in aside.newest] == [("changelog", offset, "test") for offset in (1, 2, 3, 4, 5, 6)]
    assert [one.reason for one in aside.newest][::4] == ["unreadable state: no msgpack", "unreadable state: RecursionError: deep"]


async def test_a_record_of_a_newer_format_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def readable(key: bytes, value: bytes) -> str:
        raise StateError("written by a newer stockstream")

    with pytest.raises(StateError, match="newer stockstream"):
        await read(monkeypatch, Changelog({0: [Record(0, b"a", b"1")]}), 0, readable=readable)


async def test_needs_that_cannot_be_read_lead_to_the_whole_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def needs(records: Mapping[bytes, bytes]) -> None:
        raise TypeError("'int' object is not subscriptable")

    log = [Record(offset, b"%d" % offset, b"x") for offset in range(200)]
    assert len((await read(monkeypatch, Changelog({0: log}), 0, needs=needs))[0]) == 200


async def test_state_that_no_core_can_be_made_of_ends_the_start_in_one_line_that_says_how_to_go_on(line: Line) -> None:
    line.table.stored = {0: {b"head": b"17"}}

    def restore(partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int]) -> Core:
        raise KeyError(0)

    line.stage._restore = restore
    with pytest.raises(StateError) as left:
        await line.assign(0)
    assert str(left.value).startswith("the state of test for partition 0 cannot be read (KeyError: 0): stop all workers and delete the topic test-changelog; ")
    assert "\n" not in str(left.value)

"""How `clean` tells whether a log is the one that its state was made of, with a fake consumer: no Kafka."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition
from faust.types import TP

import agents.clean
from agents.clean import stage
from stockstream.errors import StateError
from stockstream.instance import app
from stockstream.records import TICKS_SCHEMA
from stockstream.transforms.cleaning.cleaner import Idle
from stockstream.transforms.frames import Frame, decode
from stockstream.transforms.partitioning import home_partition
from stockstream.transport.messages import Chunk, Outgoing


class Record(NamedTuple):
    offset: int
    value: bytes
    timestamp: int = 1_000


def mark(record: Record) -> tuple[int, int]:
    return record.timestamp, zlib.crc32(record.value)


class Log:
    """`AIOKafkaConsumer` over one partition's log; the first `slow` polls of the record that is looked for bring nothing.

    The embedded broker's end is the first offset of the last batch, plus one.
    """

    def __init__(self, records: list[Record], *, batch: int = 1, embedded: bool = False, slow: int = 0) -> None:
        self.records, self.batch, self.embedded, self.slow = records, batch, embedded, slow
        self.at = 0
        self.stopped = False

    async def start(self) -> None: ...

    async def stop(self) -> None:
        self.stopped = True

    def _end(self) -> int:
        if not self.records:
            return 0
        return self.records[-self.batch].offset + 1 if self.embedded else self.records[-1].offset + 1

    async def end_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self._end())

    async def beginning_offsets(self, places: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(places, self.records[0].offset if self.records else 0)

    def assign(self, places: list[TopicPartition]) -> None: ...

    def seek(self, place: TopicPartition, offset: int) -> None:
        self.at = offset

    async def getmany(self, *places: TopicPartition, timeout_ms: int, max_records: int | None = None) -> dict[TopicPartition, list[Record]]:
        if self.slow and max_records == 1:
            self.slow -= 1
            return {}
        found = [record for record in self.records if record.offset >= self.at][:max_records]
        return {places[0]: found} if found else {}


@pytest.fixture
def cores() -> Iterator[dict[int, Any]]:
    before, stage.cores = stage.cores, {}
    yield stage.cores
    stage.cores = before


async def others(monkeypatch: pytest.MonkeyPatch, log: Log) -> set[int]:
    monkeypatch.setattr(agents.clean, "AIOKafkaConsumer", lambda **_: log)
    monkeypatch.setattr(app, "embedded", log.embedded)
    found = await stage._other_logs()
    assert log.stopped
    return found


LOG = [Record(offset, b"%d" % offset) for offset in range(100)]


@pytest.mark.parametrize("embedded", [False, True])
async def test_the_log_that_the_state_was_made_of_goes_on(monkeypatch: pytest.MonkeyPatch, cores: dict[int, Any], embedded: bool) -> None:
    cores[3] = SimpleNamespace(expect=80, last_record=mark(LOG[79]))
    assert await others(monkeypatch, Log(LOG, batch=50, embedded=embedded)) == set(), "the state counts into the last batch"


@pytest.mark.parametrize("embedded", [False, True])
async def test_a_log_with_another_record_there_is_another_log(monkeypatch: pytest.MonkeyPatch, cores: dict[int, Any], embedded: bool) -> None:
    cores[3] = SimpleNamespace(expect=80, last_record=(1_000, 4_711))
    assert await others(monkeypatch, Log(LOG, embedded=embedded)) == {3}


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("length", [0, 60])
async def test_a_log_that_ends_before_what_was_read_is_another_log(
    monkeypatch: pytest.MonkeyPatch, cores: dict[int, Any], embedded: bool, length: int
) -> None:
    cores[3] = SimpleNamespace(expect=80, last_record=mark(LOG[79]))
    assert await others(monkeypatch, Log(LOG[:length], batch=10, embedded=embedded)) == {3}


async def test_an_embedded_broker_that_answers_late_has_no_other_log(monkeypatch: pytest.MonkeyPatch, cores: dict[int, Any]) -> None:
    """On a busy machine a new log id would begin everything anew."""
    cores[3] = SimpleNamespace(expect=100, last_record=mark(LOG[99]))
    assert await others(monkeypatch, Log(LOG, embedded=True, slow=1)) == set()


async def test_state_of_nothing_asks_nothing(monkeypatch: pytest.MonkeyPatch, cores: dict[int, Any]) -> None:
    cores[3] = SimpleNamespace(expect=-1)
    monkeypatch.setattr(agents.clean, "AIOKafkaConsumer", lambda **_: pytest.fail("asked"))
    assert await stage._other_logs() == set()


async def test_a_chunk_behind_others_that_did_not_arrive_ends_the_worker(cores: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The transport vouches for what lies between two chunks: whatever loses one on its way to the agent must not pass for a hole."""
    core = SimpleNamespace(expect=7, noted={})
    cores[3] = core
    monkeypatch.setattr(stage, "core_of", lambda chunk: core)
    records = [SimpleNamespace(offset=9, value=b"{}", timestamp=1)]
    with pytest.raises(StateError, match="offsets 7 to 8 were fetched but not delivered"):
        await stage.process(Chunk("ticks.raw", 3, records, 0, 9))
    fed: list[Any] = []

    def take(records: list[Any], arrived: float) -> list[Any]:
        fed.extend(records)
        return []

    core.chunk, core.accepted, core.due, core.memory = take, 0, False, SimpleNamespace(take_lags=dict)
    await stage.process(Chunk("ticks.raw", 3, records, 0, 7))
    assert fed == records, "7 and 8 are a hole in the log"


async def test_frames_that_the_broker_has_lost_are_sent_again_and_no_others(cores: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The core begins anew with the first record of the log, under the same log id."""
    partition, sent, stored = home_partition("A", agents.clean.settings.partitions), list[Outgoing](), list[Any]()

    async def submit(core: Any, partition: int, sends: Any = (), records: Any = ()) -> None:
        sent.extend(sends)
        stored.extend(records)

    monkeypatch.setattr(stage, "submit", submit)
    monkeypatch.setattr(stage, "core_of", lambda chunk: stage.cores[partition])
    monkeypatch.setattr(stage, "flushed_at", {})
    monkeypatch.setattr(stage, "snapshot_due", dict.fromkeys(range(100), 1e12))
    monkeypatch.setattr(stage, "snapshot_offset", {})
    monkeypatch.setattr(stage, "_again_from", {})
    begin, tick = 1_700_000_000_000, b'{"symbol":"A","event_time":%d,"price":%d,"size":1}'
    records = [SimpleNamespace(offset=at, timestamp=begin + 1_000 * at, value=tick % (begin - 10_000 + 1_000 * at, at)) for at in range(8)]

    async def process() -> list[Frame]:
        sent.clear()
        for record in records:
            await stage.process(Chunk("ticks.raw", partition, [record], 0, record.offset))
        return [decode(message.value, TICKS_SCHEMA) for out in sent if out.topic == stage.output for message in out.messages]

    cores[partition] = stage._new(partition)
    log, whole = stage.log_of(partition), await process()
    rejections = [message for out in sent if out.topic != stage.output for message in out.messages]
    assert len(rejections) == 1 and len(whole) > 4                       # the price 0
    first = whole[-3].start
    assert stage.sent_before(partition) == 8
    cores[partition].memory.sources["default"].lateness_ms += 1
    assert stage.send_again(partition, first) == {TP(stage.topic, partition): None}
    assert stage.sent_before(partition) == -1 and stage.log_of(partition) == log
    assert cores[partition].lateness.of("default") == agents.clean.settings.lateness.of("default") + 1, "a source keeps its lateness, whatever the setting is"
    again = await process()
    assert again == whole[-3:] and {out.topic for out in sent} == {stage.output}


@pytest.mark.parametrize(
    ("now", "polled_ago", "at_end", "expect", "closes"),
    [
        (5.0, 100, True, 12, True), (5.0, 1_000, True, 12, True), (5.0, 1_001, True, 12, False), (3.999, 0, True, 12, False), (3.999, -5_000, True, 12, False),
        (5.0, 1_700_000_000_000, True, 12, False), (5.0, 100, False, 12, False), (5.0, 100, True, 11, False),
    ],
    ids=["quiet", "just long enough", "not asked since", "not long enough", "the wall clock went back", "never asked", "more is there", "not all judged"],
)  # fmt: skip
@pytest.mark.parametrize("by", ["arrival", "assignment"])
async def test_a_source_is_quiet_once_the_broker_has_said_so_for_idle_ms(
    now: float, polled_ago: int, at_end: bool, expect: int, closes: bool, by: str, cores: dict[int, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that could not read for a while knows of no quiet: its last second would close early. After a start it knows of no arrival."""
    sent: list[Any] = []

    async def submit(core: Any, partition: int, sends: Any = (), records: Any = ()) -> None:
        sent.extend(message for out in sends for message in out.messages)

    heard, assigned = (3.0, 0.0) if by == "arrival" else (0.0, 3.0)
    cores[3] = SimpleNamespace(expect=expect, pending_offsets=0, idle=lambda: [Idle("s", 2, heard)])
    wall = 1_700_000_000_000
    reader = SimpleNamespace(delivered={TP(stage.topic, 3): 12}.get, at_end=lambda of: at_end, polled=lambda of: wall - polled_ago)
    monkeypatch.setattr(type(app), "chunk_consumer", reader)
    values = {"pipes": {3: None}, "snapshot_offset": {3: 99}, "punctuated": {}, "submit": submit, "assigned_at": assigned}
    for name, value in values.items():
        monkeypatch.setattr(stage, name, value)
    monkeypatch.setattr(agents.clean, "now_ms", lambda: wall)
    monkeypatch.setattr(agents.clean, "time", SimpleNamespace(monotonic=lambda: now, time=time.time))
    assert agents.clean.settings.idle_ms == 1_000
    await stage.timer()
    assert [message.value for message in sent] == ([b'{"punctuate":2,"source":"s"}'] if closes else [])
    await stage.timer()
    assert len(sent) == closes, "told once in two seconds"

"""The archive's body against a log in memory: crashes, zombies, outages, logs that begin anew. No Kafka, no Faust."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stockstream.errors import BrokerError
from stockstream.records import TICKS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.raw_objects import RawRecord, key_and_value, read_raw_object
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.archive.writer import Archive
from stockstream.sinks.memory import MemoryStore
from stockstream.transforms.frames import Frame
from tests.patience import PATIENCE_S

T0 = 1_760_000_000_000


@dataclass(frozen=True)
class Record:
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


@dataclass
class Kafka:
    """One partition of `ticks.raw` and `ticks.clean`, and what reads them back."""

    log: str = "log1"
    raw: dict[int, Record] = field(default_factory=dict)
    frames: list[Frame] = field(default_factory=list)
    end: int = 0
    first: int = 0
    cleaned: int = -1
    down: bool = False
    reads: int = 0

    def produce(self, count: int, life: str = "") -> list[Record]:
        made = [Record(offset, T0 + offset * 1000, b"A", f"{life}{offset}".encode()) for offset in range(self.end, self.end + count)]
        self.raw |= {record.offset: record for record in made}
        self.end += count
        return made

    def marker(self) -> None:
        self.end += 1

    def clean(self) -> list[Frame]:
        """What `clean` makes of all that came: every third offset is rejected, the others are one tick each."""
        offsets = [offset for offset in range(self.cleaned + 1, self.end) if offset in self.raw]
        accepted = [offset for offset in offsets if offset % 3]
        if not offsets:
            return []
        rows = [{"symbol": f"S{o % 5}", "source": "s", "event_time": T0 + o * 1000, "price": 1.0 + o, "size": 1, "offset": o, "index": 0} for o in accepted]
        frame = Frame(self.log, self.cleaned + 1, offsets[-1], (), pa.RecordBatch.from_pylist(rows, schema=TICKS_SCHEMA))
        self.cleaned = offsets[-1]
        self.frames.append(frame)
        return [frame]

    def check_up(self) -> None:
        self.reads += 1
        if self.down:
            raise BrokerError("no broker answers")


class Raw:
    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka

    async def begin(self, partition: int) -> int:
        self.kafka.check_up()
        return self.kafka.first

    async def read(self, partition: int, first: int, last: int) -> AsyncGenerator[Sequence[RawRecord], None]:
        self.kafka.check_up()
        if last >= self.kafka.end:
            raise BrokerError("nothing comes")
        found = [self.kafka.raw[offset] for offset in range(max(first, self.kafka.first), last + 1) if offset in self.kafka.raw]
        for begin in range(0, len(found), 50):
            await asyncio.sleep(0)
            self.kafka.check_up()
            yield found[begin : begin + 50]


class Clean:
    def __init__(self, kafka: Kafka) -> None:
        self.kafka = kafka

    async def newest(self, partition: int) -> tuple[str, int] | None:
        self.kafka.check_up()
        return max(((frame.log, frame.through) for frame in self.kafka.frames), default=None)

    async def read(self, partition: int, log: str, first: int, last: int) -> AsyncGenerator[Frame, None]:
        self.kafka.check_up()
        for frame in list(self.kafka.frames):
            if frame.log == log and frame.through >= first and frame.start <= last:
                await asyncio.sleep(0)
                yield frame


def settings(**changes: Any) -> Settings:
    return Settings(**({"archive_flush_s": 0.05, "archive_max_bytes": 5_000, "archive_buffer_bytes": 200_000} | changes))


def archive(kafka: Kafka, store: MemoryStore, **changes: Any) -> Archive:
    return Archive(settings(**changes), store, Raw(kafka), Clean(kafka))


async def until(condition: Callable[[], bool], what: str = "", timeout_s: float = PATIENCE_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.01)


def archived(store: MemoryStore, log: str = "log1") -> list[tuple[int, bytes | None]]:
    objects = [(name, data) for name, data in list(store.objects.items()) if name.startswith("raw/") and (parsed := parse_name(name)) and parsed.log == log]
    return sorted(pair for name, data in objects for pair in lines_of(name, data))


@cache
def lines_of(name: str, data: bytes) -> list[tuple[int, bytes | None]]:
    store = MemoryStore()
    store.objects[name] = data
    return [(line.offset, key_and_value(line)[1]) for line in read_raw_object(store, name)[1]]


@cache
def offsets_of(data: bytes) -> list[int]:
    return pq.read_table(pa.BufferReader(data)).column("offset").to_pylist()  # type: ignore[no-any-return]


def ticks(store: MemoryStore, log: str = "log1") -> list[int]:
    objects = list(store.objects.items())
    found = [data for name, data in objects if name.startswith("processed/ticks/") and (parsed := parse_name(name)) and parsed.log == log]
    return sorted(offset for data in found for offset in offsets_of(data))


def is_whole(kafka: Kafka, store: MemoryStore) -> bool:
    return len(archived(store, kafka.log)) >= len(kafka.raw) and len(ticks(store, kafka.log)) >= sum(1 for offset in kafka.raw if offset % 3)


def assert_exact(kafka: Kafka, store: MemoryStore) -> None:
    assert archived(store, kafka.log) == [(offset, record.value) for offset, record in sorted(kafka.raw.items())]
    assert ticks(store, kafka.log) == [offset for offset in sorted(kafka.raw) if offset % 3]
    quiet = MemoryStore()
    quiet.objects = dict(store.objects)
    assert check(quiet).faults == []


async def feed(kafka: Kafka, to: Sequence[Archive], count: int) -> None:
    made = kafka.produce(count)
    frames = kafka.clean()
    for each in to:
        await each.add_raw(0, made)
        for frame in frames:
            await each.add_clean(0, frame)


async def crash(one: Archive) -> None:
    """As `kill -9` leaves it: nothing is written any more."""
    one.revoke(0)
    await asyncio.sleep(0)


async def test_live_chunks_are_archived_once() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    for _ in range(40):
        await feed(kafka, [one], 7)
        await asyncio.sleep(0.002)
    await until(lambda: is_whole(kafka, store))
    assert_exact(kafka, store)
    [progress] = one.progress()
    assert (progress["log"], progress["offset"], progress["processed"], progress["state"]) == ("log1", 279, 279, "live")
    await one.close()


async def test_close_writes_what_is_held() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store, archive_flush_s=600, archive_max_bytes=8_000_000)
    one.assign(0)
    for _ in range(5):
        await feed(kafka, [one], 7)
    await one.close()
    assert_exact(kafka, store)


async def test_close_leaves_what_is_not_judged_to_the_next_start() -> None:
    """What is archived is processed too: the last object of a run ends where the verdicts end."""
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store, archive_flush_s=600, archive_max_bytes=8_000_000)
    one.assign(0)
    for _ in range(5):
        await feed(kafka, [one], 7)
    await one.add_raw(0, kafka.produce(7))              # read, and `clean` has sent no verdict yet
    await one.close()
    [chain] = check(store).chains
    assert (chain.last, chain.processed, chain.unprocessed) == (34, 34, 0)
    kafka.clean()
    two = archive(kafka, store)
    two.assign(0)
    await until(lambda: is_whole(kafka, store))
    await two.close()
    assert_exact(kafka, store)


async def test_close_in_the_middle_of_a_chunk_cuts_it_where_the_verdicts_end() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store, archive_flush_s=600, archive_max_bytes=8_000_000)
    one.assign(0)
    made = kafka.produce(6)
    [frame] = kafka.clean()
    await one.add_raw(0, made + kafka.produce(4))
    await one.add_clean(0, frame)
    await one.close()
    assert [offset for offset, _ in archived(store)] == list(range(6)) and ticks(store) == [1, 2, 4, 5]
    kafka.clean()
    two = archive(kafka, store)
    two.assign(0)
    await until(lambda: is_whole(kafka, store))
    await two.close()
    assert_exact(kafka, store)


async def test_an_object_that_is_due_ends_where_the_verdicts_end() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    made = kafka.produce(6)
    [frame] = kafka.clean()
    await one.add_raw(0, made + kafka.produce(4))
    await one.add_clean(0, frame)
    await until(lambda: bool(archived(store)))
    assert [offset for offset, _ in archived(store)] == list(range(6))
    for frame in kafka.clean():
        await one.add_clean(0, frame)
    await until(lambda: is_whole(kafka, store))
    await one.close()
    assert_exact(kafka, store)


async def test_raw_objects_without_verdicts_are_processed_by_the_next_start() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 5)
    await until(lambda: is_whole(kafka, store))
    for _ in range(3):
        await one.add_raw(0, kafka.produce(100))        # more than an object may hold: written before it is judged
    await until(lambda: len(archived(store)) == 305)
    await crash(one)
    [chain] = check(store).chains
    assert (chain.last, chain.processed, chain.unprocessed) == (304, 4, 300)
    kafka.clean()
    two = archive(kafka, store)
    two.assign(0)
    await until(lambda: is_whole(kafka, store))
    await two.close()
    assert_exact(kafka, store)
    assert check(store).chains[0].unprocessed == 0


async def test_the_rest_of_a_crash_is_read_back_though_nothing_comes_any_more() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store, archive_flush_s=600)
    one.assign(0)
    for _ in range(30):
        await feed(kafka, [one], 7)
        await asyncio.sleep(0.001)
    await crash(one)
    two = archive(kafka, store, archive_flush_s=600)
    two.assign(0)
    await until(lambda: is_whole(kafka, store))
    assert_exact(kafka, store)
    await two.close()


@pytest.mark.slow
async def test_a_rejected_record_at_the_end_is_archived_before_any_frame_tells_of_it() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 5)
    await one.add_raw(0, kafka.produce(3))
    await until(lambda: len(archived(store)) == 8)
    await one.close()


async def test_holes_that_the_caller_vouches_for_are_not_read_back() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 5)
    await until(lambda: is_whole(kafka, store))
    for _ in range(20):
        kafka.marker()
        made = kafka.produce(1)
        kafka.marker()
        made += kafka.produce(1)
        await one.add_raw(0, made, start=made[0].offset - 1)
    kafka.reads = 0
    for frame in kafka.clean():
        await one.add_clean(0, frame)
    await until(lambda: is_whole(kafka, store))
    assert_exact(kafka, store)
    assert kafka.reads <= 3                             # one question for each object that begins with a hole
    await one.close()


async def test_what_is_not_ours_is_ignored() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    await feed(kafka, [one], 5)
    one.assign(0)
    one.revoke(0)
    await feed(kafka, [one], 5)
    assert one.progress() == [] and kafka.reads == 0
    await one.close()
    one.assign(0)
    assert one.progress() == []


async def test_without_a_log_id_nothing_is_written() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await one.add_raw(0, kafka.produce(20))
    await asyncio.sleep(0.15)
    assert store.objects == {}
    for frame in kafka.clean():
        await one.add_clean(0, frame)
    await until(lambda: is_whole(kafka, store))
    assert_exact(kafka, store)
    await one.close()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
async def test_exact_under_crashes_zombies_and_failures(seed: int) -> None:
    rng = random.Random(seed)
    kafka, store = Kafka(), MemoryStore(seed)
    workers = [archive(kafka, store)]
    workers[0].assign(0)
    for turn in range(150):
        if rng.random() < 0.05:
            kafka.marker()
        chunk = rng.randint(1, 30)
        if rng.random() < 0.05:
            kafka.produce(chunk)                        # nobody hears of it
            kafka.clean()
        else:
            await feed(kafka, workers, chunk)
        if rng.random() < 0.05:
            lower = rng.randrange(kafka.end)
            await workers[-1].add_raw(0, [kafka.raw[o] for o in range(lower, kafka.end) if o in kafka.raw])     # read again
        if rng.random() < 0.08:
            if rng.random() < 0.5:
                await crash(workers.pop())
            workers = workers[-1:]                      # the older one is a zombie that got what it got and goes on writing it
            workers.append(archive(kafka, store))
            workers[-1].assign(0)
        store.failing = 0.2 if turn % 50 > 30 else 0.0
        store.delay_s = 0.003 if turn % 40 > 30 else 0.0
        await asyncio.sleep(rng.choice((0, 0, 0.01)))
    store.failing = store.delay_s = 0.0
    await feed(kafka, workers[-1:], 10)
    await until(lambda: is_whole(kafka, store), str(workers[-1].progress()))
    for worker in workers:
        await worker.close()
    assert_exact(kafka, store)


@pytest.mark.slow
async def test_an_outage_is_bounded_in_memory_and_caught_up(caplog: pytest.LogCaptureFixture) -> None:
    kafka, store = Kafka(), MemoryStore()
    now = [0.0]
    one = Archive(settings(archive_buffer_bytes=100_000), store, Raw(kafka), Clean(kafka), lambda: time.monotonic() + now[0])
    one.assign(0)
    await feed(kafka, [one], 100)
    await until(lambda: is_whole(kafka, store))
    with caplog.at_level(logging.INFO, "stockstream.sinks.archive"):
        store.down = True
        most = 0
        for _ in range(60):
            await feed(kafka, [one], 100)
            most = max(most, one.progress()[0]["buffered_bytes"])
            await asyncio.sleep(0)
        assert 50_000 < most <= 100_000
        await until(lambda: one.progress()[0]["state"] == "failing")
        assert "down" in one.progress()[0]["fault"]
        now[0] += 70.0
        calls = store.calls
        await until(lambda: store.calls > calls)
        assert len(archived(store)) == 100
        store.down = False
        await until(lambda: is_whole(kafka, store))
        now[0] += 70.0
        await feed(kafka, [one], 1)
        await until(lambda: "works again" in caplog.text)
    told = [record.message for record in caplog.records]
    assert sum("tried again" in line for line in told) == 1 and sum("has been failing for" in line for line in told) == 1
    assert kafka.end == 6_101
    await one.close()
    assert_exact(kafka, store)


async def test_a_store_that_hangs_does_not_hold_up_its_caller_or_the_end() -> None:
    kafka, store = Kafka(), MemoryStore()
    store.delay_s = 3_600.0
    one = archive(kafka, store)
    one.assign(0)
    for _ in range(20):
        await asyncio.wait_for(feed(kafka, [one], 50), PATIENCE_S)
    await asyncio.wait_for(one.close(timeout_s=0.1), PATIENCE_S)


async def test_kafka_away_is_tried_again() -> None:
    kafka, store = Kafka(down=True), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await until(lambda: one.progress()[0]["state"] == "failing")
    kafka.produce(30)
    kafka.clean()
    kafka.down = False
    await until(lambda: is_whole(kafka, store))
    assert_exact(kafka, store)
    await one.close()


@pytest.mark.slow
async def test_expired_records_are_recorded_and_passed() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 50)
    await until(lambda: is_whole(kafka, store))
    await crash(one)
    kafka.produce(60)
    kafka.clean()
    kafka.first = 90
    for offset in range(50, 90):
        del kafka.raw[offset]
    two = archive(kafka, store)
    two.assign(0)
    await until(lambda: len(archived(store)) == 70)
    kafka.produce(20)
    kafka.first = kafka.end
    kafka.raw = {offset: record for offset, record in kafka.raw.items() if offset < 110}
    await two.add_raw(0, [Record(kafka.end - 1, T0, None, None)])       # seen, and deleted before it could be read back
    two.revoke(0)
    three = archive(kafka, store)
    three.assign(0)
    await three.add_raw(0, kafka.produce(5))
    await until(lambda: len(archived(store)) == 75)
    assert [offset for offset, _ in archived(store)] == [*range(50), *range(90, 110), *range(130, 135)]
    quiet = check(store)
    assert quiet.faults == [] and quiet.chains[0].holes == 60 and quiet.chains[0].last == 134
    await three.close()


async def test_a_topic_made_again_is_another_chain() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 50)
    await until(lambda: is_whole(kafka, store))
    await feed(kafka, [one], 7)                         # held, and gone from Kafka in a moment
    old = dict(kafka.raw)
    kafka.raw, kafka.end, kafka.cleaned = {}, 0, -1
    await one.add_raw(0, kafka.produce(80, "new"))      # clean has not told of it yet
    kafka.log = "log2"
    for frame in kafka.clean():
        await one.add_clean(0, frame)
    await until(lambda: is_whole(kafka, store) and len(archived(store)) >= 50)
    assert_exact(kafka, store)
    assert set(archived(store)) <= {(offset, record.value) for offset, record in old.items()}
    await one.add_clean(0, Frame("log1", 57, 60, (), pa.RecordBatch.from_pylist([], schema=TICKS_SCHEMA)))      # a zombie's
    assert one.progress()[0]["log"] == "log2"
    await one.close()


async def test_a_restart_does_not_take_a_new_topic_for_the_archived_log() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 50)
    await until(lambda: is_whole(kafka, store))
    await crash(one)
    kafka.raw, kafka.end = {}, 0
    fresh = kafka.produce(120, "new")                   # ticks.clean still says log1
    two = archive(kafka, store)
    two.assign(0)
    await two.add_raw(0, fresh)
    await until(lambda: "created again" in two.progress()[0]["fault"])
    assert len(archived(store)) == 50
    kafka.log, kafka.cleaned = "log2", -1
    for frame in kafka.clean():
        await two.add_clean(0, frame)
    await until(lambda: is_whole(kafka, store))
    assert_exact(kafka, store)
    assert len(archived(store, "log1")) == 50
    await two.close()


async def test_verdicts_that_are_gone_are_recorded_as_missing() -> None:
    kafka, store = Kafka(), MemoryStore()
    one = archive(kafka, store)
    one.assign(0)
    await feed(kafka, [one], 10)
    await until(lambda: is_whole(kafka, store))
    await crash(one)
    kafka.produce(10)
    kafka.clean()
    kafka.frames.pop()                                  # retention
    kafka.produce(10)
    kafka.clean()
    two = archive(kafka, store)
    two.assign(0)
    await until(lambda: check(store).chains[0].processed == 29)
    report = check(store)
    assert not report.faults and report.chains[0].missing == 10 and ticks(store) == [o for o in [*range(10), *range(20, 30)] if o % 3]
    await two.close()

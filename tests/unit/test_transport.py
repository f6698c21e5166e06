"""The guards of the transport, each with small fakes: no Kafka."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import ConsumerStoppedError, KafkaTimeoutError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from stockstream.errors import FencedError
from stockstream.kafka.client import MAX_BATCH_BYTES
from stockstream.set_aside import SetAside
from stockstream.transport.consumer import Consumer
from stockstream.transport.fence import Fence
from stockstream.transport.fetching import LOST_S, ConsumerThread, Fetched
from stockstream.transport.guard import HOLES_KEPT, Guard, Hole, Offsets
from stockstream.transport.loopback import Loopback
from stockstream.transport.messages import VERSION_HEADER, Chunk, ChunkSchema, Deliveries, Message, Outgoing, cut
from stockstream.transport.pacing import BACKLOG_S, CLOSINGS_KEPT, COMPANY_S, PACE_S, SMALL_FETCH, Pace
from stockstream.transport.patches import Produce
from stockstream.transport.sending import PIPE_DEPTH, Pipe, Sender, delivered, misplaced
from stockstream.transport.watching import watchdog
from tests.patience import PATIENCE_S

P = TP("ticks.raw", 3)


class Record(NamedTuple):
    offset: int
    timestamp: int = 0


def records(*offsets: int, at: int = 0) -> list[Any]:
    return [Record(offset, timestamp=at) for offset in offsets]


def offsets(admitted: Sequence[Any]) -> list[int]:
    return [record.offset for record in admitted]


async def eventually(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


# -- Guard ------------------------------------------------------------------


def guard(expected: int | None = 10) -> Guard:
    return Guard(expected={P: expected})


def test_what_follows_is_admitted() -> None:
    checked = guard()
    assert checked.admit(P, records(10, 11, 12)) == (records(10, 11, 12), None)
    assert checked.expected[P] == 13
    assert (checked.rereads, list(checked.holes), checked.repeats) == (0, [], 0)


def test_a_first_offset_beyond_the_expected_one_is_read_again_once_then_believed() -> None:
    checked = guard()
    assert checked.admit(P, records(14, 15)) == ([], 10)
    assert checked.expected[P] == 10
    assert checked.admit(P, records(14, 15)) == (records(14, 15), None)
    assert list(checked.holes) == [Hole("ticks.raw", 3, 10, 13)]
    assert (checked.rereads, checked.expected[P]) == (1, 16)


def test_what_was_skipped_by_mistake_comes_at_the_second_reading() -> None:
    checked = guard()
    checked.admit(P, records(14, 15))
    assert checked.admit(P, records(*range(10, 16))) == (records(*range(10, 16)), None)
    assert not checked.holes


def test_a_hole_inside_a_fetch_delivers_what_is_before_it_first() -> None:
    checked = guard()
    assert checked.admit(P, records(10, 11, 20)) == (records(10, 11), 12)
    assert checked.admit(P, records(20, 21)) == (records(20, 21), None)
    assert list(checked.holes) == [Hole("ticks.raw", 3, 12, 19)]


def test_a_gap_probed_once_does_not_hide_a_second_one() -> None:
    checked = guard()
    assert checked.admit(P, records(12, 13, 17))[1] == 10
    assert checked.admit(P, records(12, 13, 17)) == (records(12, 13), 14), "the first is believed, the second must be probed by itself"
    assert checked.admit(P, records(17)) == (records(17), None)
    assert [(hole.first, hole.last) for hole in checked.holes] == [(10, 11), (14, 16)]


def test_a_gap_of_one_partition_says_nothing_of_another() -> None:
    checked = Guard(expected={P: 10, TP("ticks.raw", 4): 10})
    checked.admit(P, records(12))
    assert checked.admit(TP("ticks.raw", 4), records(12)) == ([], 10)


def test_repeats_are_dropped() -> None:
    checked = guard()
    assert checked.admit(P, records(7, 8, 9)) == ([], None)
    assert checked.admit(P, records(8, 9, 10, 11)) == (records(10, 11), None)
    assert (checked.repeats, checked.expected[P]) == (5, 12)


def test_none_accepts_any_first_offset() -> None:
    checked = guard(None)
    assert checked.admit(P, records(500, 501)) == (records(500, 501), None)
    assert checked.admit(P, records(503)) == ([], 502)


def test_holes_are_reported_with_what_became_of_them() -> None:
    reasons: list[tuple[str, int]] = []
    checked = Guard(expected={P: 10}, on_hole=lambda kind, offsets: reasons.append((kind, offsets)))
    checked.admit(P, records(10, 14))
    checked.admit(P, records(14))
    assert reasons == [("reread", 3), ("passed", 3)]


def test_holes_are_kept_within_bounds_and_counted_all() -> None:
    """A transactional producer leaves a marker after every transaction."""
    checked = guard(0)
    for offset in range(1, 2 * (HOLES_KEPT + 50), 2):
        for _ in range(2):
            checked.admit(P, records(offset))
    assert len(checked.holes) == HOLES_KEPT
    assert checked.holes_passed == HOLES_KEPT + 50
    assert checked.holes[-1] == Hole("ticks.raw", 3, offset - 1, offset - 1), "the newest, which `FrameReader.feed` asks for, are the ones that are kept"


@given(there=st.sets(st.integers(0, 60), min_size=1), cuts=st.lists(st.integers(1, 7), min_size=70, max_size=70), skips=st.data())
def test_every_record_is_delivered_once_in_order_however_it_is_fetched_skipped_and_repeated(there: set[int], cuts: list[int], skips: Any) -> None:
    log, checked, position, got = sorted(there), guard(0), 0, []
    for size in cuts:
        left = [offset for offset in log if offset >= position]
        if not left:
            break
        back = checked.expected[P]
        skip = skips.draw(st.integers(0, 3)) if checked.probed.get(P) != back else 0        # the broker itself never skips at the second reading
        fetched = left[skip : skip + size]
        if not fetched:
            continue
        admitted, seek = checked.admit(P, records(*fetched))
        got += offsets(admitted)
        position = seek if seek is not None else max(0, fetched[-1] + 1 - skips.draw(st.integers(0, 2)))
    assert got == log[: len(got)]
    for hole in checked.holes:
        assert not there & set(range(hole.first, hole.last + 1))


# -- Fence ------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for module in ("consumer", "pacing", "sending"):
        monkeypatch.setattr(f"stockstream.transport.{module}.time", SimpleNamespace(monotonic=made.monotonic, time=time.time))
    for module in ("consumer", "fence", "fetching", "watching"):
        monkeypatch.setattr(f"stockstream.transport.{module}.now_s", made.monotonic, raising=False)
    return made


@pytest.mark.parametrize("notice", [Fence.tick, Fence.check])
def test_a_process_that_stood_still_notices_wherever_it_looks_first(clock: Clock, notice: Callable[[Fence], None]) -> None:
    reasons: list[str] = []
    fence = Fence(6.0, reasons.append)
    fence.tick()
    clock.now += 2.9
    notice(fence)
    fence.tick()
    clock.now += 3.1
    with pytest.raises(FencedError, match=r"stalled for 3\.1 s"):
        notice(fence)
    assert len(reasons) == 1


def test_the_time_before_the_first_tick_does_not_count(clock: Clock) -> None:
    fence = Fence(6.0, lambda why: pytest.fail(why))
    clock.now += 60
    fence.check()
    fence.tick()


def test_heartbeats_that_the_group_confirmed_keep_a_process_that_computes(clock: Clock) -> None:
    reasons: list[str] = []
    fence = Fence(6.0, reasons.append)
    fence.tick()
    clock.now += 30
    fence.last_heartbeat = lambda: clock.now - 1
    fence.check()
    assert not reasons
    fence.last_heartbeat = lambda: clock.now - 4
    with pytest.raises(FencedError):
        fence.check()


def test_it_leaves_only_once_and_nothing_passes_it_afterwards() -> None:
    reasons: list[str] = []
    fence = Fence(6.0, reasons.append)
    for why in ("first", "second"):
        with pytest.raises(FencedError):
            fence.leave(why)
    assert reasons == ["first"]
    with pytest.raises(FencedError):
        fence.check()


# -- Sender and Pipe --------------------------------------------------------


class Batch:
    """`BatchBuilder`, with room for `room` bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.messages: list[tuple[Any, Any, Any]] = []
        self.closed = False

    def append(self, *, key: bytes | None, value: bytes, timestamp: int, headers: Any) -> Any:
        assert isinstance(timestamp, int) and not self.closed
        if len(value) > self.room:
            return None
        self.room -= len(value)
        self.messages.append((key, value, headers))
        return object()

    def record_count(self) -> int:
        return len(self.messages)

    def close(self) -> None:
        self.closed = True


class Producer:
    """Keeps what is sent, in order; a future is done at once unless `hold`."""

    def __init__(self, room: int = MAX_BATCH_BYTES) -> None:
        self.room = room
        self.sent: list[tuple[str, int, Any]] = []
        self.batches: list[Batch] = []
        self.held: list[asyncio.Future[Any]] = []
        self.hold = False
        self.fail: dict[bytes, Exception] = {}

    def _future(self) -> asyncio.Future[None]:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self.hold:
            self.held.append(future)
        else:
            future.set_result(None)
        return future

    async def send(self, topic: str, value: bytes, *, key: bytes | None, partition: int, headers: Any) -> asyncio.Future[None]:
        if value in self.fail:
            raise self.fail[value]
        self.sent.append((topic, partition, (key, value, headers)))
        return self._future()

    def create_batch(self) -> Batch:
        return Batch(self.room)

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[None]:
        self.batches.append(batch)
        self.sent += [(topic, partition, message) for message in batch.messages]
        return self._future()

    def values(self, topic: str) -> list[bytes]:
        return [message[1] for name, _, message in self.sent if name == topic]

    def release(self) -> None:
        held, self.held, self.hold = self.held, [], False
        for future in held:
            if not future.done():
                future.set_result(None)


def out(topic: str, *values: bytes) -> Outgoing:
    return Outgoing(topic, 3, [Message(b"key", value) for value in values])


class Rig:
    """A pipe with a fake producer."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.fence = Fence(6.0, self.reasons.append)
        self.producer = Producer()
        self.sender = Sender(lambda: self.producer, self.fence)
        self.pipe = Pipe(self.sender, self.fence, "test[3]")


@pytest.fixture
async def rig() -> Any:
    made = Rig()
    yield made
    await made.pipe.close(0)


async def test_one_or_two_messages_are_sent_by_themselves_with_the_schema_version() -> None:
    producer = Producer()
    sender = Sender(lambda: producer, Fence(6.0))
    futures = await sender.send(Outgoing("t", 3, [Message(b"k", b"1", (("hops", b"[]"),)), Message(None, b"2")]))
    assert len(futures) == 2 and not producer.batches
    assert producer.sent == [("t", 3, (b"k", b"1", [VERSION_HEADER, ("hops", b"[]")])), ("t", 3, (None, b"2", [VERSION_HEADER]))]


def confirmed_at(offset: int, log_start: int = 0) -> RecordMetadata:
    return RecordMetadata("t", 3, TopicPartition("t", 3), offset, -1, 0, log_start)


async def test_an_offset_that_is_assigned_twice_ends_the_worker(rig: Rig) -> None:
    """After an unclean leader election other records get the offsets of those that were lost."""
    rig.producer.hold = True
    await rig.sender.send(out("t", b"a", b"b"))
    for future, offset in zip(rig.producer.held, (10, 11), strict=True):
        future.set_result(confirmed_at(offset))
    await asyncio.sleep(0)
    await rig.sender.send(out("t", b"c"))
    await rig.sender.send(out("another", b"d"))
    rig.producer.held[3].set_result(confirmed_at(0))
    await eventually(lambda: rig.producer.held[3].done())
    assert not rig.reasons
    rig.producer.held[2].set_result(confirmed_at(11))
    await eventually(lambda: bool(rig.reasons))
    assert rig.reasons[0].startswith("t[3]: offset 11 was assigned again, the log had reached 12: the broker has lost confirmed records")


async def test_an_offset_below_an_end_that_was_read_ends_the_worker_unless_the_record_was_sent_before(rig: Rig) -> None:
    rig.producer.hold = True
    await rig.sender.send(out("t", b"a"))
    rig.sender.note_end("t", 3, 20)
    rig.producer.held[0].set_result(confirmed_at(19))
    await rig.sender.send(out("t", b"b"))
    rig.producer.held[1].set_result(confirmed_at(-1, -1))                  # a repeat that the broker had already
    await rig.sender.send(out("t", b"c"))
    await asyncio.sleep(0)
    assert not rig.reasons
    rig.producer.held[2].set_result(confirmed_at(19))
    await eventually(lambda: bool(rig.reasons))


async def test_a_state_record_carries_the_lowest_offset_that_it_can_get() -> None:
    producer = Producer()
    sender = Sender(lambda: producer, Fence(6.0), state_topics={"state"})
    sender.note_end("state", 3, 7)
    await sender.send(out("state", b"a", b"b", b"c"))
    headers = [message[2] for _, _, message in producer.sent]
    assert [dict(some)["least-offset"] for some in headers] == [b"7", b"8", b"9"]
    records = [SimpleNamespace(offset=offset, headers=headers[1]) for offset in (7, 8, 9)]
    assert [misplaced(record) for record in records] == [True, False, False]


async def test_many_messages_go_as_batches_in_order() -> None:
    producer = Producer(room=10)
    sender = Sender(lambda: producer, Fence(6.0))
    values = [b"aaaa", b"bbbb", b"cccc", b"dddd", b"ee"]
    futures = await sender.send(Outgoing("t", 3, [Message(None, value, (("hops", b"[]"),)) for value in values]))
    assert producer.values("t") == values
    assert [batch.record_count() for batch in producer.batches] == [2, 3]
    assert len(futures) == 2, "one future a batch"
    assert all(message[2][2] == [VERSION_HEADER, ("hops", b"[]")] for message in producer.sent)


async def test_a_message_beyond_the_limit_is_an_error_that_names_it() -> None:
    producer = Producer(room=10)
    sender = Sender(lambda: producer, Fence(6.0))
    with pytest.raises(ValueError, match="a message of 11 bytes for t is larger than the limit"):
        await sender.send(out("t", b"a", b"b", b"c" * 11, b"d"))


@pytest.mark.parametrize("others", [0, 1, 4])
async def test_a_message_that_is_too_large_is_set_aside_and_the_others_go_in_order(others: int) -> None:
    producer, aside = Producer(room=MAX_BATCH_BYTES), SetAside("stockstream.")
    sender = Sender(lambda: producer, Fence(6.0), aside=aside)
    small = [b"%d" % number for number in range(others)]
    await delivered(await sender.send(out("stockstream.alerts", *small[:2], b"x" * MAX_BATCH_BYTES, *small[2:])))
    assert producer.values("stockstream.alerts") == small
    (one,) = aside.newest
    assert one[:4] == ("stockstream.alerts", 3, -1, "send") and one.reason.startswith("too large: 1000103 bytes, key b'key'")


async def test_a_state_record_that_is_too_large_is_an_error_that_names_it(rig: Rig) -> None:
    sender = Sender(lambda: rig.producer, rig.fence, state_topics={"app-detect-changelog"})
    pipe = Pipe(sender, rig.fence, "detect[3]")
    await pipe.submit([out("t", b"a")], out("app-detect-changelog", b"x" * MAX_BATCH_BYTES))
    await pipe.drain()
    await pipe.close(0)
    assert rig.reasons == [
        "detect[3]: StateError: a state record for app-detect-changelog[3] is too large: 1000103 bytes, key b'key': a message may have at most 1000000 bytes"
    ]


async def test_what_the_broker_refuses_for_its_size_is_set_aside_and_the_pipe_goes_on() -> None:
    """A topic whose max.message.bytes is lower than ours."""
    reasons: list[str] = []
    producer, aside = Producer(), SetAside()
    fence = Fence(6.0, reasons.append)
    sender = Sender(lambda: producer, fence, aside=aside, state_topics={"state"})
    pipe = Pipe(sender, fence, "detect[3]")
    producer.hold = True
    await pipe.submit([out("alerts", b"large"), out("market", b"small")], out("state", b"s"))
    await eventually(lambda: len(producer.held) == 2)
    producer.held[0].set_exception(MessageSizeTooLargeError())
    producer.release()
    await pipe.drain()
    assert producer.values("state") == [b"s"] and not reasons
    assert [(one.topic, one.agent) for one in aside.newest] == [("alerts", "send")]
    producer.hold = True
    await pipe.submit([], out("state", b"s"))
    await eventually(lambda: bool(producer.held))
    producer.held[0].set_exception(MessageSizeTooLargeError())
    await pipe.drain()
    assert len(reasons) == 1 and reasons[0].startswith("detect[3]: MessageSizeTooLargeError")
    await pipe.close(0)


@pytest.mark.parametrize("large", [{4}, {0, 8}, set(range(9)), set()])
async def test_of_a_batch_that_the_broker_refuses_only_what_is_too_large_by_itself_is_set_aside(large: set[int]) -> None:
    """The topic takes less than 30 bytes: no batch of four messages, and none of those of 30."""

    class Small(Producer):
        def __init__(self) -> None:
            super().__init__()
            self.taken: list[bytes] = []

        def _future(self) -> asyncio.Future[None]:
            sent = self.batches[-1].messages if self.batches and self.sent[-1][2] is self.batches[-1].messages[-1] else [self.sent[-1][2]]
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if sum(len(message[1]) for message in sent) < 30:
                self.taken += [message[1] for message in sent]
                future.set_result(None)
            else:
                future.set_exception(MessageSizeTooLargeError())
            return future

    producer, aside = Small(), SetAside()
    values = [(b"%d" % number) * (30 if number in large else 9) for number in range(9)]
    sender = Sender(lambda: producer, Fence(6.0), aside=aside)
    await delivered(await sender.send(out("alerts", *values)))
    assert producer.taken == [value for number, value in enumerate(values) if number not in large]
    assert len(aside.newest) == len(large)


def test_sequence_numbers_that_the_broker_has_refused_count_again() -> None:
    """The broker knows nothing of a batch that it refuses: the next one begins where that did."""
    place = TopicPartition("t", 3)
    numbers = {place: 17}
    manager = SimpleNamespace(increment_sequence_number=lambda tp, count: numbers.update({tp: numbers[tp] + count}))
    failed: list[Any] = []
    batch = SimpleNamespace(tp=place, record_count=5, failure=lambda exception: failed.append(exception), expired=lambda: False)
    for code, expected in ((10, 12), (18, 7), (29, 7)):
        handler = Produce(SimpleNamespace(_txn_manager=manager, client=None, _retry_backoff=0.1), {place: batch})
        handler.handle_response(SimpleNamespace(API_VERSION=7, topics=[("t", [(3, code, -1, -1, -1)])]))
        assert numbers[place] == expected
    assert [type(error).__name__ for error in failed] == ["MessageSizeTooLargeError", "RecordListTooLargeError", "TopicAuthorizationFailedError"]


async def test_a_worker_that_may_not_act_sends_nothing(clock: Clock) -> None:
    producer, fence = Producer(), Fence(6.0, lambda _: None)
    fence.tick()
    clock.now += 4
    with pytest.raises(FencedError):
        await Sender(lambda: producer, fence).send(out("t", b"a"))
    assert not producer.sent


async def test_a_worker_that_was_frozen_while_it_waited_for_its_turn_sends_nothing(clock: Clock) -> None:
    producer, fence = Producer(), Fence(6.0, lambda _: None)
    sender = Sender(lambda: producer, fence)
    fence.tick()
    lock = sender._locks.setdefault(("t", 3), asyncio.Lock())
    await lock.acquire()
    sending = asyncio.create_task(sender.send(out("t", b"a")))
    for _ in range(5):
        await asyncio.sleep(0)
    clock.now += 4
    lock.release()
    with pytest.raises(FencedError):
        await sending
    assert not producer.sent


async def test_a_message_waits_for_room_longer_than_one_request(clock: Clock) -> None:
    producer, fence, waits = Producer(), Fence(60.0, lambda _: None), [KafkaTimeoutError()] * 3
    room = producer.send

    async def send(*args: Any, **kwargs: Any) -> Any:
        clock.now += 9
        if waits:
            raise waits.pop()
        return await room(*args, **kwargs)

    producer.send = send  # type: ignore[method-assign]
    await Sender(lambda: producer, fence).send(out("t", b"a"))
    assert producer.values("t") == [b"a"]
    waits += [KafkaTimeoutError()] * 9
    with pytest.raises(KafkaTimeoutError):
        await Sender(lambda: producer, fence).send(out("t", b"b"))


async def test_state_is_written_only_after_what_it_counts_is_confirmed(rig: Rig) -> None:
    rig.producer.hold = True
    done: list[str] = []
    await rig.pipe.submit([out("windows", b"w")], out("state", b"s"), delivered=lambda: done.append("delivered"))
    await eventually(lambda: bool(rig.producer.held))
    await asyncio.sleep(0)
    assert rig.producer.values("windows") == [b"w"]
    assert rig.producer.values("state") == [] and not done
    rig.producer.release()
    await rig.pipe.drain()
    assert rig.producer.values("state") == [b"s"] and done == ["delivered"]


async def test_order_is_kept_across_jobs_while_several_are_under_way(rig: Rig) -> None:
    rig.producer.hold = True
    for number in range(4):
        await rig.pipe.submit([out("windows", b"w%d" % number)], out("state", b"s%d" % number))
    await eventually(lambda: len(rig.producer.held) == 4)
    assert rig.producer.values("windows") == [b"w0", b"w1", b"w2", b"w3"], "the next is sent before the one before is confirmed"
    held, rig.producer.held, rig.producer.hold = rig.producer.held, [], False
    for future in reversed(held[1:]):
        future.set_result(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert rig.producer.values("state") == [], "the first is not confirmed"
    held[0].set_result(None)
    await rig.pipe.drain()
    assert rig.producer.values("state") == [b"s0", b"s1", b"s2", b"s3"]


async def test_a_failing_send_leaves_through_the_fence_and_nothing_is_written_after_it(rig: Rig) -> None:
    rig.producer.fail[b"bad"] = RuntimeError("broken")
    rig.producer.hold = True
    await rig.pipe.submit([out("windows", b"good")], out("state", b"s0"))
    await rig.pipe.submit([out("windows", b"bad")], out("state", b"s1"))
    await rig.pipe.submit([out("windows", b"later")], out("state", b"s2"))
    await eventually(lambda: bool(rig.reasons))
    rig.producer.release()
    for _ in range(20):
        await asyncio.sleep(0)
    assert rig.reasons == ["test[3]: RuntimeError: broken"]
    assert rig.producer.values("windows") == [b"good"] and rig.producer.values("state") == []


async def test_a_delivery_that_fails_leaves_and_its_state_is_not_written(rig: Rig) -> None:
    rig.producer.hold = True
    await rig.pipe.submit([out("windows", b"w0")], out("state", b"s0"))
    await rig.pipe.submit([out("windows", b"w1")], out("state", b"s1"))
    await eventually(lambda: len(rig.producer.held) == 2)
    rig.producer.held[0].set_exception(RuntimeError("not enough replicas"))
    rig.producer.held[1].set_result(None)
    await eventually(lambda: bool(rig.reasons))
    async with asyncio.timeout(PATIENCE_S):
        await rig.pipe.drain()
    assert rig.reasons == ["test[3]: RuntimeError: not enough replicas"] and rig.producer.values("state") == []


async def test_drain_ends_when_the_pipe_is_closed_under_it(rig: Rig) -> None:
    rig.producer.hold = True
    await rig.pipe.submit([out("windows", b"w")], out("state", b"s"))
    draining = asyncio.create_task(rig.pipe.drain())
    await eventually(lambda: bool(rig.producer.held))
    assert not draining.done()
    async with asyncio.timeout(PATIENCE_S):
        await rig.pipe.close(0)
        await draining
    rig.producer.release()
    for _ in range(10):
        await asyncio.sleep(0)
    assert rig.producer.values("state") == []


async def test_close_settles_what_is_confirmed_in_time(rig: Rig) -> None:
    await rig.pipe.submit([out("windows", b"w")], out("state", b"s"))
    await rig.pipe.close(20)
    assert rig.producer.values("state") == [b"s"]


async def test_submit_on_a_closed_pipe_does_nothing(rig: Rig) -> None:
    await rig.pipe.close(20)
    async with asyncio.timeout(PATIENCE_S):
        for _ in range(3 * PIPE_DEPTH):
            await rig.pipe.submit([out("windows", b"w")])
        await rig.pipe.drain()
    assert not rig.producer.sent


async def test_submit_waits_when_many_jobs_are_under_way_and_close_lets_it_go(rig: Rig) -> None:
    rig.producer.hold = True
    submitted = 0

    async def submit_for_ever() -> None:
        nonlocal submitted
        while submitted < 10 * PIPE_DEPTH:
            await rig.pipe.submit([out("windows", b"w")])
            submitted += 1

    task = asyncio.create_task(submit_for_ever())
    await eventually(lambda: submitted >= PIPE_DEPTH)
    for _ in range(50):
        await asyncio.sleep(0)
    assert submitted <= 2 * PIPE_DEPTH + 2 and not task.done(), "jobs that wait to be sent, jobs that wait to be confirmed, one in hand of each"
    async with asyncio.timeout(PATIENCE_S):
        await rig.pipe.close(0)
        await task


async def test_who_submits_first_is_sent_first_however_many_wait(rig: Rig) -> None:
    """An agent and its timer submit side by side: a frame that overtakes the one before it can never be counted."""
    rig.producer.hold = True
    values = [b"%d" % number for number in range(2 * PIPE_DEPTH + 2)]
    for value in values:
        await rig.pipe.submit([out("windows", value)])
        await asyncio.sleep(0)
    await eventually(rig.pipe._steps.full)
    waiting = [asyncio.create_task(rig.pipe.submit([out("windows", value)])) for value in (b"first", b"second")]
    for _ in range(5):
        await asyncio.sleep(0)
    assert rig.pipe._steps.full() and not any(task.done() for task in waiting)
    rig.producer.release()
    taken = rig.pipe._steps.get_nowait().sends[0].messages[0].value      # a place is free, and whoever waits for it has not run yet
    rig.pipe._steps.task_done()
    async with asyncio.timeout(PATIENCE_S):
        await rig.pipe.submit([out("windows", b"newcomer")])
        await asyncio.gather(*waiting)
        await rig.pipe.drain()
    assert rig.producer.values("windows") == [*(value for value in values if value != taken), b"first", b"second", b"newcomer"]


# -- Consumer ---------------------------------------------------------------


def consumer(delivered: list[int]) -> Consumer:
    """A consumer with its books only."""
    made: Consumer = Consumer.__new__(Consumer)
    made._delivered = defaultdict(list, {P: list(delivered)})
    made._acked = defaultdict(list)
    made._acked_index = defaultdict(set)
    return made


def ack(read: Consumer, *acked: int) -> None:
    read._acked[P] += acked
    read._acked_index[P] |= set(acked)


def test_commits_follow_the_contiguous_prefix_of_acknowledged_chunks() -> None:
    read = consumer([9, 24, 31])
    ack(read, 24, 31)
    assert read._new_offset(P) is None, "the first chunk is not acknowledged"
    assert read._acked[P] == [24, 31]
    ack(read, 9)
    assert read._new_offset(P) == 32
    assert (read._delivered[P], read._acked[P], read._acked_index[P]) == ([], [], set())
    assert read._new_offset(P) is None


def test_a_chunk_that_is_not_acknowledged_holds_back_those_behind_it() -> None:
    read = consumer([9, 24, 31])
    ack(read, 9, 31)
    assert read._new_offset(P) == 10
    assert (read._delivered[P], read._acked[P]) == ([24, 31], [31])


class SeekingThread:
    def __init__(self) -> None:
        self.sought: dict[TP, int] = {}

    async def call_thread(self, fun: Callable[..., Awaitable[None]], *args: Any) -> None:
        await fun(*args)

    async def seek_all(self, known: Mapping[TP, int]) -> None:
        self.sought |= known

    async def earliest_offsets(self, *partitions: TP) -> dict[TP, int]:
        return {tp: 100 + tp.partition for tp in partitions}

    def assignment(self) -> set[TP]:
        return {P, TP("ticks.raw", 4)}


def seeking(positions: Callable[[set[TP]], Awaitable[Mapping[TP, int | None]]]) -> tuple[Consumer, SeekingThread]:
    read, thread = consumer([]), SeekingThread()
    read.guard, read._held, read._held_since, read._begins, read._through, read.assignment_number, read._seeking = Guard(), {}, {}, {}, {P: 4}, 0, False
    read._thread = thread  # type: ignore[assignment]
    read._active_partitions, read._paused_partitions = set(), set()
    read.app = SimpleNamespace(
        positions=positions, tables=SimpleNamespace(changelog_topics=set()), conf=SimpleNamespace(broker_request_timeout=9.0),
        settings=SimpleNamespace(topic=lambda name: name),
    )  # fmt: skip
    read.pace, read.loopback = Pace(200), Loopback()
    return read, thread


async def test_reading_goes_on_where_the_state_says_else_at_the_beginning() -> None:
    async def positions(assigned: set[TP]) -> Mapping[TP, int | None]:
        return {P: 17, TP("ticks.raw", 4): None}

    read, thread = seeking(positions)
    read.guard.probed[P] = 17
    await read.perform_seek()
    assert thread.sought == read.guard.expected == read._begins == {P: 17, TP("ticks.raw", 4): 104}
    assert not read.guard.probed and read._through == read._begins
    assert (read.assignment_number, read._seeking) == (1, False)
    assert read.pace.partitions == {P.partition, 4}


async def test_a_seek_whose_partitions_were_revoked_meanwhile_changes_nothing() -> None:
    async def positions(assigned: set[TP]) -> Mapping[TP, int | None]:
        read.end_assignment()
        return {P: 17, TP("ticks.raw", 4): 18}

    read, thread = seeking(positions)
    await read.perform_seek()
    assert (thread.sought, read.guard.expected, read._begins, read._seeking) == ({}, {}, {}, True)


async def test_a_seek_that_a_newer_assignment_has_overtaken_changes_nothing() -> None:
    """Faust cancels it and does not wait; what it awaits may swallow the cancellation."""
    first, second = asyncio.Event(), asyncio.Event()

    async def positions(assigned: set[TP]) -> Mapping[TP, int | None]:
        assignment_number = read.assignment_number
        await (first if assignment_number == 1 else second).wait()
        return {P: assignment_number * 100}

    read, thread = seeking(positions)
    old = asyncio.create_task(read.perform_seek())
    await eventually(lambda: read.assignment_number == 1)
    new = asyncio.create_task(read.perform_seek())
    await eventually(lambda: read.assignment_number == 2)
    first.set()
    await old
    assert read._seeking and not thread.sought, "the newer one is not done"
    second.set()
    await new
    assert thread.sought[P] == 200 and read.guard.expected[P] == 200 and not read._seeking


def fetched(records: list[Any]) -> Fetched:
    """As a fetch brings them: in batches, here of two."""
    batches = [records[at : at + 2] for at in range(0, len(records), 2)]
    return Fetched(records, [Offsets(batch[0].offset, batch[-1].offset + 1) for batch in batches])


whole = fetched


class Reading:
    """As much of a consumer as its loop needs; each fetch is what `fetches` holds next."""

    consumer_stopped_errors = (ConsumerStoppedError,)

    def __init__(self, *fetches: Any) -> None:
        self.fetches = list(fetches)
        self.reasons: list[str] = []
        self.app: Any = SimpleNamespace(
            settings=SimpleNamespace(gather_ms=0, topic=lambda name: name), fence=Fence(6.0, self.reasons.append), should_stop=False, embedded=False
        )
        self.transport = SimpleNamespace(app=self.app)
        self._stopped, self.flow_active, self._seeking, self.assignment_number = asyncio.Event(), True, False, 1
        self._held: dict[TP, Any] = {}
        self._held_since: dict[TP, float] = {}
        self._through: dict[TP, int] = {}
        self.guard = Guard()
        self.pace, self.loopback = Pace(200), Loopback()
        self.high: int | None = None
        self._thread = SimpleNamespace(_ensure_consumer=lambda: SimpleNamespace(highwater=lambda _: self.high), highest_requested={}, requested_below=set())
        self.delivered: list[tuple[TP, list[int]]] = []

    plain = False
    sent: Any = Consumer.sent
    _confirmed: Any = Consumer._confirmed
    _deliver_loopback: Any = Consumer._deliver_loopback
    _downstream_first: Any = Consumer._downstream_first
    _meanwhile: Any = Consumer._meanwhile
    _require_end: Any = Consumer._require_end

    async def _wait_next_records(self, timeout: float) -> Any:
        if not self.fetches:
            self._stopped.set()
            return {}, None
        fetch = self.fetches.pop(0)
        if isinstance(fetch, BaseException):
            raise fetch
        if callable(fetch):
            fetch = await fetch()
        return {tp: fetched(got) for tp, got in fetch.items()}, None

    def _is_changelog_tp(self, tp: TP) -> bool:
        return tp.topic == "changelog"

    async def _admit(self, tp: TP, records: Sequence[Any], empty: Sequence[Offsets], before: int) -> Sequence[Any]:
        return self.guard.admit(tp, records, empty)[0]

    async def _deliver(self, tp: TP, records: Sequence[Any]) -> None:
        self.delivered.append((tp, offsets(records)))

    async def run(self) -> None:
        await Consumer._drain_messages(self, SimpleNamespace(_stopped=asyncio.Event()))  # type: ignore[arg-type]


async def test_each_partition_of_a_fetch_is_one_chunk_and_changelogs_are_none() -> None:
    reading = Reading({P: records(5, 6), TP("changelog", 3): records(1), TP("windows", 0): records(9)}, {P: records(7)})
    reading.app.should_stop = True
    await reading.run()
    assert reading.delivered == [(TP("windows", 0), [9]), (P, [5, 6]), (P, [7])]


async def test_ticks_are_gathered_but_not_while_seconds_close() -> None:
    fetches = [{P: records(offset, at=at)} for offset, at in ((5, 10_900), (6, 11_190), (7, 11_210), (8, 11_290))]
    reading = Reading(*fetches[:2], {TP("windows", 0): records(1)}, *fetches[2:])
    reading.app.settings.gather_ms, reading.app.should_stop = 600_000, True
    await reading.run()
    assert reading.delivered == [(TP("windows", 0), [1]), (P, [5, 6, 7]), (P, [8])]


async def test_what_is_no_record_is_no_chunk_and_counts_as_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a log that ends with a transaction's marker would never be read to its end, and a quiet source's last second never closed."""
    reading = Reading({P: records(5)}, {P: []})
    reading.app.should_stop = True
    monkeypatch.setitem(globals(), "fetched", lambda some: whole(some) if some else Fetched([], [Offsets(6, 8)]))
    await reading.run()
    assert reading.delivered == [(P, [5])] and reading.guard.expected == {P: 8} and reading._through == {P: 8}


@pytest.mark.parametrize(("count", "parts"), [(0, []), (1, [1]), (10, [10]), (14, [14]), (16, [8, 8]), (29, [10, 10, 9]), (41, [11, 11, 11, 8])])
def test_a_fetch_is_cut_into_equal_chunks_without_a_small_rest(count: int, parts: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.transport.messages.CHUNK_RECORDS", 10)
    chunks = list(cut(range(count)))
    assert [len(chunk) for chunk in chunks] == parts and [number for chunk in chunks for number in chunk] == list(range(count))


class Log:
    """What aiokafka knows of a partition's end."""

    def __init__(self, end: int, at: int) -> None:
        self.end, self.at = end, at

    def last_stable_offset(self, partition: Any) -> int:
        return self.end

    highwater = last_stable_offset

    def last_poll_timestamp(self, partition: Any) -> int | None:
        return self.at or None


@pytest.mark.parametrize(("end", "expected", "through", "ended"), [(8, 8, 0, True), (8, 7, 0, False), (8, 7, 8, True), (9, 7, 8, False), (0, None, 0, True)])
def test_a_log_is_read_to_its_end_where_nothing_is_left_but_markers(end: int, expected: int | None, through: int, ended: bool) -> None:
    read = consumer([])
    read.guard, read._held, read._through = Guard(), {}, {P: through} if through else {}
    read.guard.expected[P] = expected
    read._thread = SimpleNamespace(_ensure_consumer=lambda: Log(end, 5_000))  # type: ignore[assignment]
    assert read.at_end(P) is ended and read.polled(P) == 5_000
    read._held[P] = records(7)
    assert not read.at_end(P)


@pytest.mark.parametrize(("expected", "through", "start", "lag"), [
    (3, 0, None, 5), (8, 0, None, 0), (3, 8, None, 0), (3, 3, 8, 0), (3, 3, 6, 2), (None, 0, None, 8), (9, 9, None, 0),
])  # fmt: skip
def test_records_that_the_broker_deleted_are_no_lag(expected: int | None, through: int, start: int | None, lag: int) -> None:
    read = consumer([])
    read.guard, read._through = Guard({P: expected}), {P: through}
    read._thread = SimpleNamespace(_ensure_consumer=lambda: Log(8, 5_000), log_starts={} if start is None else {P: start})  # type: ignore[assignment]
    assert read.lag(P) == lag


async def test_where_aiokafka_reads_on_after_records_were_deleted_is_noted() -> None:
    thread, resets = Fetching(), {True: SimpleNamespace(awaiting_reset=True), False: SimpleNamespace(awaiting_reset=False)}
    thread._brought = SMALL_FETCH

    async def ask(offset: int, *, out_of_range: bool = False) -> None:
        assignment = SimpleNamespace(state_value=lambda tp: resets[out_of_range])
        await thread._on_demand(thread.fetch, assignment, 1, SimpleNamespace(topics=[(P.topic, [(P.partition, offset, 100)])]))

    await ask(7)
    assert not thread.log_starts
    await ask(9, out_of_range=True)
    assert not thread.log_starts
    await ask(40)
    assert thread.log_starts == {P: 40}
    await ask(42)
    assert thread.log_starts == {P: 40}
    thread._consumer, thread.assignment = SimpleNamespace(), set  # type: ignore[method-assign]
    await thread.seek_all({P: 41})
    assert not thread.log_starts


def test_a_partition_that_the_broker_was_never_asked_for_was_never_polled() -> None:
    read = consumer([])
    read._thread = SimpleNamespace(_ensure_consumer=lambda: Log(0, 0))  # type: ignore[assignment]
    assert read.polled(P) == 0
    read._thread = SimpleNamespace()  # type: ignore[assignment]
    assert read.polled(P) == 0


async def test_many_records_are_delivered_in_chunks_until_the_assignment_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.transport.messages.CHUNK_RECORDS", 2)
    read, delivered = consumer([]), []
    read.assignment_number = 1

    async def deliver(tp: TP, some: list[Any]) -> None:
        delivered.append(offsets(some))
        read.assignment_number += len(delivered) == 2

    read._deliver_chunk = deliver  # type: ignore[method-assign, assignment]
    await read._deliver(P, records(1, 2, 3))
    assert delivered == [[1, 2], [3]]
    await read._deliver(P, records(4, 5, 6))
    assert delivered == [[1, 2], [3], [4, 5], [6]]
    delivered.clear()
    await read._deliver(P, records(7, 8, 9, 10, 11, 12))
    assert delivered == [[7, 8], [9, 10]]


async def test_frames_are_delivered_before_ticks() -> None:
    clean = TP("ticks.clean", 3)
    reading = Reading({P: records(5), clean: records(8)})
    reading.app.should_stop = True
    await reading.run()
    assert reading.delivered == [(clean, [8]), (P, [5])]


async def test_ticks_are_gathered_once_their_partition_has_closed_the_second() -> None:
    fetches = [{P: records(offset, at=at)} for offset, at in ((5, 11_210), (6, 11_220), (7, 11_230))]
    reading = Reading(*fetches)
    reading.app.settings.gather_ms, reading.app.should_stop = 600_000, True
    deliver = reading._deliver

    async def deliver_and_close(tp: TP, records: Sequence[Any]) -> None:
        await deliver(tp, records)
        reading.pace.closed(tp.partition)

    reading._deliver = deliver_and_close  # type: ignore[method-assign]
    await reading.run()
    assert reading.delivered == [(P, [5])]
    assert offsets(reading._held[P]) == [6, 7]


def at_ms(monkeypatch: pytest.MonkeyPatch, now: int) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: now * 1_000_000)


async def pauses(pace: Pace, count: int = 3) -> bool:
    """Whether a fetch of so many records is followed by a pause that only what arrives ends."""
    pausing = asyncio.create_task(pace.after(count))
    for _ in range(3):
        await asyncio.sleep(0)
    paused = not pausing.done()
    if paused:
        pace.arrived()
    async with asyncio.timeout(PATIENCE_S):
        await pausing
    return paused


async def test_reading_pauses_until_frames_have_arrived(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.transport.pacing.PACE_S", 60)
    monkeypatch.setattr("stockstream.transport.pacing.COMPANY_S", 0)
    at_ms(monkeypatch, 11_200)
    pace = Pace(200)
    assert await pauses(pace)
    assert not await pauses(pace), "what has arrived was not fetched yet"
    pace.fetching()
    assert await pauses(pace)
    pace.fetching()
    assert not await pauses(pace, SMALL_FETCH) and not await pauses(pace, 0)


async def test_frames_that_have_arrived_are_given_a_moment_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    pace = Pace(200)
    pace.arrived()
    monkeypatch.setattr(asyncio, "sleep", sleep)
    await pace.after(3)
    assert slept == [COMPANY_S] and 0 < COMPANY_S < PACE_S
    await pace.after(SMALL_FETCH)
    await pace.after(3)
    assert slept == [COMPANY_S, 0], "in a backlog there is company enough"


async def test_others_pass_only_where_nothing_is_to_be_caught_up() -> None:
    pace, turns = Pace(200), 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.create_task(other())
    await pace.let_pass(6)
    assert turns == 6
    await pace.let_pass(0)
    await pace.after(SMALL_FETCH)
    before = turns
    await pace.let_pass(6)
    assert turns == before
    running.cancel()


@pytest.mark.parametrize(
    ("now", "closed", "expected"), [(11_500, (), 0.7), (11_170, (), 0.03), (11_250, (), 0.003), (11_250, (3,), 0.003), (11_250, (3, 4), 0.95)]
)
async def test_a_pause_ends_where_a_second_is_due_and_is_short_until_all_partitions_have_closed_it(
    now: int, closed: tuple[int, ...], expected: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("stockstream.transport.pacing.PACE_S", 60)

    def timeout(pause: float) -> Any:
        waited.append(pause)
        return contextlib.nullcontext()

    monkeypatch.setattr(asyncio, "timeout", timeout)
    at_ms(monkeypatch, now)
    pace = Pace(200)
    pace.partitions = {3, 4}
    for partition in closed:
        pace.closed(partition)
    pace.arrived()
    await pace.after(3)
    assert waited == [pytest.approx(expected)]


CLEAN = TP("ticks.clean", 3)
FRAMES = [Message(None, b"a" * 40), Message(b"k", b"b" * 40, (("hops", b"[1]"),))]


def confirmed(offset: int) -> asyncio.Future[Any]:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    future.set_result(SimpleNamespace(offset=offset, timestamp=5, timestamp_type=0))
    return future


def test_what_this_worker_has_written_is_taken_where_it_follows_upon_what_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    loopback = Loopback()
    monkeypatch.setattr("stockstream.transport.loopback.LOOPBACK_BYTES", 200)
    for expected, first in ((None, 0), (7, 6), (7, 8), (7, -1)):
        assert not loopback.add(CLEAN, expected, first, 5, 0, FRAMES), (expected, first)
    assert loopback.add(CLEAN, 7, 7, 5, 0, FRAMES) and loopback.add(CLEAN, 7, 9, 6, 0, FRAMES)
    assert not loopback.add(CLEAN, 7, 9, 6, 0, FRAMES) and not loopback.add(P, 1, 1, 5, 0, FRAMES), "sent again; too much"
    taken = loopback.take()[CLEAN]
    assert [(r.offset, r.timestamp, r.key, r.value[:1]) for r in taken] == [(7, 5, None, b"a"), (8, 5, b"k", b"b"), (9, 6, None, b"a"), (10, 6, b"k", b"b")]
    assert taken[1].headers == (VERSION_HEADER, ("hops", b"[1]"))
    assert not loopback.take() and loopback.add(P, 1, 1, 5, 0, FRAMES), "there is room again"


async def test_what_this_worker_has_written_is_delivered_while_a_fetch_waits_and_its_copy_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    delivered = asyncio.Event()

    async def fetch() -> dict[TP, Any]:
        reading.sent(CLEAN, [(confirmed(7), FRAMES)])
        await delivered.wait()                                           # else nothing comes of this fetch
        return {CLEAN: records(5, 6, 7, 8), P: records(3)}

    reading = Reading(fetch, {CLEAN: records(8, 9)})
    reading.guard.expected[CLEAN] = 7
    reading.app.should_stop = True
    deliver = reading._deliver

    async def deliver_and_tell(tp: TP, records: Sequence[Any]) -> None:
        await deliver(tp, records)
        delivered.set()

    monkeypatch.setattr(reading, "_deliver", deliver_and_tell)
    async with asyncio.timeout(PATIENCE_S):
        await reading.run()
    assert reading.delivered == [(CLEAN, [7, 8]), (P, [3]), (CLEAN, [9])] and not reading.reasons


async def test_what_this_worker_has_written_furthest_along_the_line_goes_first() -> None:
    reading = Reading({})
    reading.guard.expected |= {CLEAN: 7, TP("windows", 3): 7}
    reading.app.should_stop = True
    for tp in (CLEAN, TP("windows", 3)):
        reading.sent(tp, [(confirmed(7), FRAMES)])
    await asyncio.sleep(0)
    await reading.run()
    assert reading.delivered == [(TP("windows", 3), [7, 8]), (CLEAN, [7, 8])]


@pytest.mark.parametrize("why", ["elsewhere", "not assigned", "assigned anew", "seeking", "embedded", "failed", "cancelled"])
async def test_what_does_not_follow_upon_what_was_read_is_fetched(why: str) -> None:
    reading = Reading({})
    reading.guard.expected[CLEAN] = 7
    future = confirmed(8 if why == "elsewhere" else 7)
    if why in ("failed", "cancelled"):
        future = asyncio.get_running_loop().create_future()
        future.cancel() if why == "cancelled" else future.set_exception(KafkaTimeoutError())
    reading.sent(CLEAN, [(future, FRAMES)])
    if why == "not assigned":
        del reading.guard.expected[CLEAN]
    reading.assignment_number += why == "assigned anew"
    reading._seeking, reading.app.embedded = why == "seeking", why == "embedded"
    await asyncio.sleep(0)
    assert not reading.loopback.take() and reading.pace._arrived.is_set()


@pytest.mark.parametrize("meanwhile", ["revoked", "suspended", "sought back", "read"])
async def test_what_is_of_no_use_any_more_when_its_turn_comes_is_not_delivered(meanwhile: str) -> None:
    reading = Reading({})
    reading.guard.expected[CLEAN] = 7
    reading.sent(CLEAN, [(confirmed(7), FRAMES)])
    await asyncio.sleep(0)
    if meanwhile == "revoked":
        del reading.guard.expected[CLEAN]
    else:
        reading.guard.expected[CLEAN] = {"sought back": 6, "read": 9}.get(meanwhile, 7)
    reading.flow_active = meanwhile != "suspended"
    await reading._deliver_loopback()
    assert not reading.delivered and not reading.loopback.records


async def test_a_topic_that_ends_before_what_was_fetched_was_made_again_but_not_before_what_was_written() -> None:
    reading = Reading({CLEAN: records(5, 6)}, {CLEAN: records(6)}, {CLEAN: records(5, 6)})
    reading.guard.expected[CLEAN], reading._through[CLEAN] = 9, 5
    reading.app.should_stop = True
    reading.high = 7
    await reading.run()
    assert not reading.reasons, "it ends where the fetches do"
    reading.fetches, reading.high = [{CLEAN: records(0, 1)}], 2
    reading._stopped.clear()
    with pytest.raises(FencedError):
        await reading.run()
    assert "created again" in reading.reasons[0]


def test_ticks_from_before_and_after_a_second_is_due_go_at_once_however_late_they_are_fetched() -> None:
    pace = Pace(200)
    assert pace.awaited(4, 12_190, 12_450) and not pace.awaited(4, 12_310, 12_450)
    pace.closed(4)
    assert not pace.awaited(4, 12_190, 12_450), "it has closed already"


def test_the_last_closings_say_when_the_next_are_due(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sources lag, and their clocks differ: what may close a second goes at once all the same."""
    pace = Pace(200)
    assert pace.awaited(4, 12_250, 12_250) and not pace.awaited(4, 12_650, 12_650)
    for now in (11_690, 11_650, 11_730):
        at_ms(monkeypatch, now)
        pace.closed(3)
    assert not pace.awaited(4, 12_250, 12_250) and not pace.awaited(4, 12_599, 12_599)
    assert pace.awaited(4, 12_600, 12_600) and pace.awaited(4, 12_650, 12_650) and not pace.awaited(4, 12_701, 12_701)
    at_ms(monkeypatch, 12_205)
    pace._backlog = time.monotonic()
    pace.closed(3)
    assert not pace.awaited(4, 12_250, 12_250), "what is caught up on closes at any time"
    pace._backlog = -BACKLOG_S
    pace.closed(3)
    assert pace.awaited(4, 12_250, 12_250), "another source is prompt"
    at_ms(monkeypatch, 13_650)
    for _ in range(CLOSINGS_KEPT):
        pace.closed(3)
    assert pace.awaited(4, 13_650, 13_650), "it is gone"


async def test_a_sender_tells_what_it_has_handed_over() -> None:
    handed_over: list[tuple[str, Deliveries]] = []
    sender, messages = Sender(lambda: Producer(), Fence(6.0), lambda out, deliveries: handed_over.append((out.topic, deliveries))), [Message(None, b"1")]
    [confirmed] = await sender.send(Outgoing("windows", 3, messages))
    assert handed_over == [("windows", [(confirmed, messages)])]


REQUEST = SimpleNamespace(topics=[])


class Fetching(ConsumerThread):
    """The thread's fetching, without a thread; `asked` holds what `getmany` waits for."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        self.highest_requested, self.requested_below, self.log_starts, self._out_of_range, self._sought = {}, set(), {}, set(), {}
        self.sent: list[int] = []
        self.consumer: Any = SimpleNamespace(pace=Pace(200), loopback=Loopback())

    async def fetch(self, _: Any, number: int, request: Any) -> bool:
        self.sent.append(number)
        self.consumer.pace.arrived()
        return True


async def test_a_fetch_is_sent_when_it_is_asked_for_and_ahead_in_a_backlog() -> None:
    thread = Fetching()
    waiting = asyncio.create_task(thread._on_demand(thread.fetch, None, 1, REQUEST))
    await asyncio.sleep(0)
    assert not thread.sent
    thread._asked.set()
    assert await waiting is True and thread.sent == [1]
    assert thread.consumer.pace._arrived.is_set(), "what arrives while a fetch is under way is for the next"
    thread._asked.clear()
    thread._brought = SMALL_FETCH
    assert await thread._on_demand(thread.fetch, None, 2, REQUEST) is True


async def test_a_fetch_begins_behind_what_was_delivered_without_one() -> None:
    thread, sought = Fetching(), []
    loopback = thread.consumer.loopback
    for partition, offsets_ in ((3, (7, 8)), (3, (9,)), (4, (5,)), (5, (5, 6)), (6, (1,))):
        loopback.delivered(TP("ticks.clean", partition), records(*offsets_))
    partitions = [(3, 8, 100), (4, 6, 100), (5, 4, 100), (7, 1, 100)]    # within; behind; before, as after a reset; none
    request = SimpleNamespace(topics=[("windows", [(3, 7, 100)]), ("ticks.clean", partitions)])
    assignment = SimpleNamespace(state_value=lambda tp: SimpleNamespace(seek=lambda offset: sought.append((tp, offset)), awaiting_reset=False))
    thread._brought = SMALL_FETCH
    await thread._on_demand(thread.fetch, assignment, 1, request)
    assert request.topics == [("windows", [(3, 7, 100)]), ("ticks.clean", [(3, 10, 100), (4, 6, 100), (5, 4, 100), (7, 1, 100)])]
    assert sought == [(TP("ticks.clean", 3), 10)] and list(loopback.delivered_ranges) == [TP("ticks.clean", 6)], "each is passed once"
    loopback.forget()
    assert not loopback.delivered_ranges


async def test_a_position_that_goes_back_by_itself_is_noticed() -> None:
    """aiokafka begins anew a log that ends before the position; a worker that wrote what it read may have fetched nothing of it."""
    thread = Fetching()
    thread._brought = SMALL_FETCH
    assignment = SimpleNamespace(state_value=lambda tp: SimpleNamespace(seek=lambda offset: None, awaiting_reset=False))

    async def ask(offset: int) -> None:
        await thread._on_demand(thread.fetch, assignment, 1, SimpleNamespace(topics=[("ticks.clean", [(3, offset, 100)])]))

    await ask(7)
    thread.consumer.loopback.delivered(CLEAN, records(7, 8))
    await ask(7)
    assert not thread.requested_below and thread.highest_requested == {CLEAN: 9}
    await ask(0)
    assert thread.requested_below == {CLEAN}
    thread._consumer = SimpleNamespace(seek=lambda tp, offset: None)
    thread.assignment = lambda: {CLEAN}  # type: ignore[method-assign]
    await thread.seek_all({CLEAN: 4})
    await ask(4)
    assert not thread.requested_below and thread.highest_requested == {CLEAN: 4}, "a seek of ours may go back"

    await thread.seek_all({CLEAN: 2})
    await ask(9)
    assert not thread.highest_requested, "a seek of ours has overtaken this request"
    await ask(2)
    assert not thread.requested_below and thread.highest_requested == {CLEAN: 2}

    reading = Reading({CLEAN: records(0, 1)})
    reading.guard.expected[CLEAN], reading.high, reading.app.should_stop = 9, 2, True
    reading._thread.highest_requested, reading._thread.requested_below = {CLEAN: 9}, {CLEAN}
    with pytest.raises(FencedError):
        await reading.run()
    assert "ends at offset 2, but was read up to 9" in reading.reasons[0]


async def test_a_fetch_that_is_not_asked_for_ends_with_its_assignment() -> None:
    thread = Fetching()
    waiting = asyncio.create_task(thread._on_demand(thread.fetch, None, 1, REQUEST))
    await asyncio.sleep(0)
    waiting.cancel()
    assert await waiting is False and not thread.sent


async def test_asking_counts_what_came(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = Fetching()
    asked: list[bool] = []

    async def fetch(self: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(self._asked.is_set())
        assert kwargs == {"timeout": 1.0, "max_records": None}
        return {P: [fetched(records(1, 2))], TP("windows", 0): [fetched(records(7))]}

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "_fetch_records", fetch)
    assert set(await thread._fetch_records(None, set(), timeout=1.0, max_records=5_000)) == {P, TP("windows", 0)}
    assert asked == [True] and not thread._asked.is_set() and thread._brought == 3


async def test_nothing_is_delivered_while_the_partitions_are_being_put_where_their_state_says() -> None:
    reading = Reading({P: records(5, 6)})
    reading._seeking = reading.app.should_stop = True
    await reading.run()
    assert not reading.delivered and P not in reading.guard.expected


@pytest.mark.parametrize("error", [asyncio.CancelledError("by the client library"), RuntimeError("corrupt"), ConsumerStoppedError()])
async def test_reading_that_ends_by_itself_ends_the_worker(error: BaseException) -> None:
    """Faust takes a cancellation that comes out of aiokafka for a wish, and would read no more without a word."""
    reading = Reading({P: records(5)}, error)
    with pytest.raises(type(error)):
        await reading.run()
    assert len(reading.reasons) == 1 and reading.reasons[0].startswith(f"the consumer stopped reading: {type(error).__name__}")


@pytest.mark.parametrize("error", [asyncio.CancelledError(), ConsumerStoppedError()])
async def test_reading_that_ends_with_the_app_is_no_trouble(error: BaseException) -> None:
    reading = Reading(error)
    reading.app.should_stop = True
    await reading.run()
    assert not reading.reasons


# -- group membership -------------------------------------------------------


class Membership:
    """The thread of a consumer whose coordinator is in a given state."""

    def __init__(self) -> None:
        self.coordinator: Any = GroupCoordinator.__new__(GroupCoordinator)
        self.coordinator._pending_exception = None
        self.coordinator._closing = asyncio.get_running_loop().create_future()
        self.coordinator._coordination_task = asyncio.create_task(asyncio.Event().wait())
        self.coordinator._heartbeat_task = object()
        self.coordinator._rejoin_needed_fut = asyncio.get_running_loop().create_future()
        self.thread: Any = ConsumerThread.__new__(ConsumerThread)
        subscription = SimpleNamespace(subscription=SimpleNamespace(assignment=object()))
        self.thread._consumer = SimpleNamespace(_coordinator=self.coordinator, _subscription=subscription)

    def trouble(self) -> str:
        return str(self.thread.trouble(3.0))


@pytest.fixture
async def membership() -> Any:
    made = Membership()
    yield made
    made.coordinator._coordination_task.cancel()


async def test_a_member_whose_heartbeats_are_confirmed_is_well(membership: Membership, clock: Clock) -> None:
    membership.thread.last_heartbeat = clock.now
    assert membership.trouble() == ""
    clock.now += 2.9
    assert membership.trouble() == ""


async def test_no_heartbeat_for_half_a_session_is_trouble(membership: Membership, clock: Clock) -> None:
    membership.thread.last_heartbeat = clock.now
    assert membership.trouble() == ""
    clock.now += 3.1
    assert "no heartbeat for 3.1 s" in membership.trouble()


async def test_a_member_that_never_had_a_heartbeat_confirmed_is_noticed_too(membership: Membership, clock: Clock) -> None:
    assert membership.trouble() == ""
    clock.now += 3.1
    assert "no heartbeat" in membership.trouble()


async def test_a_join_that_took_long_is_no_silence(membership: Membership, clock: Clock) -> None:
    """Others may keep the group waiting for the whole rebalance time; nobody beats meanwhile."""
    membership.thread.last_heartbeat = clock.now
    assert membership.trouble() == ""
    membership.coordinator._heartbeat_task = None
    clock.now += 7
    assert membership.trouble() == ""
    membership.coordinator._heartbeat_task = object()
    assert membership.trouble() == "", "the group has just confirmed us by taking us in"
    clock.now += 3.1
    assert "no heartbeat" in membership.trouble()


async def test_a_failed_coordinator_is_trouble(membership: Membership) -> None:
    membership.coordinator._pending_exception = RuntimeError("session time-out refused")
    assert "session time-out refused" in membership.trouble()


async def test_a_coordination_that_ended_is_trouble_unless_it_was_closed(membership: Membership) -> None:
    membership.coordinator._coordination_task.cancel()
    await eventually(membership.coordinator._coordination_task.done)
    assert membership.trouble() == "the group coordination ended"
    membership.coordinator._closing.set_result(None)
    membership.coordinator._heartbeat_task = None
    assert membership.trouble() == ""


class Watched(SimpleNamespace):
    """An app as the watchdog sees it."""


@pytest.fixture
def watched() -> Watched:
    reasons: list[str] = []
    return Watched(
        reasons=reasons, fence=Fence(60.0, reasons.append), crashed=False, crash_reason=None,
        consumer=SimpleNamespace(thread=SimpleNamespace(last_heartbeat=0.0, silent_s=0.0, trouble=lambda limit_s: "")),
        producer=SimpleNamespace(trouble=lambda: ""),
    )  # fmt: skip


def _no_membership(app: Watched) -> None:
    app.consumer.thread.trouble = lambda limit_s: "the group coordination ended"


def _no_producer(app: Watched) -> None:
    app.producer.trouble = lambda: "the producer's sending task ended"


def _crashed(app: Watched) -> None:
    app.crashed, app.crash_reason = True, KeyError("x")


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (_no_membership, "the group coordination ended"),
        (_no_producer, "the producer's sending task ended"),
        (_crashed, "a part of the worker crashed: KeyError('x')"),
    ],
)
async def test_the_watchdog_leaves_when_something_is_wrong(watched: Watched, spoil: Callable[[Watched], None], why: str) -> None:
    task = asyncio.create_task(watchdog(watched, 0.001))
    for _ in range(20):
        await asyncio.sleep(0.001)
    assert not task.done() and not watched.reasons
    spoil(watched)
    async with asyncio.timeout(PATIENCE_S):
        await task
    assert watched.reasons == [why]


# -- ChunkSchema ------------------------------------------------------------


def test_a_chunk_comes_to_the_agent_as_it_is() -> None:
    chunk = Chunk("ticks.raw", 3, records(4, 5, 9), assignment_number=2)
    message = SimpleNamespace(key=None, value=chunk)
    schema = ChunkSchema(allow_empty=True)
    assert schema.loads_value(None, message) is chunk
    assert schema.loads_key(None, message) is None
    assert (chunk.first, chunk.last) == (4, 9)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    with caplog.at_level(logging.ERROR, "stockstream.transport"):
        yield


async def test_the_watchdog_says_when_the_broker_is_lost_and_back(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    def said() -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == "stockstream.transport.watching"]

    with caplog.at_level(logging.WARNING, "stockstream.transport"):      # within that of `_quiet`, so that both are put back in order
        task = asyncio.create_task(watchdog(watched, 0.001))
        for outage in (1, 2):
            watched.consumer.thread.silent_s = LOST_S + 1
            await eventually(lambda: len(said()) == 2 * outage - 1)  # noqa: B023  awaited before the next turn
            watched.consumer.thread.silent_s = 0.0
            await eventually(lambda: len(said()) == 2 * outage)  # noqa: B023
        task.cancel()
    assert [line.partition(": ")[0].partition(" after ")[0] for line in said()] == ["broker lost", "broker back"] * 2

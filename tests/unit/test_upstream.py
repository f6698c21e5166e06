"""What our workarounds rely on in Faust, mode and aiokafka: a test fails here when an upgrade changes it.

A failing test says: look at the workaround that its name or docstring names; it is either not needed any more or does nothing any more.
The table of docs/architecture.md ("Faults of Faust") is the list. Behaviour is tried where it can be without a broker; else the source is asked.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import os
import re
import sys
import textwrap
import time
import weakref
from collections import Counter, defaultdict
from types import SimpleNamespace
from typing import Any

import aiokafka
import faust
import mode
import pytest
import venusian
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import Fetcher, FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.consumer.subscription_state import SubscriptionState, TopicPartitionState
from aiokafka.errors import CorruptRecordException, KafkaError
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.sender import Sender
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v4, FetchRequest_v11
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from faust.agents.agent import Agent
from faust.app import base as faust_app
from faust.cli.worker import worker as faust_worker
from faust.tables.manager import TableManager
from faust.tables.recovery import Recovery, ServiceStopped
from faust.transport import consumer as faust_consumer
from faust.transport.conductor import Conductor, ConductorCompiler
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode.services import ServiceTask
from mode.utils.queues import FlowControlEvent, ThrowableQueue

from stockstream.application import App, Tables, Takeover, Worker, create_app
from stockstream.kafka.admin import changelog, topic_specs
from stockstream.settings import Settings
from stockstream.state.changelog_table import StateTable
from stockstream.transport.consumer import Consumer, Flow
from stockstream.transport.fence import Fence
from stockstream.transport.fetching import FETCH_MAX_WAIT_MS, ConsumerThread, Fetched, _FetchResults, offsets_of
from stockstream.transport.messages import Chunk
from stockstream.transport.patches import Batch, Produce
from stockstream.transport.producer import Producer
from stockstream.transport.sending import DELIVERY_S
from stockstream.web.tail import _KafkaConsumer
from tests.patience import PATIENCE_S

P = aiokafka.TopicPartition("ticks.raw", 3)


def source(of: Any) -> str:
    return textwrap.dedent(inspect.getsource(of.fun if isinstance(of, ServiceTask) else of))


def in_order(text: str, *parts: str) -> bool:
    """Whether the parts stand in the text one behind the other."""
    at = 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return False
        at += len(part)
    return True


@pytest.fixture
async def app() -> App:
    """A whole app of ours, not started, on the loop of the test."""
    made = create_app(Settings())
    made.loop = asyncio.get_running_loop()
    return made


# -- one event for each chunk, contiguous delivery --------------------------


def test_the_fetcher_reads_through_drain_messages_and_it_alone() -> None:
    """`transport.consumer.Consumer._drain_messages` replaces it."""
    assert "await consumer._drain_messages(self)" in source(faust_consumer.Fetcher._fetcher)
    assert list(inspect.signature(faust_consumer.Consumer._drain_messages).parameters) == ["self", "fetcher"]
    assert "await self.wait_first(" in source(faust_consumer.Consumer._drain_messages), "if a message costs no tasks any more, chunks are worth less"


def test_the_loops_own_names_are_there() -> None:
    """`transport.consumer.Consumer._drain_messages` uses them."""
    waiting = source(faust_consumer.Consumer._wait_next_records)
    assert "return records, active_partitions" in waiting and "await self.wait(self.can_resume_flow)" in waiting
    assert list(inspect.signature(faust_consumer.Consumer._wait_next_records).parameters) == ["self", "timeout"]
    for name in ("flow_active", "consumer_stopped_errors", "_is_changelog_tp", "pause_partitions"):
        assert hasattr(driver.Consumer, name), name
    built = source(faust_consumer.Consumer.__init__)
    assert all(f"self.{name} = " in built for name in ("suspend_flow", "_acked", "_acked_index"))


@pytest.mark.parametrize("room", [True, False])
async def test_a_chunk_fits_into_a_message_of_faust(room: bool) -> None:
    """`transport.consumer.Consumer._deliver` gives its arguments by position. Where there is room it goes without a watch over a suspension."""
    got: list[Any] = []

    async def callback(message: Any) -> None:
        got.append(message)

    watched: list[Any] = []

    async def wait_first(*waits: Any) -> None:
        watched.append(await waits[0])
        waits[1].close()

    tp = TP("ticks.raw", 3)
    read: Any = SimpleNamespace(
        _delivered=defaultdict(list), _begins={tp: 38}, assignment_number=4, app=SimpleNamespace(consumer_generation_id=7), callback=callback,
        wait_first=wait_first, suspend_flow=asyncio.Event(), _room_for=lambda tp: room,
    )  # fmt: skip
    record = SimpleNamespace(offset=41, timestamp=1_700_000_000_123, timestamp_type=0)
    await Consumer._deliver_chunk(read, tp, [SimpleNamespace(offset=40), record])
    [message] = got
    assert (message.topic, message.partition, message.offset, message.tp, message.generation_id) == ("ticks.raw", 3, 41, tp, 7)
    assert message.timestamp == 1_700_000_000.123 and message.value == Chunk("ticks.raw", 3, [SimpleNamespace(offset=40), record], 4, 38)
    assert read._begins == {tp: 42} and len(watched) == (not room)


async def test_there_is_room_where_nothing_would_wait() -> None:
    """`transport.consumer.Consumer._room_for` asks for all that `Conductor.on_message` waits for; Faust's own producer buffer stays empty."""
    assert all(f"self.{name} = " in source(Conductor.__init__) for name in ("_tp_index", "_tp_to_callback_lock"))
    waits = re.findall(r"await ([\w.]+)\(", source(ConductorCompiler.build))
    assert waits[:5] == ["acquire_flow_control", "wait_until_producer_ebb", "chan.decode", "chan.decode", "asyncio.wait"]
    tp, queue, flow = TP("ticks.raw", 3), asyncio.Queue[int](1), Flow()
    topics = SimpleNamespace(_tp_to_callback_lock=asyncio.Lock(), _tp_index={tp: [SimpleNamespace(queue=queue)]})
    read: Any = SimpleNamespace(flow_active=True, app=SimpleNamespace(topics=topics, flow_control=flow))
    found = []
    flow.suspend()
    found.append(Consumer._room_for(read, tp))
    flow.resume()
    found.append(Consumer._room_for(read, tp))
    async with topics._tp_to_callback_lock:
        found.append(Consumer._room_for(read, tp))
    queue.put_nowait(1)
    found.append(Consumer._room_for(read, tp))
    queue.get_nowait()
    read.flow_active = False
    found.append(Consumer._room_for(read, tp))
    read.flow_active = True
    found += [Consumer._room_for(read, of) for of in (tp, TP("ticks.raw", 4))]
    assert found == [False, True, False, False, False, True, False]


def test_faust_skips_offsets_after_a_rebalance_without_a_word() -> None:
    """faust-streaming/faust#216 and #221: it notes a gap for its commits and goes on; `transport.guard.Guard` reads it again."""
    assert "await self._add_gap(tp, r_offset + 1, offset)" in source(faust_consumer.Consumer._drain_messages)


# -- records as parsed ------------------------------------------------------


def batch_of(first: int, *values: bytes, key: bytes = b"k") -> bytes:
    builder = DefaultRecordBatchBuilder(magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=10_000)
    for number, value in enumerate(values):
        builder.append(number, timestamp=1_000 + first + number, key=key, value=value, headers=[("hops", b"[1]")])
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8, "big")
    return bytes(data)


class Assigned:
    """An assignment whose partition is read from a position."""

    active = True

    def __init__(self, position: int) -> None:
        self.position, self.paused = position, False

    def state_value(self, tp: Any) -> Assigned:
        assert tp == P
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def fetched(begin: int, *batches: bytes, check_crcs: bool = False) -> tuple[FetchResult, Assigned]:
    """What a fetcher puts into its dictionary, put into ours."""
    parsed = PartitionRecords(
        P, fetcher.MemoryRecords(b"".join(batches)), aborted_transactions=[], fetch_offset=begin, key_deserializer=None, value_deserializer=None,
        check_crcs=check_crcs, isolation_level=1,
    )  # fmt: skip
    assigned, ours = Assigned(begin), _FetchResults()
    result = ours[P] = FetchResult(P, assignment=assigned, partition_records=parsed, backoff=0)
    assert ours[P] is result
    return result, assigned


def parsed(found: list[Fetched]) -> list[Any]:
    return [record for one in found for record in one.records]


def test_a_fetch_brings_its_records_and_the_offsets_of_its_batches() -> None:
    """`transport.fetching._FetchResults` changes the `PartitionRecords` of the `FetchResult` that a `Fetcher` puts into `_records`, and its `getall`."""
    result, assigned = fetched(1, batch_of(0, b"a", b"b"), batch_of(7, b"c"))
    (one,) = result.getall(None)
    assert [(r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers)) for r in one.records] == [
        (offset, 1_000 + offset, 0, b"k", value, [("hops", b"[1]")]) for offset, value in ((1, b"b"), (7, b"c"))
    ]
    assert one.end == 8 and one.empty() == [] and assigned.position == 8 and not result.has_more()


def test_what_was_taken_is_gone_without_the_garbage_collector() -> None:
    """Hundreds of fetches' results a second are 3,000 objects, and a pause of 0.1 s each time the collector comes."""
    result, _ = fetched(0, batch_of(0, b"a", b"b"))
    parts = [weakref.ref(result), weakref.ref(result._partition_records), weakref.ref(result._partition_records._records)]
    gc.disable()
    try:
        assert len(parsed(result.getall(None))) == 2
        del result
        assert [part() for part in parts] == [None, None, None]
    finally:
        gc.enable()


def marker(at: int) -> bytes:
    """A control batch: the end of a transaction."""
    data = bytearray(batch_of(at, b"\0\0\0\0\0\0", key=b"\0\0\0\1"))
    data[21:23] = (0x30).to_bytes(2, "big")                               # transactional, control
    return bytes(data)


def test_what_the_broker_passes_behind_the_last_record_is_told() -> None:
    result, assigned = fetched(0, batch_of(0, b"a"), marker(1))
    (one,) = result.getall(None)
    assert [record.offset for record in one.records] == [0] and one.empty() == [(1, 2)]
    assert assigned.position == 2 and not result.has_more()
    result, assigned = fetched(1, marker(1))
    (one,) = result.getall(None)
    assert (one.records, one.end, one.empty(), assigned.position) == ([], 2, [(1, 2)], 2)


def test_batches_of_the_old_formats_have_no_first_offset() -> None:
    batch: Any = SimpleNamespace(next_offset=7)
    assert offsets_of(batch, 4) == (4, 7)


def test_the_broker_is_asked_for_each_partition_also_where_it_has_nothing() -> None:
    """`transport.consumer.Consumer.polled` is the time of the last answer."""
    answer = source(Fetcher._proc_fetch_request)
    assert in_order(answer, "tp_state.highwater = highwater", "tp_state.lso = ", "tp_state.timestamp = now_ms", "if records.has_next():")


def test_faust_asks_for_so_many_records_of_all_partitions_together() -> None:
    """`transport.fetching.ConsumerThread._fetch_records` lifts that: aiokafka would count `Fetched`."""
    assert "max_records=_consumer._max_poll_records" in source(driver.AIOKafkaConsumerThread.getmany)
    assert "max_records -= len(drained[tp])" in source(Fetcher.fetched_records)


def test_a_batch_whose_checksum_is_wrong_is_corrupt() -> None:
    batch = batch_of(0, b"a", b"b")
    result, _ = fetched(0, batch, check_crcs=True)
    assert [record.value for record in parsed(result.getall(None))] == [b"a", b"b"]
    result, assigned = fetched(0, batch[:-1] + b"\1", check_crcs=True)
    with pytest.raises(CorruptRecordException):
        result.getall(None)
    assert assigned.position == 0


def test_a_batch_that_a_seek_has_left_behind_gives_nothing() -> None:
    result, assigned = fetched(0, batch_of(0, b"a", b"b"))
    assigned.position = 5
    assert result.getall(None) == []


def test_a_fetcher_keeps_what_it_fetched_in_one_dictionary() -> None:
    text = source(Fetcher)
    assert "self._records = collections.OrderedDict()" in source(Fetcher.__init__)
    assert text.count("self._records = ") == 1, "ours would be replaced"
    assert "self._records[tp] = FetchResult(" in text


# -- where reading goes on --------------------------------------------------


def test_perform_seek_is_called_when_recovery_is_done_and_before_the_flow_resumes() -> None:
    """`transport.consumer.Consumer.perform_seek` puts the partitions at their state's offset there."""
    done = source(Recovery.on_recovery_completed)
    assert in_order(done, "consumer.resume_partitions(", "consumer.perform_seek()", "self.completed.set()", "consumer.resume_flow()")
    assert "timeout=self.app.conf.broker_request_timeout" in done
    assert "await self._wait(T(self.on_recovery_completed)(generation_id))" in source(Recovery._restart_recovery)


def test_faust_by_itself_goes_on_from_the_groups_commit() -> None:
    """faust-streaming/faust#502."""
    assert "await self.seek_to_committed()" in source(faust_consumer.Consumer.perform_seek)


async def test_what_takes_too_long_is_cancelled_and_no_error() -> None:
    """`Recovery._wait` would go on without the seek; `transport.consumer.Consumer.perform_seek` leaves the process when it is cancelled for that."""
    cancelled = False

    async def seek() -> None:
        nonlocal cancelled
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled = True
            raise

    service = mode.Service()
    result = await service.wait_first(seek(), timeout=0.01)
    await asyncio.sleep(0)
    assert cancelled and not result.done
    assert "elif self.signal_recovery_start in wait_result.done" in source(Recovery._wait) and "Timeout" not in source(Recovery._wait)


# -- recovery of tables -----------------------------------------------------


class Changelogs:
    """A consumer that answers as ours does: changelogs end where they begin."""

    async def highwaters(self, *tps: TP) -> dict[TP, int]:
        return await self.earliest_offsets(*tps)

    async def earliest_offsets(self, *tps: TP) -> dict[TP, int]:
        return {tp: 1_000 * tp.partition for tp in tps}


async def test_recovery_has_nothing_to_read_where_changelogs_end_where_they_begin() -> None:
    """`transport.consumer.Consumer.highwaters`: `state.changelog_table` reads them."""
    tps = {TP("changelog", 0), TP("changelog", 3)}
    recovery: Any = Recovery.__new__(Recovery)
    recovery.log = mode.Service().log
    recovery.active_highwaters, recovery.active_offsets = Counter(), Counter({TP("changelog", 3): 4_711})
    recovery.active_offsets.setdefault(TP("changelog", 0), None)
    await recovery._build_highwaters(Changelogs(), tps, recovery.active_highwaters, "active")
    await recovery._build_offsets(Changelogs(), tps, recovery.active_offsets, "active")
    assert not recovery.need_recovery()


def test_recovery_reads_on_from_where_it_was_for_partitions_that_stay() -> None:
    """Which is why it is told that there is nothing: only what is revoked is forgotten."""
    assert in_order(source(Recovery.on_rebalance), "for tp in revoked:", "self.revoke(tp)", "if tp in self.active_tps")
    assert "destination[tp] = max(last_value, new_value)" in source(Recovery._build_offsets)


def test_highwaters_are_asked_of_changelogs_only() -> None:
    asked = [module for module in (faust.app.base, faust_consumer, faust.tables.recovery, driver) if "consumer.highwaters(" in source(module)]
    assert asked == [faust.tables.recovery]


def test_changelogs_are_resumed_before_the_seek_which_pauses_them() -> None:
    """`transport.consumer.Consumer._seek_to_state` pauses them again; the loop drops what comes of them."""
    assert in_order(source(Recovery._restart_recovery), "recovery_buffer_size == 1", "consumer.resume_partitions)(tps_resuming)", "self.on_recovery_completed")


async def test_what_waits_for_an_agent_when_the_flow_goes_on_again_stays(app: App) -> None:
    """Faust resumes the flow once more right after the seek, and mode then empties every queue: what was read between would be lost."""
    assert in_order(source(Recovery.on_recovery_completed), "consumer.perform_seek()", "self.app.flow_control.resume()")
    for flow, left in ((FlowControlEvent(), 0), (app.flow_control, 1)):
        flow.resume()
        queue: Any = ThrowableQueue(flow_control=flow, clear_on_resume=True)
        await queue.put("chunk")
        flow.resume()
        assert (queue.qsize(), flow.is_active()) == (left, True)
    app.flow_control.suspend()
    assert not app.flow_control.is_active()


async def test_a_step_of_a_takeover_that_takes_too_long_ends_the_worker(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Faust ends recovery for good, without a word, and the worker would hold its partitions and read nothing."""
    assert in_order(source(Recovery._wait), "if wait_result.stopped:", "raise ServiceStopped()")
    assert in_order(source(Recovery._restart_recovery), "except ServiceStopped", "break  # service was stopped", "except Exception")
    told: list[str] = []
    app.fence = Fence(6.0, told.append)
    recovery: Any = app.tables.recovery  # type: ignore[attr-defined]
    assert type(recovery) is Takeover
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.sleep(600), timeout=0.01)
    assert told == ["a step of taking over partitions took more than 0.01 s"]
    app.fence, told[:] = Fence(6.0, told.append), []
    monkeypatch.setattr(type(recovery), "should_stop", property(lambda _: True))
    with pytest.raises(ServiceStopped):
        await recovery._wait(asyncio.sleep(600), timeout=0.01)
    assert told == [], "a worker that stops anyway has nothing to tell"


async def test_the_consistency_check_can_be_switched_off(app: App) -> None:
    """faust-streaming/faust#158: what Faust believes to have read means nothing here."""
    assert app.conf.recovery_consistency_check is False
    assert "if self.app.conf.recovery_consistency_check:" in source(Recovery._restart_recovery)


async def test_a_table_of_ours_is_one_of_faust(app: App) -> None:
    table = StateTable(app, "clean")
    assert table.changelog_topic.get_topic_name() == changelog(app.settings, "clean")
    assert table.changelog_topic.get_topic_name() in app.tables.changelog_topics, "its partitions go with those of the agent's topic"
    assert table.recovery_buffer_size == 1


async def test_tables_start_without_the_pause_of_faust(app: App) -> None:
    """`app.Tables` does the rest of it; whoever could name a table or a topic later has started before."""
    assert in_order(source(TableManager.on_start), "await self.sleep(1.0)", "await self._update_channels()", "await self.recovery.start()")
    assert in_order(source(faust.app.base.BootStrategy.server), "self.agents()", "self.kafka_conductor()", "self.tables()")
    done: list[str] = []

    async def did(what: str) -> None:
        done.append(what)

    tables: Any = SimpleNamespace(_update_channels=lambda: did("channels"), recovery=SimpleNamespace(start=lambda: did("recovery")))
    assert type(app.tables) is Tables
    await Tables.on_start(tables)
    assert done == ["channels", "recovery"]


def test_a_worker_that_warns_makes_no_debug_records(app: App) -> None:
    """Faust's spinner sets the root logger to DEBUG (faust/worker.py:390); `app.Worker` has none."""
    assert "logger.setLevel(logging.DEBUG)" in source(faust.Worker._setup_spinner_handler)
    assert "self._setup_spinner_handler(logger, level)" in source(faust.Worker.on_setup_root_logger)
    root = logging.RootLogger(logging.WARNING)
    worker = app.Worker(loglevel="WARN")
    assert type(worker) is Worker
    worker.on_setup_root_logger(root, logging.WARNING)
    assert root.level == logging.WARNING and not root.handlers



# -- commits ----------------------------------------------------------------


def test_faust_commits_past_a_message_that_is_not_acknowledged() -> None:
    """faust-streaming/faust#606; `transport.consumer.Consumer._new_offset` counts chunks."""
    read: Any = driver.Consumer.__new__(driver.Consumer)
    tp = TP("ticks.raw", 3)
    read._acked, read._acked_index = {tp: [2_586, 2_587, 2_588]}, {tp: {2_586, 2_587, 2_588}}
    read._gap, read._committed_offset = {tp: None}, {tp: 2_585}
    assert read._new_offset(tp) == 2_589, "2585 is not acknowledged"
    assert "min(acked) - committed_offset > 1" in source(driver.Consumer._new_offset)


class Committing:
    """The thread of a consumer whose commits fail."""

    def __init__(self, error: Exception) -> None:
        async def commit(offsets: Any) -> None:
            raise error

        self.crashed: list[BaseException] = []
        self.log: Any = SimpleNamespace(exception=lambda *_: None)
        self.tp_last_committed_at: dict[TP, float] = {}
        self.consumer = SimpleNamespace(commit=commit)

    def _ensure_consumer(self) -> Any:
        return self.consumer

    def assignment(self) -> set[TP]:
        return {TP("ticks.raw", 3)}

    async def crash(self, reason: BaseException) -> None:
        self.crashed.append(reason)


@pytest.mark.parametrize("error", [KafkaError("broken"), ValueError("not assigned")])
async def test_an_error_in_a_commit_crashes_faust_and_not_us(error: Exception) -> None:
    """faust-streaming/faust#94; `transport.fetching.ConsumerThread._commit`."""
    offsets = {TP("ticks.raw", 3): 5}
    theirs: Any = Committing(error)
    assert await driver.AIOKafkaConsumerThread._commit(theirs, offsets) is False
    assert theirs.crashed == [error]
    ours: Any = Committing(error)
    assert await ConsumerThread._commit(ours, offsets) is False
    assert ours.crashed == []


# -- the consumer that Faust makes ------------------------------------------


async def test_faust_hard_codes_how_long_a_fetch_waits_and_ours_waits_less(app: App) -> None:
    """`transport.fetching.ConsumerThread._create_worker_consumer`; aiokafka reads both values at the start."""
    assert "fetch_max_wait_ms=1500" in source(driver.AIOKafkaConsumerThread._create_worker_consumer)
    consumer = app.chunk_consumer.thread._create_worker_consumer(app.transport)
    assert consumer._fetch_max_wait_ms == FETCH_MAX_WAIT_MS < 1_500
    assert consumer._isolation_level == "read_committed"
    started = source(aiokafka.AIOKafkaConsumer.start)
    assert "fetch_max_wait_ms=self._fetch_max_wait_ms" in started and "isolation_level=self._isolation_level" in started
    consumer._closed = True                                              # it was never started: nothing to close


def test_aiokafka_fetches_ahead_and_then_nothing_until_that_is_taken() -> None:
    """`transport.fetching.ConsumerThread._on_demand` stands in for `_proc_fetch_request`, which each fetch goes through.

    It ends as that does when it is cancelled.
    """
    routine = source(Fetcher._fetch_requests_routine)
    assert "self._proc_fetch_request(assignment, node_id, request)," in routine and "task.cancel()" in routine
    assert "any(fut.result() for fut in done_pending)" in routine
    assert "if node_id in backoff_by_nodes:" in source(Fetcher._get_actions_per_node)
    assert list(inspect.signature(Fetcher._proc_fetch_request).parameters) == ["self", "assignment", "node_id", "request"]


def test_a_request_to_fetch_is_asked_for_its_offsets_when_it_goes_and_when_it_is_answered() -> None:
    """`transport.fetching.ConsumerThread._skip_loopback` moves both on: an answer whose offset is not the position is dropped."""
    answered = source(Fetcher._proc_fetch_request)
    assert answered.index("self._client.send(node_id, request)") < answered.index("for topic, partitions in request.topics:")
    assert "tp_state.position != fetch_offset" in answered
    request = FetchRequest(1, 1, 1, 0, [("t", [(3, 7, 100)])])
    request.topics[0][1][0] = 3, 9, 100
    for kind in (FetchRequest_v4, FetchRequest_v11):
        [partition] = request.build(kind).to_object()["topics"][0]["partitions"]
        assert partition.get("fetch_offset", partition.get("offset")) == 9


def test_a_position_out_of_range_waits_for_a_reset() -> None:
    """`transport.fetching.ConsumerThread._note_out_of_range` asks for `awaiting_reset` after each answer; the next request has the log's first offset."""
    answered = source(Fetcher._proc_fetch_request)
    assert in_order(answered, "error_type is Errors.OffsetOutOfRangeError", "tp_state.await_reset(self._default_reset_strategy)")
    made = source(TopicPartitionState)
    assert in_order(made, "def awaiting_reset", "self._reset_strategy is not None", "def await_reset", "self._reset_strategy = strategy")
    assert in_order(made, "def reset_to", "self._position = position", "self._reset_strategy = None")


class Wire:
    """What a connection writes to."""

    def __init__(self, error: Exception | None = None) -> None:
        self.written, self.error = b"", error

    def write(self, data: bytes) -> None:
        if self.error is not None:
            raise self.error
        self.written += data

    async def drain(self) -> None: ...
    def close(self) -> None: ...


def test_faust_marks_what_it_could_discover_by_reading_sources() -> None:
    """`stockstream.app` has it mark nothing: each module is loaded by its name, and a scan would find none of them."""
    assert "venusian.attach(agent, category=SCAN_AGENT)" in source(faust_app.App.agent) and "inspect.getframeinfo(" in source(venusian.advice.getFrameInfo)
    assert vars(faust_app)["venusian"] is not venusian
    conf: Any = create_app(Settings()).conf
    assert conf.autodiscover is False


def test_faust_makes_its_web_server_before_it_knows_whether_there_is_to_be_one() -> None:
    """`App.worker_init_post_autodiscover` leaves that to `App.on_start`."""
    assert "self.web.init_server()" in source(faust_app.App.worker_init_post_autodiscover)
    assert "self.app.conf.web_enabled = with_web" in source(faust_worker)
    for enabled in (False, True):
        app = create_app(Settings())
        app.worker_init_post_autodiscover()
        assert "web" not in vars(app)
        app.conf.web_enabled = enabled
        assert app.web_server_driver_version.partition("=")[0] == ("aiohttp" if enabled else "off")
        assert ("web" in vars(app)) == enabled


async def test_our_classes_are_the_ones_that_faust_makes(app: App) -> None:
    assert type(app.consumer) is Consumer and type(app.producer) is Producer
    assert type(app.chunk_consumer.thread) is ConsumerThread
    assert app.chunk_consumer._thread is app.chunk_consumer.thread


# -- membership -------------------------------------------------------------


def test_faust_reads_past_aiokafkas_own_check_of_the_coordinator() -> None:
    """aio-libs/aiokafka#294 gave `getmany` the check; Faust asks the fetcher itself, so `transport.fetching.ConsumerThread.trouble` looks."""
    assert "self._coordinator.check_errors()" in source(aiokafka.AIOKafkaConsumer.getmany)
    assert "check_errors" not in source(driver.AIOKafkaConsumerThread._fetch_records)
    assert "fetcher.fetched_records(" in source(driver.AIOKafkaConsumerThread._fetch_records)


class Client:
    """As much of `AIOKafkaClient` as a coordinator needs to begin."""

    def __init__(self) -> None:
        self.cluster = SimpleNamespace(add_listener=lambda listener: None, topics=lambda exclude_internal_topics=True: set(), need_all_topic_metadata=False)

    def set_topics(self, topics: Any) -> None: ...


async def test_the_coordinators_own_names_mean_what_trouble_takes_them_for() -> None:
    """`transport.fetching.ConsumerThread.trouble`."""
    subscriptions = SubscriptionState()
    subscriptions.register_fetch_waiters(set())
    coordinator = GroupCoordinator(Client(), subscriptions, group_id="g")
    assert coordinator._pending_exception is None and coordinator._heartbeat_task is None
    assert isinstance(coordinator._coordination_task, asyncio.Task) and not coordinator._coordination_task.done()
    assert not coordinator._closing.done()
    assert list(inspect.signature(coordinator.need_rejoin).parameters) == ["subscription"]
    assert coordinator.need_rejoin(SimpleNamespace(assignment=None)) and not coordinator.need_rejoin(SimpleNamespace(assignment=object()))
    coordinator.request_rejoin()
    assert coordinator.need_rejoin(SimpleNamespace(assignment=object()))
    failing = asyncio.create_task(_pushed(coordinator))
    await asyncio.sleep(0)
    assert isinstance(coordinator._pending_exception, KafkaError)
    await coordinator.close()
    await failing
    assert coordinator._closing.done() and coordinator._coordination_task.done()


async def _pushed(coordinator: GroupCoordinator) -> None:
    await coordinator._push_error_to_user(KafkaError("fatal"))


def test_a_coordinator_beats_in_a_task_of_each_membership() -> None:
    """`transport.fetching.ConsumerThread.on_start` replaces `_do_heartbeat`; `trouble` takes a new `_heartbeat_task` for a confirmed join."""
    routine = source(GroupCoordinator._heartbeat_routine)
    assert "success = await self._do_heartbeat()" in routine and "if success:" in routine
    assert list(inspect.signature(GroupCoordinator._do_heartbeat).parameters) == ["self"]
    assert in_order(source(GroupCoordinator.ensure_active_group), "self._stop_heartbeat_task()", "self._do_rejoin_group(", "self._start_heartbeat_task()")
    assert "self._heartbeat_task = create_task(" in source(GroupCoordinator._start_heartbeat_task)
    assert "self._heartbeat_task = None" in source(GroupCoordinator._stop_heartbeat_task)


async def test_heartbeats_are_noted_when_the_group_confirms_them(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [True, False]
    coordinator: Any = GroupCoordinator.__new__(GroupCoordinator)

    async def beat() -> bool:
        return answers.pop(0)

    async def start(self: Any) -> None: ...

    coordinator._do_heartbeat = beat
    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_start", start)
    thread: Any = ConsumerThread.__new__(ConsumerThread)
    thread._consumer = SimpleNamespace(_coordinator=coordinator, _fetcher=SimpleNamespace(_records={}, _proc_fetch_request=beat))
    await thread.on_start()
    begun = time.monotonic()
    assert await coordinator._do_heartbeat() is True
    noted = thread.last_heartbeat
    assert noted >= begun
    assert await coordinator._do_heartbeat() is False
    assert thread.last_heartbeat == noted
    assert isinstance(thread._consumer._fetcher._records, _FetchResults)


# -- the producer -----------------------------------------------------------


async def test_faust_has_an_idempotent_producer_only_in_transactions_and_ours_is(app: App) -> None:
    """`transport.producer.Producer._settings_extra`; no setting of Faust reaches it."""
    theirs: Any = SimpleNamespace(app=SimpleNamespace(in_transaction=False))
    assert driver.Producer._settings_extra(theirs) == {}
    producer: Any = app.producer
    assert {"acks": "all", "enable_idempotence": True}.items() <= producer._settings_extra().items()
    app.embedded = True
    assert producer._settings_extra()["enable_idempotence"] is False
    assert in_order(source(driver.Producer._new_producer), "self._settings_default()", "self._settings_auth()", "self._settings_extra()"), "ours come last"


async def test_a_batch_is_tried_for_longer_than_a_request(app: App) -> None:
    """`transport.producer.Producer._new_producer` sets `MessageAccumulator._batch_ttl`."""
    producer: Any = app.producer
    made = producer._new_producer()
    assert made._message_accumulator._batch_ttl == DELIVERY_S
    assert "MessageBatch(tp, builder, self._batch_ttl," in source(MessageAccumulator)
    made._closed = True


async def test_a_batch_without_a_leader_is_given_up_by_its_age() -> None:
    """`transport.patches.Batch` and `Produce._can_retry`: without them a batch that has waited through an outage fails as soon as the broker is back."""
    drain = source(MessageAccumulator.drain_by_nodes)
    assert in_order(drain, "if leader is None or leader == -1:", "if self._batches[tp][0].expired():", "batch.failure(exception=err)")
    assert "self._ctime) > self._ttl" in source(Batch.__mro__[1].expired)
    handler: Any = Produce.__mro__[1]
    can_retry = source(handler._can_retry)
    assert in_order(can_retry, "if self._sender._txn_manager is None and batch.expired():", "return False", "return error.retriable")
    assert source(handler).count("self._can_retry(") == 2


async def test_a_producer_tells_by_its_senders_task_that_it_has_ended(app: App) -> None:
    """`transport.producer.Producer.trouble`."""
    assert isinstance(Sender.sender_task, property)
    assert "self._sender = Sender(" in source(aiokafka.AIOKafkaProducer.__init__)
    producer: Any = app.producer
    assert producer.trouble() == ""
    task = asyncio.create_task(asyncio.sleep(0))
    producer._producer = SimpleNamespace(_sender=SimpleNamespace(sender_task=task))
    assert producer.trouble() == ""
    await task
    assert producer.trouble() == "the producer's sending task ended, so nothing can be sent"


def test_sending_through_a_topic_of_faust_does_not_wait_for_delivery() -> None:
    """`transport.sending.Sender` and `Pipe` use aiokafka's producer and wait."""
    published = inspect.signature(faust.Topic.publish_message).parameters["wait"]
    assert published.default is False
    assert "fut2 = cast(" in source(faust.Topic.publish_message)


# -- agents and crashes -----------------------------------------------------


def test_an_error_in_an_agent_is_told_to_a_supervisor_that_goes_on_with_the_next_message() -> None:
    """faust-streaming/faust#189: so `Stage.work` ends the worker."""
    assert in_order(source(Agent._execute_actor), "except Exception as exc", "await aref.crash(exc)", "self.supervisor.wakeup()")
    assert in_order(source(faust.Stream._py_aiter), "yield value", "finally:", "last_stream_to_ack = event.ack()")


async def test_a_task_that_crashes_is_seen_at_the_app() -> None:
    """`transport.watching.watchdog` leaves then."""

    class Part(mode.Service):
        @mode.Service.task
        async def _work(self) -> None:
            raise KeyError("x")

    class Whole(mode.Service):
        async def on_start(self) -> None:
            await self.add_runtime_dependency(Part(beacon=self.beacon))

    whole = Whole()
    await whole.start()
    async with asyncio.timeout(PATIENCE_S):
        while not whole.crashed:
            await asyncio.sleep(0)
    assert isinstance(whole.crash_reason, KeyError)
    await whole.stop()


# -- the app ----------------------------------------------------------------


async def test_parts_are_released_before_a_rebalance_goes_on(app: App) -> None:
    released: list[float] = []

    class Part:
        async def assign(self, partitions: Any) -> Any:
            return {}

        async def release(self, timeout_s: float) -> None:
            released.append(timeout_s)

    app.parts.append(Part())
    await app.on_partitions_revoked.send({TP("ticks.raw", 3)})
    assert released == [2.0]
    assert "await T(self.on_partitions_revoked.send)(revoked)" in source(faust.App._on_partitions_revoked)


async def test_what_is_under_way_of_an_assignment_that_is_over_is_of_no_use(app: App) -> None:
    """A takeover that is still reading state when its partitions are revoked must not go on: Faust cancels it at the next assignment only."""
    assignment_number = app.chunk_consumer.assignment_number
    await app.on_partitions_revoked.send({TP("ticks.raw", 3)})
    await app.on_partitions_assigned.send({TP("ticks.raw", 3)})
    assert app.chunk_consumer.assignment_number == assignment_number + 1
    await app.on_partitions_assigned.send(set())
    assert app.chunk_consumer.assignment_number == assignment_number + 2


async def test_a_broker_that_does_not_answer_holds_the_end_up_for_a_while_only(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "await self._producer_flush(self.log)" in source(faust.App.on_stop), "which waits for ever where the replicas are too few"
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(sys.modules["stockstream.application"], "STOP_S", 0.02)
    monkeypatch.setattr(os, "_exit", lambda status: loop.call_soon_threadsafe(ended.set))
    monkeypatch.setattr(faust.App, "_producer_flush", lambda *_: ended.wait())
    async with asyncio.timeout(PATIENCE_S):
        await app.on_stop()
    assert ended.is_set()


async def test_who_is_left_with_no_partition_lets_go_of_all(app: App) -> None:
    """Faust calls `perform_seek` only where something is assigned; `App.end_assignment` is told of it by a signal that comes in any case."""
    assert "if assignment:" in source(Recovery.on_recovery_completed)
    assert "await T(self.on_partitions_assigned.send)(assigned)" in source(faust.App._on_partitions_assigned)
    given: list[Any] = []

    class Part:
        async def assign(self, partitions: Any) -> Any:
            given.append(partitions)
            return {}

        async def release(self, timeout_s: float) -> None: ...

    app.parts.append(Part())
    await app.on_partitions_assigned.send({TP("ticks.raw", 3)})
    assert given == []
    await app.on_partitions_assigned.send(set())
    assert given == [{}]


async def test_faust_makes_no_topic_that_we_did_not_make_first(app: App) -> None:
    """Asking one broker once, errors unseen (robinhood/faust#165 was one): `broker.ensure_topics` makes all that agents and tables need before they start."""
    made = {spec.name for spec in topic_specs(app.settings)}
    assert in_order(source(App.on_start), "await ensure_topics(self.settings,", "await super().on_start()")
    assert app.settings.topic("ticks.raw") in made and changelog(app.settings, "score") in made
    assert app.conf.topic_disable_leader and not app.conf.reply_create_topic, "Faust's own topics are not made"


async def test_nothing_is_kept_on_disk(app: App) -> None:
    """`App._create_directories`."""
    assert "self._create_directories()" in source(faust.App)


# -- the views' consumer ----------------------------------------------------


async def test_a_consumer_that_is_cancelled_while_it_stops_leaves_its_client_open_and_ours_does_not() -> None:
    """aio-libs/aiokafka#647; `web.tail._KafkaConsumer.stop`."""

    class Closing:
        closed = False

        async def close(self) -> None:
            self.closed = True

    class Cancelled:
        async def close(self) -> None:
            raise asyncio.CancelledError

    for kind, closed in ((aiokafka.AIOKafkaConsumer, False), (_KafkaConsumer, True)):
        consumer: Any = kind.__new__(kind)
        consumer._closed, consumer._coordinator, consumer._fetcher, consumer._client = False, None, Cancelled(), Closing()
        with pytest.raises(asyncio.CancelledError):
            await consumer.stop()
        assert consumer._client.closed is closed
        consumer._closed = True

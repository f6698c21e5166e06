"""The consumer: reads chunks, checks their offsets and delivers them to the agents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from functools import partial
from typing import Any, TypeVar

from aiokafka import TopicPartition
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.utils.queues import FlowControlEvent

from stockstream.clock import now_s
from stockstream.errors import FencedError
from stockstream.transport.fetching import ConsumerThread
from stockstream.transport.guard import Guard, Offsets
from stockstream.transport.loopback import Loopback
from stockstream.transport.messages import CHUNK_RECORDS, Chunk, Deliveries, Message, cut, joined
from stockstream.transport.pacing import SEND_ITERATIONS, SMALL_FETCH, Pace, yield_to_loop
from stockstream.transport.sending import LOST_RECORDS

logger = logging.getLogger(__name__)


S = TypeVar("S")
T = TypeVar("T")


class Flow(FlowControlEvent):
    """Resumes without emptying the agents' queues, unlike mode (mode/utils/queues.py, `resume`): they may hold a chunk that was read right after the seek.

    Chunks of an earlier assignment carry its number, so that agents drop them.
    """

    def resume(self) -> None:
        self._suspend.clear()
        self._resume.set()


class Consumer(driver.Consumer):
    """Delivers one chunk per partition and fetch, and reads from the position that the agents' state gives."""

    app: Any
    _thread: ConsumerThread
    plain = False
    """Whether every record is fetched, without loopback."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.guard = Guard()
        self.loopback = Loopback()
        self._held: dict[TP, Sequence[Any]] = {}
        self._held_since: dict[TP, float] = {}
        self._delivered: dict[TP, list[int]] = defaultdict(list)
        self._begins: dict[TP, int] = {}
        self._through: dict[TP, int] = {}
        """By partition: the offset after everything that was fetched, transaction markers included; before the first fetch, where reading began."""
        self.assignment_number = 0
        """Number of the current assignment; rises at each assignment and revocation. A chunk carries it, so that agents drop those of an earlier assignment."""
        self._seeking = False
        super().__init__(*args, **kwargs)
        self.guard.on_hole = getattr(self.app, "on_hole", None)
        self.pace = Pace(self.app.settings.lateness.default_ms)

    def _new_consumer_thread(self) -> Any:
        thread = ConsumerThread(self, loop=self.loop, beacon=self.beacon)
        thread.plain = self.plain = self.app.settings.plain_transport
        return thread

    @property
    def thread(self) -> ConsumerThread:
        return self._thread

    # -- where to read ------------------------------------------------------

    def end_assignment(self) -> None:
        """Ends the assignment: invalidates its chunks and any takeover in progress."""
        self.assignment_number += 1
        self.loopback.forget()

    async def perform_seek(self) -> None:
        """Seeks every partition to the position that its state gives; without state, to the beginning of the log.

        Faust would use the group's commit (faust-streaming/faust#502). Faust calls this after recovery and before the flow resumes. If it takes too long,
        Faust cancels it and would read on from an arbitrary position, so the worker ends itself.
        """
        started = now_s()
        try:
            await self._seek_to_state()
        except asyncio.CancelledError:
            if now_s() - started >= 0.95 * self.app.conf.broker_request_timeout:
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"taking over the partitions took {now_s() - started:.1f} s, longer than broker_request_timeout")
            raise

    async def _seek_to_state(self) -> None:
        self.assignment_number = number = self.assignment_number + 1
        self._seeking = True
        assigned = {tp for tp in self.assignment() if not self._is_changelog_tp(tp)}
        self.loopback.forget()
        self._held.clear()
        self._held_since.clear()
        self._through.clear()
        self._delivered.clear()
        self._acked.clear()
        self._acked_index.clear()
        positions: Mapping[TP, int | None] = await self.app.positions(assigned)
        if number != self.assignment_number:
            return                                                       # cancelled by a newer assignment, but an awaited call swallowed the cancellation
        known = {tp: offset for tp, offset in positions.items() if offset is not None and tp in assigned}
        unknown = [tp for tp in assigned if tp not in known]
        if unknown:
            # an offset, not just "the beginning", so that the guard recognises records that were fetched before the seek
            known |= {tp: offset or 0 for tp, offset in (await self.earliest_offsets(*unknown)).items()}
        await self._thread.call_thread(self._thread.seek_all, known)
        if number != self.assignment_number:
            return
        self.guard.expected = {tp: known[tp] for tp in assigned}
        self._begins = {tp: known[tp] for tp in assigned}
        self._through = {tp: known[tp] for tp in assigned}
        self.pace.partitions = {tp.partition for tp in assigned if tp.topic == self.app.settings.topic("ticks.raw")}
        self.guard.probed.clear()
        self.pause_partitions({tp for tp in self.assignment() if self._is_changelog_tp(tp)})
        self._seeking = False

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The beginning of each changelog, so that Faust's recovery, the only caller, finds nothing to read. `state.changelog_table` reads changelogs."""
        return await self.earliest_offsets(*partitions)

    def delivered(self, tp: TP) -> int:
        """The offset after the last record that was delivered, or where reading began; -1 before that. Offsets without a record may follow it."""
        return self._begins.get(tp, -1)

    def at_end(self, tp: TP) -> bool:
        """Whether every record that the partition held at the broker's last answer (`polled`) has been delivered."""
        expected = max(self.guard.expected.get(tp) or 0, self._through.get(tp, 0))
        if self._held.get(tp) or not self.flow_active:
            return False
        try:
            consumer = self._thread._ensure_consumer()
            partition = TopicPartition(tp.topic, tp.partition)
            stable, high = consumer.last_stable_offset(partition), consumer.highwater(partition)
        except Exception:  # noqa: BLE001  aiokafka raises various errors for a partition that is not assigned
            return False
        end = stable if stable is not None and stable >= 0 else high
        return end is not None and expected >= end

    def polled(self, tp: TP) -> int:
        """When the broker last answered a fetch of this partition (epoch ms, worker's clock); 0 if it has not yet."""
        with contextlib.suppress(Exception):
            return self._thread._ensure_consumer().last_poll_timestamp(TopicPartition(tp.topic, tp.partition)) or 0
        return 0

    def lag(self, tp: TP) -> int:
        """Consumer lag: how many records are not delivered yet; 0 if the end of the partition is unknown. Deleted records do not count."""
        with contextlib.suppress(Exception):
            high = self._thread._ensure_consumer().highwater(TopicPartition(tp.topic, tp.partition))
            read = max(self.guard.expected.get(tp) or 0, self._through.get(tp, 0), self._thread.log_starts.get(tp, 0))
            return max(0, (high or 0) - read)
        return 0

    # -- commits, for lag monitors only -------------------------------------

    def _new_offset(self, tp: TP) -> int | None:
        """The offset after the last chunk of the contiguous acknowledged prefix; None if there is no new one.

        Faust's own method counts each chunk as one message and commits past unacknowledged ones (faust-streaming/faust#606, faust/transport/consumer.py:1140).
        """
        delivered, acked = self._delivered[tp], set(self._acked[tp])
        done = None
        while delivered and delivered[0] in acked:
            done = delivered.pop(0)
        if done is None:
            return None
        self._acked[tp] = [offset for offset in acked if offset > done]
        self._acked_index[tp] = set(self._acked[tp])
        return done + 1

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        assignment = self.assignment()
        return bool(await self._commit({tp: offset for tp, offset in offsets.items() if tp in assignment}))

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Does nothing. Faust's check counts messages (and errs, faust-streaming/faust#175); the guard and the watchdog replace it."""

    # -- the loop -----------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        gather_s = self.app.settings.gather_ms / 1000
        raw = self.app.settings.topic("ticks.raw")
        unguarded = {self.app.settings.topic("watchlist")}
        held, since = self._held, self._held_since
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                now = time.monotonic()
                for tp in [tp for tp, first_at in since.items() if now - first_at >= gather_s and self.flow_active]:
                    since.pop(tp, None)
                    if tp in held:                                       # a seek may have dropped it meanwhile
                        await self._deliver(tp, held.pop(tp))
                due = min(since.values(), default=None)
                timeout = 1.0 if due is None else max(0.001, due + gather_s - time.monotonic())
                fetched: Any = (await self._meanwhile(self._wait_next_records(timeout)))[0] or {}       # by partition: `Fetched`
                if not self.flow_active:
                    await self.sleep(0)
                    continue
                count, number = 0, self.assignment_number
                for tp, found in self._downstream_first(fetched):
                    count += len(found.records) or 1                     # also if it holds no record: an aborted transaction is no empty fetch
                    tp = tp if isinstance(tp, TP) else TP(tp.topic, tp.partition)
                    if self._is_changelog_tp(tp) or self._seeking or number != self.assignment_number:
                        continue                                         # fetched for the previous assignment: the seek reads it again
                    before, self._through[tp] = self._through.get(tp, 0), found.end
                    expected = self.guard.expected.get(tp)
                    if expected is not None and found.end <= expected:
                        self._require_end(tp, before)
                        continue                                         # loopback frames that were delivered before
                    got = found.records
                    if tp.topic in unguarded:
                        self.guard.expected[tp] = found.end
                    else:
                        got = await self._admit(tp, got, found.empty(), before)
                    if number != self.assignment_number or not got:
                        continue                                         # without records: only transaction markers, aborted or compacted records
                    if tp.topic == raw and gather_s:
                        got = joined((held.pop(tp, []), got))
                        first_at = since.pop(tp, time.monotonic())
                        awaited = self.pace.awaited(tp.partition, got[0].timestamp, got[-1].timestamp)
                        if len(got) < CHUNK_RECORDS // 4 and time.monotonic() - first_at < gather_s and not awaited:
                            held[tp], since[tp] = got, first_at
                            continue
                    await self._deliver(tp, got)
                await self._meanwhile(self.pace.after(count))
        except BaseException as error:
            if not self.transport.app.should_stop:
                # Faust takes any cancellation for an orderly stop (faust/transport/consumer.py:178), even one from aiokafka, and would stop reading silently
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"the consumer stopped reading: {type(error).__name__}: {error}")
                raise
            if not isinstance(error, (asyncio.CancelledError, *self.consumer_stopped_errors)):
                raise

    async def _admit(self, tp: TP, records: Sequence[Any], empty: Sequence[Offsets], before: int) -> Sequence[Any]:
        """Returns the records up to the first gap, and reads on from there; `empty` are the offsets without a record, `before` the end of the last fetch."""
        admitted, back = self.guard.admit(tp, records, empty)
        if back is not None:
            logger.warning("%s[%d]: the records do not continue at offset %d: reading again from there", tp.topic, tp.partition, back)
            self._through[tp] = back
            await self._thread.call_thread(self._thread.seek_all, {tp: back})
        elif not admitted:
            self._require_end(tp, before)
        return admitted

    def _require_end(self, tp: TP, fetched: int) -> None:
        """Called when a fetch returned only known records. Ends the worker if the topic ends before an offset that was fetched: it was created again."""
        high = self._thread._ensure_consumer().highwater(TopicPartition(tp.topic, tp.partition))
        read = max(fetched, self._thread.highest_requested[tp] if tp in self._thread.requested_below else 0)
        if high is not None and high < read and not self.app.embedded:
            self.app.fence.leave(f"{tp.topic}[{tp.partition}] ends at offset {high}, but was read up to {read}: {LOST_RECORDS}")

    # -- loopback: frames that this worker wrote itself ------------------------

    def sent(self, tp: TP, deliveries: Deliveries) -> None:
        """Registers messages handed to the producer for a partition that agents of this worker may read."""
        for confirmed, messages in deliveries:
            confirmed.add_done_callback(partial(self._confirmed, tp, self.assignment_number, messages))

    def _confirmed(self, tp: TP, number: int, messages: Sequence[Message], confirmed: asyncio.Future[Any]) -> None:
        taken = False
        fetch = self._seeking or self.app.embedded or self.plain
        if number == self.assignment_number and not (fetch or confirmed.cancelled() or confirmed.exception()):
            metadata = confirmed.result()
            taken = self.loopback.add(tp, self.guard.expected.get(tp), metadata.offset, metadata.timestamp, metadata.timestamp_type, messages)
        if not taken:
            self.pace.arrived()                                          # a fetch will return it

    async def _meanwhile(self, awaited: Awaitable[T]) -> T:
        """Awaits `awaited`, and delivers loopback frames meanwhile."""
        task = asyncio.ensure_future(awaited)
        try:
            while True:
                await asyncio.wait((task, self.loopback.arrival()), return_when=asyncio.FIRST_COMPLETED)
                await self._deliver_loopback()
                if task.done():
                    return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _downstream_first(self, found: Mapping[Any, S]) -> list[tuple[Any, S]]:
        """The partitions, downstream topics first: `windows`, then `ticks.clean`, then `ticks.raw`."""
        last = {self.app.settings.topic("ticks.clean"): 1, self.app.settings.topic("ticks.raw"): 2}
        return sorted(found.items(), key=lambda item: last.get(item[0].topic, 0))

    async def _deliver_loopback(self) -> None:
        number = self.assignment_number
        for tp, records in self._downstream_first(self.loopback.take()):
            expected = self.guard.expected.get(tp)
            if number == self.assignment_number and not self._seeking and self.flow_active and expected is not None and records[0].offset <= expected:
                got = await self._admit(tp, records, (), 0)
                if got and number == self.assignment_number:
                    self.loopback.delivered(tp, got)
                    await self._deliver(tp, got)

    async def _deliver(self, tp: TP, records: Sequence[Any]) -> None:
        number = self.assignment_number
        for some in cut(records):
            if number == self.assignment_number:
                await self._deliver_chunk(tp, some)

    async def _deliver_chunk(self, tp: TP, records: Sequence[Any]) -> None:
        last = records[-1]
        self._delivered[tp].append(last.offset)
        begin, self._begins[tp] = self._begins.get(tp, -1), last.offset + 1
        message = ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type, [], None,
            Chunk(tp.topic, tp.partition, records, self.assignment_number, begin), None, None, None, tp,  # type: ignore[arg-type]
            generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        if self._room_for(tp):
            await self.callback(message)                                 # without `wait_first`: its two tasks would cost more than the delivery
            if len(records) >= SMALL_FETCH:
                await yield_to_loop(SEND_ITERATIONS)                     # process it while it is in the CPU's cache, before the next is parsed
        else:
            await self.wait_first(self.callback(message), self.suspend_flow.wait())

    def _room_for(self, tp: TP) -> bool:
        """Whether Faust can put a message into the agents' queues without waiting (transport/conductor.py)."""
        conductor = self.app.topics
        channels = conductor._tp_index.get(tp)
        return (
            bool(channels) and self.flow_active and self.app.flow_control.is_active() and not conductor._tp_to_callback_lock.locked()
            and not any(channel.queue.full() for channel in channels)
        )  # fmt: skip

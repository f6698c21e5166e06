"""The thread that fetches, and the offsets that the fetched batches cover."""

from __future__ import annotations

import asyncio
import logging
import weakref
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any

import aiokafka
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaError
from aiokafka.record.memory_records import MemoryRecords
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from stockstream.clock import now_s
from stockstream.transport.guard import Offsets, offset_of, without_record
from stockstream.transport.pacing import SMALL_FETCH

logger = logging.getLogger(__name__)


FETCH_MAX_WAIT_MS = 200
LOST_S = 1.5
"""A broker that has not answered a heartbeat for this long, which is three heartbeats or more, counts as lost."""


def offsets_of(batch: Any, begin: int) -> Offsets:
    """The offsets that a batch covers by its header, from offset `begin` on.

    Compaction removes records, but the header keeps the first and last offset. aiokafka skips control batches and aborted ones, and their headers have the
    same fields. Batches of older formats have no first offset and no transactions: such a batch counts from `begin` on.
    """
    return Offsets(max(begin, getattr(batch, "base_offset", begin)), batch.next_offset)


class CoveredOffsets:
    """Replaces aiokafka's `MemoryRecords`, the batches that a fetch returned for one partition.

    Once `parsed` is set, it records the offsets that each batch covers, including those that aiokafka then skips: control batches and aborted ones.
    """

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes
        self.parsed: PartitionRecords | None = None
        self._covered: list[Offsets] = []

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if self.parsed is not None:
            self._covered.append(offsets_of(batch, self.parsed.next_fetch_offset))
        return batch

    def take(self) -> list[Offsets]:
        """Returns the offsets of each batch since the last call. A batch with a wrong checksum is left out: aiokafka's position does not move past it."""
        position = 0 if self.parsed is None else self.parsed.next_fetch_offset
        covered, self._covered = [batch for batch in self._covered if batch.first < batch.end <= position], []
        return covered


class Fetched:
    """What a fetch returned of one partition.

    Args:
        records: in offset order.
        batches: the offsets that each of the fetched batches covers; at least one.
    """

    def __init__(self, records: Sequence[Any], batches: Sequence[Offsets]) -> None:
        self.records, self._batches = records, batches
        self.end = batches[-1].end
        """The offset after the last batch."""

    def empty(self) -> list[Offsets]:
        """The offsets that hold no record: of control batches, aborted transactions, and records that compaction removed."""
        found: list[Offsets] = []
        begin = 0
        for batch in self._batches:
            end = bisect_left(self.records, batch.end, begin, key=offset_of)
            found += without_record(self.records[begin:end], batch)
            begin = end
        return found


class _FetchResults(dict[Any, Any]):
    """The results of aiokafka's fetcher, by partition. They add the offsets that the batches cover."""

    def __setitem__(self, partition: Any, result: Any) -> None:
        parsed = getattr(result, "_partition_records", None)
        if parsed is not None:
            # weak references, because reference cycles would leave 3,000 objects a second to the garbage collector
            parsed._records.parsed = weakref.proxy(parsed)
            result.getall = partial(_take, weakref.proxy(result))
        super().__setitem__(partition, result)


def _take(result: FetchResult, max_records: None) -> list[Fetched]:
    """Replaces `FetchResult.getall`."""
    parsed = result._partition_records
    records = FetchResult.getall(result)
    batches = parsed._records.take() if parsed is not None else []
    return [Fetched(records, batches)] if batches else []


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that fetches."""

    plain = False
    """Whether aiokafka fetches ahead, as it does by itself."""
    last_heartbeat = 0.0
    silent_s = 0.0
    """How long the group has not answered a heartbeat; 0 if none is due."""
    _beating: tuple[Any, float] = (None, 0.0)
    """The heartbeat task, and when it was first seen. A join confirms the member, so silence counts from here."""

    _brought = 0
    """How many records the last fetch returned."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Faust hard-codes 1500 ms (drivers/aiokafka.py:615), and ListOffsets and seeks queue behind a waiting fetch.
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        consumer._isolation_level = "read_committed"
        return consumer

    async def on_start(self) -> None:
        self._asked = asyncio.Event()
        self.highest_requested: dict[Any, int] = {}
        """By partition: the highest offset requested since the last seek."""
        self.requested_below: set[Any] = set()
        """Partitions of which a lower offset was requested since: aiokafka resets its position if the log ends before it."""
        self.log_starts: dict[Any, int] = {}
        """By partition: where aiokafka reads on since the requested records had been deleted; the broker holds none before that offset."""
        self._out_of_range: set[Any] = set()
        self._sought: dict[Any, int] = {}
        """By partition: the offset of a seek until a request has it. A request with another one was made before the seek, and its answer is dropped."""
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        fetcher._records = _FetchResults(fetcher._records)
        fetcher._proc_fetch_request = partial(self._on_demand, fetcher._proc_fetch_request)
        coordinator = self._ensure_consumer()._coordinator
        if isinstance(coordinator, GroupCoordinator):
            beat = coordinator._do_heartbeat

            async def heartbeat() -> Any:
                begun = now_s()
                success = await beat()
                if success:
                    self.last_heartbeat = begun
                return success

            coordinator._do_heartbeat = heartbeat

    async def _on_demand(self, fetch: Callable[..., Awaitable[bool]], *request: Any) -> bool:
        """Fetches only on request. In a backlog it fetches ahead, so that the next fetch runs while the last one is processed.

        aiokafka always fetches one ahead, then waits until its result is taken. A first result of one tick would delay all later ticks.
        """
        if self._brought < SMALL_FETCH and not self.plain:
            try:
                await self._asked.wait()
            except asyncio.CancelledError:
                return False                                             # as the replaced method does: aiokafka uses the result
        self.consumer.pace.fetching()  # type: ignore[attr-defined]
        self._skip_loopback(*request)
        fetched = await fetch(*request)
        self._note_out_of_range(*request)
        return fetched

    def _note_out_of_range(self, assignment: Any, _: int, request: Any) -> None:
        tps = [TopicPartition(topic, partition) for topic, partitions in request.topics for partition, *_ in partitions]
        self._out_of_range.update(tp for tp in tps if assignment.state_value(tp).awaiting_reset)

    def _skip_loopback(self, assignment: Any, _: int, request: Any) -> None:
        """Moves a request and the positions past frames that were delivered without a fetch, and records partitions whose requested offset went back."""
        passed = self.consumer.loopback.delivered_ranges  # type: ignore[attr-defined]
        for topic, partitions in request.topics:
            for place, (partition, offset, size) in enumerate(partitions):
                tp = TopicPartition(topic, partition)
                if self._sought.get(tp, offset) != offset:
                    continue
                self._sought.pop(tp, None)
                if tp in self._out_of_range:
                    self._out_of_range.discard(tp)
                    self.log_starts[tp] = offset
                first, end = passed.pop(tp, (0, 0))
                if first <= offset < end:
                    assignment.state_value(tp).seek(end)
                    partitions[place] = partition, end, size
                    offset = end
                if offset < self.highest_requested.get(tp, 0):
                    self.requested_below.add(tp)
                else:
                    self.highest_requested[tp] = offset

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Any:
        self._asked.set()
        try:
            found = await super()._fetch_records(*args, **kwargs | {"max_records": None})       # it would count `Fetched`, not records
        finally:
            self._asked.clear()
        fetched = {tp: one for tp, (one,) in found.items()}
        self._brought = sum(len(one.records) for one in fetched.values())
        return fetched

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        # faust-streaming/faust#94: Faust crashes the worker on any error but one (drivers/aiokafka.py:811); our commits are for lag monitors only.
        assignment = self.assignment()
        positions = {TopicPartition(tp.topic, tp.partition): offset for tp, offset in offsets.items() if tp in assignment}
        try:
            if positions:
                await self._ensure_consumer().commit(positions)
        except (KafkaError, ValueError) as error:
            logger.info("offsets for lag monitors not committed: %s", error)
            return False
        return True

    async def seek_all(self, offsets: Mapping[TP, int]) -> None:
        consumer = self._ensure_consumer()
        for tp, offset in offsets.items():
            self.highest_requested.pop(tp, None)
            self.requested_below.discard(tp)
            self._out_of_range.discard(tp)
            self.log_starts.pop(tp, None)
            if tp in self.assignment():
                self._sought[TopicPartition(tp.topic, tp.partition)] = offset
                consumer.seek(TopicPartition(tp.topic, tp.partition), offset)

    def trouble(self, limit_s: float) -> str:
        """Why the group membership is lost or in doubt; empty if it is not.

        Faust bypasses aiokafka's own error check when it reads the fetcher (drivers/aiokafka.py:1088; the check is aio-libs/aiokafka#294), so a fatal
        coordinator error would hang the worker silently.

        Args:
            limit_s: how many seconds without a heartbeat count as loss.
        """
        consumer = self._consumer
        coordinator = getattr(consumer, "_coordinator", None)
        if not isinstance(coordinator, GroupCoordinator):
            return ""
        pending = getattr(coordinator, "_pending_exception", None)
        if pending is not None:
            return f"the group coordinator failed: {pending!r}"
        task = getattr(coordinator, "_coordination_task", None)
        if task is not None and task.done() and not coordinator._closing.done():
            return "the group coordination ended"
        if coordinator._heartbeat_task is not self._beating[0]:
            self._beating = coordinator._heartbeat_task, now_s()
        beating = coordinator._heartbeat_task is not None and not coordinator.need_rejoin(self._subscription(consumer))
        silent = now_s() - max(self.last_heartbeat, self._beating[1])
        self.silent_s = silent if beating else 0.0
        if beating and silent > limit_s:
            return f"no heartbeat for {silent:.1f} s, half the session is {limit_s:.1f} s"
        return ""

    @staticmethod
    def _subscription(consumer: Any) -> Any:
        return consumer._subscription.subscription

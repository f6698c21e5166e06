"""The thread that fetches. It passes whole record batches on, and the consumer parses them."""

from __future__ import annotations

import asyncio
import logging
import weakref
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
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
from stockstream.transport.messages import CHUNK_RECORDS, joined
from stockstream.transport.pacing import SMALL_FETCH

logger = logging.getLogger(__name__)


FETCH_MAX_WAIT_MS = 200
LOST_S = 1.5
"""A broker that has not answered a heartbeat for this long, which is three heartbeats or more, counts as lost."""


class UnparsedBatch:
    """The records of one batch, without those before the requested offset. They are parsed where they are processed.

    aiokafka takes it for one record with the offset of the batch's last, so that the cost is per batch and not per record. If the fetching thread parsed the
    records, each would move from one CPU's cache to another's, which is a sixth of the cost of a backlog.

    Args:
        batch: aiokafka's record batch.
        begin: the requested offset.
    """

    def __init__(self, batch: Any, begin: int) -> None:
        self._batch, self._begin = batch, begin
        self._offsets = offsets_of(batch, begin)
        self.offset: int = self._offsets.end - 1
        self.count = max(1, self._offsets.end - self._offsets.first)
        """Upper bound of the number of records."""

    def read(self) -> tuple[Sequence[Any], Sequence[Offsets]]:
        """Decompresses and parses the records; returns them, and the offsets of the batch that hold none. Call it once only."""
        records = [record for record in self._batch if record.offset >= self._begin]
        return records, without_record(records, self._offsets)


def offsets_of(batch: Any, begin: int) -> Offsets:
    """The offsets that a batch covers by its header, from offset `begin` on.

    Compaction removes records, but the header keeps the first and last offset. aiokafka skips control batches and aborted ones, and their headers have the
    same fields. Batches of older formats have no first offset and no transactions: such a batch counts from `begin` on.
    """
    return Offsets(max(begin, getattr(batch, "base_offset", begin)), batch.next_offset)


class EmptyOffsets:
    """A control batch, or a batch of an aborted transaction: offsets without a record."""

    count = 0

    def __init__(self, offsets: Offsets) -> None:
        self._offsets = offsets
        self.offset = offsets.end - 1

    def read(self) -> tuple[Sequence[Any], Sequence[Offsets]]:
        return [], [self._offsets]


class ParsedRecords:
    """Records that aiokafka has parsed, with the interface of `UnparsedBatch`.

    Args:
        records: in offset order.
        batches: the offsets that each of the fetched batches covers.
    """

    def __init__(self, records: Sequence[Any], batches: Sequence[Offsets]) -> None:
        self._records, self._batches = records, batches
        self.offset: int = batches[-1].end - 1
        self.count = len(records)

    def read(self) -> tuple[Sequence[Any], Sequence[Offsets]]:
        empty: list[Offsets] = []
        begin = 0
        for batch in self._batches:
            end = bisect_left(self._records, batch.end, begin, key=offset_of)
            empty += without_record(self._records[begin:end], batch)
            begin = end
        return self._records, empty


def contents(parts: Iterable[UnparsedBatch | EmptyOffsets | ParsedRecords]) -> tuple[Sequence[Any], list[Offsets]]:
    """Parses what a fetch returned of one partition: its records, and the offsets that hold none."""
    records: list[Sequence[Any]] = []
    empty: list[Offsets] = []
    for part in parts:
        some, without = part.read()
        records.append(some)
        empty += without
    return joined(records), empty


class _SingleItemBatch:
    """A batch that iterates as one `UnparsedBatch`."""

    def __init__(self, batch: Any, parsed: PartitionRecords) -> None:
        self._batch, self._parsed = batch, parsed

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[UnparsedBatch]:
        yield UnparsedBatch(self._batch, self._parsed.next_fetch_offset)


class UnparsedBatches:
    """Replaces aiokafka's `MemoryRecords`, the batches that a fetch returned for one partition.

    Once `parsed` is set, it records the offsets that each batch covers, including those that aiokafka then skips: control batches and aborted ones.
    """

    def __init__(self, data: bytes) -> None:
        self._records = MemoryRecords(data)
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes
        self.parsed: PartitionRecords | None = None
        self.as_single_items = False
        """Whether each batch iterates as one `UnparsedBatch`. Otherwise aiokafka parses it."""
        self._covered: list[Offsets] = []

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        if self.parsed is None:
            return batch
        self._covered.append(offsets_of(batch, self.parsed.next_fetch_offset))
        return _SingleItemBatch(batch, self.parsed) if self.as_single_items and not batch.is_control_batch else batch

    def take_covered(self) -> list[Offsets]:
        """Returns the offsets of each batch since the last call. A batch with a wrong checksum is left out: aiokafka's position does not move past it."""
        position = 0 if self.parsed is None else self.parsed.next_fetch_offset
        covered, self._covered = [batch for batch in self._covered if batch.first < batch.end <= position], []
        return covered


class _FetchResults(dict[Any, Any]):
    """The results of aiokafka's fetcher, by partition. They yield unparsed batches, which saves copying each record into a `ConsumerRecord`.

    Args:
        plain: whether aiokafka parses the records. The results then only add the offsets that the batches cover.
    """

    def __init__(self, *args: Any, plain: bool = False) -> None:
        super().__init__(*args)
        self._take: Callable[..., list[Any]] = _take_parsed if plain else _take
        self._as_single_items = not plain

    def __setitem__(self, partition: Any, result: Any) -> None:
        parsed = getattr(result, "_partition_records", None)
        if parsed is not None:
            # weak references, because reference cycles would leave 3,000 objects a second to the garbage collector
            parsed._records.parsed = weakref.proxy(parsed)
            if self._as_single_items:
                parsed._records.as_single_items = True
                parsed._consumer_record = _unchanged
            result.getall = partial(self._take, weakref.proxy(result))
        super().__setitem__(partition, result)


def _unchanged(_: Any, part: UnparsedBatch) -> UnparsedBatch:
    return part


def _take(result: FetchResult, max_records: None) -> list[UnparsedBatch | EmptyOffsets]:
    """Replaces `FetchResult.getall`: takes batches until they hold CHUNK_RECORDS."""
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    parsed = result._partition_records
    taken: list[UnparsedBatch | EmptyOffsets] = []
    count = 0
    while count < CHUNK_RECORDS:
        part = next(parsed, None)
        covered = parsed._records.take_covered()
        if part is None:
            result._partition_records = None
            taken += map(EmptyOffsets, covered)
            break
        taken += map(EmptyOffsets, covered[:-1])
        taken.append(part)
        count += part.count
    result._assignment.state_value(result._topic_partition).consumed_to(parsed.next_fetch_offset)
    return taken


def _take_parsed(result: FetchResult, max_records: None) -> list[ParsedRecords]:
    """Replaces `FetchResult.getall` if aiokafka parses: adds the offsets that the batches cover."""
    parsed = result._partition_records
    records = FetchResult.getall(result)
    batches = parsed._records.take_covered() if parsed is not None else []
    return [ParsedRecords(records, batches)] if batches else []


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that fetches."""

    plain = False
    """Whether aiokafka fetches ahead and parses, as it does without stockstream's replacements."""
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
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        fetcher._records = _FetchResults(fetcher._records, plain=self.plain)
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
            # `max_records` covers all partitions together; `_take` limits each one
            fetched = await super()._fetch_records(*args, **kwargs | {"max_records": None})
        finally:
            self._asked.clear()
        self._brought = sum(part.count for parts in fetched.values() for part in parts)
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

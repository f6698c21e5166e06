"""The batch transport: what one fetch brought of one partition is one event. The only place that knows Faust's inside.

Faust 0.15.3 by itself loses and double-counts (docs/architecture.md lists how); the guards here and in `tables` are the answer:

- `Consumer._drain_messages` gives an agent one `Chunk` for each partition and fetch instead of one event a message.
- Every chunk is checked against the offset that must come next. A hole is read again once; one that the broker confirms is recorded and passed. What
  was delivered already is dropped. (faust-streaming/faust#216, #221: offsets skipped after a rebalance.)
- `Consumer.perform_seek` puts the partitions where their state says, not where the group's commit says; commits serve lag monitors only.
- `Fence` ends the process when it may no longer own its partitions.
- `Pipe` keeps the order: deliveries confirmed, then the state written; partitions go on side by side.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import struct
import sys
import time
import weakref
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, TypeVar

import aiokafka
import faust
import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.consumer.group_coordinator import GroupCoordinator
from aiokafka.errors import KafkaConnectionError, KafkaError, KafkaTimeoutError, MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.producer import sender as producer_sender
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.types import Int32
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.util import wait_for
from faust.transport.drivers import aiokafka as driver
from faust.types import TP, ConsumerMessage
from mode.utils.queues import FlowControlEvent

from stockstream import compiled, versions
from stockstream.broker import MAX_BATCH_BYTES, producer_settings
from stockstream.clock import now_s
from stockstream.endings import exit_now
from stockstream.errors import FencedError, StateError
from stockstream.logs import last_fault
from stockstream.outages import Outage
from stockstream.set_aside import SetAside
from stockstream.skipped import shortened

logger = logging.getLogger(__name__)

CHUNK_RECORDS = 8_000
"""Of a backlog: what a fetch brings of one partition, in small records, is about as many, and goes in one. A chunk costs some 2 ms whatever it holds."""
FETCH_MAX_WAIT_MS = 200
PACE_S = 0.08
"""Pause after a small fetch; there are hundreds of tiny ones a second otherwise."""
CLOSING_MS = 100
CLOSING_PACE_S = 0.003
"""Pause while ticks are due that close a second: within CLOSING_MS, until each partition has closed one."""
AHEAD_MS = 50
"""So long before the earliest of the last closings the next ones are due."""
CLOSINGS_KEPT = 64
CLOSED_S = 0.5
COMPANY_S = 0.005
"""Pause after frames have arrived, but in a backlog: those of other partitions are on their way."""
BACKLOG_S = 3.0
"""So long after a large fetch a worker counts as catching up: the full line takes two seconds over what one fetch can bring of eight partitions."""
SMALL_FETCH = 500
OWN_BYTES = 8_000_000
"""Of frames that this worker has written and not read yet; what is more is fetched, once there is time for it."""
PIPE_DEPTH = 4
DELIVERY_S = 30.0
"""How long a batch is tried before its delivery counts as failed and the worker leaves. A request waits less: a frozen broker is asked no longer."""
ZSTD_LEVEL = -1
"""Takes 0.6 of the time of aiokafka's level 3 (the default of brokers), for a quarter more bytes: measured on a log's frames, predictions and outcomes."""
ZSTD_LEVEL_NUMBERS = -7
"""For what is no text. Below 0, zstd tries one place in as many bytes as the level says and one more: eight are a number of a frame's column. Takes 0.78 of
the time of -1 over frames of `windows`, for a twentieth more bytes."""
SAMPLE_BYTES = 256
HOLES_KEPT = 1_000
"""A transactional producer leaves one with every transaction: only the newest are told and asked for."""
SEND_TURNS = 6
MESSAGE_BYTES = 100
"""Of a batch's and a record's heads, and our version header."""
REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError)
LOST_S = 1.5
"""A broker that has answered no heartbeat for so long, three of them at least, counts as lost."""
FENCE_EXIT_STATUS = 75
VERSION_HEADER = (versions.NAME, versions.VALUE)

CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
"""By their numbers in a batch's attributes."""
FORMAT = 2
"""Of record batches, since Kafka 0.11."""
BATCH_PREFIX = struct.Struct(">qi")
"""Base offset, and the length of what follows."""

Headers = list[tuple[str, bytes]]
S = TypeVar("S")
T = TypeVar("T")


class Message(NamedTuple):
    """One message to send; the schema version is added to its headers."""

    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...] = ()


class Outgoing(NamedTuple):
    """Messages for one partition of one topic, in order."""

    topic: str
    partition: int
    messages: Sequence[Message]


Handed = list[tuple[asyncio.Future[Any], Sequence[Message]]]


@dataclass(frozen=True, slots=True)
class Chunk:
    """Records of one partition, in offset order, as one fetch brought them: the value of every event that an agent gets."""

    topic: str
    partition: int
    records: Sequence[Any]
    epoch: int = 0
    """`Consumer.epoch` when it was read: one of an earlier assignment is of no use to the state that was built anew."""
    begin: int = -1
    """The offset that follows the chunk before, or where reading began: from there on the broker holds nothing but these records. -1: nobody knows."""
    read: dict[int, Any] = field(default_factory=dict, compare=False, repr=False)
    """What agents have read of records, by their number, for the others that get the same chunk."""

    @property
    def first(self) -> int:
        return int(self.records[0].offset)

    @property
    def last(self) -> int:
        return int(self.records[-1].offset)


class Flow(FlowControlEvent):
    """Goes on without emptying the agents' queues, as mode does (utils/queues.py, `resume`): a chunk that was read right after the seek may lie in them.

    What lies there of an assignment before bears its epoch.
    """

    def resume(self) -> None:
        self._suspend.clear()
        self._resume.set()


class OwnRecord(NamedTuple):
    """A record that this worker has written, as it lies in the log."""

    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes
    headers: tuple[tuple[str, bytes], ...]


class Own:
    """What this worker has written to partitions that it reads, once the broker has confirmed it, where it follows upon what has been read.

    All replicas in sync have it at the offset that the broker told: a fetch would bring the same, later. Copies that one under way brings are dropped. What
    does not follow at once, or is more than `OWN_BYTES`, is left to the fetch.
    """

    def __init__(self) -> None:
        self.records: dict[TP, list[OwnRecord]] = {}
        self.passed: dict[TP, tuple[int, int]] = {}
        """What was delivered and needs no fetch, by partition: the first offset and the one that follows the last. The thread that fetches takes it."""
        self._size = 0
        self._waiter: asyncio.Future[None] | None = None

    def add(self, tp: TP, expected: int | None, first: int, timestamp: int, timestamp_type: int, messages: Sequence[Message]) -> bool:
        """Takes the messages, which lie in the log from offset `first` on, where `expected` is the next that will be read; whether it did."""
        waiting = self.records.get(tp)
        if first != (waiting[-1].offset + 1 if waiting else expected):
            return False
        size = sum(len(message.value) for message in messages)
        if self._size + size > OWN_BYTES:
            return False
        self._size += size
        self.records.setdefault(tp, []).extend(
            OwnRecord(first + number, timestamp, timestamp_type, message.key, message.value, (VERSION_HEADER, *message.headers))
            for number, message in enumerate(messages)
        )
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        return True

    def arrival(self) -> asyncio.Future[None]:
        """Is done when there is some."""
        self._waiter = asyncio.get_running_loop().create_future()
        if self.records:
            self._waiter.set_result(None)
        return self._waiter

    def take(self) -> dict[TP, list[OwnRecord]]:
        """All there is; none is left."""
        taken, self.records, self._size = self.records, {}, 0
        return taken

    def forget(self) -> None:
        self.take()
        self.passed.clear()

    def delivered(self, tp: TP, records: Sequence[OwnRecord]) -> None:
        """Told of what has been read of it."""
        first, _ = self.passed.get(tp, (records[0].offset, 0))
        self.passed[tp] = first, records[-1].offset + 1


class ChunkSchema(faust.Schema[Any, Any]):
    """Hands a chunk on as it is."""

    def loads_key(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return None

    def loads_value(self, app: Any, message: Any, *, loads: Any = None, serializer: Any = None) -> Any:
        return message.value


async def turns(count: int) -> None:
    """Lets all else that is ready run so many times. To produce takes about SEND_TURNS: pipe, sender, request, and the answer to the request before."""
    for _ in range(count):
        await asyncio.sleep(0)


# -- the fence --------------------------------------------------------------


class Fence:
    """Knows whether this worker may still act for its partitions; when not, the process leaves at once.

    `limit_s` is half the session: by then nobody else has the partitions yet.
    """

    def __init__(self, session_s: float, leave: Callable[[str], None] | None = None) -> None:
        self.limit_s = session_s / 2
        self._leave = leave or leave_now
        self._seen: float | None = None                                  # the imports before the first tick are no standing still
        self.left = False
        self.heard: Callable[[], float] = lambda: 0.0
        """When the group last confirmed us (`stockstream.clock`): a process that computes for long is no frozen one, its heartbeats have their own thread."""

    def tick(self) -> None:
        """Called several times a second by the watchdog; a process that was frozen notices here or in `check`, whichever comes first."""
        self.check()
        self._seen = now_s()

    def check(self) -> None:
        """Raises `FencedError` where the process has neither run nor been heard by its group for half a session, after asking it to leave."""
        if self.left:
            raise FencedError("this worker has left")
        stood = 0.0 if self._seen is None else now_s() - max(self._seen, self.heard())
        if stood > self.limit_s:
            self.leave(f"this process stood still for {stood:.1f} s, more than half the session")

    def leave(self, why: str) -> None:
        """Ends the process, once."""
        if not self.left:
            self.left = True
            self._leave(why)
        raise FencedError(why)


def leave_now(why: str) -> None:
    """Tells why, in one line, and exits without any clean-up that could write."""
    exit_now(FENCE_EXIT_STATUS, f"leaving: {why} (a supervisor starts the worker again)")


# -- sending ----------------------------------------------------------------


class Sender:
    """Sends through the worker's one producer. A future is done when the broker has confirmed all it stands for.

    `sent` is told of what was handed over: the futures, each with its messages. A message that no broker would take is set aside, and the others go;
    agents bound and split what they send, so that this is the last line. State that does not fit is an error: nothing may be counted without it.
    """

    def __init__(
        self, producer: Callable[[], aiokafka.AIOKafkaProducer], fence: Fence, sent: Callable[[Outgoing, Handed], None] | None = None,
        aside: SetAside | None = None, state_topics: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._producer, self._fence, self._sent = producer, fence, sent
        self._aside, self._state_topics = aside or SetAside(), state_topics
        self._turns: dict[tuple[str, int], asyncio.Lock] = {}

    async def send(self, out: Outgoing) -> list[asyncio.Future[Any]]:
        """Hands the messages to the producer in order; many go as ready-made batches."""
        producer = self._producer()
        if any(len(message.value) > MAX_BATCH_BYTES // 2 for message in out.messages):
            out = self._fitting(out)
        # aiokafka takes a batch once the partition's last has left, whoever has waited longest: all of detect's pipes write one partition of `market`
        async with self._turns.setdefault((out.topic, out.partition), asyncio.Lock()):
            handed = await self._hand_over(producer, out)
        for confirmed, messages in handed:
            confirmed.add_done_callback(partial(self._refused, out, messages))
        if self._sent is not None and handed:
            self._sent(out, handed)
        return [confirmed for confirmed, _ in handed]

    def _fitting(self, out: Outgoing) -> Outgoing:
        """Without the messages that are too large. Raises `StateError` where they are state."""
        for message in out.messages:
            if _size(message) > MAX_BATCH_BYTES:
                self._set_aside(out, message, f"a message may have {MAX_BATCH_BYTES} bytes")
        return out._replace(messages=[message for message in out.messages if _size(message) <= MAX_BATCH_BYTES])

    def _refused(self, out: Outgoing, messages: Sequence[Message], confirmed: asyncio.Future[Any]) -> None:
        """Sets aside what the broker refuses for its size, for good: the topic's limit is lower than ours."""
        error = None if confirmed.cancelled() else confirmed.exception()
        if isinstance(error, REFUSED) and out.topic not in self._state_topics:
            if len(messages) > 1:
                error.again = asyncio.get_running_loop().create_task(self._by_halves(out, messages))
                return
            for message in messages:
                self._set_aside(out, message, f"the broker refuses it ({type(error).__name__}): does the topic's max.message.bytes allow {MAX_BATCH_BYTES}?")
            error.again = asyncio.get_running_loop().create_future()
            error.again.set_result(None)

    async def _by_halves(self, out: Outgoing, messages: Sequence[Message]) -> None:
        """Sends what the broker has refused as one batch again in smaller ones, down to single messages: only those that are too large are set aside."""
        size = len(messages) // 2 if len(messages) > 4 else 1            # one at a time: the producer makes one batch of two
        for begin in range(0, len(messages), size):
            await delivered(await self.send(out._replace(messages=messages[begin : begin + size])))

    def _set_aside(self, out: Outgoing, message: Message, why: str) -> None:
        what = f"{_size(message)} bytes, key {shortened(repr(message.key), 80)}: {why}"
        if out.topic in self._state_topics:
            raise StateError(f"a state record for {out.topic}[{out.partition}] is too large: {what}")
        self._aside.add(out.topic, out.partition, -1, "send", "too large", what)

    async def _room(self, hand: Callable[[], Awaitable[asyncio.Future[Any]]]) -> asyncio.Future[Any]:
        """Waits for room as long as a delivery may take; aiokafka itself gives up after the time of one request."""
        deadline = time.monotonic() + DELIVERY_S
        while True:
            self._fence.check()
            try:
                return await hand()
            except KafkaTimeoutError:
                if time.monotonic() >= deadline:
                    raise

    async def _hand_over(self, producer: aiokafka.AIOKafkaProducer, out: Outgoing) -> Handed:
        if len(out.messages) <= 2:
            return [
                (await self._room(partial(
                    producer.send, out.topic, message.value, key=message.key, partition=out.partition, headers=[VERSION_HEADER, *message.headers]
                )), [message])
                for message in out.messages
            ]  # fmt: skip
        handed: Handed = []
        batch, first = producer.create_batch(), 0
        now = int(time.time() * 1000)
        for number, message in enumerate(out.messages):
            headers = [VERSION_HEADER, *message.headers]
            while batch.append(key=message.key, value=message.value, timestamp=now, headers=headers) is None:
                if not batch.record_count():
                    raise ValueError(f"a message of {len(message.value)} bytes for {out.topic} passes the limit of {MAX_BATCH_BYTES}")
                handed.append((await self._room(partial(producer.send_batch, batch, out.topic, partition=out.partition)), out.messages[first:number]))
                batch, first = producer.create_batch(), number
        batch.close()
        handed.append((await self._room(partial(producer.send_batch, batch, out.topic, partition=out.partition)), out.messages[first:]))
        return handed


def _size(message: Message) -> int:
    """Bytes that a message takes of a batch, at the most."""
    size = len(message.value) + len(message.key or b"") + MESSAGE_BYTES
    for name, value in message.headers:
        size += len(name) + len(value) + 10
    return size


async def delivered(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Waits until the broker has confirmed all, but what it has refused and `Sender` has sent again or set aside."""
    try:
        await asyncio.gather(*futures)
    except REFUSED:
        for future in futures:
            try:
                await future
            except REFUSED as error:
                again = getattr(error, "again", None)
                if again is None:
                    raise
                await again


@dataclass(slots=True)
class _Job:
    sends: Sequence[Outgoing]
    records: Outgoing | None
    stored: Callable[[int, int], None] | None
    delivered: Callable[[], None] | None


class Pipe:
    """One partition's way out of one agent: what was computed is sent in order; once it is confirmed the state records that count it are written.

    `submit` waits only where PIPE_DEPTH jobs are under way. A send that fails ends the worker: its state tells the next one where to go on.
    """

    def __init__(self, sender: Sender, fence: Fence, name: str) -> None:
        self._sender, self._fence, self.name = sender, fence, name
        self._closed = False
        self._gone = asyncio.Event()
        self._jobs: asyncio.Queue[_Job] = asyncio.Queue(PIPE_DEPTH)
        self._turn = asyncio.Lock()                                      # `Queue.put` lets a newcomer pass who was woken and has not run yet
        self._sent: asyncio.Queue[tuple[_Job, list[asyncio.Future[Any]]]] = asyncio.Queue(PIPE_DEPTH)
        self._tasks = [asyncio.create_task(self._guarded(work), name=f"{name} {work.__name__}") for work in (self._send, self._settle)]

    async def submit(
        self, sends: Sequence[Outgoing] = (), records: Outgoing | None = None,
        stored: Callable[[int, int], None] | None = None, delivered: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Queues one step: `sends`, then, confirmed, `records` (state), then the calls of `stored` and `delivered`. A closed pipe takes nothing.

        Steps are taken in the order of the calls, also where several callers wait.
        `stored` is told between which offsets the records lie, -1 where the broker did not say.
        """
        async with self._turn:
            if not self._closed:
                await self._jobs.put(_Job(sends, records, stored, delivered))

    async def drain(self) -> None:
        """Waits until all that was submitted is confirmed and its state written, or the pipe is closed."""
        gone = asyncio.create_task(self._gone.wait())
        settled = asyncio.create_task(self._settled())
        try:
            await asyncio.wait((gone, settled), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            settled.cancel()

    async def _settled(self) -> None:
        await self._jobs.join()
        await self._sent.join()

    async def close(self, timeout_s: float) -> None:
        """Drains for at most `timeout_s`, then drops the rest: the state says where to go on."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._settled()
        self._gone.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._jobs.empty():
            self._jobs.get_nowait()                                      # lets go whoever waits in `submit`

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except FencedError:
            return
        except Exception as error:  # noqa: BLE001  whatever it is, the process leaves and tells it
            with contextlib.suppress(FencedError):
                self._fence.leave(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self._gone.set()                                             # lets go whoever waits in `drain`

    async def _send(self) -> None:
        while True:
            job = await self._jobs.get()
            futures: list[asyncio.Future[Any]] = []
            for out in job.sends:
                futures += await self._sender.send(out)
            await self._sent.put((job, futures))
            self._jobs.task_done()

    async def _settle(self) -> None:
        while True:
            job, futures = await self._sent.get()
            if futures:
                await delivered(futures)
            if job.records is not None and job.records.messages:
                written = await asyncio.gather(*await self._sender.send(job.records))
                if job.stored is not None:
                    offsets = [metadata.offset for metadata in written]
                    job.stored(min(offsets), max(offsets) + len(job.records.messages) - 1)
            if job.delivered is not None:
                job.delivered()
            self._sent.task_done()


# -- reading ----------------------------------------------------------------


class Hole(NamedTuple):
    """Offsets that the broker does not have: transaction markers, or records deleted by retention."""

    topic: str
    partition: int
    first: int
    last: int


@dataclass(slots=True)
class Guard:
    """Checks that offsets follow each other, for each partition. `None` as the expected offset accepts any."""

    expected: dict[TP, int | None] = field(default_factory=dict)
    probed: dict[TP, int] = field(default_factory=dict)
    rereads: int = 0
    holes: deque[Hole] = field(default_factory=lambda: deque(maxlen=HOLES_KEPT))
    holes_passed: int = 0
    repeats: int = 0
    on_hole: Callable[[str, int], None] | None = None
    """Told of each hole: `reread` where it is read again, `passed` where the broker has nothing there; and of how many offsets."""

    def admit(self, tp: TP, records: Sequence[Any]) -> tuple[Sequence[Any], int | None]:
        """The records to deliver now, and the offset to seek back to where some are missing behind them (read again once, then believed)."""
        expected = self.expected.get(tp)
        if expected is not None and records[0].offset < expected:
            keep = next((i for i, r in enumerate(records) if r.offset >= expected), len(records))
            self.repeats += keep
            records = records[keep:]
            if not records:
                return [], None
        if expected is None or records[-1].offset - expected + 1 != len(records):
            for number, record in enumerate(records):
                if expected is not None and record.offset != expected:
                    if self.probed.get(tp) != expected:
                        self.probed[tp] = expected
                        self.rereads += 1
                        self.expected[tp] = expected
                        if self.on_hole is not None:
                            self.on_hole("reread", record.offset - expected)
                        return records[:number], expected
                    self.holes.append(Hole(tp.topic, tp.partition, expected, record.offset - 1))
                    self.holes_passed += 1
                    if self.on_hole is not None:
                        self.on_hole("passed", record.offset - expected)
                    logger.warning("%s[%d]: the broker has no offsets %d to %d: passed", tp.topic, tp.partition, expected, record.offset - 1)
                expected = record.offset + 1
        self.expected[tp] = records[-1].offset + 1
        return records, None


class Run:
    """The records of one batch, without those before the offset that was asked for, parsed where they are worked on.

    aiokafka takes it for a record with the offset of the last, and spends its time a batch, not a record. Parsed by the thread that fetches, every record
    would go from one processor's cache to another's: a sixth of all that catching up costs.

    Args:
        batch: aiokafka's.
        begin: the offset that was asked for.
        data: the bytes of the batch, where they are known.
    """

    def __init__(self, batch: Any, begin: int, data: memoryview | None = None) -> None:
        self._batch, self._begin, self._data = batch, begin, data
        self.offset: int = batch.next_offset - 1
        self.count = max(1, self.offset + 1 - max(begin, getattr(batch, "base_offset", begin)))       # batches of the old formats have none
        """Records at most."""

    def records(self) -> Sequence[Any]:
        """Decompressed and parsed, once."""
        if compiled.batches is not None and self._data is not None and self._batch.magic == FORMAT:
            found: Sequence[Any] = compiled.batches.records(self._data, self._begin)
            return found
        records = list(self._batch)
        return records if not records or records[0].offset >= self._begin else [record for record in records if record.offset >= self._begin]


class Passed:
    """What the broker has passed behind the last record: markers of transactions, and what it has taken out."""

    count = 0

    def __init__(self, end: int) -> None:
        self.offset = end - 1

    def records(self) -> Sequence[Any]:
        return []


def joined(parts: Iterable[Sequence[Any]]) -> Sequence[Any]:
    """The records of all parts, one after the other."""
    some = [part for part in parts if part]
    if len(some) == 1:
        return some[0]
    if some and compiled.batches is not None and all(isinstance(part, compiled.batches.Records) for part in some):
        whole: Sequence[Any] = compiled.batches.joined(some)
        return whole
    return [record for part in some for record in part]


def cut(records: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """The records in equal parts, whose size is as near to CHUNK_RECORDS as can be: no small rest is left over, which would cost as much as a large part."""
    size = -(-len(records) // (round(len(records) / CHUNK_RECORDS) or 1)) or 1
    for at in range(0, len(records), size):
        yield records[at : at + size]


class _Batch:
    """A batch that iterates as one run."""

    def __init__(self, batch: Any, parsed: PartitionRecords, data: memoryview) -> None:
        self._batch, self._parsed, self._data = batch, parsed, data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def validate_crc(self) -> bool:
        """Whether its checksum is right; aiokafka asks before it asks anything else."""
        if compiled.batches is not None and self._batch.magic == FORMAT:
            return bool(compiled.batches.is_whole(self._data))
        return bool(self._batch.validate_crc())

    def __iter__(self) -> Iterator[Run]:
        yield Run(self._batch, self._parsed.next_fetch_offset, self._data)


class Batches:
    """What a fetch brought of one partition, in the place of aiokafka's `MemoryRecords`: as runs, once `parsed` says of which `PartitionRecords`."""

    def __init__(self, data: bytes) -> None:
        self._records, self._rest = MemoryRecords(data), memoryview(data)
        self.has_next, self.size_in_bytes = self._records.has_next, self._records.size_in_bytes
        self.parsed: PartitionRecords | None = None

    def next_batch(self) -> Any:
        batch = self._records.next_batch()
        size = BATCH_PREFIX.size + BATCH_PREFIX.unpack_from(self._rest)[1]
        data, self._rest = self._rest[:size], self._rest[size:]
        return batch if self.parsed is None else _Batch(batch, self.parsed, data)


fetcher.MemoryRecords = Batches


class _Fetched(dict[Any, Any]):
    """What aiokafka's fetcher has fetched, by partition: it comes as runs, not copied into `ConsumerRecord`s one by one."""

    def __setitem__(self, partition: Any, result: Any) -> None:
        parsed = getattr(result, "_partition_records", None)
        if parsed is not None:
            # weak references: circles would leave 3,000 objects a second to the garbage collector
            parsed._records.parsed = weakref.proxy(parsed)
            parsed._consumer_record = _as_it_is
            result.getall = partial(_take, weakref.proxy(result))
        super().__setitem__(partition, result)


def _as_it_is(_: Any, run: Run) -> Run:
    return run


def _take(result: FetchResult, max_records: None) -> list[Run | Passed]:
    """`FetchResult.getall` of runs: whole batches, until they hold CHUNK_RECORDS."""
    if not result.check_assignment(result._topic_partition) or not result.has_more():
        return []
    parsed = result._partition_records
    taken: list[Run | Passed] = []
    count, through = 0, parsed.next_fetch_offset
    while count < CHUNK_RECORDS:
        run = next(parsed, None)
        if run is None:
            result._partition_records = None
            break
        taken.append(run)
        count += run.count
        through = run.offset + 1
    if parsed.next_fetch_offset > through:
        taken.append(Passed(parsed.next_fetch_offset))
    result._assignment.state_value(result._topic_partition).consumed_to(parsed.next_fetch_offset)
    return taken


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """The thread that fetches."""

    last_heartbeat = 0.0
    silent_s = 0.0
    """How long the group has not answered a heartbeat; 0 where none is due."""
    _beating: tuple[Any, float] = (None, 0.0)
    """The task that beats, and since when: who has just been taken in was confirmed by that, however long the join took."""

    _brought = 0
    """Records of the last fetch that was asked for."""

    def _create_worker_consumer(self, transport: Any) -> aiokafka.AIOKafkaConsumer:
        consumer = super()._create_worker_consumer(transport)
        # Hard-coded 1500 in Faust (drivers/aiokafka.py:615); ListOffsets and seeks queue behind a waiting fetch.
        consumer._fetch_max_wait_ms = FETCH_MAX_WAIT_MS
        consumer._isolation_level = "read_committed"
        return consumer

    async def on_start(self) -> None:
        self._asked = asyncio.Event()
        self.furthest: dict[Any, int] = {}
        """By partition: the furthest offset that was asked for since the last seek."""
        self.begun_anew: set[Any] = set()
        """Where less was asked for since: aiokafka begins a log anew that ends before what was asked for."""
        await super().on_start()
        fetcher = self._ensure_consumer()._fetcher
        fetcher._records = _Fetched(fetcher._records)
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
        """Fetches when it is asked for, but in a backlog, where the next fetch is under way while one is worked on.

        aiokafka fetches ahead, and then nothing until that is taken: what came first, one tick, would keep what comes meanwhile waiting.
        """
        if self._brought < SMALL_FETCH:
            try:
                await self._asked.wait()
            except asyncio.CancelledError:
                return False                                             # as aiokafka's own does: it asks for the result
        self.consumer.pace.fetching()  # type: ignore[attr-defined]
        self._pass_own(*request)
        return await fetch(*request)

    def _pass_own(self, assignment: Any, _: int, request: Any) -> None:
        """Moves a request on, and the positions with it, to behind what was delivered without a fetch; notices where it asks for less than the last did."""
        passed = self.consumer.own.passed  # type: ignore[attr-defined]
        for topic, partitions in request.topics:
            for place, (partition, offset, size) in enumerate(partitions):
                tp = TopicPartition(topic, partition)
                first, end = passed.pop(tp, (0, 0))
                if first <= offset < end:
                    assignment.state_value(tp).seek(end)
                    partitions[place] = partition, end, size
                    offset = end
                if offset < self.furthest.get(tp, 0):
                    self.begun_anew.add(tp)
                else:
                    self.furthest[tp] = offset

    async def _fetch_records(self, *args: Any, **kwargs: Any) -> Any:
        self._asked.set()
        try:
            fetched = await super()._fetch_records(*args, **kwargs | {"max_records": None})       # of all partitions together; `_take` has one of each
        finally:
            self._asked.clear()
        self._brought = sum(run.count for runs in fetched.values() for run in runs)
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
            self.furthest.pop(tp, None)
            self.begun_anew.discard(tp)
            if tp in self.assignment():
                consumer.seek(TopicPartition(tp.topic, tp.partition), offset)

    def trouble(self, limit_s: float) -> str:
        """Why the group membership is gone or in doubt; empty where all is well.

        Faust reads the fetcher past aiokafka's own error check (drivers/aiokafka.py:1088; the check is aio-libs/aiokafka#294), so a fatal coordinator error
        would hang the worker silently.
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


class Pace:
    """How long reading pauses after a fetch, which costs the same whatever it brings: long while nobody waits, briefly while a second is due to close, and
    COMPANY_S where frames have arrived at the broker that an agent here waits for.

    Args:
        lateness_ms: how long after its end a second closes.
    """

    def __init__(self, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._arrived = asyncio.Event()
        self._closed: dict[int, float] = {}
        self._lags: deque[int] = deque(maxlen=CLOSINGS_KEPT)
        """Of the last closings: milliseconds after a second's end and `lateness_ms`."""
        self._shift_ms = 0
        self._backlog = -BACKLOG_S
        """When a fetch last brought many records."""
        self.partitions: set[int] = set()
        """Of `ticks.raw`, those that are read."""

    def _since_due(self, timestamp: int) -> int:
        """Milliseconds since a second became due at this time (epoch ms): by the last closings, since sources lag, and their clocks differ."""
        return (timestamp - self._lateness_ms - self._shift_ms) % 1_000

    def _open(self, partition: int) -> bool:
        return time.monotonic() - self._closed.get(partition, -CLOSED_S) >= CLOSED_S

    @property
    def catching_up(self) -> bool:
        """Whether a fetch has brought many records within the last BACKLOG_S."""
        return time.monotonic() - self._backlog < BACKLOG_S

    async def let_pass(self, count: int) -> None:
        """Gives others so many turns, but in a backlog: there it only keeps work from who has most of it."""
        if count and not self.catching_up:
            await turns(count)

    def awaited(self, partition: int, first: int, last: int) -> bool:
        """Whether ticks of a partition that arrived from `first` to `last` (epoch ms) should go to `clean` at once: they may close a second that is open."""
        since = self._since_due(last)
        return (since < CLOSING_MS or since <= last - first) and self._open(partition)

    def closed(self, partition: int) -> None:
        """A second of this partition has closed."""
        self._closed[partition] = time.monotonic()
        if not self.catching_up:
            self._lags.append((time.time_ns() // 1_000_000 - self._lateness_ms) % 1_000)
            self._shift_ms = max(0, min(self._lags) - AHEAD_MS)

    def arrived(self) -> None:
        """Frames that an agent here waits for are at the broker."""
        self._arrived.set()

    def fetching(self) -> None:
        """A fetch goes out now: it brings what has arrived so far."""
        self._arrived.clear()

    async def after(self, count: int) -> None:
        """Pauses after so many records have come; where none have, waiting for them was the pause."""
        if not count or count >= SMALL_FETCH:
            if count:
                self._backlog = time.monotonic()
            await asyncio.sleep(0)
            return
        since = self._since_due(time.time_ns() // 1_000_000)
        pause = min(PACE_S, (1_000 - since) / 1_000)
        if since < CLOSING_MS and any(map(self._open, self.partitions)):
            pause = CLOSING_PACE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._arrived.wait()
                if not self.catching_up:
                    await asyncio.sleep(COMPANY_S)


class Consumer(driver.Consumer):
    """Reads chunks; see the module's docstring."""

    app: Any
    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.guard = Guard()
        self.own = Own()
        self._held: dict[TP, Sequence[Any]] = {}
        self._held_since: dict[TP, float] = {}
        self._delivered: dict[TP, list[int]] = defaultdict(list)
        self._begins: dict[TP, int] = {}
        self._through: dict[TP, int] = {}
        """The offset that follows all that was fetched, what is no record included; before anything was, where reading began."""
        self.epoch = 0
        """Counts the assignments, for chunks of an earlier one that are still under way."""
        self._seeking = False
        super().__init__(*args, **kwargs)
        self.guard.on_hole = getattr(self.app, "on_hole", None)
        self.pace = Pace(self.app.settings.lateness_ms)

    def _new_consumer_thread(self) -> Any:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)

    @property
    def thread(self) -> ConsumerThread:
        return self._thread

    # -- where to read ------------------------------------------------------

    def let_go(self) -> None:
        """The assignment is over: what of it is still under way, a chunk or a takeover, is of no use any more."""
        self.epoch += 1
        self.own.forget()

    async def perform_seek(self) -> None:
        """Puts every partition where its state says; without one, at the log's beginning (Faust: the group's commit, faust-streaming/faust#502).

        Faust calls this when recovery is done and before the flow resumes. Where it takes too long Faust drops it and would go on from anywhere: we leave.
        """
        begun = now_s()
        try:
            await self._seek_to_state()
        except asyncio.CancelledError:
            if now_s() - begun >= 0.95 * self.app.conf.broker_request_timeout:
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"taking over the partitions took {now_s() - begun:.1f} s, too long for the group")
            raise

    async def _seek_to_state(self) -> None:
        self.epoch = epoch = self.epoch + 1
        self._seeking = True
        assigned = {tp for tp in self.assignment() if not self._is_changelog_tp(tp)}
        self.own.forget()
        self._held.clear()
        self._held_since.clear()
        self._through.clear()
        self._delivered.clear()
        self._acked.clear()
        self._acked_index.clear()
        positions: Mapping[TP, int | None] = await self.app.positions(assigned)
        if epoch != self.epoch:
            return                                                       # cancelled for a newer assignment, which something awaited has swallowed
        known = {tp: offset for tp, offset in positions.items() if offset is not None and tp in assigned}
        unknown = [tp for tp in assigned if tp not in known]
        if unknown:
            # a number, not just "the beginning": what was fetched before the seek is then known to come too early
            known |= {tp: offset or 0 for tp, offset in (await self.earliest_offsets(*unknown)).items()}
        await self._thread.call_thread(self._thread.seek_all, known)
        if epoch != self.epoch:
            return
        self.guard.expected = {tp: known[tp] for tp in assigned}
        self._begins = {tp: known[tp] for tp in assigned}
        self._through = {tp: known[tp] for tp in assigned}
        self.pace.partitions = {tp.partition for tp in assigned if tp.topic == self.app.settings.topic("ticks.raw")}
        self.guard.probed.clear()
        self.pause_partitions({tp for tp in self.assignment() if self._is_changelog_tp(tp)})
        self._seeking = False

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """Asked by Faust's recovery alone, of changelogs: where they begin, so that it finds nothing to read. `tables.state` reads them."""
        return await self.earliest_offsets(*partitions)

    def at_end(self, tp: TP) -> bool:
        """Whether all that the log held of this partition when it was last asked (`polled`) was delivered."""
        expected = max(self.guard.expected.get(tp) or 0, self._through.get(tp, 0))
        if self._held.get(tp) or not self.flow_active:
            return False
        try:
            consumer = self._thread._ensure_consumer()
            partition = TopicPartition(tp.topic, tp.partition)
            stable, high = consumer.last_stable_offset(partition), consumer.highwater(partition)
        except Exception:  # noqa: BLE001  whatever aiokafka says of a partition that is not assigned just now
            return False
        end = stable if stable is not None and stable >= 0 else high
        return end is not None and expected >= end

    def polled(self, tp: TP) -> int:
        """When the broker last answered what it has of this partition (epoch ms, by the worker's clock); 0 where it never has."""
        with contextlib.suppress(Exception):
            return self._thread._ensure_consumer().last_poll_timestamp(TopicPartition(tp.topic, tp.partition)) or 0
        return 0

    def lag(self, tp: TP) -> int:
        """Records not delivered yet; 0 where the end is not known."""
        with contextlib.suppress(Exception):
            high = self._thread._ensure_consumer().highwater(TopicPartition(tp.topic, tp.partition))
            return max(0, (high or 0) - (self.guard.expected.get(tp) or 0))
        return 0

    # -- commits, for lag monitors only -------------------------------------

    def _new_offset(self, tp: TP) -> int | None:
        """Through the last chunk of the contiguous acknowledged prefix.

        Faust's own takes chunks for messages and commits past what is not acknowledged (faust-streaming/faust#606; consumer.py:1140).
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
        """Faust's check counts messages (and is wrong at times, faust-streaming/faust#175); ours are the guard and the watchdog."""

    # -- the loop -----------------------------------------------------------

    async def _drain_messages(self, fetcher: Any) -> None:
        gather_s = self.app.settings.gather_ms / 1000
        raw = self.app.settings.topic("ticks.raw")
        unguarded = {self.app.settings.topic("watchlist")}
        held, since = self._held, self._held_since
        try:
            while not (self._stopped.is_set() or fetcher._stopped.is_set()):
                now = time.monotonic()
                for tp in [tp for tp, begun in since.items() if now - begun >= gather_s and self.flow_active]:
                    since.pop(tp, None)
                    if tp in held:                                       # a seek meanwhile has dropped it
                        await self._deliver(tp, held.pop(tp))
                due = min(since.values(), default=None)
                timeout = 1.0 if due is None else max(0.001, due + gather_s - time.monotonic())
                fetched, _ = await self._meanwhile(self._wait_next_records(timeout))
                if not self.flow_active:
                    await self.sleep(0)
                    continue
                count, epoch = 0, self.epoch
                for tp, runs in self._furthest_first(fetched or {}):
                    count += sum(run.count for run in runs)
                    tp = tp if isinstance(tp, TP) else TP(tp.topic, tp.partition)
                    if self._is_changelog_tp(tp) or self._seeking or epoch != self.epoch:
                        continue                                         # read for the assignment before: the seek brings it again
                    before, self._through[tp] = self._through.get(tp, 0), runs[-1].offset + 1
                    expected = self.guard.expected.get(tp)
                    if expected is not None and runs[-1].offset < expected:
                        self._require_end(tp, before)
                        continue                                         # our own, which we have, unparsed
                    got = joined(run.records() for run in runs)
                    if not got:
                        continue                                         # markers, or what compaction has emptied
                    if tp.topic in unguarded:
                        self.guard.expected[tp] = got[-1].offset + 1
                    else:
                        got = await self._admit(tp, got, before)
                    if epoch != self.epoch:
                        continue
                    if not got:
                        continue
                    if tp.topic == raw and gather_s:
                        got = joined((held.pop(tp, []), got))
                        begun = since.pop(tp, time.monotonic())
                        awaited = self.pace.awaited(tp.partition, got[0].timestamp, got[-1].timestamp)
                        if len(got) < CHUNK_RECORDS // 4 and time.monotonic() - begun < gather_s and not awaited:
                            held[tp], since[tp] = got, begun
                            continue
                    await self._deliver(tp, got)
                await self._meanwhile(self.pace.after(count))
        except BaseException as error:
            if not self.transport.app.should_stop:
                # Faust takes a cancellation for a wish (transport/consumer.py:178), also one that comes out of aiokafka, and would read no more without a word
                with contextlib.suppress(FencedError):
                    self.app.fence.leave(f"reading ended: {type(error).__name__}: {error}")
                raise
            if not isinstance(error, (asyncio.CancelledError, *self.consumer_stopped_errors)):
                raise

    async def _admit(self, tp: TP, records: Sequence[Any], before: int) -> Sequence[Any]:
        admitted, back = self.guard.admit(tp, records)
        if back is not None:
            logger.warning("%s[%d]: %d came where %d must: reading again", tp.topic, tp.partition, records[-1].offset, back)
            self._through[tp] = back
            await self._thread.call_thread(self._thread.seek_all, {tp: back})
        elif not admitted:
            self._require_end(tp, before)
        return admitted

    def _require_end(self, tp: TP, fetched: int) -> None:
        """Leaves where all that came was known, and the topic ends before what was fetched or asked for already."""
        high = self._thread._ensure_consumer().highwater(TopicPartition(tp.topic, tp.partition))
        read = max(fetched, self._thread.furthest[tp] if tp in self._thread.begun_anew else 0)
        if high is not None and high < read and not self.app.embedded:
            self.app.fence.leave(f"{tp.topic}[{tp.partition}] ends at {high}, before {read} that was read: it was made again")

    # -- what this worker has written itself ----------------------------------

    def sent(self, tp: TP, handed: Handed) -> None:
        """Told of what was handed to the producer for a partition that agents here may read."""
        for confirmed, messages in handed:
            confirmed.add_done_callback(partial(self._confirmed, tp, self.epoch, messages))

    def _confirmed(self, tp: TP, epoch: int, messages: Sequence[Message], confirmed: asyncio.Future[Any]) -> None:
        taken = False
        if epoch == self.epoch and not (self._seeking or self.app.embedded or confirmed.cancelled() or confirmed.exception()):
            told = confirmed.result()
            taken = self.own.add(tp, self.guard.expected.get(tp), told.offset, told.timestamp, told.timestamp_type, messages)
        if not taken:
            self.pace.arrived()                                          # a fetch brings it

    async def _meanwhile(self, awaited: Awaitable[T]) -> T:
        """Waits, and delivers what comes of our own meanwhile."""
        task = asyncio.ensure_future(awaited)
        try:
            while True:
                await asyncio.wait((task, self.own.arrival()), return_when=asyncio.FIRST_COMPLETED)
                await self._deliver_own()
                if task.done():
                    return task.result()
        finally:
            if not task.done():
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    def _furthest_first(self, found: Mapping[Any, S]) -> list[tuple[Any, S]]:
        """By partition, in the order in which somebody waits for it."""
        last = {self.app.settings.topic("ticks.clean"): 1, self.app.settings.topic("ticks.raw"): 2}
        return sorted(found.items(), key=lambda item: last.get(item[0].topic, 0))

    async def _deliver_own(self) -> None:
        epoch = self.epoch
        for tp, records in self._furthest_first(self.own.take()):
            expected = self.guard.expected.get(tp)
            if epoch == self.epoch and not self._seeking and self.flow_active and expected is not None and records[0].offset <= expected:
                got = await self._admit(tp, records, 0)
                if got and epoch == self.epoch:
                    self.own.delivered(tp, got)
                    await self._deliver(tp, got)

    async def _deliver(self, tp: TP, records: Sequence[Any]) -> None:
        epoch = self.epoch
        for some in cut(records):
            if epoch == self.epoch:
                await self._deliver_chunk(tp, some)

    async def _deliver_chunk(self, tp: TP, records: Sequence[Any]) -> None:
        last = records[-1]
        self._delivered[tp].append(last.offset)
        begin, self._begins[tp] = self._begins.get(tp, -1), last.offset + 1
        message = ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp / 1000, last.timestamp_type, [], None,
            Chunk(tp.topic, tp.partition, records, self.epoch, begin), None, None, None, tp,  # type: ignore[arg-type]
            generation_id=self.app.consumer_generation_id,
        )  # fmt: skip
        if self._room_for(tp):
            await self.callback(message)                                 # at once: two tasks to watch over it would cost more than all else here
            if len(records) >= SMALL_FETCH:
                await turns(SEND_TURNS)                                  # worked on while it is near the processor, before the next is parsed
        else:
            await self.wait_first(self.callback(message), self.suspend_flow.wait())

    def _room_for(self, tp: TP) -> bool:
        """Whether nothing that Faust does on the way to the agents' queues would wait (transport/conductor.py)."""
        conductor = self.app.topics
        channels = conductor._tp_index.get(tp)
        return (
            bool(channels) and self.flow_active and self.app.flow_control.is_active() and not conductor._tp_to_callback_lock.locked()
            and not any(channel.queue.full() for channel in channels)
        )  # fmt: skip


aiokafka_batches: Any = sys.modules[DefaultRecordBatchBuilder.__module__]
"""The compiled module, or its twin in Python."""

if compiled.batches is not None:                                         # for the readers of state and the views' tails, which read as aiokafka does
    aiokafka_batches.lz4_decode, aiokafka_batches.zstd_decode = (partial(compiled.batches.decompressed, CODECS.index(name)) for name in ("lz4", "zstd"))


def compress_quickly() -> None:
    """Compresses by Arrow's zstd what this process produces, at a level that aiokafka has no setting for.

    It takes a message in one go: 0.6 of the time of aiokafka's over a frame of 600 kB. lz4 stays aiokafka's: Arrow links the blocks of a frame, and Kafka
    refuses that (KIP-57), for good.
    """
    text, numbers = pa.Codec("zstd", ZSTD_LEVEL), pa.Codec("zstd", ZSTD_LEVEL_NUMBERS)

    def zstd(data: bytes) -> bytes:
        middle = len(data) // 2
        codec = text if data[middle : middle + SAMPLE_BYTES].isascii() else numbers
        found: bytes = codec.compress(data, asbytes=True)
        return found

    aiokafka_batches.zstd_encode = zstd


def pieces_of(request: Any) -> list[bytes]:
    """A request to produce as `Struct.encode` has it, in pieces; no batch is copied."""
    *fields, (_, topics) = zip(request.SCHEMA.names, request.SCHEMA.fields, strict=True)
    topic_of = topics.array_of.fields[0]
    pieces = [field.encode(getattr(request, name)) for name, field in fields]
    pieces.append(Int32.encode(len(request.topics)))
    for topic, partitions in request.topics:
        pieces += topic_of.encode(topic), Int32.encode(len(partitions))
        for partition, batch in partitions:
            pieces += Int32.encode(partition), Int32.encode(len(batch)), batch
    return pieces


_send = AIOKafkaConnection.send


def send(connection: Any, request: Any, expect_response: bool = True) -> Any:
    """In the place of `AIOKafkaConnection.send`: a request to produce is put together once. That one copies its batches on five levels, and twice more."""
    writer = connection._writer
    if not isinstance(request, ProduceRequest) or not expect_response or writer is None:
        return _send(connection, request, expect_response)
    prepared = request.prepare(connection._versions)
    number = connection._next_correlation_id()
    pieces = [prepared.build_request_header(correlation_id=number, client_id=connection._client_id).encode(), *pieces_of(prepared)]
    try:
        writer.write(memoryview(b"".join([Int32.encode(sum(map(len, pieces))), *pieces])))  # a view: what does not go at once is cut off, not copied
    except OSError as error:
        connection.close(reason=CloseReason.CONNECTION_BROKEN)
        raise KafkaConnectionError(f"Connection at {connection._host}:{connection._port} broken: {error}") from error
    answer = connection._loop.create_future()
    connection._requests.append((number, prepared, answer))
    return wait_for(answer, connection._request_timeout)


AIOKafkaConnection.send = send


class Produce(SendProduceReqHandler):
    """aiokafka's handler of what the broker answers. Sequence numbers that it has refused count again: the next batch would come out of order else."""

    def handle_response(self, response: Any) -> None:
        """As aiokafka's."""
        manager = self._sender._txn_manager
        refused = {error.errno for error in REFUSED}
        for topic, partitions in response.topics if manager is not None else ():
            for partition, code, *_ in partitions:
                batch = self._batches.get(TopicPartition(topic, partition))
                if code in refused and batch is not None:
                    manager.increment_sequence_number(batch.tp, -batch.record_count)
        super().handle_response(response)


producer_sender.SendProduceReqHandler = Produce


def builder_for(accumulator: MessageAccumulator, key_serializer: None = None, value_serializer: None = None) -> Any:
    """In the place of `MessageAccumulator.create_builder`: the compiled builder, with aiokafka's settings. All that we send is bytes."""
    assert compiled.batches is not None
    kind = accumulator._compression_type
    encode = getattr(aiokafka_batches, f"{CODECS[kind]}_encode") if kind else None
    return compiled.batches.Builder(accumulator._batch_size, kind, encode)


class Producer(driver.Producer):
    """Idempotent: else retries duplicate and reorder, and no Faust setting reaches it (drivers/aiokafka.py:1323)."""

    app: Any

    def _settings_extra(self) -> Mapping[str, Any]:
        return producer_settings(self.app.settings, embedded=self.app.embedded)

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        compress_quickly()
        accumulator = producer._message_accumulator
        accumulator._batch_ttl = DELIVERY_S                              # aiokafka has one time for both, request_timeout_ms
        if compiled.batches is not None:
            accumulator.create_builder = partial(builder_for, accumulator)
        return producer

    @property
    def client(self) -> aiokafka.AIOKafkaProducer:
        return self._ensure_producer()

    def trouble(self) -> str:
        """Why nothing can be sent any more; empty where all is well."""
        sender = getattr(self._producer, "_sender", None)
        task = getattr(sender, "sender_task", None)
        return "the producer's sender ended" if task is not None and task.done() else ""


class Transport(driver.Transport):
    """Kafka through aiokafka, in chunks."""

    Consumer = Consumer
    Producer = Producer


async def watchdog(app: Any, interval_s: float = 0.25) -> None:
    """Leaves when the process stood still, the group membership is gone, or nothing can be sent. Runs until cancelled."""
    app.fence.heard = lambda: app.consumer.thread.last_heartbeat
    outage, reason = Outage("broker lost", "broker back after", logger.warning), ""
    while True:
        await asyncio.sleep(interval_s)
        try:
            app.fence.tick()
            crash = f"a part of the worker crashed: {app.crash_reason!r}" if app.crashed else ""     # robinhood/faust#684: it may hang then
            for why in (crash, app.consumer.thread.trouble(app.fence.limit_s), app.producer.trouble()):
                if why:
                    app.fence.leave(why)
            if app.consumer.thread.silent_s > LOST_S:
                reason = reason or last_fault() or "it does not answer"      # one for an outage: what clients say next follows from it
                outage.away(reason)
            else:
                reason = ""
                outage.back()
        except FencedError:
            return

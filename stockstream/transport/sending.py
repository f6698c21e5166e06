"""Sending: one producer for the worker, and one ordered pipe for each agent and partition."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import aiokafka
from aiokafka.errors import (
    CorruptRecordException,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    ReplicaNotAvailableError,
    StaleLeaderEpochCodeError,
)  # fmt: skip

from stockstream.errors import FencedError, StateError
from stockstream.kafka.client import MAX_BATCH_BYTES
from stockstream.set_aside import SetAside
from stockstream.skipped import shortened
from stockstream.transport.fence import Fence
from stockstream.transport.messages import VERSION_HEADER, Deliveries, Message, Outgoing

PIPE_DEPTH = 4
DELIVERY_S = 30.0
"""How long a batch is retried until the worker ends itself, from its first failure on. A broker that does not answer at all is waited for longer, with an
idempotent producer. A single request has a shorter timeout, so that a frozen broker is abandoned sooner."""
MESSAGE_BYTES = 100
"""An upper bound, in bytes, of the headers of a batch and a record with stockstream's version header."""
LOST_RECORDS = "the broker has lost confirmed records, as after an unclean leader election, or the topic was deleted and created again"
LEAST_OFFSET_HEADER = "least-offset"
ROOM_POLL_S = 0.05
REFUSED = (MessageSizeTooLargeError, RecordListTooLargeError)
RETRIABLE_TOO = (CorruptRecordException, ReplicaNotAvailableError, StaleLeaderEpochCodeError)
"""Kafka's protocol calls these retriable, and aiokafka does not: a batch damaged on its way, a replica that is not there yet, a network error (13)."""


def retriable(error: BaseException) -> bool:
    """Whether the same request can succeed later. Not a fence, a refusal, or an error that only a new producer can end."""
    return bool(getattr(error, "retriable", False)) or isinstance(error, RETRIABLE_TOO)


class Sender:
    """Sends through the worker's one producer. A future is done once the broker has confirmed all of its messages.

    A message that is too large for the broker is set aside, and the others are sent. Agents bound and split their messages, so this is a last resort. A
    state record that is too large raises `StateError`, because output without its state would be repeated.

    Args:
        producer: returns the worker's producer.
        fence: checked before each hand-over.
        sent: called with the futures of each hand-over and their messages.
        aside: lists the messages that were set aside.
        state_topics: the topics whose messages are state.
    """

    def __init__(
        self, producer: Callable[[], aiokafka.AIOKafkaProducer], fence: Fence, sent: Callable[[Outgoing, Deliveries], None] | None = None,
        aside: SetAside | None = None, state_topics: Collection[str] = (),
    ) -> None:  # fmt: skip
        self._producer, self._fence, self._sent = producer, fence, sent
        self._aside, self._state_topics = aside or SetAside(), state_topics
        self._locks: dict[tuple[str, int], asyncio.Lock] = {}
        self._ends: dict[tuple[str, int], int] = {}
        """By topic and partition: an offset that every later record must reach, because the log was seen to hold all before it."""

    def note_end(self, topic: str, partition: int, end: int) -> None:
        """Records that the log holds offsets up to `end`, exclusive. A later record below it ends the worker: the log has lost confirmed records."""
        self._ends[topic, partition] = max(end, self._ends.get((topic, partition), 0))

    async def send(self, out: Outgoing) -> list[asyncio.Future[Any]]:
        """Hands the messages to the producer in order; more than two go as batches. Returns one future per message or batch.

        Raises `FencedError` if the worker is ending, `StateError` if a state record is too large, a `KafkaError` that is not retriable, and after DELIVERY_S
        without room one that is.
        """
        producer = self._producer()
        if any(len(message.value) > MAX_BATCH_BYTES // 2 for message in out.messages):
            out = self._fitting(out)
        # aiokafka accepts a batch once the partition's last has left, in no fair order, and all of detect's pipes write one partition of `market`
        async with self._locks.setdefault((out.topic, out.partition), asyncio.Lock()):
            end = self._ends.get((out.topic, out.partition), 0)
            deliveries = await self._hand_over(producer, _with_end(out, end) if out.topic in self._state_topics else out)
        for confirmed, messages in deliveries:
            confirmed.add_done_callback(partial(self._refused, out, messages))
            confirmed.add_done_callback(partial(self._check_offset, out, len(messages), end))
        if self._sent is not None and deliveries:
            self._sent(out, deliveries)
        return [confirmed for confirmed, _ in deliveries]

    async def delete(self, topic: str, partition: int, keys: Sequence[bytes]) -> list[asyncio.Future[Any]]:
        """Hands messages without a value to the producer, which delete these keys of a compacted topic. Otherwise as `send`."""
        producer = self._producer()
        async with self._locks.setdefault((topic, partition), asyncio.Lock()):
            return [
                await self._room(partial(producer.send, topic, None, key=key, partition=partition, headers=[VERSION_HEADER])) for key in keys
            ]  # fmt: skip

    def _fitting(self, out: Outgoing) -> Outgoing:
        """Sets aside the messages that are too large, and returns the others. Raises `StateError` if one of them is state."""
        for message in out.messages:
            if _size(message) > MAX_BATCH_BYTES:
                self._set_aside(out, message, f"a message may have at most {MAX_BATCH_BYTES} bytes")
        return out._replace(messages=[message for message in out.messages if _size(message) <= MAX_BATCH_BYTES])

    def _refused(self, out: Outgoing, messages: Sequence[Message], confirmed: asyncio.Future[Any]) -> None:
        """Sets aside messages that the broker refuses because the topic's size limit is below ours. Retrying cannot succeed."""
        error = None if confirmed.cancelled() else confirmed.exception()
        if isinstance(error, REFUSED) and out.topic not in self._state_topics:
            if len(messages) > 1:
                error.again = asyncio.get_running_loop().create_task(self._by_halves(out, messages))
                return
            for message in messages:
                self._set_aside(out, message, f"the broker refuses it ({type(error).__name__}): set max.message.bytes of the topic to {MAX_BATCH_BYTES}")
            error.again = asyncio.get_running_loop().create_future()
            error.again.set_result(None)

    def _check_offset(self, out: Outgoing, count: int, end: int, confirmed: asyncio.Future[Any]) -> None:
        """Ends the worker if records are confirmed at an offset that the log had passed before they were sent."""
        if confirmed.cancelled() or confirmed.exception() is not None:
            return
        metadata = confirmed.result()
        if metadata is None or metadata.log_start_offset is None or metadata.log_start_offset < 0:
            return                                                       # a repeat that the broker had already: it reports no offset
        offset = metadata.offset
        if offset < end and not self._fence.left:
            with contextlib.suppress(FencedError):
                self._fence.leave(f"{out.topic}[{out.partition}]: offset {offset} was assigned again, the log had reached {end}: {LOST_RECORDS}")
        self.note_end(out.topic, out.partition, offset + count)

    async def _by_halves(self, out: Outgoing, messages: Sequence[Message]) -> None:
        """Sends a refused batch again in smaller batches, down to single messages, so that only messages that are too large are set aside."""
        size = len(messages) // 2 if len(messages) > 4 else 1            # single sends may still share a batch, so send one at a time
        for begin in range(0, len(messages), size):
            await delivered(await self.send(out._replace(messages=messages[begin : begin + size])))

    def _set_aside(self, out: Outgoing, message: Message, why: str) -> None:
        what = f"{_size(message)} bytes, key {shortened(repr(message.key), 80)}: {why}"
        if out.topic in self._state_topics:
            raise StateError(f"a state record for {out.topic}[{out.partition}] is too large: {what}")
        self._aside.add(out.topic, out.partition, -1, "send", "too large", what)

    async def _room(self, hand: Callable[[], Awaitable[asyncio.Future[Any]]]) -> asyncio.Future[Any]:
        """Waits up to DELIVERY_S for room in the producer's buffer, and for metadata of the topic; aiokafka itself gives up after one request timeout."""
        deadline = time.monotonic() + DELIVERY_S
        while True:
            self._fence.check()
            try:
                return await hand()
            except KafkaError as error:
                if time.monotonic() >= deadline or not (retriable(error) or isinstance(error, KafkaTimeoutError)):
                    raise
            await asyncio.sleep(ROOM_POLL_S)

    async def _hand_over(self, producer: aiokafka.AIOKafkaProducer, out: Outgoing) -> Deliveries:
        if len(out.messages) <= 2:
            return [
                (await self._room(partial(
                    producer.send, out.topic, message.value, key=message.key, partition=out.partition, headers=[VERSION_HEADER, *message.headers]
                )), [message])
                for message in out.messages
            ]  # fmt: skip
        deliveries: Deliveries = []
        batch, first = producer.create_batch(), 0
        now = int(time.time() * 1000)
        for number, message in enumerate(out.messages):
            headers = [VERSION_HEADER, *message.headers]
            while batch.append(key=message.key, value=message.value, timestamp=now, headers=headers) is None:
                if not batch.record_count():
                    raise ValueError(f"a message of {len(message.value)} bytes for {out.topic} is larger than the limit of {MAX_BATCH_BYTES} bytes")
                deliveries.append((await self._room(partial(producer.send_batch, batch, out.topic, partition=out.partition)), out.messages[first:number]))
                batch, first = producer.create_batch(), number
        batch.close()
        deliveries.append((await self._room(partial(producer.send_batch, batch, out.topic, partition=out.partition)), out.messages[first:]))
        return deliveries


def _with_end(out: Outgoing, end: int) -> Outgoing:
    """The messages, each with the lowest offset that it can get in a log that has lost nothing. A log that reaches `end` gives them that one or more."""
    return out._replace(messages=[
        message._replace(headers=(*message.headers, (LEAST_OFFSET_HEADER, str(end + number).encode()))) for number, message in enumerate(out.messages)
    ])  # fmt: skip


def misplaced(record: Any) -> bool:
    """Whether a state record has a lower offset than its writer had reason to expect: the log has lost records that its writer counts on."""
    return any(name == LEAST_OFFSET_HEADER and value.isdigit() and record.offset < int(value) for name, value in record.headers)


def _size(message: Message) -> int:
    """An upper bound of the bytes that a message takes in a batch."""
    size = len(message.value) + len(message.key or b"") + MESSAGE_BYTES
    for name, value in message.headers:
        size += len(name) + len(value) + 10
    return size


async def delivered(futures: Sequence[asyncio.Future[Any]]) -> None:
    """Waits until the broker has confirmed all messages. Those that it refused count once `Sender` has sent them again or set them aside."""
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
class _Step:
    sends: Sequence[Outgoing]
    records: Outgoing | None
    stored: Callable[[int, int], None] | None
    delivered: Callable[[], None] | None


class Pipe:
    """The ordered output of one agent for one partition. It sends results, waits for confirmation, then writes the state records that account for them.

    `submit` waits only while PIPE_DEPTH steps wait to be sent; as many more may wait for confirmation. A failed send ends the worker, and the next one
    resumes from the stored state.
    """

    def __init__(self, sender: Sender, fence: Fence, name: str) -> None:
        self._sender, self._fence, self.name = sender, fence, name
        self._closed = False
        self._gone = asyncio.Event()
        self._steps: asyncio.Queue[_Step] = asyncio.Queue(PIPE_DEPTH)
        self._submit_lock = asyncio.Lock()                               # `Queue.put` lets a newcomer overtake a caller that was woken but has not run yet
        self._sent: asyncio.Queue[tuple[_Step, list[asyncio.Future[Any]]]] = asyncio.Queue(PIPE_DEPTH)
        self._tasks = [asyncio.create_task(self._guarded(work), name=f"{name} {work.__name__}") for work in (self._send, self._confirm)]

    async def submit(
        self, sends: Sequence[Outgoing] = (), records: Outgoing | None = None,
        stored: Callable[[int, int], None] | None = None, delivered: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Queues one step: send `sends`, wait for confirmation, write `records` (state), then call `stored` and `delivered`. A closed pipe ignores it.

        Steps run in the order of the calls, also if several callers wait.
        `stored` is called with the first and last offset of the records, -1 where the broker did not report them.
        """
        async with self._submit_lock:
            if not self._closed:
                await self._steps.put(_Step(sends, records, stored, delivered))

    async def drain(self) -> None:
        """Waits until every submitted step is confirmed and its state written, or the pipe is closed."""
        gone = asyncio.create_task(self._gone.wait())
        drained = asyncio.create_task(self._drained())
        try:
            await asyncio.wait((gone, drained), return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
            drained.cancel()

    async def _drained(self) -> None:
        await self._steps.join()
        await self._sent.join()

    async def close(self, timeout_s: float) -> None:
        """Drains for at most `timeout_s` seconds, then drops the rest. The next owner repeats it from the stored state."""
        self._closed = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._drained()
        self._gone.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        while not self._steps.empty():
            self._steps.get_nowait()                                      # releases callers that wait in `submit`

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except FencedError:
            return
        except Exception as error:  # noqa: BLE001  any failure ends the process, with the reason
            with contextlib.suppress(FencedError):
                self._fence.leave(f"{self.name}: {type(error).__name__}: {error}")
        finally:
            self._gone.set()                                             # releases callers that wait in `drain`

    async def _send(self) -> None:
        while True:
            step = await self._steps.get()
            futures: list[asyncio.Future[Any]] = []
            for out in step.sends:
                futures += await self._sender.send(out)
            await self._sent.put((step, futures))
            self._steps.task_done()

    async def _confirm(self) -> None:
        while True:
            step, futures = await self._sent.get()
            if futures:
                await delivered(futures)
            if step.records is not None and step.records.messages:
                written = await asyncio.gather(*await self._sender.send(step.records))
                if step.stored is not None:
                    offsets = [metadata.offset for metadata in written]
                    step.stored(min(offsets), max(offsets) + len(step.records.messages) - 1)
            if step.delivered is not None:
                step.delivered()
            self._sent.task_done()

"""Reads what the views show from Kafka, on every worker, without a consumer group.

All partitions of `windows` (from five minutes back), `predictions` and `outcomes` (ten seconds), and of `alerts`, `latest`, `symbols`, `watchlist`,
`feeds`, `sources` and `gaps` (from the beginning). So any worker answers for any symbol. A message that cannot be read is counted, and logged once for
each reason. While the broker does not answer, the reader retries; the log and `state` report it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError, FrameError, StockstreamError, TopicError
from stockstream.kafka.client import client_options
from stockstream.metrics import Metrics
from stockstream.records import WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.skipped import shortened
from stockstream.transforms.frames import Assembler, received
from stockstream.transforms.timing import WINDOW_S
from stockstream.versions import NewerMessages
from stockstream.web.live import Live
from stockstream.wording import counted

log = logging.getLogger(__name__)

POLL_MS = 500
QUIET_S = 3.0
"""After this long without a message, a request checks that the broker answers, because a consumer reports no lost broker."""

ANSWER_S, CLOSE_S = 5.0, 2.0
RETRY_S = (0.5, 1.0, 2.0, 5.0)
MAX_RECORDS = 1_000
"""The most records of one poll."""
AT_ONCE = 50
"""Records that are processed before other tasks get their turn: about 5 ms of alerts, the slowest kind."""

State = Literal["stopped", "connecting", "reading", "reconnecting"]


@dataclass(frozen=True, slots=True)
class Reach:
    """How far back a topic is read: `seconds` before now, None for the beginning. If the broker cannot look up offsets by time, at most `records` per
    partition."""

    seconds: float | None
    records: int = 0


REACH: dict[str, Reach] = {
    "symbols": Reach(None),
    "watchlist": Reach(None),
    "feeds": Reach(None),
    "sources": Reach(None),
    "gaps": Reach(None),
    "latest": Reach(None),
    "alerts": Reach(None),
    "windows": Reach(WINDOW_S, 2_000),
    "predictions": Reach(10, 20_000),
    "outcomes": Reach(10, 1_000),
}
"""`records`: a few sources' frames of five minutes; ten seconds of 2,000 symbols a partition."""

OF_SOURCES = {"watchlist": "watch", "feeds": "feed", "sources": "report"}
"""Topics of keyed messages about sources, and the methods of `SourceReports` that take them."""

T = TypeVar("T")


async def _within(seconds: float, answer: Awaitable[T]) -> T:
    async with asyncio.timeout(seconds):
        return await answer


async def _close(consumer: Consumer) -> None:
    """Stops a consumer in a task of its own, so that its errors and cancellations do not reach the caller."""
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait({stopping}, timeout=CLOSE_S)
    if not stopping.done():
        stopping.cancel()
    elif not stopping.cancelled() and (error := stopping.exception()) is not None:
        log.debug("the views' consumer failed to close: %r", error)


class _KafkaConsumer(AIOKafkaConsumer):
    async def stop(self) -> None:
        try:
            await super().stop()
        except asyncio.CancelledError:
            await self._client.close()      # aio-libs/aiokafka#647: `Fetcher.close` lets the cancellation of its own requests out, the client stays open
            raise


class Consumer(Protocol):
    """The used part of `AIOKafkaConsumer`."""

    async def start(self) -> None: ...
    async def stop(self) -> None: ...
    async def topics(self) -> set[str]: ...
    def assign(self, partitions: list[Any]) -> None: ...
    def partitions_for_topic(self, topic: str) -> set[int] | None: ...
    async def beginning_offsets(self, partitions: list[Any]) -> Mapping[Any, int]: ...
    async def end_offsets(self, partitions: list[Any]) -> Mapping[Any, int]: ...
    async def offsets_for_times(self, timestamps: dict[Any, int]) -> Mapping[Any, Any]: ...
    def seek(self, partition: Any, offset: int) -> None: ...
    async def position(self, partition: Any) -> int: ...
    async def getmany(self, *, timeout_ms: int, max_records: int) -> Mapping[Any, Sequence[Any]]: ...


class Tail:
    """Feeds a `Live`. `start()` returns at once; `stop()` is safe at any time and more than once."""

    def __init__(
        self,
        settings: Settings,
        live: Live,
        metrics: Metrics,
        *,
        consumer: Callable[[], Consumer] | None = None,
        now: Callable[[], float] = time.time,
        retry_s: Sequence[float] = RETRY_S,
        quiet_s: float = QUIET_S,
    ) -> None:
        self._settings, self._live, self._metrics = settings, live, metrics
        self._new_consumer = consumer or self._kafka_consumer
        self._now, self._retry_s, self._quiet_s = now, retry_s, quiet_s
        self._names = {settings.topic(name): name for name in REACH}
        self._targets: dict[TopicPartition, int] = {}
        self._assemblers: dict[int, Assembler] = {}
        self._unreadable: dict[str, int] = {}
        self._logged: set[tuple[str, str]] = set()
        self._newer = NewerMessages(metrics.newer_message)
        self._task: asyncio.Task[None] | None = None
        self.state: State = "stopped"
        self.reason = ""

    async def start(self) -> None:
        """Begins to read in the background."""
        if self._task is None:
            self.state = "connecting"
            self._task = asyncio.create_task(self._run(), name="web-tail")

    async def stop(self) -> None:
        """Stops reading. Returns once the consumer is closed."""
        task, self._task = self._task, None
        while task is not None and not task.done():
            task.cancel()       # more than once: `wait_for` of Python 3.11, which aiokafka uses, can swallow a cancellation
            await asyncio.wait({task}, timeout=2 * CLOSE_S)
        self.state = "stopped"

    @property
    def caught_up(self) -> bool:
        """Whether everything that the topics held at the start has been read."""
        return self.state == "reading" and not self._targets

    def ready(self) -> tuple[bool, str]:
        """Whether the views show what the topics hold, and the state as text."""
        if self.caught_up:
            return True, "reading"
        if self.state == "reading":
            return False, f"the views are still reading {counted(len(self._targets), 'partition')}"
        return False, f"the views' reader is {self.state}" + (f": {self.reason}" if self.reason else "")

    def summary(self) -> dict[str, Any]:
        """For `/api/pipeline`: `state`, `reason`, `behind` (partitions not read through once), `unreadable` messages by topic."""
        return {"state": self.state, "reason": self.reason, "behind": len(self._targets), "unreadable": dict(self._unreadable)}

    async def _run(self) -> None:
        attempt = 0
        while True:
            try:
                await self._read()
            except (KafkaError, StockstreamError, OSError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                if self.state == "reading" or reason != self.reason:
                    log.warning("the views cannot read their topics and will retry: %s", reason)
            except asyncio.CancelledError:
                if (task := asyncio.current_task()) is None or task.cancelling():
                    raise
                reason = "a request was cancelled by the client library"
                log.warning("the views' reader restarts: %s", reason)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                log.exception("the views' reader failed and will retry")       # an unexpected error must not end the views
            attempt = 0 if self.state == "reading" else attempt + 1
            self.state, self.reason = "reconnecting", reason
            await asyncio.sleep(self._retry_s[min(attempt, len(self._retry_s) - 1)])

    async def _read(self) -> None:
        consumer = self._new_consumer()
        try:
            await _within(2 * ANSWER_S, consumer.start())
            partitions = await self._assign(consumer)
            await self._seek(consumer, partitions)
            if self.state == "reconnecting":
                log.info("the views' reader is back")
            self.state, self.reason = "reading", ""
            await self._poll(consumer)
        finally:
            await _close(consumer)

    async def _assign(self, consumer: Consumer) -> list[TopicPartition]:
        """Assigns all partitions. It lists all topics first, because a request for a missing topic would create it on some brokers."""
        missing = sorted(self._names.keys() - await _within(ANSWER_S, consumer.topics()))
        if missing:
            raise TopicError(f"waiting for the topics {', '.join(missing)}")
        consumer.assign([TopicPartition(topic, 0) for topic in self._names])        # makes the consumer request their metadata
        deadline = asyncio.get_running_loop().time() + ANSWER_S
        while not all(consumer.partitions_for_topic(topic) for topic in self._names):
            if asyncio.get_running_loop().time() > deadline:
                raise BrokerError("the broker returned no metadata of the topics")
            await asyncio.sleep(0.02)
        partitions = [TopicPartition(topic, p) for topic in self._names for p in sorted(consumer.partitions_for_topic(topic) or ())]
        consumer.assign(partitions)
        return partitions

    async def _seek(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        """Seeks as far back as at the start, also after a lost connection: `Live` ignores repeats, and the topics may have been created again."""
        first = await _within(2 * ANSWER_S, consumer.beginning_offsets(partitions))
        end = await _within(2 * ANSWER_S, consumer.end_offsets(partitions))
        by_time = await self._by_time(consumer, partitions)
        for partition in partitions:
            reach = REACH[self._names[partition.topic]]
            begin, after = first[partition], end[partition]
            start = begin if reach.seconds is None else max(begin, after - reach.records)
            if partition in by_time:
                found = by_time[partition]
                start = after if found is None else found
            start = min(max(start, begin), max(after, begin))
            consumer.seek(partition, start)
            if start < after:
                self._targets[partition] = after
            else:
                self._targets.pop(partition, None)

    async def _by_time(self, consumer: Consumer, partitions: list[TopicPartition]) -> dict[TopicPartition, int | None]:
        """Offsets by time, None for a partition without such new records. Empty if the broker cannot look up offsets by time."""
        now_ms = int(self._now() * 1_000)
        wanted = {}
        for partition in partitions:
            seconds = REACH[self._names[partition.topic]].seconds
            if seconds is not None:
                wanted[partition] = now_ms - int(seconds * 1_000)
        try:
            found = await _within(2 * ANSWER_S, consumer.offsets_for_times(dict(wanted)))
        except (KafkaError, TimeoutError, OSError) as error:
            log.info("this broker cannot look offsets up by time (%s): the views read a bounded number of records instead", str(error) or type(error).__name__)
            return {}
        return {partition: None if place is None else place.offset for partition, place in found.items()}

    async def _poll(self, consumer: Consumer) -> None:
        loop = asyncio.get_running_loop()
        active_at = loop.time()
        while True:
            fetched = await consumer.getmany(timeout_ms=POLL_MS, max_records=MAX_RECORDS)
            for partition, records in fetched.items():
                topic = self._names[partition.topic]
                for first in range(0, len(records), AT_ONCE):
                    for record in records[first : first + AT_ONCE]:
                        self._take(topic, partition.partition, record)
                    await asyncio.sleep(0)
                self._advance(partition, records[-1].offset + 1)
            if not fetched:
                for partition in list(self._targets):
                    self._advance(partition, await _within(ANSWER_S, consumer.position(partition)))     # past transaction markers, which are not delivered
            if fetched:
                active_at = loop.time()
            elif loop.time() - active_at >= self._quiet_s:
                try:
                    await _within(ANSWER_S, consumer.topics())
                except (KafkaError, OSError, TimeoutError) as error:
                    raise BrokerError(f"the broker does not answer: {str(error) or type(error).__name__}") from error
                active_at = loop.time()

    def _advance(self, partition: TopicPartition, position: int) -> None:
        target = self._targets.get(partition)
        if target is not None and position >= target:
            del self._targets[partition]

    def _take(self, topic: str, partition: int, record: Any) -> None:
        value: bytes | None = record.value
        self._newer.look(topic, record)
        try:
            if topic == "symbols":
                if not record.key:
                    raise FrameError("a message without key")
                self._live.metadata(record.key.decode(), value)
            elif topic in OF_SOURCES:
                getattr(self._live.sources, OF_SOURCES[topic])(record.key or b"", value)
            elif value is None:
                if topic != "latest":
                    raise FrameError("an empty message")
            elif topic == "windows":
                frame = self._assemblers.setdefault(partition, Assembler()).feed(received(value, WINDOWS_SCHEMA, record.timestamp))
                if frame is not None:
                    self._live.frame(partition, frame)
            elif topic == "predictions":
                self._live.prediction(value)
            elif topic == "outcomes":
                forgotten = self._live.outcomes_forgotten
                self._live.outcomes(value)
                if self._live.outcomes_forgotten > forgotten:
                    self._metrics.outcomes_forgotten(self._live.outcomes_forgotten - forgotten)
            elif topic == "alerts":
                self._live.alert(value)
            elif topic == "gaps":
                self._live.gaps.put(value)
            else:
                self._live.latest(value)
        except Exception as error:  # noqa: BLE001  no error of one message may stop the reader
            self._count_unreadable(topic, partition, record.offset, error)

    def _count_unreadable(self, topic: str, partition: int, offset: int, error: Exception) -> None:
        self._unreadable[topic] = self._unreadable.get(topic, 0) + 1
        reason = type(error).__name__
        self._metrics.unreadable(topic, reason)
        if (topic, reason) not in self._logged:
            self._logged.add((topic, reason))
            what = shortened(f"{reason}: {error}")
            log.warning("the views cannot read offset %d of %s[%d]: %s; further messages like it are only counted", offset, topic, partition, what)

    def _kafka_consumer(self) -> Consumer:
        consumer: Consumer = _KafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=POLL_MS
        )
        return consumer

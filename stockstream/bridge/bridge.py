"""Reads a foreign topic and publishes its ticks to `ticks.raw`: each batch of ticks in one transaction with the offsets up to which it was read.

So a bridge that is killed at any moment resumes where its last committed transaction ends: nothing is lost and nothing comes twice. A broker without
transactions (the demo's) gets the ticks first and the offsets after them: what was between the two comes twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import difflib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidProducerEpoch,
    KafkaError,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedVersionError,
)  # fmt: skip

from stockstream.bridge.mapping import Counts, ForeignRecord, Mapped, Mapper
from stockstream.bridge.offsets import Place, Position, create_offsets_topic, offsets_topic, read_offsets
from stockstream.errors import BrokerError, DeliveryError, FencedError, SourceError, TopicError
from stockstream.kafka.admin import connect, ensure_topics, is_embedded, producer_options
from stockstream.kafka.client import client_options, end_offsets
from stockstream.kafka.merging import Merge
from stockstream.settings import Settings
from stockstream.transforms.partitioning import home_partition
from stockstream.versions import HEADERS
from stockstream.wording import one_line

BATCH = 5_000
"""Foreign records of one transaction, at most."""
POLL_MS = 200
TRANSACTION_MS = 30_000
"""After which the broker aborts a transaction of a bridge that is gone: until then it holds back what follows in `ticks.raw`."""
BROKER_TIMEOUT_S = 10.0
TRANSACTIONS_TIMEOUT_S = 30.0
QUIET_S = 1.0
"""A partition that has brought nothing while it was polled for so long is at its end, whatever offsets its transactions take."""
PARTITIONS_S = 10.0
"""How often the foreign cluster is asked for the topic's partitions: there may be new ones, and an outage shows."""
COMMIT_S = 5.0
"""How often the group's offsets are committed, for tools that show its lag; the bridge itself does not read them."""
UNUSABLE = 100
"""Messages of which none could be used, after which the bridge gives up: the format is wrong."""
RETRY_S = (1.0, 2.0, 5.0, 10.0)

_encode = msgspec.json.Encoder().encode


@dataclass(slots=True)
class State:
    """What the bridge has done so far. `place` and `transactional` are known once it has started."""

    counts: Counts = field(default_factory=Counts)
    place: Place | None = None
    transactional: bool = True
    started: float = 0.0
    lag: int = 0
    deleted: int = 0
    """Foreign records that retention had deleted before they were read."""
    partitions: int = 0
    trouble: str = ""


class Bridge:
    """Brings one foreign topic.

    Args:
        settings: of the own cluster.
        foreign: the same, with the foreign cluster's brokers.
        topic: the foreign topic.
        mapper: makes ticks of its messages.
        group: names the bridge: one of the same group resumes where the last one stopped.
        latest: begin at the topic's end where nothing was brought yet.
        until_end: stop at the end that the topic has at the start.
        report: prints a line for a person.
    """

    def __init__(
        self, settings: Settings, foreign: Settings, topic: str, mapper: Mapper, *, group: str, latest: bool = False, until_end: bool = False,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:  # fmt: skip
        self._settings, self._foreign, self._topic, self._mapper = settings, foreign, topic, mapper
        self._group, self._latest, self._until_end, self._report = group, latest, until_end, report
        self._target = settings.topic("ticks.raw")
        self._ends: dict[int, int] = {}
        self._consumer: Any = None
        self._producer: Any = None
        self._embedded = False
        self.state = State()
        self.stopping = asyncio.Event()

    async def run(self) -> None:
        """Runs until `stopping` is set or, with `until_end`, the end is reached. A broker that goes away later is waited for.

        Raises:
            BrokerError: no broker answers at the start.
            TopicError: the foreign topic is missing, or was created anew.
            FencedError: another bridge of the group has taken over.
            SourceError: the messages are of another format.
        """
        self._embedded = await ensure_topics(self._settings, timeout_s=BROKER_TIMEOUT_S)
        await create_offsets_topic(self._settings, timeout_s=BROKER_TIMEOUT_S)
        cluster = await self._foreign_cluster()
        self.state.place = Place(self._group, cluster, self._topic)
        attempt, before = 0, -1
        while True:
            try:
                if await self._attempt(self.state.place):
                    return
            except (ProducerFenced, InvalidProducerEpoch) as error:
                raise FencedError(
                    f"another bridge of the group {self._group} brings {self._topic} now, or the broker did not confirm for {TRANSACTION_MS // 1000} s"
                ) from error
            except (KafkaError, BrokerError, DeliveryError, OSError, TimeoutError) as error:
                if not self.state.started:
                    raise BrokerError(f"the bridge cannot start: {_words(error)}") from error
                attempt = 0 if self.state.counts.messages > before else attempt + 1
                before = self.state.counts.messages
                pause = RETRY_S[min(attempt, len(RETRY_S) - 1)]
                self.state.trouble = _words(error)
                self._report(f"{self.state.trouble}; trying again in {pause:g} s")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self.stopping.wait(), pause)
                    return

    # -- what is there --------------------------------------------------------

    async def _foreign_cluster(self) -> str:
        """The foreign cluster's id; the topic is there. Metadata of all topics is asked for, because brokers may create a topic that is asked for by name."""
        try:
            admin = await connect(self._foreign, timeout_s=BROKER_TIMEOUT_S)
        except BrokerError as error:
            raise BrokerError(str(error).replace("(STOCKSTREAM_BROKER)", "(--from)")) from error
        try:
            topics = await admin.list_topics()
            cluster = str((await admin.describe_cluster()).get("cluster_id") or "")
        except KafkaError as error:
            raise BrokerError(f"{self._foreign.broker} does not answer: {_words(error)}") from error
        finally:
            await admin.close()
        if self._topic not in topics:
            shown = sorted(name for name in topics if not name.startswith("__"))
            near = difflib.get_close_matches(self._topic, shown, 1)
            there = f"did you mean {near[0]}?" if near else f"its topics: {', '.join(shown[:8]) or 'none'}{' ...' if len(shown) > 8 else ''}"
            raise TopicError(f"there is no topic {self._topic} at {self._foreign.broker}; {there}")
        if self._topic == self._target and cluster and cluster == await self._own_cluster():
            raise TopicError(f"{self._topic} is the topic that the bridge writes to: name another with --from")
        return cluster

    async def _own_cluster(self) -> str:
        admin = await connect(self._settings, timeout_s=BROKER_TIMEOUT_S)
        try:
            return str((await admin.describe_cluster()).get("cluster_id") or "")
        finally:
            await admin.close()

    # -- one life of its clients ------------------------------------------------

    async def _attempt(self, place: Place) -> bool:
        """Opens the clients, and brings messages until it is stopped (true) or must open them anew."""
        try:
            await self._open_producer(place)
            # after the producer has fenced the one before, and so ended its transaction
            known = await read_offsets(self._settings, place)
            self._consumer = AIOKafkaConsumer(
                **client_options(self._foreign), group_id=self._group, enable_auto_commit=False, auto_offset_reset="none", isolation_level="read_committed",
                fetch_max_wait_ms=POLL_MS,
            )  # fmt: skip
            await self._consumer.start()
            return await self._bring(place, known)
        finally:
            for client in (self._consumer, self._producer):
                if client is not None:
                    with contextlib.suppress(KafkaError, OSError, TimeoutError, AssertionError):
                        await asyncio.wait_for(client.stop(), BROKER_TIMEOUT_S)
            self._consumer = self._producer = None

    async def _open_producer(self, place: Place) -> None:
        options = await producer_options(self._settings, timeout_s=BROKER_TIMEOUT_S)
        self.state.transactional = False
        if not self._embedded:
            transactional = {"transactional_id": place.transactional_id, "transaction_timeout_ms": TRANSACTION_MS}
            self._producer = AIOKafkaProducer(**options, **transactional)
            try:
                await asyncio.wait_for(self._producer.start(), TRANSACTIONS_TIMEOUT_S)
                self.state.transactional = True
                return
            except (UnsupportedVersionError, TransactionalIdAuthorizationFailed, ClusterAuthorizationFailedError, TopicAuthorizationFailedError) as error:
                reason = f"the broker refuses transactions ({type(error).__name__})"
                with contextlib.suppress(KafkaError, OSError, TimeoutError):
                    await asyncio.wait_for(self._producer.stop(), BROKER_TIMEOUT_S)
        else:
            reason = "the embedded broker has no transactions"
        if not self.state.started:
            self._report(f"{reason}: if the bridge is killed, the last ticks come twice")
        self._producer = AIOKafkaProducer(**options)
        await self._producer.start()

    async def _bring(self, place: Place, known: dict[int, int]) -> bool:
        """Brings messages until the bridge is stopped or, with `until_end`, at the end; false: the topic has new partitions."""
        next_offset = await self._begin(place, known)
        merge: Merge[ForeignRecord] = Merge(next_offset)
        silent = dict.fromkeys(next_offset, 0.0)
        self.state.started = self.state.started or time.monotonic()
        self.state.partitions = len(next_offset)
        searched = committed = time.monotonic()
        while not self.stopping.is_set():
            await self._poll(merge, silent)
            records = merge.take(BATCH, await self._behind(merge, silent))
            if records:
                await self._publish(place, records, next_offset)
                self.state.trouble = ""
            for partition in merge.partitions:
                if merge.empty(partition):                                   # beyond the last message there may be marks of transactions
                    next_offset[partition] = await self._consumer.position(TopicPartition(self._topic, partition))
            self.state.lag = self._lag(next_offset)
            if self._until_end and all(next_offset[partition] >= end for partition, end in self._ends.items()):
                break
            now = time.monotonic()
            if now - searched > PARTITIONS_S:
                searched = now
                if await self._foreign_partitions() != sorted(next_offset):
                    return False
            if now - committed > COMMIT_S:
                committed = now
                await self._commit(next_offset)
        await self._commit(next_offset)
        if self._until_end and not self.state.counts.ticks and self.state.counts.rejected:
            raise self._unusable()
        return True

    async def _begin(self, place: Place, known: dict[int, int]) -> dict[int, int]:
        """Assigns all partitions, each from where it resumes, and returns these offsets by partition. Where a partition begins is stored at once."""
        consumer, topic = self._consumer, self._topic
        places = [TopicPartition(topic, partition) for partition in await self._foreign_partitions()]
        begins, ends = await self._foreign_range(places)
        consumer.assign(places)
        at: dict[int, int] = {}
        for partition in begins:
            latest = self._latest and not self.state.started
            at[partition] = known.get(partition, ends[partition] if latest else begins[partition])
            if at[partition] > ends[partition]:
                raise TopicError(
                    f"{topic}[{partition}] ends at offset {ends[partition]}, before {at[partition]}, where the group {self._group} stopped: "
                    "the topic was created anew; use another --group"
                )
            if (deleted := begins[partition] - at[partition]) > 0:
                self.state.deleted += deleted
                self._report(f"{topic}[{partition}]: {deleted:,} messages were deleted before they were read")
                at[partition] = begins[partition]
            consumer.seek(TopicPartition(topic, partition), at[partition])
        if not self.state.started:
            self._ends = ends
        if new := {partition: offset for partition, offset in at.items() if partition not in known}:
            await self._in_transaction(place, (), new)
        return at

    async def _foreign_partitions(self) -> list[int]:
        admin = await connect(self._foreign, timeout_s=BROKER_TIMEOUT_S)
        try:
            (found,) = await admin.describe_topics([self._topic])
        finally:
            await admin.close()
        return sorted(partition["partition"] for partition in found["partitions"])

    async def _foreign_range(self, places: Sequence[TopicPartition]) -> tuple[dict[int, int], dict[int, int]]:
        """Where the foreign partitions begin and end."""
        consumer = AIOKafkaConsumer(**client_options(self._foreign), group_id=None, enable_auto_commit=False, isolation_level="read_committed")
        await consumer.start()
        try:
            begins = await consumer.beginning_offsets(places)
            ends = await end_offsets(consumer, places, embedded=await is_embedded(self._foreign, timeout_s=BROKER_TIMEOUT_S))
        finally:
            await consumer.stop()
        return {place.partition: begin for place, begin in begins.items()}, {place.partition: end for place, end in ends.items()}

    async def _poll(self, merge: Merge[ForeignRecord], silent: dict[int, float]) -> None:
        """Reads what has come, of partitions of which not enough waits. `silent` gets how long each was polled in vain, in seconds."""
        wanted = [TopicPartition(self._topic, partition) for partition in merge.partitions if not merge.full(partition)]
        full = [TopicPartition(self._topic, partition) for partition in merge.partitions if merge.full(partition)]
        self._consumer.pause(*full)
        self._consumer.resume(*wanted)
        began = time.monotonic()
        found = await self._consumer.getmany(*wanted, timeout_ms=POLL_MS, max_records=BATCH) if wanted else {}
        took = time.monotonic() - began
        for place in wanted:
            records = found.get(place, [])
            silent[place.partition] = 0.0 if records else silent[place.partition] + took
            merge.add(place.partition, records)

    async def _behind(self, merge: Merge[ForeignRecord], silent: dict[int, float]) -> list[int]:
        """Partitions of which records may still come that are older than those that wait: not read to their end, as far as it is known."""
        behind: list[int] = []
        for partition in merge.partitions:
            place = TopicPartition(self._topic, partition)
            ends = [end for end in (self._consumer.last_stable_offset(place), self._consumer.highwater(place)) if end is not None and end >= 0]
            if silent[partition] < QUIET_S and (not ends or await self._consumer.position(place) < min(ends)):
                behind.append(partition)
        return behind

    def _lag(self, next_offset: dict[int, int]) -> int:
        ends = {partition: self._consumer.highwater(TopicPartition(self._topic, partition)) for partition in next_offset}
        return sum(max(0, (end or 0) - next_offset[partition]) for partition, end in ends.items())

    # -- a batch ------------------------------------------------------------------

    async def _publish(self, place: Place, records: Sequence[ForeignRecord], next_offset: dict[int, int]) -> None:
        """Sends the ticks of these records and the offsets after them."""
        counts, ticks = Counts(), list[Mapped]()
        reached: dict[int, int] = {}
        for record in records:
            ticks += self._mapper.read(record, counts)
            reached[record.partition] = record.offset + 1
        total = self.state.counts
        total.add(counts)
        if total.ticks:
            await self._in_transaction(place, ticks, reached)
        elif sum(total.rejected.values()) >= UNUSABLE and not total.filtered:
            raise self._unusable()
        next_offset.update(reached)                                          # before the first tick they are not stored: with another format all is read again

    async def _in_transaction(self, place: Place, ticks: Sequence[Mapped], reached: dict[int, int]) -> None:
        if not self.state.transactional:
            await self._send_ticks(ticks)
            await self._send_offsets(place, reached)
            return
        await self._producer.begin_transaction()
        try:
            await self._send_ticks(ticks)
            await self._send_offsets(place, reached)
        except BaseException:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(self._producer.abort_transaction(), BROKER_TIMEOUT_S)
            raise
        await self._producer.commit_transaction()

    async def _send_ticks(self, ticks: Sequence[Mapped]) -> None:
        producer, partitions = self._producer, self._settings.partitions
        waiting = [
            await producer.send(self._target, value, key=symbol.encode(), partition=home_partition(symbol, partitions), headers=HEADERS)
            for symbol, value in ticks
        ]
        await self._confirmed(waiting)

    async def _send_offsets(self, place: Place, reached: dict[int, int]) -> None:
        topic = offsets_topic(self._settings)
        await self._confirmed(
            [await self._producer.send(topic, _encode(Position(at)), key=place.key(number), partition=0, headers=HEADERS) for number, at in reached.items()]
        )

    async def _confirmed(self, waiting: Sequence[Any]) -> None:
        for confirmation in waiting:
            try:
                await confirmation
            except (ProducerFenced, InvalidProducerEpoch):
                raise
            except KafkaError as error:
                raise DeliveryError(f"the broker did not confirm ticks: {_words(error)}") from error

    async def _commit(self, next_offset: dict[int, int]) -> None:
        """Commits the group's offsets at the foreign cluster. A failure harms nothing but the lag that tools show."""
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            offsets = {TopicPartition(self._topic, partition): at for partition, at in next_offset.items()}
            await asyncio.wait_for(self._consumer.commit(offsets), BROKER_TIMEOUT_S)

    def _unusable(self) -> SourceError:
        counts = self.state.counts
        example = counts.examples[0]
        return SourceError(
            f"none of the first {counts.messages} messages of {self._topic} can be used, nothing was brought: "
            f"{self._topic}[{example.partition}] offset {example.offset}: {example.reason}: {example.detail}; is --format right?"
        )


def _words(error: BaseException) -> str:
    return one_line(error) or type(error).__name__

"""Which errors of aiokafka end a delivery at once, and which are tried again, and for how long."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import aiokafka.errors
import pytest
from aiokafka import TopicPartition
from aiokafka.errors import BrokerResponseError, KafkaError, LeaderNotAvailableError, NodeNotReadyError, NotLeaderForPartitionError
from aiokafka.producer import message_accumulator
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.producer.transaction_manager import TransactionManager
from aiokafka.protocol.produce import ProduceRequest

from stockstream.transport import patches
from stockstream.transport.fence import Fence
from stockstream.transport.messages import Message, Outgoing
from stockstream.transport.patches import Batch, Produce
from stockstream.transport.sending import DELIVERY_S, RETRIABLE_TOO, Sender

PLACE = TopicPartition("t", 3)
KINDS: set[type[Any]] = {error for error in vars(aiokafka.errors).values() if isinstance(error, type) and issubclass(error, KafkaError)}
ERRORS = sorted(KINDS - {BrokerResponseError}, key=lambda error: error.__name__)
DONE = {"NoError", "DuplicateSequenceNumber"}
"""Answers that are no failure: the log has the batch."""
RETRIED = {
    "Cancelled", "CorrelationIdError", "CorruptRecordException", "KafkaConnectionError",
    "GroupCoordinatorNotAvailableError", "GroupLoadInProgressError",
    "KafkaProtocolError", "KafkaStorageError", "LeaderNotAvailableError", "MetadataEmptyBrokerList", "NoBrokersAvailable", "NodeNotReadyError",
    "NotControllerError", "NotCoordinatorForGroupError", "NotEnoughReplicasAfterAppendError", "NotEnoughReplicasError", "NotLeaderForPartitionError",
    "ReplicaNotAvailableError", "RequestTimedOutError", "StaleLeaderEpochCodeError", "StaleMetadata", "TooManyInFlightRequests",
    "UnknownTopicOrPartitionError",
}  # fmt: skip


class Leaders:
    """The cluster's metadata, whose leaders the test sets."""

    leader: int | None = 1

    def leader_for_partition(self, _: TopicPartition) -> int | None:
        return self.leader


class Broker:
    """A client whose broker gives one answer, an error class, to each produce request."""

    def __init__(self) -> None:
        self.answer: type[KafkaError] = aiokafka.errors.NoError
        self.updates = 0

    def force_metadata_update(self) -> None:
        self.updates += 1

    async def _maybe_wait_metadata(self) -> None:
        pass

    async def send(self, _node: int, _request: ProduceRequest) -> Any:
        if not hasattr(self.answer, "errno"):                             # the client's own
            raise self.answer
        return SimpleNamespace(API_VERSION=7, topics=[(PLACE.topic, [(PLACE.partition, self.answer.errno, 5, -1, 0)])])


class Line:
    """aiokafka's accumulator and our handler, with or without idempotence."""

    def __init__(self, *, idempotent: bool) -> None:
        manager = TransactionManager(None, 0) if idempotent else None
        if manager is not None:
            manager.set_pid_and_epoch(1, 0)
        self.leaders, self.broker = Leaders(), Broker()
        self.accumulator = MessageAccumulator(self.leaders, 1_000_000, 0, DELIVERY_S, txn_manager=manager)
        self._sender = SimpleNamespace(
            _txn_manager=manager, client=self.broker, _acks=-1, _request_timeout_ms=5_000, _message_accumulator=self.accumulator, _retry_backoff=0.0
        )  # fmt: skip

    async def send(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await self.accumulator.add_message(PLACE, b"k", b"v", 1.0)
        return future

    async def attempt(self) -> None:
        """What aiokafka's sender does in one turn."""
        nodes, _ = self.accumulator.drain_by_nodes(ignore_nodes=set())
        for node, batches in nodes.items():
            await Produce(self._sender, batches).do(node)


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(patches, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(message_accumulator, "time", SimpleNamespace(monotonic=clock))
    monkeypatch.setattr(message_accumulator, "MessageBatch", Batch)
    return clock


@pytest.mark.parametrize("idempotent", [True, False], ids=["idempotent", "plain"])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
async def test_only_what_cannot_succeed_later_ends_a_delivery_at_once(error: type[KafkaError], idempotent: bool, clock: Clock) -> None:
    """Also of a batch that has waited for longer than its time to live before its first failure, and metadata are asked for where they may be old."""
    line = Line(idempotent=idempotent)
    future = await line.send()
    clock.now += 2 * DELIVERY_S
    line.broker.answer = error
    await line.attempt()
    if error.__name__ in DONE:
        assert future.exception() is None
    elif error.__name__ not in RETRIED:
        assert future.done() and future.exception() is not None
    else:
        assert not future.done()
        assert line.broker.updates == int(error.invalid_metadata)
        clock.now += DELIVERY_S - 1
        await line.attempt()
        assert not future.done()
        line.broker.answer = aiokafka.errors.NoError
        await line.attempt()
        assert future.result().offset == 5


@pytest.mark.parametrize("error", [NodeNotReadyError, LeaderNotAvailableError, *RETRIABLE_TOO], ids=lambda error: error.__name__)
async def test_an_idempotent_producer_waits_for_its_broker_and_all_else_ends_with_the_time_to_live(error: type[KafkaError], clock: Clock) -> None:
    for idempotent in (True, False):
        line = Line(idempotent=idempotent)
        line.broker.answer = error
        future = await line.send()
        for _ in range(4):
            await line.attempt()
            clock.now += DELIVERY_S
        if idempotent and error not in RETRIABLE_TOO:
            assert not future.done()
        else:
            assert isinstance(future.exception(), error)


@pytest.mark.parametrize("leader", [-1, None])
async def test_a_partition_without_a_leader_is_waited_for_however_long_the_broker_was_away(leader: int | None, clock: Clock) -> None:
    """A broker that has just come back knows no leaders for a moment."""
    line = Line(idempotent=True)
    future = await line.send()
    line.broker.answer = NodeNotReadyError
    for _ in range(3):
        await line.attempt()
        clock.now += DELIVERY_S
    for known in (leader, 1, leader):                                    # each time without a leader is measured by itself
        line.leaders.leader = known
        await line.attempt()
        clock.now += DELIVERY_S - 1
        await line.attempt()
        assert not future.done()
    clock.now += 2
    await line.attempt()
    assert isinstance(future.exception(), NotLeaderForPartitionError if leader is None else LeaderNotAvailableError)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
async def test_a_hand_over_is_tried_again_unless_it_cannot_succeed_later(error: type[KafkaError]) -> None:
    """aiokafka raises here what it learns from metadata, and the failure of the batch before."""
    failures = [error()]

    class Producer:
        async def send(self, *_: Any, **__: Any) -> asyncio.Future[None]:
            if failures:
                raise failures.pop()
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            future.set_result(None)
            return future

    sending = Sender(Producer, Fence(6.0)).send(Outgoing("t", 3, [Message(b"k", b"v")]))
    if error.__name__ in RETRIED | {"KafkaTimeoutError"}:
        await asyncio.gather(*await sending)
    else:
        with pytest.raises(error):
            await sending


def test_the_list_is_that_of_aiokafka_and_three_that_only_kafka_calls_retriable() -> None:
    assert {error.__name__ for error in ERRORS if error.retriable} == RETRIED - {error.__name__ for error in RETRIABLE_TOO}

"""Replacements for private parts of aiokafka. `install` puts them in place."""

from __future__ import annotations

import time
from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.errors import KafkaError
from aiokafka.producer import message_accumulator
from aiokafka.producer import sender as producer_sender
from aiokafka.producer.message_accumulator import MessageBatch
from aiokafka.producer.sender import SendProduceReqHandler

from stockstream.backoff import pause_failed_updates
from stockstream.transport.fetching import CoveredOffsets
from stockstream.transport.sending import REFUSED, retriable


def install() -> None:
    """Installs all replacements, once for the process. `create_app` calls it; nothing is replaced at import.

    Correctness needs each of them: sequence numbers of refused batches, the time for which a batch is tried again, pauses while a broker is unreachable, and
    the offsets that a fetched batch covers without a record.
    """
    pause_failed_updates()
    producer_sender.SendProduceReqHandler = Produce
    message_accumulator.MessageBatch = Batch
    fetcher.MemoryRecords = CoveredOffsets


class Batch(MessageBatch):
    """aiokafka's batch, whose time to live begins with the first failure, not with its creation.

    aiokafka gives a batch up that is older than that if its partition has no leader for a moment: after an outage, as soon as the broker is back.
    """

    failing_since: float | None = None

    def expired(self) -> bool:
        """Whether the time to live has passed since this was first asked; it is asked at each failure."""
        now = time.monotonic()
        if self.failing_since is None:
            self.failing_since = now
        return bool(now - self.failing_since > self._ttl)


class Produce(SendProduceReqHandler):
    """aiokafka's handler of produce responses.

    It takes back the numbers of a refused batch, since the next would be out of order. It tries again after every error that Kafka calls retriable.
    """

    def handle_response(self, response: Any) -> None:
        """Corrects the sequence numbers, then calls aiokafka's method."""
        manager = self._sender._txn_manager
        refused = {error.errno for error in REFUSED}
        for topic, partitions in response.topics if manager is not None else ():
            for partition, code, *_ in partitions:
                batch = self._batches.get(TopicPartition(topic, partition))
                if code in refused and batch is not None:
                    manager.increment_sequence_number(batch.tp, -batch.record_count)
        super().handle_response(response)

    def _can_retry(self, error: KafkaError, batch: Batch) -> bool:
        """As aiokafka's: an idempotent producer repeats without end what aiokafka calls retriable, and every other repetition ends with the time to live."""
        if self._sender._txn_manager is not None and error.retriable:
            batch.failing_since = None
            return True
        return retriable(error) and not batch.expired()

"""Replacements for private parts of aiokafka. `install` puts them in place."""

from __future__ import annotations

from typing import Any

from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.producer import sender as producer_sender
from aiokafka.producer.sender import SendProduceReqHandler

from stockstream.backoff import pause_failed_updates
from stockstream.transport.fetching import CoveredOffsets
from stockstream.transport.sending import REFUSED


def install() -> None:
    """Installs all replacements, once for the process. `create_app` calls it; nothing is replaced at import.

    Correctness needs each of them: sequence numbers of refused batches, pauses while a broker is unreachable, and the offsets that a fetched batch covers
    without a record.
    """
    pause_failed_updates()
    producer_sender.SendProduceReqHandler = Produce
    fetcher.MemoryRecords = CoveredOffsets


class Produce(SendProduceReqHandler):
    """aiokafka's handler of produce responses. It takes back the numbers of a refused batch, since the next would be out of order."""

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

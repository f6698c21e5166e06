"""Replacements for private parts of aiokafka. `install` puts them in place."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pyarrow as pa
from aiokafka import TopicPartition
from aiokafka.consumer import fetcher
from aiokafka.producer import sender as producer_sender
from aiokafka.producer.sender import SendProduceReqHandler
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stockstream.backoff import pause_failed_updates
from stockstream.transport.fetching import UnparsedBatches
from stockstream.transport.sending import REFUSED

ZSTD_LEVEL = -1
"""0.6 of the time of aiokafka's level 3 (the default of brokers), for a quarter more bytes, measured on a log's frames, predictions and outcomes."""
aiokafka_batches: Any = sys.modules[DefaultRecordBatchBuilder.__module__]
"""aiokafka's module of record batches, compiled or in Python as aiokafka was installed."""


def install(*, plain: bool = False) -> None:
    """Installs all replacements, once for the process. `create_app` calls it; nothing is replaced at import.

    If `plain`, it installs only those that correctness needs: sequence numbers of refused batches, pauses while a broker is unreachable, and the offsets
    that a fetched batch covers without a record.
    """
    pause_failed_updates()
    producer_sender.SendProduceReqHandler = Produce
    fetcher.MemoryRecords = UnparsedBatches
    if plain:
        return
    compress_quickly()


def compress_quickly() -> None:
    """Replaces aiokafka's zstd by Arrow's, at a level for which aiokafka has no setting.

    Arrow compresses a message in one call, in 0.6 of aiokafka's time for a frame of 600 kB. lz4 stays aiokafka's: Arrow links the blocks of an lz4 frame, and
    Kafka rejects linked blocks (KIP-57) at every retry.
    """
    aiokafka_batches.zstd_encode = partial(pa.Codec("zstd", ZSTD_LEVEL).compress, asbytes=True)


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

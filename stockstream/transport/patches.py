"""What stands in for private parts of aiokafka; put in by `install`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import pyarrow as pa
from aiokafka.consumer import fetcher
from aiokafka.producer.message_accumulator import MessageAccumulator
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from stockstream import accelerated
from stockstream.backoff import pause_failed_updates
from stockstream.transport.fetching import Batches

ZSTD_LEVEL = -1
"""Takes 0.6 of the time of aiokafka's level 3 (the default of brokers), for a quarter more bytes: measured on a log's frames, predictions and outcomes."""
ZSTD_LEVEL_NUMBERS = -7
"""For what is no text. Below 0, zstd tries one place in as many bytes as the level says and one more: eight are a number of a frame's column. Takes 0.78 of
the time of -1 over frames of `windows`, for a twentieth more bytes."""
SAMPLE_BYTES = 256
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
"""By their numbers in a batch's attributes."""
aiokafka_batches: Any = sys.modules[DefaultRecordBatchBuilder.__module__]
"""The compiled module, or its twin in Python."""


def install() -> None:
    """Puts everything in, once for the process: called by whoever makes the app, never at import."""
    fetcher.MemoryRecords = Batches
    pause_failed_updates()
    if accelerated.batches is not None:                                  # readers of state and the views read as aiokafka does
        aiokafka_batches.lz4_decode, aiokafka_batches.zstd_decode = (
            partial(accelerated.batches.decompressed, CODECS.index(name)) for name in ("lz4", "zstd")
        )


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


def builder_for(accumulator: MessageAccumulator, key_serializer: None = None, value_serializer: None = None) -> Any:
    """In the place of `MessageAccumulator.create_builder`: the compiled builder, with aiokafka's settings. All that we send is bytes."""
    assert accelerated.batches is not None
    kind = accumulator._compression_type
    encode = getattr(aiokafka_batches, f"{CODECS[kind]}_encode") if kind else None
    return accelerated.batches.Builder(accumulator._batch_size, kind, encode)

"""Options of Kafka clients: the connection to the brokers, and the guarantees of producers."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from stockstream.settings import Settings

MAX_BATCH_BYTES = 1_000_000
PRODUCER_LINGER_MS = 1


def tls_context(settings: Settings) -> ssl.SSLContext | None:
    """The TLS context for connections to the brokers; None if they use no TLS."""
    if "SSL" not in settings.security_protocol:
        return None
    return ssl.create_default_context(cafile=str(settings.ssl_cafile) if settings.ssl_cafile else None)


def client_options(settings: Settings) -> dict[str, Any]:
    """The connection options of an aiokafka client."""
    options: dict[str, Any] = {"bootstrap_servers": settings.bootstrap_servers, "security_protocol": settings.security_protocol}
    if "SSL" in settings.security_protocol:
        options["ssl_context"] = tls_context(settings)
    if settings.security_protocol.startswith("SASL"):
        options |= {
            "sasl_mechanism": settings.sasl_mechanism, "sasl_plain_username": settings.sasl_username,
            "sasl_plain_password": settings.sasl_password.get_secret_value(),
        }  # fmt: skip
    return options


def producer_settings(settings: Settings, *, embedded: bool) -> dict[str, Any]:
    """Guarantees and batching of every producer. Idempotence keeps retries from duplicating or reordering; the embedded broker lacks it."""
    options: dict[str, Any] = {
        "acks": "all", "enable_idempotence": not embedded, "linger_ms": PRODUCER_LINGER_MS, "max_batch_size": MAX_BATCH_BYTES,
        "compression_type": None if settings.compression == "none" else settings.compression,
    }  # fmt: skip
    return options


async def end_offsets(consumer: AIOKafkaConsumer, partitions: Sequence[TopicPartition], *, embedded: bool) -> dict[TopicPartition, int]:
    """The offset after the last record of each partition. `consumer` must have no group; its assignment and positions are overwritten.

    The embedded broker reports the first offset of the last batch plus one, so there the batch is read to its end.
    """
    ends: dict[TopicPartition, int] = dict(await consumer.end_offsets(list(partitions)))
    if embedded:
        started = [tp for tp, end in ends.items() if end > 0]
        consumer.assign(started)
        for tp in started:
            consumer.seek(tp, ends[tp] - 1)
        missing = set(started)
        while missing:
            for tp, records in (await consumer.getmany(*missing, timeout_ms=1_000)).items():
                ends[tp] = max(ends[tp], records[-1].offset + 1)
                missing.discard(tp)
    return ends


async def topic_ends(settings: Settings, topic: str, partitions: Sequence[int], *, embedded: bool) -> dict[int, int]:
    """The offset after the last record of these partitions of a topic."""
    return {number: end for number, (_, end) in (await topic_bounds(settings, topic, partitions, embedded=embedded)).items()}


async def topic_bounds(settings: Settings, topic: str, partitions: Sequence[int], *, embedded: bool) -> dict[int, tuple[int, int]]:
    """The first offset of these partitions of a topic, and the one after the last record."""
    if not partitions:
        return {}
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False, fetch_max_wait_ms=200)
    await consumer.start()
    try:
        places = [TopicPartition(topic, partition) for partition in partitions]
        begins = await consumer.beginning_offsets(places)
        ends = await end_offsets(consumer, places, embedded=embedded)
    finally:
        await consumer.stop()
    return {tp.partition: (begins[tp], end) for tp, end in ends.items()}

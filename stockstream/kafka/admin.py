"""Waits for a broker, creates the topics that are missing, and checks those that exist."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.conn import create_conn
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, for_code

from stockstream.errors import BrokerError, TopicError
from stockstream.kafka.client import MAX_BATCH_BYTES, client_options, producer_settings
from stockstream.kafka.embedded import CLUSTER_ID_PREFIX
from stockstream.kafka.outages import Outage
from stockstream.kafka.partition_counts import partition_fault
from stockstream.kafka.topic_configs import append_time, ensure_configs, message_bytes
from stockstream.settings import Settings
from stockstream.wording import one_line

logger = logging.getLogger(__name__)


DAY_MS = 86_400_000
STATE_TABLES = ("clean", "aggregate", "detect", "score")
LEDGERS = ("notify",)
"""Tables that hold no state of a core: what has been done outside Kafka."""
ONE_PARTITION = ("sources", "requests", "market")
REQUESTS_KEPT_DAYS = 3
"""How long the reservations of requests are kept: longer than the longest budget, a day."""
SEGMENT_BYTES = 16 * 1024 * 1024
COMPACTED = {"cleanup.policy": "compact", "segment.bytes": str(SEGMENT_BYTES), "min.cleanable.dirty.ratio": "0.1"}
NEW_TOPICS_S = 15.0
NEW_TOPICS_PAUSE_S = 0.05
MESSAGE_BYTES = 1_048_588
"""`max.message.bytes` of stockstream's topics: Kafka's default, set regardless of the broker's configuration."""
LEAST_MESSAGE_BYTES = MAX_BATCH_BYTES + 4_096
"""Room for a batch, its header, and what a codec adds to bytes that it cannot compress."""
RETRY_S = (0.5, 1.0, 2.0, 5.0)
"""Pauses between attempts to reach a broker; the last one repeats."""
PROBE_S = 5.0


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as stockstream creates it."""

    name: str
    partitions: int
    replication: int
    config: dict[str, str] = field(default_factory=dict)


def changelog(settings: Settings, table: str) -> str:
    """Name of a table's changelog topic."""
    return f"{settings.group}-{table}-changelog"


def topic_specs(settings: Settings) -> list[TopicSpec]:
    """Every topic in pipeline order, then the changelogs of the tables."""
    kept = {"retention.ms": str(settings.retention_raw_days * DAY_MS)}
    raw = kept | {append_time().name: append_time().value}
    derived = {"retention.ms": str(settings.retention_derived_days * DAY_MS)}
    state = COMPACTED | {"min.compaction.lag.ms": str(15 * 60 * 1000)}
    dead = COMPACTED | kept | {"cleanup.policy": "compact,delete"}
    requests = {"retention.ms": str(REQUESTS_KEPT_DAYS * DAY_MS), append_time().name: append_time().value}
    kinds = {
        "watchlist": COMPACTED, "symbols": COMPACTED, "feeds": COMPACTED, "sources": COMPACTED, "requests": requests, "gaps": kept, "repairs": kept,
        "ticks.raw": raw, "ticks.rejected": derived, "ticks.clean": kept, "windows": derived, "latest": COMPACTED,
        "market": derived, "alerts": derived, "alerts.dead": dead, "predictions": derived, "outcomes": derived,
    }  # fmt: skip
    shared = _shared(settings)
    specs = [
        TopicSpec(settings.topic(name), 1 if name in ONE_PARTITION else settings.partitions, settings.replication, config | shared)
        for name, config in kinds.items()
    ]
    return specs + [TopicSpec(changelog(settings, table), settings.partitions, settings.replication, state | shared) for table in (*STATE_TABLES, *LEDGERS)]


async def _admin(settings: Settings, request_timeout_ms: int) -> AIOKafkaAdminClient:
    admin = AIOKafkaAdminClient(**client_options(settings), request_timeout_ms=request_timeout_ms)
    try:
        await admin.start()
    except BaseException:
        await admin.close()
        raise
    return admin


@contextlib.contextmanager
def _silenced(name: str = "aiokafka") -> Iterator[None]:
    """Silences a library's log while the caller reports the error itself."""
    found = logging.getLogger(name)
    before = found.level
    found.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        found.setLevel(before)


async def connection_fault(settings: Settings) -> str:
    """Why no broker of the settings can be used, as text: for each host, the failure of its connection, TLS or login."""
    options = client_options(settings)
    found: dict[str, str] = {}
    for server in options.pop("bootstrap_servers"):
        host, _, port = server.rpartition(":")
        try:
            with _silenced():
                connection = await asyncio.wait_for(create_conn(host.strip("[]"), int(port), request_timeout_ms=int(PROBE_S * 1000), **options), PROBE_S + 1)
            connection.close()
            found[server] = "it answered the next request"
        except ssl.SSLError as error:
            found[server] = f"TLS failed ({getattr(error, 'verify_message', '') or error.reason or error})"
        except TimeoutError:
            found[server] = f"no answer within {PROBE_S:g} s"
        except (KafkaError, OSError) as error:
            found[server] = _reason_of(error, settings)
    reasons = set(found.values())
    return reasons.pop() if len(reasons) == 1 else "; ".join(f"{server}: {reason}" for server, reason in found.items())


def _reason_of(error: Exception, settings: Settings) -> str:
    text = one_line(error) or type(error).__name__
    if isinstance(error, OSError) and error.errno and error.errno > 0:
        return os.strerror(error.errno)                                  # asyncio's text repeats the address
    if "Connection at" in text and "closed" in text:
        return f"it closed the connection; check that it accepts {settings.security_protocol} (STOCKSTREAM_SECURITY_PROTOCOL)"
    if "Connect call failed" in text:
        return "Connection refused"
    return text


async def connect(settings: Settings, *, timeout_s: float | None = 30.0, waiting: Callable[[str], None] = lambda what: None) -> AIOKafkaAdminClient:
    """Connects an admin client. It retries with growing pauses for `timeout_s` seconds (None: forever), and logs each new reason and the recovery.

    `waiting` is called with what the start is waiting for, as text. Raises `BrokerError` after `timeout_s`.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    outage = Outage(f"waiting for a broker at {settings.broker}", "the broker answers, after", logger.warning)
    attempt = 0
    while True:
        try:
            with _silenced():
                admin = await _admin(settings, 10_000)
            outage.back()
            return admin
        except (KafkaError, OSError, TimeoutError) as error:
            reason = await connection_fault(settings)
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise BrokerError(f"no broker answers at {settings.broker} (STOCKSTREAM_BROKER): {reason}") from error
            waiting(outage.away(reason))
            pause = RETRY_S[min(attempt, len(RETRY_S) - 1)]
            attempt += 1
            await asyncio.sleep(pause if left is None else min(pause, left))


async def is_embedded(settings: Settings, *, timeout_s: float = 30.0) -> bool:
    """Whether the broker is the demo's embedded one. Raises `BrokerError`."""
    admin = await connect(settings, timeout_s=timeout_s)
    try:
        return _embedded(await admin.describe_cluster())
    finally:
        await admin.close()


def _embedded(cluster: dict[str, Any]) -> bool:
    return str(cluster.get("cluster_id") or "").startswith(CLUSTER_ID_PREFIX)


async def ensure_topics(settings: Settings, *, timeout_s: float | None = 60.0, waiting: Callable[[str], None] = lambda what: None) -> bool:
    """Creates missing topics; checks the partition counts of existing ones, and corrects their configuration.

    Returns whether the broker is the embedded one, which keeps the producers' timestamps regardless of the configuration.

    Retries while brokers are unreachable or too few for the replicas, forever if `timeout_s` is None. `waiting` is called with what the start is waiting
    for, as text. Raises `BrokerError` after `timeout_s` seconds, and `TopicError` on a wrong partition count.
    """
    loop = asyncio.get_running_loop()
    deadline = None if timeout_s is None else loop.time() + timeout_s
    outage = Outage("waiting to create the topics", "the topics are created, after", logger.warning)
    attempt = 0
    while True:
        admin = await connect(settings, timeout_s=None if deadline is None else max(0.5, deadline - loop.time()), waiting=waiting)
        try:
            embedded = _embedded(await admin.describe_cluster())
            specs = topic_specs(settings)
            found = set(await admin.list_topics())
            missing = [spec for spec in specs if spec.name not in found]
            await _check(settings, admin, [spec for spec in specs if spec.name in found])      # before topics are made that may then not fit either
            fault = await _create(admin, missing)
            if not fault:
                if missing and not embedded:
                    await _await_leaders(settings, admin, missing)
                if not embedded:
                    size, raw = message_bytes(LEAST_MESSAGE_BYTES, MESSAGE_BYTES), settings.topic("ticks.raw")
                    # check new topics too: another worker may have created one a moment ago
                    wanted = {spec.name: [size, append_time()] if spec.name == raw else [size] for spec in specs}
                    await ensure_configs(admin, wanted, ",".join(settings.bootstrap_servers))
                outage.back()
                return embedded
        except (KafkaError, OSError) as error:
            fault = f"{type(error).__name__}: {error}"
        finally:
            await admin.close()
        if deadline is not None and loop.time() >= deadline:
            raise BrokerError(f"cannot create the topics at {settings.broker}: {fault}")
        waiting(outage.away(fault))
        await asyncio.sleep(RETRY_S[min(attempt, len(RETRY_S) - 1)])
        attempt += 1


def compacted_config(settings: Settings) -> dict[str, str]:
    """The configuration of a compacted topic of ours."""
    return COMPACTED | _shared(settings)


def _shared(settings: Settings) -> dict[str, str]:
    """The part of the configuration that all topics have."""
    return {"min.insync.replicas": str(settings.insync_replicas), "max.message.bytes": str(MESSAGE_BYTES)}


async def create_topic(settings: Settings, spec: TopicSpec, *, timeout_s: float) -> None:
    """Creates a topic that is not one of `topic_specs`, unless it is there, and waits for its leaders. Raises `BrokerError`."""
    admin = await connect(settings, timeout_s=timeout_s)
    try:
        if spec.name in await admin.list_topics():
            return
        if fault := await _create(admin, [spec]):
            raise BrokerError(f"cannot create the topic {spec.name}: {fault}")
        if not _embedded(await admin.describe_cluster()):
            await _await_leaders(settings, admin, [spec])
    except KafkaError as error:
        raise BrokerError(f"cannot create the topic {spec.name}: {type(error).__name__}: {error}") from error
    finally:
        await admin.close()


async def _await_leaders(settings: Settings, admin: AIOKafkaAdminClient, specs: list[TopicSpec]) -> None:
    """Waits until all new partitions have a leader and the group has a coordinator. Until then brokers answer with errors."""
    with _silenced():
        consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False, request_timeout_ms=10_000)
        await consumer.start()
        try:
            async with asyncio.timeout(NEW_TOPICS_S):
                partitions = [TopicPartition(spec.name, number) for spec in specs for number in range(spec.partitions)]
                # `assign` requests metadata of all topics at once; `beginning_offsets` alone would request it for one topic after the other
                consumer.assign(partitions)
                await consumer.beginning_offsets(partitions)                 # retries while a partition has no leader
                while not await _has_coordinator(admin, settings.group):
                    await asyncio.sleep(NEW_TOPICS_PAUSE_S)
        except TimeoutError:
            logger.info("the new topics have no leaders after %g s; the start continues", NEW_TOPICS_S)
        finally:
            await consumer.stop()


async def _has_coordinator(admin: AIOKafkaAdminClient, group: str) -> bool:
    try:
        return bool(await admin.find_coordinator(group) >= 0)
    except KafkaError:
        return False


async def _create(admin: AIOKafkaAdminClient, specs: list[TopicSpec]) -> str:
    """Creates topics. Returns an error that a retry may resolve; empty if all topics exist."""
    if not specs:
        return ""
    new = [NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.config) for spec in specs]
    response = await admin.create_topics(new, timeout_ms=10_000)
    for name, code, *message in response.topic_errors:
        if code and for_code(code) is not TopicAlreadyExistsError:
            return f"{name}: {for_code(code).__name__} {message[0] if message else ''}".strip()
    made = [name for name, code, *_ in response.topic_errors if not code]
    if made:
        logger.info("%d topics created: %s", len(made), ", ".join(made))
    return ""


async def _check(settings: Settings, admin: AIOKafkaAdminClient, specs: list[TopicSpec]) -> None:
    if not specs:
        return
    wanted = {spec.name: spec.partitions for spec in specs}
    there = {topic["topic"]: len(topic["partitions"]) for topic in await admin.describe_topics(list(wanted)) if topic["error_code"] == 0}
    found = {name: there[name] for name in wanted if name in there}
    if fault := partition_fault(settings, found, wanted, changelog(settings, "clean")):
        raise TopicError(fault)


async def producer_options(settings: Settings, *, timeout_s: float = 30.0) -> dict[str, Any]:
    """All options of an `AIOKafkaProducer` outside Faust. Raises `BrokerError` if no broker answers within `timeout_s` seconds."""
    embedded = await is_embedded(settings, timeout_s=timeout_s)
    return client_options(settings) | producer_settings(settings, embedded=embedded) | {"request_timeout_ms": 30_000}

"""The brokers themselves: what our clients, and the faults that tests make, rely on."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError
from stockstream.kafka.embedded import CLUSTER_ID_PREFIX, EmbeddedBroker
from tests.kafka import KAFKA_FOLDER, Cluster, require_kafka
from tests.patience import PATIENCE_S

RECORDS = 200
CODECS = (None, "gzip", "snappy", "lz4", "zstd")


def servers(broker: Cluster | EmbeddedBroker) -> list[str]:
    return [server.removeprefix("kafka://") for server in broker.bootstrap.split(",")]


async def create(bootstrap: list[str], topic: NewTopic) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        answer = await admin.create_topics([topic])
        assert [error[1] for error in answer.topic_errors] == [0]
        deadline = time.monotonic() + PATIENCE_S
        while any(part["leader"] < 0 for part in (await admin.describe_topics([topic.name]))[0]["partitions"]):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    finally:
        await admin.close()


async def produce(bootstrap: list[str], topic: str, *, idempotent: bool, codec: str | None = None, first: int = 0) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=idempotent, compression_type=codec, request_timeout_ms=10_000)
    await producer.start()
    try:
        waiting = [await producer.send(topic, b"%d" % number, key=b"k%d" % number) for number in range(first, first + RECORDS)]
        await asyncio.wait_for(asyncio.gather(*waiting), PATIENCE_S)
    finally:
        await producer.stop()


async def consume(bootstrap: list[str], topic: str, count: int) -> list[int]:
    consumer = AIOKafkaConsumer(topic, bootstrap_servers=bootstrap, auto_offset_reset="earliest", enable_auto_commit=False, request_timeout_ms=10_000)
    await consumer.start()
    found: list[int] = []
    deadline = time.monotonic() + PATIENCE_S
    try:
        while len(found) < count and time.monotonic() < deadline:
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += [int(record.value) for record in records]
    finally:
        await consumer.stop()
    return sorted(found)


@pytest.mark.parametrize("codec", CODECS)
async def test_kafka_takes_every_codec(kafka: Cluster, prefix: str, codec: str | None) -> None:
    await create(kafka.bootstrap_servers, NewTopic(f"{prefix}t", 2, 1))
    await produce(kafka.bootstrap_servers, f"{prefix}t", idempotent=True, codec=codec)
    assert await consume(kafka.bootstrap_servers, f"{prefix}t", RECORDS) == list(range(RECORDS))


@pytest.mark.parametrize("codec", CODECS)
async def test_kafka_takes_large_messages_in_every_codec(kafka: Cluster, prefix: str, codec: str | None) -> None:
    """Large ones have several blocks: Kafka refuses an lz4 frame whose blocks are linked, again at every try."""
    await create(kafka.bootstrap_servers, NewTopic(f"{prefix}t", 1, 1, topic_configs={"message.timestamp.type": "LogAppendTime"}))
    value = msgspec.json.encode([{"symbol": f"S{number:05d}", "price": number / 8} for number in range(8_000)])
    assert len(value) > 200_000
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, acks="all", enable_idempotence=True, compression_type=codec, max_batch_size=1_000_000,
        request_timeout_ms=10_000,
    )  # fmt: skip
    await producer.start()
    try:
        await asyncio.wait_for(producer.send_and_wait(f"{prefix}t", value), PATIENCE_S)
    finally:
        await producer.stop()


@pytest.mark.parametrize("codec", CODECS)
async def test_the_embedded_broker_takes_every_codec(embedded: EmbeddedBroker, prefix: str, codec: str | None) -> None:
    await create(servers(embedded), NewTopic(f"{prefix}t", 2, 1, topic_configs={"cleanup.policy": "compact"}))
    await produce(servers(embedded), f"{prefix}t", idempotent=False, codec=codec)
    assert await consume(servers(embedded), f"{prefix}t", RECORDS) == list(range(RECORDS))


async def test_kafka_creates_no_topic_by_itself(kafka: Cluster, prefix: str) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, request_timeout_ms=2_000)
    await producer.start()
    try:
        with pytest.raises(KafkaError):
            await producer.send_and_wait(f"{prefix}nosuch", b"x")
    finally:
        await producer.stop()
    assert f"{prefix}nosuch" not in kafka.metadata().topics


async def partitions_of(cluster: Cluster, topic: str, count: int) -> dict[int, Any]:
    """The partitions of a new topic, all led; the node that is asked may hear of it later than the one that made it."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            partitions = cluster.metadata().topics.get(topic, {})
            if sum(partition.leader >= 0 for partition in partitions.values()) == count:
                return dict(partitions)
            await asyncio.sleep(0.1)


@pytest.mark.slow
async def test_a_killed_broker_is_survived_and_comes_back_in_sync(kafka3: Cluster, prefix: str) -> None:
    topic = f"{prefix}t"
    await create(kafka3.bootstrap_servers, NewTopic(topic, 3, 3))
    await produce(kafka3.bootstrap_servers, topic, idempotent=True)
    leader = (await partitions_of(kafka3, topic, 3))[0].leader
    await asyncio.to_thread(kafka3.kill, leader)
    assert kafka3.running() == [node for node in range(3) if node != leader]
    await produce(kafka3.bootstrap_servers, topic, idempotent=True, first=RECORDS)
    await asyncio.to_thread(kafka3.start_node, leader)
    await asyncio.to_thread(kafka3.wait_in_sync)
    assert await consume(kafka3.bootstrap_servers, topic, 2 * RECORDS) == list(range(2 * RECORDS))


@pytest.mark.slow
async def test_a_frozen_broker_is_survived_and_comes_back_in_sync(kafka3: Cluster, prefix: str) -> None:
    topic = f"{prefix}t"
    await create(kafka3.bootstrap_servers, NewTopic(topic, 3, 3))
    leader = (await partitions_of(kafka3, topic, 3))[0].leader
    kafka3.freeze(leader)
    others = [server for node, server in enumerate(kafka3.bootstrap_servers) if node != leader]
    await produce(others, topic, idempotent=True)
    await asyncio.to_thread(kafka3.heal)
    assert await consume(kafka3.bootstrap_servers, topic, RECORDS) == list(range(RECORDS))


@pytest.fixture
def zookeeper() -> Iterator[Cluster]:
    require_kafka("zookeeper")
    with Cluster(2, "zookeeper") as cluster:
        yield cluster


@pytest.mark.kafka
@pytest.mark.slow
async def test_kafka_3_with_zookeeper_as_in_the_owners_notes(zookeeper: Cluster) -> None:
    topic = "notes"
    await create(zookeeper.bootstrap_servers, NewTopic(topic, -1, -1, replica_assignments={0: [1, 2], 1: [2, 1]}))
    partitions = await partitions_of(zookeeper, topic, 2)
    assert {number: (part.leader, part.replicas) for number, part in partitions.items()} == {0: (0, (0, 1)), 1: (1, (1, 0))}
    await produce(zookeeper.bootstrap_servers, topic, idempotent=True)
    await asyncio.to_thread(zookeeper.kill, 1)
    await produce(zookeeper.bootstrap_servers, topic, idempotent=True, first=RECORDS)
    await asyncio.to_thread(zookeeper.heal)
    assert await consume(zookeeper.bootstrap_servers, topic, 2 * RECORDS) == list(range(2 * RECORDS))


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, f"{pids} are still there"
        time.sleep(0.05)


@pytest.mark.kafka
@pytest.mark.slow
def test_brokers_die_with_a_session_that_is_killed(tmp_path: Path) -> None:
    require_kafka()
    code = (
        "import sys, time; from cluster import Cluster; from pathlib import Path\n"
        f"cluster = Cluster(1, directory=Path({str(tmp_path)!r})); cluster.start(); print(cluster.pid(0), flush=True); time.sleep(600)"
    )
    environment = os.environ | {"PYTHONPATH": str(KAFKA_FOLDER)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as session:
        assert session.stdout is not None
        pid = int(session.stdout.readline())
        assert alive(pid)
        session.kill()
        session.wait()
    wait_until_gone([pid])


@pytest.mark.kafka
@pytest.mark.slow
def test_the_command_starts_continues_and_stops(tmp_path: Path) -> None:
    require_kafka()

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(KAFKA_FOLDER / "cluster.py"), *arguments, "--dir", str(tmp_path / "k")]
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)

    assert run("status").returncode == 1
    first = run("start", "--port", "0")
    try:
        assert first.returncode == 0, first.stderr
        assert first.stdout.startswith("kafka://127.0.0.1:")
        assert run("start").stdout == first.stdout
        asyncio.run(create([first.stdout.strip().removeprefix("kafka://")], NewTopic("kept", 1, 1)))
        status = run("status")
        assert (status.returncode, status.stdout.splitlines()[-1]) == (0, first.stdout.strip())
    finally:
        stopped = run("stop")
    assert stopped.returncode == 0
    assert "stopped 1 broker" in stopped.stderr
    refused = run("start", "--nodes", "3")
    assert (refused.returncode, refused.stderr.startswith("cluster: ")) == (1, True)
    code = (
        f"import os, sys; sys.path.insert(0, {str(KAFKA_FOLDER)!r}); import cluster\n"
        "print(list(cluster.ask_metadata(int(os.environ['STOCKSTREAM_BROKER'].rpartition(':')[2])).topics)); sys.exit(3)"
    )
    command = [sys.executable, str(KAFKA_FOLDER / "cluster.py"), "run", "--dir", str(tmp_path / "k"), "--", sys.executable, "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    assert (ran.returncode, ran.stdout) == (3, "['kept']\n"), ran.stderr
    assert run("status").returncode == 1


async def test_the_embedded_broker_can_be_told_from_kafka(embedded: EmbeddedBroker) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=servers(embedded))
    await admin.start()
    try:
        assert (await admin.describe_cluster())["cluster_id"] == embedded.cluster_id
    finally:
        await admin.close()
    assert embedded.cluster_id.startswith(CLUSTER_ID_PREFIX)


async def test_a_topic_deleted_on_the_embedded_broker_begins_anew(embedded: EmbeddedBroker, prefix: str) -> None:
    topic = f"{prefix}t"
    admin = AIOKafkaAdminClient(bootstrap_servers=servers(embedded))
    await admin.start()
    try:
        for _ in range(2):
            await create(servers(embedded), NewTopic(topic, 1, 1))
            producer = AIOKafkaProducer(bootstrap_servers=servers(embedded))
            await producer.start()
            assert (await producer.send_and_wait(topic, b"x", partition=0)).offset == 0
            await producer.stop()
            await admin.delete_topics([topic])
        assert topic not in await admin.list_topics()
    finally:
        await admin.close()


async def test_the_embedded_brokers_flaws_are_still_those_that_we_work_around(embedded: EmbeddedBroker, prefix: str) -> None:
    topic = f"{prefix}t"
    await create(servers(embedded), NewTopic(topic, 1, 1))
    idempotent = AIOKafkaProducer(bootstrap_servers=servers(embedded), enable_idempotence=True)
    with pytest.raises(KafkaError):
        await idempotent.start()
    await idempotent.stop()

    producer = AIOKafkaProducer(bootstrap_servers=servers(embedded), linger_ms=200)
    await producer.start()
    try:
        waiting = [await producer.send(topic, b"x", partition=0) for _ in range(10)]
        await asyncio.gather(*waiting)
        assert await producer.partitions_for(f"{prefix}nosuch") == {0, 1, 2, 3}
    finally:
        await producer.stop()

    consumer = AIOKafkaConsumer(bootstrap_servers=servers(embedded), auto_offset_reset="none")
    await consumer.start()
    place = TopicPartition(topic, 0)
    try:
        consumer.assign([place])
        assert (await consumer.end_offsets([place]))[place] == 1, "ListOffsets no longer answers the last batch's base + 1"
        consumer.seek(place, 0)
        assert len((await consumer.getmany(timeout_ms=5_000))[place]) == 10
        assert consumer.highwater(place) == 10
        consumer.seek(place, 1_000)
        assert await consumer.getmany(timeout_ms=300) == {}
    finally:
        await consumer.stop()


async def test_an_embedded_broker_starts_and_leaves_nothing(tmp_path: Path) -> None:
    broker = EmbeddedBroker(tmp_path / "logs" / "broker.log")
    assert (broker.pid, broker.rss_bytes(), broker.exit_status()) == (0, 0, None)
    await broker.start()
    pid = broker.pid
    assert alive(pid)
    assert broker.rss_bytes() > 1_000_000
    other = EmbeddedBroker(tmp_path / "other.log", broker.port)
    with pytest.raises(BrokerError, match=f"port {broker.port} .*choose another"):
        await other.start()
    await broker.stop()
    assert not alive(pid)
    again = EmbeddedBroker(tmp_path / "logs" / "broker.log", broker.port)
    await again.start()
    os.kill(again.pid, signal.SIGKILL)
    await asyncio.to_thread(wait_until_gone, [pid])
    deadline = time.monotonic() + PATIENCE_S
    while again.exit_status() is None:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert again.exit_status() == -signal.SIGKILL
    await again.stop()


async def test_an_embedded_broker_that_cannot_be_found_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", str(tmp_path / "nothing"))
    with pytest.raises(BrokerError, match="no embedded broker for this machine: start Kafka"):
        await EmbeddedBroker(tmp_path / "log").start()

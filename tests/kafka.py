"""The brokers that tests run on, each started when the first test asks for it and stopped with the session."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from stockstream.kafka.embedded import EmbeddedBroker
from tests.ports import BROKER_PORTS

KAFKA_FOLDER = Path(__file__).resolve().parent.parent / "deploy" / "kafka"
if str(KAFKA_FOLDER) not in sys.path:
    sys.path.insert(0, str(KAFKA_FOLDER))

import cluster as cluster_program  # noqa: E402 (it stands beside its pom.xml, not in a package)
from cluster import Cluster, ClusterError, fetch_jars, find_java  # noqa: E402

cluster_program.PORTS = BROKER_PORTS
cluster_program.JAVA_FLAGS = ("-XX:TieredStopAtLevel=1",)               # the optimising compiler costs more than it brings in some minutes

T = TypeVar("T")

__all__ = ["Brokers", "Cluster", "ClusterError", "apart", "require_kafka"]


def require_kafka(mode: str = "kraft") -> None:
    """Skip the test where this machine has no Java or no jars."""
    try:
        find_java()
        fetch_jars(mode)
    except ClusterError as error:
        pytest.skip(f"no real Kafka: {error}")


def apart(make: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """What a coroutine returns, run on a loop in a thread of its own: a fixture must not touch the test's loop."""
    results: list[T] = []
    faults: list[BaseException] = []

    def run() -> None:
        try:
            results.append(asyncio.run(make()))
        except BaseException as fault:
            faults.append(fault)

    thread = threading.Thread(target=run, name="apart")
    thread.start()
    thread.join()
    if faults:
        raise faults[0]
    return results[0]


class Brokers:
    """Starts each kind of broker at most once."""

    def __init__(self) -> None:
        self._clusters: dict[int, Cluster] = {}
        self._embedded: EmbeddedBroker | None = None
        self._logs = tempfile.TemporaryDirectory(prefix="stockstream-embedded-")

    def cluster(self, nodes: int) -> Cluster:
        """Real Kafka of `nodes` brokers."""
        if nodes not in self._clusters:
            require_kafka()
            cluster = Cluster(nodes)
            cluster.start()
            self._clusters[nodes] = cluster
        return self._clusters[nodes]

    def embedded(self) -> EmbeddedBroker:
        """Tansu."""
        if self._embedded is None:
            broker = EmbeddedBroker(Path(self._logs.name) / "broker.log")
            apart(broker.start)
            self._embedded = broker
        return self._embedded

    def delete_topics(self, prefix: str) -> None:
        """Delete what begins with `prefix`, wherever it is; a cluster that a test has left broken is passed over."""
        servers = [cluster.bootstrap_servers for cluster in self._clusters.values() if len(cluster.running()) == cluster.nodes]
        if self._embedded is not None and self._embedded.pid:
            servers.append([self._embedded.bootstrap.removeprefix("kafka://")])
        for bootstrap in servers:
            with contextlib.suppress(KafkaError, TimeoutError):
                apart(lambda bootstrap=bootstrap: _delete(bootstrap, prefix))  # type: ignore[misc]

    def stop(self) -> None:
        """Stop everything."""
        try:
            for cluster in self._clusters.values():
                cluster.stop()
            if self._embedded is not None:
                apart(self._embedded.stop)
        finally:
            self._logs.cleanup()


async def _delete(bootstrap: list[str], prefix: str) -> None:
    client = AIOKafkaAdminClient(bootstrap_servers=bootstrap, request_timeout_ms=5000)
    await client.start()
    try:
        names = [name for name in await client.list_topics() if name.startswith(prefix)]
        if names:
            await client.delete_topics(names)
    finally:
        await client.close()

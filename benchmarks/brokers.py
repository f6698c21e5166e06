"""The broker that a run of measurements shares, and what is asked of it from outside the contenders."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import UnknownTopicOrPartitionError, for_code

from benchmarks.environments import ROOT, BenchmarkError
from stockstream.kafka.embedded import EmbeddedBroker

T = TypeVar("T")
KAFKA_FOLDER = ROOT / "deploy" / "kafka"


@contextlib.contextmanager
def broker(kind: str) -> Iterator[Broker]:
    """A broker of its own, `kafka` (real, one node) or `embedded`, or the one at a kafka:// address."""
    if kind == "kafka":
        if str(KAFKA_FOLDER) not in sys.path:
            sys.path.insert(0, str(KAFKA_FOLDER))
        from cluster import Cluster, ClusterError

        try:
            cluster = Cluster(1, settings={"log.segment.bytes": str(256 << 20), "log.retention.check.interval.ms": "300000"})
            cluster.start()
        except ClusterError as error:
            raise BenchmarkError(f"no real Kafka: {error}") from error
        try:
            yield Broker("kafka", cluster.bootstrap, embedded=False)
        finally:
            cluster.stop()
    elif kind == "embedded":
        with tempfile.TemporaryDirectory(prefix="stockstream-bench-") as folder:
            embedded = EmbeddedBroker(Path(folder) / "broker.log")
            asyncio.run(embedded.start())
            try:
                yield Broker("embedded", embedded.bootstrap, embedded=True)
            finally:
                asyncio.run(embedded.stop())
    elif kind.startswith("kafka://"):
        yield Broker(kind, kind, embedded=False)
    else:
        raise BenchmarkError(f"--broker {kind}: it is kafka, embedded or kafka://host:port")


class Broker:
    """A running broker. `url` is what STOCKSTREAM_BROKER takes."""

    def __init__(self, kind: str, url: str, *, embedded: bool) -> None:
        self.kind, self.url, self.embedded = kind, url, embedded
        self.servers = url.replace("kafka://", "")

    def admin(self, work: Callable[[AIOKafkaAdminClient], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine does with an admin client."""

        async def run() -> T:
            admin = AIOKafkaAdminClient(bootstrap_servers=self.servers, request_timeout_ms=20_000)
            await admin.start()
            try:
                return await work(admin)
            finally:
                await admin.close()

        return asyncio.run(run())

    def create(self, *names: str, partitions: int = 8) -> None:
        """Creates topics that keep everything for a month, and waits until they are there."""

        async def work(admin: AIOKafkaAdminClient) -> None:
            config = {"retention.ms": str(30 * 86_400_000)}
            answer = await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config) for name in names])
            for name, code, *_ in answer.topic_errors:
                if code:
                    raise BenchmarkError(f"topic {name} cannot be created: {for_code(code).__name__}")
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if set(names) <= set(await admin.list_topics()):
                    return
                await asyncio.sleep(0.2)

        self.admin(work)

    def topics(self) -> list[str]:
        """Names of all topics but the broker's own."""
        return sorted(name for name in self.admin(lambda admin: admin.list_topics()) if not name.startswith("__"))

    def delete(self, keep: Callable[[str], bool]) -> None:
        """Deletes every topic that `keep` does not name, and waits until they are gone."""

        async def work(admin: AIOKafkaAdminClient) -> None:
            names = [name for name in await admin.list_topics() if not name.startswith("__") and not keep(name)]
            if not names:
                return
            with contextlib.suppress(UnknownTopicOrPartitionError):
                await admin.delete_topics(names)
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline:
                if not set(names) & set(await admin.list_topics()):
                    return
                await asyncio.sleep(0.2)
            raise BenchmarkError("topics of the repetition before are still there after 30 s")

        self.admin(work)

"""The bridge on real Kafka: killed again and again it loses nothing and doubles nothing; and foreign messages straight in `ticks.raw`."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.settings import Settings, load_settings
from stockstream.transforms.partitioning import home_partition
from tests.faults.workers import wait_until
from tests.integration.test_line import LONGEST_S, running
from tests.kafka import Cluster, apart, require_kafka
from tests.patience import PATIENCE_S

PARTITIONS = 4
SYMBOLS = [f"B{number}.A" for number in range(40)]
CANONICAL = {symbol: symbol.replace(".", "-") for symbol in SYMBOLS}


class Foreign:
    """A foreign topic, the bridge's commands for it, and what it has brought."""

    def __init__(self, servers: list[str], own: list[str], folder: Path, name: str) -> None:
        self.topic, self.servers = f"foreign.{name}", servers
        prefix = f"{name}."
        self.settings: Settings = load_settings(broker=",".join(f"kafka://{server}" for server in own), topic_prefix=prefix)
        self._folder = folder
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("STOCKSTREAM_")},
            "STOCKSTREAM_BROKER": self.settings.broker, "STOCKSTREAM_TOPIC_PREFIX": prefix,
        }  # fmt: skip
        apart(self._create)

    async def _create(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(self.topic, PARTITIONS, 1)])
        finally:
            await admin.close()

    def send(self, values: list[tuple[int, bytes]], times: list[int] | None = None) -> None:
        async def run() -> None:
            producer = AIOKafkaProducer(bootstrap_servers=self.servers)
            await producer.start()
            for number, (partition, value) in enumerate(values):
                await producer.send(self.topic, value, partition=partition, timestamp_ms=times[number] if times else None)
            await producer.stop()

        apart(run)

    def start(self, *more: str) -> subprocess.Popen[str]:
        where = f"kafka://{','.join(self.servers)}/{self.topic}"
        command = [sys.executable, "-m", "stockstream.cli", "bridge", "--from", where, "--format", "polygon", *more]
        return subprocess.Popen(command, env=self._environment, cwd=self._folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *more: str, status: int = 0) -> tuple[str, str]:
        process = self.start(*more)
        out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == status, (out[-2000:], err[-2000:])
        return out, err

    def written(self) -> int:
        """Records of `ticks.raw`, those of open and aborted transactions and their markers included."""

        async def read() -> int:
            consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.bootstrap_servers)
            await consumer.start()
            try:
                topic = self.settings.topic("ticks.raw")
                if topic not in await consumer.topics():
                    return 0
                places = [TopicPartition(topic, number) for number in range(self.settings.partitions)]
                return sum((await consumer.end_offsets(places)).values())
            finally:
                await consumer.stop()

        return apart(read)

    def raw(self) -> list[tuple[int, dict[str, Any]]]:
        """Partition and tick of all committed records of `ticks.raw`."""

        async def read() -> list[tuple[int, dict[str, Any]]]:
            consumer = AIOKafkaConsumer(bootstrap_servers=self.settings.bootstrap_servers, isolation_level="read_committed", auto_offset_reset="earliest")
            await consumer.start()
            try:
                places = [TopicPartition(self.settings.topic("ticks.raw"), number) for number in range(self.settings.partitions)]
                consumer.assign(places)
                await consumer.seek_to_beginning(*places)
                out: list[tuple[int, dict[str, Any]]] = []
                quiet = 0
                while quiet < 4:
                    found = await consumer.getmany(timeout_ms=300)
                    quiet = 0 if found else quiet + 1
                    out += [(record.partition, json.loads(record.value)) for records in found.values() for record in records]
                return out
            finally:
                await consumer.stop()

        return apart(read)


def trades(count: int, *, start: int = 0) -> list[tuple[int, bytes]]:
    """Messages of one to three trades, each symbol in one partition; ids are the numbers of the trades."""
    now, values, number = time.time_ns() // 1_000_000 - 1000, [], start
    while number < start + count:
        place = number % PARTITIONS
        some = min(1 + number % 3, start + count - number)
        events = [
            {"ev": "T", "sym": SYMBOLS[(place + PARTITIONS * (number + i)) % len(SYMBOLS)], "x": 1, "i": str(number + i), "p": 10.5, "s": 1, "t": now}
            for i in range(some)
        ]
        values.append((place, json.dumps(events if number % 5 else [{"ev": "status"}, *events]).encode()))
        number += some
    return values


def name_of(test: str) -> str:
    return f"bridge{test}{os.getpid()}"


def killed_at_work(foreign: Foreign, after_s: float) -> bool:
    """Starts a bridge and kills it some time after it has written. False if it was complete before that."""
    before = foreign.written()
    process = foreign.start("--until-end", "--json")
    wait_until(lambda: process.poll() is not None or foreign.written() > before, LONGEST_S, "the bridge writes")
    time.sleep(after_s)
    complete = process.poll() is not None
    process.kill()
    process.communicate()
    return not complete


def test_a_bridge_that_is_killed_loses_nothing_and_doubles_nothing(kafka: Cluster, tmp_path: Path) -> None:
    foreign = Foreign(kafka.bootstrap_servers, kafka.bootstrap_servers, tmp_path, name_of("kill"))
    count, rng = 120_000, random.Random(7)
    foreign.send(trades(count))
    kills = 0
    while kills < 5 and killed_at_work(foreign, rng.random() * 0.2):
        kills += 1
    out, _ = foreign.run("--until-end", "--json")
    summary = json.loads(out)
    assert summary["transactional"] and summary["lag"] == 0 and not summary["rejected"]
    found = foreign.raw()
    ids = Counter(tick["trade_id"] for _, tick in found)
    assert kills >= 3, "some run was cut off"
    assert len(ids) == count and set(ids.values()) == {1}
    assert {tick["symbol"] for _, tick in found} == set(CANONICAL.values())
    assert all(partition == home_partition(tick["symbol"], foreign.settings.partitions) for partition, tick in found)


def test_a_second_bridge_of_the_group_ends_the_first(kafka: Cluster, tmp_path: Path) -> None:
    foreign = Foreign(kafka.bootstrap_servers, kafka.bootstrap_servers, tmp_path, name_of("fence"))
    foreign.send(trades(30))
    foreign.run("--until-end")
    first = foreign.start("--json")
    foreign.send(trades(30, start=30))
    wait_until(lambda: len(foreign.raw()) == 60, LONGEST_S, "the first bridge has brought all")
    second = foreign.start("--json")
    sent = 60

    def ended() -> bool:
        """The first bridge learns of the second when it writes."""
        nonlocal sent
        foreign.send(trades(30, start=sent))
        sent += 30
        return first.poll() is not None

    try:
        wait_until(ended, LONGEST_S, "the first bridge ends", 1.0)
        foreign.send(trades(30, start=sent))
        sent += 30
        _, err = first.communicate(timeout=PATIENCE_S)
        assert first.returncode == 1 and "another bridge of the group" in err and len(err.strip().splitlines()) == 1, err
        wait_until(lambda: len(foreign.raw()) == sent, LONGEST_S, "the second bridge goes on")
    finally:
        first.kill()
        second.send_signal(signal.SIGINT)
        out, err = second.communicate(timeout=PATIENCE_S)
    assert second.returncode == 0, err
    assert 30 <= json.loads(out)["ticks"] <= sent - 60
    assert len({tick["trade_id"] for _, tick in foreign.raw()}) == sent


def test_a_broker_that_is_killed_is_waited_for(tmp_path: Path) -> None:
    require_kafka()
    with Cluster(1) as cluster:
        foreign = Foreign(cluster.bootstrap_servers, cluster.bootstrap_servers, tmp_path, name_of("outage"))
        foreign.send(trades(3_000))
        foreign.run("--until-end")
        process = foreign.start("--json")
        try:
            foreign.send(trades(57_000, start=3_000))
            time.sleep(3)
            (node,) = cluster.running()
            cluster.kill(node)
            time.sleep(5)
            cluster.start_node(node)
            foreign.send(trades(3_000, start=60_000))
            wait_until(lambda: len(foreign.raw()) > 62_999, LONGEST_S, "all was brought")
        finally:
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE_S)
        assert process.returncode == 0, err
        assert "Traceback" not in err, err
        assert json.loads(out)["lag"] == 0
        ids = Counter(tick["trade_id"] for _, tick in foreign.raw())
        assert len(ids) == 63_000 and set(ids.values()) == {1}


def test_a_backlog_is_merged_by_time(kafka: Cluster, tmp_path: Path) -> None:
    foreign = Foreign(kafka.bootstrap_servers, kafka.bootstrap_servers, tmp_path, name_of("merge"))
    now, count = time.time_ns() // 1_000_000 - 10_000_000, 24_000
    found: list[tuple[int, bytes]] = []
    times: list[int] = []
    for partition in range(PARTITIONS):                                      # one after the other, of very different lengths
        step = 10 * (1 + 3 * partition)
        for at in range(now + partition, now + count * 10, step * PARTITIONS):
            event = {"ev": "T", "sym": SYMBOLS[partition + PARTITIONS * (at // step % 9)], "x": 1, "i": str(at), "p": 10.5, "s": 1, "t": at}
            found.append((partition, json.dumps([event]).encode()))
            times.append(at)
    foreign.send(found, times)
    foreign.run("--until-end")
    brought = foreign.raw()
    assert len(brought) == len(found)
    for partition in range(foreign.settings.partitions):
        mine = [tick["event_time"] for place, tick in brought if place == partition]
        assert mine == sorted(mine)


def test_errors_are_one_line_each(kafka: Cluster, tmp_path: Path) -> None:
    foreign = Foreign(kafka.bootstrap_servers, kafka.bootstrap_servers, tmp_path, name_of("errors"))
    foreign.send([(0, json.dumps({"hello": number}).encode()) for number in range(120)])
    _, err = foreign.run("--until-end", status=1)
    assert "none of the first" in err and "offset 0: missing_field" in err and "--format" in err
    assert len(err.strip().splitlines()) == 1
    topic, foreign.topic = foreign.topic, foreign.topic[:-1]
    _, err = foreign.run(status=1)
    assert f"there is no topic {foreign.topic}" in err and f"did you mean {topic}?" in err and len(err.strip().splitlines()) == 1
    foreign.topic, servers = topic, foreign.servers
    foreign.servers = ["127.0.0.1:1"]
    _, err = foreign.run(status=1)
    assert "no broker answers at kafka://127.0.0.1:1 (--from)" in err and len(err.strip().splitlines()) == 1
    foreign.servers = servers
    foreign.send(trades(10))
    out, _ = foreign.run("--until-end", "--json")
    assert json.loads(out)["ticks"] == 10, "what was of no use is passed over once something is"
    assert json.loads(out)["rejected"] == {"missing_field": 120} and len(json.loads(out)["examples"]) == 3


def test_from_a_cluster_to_a_broker_without_transactions(kafka: Cluster, embedded: EmbeddedBroker, tmp_path: Path) -> None:
    foreign = Foreign(kafka.bootstrap_servers, [embedded.bootstrap.removeprefix("kafka://")], tmp_path, name_of("plain"))
    foreign.send(trades(100))
    out, err = foreign.run("--until-end", "--json", "--symbols", "b1.a,B2/A", "--source", "us")
    summary = json.loads(out)
    assert not summary["transactional"] and "the embedded broker has no transactions" in err
    found = foreign.raw()
    assert {tick["symbol"] for _, tick in found} == {"B1-A", "B2-A"} and {tick["source"] for _, tick in found} == {"us"}
    assert len(found) == summary["ticks"] and summary["filtered"] == 100 - len(found)
    foreign.send(trades(30, start=100))
    again = json.loads(foreign.run("--until-end", "--json")[0])
    assert again["ticks"] == 30, "it goes on where it stopped"


def test_foreign_messages_in_ticks_raw(kafka: Cluster, tmp_path: Path) -> None:
    prefix = f"{name_of('raw')}."
    with running(kafka.bootstrap, tmp_path, STOCKSTREAM_TOPIC_PREFIX=prefix, STOCKSTREAM_RAW_FORMAT="us=polygon") as line:
        now = time.time_ns() // 1_000_000
        symbol = "BRK.B"
        home = home_partition(symbol, line.settings.partitions)
        trade = {"ev": "T", "sym": symbol, "x": 1, "p": 10.5, "s": 3, "t": now}
        line.send([(home, json.dumps([{"ev": "status"}, trade | {"i": "1"}, trade | {"i": "2"}]).encode()), (home, json.dumps([trade | {"i": "1"}]).encode())])
        wait_until(lambda: len(line.rows("us")) == 1, LONGEST_S, "the second is closed")
        row = line.rows("us").iloc[0]
        assert (row.symbol, row.close, row.volume, row.ticks) == (symbol, 10.5, 6.0, 2)
        assert line.metric("stockstream_foreign_messages_ignored_total") == 1
        assert [json.loads(record.value)["reason"] for record in line.read("ticks.rejected")] == ["duplicate"]


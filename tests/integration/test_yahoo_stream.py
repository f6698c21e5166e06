"""Yahoo's stream end to end: the short form of `make sources`, with a worker on real Kafka and the stand-in server."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from benchmarks.brokers import Broker
from benchmarks.contenders import FAUST
from benchmarks.processes import Process, wait
from benchmarks.sources import FLOW_S, Server, cost_of_ingest, end_to_end, judge, own_settings, settings_of, symbols_of
from tests.kafka import Cluster

pytestmark = pytest.mark.slow
KINDS = ("bad_base64", "silence", "close", "abort", "half_open", "forget")


def test_no_frame_is_lost_and_sizes_add_up_whatever_the_server_does(kafka: Cluster, tmp_path: Path, prefix: str) -> None:
    on = Broker("kafka", kafka.bootstrap, embedded=False)
    verdict, _ = end_to_end(on, tmp_path, prefix, symbols=40, calm_s=5, fault_s=5, kinds=KINDS)
    assert verdict.faults() == []
    assert verdict.frames > 1_000
    assert verdict.gaps >= 40
    assert not set(verdict.rejected) - {"duplicate"}


def test_the_cost_of_ingest_can_be_measured(kafka: Cluster, tmp_path: Path, prefix: str) -> None:
    cost = cost_of_ingest(Broker("kafka", kafka.bootstrap, embedded=False), tmp_path, prefix, symbols=20, seconds=3)
    assert cost.startswith("ingest alone")


def test_a_killed_worker_leaves_gaps_on_record_and_totals_right(kafka: Cluster, tmp_path: Path, prefix: str) -> None:
    symbols, session_s = symbols_of(40), 10.0
    on, server = Broker("kafka", kafka.bootstrap, embedded=False), Server(tmp_path)
    environment = settings_of(on, tmp_path, prefix, server, symbols) | {"STOCKSTREAM_SESSION_TIMEOUT_S": f"{session_s:.0f}"}
    folders = [{"STOCKSTREAM_STATE_DIR": str(tmp_path / name)} for name in ("one", "two")]
    with server.process, Process([*FAUST, "--without-web"], environment | folders[0], tmp_path / "one.log") as first:
        wait(lambda: server.listens() and len(server.state()["symbols"]) == len(symbols), 120, "all symbols are subscribed", server.process, first)
        with Process([*FAUST, "--without-web"], environment | folders[1], tmp_path / "two.log") as second:
            wait(lambda: server.state()["connections"] == 2, 120, "both workers have a connection", server.process, first, second)
            time.sleep(15)
            killed_at = time.time()
            os.kill(first.pid, signal.SIGKILL)
            time.sleep(session_s + 20)
            server.fault("silence", 3_600)
            time.sleep(1)
            state = server.state()
            state["faults"].append(("kill", killed_at, killed_at + session_s))
            verdict = asyncio.run(judge(own_settings(environment), state, server.journal))
            second.stop()
    assert verdict.back_s["kill"] < FLOW_S
    assert verdict.off == {}
    assert verdict.twice == 0
    assert verdict.gaps >= 10
    assert not set(verdict.rejected) - {"duplicate"}

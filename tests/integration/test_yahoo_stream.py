"""Yahoo's stream end to end: the short form of `make sources`, with a worker on real Kafka and the stand-in server."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.brokers import Broker
from benchmarks.sources import cost_of_ingest, end_to_end
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

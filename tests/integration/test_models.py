"""A champion that fails, on real Kafka: everything else goes on, and a promotion heals it without a restart."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models import features
from models.registry import Registry
from models.xgboost import XGBoostModel, train_horizon
from tests.faults.workers import ROOT, Worker, wait_until
from tests.kafka import Cluster
from tests.patience import PATIENCE_S

LONGEST_S = 60.0


class Running:
    """A worker with a simulated market, and its registry."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.registry = Registry(f"file://{folder}/models")
        own = {
            "STOCKSTREAM_BROKER": "kafka://" + cluster.bootstrap_servers[0], "STOCKSTREAM_TOPIC_PREFIX": f"models{os.getpid()}.", "STOCKSTREAM_PARTITIONS": "2",
            "STOCKSTREAM_MODELS": f"file://{self.registry.root}", "STOCKSTREAM_STATE_DIR": str(folder / "state"), "STOCKSTREAM_ARCHIVE": "none",
            "STOCKSTREAM_SOURCE": "simulated", "STOCKSTREAM_SYMBOLS": ",".join(f"S{number}" for number in range(8)), "STOCKSTREAM_SESSION_TIMEOUT_S": "60",
        }  # fmt: skip
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | own | {"PYTHONPATH": str(ROOT)}
        self.worker = Worker("worker", environment, folder)
        rng = np.random.default_rng(0)
        matrix = rng.normal(size=(300, len(features.FEATURES))).astype(np.float32)
        self.good = XGBoostModel("", "", "", (train_horizon(10, matrix, rng.normal(size=300), rounds=2),)).files()
        heads = json.loads(self.good["heads.json"])
        self.faulty = self.good | {"heads.json": json.dumps([head | {"slope": float("nan")} for head in heads]).encode()}

    def store(self, files: dict[str, bytes]) -> str:
        version = self.registry.store("xgboost", "xgboost", files, {"horizons_s": [10], "metrics": {}}).version
        self.registry.promote("xgboost", version)
        return version

    def models(self) -> dict[str, dict[str, Any]]:
        answer = self.worker.get("/api/models") or {"items": []}
        return {item["version"]: item for item in answer["items"]}

    def predicted_by(self, version: str) -> bool:
        """Whether all symbols' newest predictions are this version's."""
        answer = self.worker.get("/api/predictions") or {"items": []}
        return len(answer["items"]) == 8 and {item["version"] for item in answer["items"]} == {version}

    def newest_second(self) -> int:
        return int((self.worker.get("/api/pipeline") or {"views": {}})["views"].get("newest_second") or 0)

    def text(self, path: str) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.worker.port}{path}", timeout=PATIENCE_S) as answer:
            return str(answer.read().decode())


@pytest.fixture
def running(kafka: Cluster, tmp_path: Path) -> Iterator[Running]:
    found = Running(kafka, tmp_path)
    try:
        yield found
    finally:
        found.worker.close()


def test_a_faulty_champion_ends_nobody_and_a_promotion_heals_it(running: Running) -> None:
    worker = running.worker
    worker.start().wait_ready()
    wait_until(lambda: running.newest_second() > 0, LONGEST_S, "seconds are closed without a model")
    assert "no predictions: there is no model xgboost in" in running.text("/readyz")
    assert "no predictions: there is no model xgboost in" in worker.text()

    good = running.store(running.good)
    wait_until(lambda: running.predicted_by(good), LONGEST_S, "the first model predicts")
    bad = running.store(running.faulty)
    wait_until(lambda: running.models().get(bad, {}).get("state") == "suspended", LONGEST_S, "the faulty model is suspended")
    wait_until(lambda: len(running.models()[bad]["partitions"]) == 2, LONGEST_S, "in both partitions")
    second = running.newest_second()
    wait_until(lambda: running.newest_second() > second + 3 and running.predicted_by(good), LONGEST_S, "the last good model goes on")
    assert re.search(rf'rows_not_predicted_total\{{model="xgboost",reason="not_finite",version="{bad}"\}} [1-9]', running.text("/metrics"))
    assert f"model xgboost {bad} is suspended" in running.text("/readyz")
    assert worker.exits == []

    shutil.rmtree(running.registry.root / "xgboost" / good)              # the start finds neither
    worker.stop()
    worker.start()
    wait_until(lambda: worker.ready, LONGEST_S, "a worker whose models are gone starts")
    wait_until(lambda: "no predictions: " in running.text("/readyz"), LONGEST_S, "it says that nothing is predicted")
    second = running.newest_second()
    wait_until(lambda: running.newest_second() > second + 3, LONGEST_S, "everything else goes on")
    assert {item["state"] for item in running.models().values()} <= {"suspended", "missing"}

    last = running.store(running.good)
    wait_until(lambda: running.predicted_by(last), LONGEST_S, "a promotion heals it")
    wait_until(lambda: running.models()[last]["state"] == "champion" and "no predictions" not in running.text("/readyz"), LONGEST_S, "and all say so")
    assert worker.exits == [], worker.last_words()
    worker.stop()

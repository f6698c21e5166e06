"""A broker that goes away under a worker: few lines, no load, and the line goes on."""

from __future__ import annotations

import asyncio
import os
import re
from pathlib import Path

import pytest

from tests.faults.workers import Worker, wait_until
from tests.kafka import KAFKA_FOLDER, Cluster, require_kafka  # noqa: F401  the folder puts `cluster` on the path

AWAY_S = 11.0
"""The first summary of repeats comes after ten seconds."""
LINES, REPEATS = 50, 3_000
"""By itself the client writes 5,000 lines a second, as fast as connections are refused."""


@pytest.mark.kafka
@pytest.mark.slow
async def test_an_outage_is_a_few_lines_and_the_worker_goes_on(tmp_path: Path) -> None:
    require_kafka()
    with Cluster(1, directory=tmp_path / "kafka") as cluster:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | {
            "STOCKSTREAM_BROKER": cluster.bootstrap, "STOCKSTREAM_ARCHIVE": "none", "STOCKSTREAM_MODELS": str(tmp_path / "models"),
            "STOCKSTREAM_STATE_DIR": str(tmp_path / "state"), "STOCKSTREAM_SESSION_TIMEOUT_S": "240", "STOCKSTREAM_SOURCE": "simulated",
            "STOCKSTREAM_SYMBOLS": "A,B,C,D,E,F,G,H",
        }  # fmt: skip
        worker = Worker("outage", environment, tmp_path).start()
        try:
            await asyncio.to_thread(worker.wait_ready, 60)
            first = worker.text().splitlines()
            loud = [line for line in first if ("ERROR" in line or "WARNING" in line) and "no predictions: there is no model" not in line]
            assert loud == [], "a first start is quiet"
            ready = [line for line in first if "ready: web http://127.0.0.1:" in line]
            assert len(ready) == 1 and "8 of 8 partitions" in ready[0] and "model none in" in ready[0] and len(first) < 10
            await asyncio.to_thread(wait_until, lambda: _ticks(worker) > 20, 30, "ticks come")
            await asyncio.to_thread(cluster.terminate, 0)
            await asyncio.to_thread(wait_until, lambda: "broker lost: " in worker.text(), 30, "the worker says that its broker is lost")
            await asyncio.sleep(AWAY_S)                                  # what is counted is what happens in this time
            await asyncio.to_thread(cluster.start_node, 0)
            await asyncio.to_thread(wait_until, lambda: "broker back after " in worker.text(), 60, "the worker says that its broker is back")
            before = _ticks(worker)
            await asyncio.to_thread(wait_until, lambda: worker.ready and _ticks(worker) > before + 20, 60, "ticks come again")
            assert worker.exits == []
            lines = worker.text().splitlines()
            assert sum("broker lost: " in line for line in lines) <= 2 and len(lines) - len(first) < LINES, lines
            repeats = [int(count) for count in re.findall(r"\(and (\d+) more like it in ", worker.text())]
            assert repeats and sum(repeats) < REPEATS, "the client asks without pause"
        finally:
            worker.close()


def _ticks(worker: Worker) -> int:
    """Counted by the worker; less than before where it was started again."""
    return int((worker.get("/api/pipeline") or {"totals": {}})["totals"].get("ticks_accepted", 0))

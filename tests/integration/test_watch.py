"""`stockstream watch` and `stockstream sources` beside a worker on real Kafka, which follows them and shows the same."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.workers import wait_until
from tests.integration.test_sources import LONGEST_S, PARTITIONS, Line
from tests.kafka import Cluster


@pytest.fixture
def line(kafka: Cluster, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Line]:
    for name, value in {"BROKER": kafka.bootstrap, "TOPIC_PREFIX": prefix, "PARTITIONS": str(PARTITIONS)}.items():
        monkeypatch.setenv(f"STOCKSTREAM_{name}", value)
    line = Line(kafka.bootstrap, tmp_path, prefix)
    try:
        yield line
    finally:
        line.worker.close()


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "stockstream.cli", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def listed() -> dict[str, Any]:
    return {item["symbol"]: item for item in json.loads(run("watch", "list", "--json"))["items"]}


def test_the_watchlist_from_the_command_line(line: Line) -> None:
    assert run("watch", "add", "brk.b", "ZIWEC", "--source", "simulated").startswith("added to simulated: BRK-B, ZIWEC\n")       # before there is a worker
    assert {symbol: item["reason"] for symbol, item in listed().items()} == dict.fromkeys(("BRK-B", "ZIWEC"), "no worker runs simulated (STOCKSTREAM_SOURCE)")
    line.worker.start()
    line.worker.wait_ready()
    wait_until(lambda: {item["state"] for item in listed().values()} == {"fresh"}, LONGEST_S, "both symbols are fresh")
    (item,) = {item["worker"] for item in listed().values()}
    assert f":{line.worker.port}:" in item

    run("watch", "add", "VOD.L", "--source", "yahoo")
    note = "no worker runs yahoo, which 1 symbol of the watchlist waits for"
    wait_until(lambda: line.get("/api/pipeline")["sources_note"] == note, LONGEST_S, "the page names the source that nobody runs")
    simulated, yahoo = line.get("/api/sources")["items"]
    assert (simulated["state"], simulated["feeds"], simulated["workers"][0]["worker"]) == ("running", {"fresh": 2}, item)
    assert (yahoo["source"], yahoo["state"], yahoo["watched"]) == ("yahoo", "missing", 1)
    first, second = line.get("/api/sources/simulated/symbols")["items"]
    assert (first["symbol"], first["state"], second["symbol"]) == ("BRK-B", "fresh", "ZIWEC") and first["age_s"] < 60
    shown = run("sources")
    assert "simulated  running  2" in shown and f"\n{note}\n" in shown
    wait_until(lambda: {row["symbol"]: row["session"] for row in line.get("/api/symbols?q=BRK")["items"]} == {"BRK-B": "always"}, LONGEST_S, "its session")
    assert line.get("/api/gaps?symbol=ZIWEC") == {"items": [], "next": None}

    run("watch", "remove", "BRK/B")
    wait_until(lambda: line.source()["symbols"] == 1, LONGEST_S, "the worker leaves it out")
    wait_until(lambda: [row["symbol"] for row in line.get("/api/sources/simulated/symbols")["items"]] == ["ZIWEC"], LONGEST_S, "so do the views")
    line.worker.stop()
    assert {item["worker"] for item in listed().values()} == {""}        # its reports are gone at once
    assert line.worker.exits == []

"""README's five minutes, step by step, on real Kafka: every step prints something."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from tests.kafka import Cluster
from tests.patience import PATIENCE_S
from tests.ports import free_port

README = (Path(__file__).parents[2] / "README.md").read_text()
STEPS = README.partition("## Five minutes with your own data")[2].partition("\n## ")[0]


def until(condition: Callable[[], bool], text: Callable[[], str]) -> None:
    deadline = time.monotonic() + 2 * PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, text()
        time.sleep(0.1)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2) as answer:
            return b'"ok"' in answer.read()
    except (urllib.error.URLError, OSError):
        return False


def test_every_step_of_the_readme_prints_something(kafka: Cluster, prefix: str, tmp_path: Path) -> None:
    port = free_port()
    broker = kafka.bootstrap.removeprefix("kafka://").split(",")[0]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_") or "_TEST_" in name or "_REQUIRE_" in name}
    environment |= {"STOCKSTREAM_BROKER": kafka.bootstrap, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_WEB_PORT": str(port)}
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, *command: str) -> Path:
        output = tmp_path / f"{name}.out"
        with output.open("wb") as out:
            started.append(
                subprocess.Popen([sys.executable, "-u", *command], cwd=tmp_path, env=environment, stdout=out, stderr=subprocess.STDOUT)
            )
        return output

    def run(*arguments: str) -> str:
        done = subprocess.run([sys.executable, "-m", "stockstream.cli", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    predictions, publish, windows = (
        text.replace("localhost:9092", broker).replace('"stockstream.', f'"{prefix}') for text in re.findall(r"```python\n(.*?)```", STEPS, re.DOTALL)
    )
    exports = dict(re.findall(r"^    export (\w+)=(.*)$", STEPS, re.MULTILINE))
    assert exports == {"STOCKSTREAM_BROKER": "kafka://localhost:9092", "STOCKSTREAM_ARCHIVE": "./my-data"}
    environment["STOCKSTREAM_ARCHIVE"] = exports["STOCKSTREAM_ARCHIVE"]
    assert "\n    stockstream train xgboost --simulated\n" in STEPS and "\n    stockstream worker\n" in STEPS
    try:
        assert "stored as" in run("train", "xgboost", "--simulated")
        log = start("worker", "-m", "stockstream.cli", "worker")
        until(lambda: is_ready(port), log.read_text)
        predicted = start("predictions", "-c", predictions)
        until(lambda: "waiting for predictions" in predicted.read_text(), predicted.read_text)
        published = start("publish", "-c", publish)
        until(lambda: "AAPL in 60 s" in predicted.read_text(), lambda: predicted.read_text() + published.read_text() + log.read_text())
        shown = start("windows", "-c", windows)
        until(lambda: "through offset" in shown.read_text() and "'symbol': 'AAPL'" in shown.read_text(), shown.read_text)
        assert "AAPL" in published.read_text()
        started[0].send_signal(signal.SIGINT)
        assert started[0].wait(PATIENCE_S) == 0, log.read_text()
    finally:
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
            process.wait(PATIENCE_S)
    (sql,) = re.findall(r'^    stockstream query "(.*)"$', STEPS, re.MULTILINE)
    assert "AAPL" in run("query", sql)
    assert "all is well: 1 chain, " in run("verify").splitlines()[-1]
    watched = re.findall(r"^    stockstream watch (.*)$", STEPS, re.MULTILINE)
    assert "added to yahoo: MSFT, BRK-B, BTC-USD" in run("watch", *watched[0].split())
    assert "3 symbols: 3 waiting" in run("watch", *watched[1].split())

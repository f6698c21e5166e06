"""The real demo on the embedded broker: what it archives can be asked in SQL to its end, and nobody else writes there meanwhile."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from stockstream.commands.query import connect, run_sql
from stockstream.commands.verify import check
from stockstream.sinks.archive import chains, read_raw_object
from stockstream.sinks.stores import FileStore
from tests.patience import PATIENCE_S


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def demo(data: Path, output: Path) -> subprocess.Popen[bytes]:
    arguments = ["demo", "--symbols", "40", "--port", str(free_port()), "--data", str(data)]
    with output.open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "stockstream.cli", *arguments], stdout=out, stderr=subprocess.STDOUT)


def until_it_says(process: subprocess.Popen[bytes], output: Path, pattern: str) -> None:
    deadline = time.monotonic() + 3 * PATIENCE_S
    while not re.search(pattern, output.read_text()):
        assert process.poll() is None, output.read_text()
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.1)


def test_all_that_a_demo_archives_is_processed(tmp_path: Path) -> None:
    data, output = tmp_path / "data", tmp_path / "out"
    first = demo(data, output)
    try:
        until_it_says(first, output, r"predictions [1-9]")
        other = demo(data, tmp_path / "other")
        assert other.wait(PATIENCE_S) == 1
        [refusal] = (tmp_path / "other").read_text().splitlines()
        assert refusal.startswith(f"stockstream: {data} is in use by process {first.pid} since ") and "--symbols 40" in refusal
        first.send_signal(signal.SIGTERM)
        assert first.wait(PATIENCE_S) == 0, output.read_text()
    finally:
        first.kill()
        first.wait()
    store = FileStore(data)
    report = check(store)
    assert report.faults == [] and [chain for chain in report.chains if chain.unprocessed or chain.processed != chain.last] == []
    records = [line for name in store.list("raw/") for line in read_raw_object(store, name)[1]]
    accepted = [line for line in records if line.value is not None and "punctuate" not in json.loads(str(line.value))]
    connection, found = connect(data)
    with connection:
        _, [(ticks, first_ms, last_ms, bars)], _ = run_sql(
            connection, "SELECT (SELECT count(*) FROM ticks), (SELECT epoch_ms(min(event_time)) FROM ticks), (SELECT epoch_ms(max(event_time)) FROM ticks), "
            "(SELECT sum(ticks) FROM bars_1m)", 0,
        )  # fmt: skip
    assert found and len(chains(store)) == len(report.chains) > 0
    assert ticks == bars == len(accepted) > 0
    times = [json.loads(str(line.value))["event_time"] for line in accepted]
    assert (first_ms, last_ms) == (min(times), max(times))
    assert f"archived: {ticks:,} ticks in {data}" in output.read_text()

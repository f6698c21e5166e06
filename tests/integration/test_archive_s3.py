"""The archive in a bucket on real Kafka: workers are killed and the store is down for a while, and every record is there exactly once."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from stockstream.commands import query, verify
from stockstream.errors import ArchiveUnavailable
from stockstream.sinks.s3 import S3Access, S3Store
from stockstream.sinks.stores import FileStore
from tests.faults.line import Line
from tests.faults.workers import wait_until
from tests.kafka import Cluster
from tests.standins.s3 import SECRET, S3Server, s3_server

OUTAGE_S = 8.0


class Mirror:
    """Copies the objects of a store into a folder, where `Line` compares them with the log, byte by byte."""

    def __init__(self, store: S3Store, folder: Path) -> None:
        self._store, self._folder = store, FileStore(folder)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        known: set[str] = set()
        while not self._end.wait(0.5):
            try:
                for folder in ("processed/", "raw/", "chains/"):         # what an object is made of is there when it is copied
                    for name in self._store.list(folder):
                        if name not in known:
                            self._folder.create(name, self._store.read(name))
                            known.add(name)
            except ArchiveUnavailable:
                continue


def failing(line: Line) -> bool:
    states = [of for worker in line.workers for of in (worker.get("/api/pipeline") or {}).get("archive", [])]
    return any(of["state"] == "failing" and "no answer from" in of["fault"] for of in states)


def test_kills_and_an_outage_lose_and_double_nothing(kafka: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch) as server, Line(kafka, 20) as line:
        store = S3Store("s3://bucket/line", S3Access(server.endpoint))
        for _ in range(2):
            line.worker("", **server.environment("line"))  # type: ignore[arg-type]
        for worker in line.workers:
            worker.wait_ready()
        with Mirror(store, line.archive):
            line.producer.start(60)
            line.wait_for_windows()
            wait_until(lambda: next(store.list("processed/ticks/"), None), 30, "the first objects")
            line.workers[0].kill()
            line.count("kill -9")
            outage(line, server)
            wait_until(lambda: not failing(line), 30, "the archive works again")
            line.workers[0].kill()
            line.count("kill -9")
            verdict = line.check(line.finish(timeout_s=60))
        assert verdict.archived > 0
        logs = "".join(worker.text() for worker in line.workers)
        assert "archive: the store works again" in logs or "no answer from" in logs
        assert SECRET not in logs and "Traceback" not in logs
        report = json.loads(asked(verify.command, "--json").stdout)
        counts = json.loads(asked(query.command, "--json", "SELECT (SELECT count(*) FROM raw) AS raw, (SELECT count(*) FROM ticks) AS ticks").stdout)[0]
    records, ticks = (sum(chain[name] for chain in report["chains"]) for name in ("records", "ticks"))
    assert report["ok"] and report["unprocessed"] == 0 and counts == {"raw": records, "ticks": ticks} and records == verdict.archived


def outage(line: Line, server: S3Server) -> None:
    """Nothing but the archive notices; a worker that is killed meanwhile starts without its store."""
    server.stop()
    until, killed = time.monotonic() + OUTAGE_S, False
    wait_until(lambda: failing(line), 30, "/api/pipeline reports that the store fails")
    while time.monotonic() < until or not killed:
        line.wait_for_windows(timeout_s=60)                              # alerts and predictions go on
        if not killed:
            line.workers[1].kill()
            killed = True
            line.workers[1].wait_ready()
        time.sleep(0.5)
    server.start()
    line.count("store down")


def asked(command: click.Command, *arguments: str) -> Result:
    result = CliRunner().invoke(command, ["--archive", "s3://bucket/line", *arguments], standalone_mode=False)
    assert result.exception is None, result.exception
    return result

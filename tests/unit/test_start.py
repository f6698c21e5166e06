"""How a worker starts, waits and ends, as processes; none of them reaches a broker."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faust.web.base import DEBUG_BLUEPRINTS, DEFAULT_BLUEPRINTS, OPTIONAL_BLUEPRINTS, PRODUCTION_BLUEPRINTS
from mode.utils.imports import symbol_by_name

from tests.patience import PATIENCE_S
from tests.ports import free_port
from tests.requirements import NO_IPV6

ROOT = Path(__file__).resolve().parents[2]
REFUSED = 78


def environment(folder: Path, **settings: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | {"PYTHONPATH": str(ROOT)}
    places = {"ARCHIVE": folder / "archive", "MODELS": folder / "models", "STATE_DIR": folder / "state"}
    defaults = {"BROKER": f"kafka://127.0.0.1:{free_port()}", "WEB_PORT": str(free_port()), **{name: str(path) for name, path in places.items()}}
    return own | {f"STOCKSTREAM_{name}": value for name, value in (defaults | settings).items()}


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "faust", "-A", "stockstream", "worker", *options]


@contextlib.contextmanager
def running(folder: Path, output: int | Path, **settings: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A worker that waits for its broker, and where its web is."""
    given = environment(folder, **settings)
    with contextlib.ExitStack() as stack:
        target = stack.enter_context(output.open("wb")) if isinstance(output, Path) else output
        process = stack.enter_context(subprocess.Popen(command("-l", "info"), env=given, cwd=folder, stdout=target, stderr=subprocess.STDOUT))
        stack.callback(process.kill)
        host = given.get("STOCKSTREAM_WEB_HOST", "127.0.0.1").strip("[]")
        host = {"::": "::1"}.get(host, host)
        yield process, f"http://{f'[{host}]' if ':' in host else host}:{given['STOCKSTREAM_WEB_PORT']}"


def ask(url: str) -> tuple[int, str]:
    """Status and body; 0 where nobody answers."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()
    except OSError:
        return 0, ""


def wait_for_web(process: subprocess.Popen[bytes], web: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while ask(f"{web}/healthz")[0] != 200:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)


def wait_for_reason(web: str) -> str:
    """What `/readyz` says once it names a broker that it waits for."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        status, body = ask(f"{web}/readyz")
        if status == 503 and "waiting for a broker" in body:
            message: str = json.loads(body)["error"]["message"]
            return message
        assert time.monotonic() < deadline, (status, body)
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"APP_ID": "a b"}, "STOCKSTREAM_APP_ID"),
        ({"BROKERS": "kafka://b:9092"}, "did you mean STOCKSTREAM_BROKER?"),
        ({"ARCHIVE": "/dev/null/archive"}, "STOCKSTREAM_ARCHIVE: /dev/null/archive cannot be written"),
        ({"STATE_DIR": "/dev/null/state"}, "STOCKSTREAM_STATE_DIR: /dev/null/state cannot be written"),
        ({"MODELS": "/dev/null"}, "STOCKSTREAM_MODELS: /dev/null cannot be read"),
        ({"WEB_HOST": "no.such.host.invalid"}, "the web views cannot listen on no.such.host.invalid:"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_refused_start_is_one_line_whatever_the_log_level(tmp_path: Path, settings: dict[str, str], line: str) -> None:
    ended = subprocess.run(
        command("-l", "error"), env=environment(tmp_path, **settings), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    reported = (ended.stdout + ended.stderr).splitlines()
    assert ended.returncode == REFUSED and len(reported) == 1 and line in reported[0], reported


def test_another_aiokafka_is_refused_before_it_is_imported(tmp_path: Path) -> None:
    folder = tmp_path / "aiokafka-0.13.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: aiokafka\nVersion: 0.13.0\n")
    given = environment(tmp_path)
    given["PYTHONPATH"] = f"{tmp_path}{os.pathsep}{ROOT}"
    ended = subprocess.run(command("-l", "error"), env=given, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    reported = (ended.stdout + ended.stderr).splitlines()
    assert ended.returncode == REFUSED and len(reported) == 1 and "aiokafka 0.13.0 was not tried" in reported[0], reported


def has_ipv6() -> bool:
    try:
        free_port("::1")
        return True
    except OSError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("host", [pytest.param(host, marks=pytest.mark.skipif(not has_ipv6(), reason=NO_IPV6)) for host in ("::1", "[::1]", "::")])
def test_ipv6_hosts_and_brokers_work(tmp_path: Path, host: str) -> None:
    port = free_port("::1")
    with running(tmp_path, subprocess.DEVNULL, WEB_HOST=host, BROKER=f"kafka://[::1]:{port}") as (process, web):
        wait_for_web(process, web)
        assert wait_for_reason(web).startswith(f"waiting for a broker at kafka://[::1]:{port}: Connection refused, since ")


@pytest.mark.slow
def test_the_web_serves_before_the_broker_and_nothing_of_fausts_own(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with running(tmp_path, log) as (process, web):
        wait_for_web(process, web)
        reason = wait_for_reason(web)
        assert reason.startswith("waiting for a broker at kafka://127.0.0.1:") and "Connection refused, since " in reason
        pipeline = json.loads(ask(f"{web}/api/pipeline")[1])
        assert (pipeline["ready"], pipeline["status"]) == (False, reason)
        assert ask(f"{web}/")[0] == ask(f"{web}/metrics")[0] == ask(f"{web}/api/models")[0] == 200
        paths = [path for path in fausts_paths() if path != "/"]
        assert len(paths) > 8 and {path: ask(web + path)[0] for path in paths} == dict.fromkeys(paths, 404)
        process.send_signal(signal.SIGTERM)                              # it ends while it waits
        assert process.wait(PATIENCE_S) == 0
    lines = log.read_text().splitlines()
    assert sum("waiting for a broker" in line for line in lines) == 1 and len(lines) < 5, lines
    assert "Traceback" not in log.read_text()


def fausts_paths() -> list[str]:
    """Where Faust mounts its own pages, with something for the names in them."""
    found = []
    for prefix, blueprint in (*DEFAULT_BLUEPRINTS, *PRODUCTION_BLUEPRINTS, *DEBUG_BLUEPRINTS, *OPTIONAL_BLUEPRINTS):
        pages: Any = symbol_by_name(blueprint)
        for route in pages.routes:
            path = prefix.rstrip("/") + "/" + route.uri.lstrip("/")
            found += [path.replace("{name}", "clean").replace("{key}", "k").replace("{topic}", "t").replace("{table}", "clean")]
    return list(dict.fromkeys([*found, "/table/clean", "/table/clean/k", "/router/clean/k", "/table/", "/router/", "/graph", "/performance", "/stats"]))


@pytest.mark.slow
def test_fausts_pages_are_there_where_they_are_asked_for(tmp_path: Path) -> None:
    with running(tmp_path, subprocess.DEVNULL, FAUST_PAGES="true") as (process, web):
        wait_for_web(process, web)
        assert ask(f"{web}/table/")[0] == 200
        assert "stockstream" in ask(f"{web}/")[1]                        # ours come first


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_worker_whose_reader_is_gone_ends(tmp_path: Path, number: signal.Signals) -> None:
    reading, writing = os.pipe()
    with running(tmp_path, writing) as (process, web):
        os.close(writing)
        wait_for_web(process, web)
        os.close(reading)
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 0


@pytest.mark.slow
def test_a_refusal_reaches_the_file_for_the_supervisor(tmp_path: Path) -> None:
    reason = tmp_path / "reason"
    given = environment(tmp_path, MODELS="/dev/null", REASON_FILE=str(reason))
    assert subprocess.run(command(), env=given, cwd=tmp_path, capture_output=True, timeout=PATIENCE_S, check=False).returncode == REFUSED
    assert reason.read_text().startswith("STOCKSTREAM_MODELS: /dev/null cannot be read") and reason.read_text().count("\n") == 1

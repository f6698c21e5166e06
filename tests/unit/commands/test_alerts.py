"""`stockstream alerts check` and `test`."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream.cli import run
from tests.standins.receivers import HttpReceiver


@pytest.fixture
def receiver() -> Iterator[HttpReceiver]:
    """In a thread: the command has an event loop of its own."""
    loop, made = asyncio.new_event_loop(), HttpReceiver()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(made.start(), loop).result()
    yield made
    asyncio.run_coroutine_threadsafe(made.stop(), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def test_a_valid_file(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text('[groups]\ntech = ["AAPL"]\n[routes.hook]\nkind = "webhook"\nurl = "env:HOOK"\ngroups = ["tech"]\n')
    monkeypatch.setenv("HOOK", "https://example.com/T0SECRET")
    monkeypatch.setenv("STOCKSTREAM_ALERTS", str(file))
    assert run(["alerts", "check"]) == 0
    out = capsys.readouterr().out
    assert "hook   webhook  example.com  warning and above; opened, closed, rising severity; 1 symbol; at most 600 a minute" in out
    assert f"{file} is valid: 1 group, 0 rules, 1 route" in out
    assert run(["alerts", "check", "--json", str(file)]) == 0
    (route,) = json.loads(capsys.readouterr().out)["routes"]
    assert (route["route"], route["place"]) == ("hook", "example.com")


def test_faults(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text('[routes.a]\nkind = "log"\nlevel = 3\n')
    assert run(["alerts", "check", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"stockstream: {file}:3: routes.a has no setting 'level'")
    assert run(["alerts", "check"]) == 1
    assert "set STOCKSTREAM_ALERTS" in capsys.readouterr().err
    file.write_text('[routes.a]\nkind = "log"\n')
    assert run(["alerts", "test", "--route", "b", "--file", str(file)]) == 1
    assert "there is no route 'b' in the file; routes are: a" in capsys.readouterr().err


def test_a_test(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, receiver: HttpReceiver) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text('[routes.hook]\nkind = "webhook"\nurl = "env:HOOK"\n')
    monkeypatch.setenv("HOOK", receiver.url)
    assert run(["alerts", "test", "--route", "hook", "--file", str(file)]) == 0
    assert capsys.readouterr().out == f"hook: 127.0.0.1:{receiver.port} answered 200: ok\n"
    (body,) = receiver.bodies
    assert json.loads(body)["state"] == "test"
    receiver.status = 403
    assert run(["alerts", "test", "--route", "hook", "--file", str(file)]) == 1
    assert capsys.readouterr().err == f"stockstream: 127.0.0.1:{receiver.port} answered 403: ok\n"


def test_the_removed_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_ALERT_ROUTES", "x")
    assert run(["alerts", "check"]) == 1
    assert "there is no setting STOCKSTREAM_ALERT_ROUTES: did you mean STOCKSTREAM_ALERTS?" in capsys.readouterr().err

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from stockstream import supervisor
from stockstream.commands.worker import worker_command
from stockstream.endings import DO_NOT_RESTART
from stockstream.supervisor import Supervisor
from tests.patience import PATIENCE_S


def counting(path: Path, *statuses: int) -> list[str]:
    """A command that appends its process id to a file and ends with the next of the statuses."""
    code = (
        f"import os, sys; f = open({str(path)!r}, 'a+'); f.seek(0); n = len(f.readlines())\n"
        f"print(os.getpid(), file=f, flush=True); sys.exit({statuses!r}[n])"
    )
    return [sys.executable, "-c", code]


def starts(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def test_a_failed_worker_is_started_again(tmp_path: Path) -> None:
    reported: list[str] = []
    supervisor = Supervisor(counting(tmp_path / "pids", 1, 3, 0), reported.append, delays_s=(0.0, 0.01))
    assert supervisor.run(restart=True) == 0
    assert starts(tmp_path / "pids") == 3
    assert reported == ["the worker ended with status 1; it is restarted in 0 s", "the worker ended with status 3; it is restarted in 0.01 s"]


def test_waits_grow_and_begin_anew_after_good_health(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reported: list[str] = []
    monkeypatch.setattr(supervisor, "HEALTHY_S", 0.0)
    Supervisor(counting(tmp_path / "pids", 1, 1, 1, 0), reported.append, delays_s=(0.0, 99.0)).run(restart=True)
    assert [line.rpartition(" in ")[2] for line in reported] == ["0 s"] * 3


def test_once_ends_with_the_workers_status(tmp_path: Path) -> None:
    assert Supervisor(counting(tmp_path / "pids", 5, 0), print).run(restart=False) == 5
    assert starts(tmp_path / "pids") == 1


def test_what_a_person_must_change_is_not_tried_again(tmp_path: Path) -> None:
    assert Supervisor(counting(tmp_path / "pids", DO_NOT_RESTART, 0), print).run(restart=True) == DO_NOT_RESTART
    assert starts(tmp_path / "pids") == 1


def test_a_killed_worker_is_started_again(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    code = (
        f"import os, signal; f = open({str(path)!r}, 'a+'); f.seek(0); n = len(f.readlines()); print(n, file=f, flush=True)\n"
        "if n == 0: os.kill(os.getpid(), signal.SIGKILL)"
    )
    reported: list[str] = []
    assert Supervisor([sys.executable, "-c", code], reported.append, delays_s=(0.0,)).run(restart=True) == 0
    assert reported == ["the worker ended with status 137; it is restarted in 0 s"]


def _signal_when(path: Path, number: signal.Signals) -> threading.Thread:
    def wait_and_signal() -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not path.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=wait_and_signal)
    thread.start()
    return thread


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_handed_on_and_the_worker_is_not_started_again(tmp_path: Path, number: signal.Signals) -> None:
    ready = tmp_path / "ready"
    code = (
        f"import signal, sys, time, pathlib\nsignal.signal({int(number)}, lambda *_: sys.exit(9))\n"
        f"pathlib.Path({str(ready)!r}).touch()\nwhile True: time.sleep(0.05)"
    )
    thread = _signal_when(ready, number)
    assert Supervisor([sys.executable, "-c", code], print).run(restart=True) == 9
    thread.join()


def test_a_worker_that_does_not_heed_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    thread = _signal_when(ready, signal.SIGTERM)
    assert Supervisor([sys.executable, "-c", code], print, grace_s=0.2).run(restart=True) == 128 + signal.SIGKILL
    thread.join()


def test_a_signal_while_it_waits_ends_it(tmp_path: Path) -> None:
    def say(_: str) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    assert Supervisor(counting(tmp_path / "pids", 1, 1), say, delays_s=(60.0,)).run(restart=True) == 0
    assert starts(tmp_path / "pids") == 1


def test_the_signal_handlers_are_put_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    Supervisor(counting(tmp_path / "pids", 0), print).run(restart=False)
    assert signal.getsignal(signal.SIGTERM) is before


def test_faust_knows_the_options_that_we_give_it() -> None:
    reported = subprocess.run([sys.executable, "-m", "faust", "worker", "--help"], capture_output=True, text=True, check=True).stdout
    for web in (True, False):
        line = worker_command("127.0.0.1", 7000, "info", web=web)
        options = [word for word in line[line.index("worker") :] if word.startswith("-")]
        assert [option for option in options if option not in reported] == []


def ending(pids: Path, reason_file: Path, *reasons: str) -> list[str]:
    """A command that leaves the next of the reasons and fails; after the last one it ends well."""
    code = (
        f"import os, sys, pathlib; f = open({str(pids)!r}, 'a+'); f.seek(0); n = len(f.readlines()); print(os.getpid(), file=f, flush=True)\n"
        f"reasons = {reasons!r}\nif n == len(reasons): sys.exit(0)\nif reasons[n]: pathlib.Path({str(reason_file)!r}).write_text(reasons[n])\nsys.exit(75)"
    )
    return [sys.executable, "-c", code]


def delays(tmp_path: Path, *reasons: str) -> tuple[list[str], list[str]]:
    """The waits after each end, and the lines."""
    reported: list[str] = []
    reason_file = tmp_path / "reason"
    supervisor = Supervisor(ending(tmp_path / "pids", reason_file, *reasons), reported.append, (0.0,), loop_delays_s=(0.06, 0.3), reason_file=reason_file)
    assert supervisor.run(restart=True) == 0
    return [line.partition("restarted in ")[2].partition(" s")[0] for line in reported], reported


def test_the_same_reason_three_times_slows_down_and_says_the_place(tmp_path: Path) -> None:
    messages = "leaving: score: x.windows[3] offset 17: ValueError: after {} s (a supervisor starts the worker again)"
    waits, reported = delays(tmp_path, *(messages.format(seconds) for seconds in (1.5, 2.25, 3, 12, 1.0)))
    assert waits == ["0", "0", "0.06", "0.3", "0.3"]
    assert reported[2].startswith("crash loop: the worker ended 3 times in a row for the same reason: leaving: score: x.windows[3] offset 17: ValueError")
    assert "See docs/reliability.md" in reported[2]


@pytest.mark.parametrize(
    "reasons",
    [
        ["at offset 1", "at offset 1", "at offset 2", "at offset 2"],
        ["one fault", "one fault", "", "one fault"],
    ],
    ids=["another place", "no reason"],
)
def test_another_reason_is_no_loop(tmp_path: Path, reasons: list[str]) -> None:
    assert delays(tmp_path, *reasons)[0] == ["0"] * len(reasons)


def test_ends_without_a_reason_are_a_loop_by_their_status(tmp_path: Path) -> None:
    waits, reported = delays(tmp_path, "", "", "")
    assert waits == ["0", "0", "0.06"] and "for the same reason: status 75;" in reported[2]


def test_a_healthy_run_ends_a_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "HEALTHY_S", 0.0)
    assert delays(tmp_path, *["the same"] * 4)[0] == ["0"] * 4


def test_the_documented_section_is_there() -> None:
    page = (Path(__file__).parents[3] / "docs" / "reliability.md").read_text()
    assert "## A worker that ends again and again\n" in page


def test_an_ipv6_host_goes_into_a_url_and_into_a_socket() -> None:
    line = worker_command("::1", 7000, "info", web=True)
    assert line[line.index("--web-host") + 1] == "[::1]" and line[line.index("--web-bind") + 1] == "::1"

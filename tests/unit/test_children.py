from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from stockstream.children import Child
from tests.patience import PATIENCE_S
from tests.requirements import NO_WATCHDOG

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]


def alive(pid: int) -> bool:
    """Whether a process runs; one that only waits to be reaped does not."""
    reported = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return bool(reported) and not reported.startswith("Z")


def eventually(condition: Callable[[], bool], seconds: float = PATIENCE_S) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_its_status_is_that_of_the_process() -> None:
    child = Child([sys.executable, "-c", "raise SystemExit(7)"])
    assert child.wait(60) == 7
    assert child.poll() == 7


def test_it_stops_by_sigterm() -> None:
    child = Child(SLEEP)
    assert child.poll() is None
    assert child.stop(60) == -signal.SIGTERM
    assert not alive(child.pid)


def test_what_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = f"import signal, time, pathlib; signal.signal(signal.SIGTERM, signal.SIG_IGN); pathlib.Path({str(ready)!r}).touch(); time.sleep(600)"
    child = Child([sys.executable, "-c", code])
    assert eventually(ready.exists)
    assert child.stop(0.2) == -signal.SIGKILL


def test_output_and_environment(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as output:
        child = Child([sys.executable, "-c", "import os, sys; print(os.environ['A'], file=sys.stderr)"], output=output, environment={"A": "reported"})
    assert child.wait(60) == 0
    assert log.read_text() == "reported\n"


@pytest.mark.skipif(sys.platform == "win32", reason=NO_WATCHDOG)
def test_it_dies_with_a_parent_that_is_killed() -> None:
    code = f"from stockstream.children import Child; import time; print(Child({SLEEP!r}).pid, flush=True); time.sleep(600)"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.kill()
        parent.wait()
    assert eventually(lambda: not alive(pid))

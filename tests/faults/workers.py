"""Worker processes under test: started, killed, frozen, woken and ended, and started again by a small supervisor when they fail."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import msgspec

from stockstream.children import Child
from tests.patience import stolen_s
from tests.ports import free_port

RESTART_S = 0.3
TOLD_LINES = 25
"""Of a worker's log, where a test fails."""
PATIENCE = 6
"""Waits are bounded by this many times what a quiet machine needs at the most: a bound is for what never comes, and a starved machine is only slow."""
ROOT = Path(__file__).resolve().parents[2]


class Failed(AssertionError):
    """A case failed. The text is one line."""


class NotPossible(Exception):
    """A case cannot be run here. The text is the reason, one line."""


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str, interval_s: float = 0.1) -> Any:
    """Polls until `condition` is true and returns what it gave. Raises `Failed` after PATIENCE times `timeout_s`."""
    timeout_s *= PATIENCE
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() >= deadline:
            raise Failed(f"after {timeout_s:.0f} s still not: {what}")
        time.sleep(interval_s)


class Worker:
    """One `faust -A stockstream worker`, kept running until it is stopped.

    `root` is the checkout whose code it runs. `fault` names one of `tests.faults.sabotage`'s faults, which the process commits against itself.
    `exits` are the statuses of processes that ended without having been asked to, with the time of each (monotonic); minus the signal's number where one
    ended it.
    """

    def __init__(self, name: str, environment: Mapping[str, str], folder: Path, fault: str = "", *, web: bool = True, root: Path = ROOT) -> None:
        self.name, self.fault = name, fault
        self.port = free_port()
        self.log = folder / f"{name}.log"
        self.exits: list[tuple[int, float]] = []
        self.starts: list[float] = []
        self._environment = {**environment, "STOCKSTREAM_WEB_PORT": str(self.port), "PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": ""}
        place = ["--web-host", "127.0.0.1", "--web-bind", "127.0.0.1", "--web-port", str(self.port)] if web else ["--without-web"]
        module = ["tests.faults.sabotage", fault] if fault else ["faust"]
        # in its own folder: Faust imports from there first
        self._command = ["/bin/sh", "-c", 'cd "$0" && exec "$@"', str(root), sys.executable, "-m", *module, "-A", "stockstream", "worker", "-l", "info", *place]
        self._wanted = False
        self._lock = threading.RLock()
        self._child: Child | None = None
        self._output: IO[bytes] | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> Worker:
        """Starts it; returns at once."""
        with self._lock:
            self._wanted = True
            self._spawn()
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._supervise, name=f"supervisor of {self.name}", daemon=True)
                self._thread.start()
        return self

    def _spawn(self) -> None:
        if self._output is None:
            self._output = self.log.open("ab")
        self.starts.append(time.monotonic())
        self._child = Child(self._command, output=self._output, environment=self._environment)

    def _supervise(self) -> None:
        while self._wanted:
            with self._lock:
                child = self._child
                status = child.poll() if child is not None and self._wanted else None
                if status is not None:
                    self.exits.append((status, time.monotonic()))
                    self._child = None
            if status is not None:
                time.sleep(RESTART_S)
                with self._lock:
                    if self._wanted and self._child is None:
                        self._spawn()
            time.sleep(0.03)

    @property
    def pid(self) -> int:
        child = self._child
        if child is None:
            raise Failed(f"{self.name} does not run just now")
        return child.pid

    @property
    def alive(self) -> bool:
        child = self._child
        return child is not None and child.poll() is None

    def kill(self) -> None:
        """SIGKILL; the supervisor starts it again."""
        os.kill(wait_until(lambda: self.alive and self.pid, 10, f"{self.name} runs", 0.02), signal.SIGKILL)

    def freeze(self) -> int:
        """SIGSTOP; returns the process that stands still."""
        pid = int(wait_until(lambda: self.alive and self.pid, 10, f"{self.name} runs", 0.02))
        os.kill(pid, signal.SIGSTOP)
        return pid

    def thaw(self) -> None:
        """SIGCONT."""
        with contextlib.suppress(ProcessLookupError, Failed):
            os.kill(self.pid, signal.SIGCONT)

    def stop(self, timeout_s: float = 10.0) -> float:
        """SIGTERM; returns the seconds until it had ended. Raises `Failed` where it takes longer, after SIGKILL.

        What the host of this machine has given to others meanwhile does not count.
        """
        with self._lock:
            self._wanted = False
            child = self._child
        if self._thread is not None:
            self._thread.join(5)
        if child is None or child.poll() is not None:
            return 0.0
        begun = time.monotonic() - stolen_s()
        child.send_signal(signal.SIGCONT)
        child.send_signal(signal.SIGTERM)
        took = 0.0
        while child.poll() is None and took < timeout_s:
            time.sleep(0.02)
            took = time.monotonic() - stolen_s() - begun
        if child.poll() is None:
            child.kill()
            child.wait(10)
            raise Failed(f"{self.name} had not ended {took:.1f} s after SIGTERM; see {self.log}")
        self._child = None
        return took

    def close(self) -> None:
        """Ends it in any way."""
        with self._lock:
            self._wanted = False
            child = self._child
        if child is not None and child.poll() is None:
            child.send_signal(signal.SIGCONT)
            child.kill()
            child.wait(10)
        if self._thread is not None:
            self._thread.join(5)
            self._thread = None
        if self._output is not None:
            self._output.close()
            self._output = None

    def get(self, path: str) -> Any:
        """A JSON answer of its web server; None where it does not answer or answers with an error."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
                return msgspec.json.decode(answer.read())
        except (urllib.error.URLError, OSError, msgspec.MsgspecError):
            return None

    @property
    def ready(self) -> bool:
        """Whether it reports that the group is stable and its state is restored."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def wait_ready(self, timeout_s: float = 40.0) -> None:
        wait_until(lambda: self.ready, timeout_s, f"{self.name} is ready; see {self.log}", 0.2)

    def text(self) -> str:
        """All that it has logged."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def last_words(self) -> str:
        """Its exit status and the end of its log, for a reader without access to the machine."""
        ended = ", ".join(str(status) for status, _ in self.exits) or "none"
        head = f"{self.name}: {len(self.starts)} starts, ended by itself with status: {ended}; its last lines:"
        return "\n  ".join([head, *self.text().splitlines()[-TOLD_LINES:]])

"""A contender's process: started, looked at from outside, and what it cost from its first instruction to its last."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.environments import ROOT, BenchmarkError

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
GRACE_S = 20.0
WATCHDOG = 'read -r order || kill -9 "$0"'
"""Its standard input ends without a word when we die, however we die: then the contender goes too."""


@dataclass(frozen=True, slots=True)
class Cost:
    """`cpu_s` is user and system time of the whole process, start and end included; `warm_cpu_s` that of the second half of the work, `warm_part` of it;
    `wall_s` from start until the work was complete."""

    cpu_s: float
    wall_s: float
    warm_cpu_s: float
    warm_part: float
    rss_mb: float


def cpu_of(pid: int) -> float:
    """CPU seconds of a running process, those of children that have ended included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * TICK_S


def peak_mb(pid: int) -> float:
    """Greatest resident memory of a running process since its program began; `ru_maxrss` counts what its parent had at the fork."""
    peak = next((line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")), "VmHWM: 0")
    return int(peak.split()[1]) * 1024 / 1e6


class Host(threading.Thread):
    """Notes twice a second what part of our processors' time the host of this virtual machine gave to others."""

    INTERVAL_S = 0.5

    def __init__(self) -> None:
        super().__init__(name="host", daemon=True)
        self._stolen: list[tuple[float, float]] = []
        self._over = threading.Event()

    @staticmethod
    def _read() -> tuple[int, int]:
        fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return fields[7], sum(fields)

    def run(self) -> None:
        stolen, total = self._read()
        while not self._over.wait(self.INTERVAL_S):
            before, (stolen, total) = (stolen, total), self._read()
            self._stolen.append((time.time(), (stolen - before[0]) / max(total - before[1], 1)))

    def stop(self) -> None:
        self._over.set()

    def most_stolen(self, first: float, last: float) -> float:
        """Greatest part (0 to 1) between these times (epoch s)."""
        return max((part for at, part in self._stolen if first <= at <= last + self.INTERVAL_S), default=0.0)


class Process:
    """One process in a session of its own; its output goes to `log`. Use as a context: nothing is left running."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self.begun = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True,
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": ""} | dict(environment),
            )  # fmt: skip
        self.pid = self._process.pid
        self._watchdog = subprocess.Popen(["/bin/sh", "-c", WATCHDOG, str(self.pid)], stdin=subprocess.PIPE, start_new_session=True)
        self.status: int | None = None
        self.cpu_s = 0.0

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.ended():
            os.kill(self.pid, signal.SIGKILL)
            self._wait(0)

    def ended(self) -> bool:
        """Whether it has; then `cpu_s` and `status` are known."""
        if self.status is None:
            self._wait(os.WNOHANG)
        return self.status is not None

    def _wait(self, options: int) -> None:
        pid, status, usage = os.wait4(self.pid, options)
        if pid:
            self.status = self._process.returncode = os.waitstatus_to_exitcode(status)
            self.cpu_s = usage.ru_utime + usage.ru_stime
            self._watchdog.communicate(b"done\n")

    def stop(self) -> None:
        """SIGTERM, SIGKILL after GRACE_S."""
        if self.ended():
            return
        os.kill(self.pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while not self.ended():
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                self._wait(0)
                return
            time.sleep(0.02)

    def tail(self) -> str:
        """The last lines that it wrote."""
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-4:])


def measure(process: Process, progress: Callable[[], float], *, ends_itself: bool, timeout_s: float, interval_s: float = 0.25) -> Cost:
    """Follows a process until its work is complete (`progress` 1.0), ends it, and returns its cost. Raises `BenchmarkError`."""
    half: tuple[float, float] | None = None
    done = peak = 0.0
    complete: tuple[float, float] | None = None
    with process:
        while complete is None:
            time.sleep(interval_s)
            if time.monotonic() - process.begun > timeout_s:
                raise BenchmarkError(f"{process.log.name}: {done:.0%} done after {timeout_s:.0f} s: {process.tail()}")
            if process.ended():
                if process.status != 0 or not ends_itself:
                    raise BenchmarkError(f"{process.log.name}: ended with status {process.status}: {process.tail()}")
                wall_s = time.monotonic() - process.begun
                done = progress()
                if done < 1.0:
                    raise BenchmarkError(f"{process.log.name}: ended with {done:.1%} done: {process.tail()}")
                complete = process.cpu_s, wall_s
                break
            done = progress()
            if process.ended():
                continue
            peak = max(peak, peak_mb(process.pid))
            if half is None and done >= 0.5:
                half = cpu_of(process.pid), done
            if done >= 1.0 and not ends_itself:
                complete = cpu_of(process.pid), time.monotonic() - process.begun
        process.stop()
        warm = (complete[0] - half[0], 1.0 - half[1]) if half is not None and half[1] < 1.0 else (0.0, 0.0)
        return Cost(process.cpu_s, complete[1], warm[0], warm[1], peak)


def wait(condition: Callable[[], object], timeout_s: float, what: str, *processes: Process) -> None:
    """Polls. Raises `BenchmarkError` after the time, or when a process has ended."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        for process in processes:
            if process.ended():
                raise BenchmarkError(f"{process.log.name} ended: {process.tail()}")
        if time.monotonic() > deadline:
            raise BenchmarkError(f"after {timeout_s:.0f} s still not: {what}")
        time.sleep(0.1)

"""Compactors beside a pipeline: each is killed or frozen at one of its calls to the store, or runs to its end.

`python -m tests.faults.compactors URL` is one of them: `stockstream compact --all` that prints each call as soon as it has been made.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from stockstream.children import Child
from tests.faults.workers import ROOT

STEP = "STEP "
ENDS = ("freeze", "kill", "whole", "kill", "whole")
"""A frozen one is woken when two others have compacted to their end, so there is one frozen most of the time."""
MOST_STEPS = 30
PATIENCE_S = 600.0


class _Compactor:
    """One of them, and what it prints. It never outlives this process, even if it is frozen."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        reading, writing = os.pipe()
        with os.fdopen(writing, "wb") as output:
            self.child = Child(command, output=output, environment=environment)
        self.printed = os.fdopen(reading)
        self.begun = time.time()

    def wait(self) -> int:
        self.printed.close()
        return self.child.wait()


@dataclass(slots=True)
class _Frozen:
    compactor: _Compactor
    seen: int = 0
    """How many others have compacted to their end since."""


@dataclass(slots=True)
class _Failure:
    begun: float
    ended: float
    text: str


@dataclass(slots=True)
class Work:
    """What was done: `ended` by how a compactor ended; `objects` that were compacted, by those that ran to their end."""

    ended: Counter[str] = field(default_factory=Counter)
    objects: int = 0

    def __str__(self) -> str:
        return f"{', '.join(f'{count} {how}' for how, count in sorted(self.ended.items()))}; {self.objects} objects compacted by the others"


class Compactors:
    """One compactor after the other, in a thread, in a `with` block; `pause_s` between them. `stop` before the checks: it ends with a whole compaction."""

    def __init__(self, url: str, environment: Mapping[str, str], seed: int, pause_s: float) -> None:
        self._command = [sys.executable, "-m", "tests.faults.compactors", url]
        self._environment = {**environment, "PYTHONPATH": str(ROOT)}
        self._rng, self._pause_s = random.Random(seed), pause_s
        self._frozen: list[_Frozen] = []
        self._failures: list[_Failure] = []
        self._stop = threading.Event()
        self._running: _Compactor | None = None
        self._fault: BaseException | None = None
        self.work = Work()
        self._thread = threading.Thread(target=self._run, name="compactors", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self._stop.set()
        for compactor in (self._running, *(one.compactor for one in self._frozen)):
            if compactor is not None:
                compactor.child.kill()
        self._thread.join(60)

    def stop(self) -> None:
        """Wakes what is frozen, waits for all, and compacts once more. Raises what the thread has raised."""
        self._stop.set()
        self._thread.join(PATIENCE_S)
        for one in self._frozen:
            self._wake(one.compactor)
        self._frozen = []
        self._compact("whole")
        if self._fault is not None:
            raise self._fault

    def judge(self, outages: Sequence[tuple[float, float]]) -> list[str]:
        """What went wrong with compactors that nobody killed. One may fail during an outage of the store (epoch s), and at no other time."""
        return [
            f"a compactor: {one.text}" for one in self._failures if not any(begin <= one.ended and one.begun <= end for begin, end in outages)
        ]  # fmt: skip

    def _run(self) -> None:
        try:
            for how in itertools.cycle(ENDS):
                if self._stop.wait(self._pause_s):
                    return
                if self._compact(how):
                    for one in self._frozen:
                        one.seen += 1
                    for one in [one for one in self._frozen if one.seen >= 2]:
                        self._frozen.remove(one)
                        self._wake(one.compactor)
        except BaseException as fault:
            self._fault = fault

    def _compact(self, how: str) -> bool:
        """Runs one; returns whether it compacted to its end."""
        at, steps, last = self._rng.randint(1, MOST_STEPS), 0, ""
        if how == "freeze" and self._frozen:
            how = "kill"
        self._running = compactor = _Compactor(self._command, self._environment)
        for line in compactor.printed:
            if not line.startswith(STEP):
                last = line
                continue
            steps += 1
            if how == "whole" or steps < at:
                continue
            if how == "freeze":
                compactor.child.send_signal(signal.SIGSTOP)
                self._frozen.append(_Frozen(compactor))
                self.work.ended["frozen"] += 1
                return False
            compactor.child.kill()
            compactor.wait()
            self.work.ended["killed"] += 1
            return False
        return self._ended(compactor, last)

    def _wake(self, compactor: _Compactor) -> None:
        compactor.child.send_signal(signal.SIGCONT)
        last = ""
        for line in compactor.printed:
            last = line if not line.startswith(STEP) else last
        self.work.ended["woken"] += 1
        self._ended(compactor, last)

    def _ended(self, compactor: _Compactor, last: str) -> bool:
        status = compactor.wait()
        if status:
            if not self._stop.is_set() or status > 0:
                self._failures.append(_Failure(compactor.begun, time.time(), f"status {status}: {last.strip()}"))
            self.work.ended["failed"] += 1
            return False
        self.work.ended["whole"] += 1
        self.work.objects += sum(one["replaced"] for one in json.loads(last)["folders"])
        return True


def _printed(inner: Any, verb: str) -> Any:
    def call(self: Any, name: str, *data: bytes) -> Any:
        done = inner(self, name, *data)
        print(f"{STEP}{verb} {name}", flush=True)
        return done

    return call


def main(url: str) -> int:
    from stockstream import cli
    from stockstream.sinks.s3 import S3Store
    from stockstream.sinks.stores import FileStore

    for kind in (S3Store, FileStore):
        for verb in ("create", "delete"):
            setattr(kind, verb, _printed(getattr(kind, verb), verb))
    return cli.run(["compact", "--archive", url, "--all", "--json"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

"""Takes a share of every processor away from all others, in bursts, as the host of a virtual machine does: `with starved(0.5): ...`, on Linux, as root."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator

from stockstream.children import Child
from tests.faults.workers import ROOT, Failed

SHORTEST_S, LONGEST_S = 0.02, 0.3


@contextlib.contextmanager
def starved(share: float) -> Iterator[None]:
    """Raises `Failed` where this process may not ask for real-time priority, or the system has none. A share of 0 takes nothing."""
    if not share:
        yield
        return
    if not 0 < share < 1:
        raise Failed(f"a share of {share:g} cannot be taken: it must be below 1")
    children: list[Child] = []
    try:
        for core in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-m", "tests.faults.starvation", str(core), str(share)]
            children.append(Child(command, environment={**os.environ, "PYTHONPATH": str(ROOT)}))
        time.sleep(1)
        if any(child.poll() is not None for child in children):
            raise Failed("no processor time can be taken away: that needs real-time priority, on Linux, as root")
        yield
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.wait(5)


def _take(core: int, share: float) -> None:
    os.sched_setaffinity(0, {core})
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    draw = random.Random(core)
    while True:
        period = draw.uniform(SHORTEST_S, LONGEST_S)
        end = time.monotonic() + period * share
        while time.monotonic() < end:
            pass
        time.sleep(period * (1 - share))


if __name__ == "__main__":
    _take(int(sys.argv[1]), float(sys.argv[2]))

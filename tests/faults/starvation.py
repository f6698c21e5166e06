"""Machines with too little processor time: `overload` shares it with busy processes; `starved` takes a part of it away in bursts, as the host of a virtual
machine does (on Linux, as root)."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence

from stockstream.children import Child
from tests.faults.workers import ROOT, Failed

SHORTEST_S, LONGEST_S = 0.02, 0.3


@contextlib.contextmanager
def running(commands: Sequence[Sequence[str]]) -> Iterator[list[Child]]:
    """Processes that run until the block ends."""
    children: list[Child] = []
    try:
        for command in commands:
            children.append(Child(command, environment={"PYTHONPATH": str(ROOT)}))
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait(5)


@contextlib.contextmanager
def overload(processes: int) -> Iterator[None]:
    """So many processes that do nothing but keep a core busy."""
    with running([[sys.executable, "-c", "while True: pass"]] * processes):
        yield


@contextlib.contextmanager
def starved(share: float) -> Iterator[None]:
    """Raises `Failed` where this process may not ask for real-time priority, or the system has none. A share of 0 takes nothing."""
    if not share:
        yield
        return
    if not 0 < share < 1:
        raise Failed(f"a share of {share:g} cannot be taken: it must be below 1")
    with running([[sys.executable, "-m", "tests.faults.starvation", str(core), str(share)] for core in sorted(os.sched_getaffinity(0))]) as children:
        time.sleep(1)
        if any(child.poll() is not None for child in children):
            raise Failed("no processor time can be taken away: that needs real-time priority, on Linux, as root")
        yield


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

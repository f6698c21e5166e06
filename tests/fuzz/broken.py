"""Targets with faults of their own, for the test of the fuzzer: one raises what it does not document, one ends its process, one passes."""

from __future__ import annotations

import os
import signal

from tests.fuzz.mutations import Rng
from tests.fuzz.targets import Batch, Target


def _raises(rng: Rng, count: int, batch: Batch) -> None:
    batch.given(b"x")
    raise KeyError("a field that is not there")


def _dies(rng: Rng, count: int, batch: Batch) -> None:
    batch.given(b"y")
    os.kill(os.getpid(), signal.SIGSEGV)


def _passes(rng: Rng, count: int, batch: Batch) -> None:
    for _ in range(count):
        batch.given(b"z")


TARGETS = (Target("raises", 0.2, 10, _raises), Target("dies", 0.1, 10, _dies), Target("passes", 0.7, 10, _passes))

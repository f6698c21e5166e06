"""Hostile input to every reader, in short; `python -m tests.fuzz --inputs 10000000` is the long form."""

from __future__ import annotations

import sys

import pytest

from tests.fuzz.__main__ import Fuzzing
from tests.requirements import NO_SIGNALS


@pytest.mark.slow
def test_only_documented_errors_come_of_hostile_input() -> None:
    fuzzing = Fuzzing(15_000, seed=16)
    assert fuzzing.run(say=False) == []
    assert fuzzing.done >= 15_000
    assert set(fuzzing.counts) == {"ticks.raw", "views", "watchlist", "windows", "ticks.clean", "states"}


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason=NO_SIGNALS)
def test_the_fuzzer_notices_undocumented_errors_and_processes_that_die_and_says_how_to_see_them_again() -> None:
    fuzzing = Fuzzing(300, seed=3, targets="tests.fuzz.broken")
    faults = fuzzing.run(say=False)
    raised = next(fault for fault in faults if fault.startswith("raises: KeyError"))
    died = next(fault for fault in faults if "ended with status -11" in fault)
    assert "Segmentation fault" in died
    assert all("again: python -m tests.fuzz --seed 3 --batch " in fault for fault in (raised, died))
    assert fuzzing.counts["passes"] >= 100, "the others go on"

"""What real feeds send and what must come of it: small recordings in `tests/fixtures/cases`, each run through `stockstream backtest`.

A case is a file of raw records, a line a record, and an entry in CASES: a function that checks what came of it. The files are of one partition,
source `s`, symbol `X` unless the function says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest

from tests import backtests
from tests.backtests import Ran

FOLDER = Path(__file__).parents[1] / "fixtures" / "cases"


def halt_of_20_min(ran: Ran) -> None:
    """After a silence of 20 minutes a new series begins, and its fall is none like a crash within a minute."""
    rows = ran.rows
    (reopened,) = [row for before, row in pairwise(rows) if row["second"] - before["second"] > 300]
    assert reopened["close"] == 8.5 and reopened["return_60s"] is None and reopened["seconds_5m"] == 1
    assert ran.opened("price_drop") == []


def small_price_alert(ran: Ran) -> None:
    """The text of the alert keeps the digits of a small price."""
    (alert,) = ran.opened("price_drop")
    assert "0.000301" in alert["message"] and "0.000318" in alert["message"]


CASES: dict[str, Callable[[Ran], None]] = {
    "halt_of_20_min": halt_of_20_min,
    "small_price_alert": small_price_alert,
}
"""By file, what is true of its results."""


@pytest.mark.parametrize("name", CASES)
def test_a_case_comes_out_as_it_should(name: str, tmp_path: Path) -> None:
    CASES[name](backtests.run(FOLDER / f"{name}.jsonl", tmp_path / "out"))


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.jsonl")))
def test_a_case_gives_the_same_in_any_chunks(name: str, tmp_path: Path) -> None:
    whole = backtests.run(FOLDER / f"{name}.jsonl", tmp_path / "whole")
    cut = backtests.run(FOLDER / f"{name}.jsonl", tmp_path / "cut", chunk=7)
    for path in sorted(whole.folder.iterdir()):
        assert path.read_bytes() == (cut.folder / path.name).read_bytes(), path.name

"""What feeds seldom send, through `stockstream backtest`: each was once answered wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import backtests
from tests.backtests import Ran

BEGIN = 1_760_000_000_000


def ran(tmp_path: Path, ticks: list[dict[str, Any]], chunk: int = 5_000) -> Ran:
    """A backtest of ticks of symbol X and source s, each with its `at` (ms since BEGIN) as event time and, unless it has a `timestamp`, as record time."""
    lines = []
    for tick in ticks:
        at = BEGIN + tick.pop("at")
        lines.append({"timestamp": tick.pop("timestamp", at), "value": {"symbol": "X", "source": "s", "event_time": at, "price": 10.0} | tick})
    return backtests.run(backtests.write(tmp_path / "log.jsonl", lines), tmp_path / "out", chunk=chunk, force=True)


@pytest.mark.parametrize("chunk", [1, 450, 5_000])
def test_a_placeholder_among_plain_sizes_is_no_size(tmp_path: Path, chunk: int) -> None:
    ticks = [{"at": 100 * number, "size": 9223372036.854775807 if number == 900 else 1} for number in range(1_500)]
    assert ran(tmp_path, ticks, chunk).volume == 1_499


@pytest.mark.parametrize("count", [50, 1_000])
def test_an_empty_trade_id_is_none(tmp_path: Path, count: int) -> None:
    found = ran(tmp_path, [{"at": 100 * number, "size": 1, "trade_id": ""} for number in range(count)])
    assert found.volume == count and found.tables["rejected"] == []


def test_a_figure_after_a_silence_that_is_too_high_does_not_stay(tmp_path: Path) -> None:
    before = [{"at": 1_000 * second, "day_volume": 1_000_000 + 100 * second} for second in range(10)]
    after = [{"at": 1_000 * (410 + number), "day_volume": figure} for number, figure in enumerate([1_900_000, *range(1_041_000, 1_042_000, 100)])]
    assert ran(tmp_path, before + after).volume == 900 + 900


def test_an_even_volume_that_is_polled_unevenly_is_no_spike(tmp_path: Path) -> None:
    ticks, at = [], 0
    for poll in range(140):
        at += 1_900 if poll % 10 == 9 else 2_100
        ticks.append({"at": at, "day_volume": at // 20})
    assert ran(tmp_path, ticks).tables["alerts"] == []


def test_a_tick_far_ahead_in_a_record_without_a_time_is_in_the_future(tmp_path: Path) -> None:
    good = [{"at": 1_000 * second, "size": 1} for second in range(60)]
    odd = {"at": 20 * 365 * 86_400_000, "size": 1, "timestamp": 0}
    found = ran(tmp_path, [*good[:30], odd, *good[30:]])
    assert found.volume == 60 and [one["reason"] for one in found.tables["rejected"]] == ["future"]


def test_a_numbering_without_epochs_begins_again_after_one_with(tmp_path: Path) -> None:
    first = [{"at": 1_000 * number, "size": 1, "seq": 1_000 + number, "epoch": 1} for number in range(5)]
    again = [{"at": 10_000 + 1_000 * number, "size": 1, "seq": 1 + number} for number in range(200)]
    found = ran(tmp_path, first + again)
    assert len(found.tables["rejected"]) < 20 and found.volume == 205 - len(found.tables["rejected"])

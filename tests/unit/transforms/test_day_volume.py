"""Shares from cumulative volumes: what counts, what begins a new count, what is taken back, and what is no figure at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.records import ACCRUED, CORRECTION
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner

NOW = 1_700_000_000_000
Rows = list[tuple[int, float, int]]


def cleaned(ticks: Sequence[dict[str, Any]], of: Cleaner | None = None) -> tuple[Rows, dict[str, int]]:
    """Seconds since NOW, size and flags of each row of `ticks.clean`, and what was counted for the metrics."""
    core = of or Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    begin = max(core.expect, 0)
    values = [json.dumps({"symbol": "X", "price": 10.0} | tick).encode() for tick in ticks]
    assert core.chunk([RawRecord(begin + number, NOW + 10**8, value) for number, value in enumerate(values)]) == []
    frame = core.make_frame()
    assert frame is not None
    columns = [frame.rows[name].to_pylist() for name in ("event_time", "size", "flags")]
    return [((at - NOW) // 1000, size, flags) for at, size, flags in zip(*columns, strict=True)], {reason: n for (_, reason), n in core.noted.items()}


def at(second: float, figure: float, **more: Any) -> dict[str, Any]:
    return {"event_time": NOW + int(second * 1000), "day_volume": figure} | more


def test_a_count_begins_with_no_shares_and_goes_on_with_what_it_rises_by() -> None:
    rows, noted = cleaned([at(0, 30_000_000), at(1, 30_000_100), at(2, 30_000_100), at(3, 30_000_350)])
    assert rows == [(0, 0, 0), (1, 100, 0), (2, 0, 0), (3, 250, 0)]
    assert noted == {"first": 1}


def test_a_fall_below_half_and_another_session_begin_a_new_count_whatever_the_day() -> None:
    rows, noted = cleaned([at(0, 5_000_000), at(1, 1_200), at(2, 1_300), at(3, 1_400, session="post"), at(4, 10, session="night"), at(5, 30)])
    assert rows == [(0, 0, 0), (1, 0, 0), (2, 100, 0), (3, 100, 0), (4, 0, 0), (5, 20, 0)]
    assert noted == {"first": 1, "new_count": 1, "new_session": 1}


def test_a_new_session_counts_anew_also_where_its_figure_is_higher() -> None:
    rows, _ = cleaned([at(0, 100, session="regular"), at(1, 900, session="post"), at(2, 950, session="post")])
    assert [size for _, size, _ in rows] == [0, 0, 50]


def test_a_smaller_fall_is_a_correction_and_the_highest_figure_stays() -> None:
    rows, noted = cleaned([at(0, 1_000), at(1, 990), at(2, 995), at(3, 1_010)])
    assert [size for _, size, _ in rows] == [0, 0, 0, 10]
    assert noted == {"first": 1, "correction": 2}


@pytest.mark.parametrize(("seconds", "size", "flags"), [(2, 70, 0), (2.001, 70, ACCRUED), (300, 70, ACCRUED), (300.001, 0, 0), (86_400, 0, 0)])
def test_what_accrued_over_more_than_two_seconds_is_flagged_and_over_more_than_a_window_left_out(seconds: float, size: float, flags: int) -> None:
    rows, _ = cleaned([at(0, 1_000), at(seconds, 1_070), at(seconds + 1, 1_100)])
    assert rows[1:] == [(int(seconds), size, flags), (int(seconds + 1), 30, 0)]


def test_after_a_silence_a_lower_figure_is_a_new_count_too() -> None:
    """Else yesterday's total would stay the highest until today's has passed it."""
    rows, noted = cleaned([at(0, 30_000_000), at(3_600, 20_000_000), at(3_601, 20_000_100)])
    assert [size for _, size, _ in rows] == [0, 0, 100] and noted == {"first": 1, "silence": 1}


@pytest.mark.parametrize("impossible", [1_200, 1_999, 6_000_000_000, 10**15])
@pytest.mark.parametrize("times", [1, 3])
def test_a_rise_that_the_next_figure_takes_back_is_corrected_in_its_second(impossible: int, times: int) -> None:
    rows, noted = cleaned([at(0, 1_000), at(1, 1_100), *[at(1.5, impossible)] * times, at(2, 1_150), at(3, 1_180)])
    wrong = min(impossible - 1_100, 10**11)
    assert rows == [(0, 0, 0), (1, 100, 0), (1, wrong, 0), *[(1, 0, 0)] * (times - 1), (1, -wrong, CORRECTION), (2, 50, 0), (3, 30, 0)]
    assert noted == {"first": 1, "taken_back": 1}


def test_the_correction_has_the_place_of_the_figure_that_revealed_it_and_the_price_of_the_rise() -> None:
    core = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    ticks = [at(0, 1_000), at(1, 9_000, price=11.0, bid=10.9), at(2, 1_010)]
    value = json.dumps([{"symbol": "X", "price": 10.0} | tick for tick in ticks]).encode()
    core.chunk([RawRecord(0, NOW + 10_000, b"no"), RawRecord(1, NOW + 10_000, value)])
    frame = core.make_frame()
    assert frame is not None and core.accepted == 3
    row = frame.rows.slice(2, 1).to_pylist()[0]
    assert {name: value for name, value in row.items() if value is not None} == {
        "symbol": "X", "source": "default", "event_time": NOW + 1_000, "price": 11.0, "size": -8_000, "flags": CORRECTION, "offset": 1, "index": 2,
    }  # fmt: skip
    assert frame.rows["index"].to_pylist() == [0, 1, 2, 2]


def test_a_correction_of_accrued_shares_is_accrued_too() -> None:
    rows, _ = cleaned([at(0, 1_000), at(5, 9_000), at(6, 1_010)])
    assert rows[1:] == [(5, 8_000, ACCRUED), (5, -8_000, CORRECTION | ACCRUED), (6, 10, ACCRUED)]


def test_a_rise_is_not_corrected_where_its_second_can_be_revised_no_more() -> None:
    other = {"symbol": "Y", "event_time": NOW + 40_000, "size": 1}
    rows, noted = cleaned([at(0, 1_000), at(1, 9_000), other, at(41, 1_020)])
    assert rows == [(0, 0, 0), (1, 8_000, 0), (40, 1, 0), (41, 20, ACCRUED)]
    assert noted == {"first": 1, "taken_back": 1, "not_revised": 1}


def test_a_rise_whose_shares_came_with_the_tick_needs_no_correction() -> None:
    rows, _ = cleaned([at(0, 1_000), at(1, 9_000, size=5), at(2, 1_020)])
    assert rows == [(0, 0, 0), (1, 5, 0), (2, 20, 0)]


def test_an_impossible_low_figure_does_not_stay_either() -> None:
    rows, noted = cleaned([at(0, 1_000_000), at(1, 12), at(1.5, 12), at(2, 1_000_100), at(3, 1_000_150)])
    assert [size for _, size, _ in rows] == [0, 0, 0, 100, 50]
    assert noted == {"first": 1, "new_count": 1, "taken_back": 1}


def test_a_late_figure_changes_nothing_where_it_is_lower_and_counts_where_it_is_higher() -> None:
    rows, noted = cleaned([at(0, 100), at(2, 300), at(1, 120), at(3, 310), at(2.5, 330), at(4, 340)])
    assert [size for _, size, _ in rows] == [0, 200, 0, 10, 20, 10] and noted == {"first": 1, "out_of_order": 1}


@pytest.mark.parametrize("nothing", [-1, 2**31 - 1, 2**32 - 1, 4294967295.0, 0])
def test_a_figure_that_means_nothing_changes_nothing(nothing: float) -> None:
    rows, noted = cleaned([at(0, 100), at(1, nothing), at(2, nothing, size=7), at(2, 130)])
    assert [size for _, size, _ in rows] == [0, 0, 7, 30] and noted == {"first": 1, "no_figure": 2}


def test_zero_counts_where_a_count_begins() -> None:
    rows, _ = cleaned([at(0, 0, session="a"), at(1, 0), at(2, 30), at(3, 0, session="b"), at(4, 5), at(5, 0, session="c"), at(6, 20)])
    assert [size for _, size, _ in rows] == [0, 0, 30, 0, 5, 0, 20]


@pytest.mark.parametrize("nothing", [-1, 2**31 - 1, 2**32 - 1, 4294967295.0])
def test_a_size_that_means_nothing_is_none(nothing: float) -> None:
    trade = {"event_time": NOW, "size": nothing}
    rows, noted = cleaned([trade, trade, {"event_time": NOW, "size": nothing, "price": None}, at(1, 100, size=nothing), at(2, 130, size=nothing)])
    assert [size for _, size, _ in rows] == [0, 0, 0, 0, 30]
    assert noted == {"first": 1, "no_size": 5}


def test_six_billion_shares_are_counted() -> None:
    rows, _ = cleaned([at(0, 5_999_999_000), at(1, 6_000_000_000), at(2, 6_000_000_300)])
    assert [size for _, size, _ in rows] == [0, 1_000, 300]


def test_a_quote_s_figure_is_left_to_the_next_trade() -> None:
    rows, _ = cleaned([at(0, 100), at(1, 150, price=None), at(2, 160)])
    assert [size for _, size, _ in rows] == [0, 0, 60]


@given(st.lists(st.integers(0, 10**12), min_size=1, max_size=20), st.integers(0, 10**14))
def test_rises_are_exact_to_eight_decimals(rises: list[int], begin: int) -> None:
    figures = [begin + sum(rises[:count]) for count in range(len(rises) + 1)]
    as_doubles = [float(Decimal(figure) / 10**8) for figure in figures]
    if max(figures) >= 2**53:
        return                                                           # a double does not have all decimals of such a figure
    rows, _ = cleaned([at(number, figure) for number, figure in enumerate(as_doubles)])
    assert [size for _, size, _ in rows] == [0, *(float(Decimal(rise) / 10**8) for rise in rises)] or 0 in as_doubles


@given(st.data())
def test_a_restart_anywhere_changes_nothing(data: st.DataObject) -> None:
    figures = st.sampled_from([1_000, 1_010, 1_100, 1_500.5, 9_000, 400, 12, 0, -1, 2**32 - 1])
    steps = st.sampled_from([0, 0.5, 1, 3, -1, 301])
    ticks: list[dict[str, Any]] = []
    second = 0.0
    for figure, step in data.draw(st.lists(st.tuples(figures, steps), min_size=2, max_size=12)):
        second += step
        ticks.append(at(max(second, 0), figure, seq=len(ticks)))
    whole, cut = (Cleaner(0, 1, lateness_ms=200, revise_s=400, log="x") for _ in range(2))
    want, _ = cleaned(ticks, whole)
    got: Rows = []
    for tick in ticks:
        got += cleaned([tick], cut)[0]
        cut = Cleaner.restore(0, 1, dict(cut.records(0)), lateness_ms=200, revise_s=400)
    assert got == want

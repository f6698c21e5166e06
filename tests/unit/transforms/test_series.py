"""Gaps, changes of currency and prices that look like a split: what `clean` carries, and what rows show of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from stockstream.transforms import batch
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import judging
from stockstream.transforms.cleaning import state as cleaning_state
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.splits import SPLITS, possible_split

BEGIN = 1_700_000_000
Tick = dict[str, Any]


@pytest.fixture(autouse=True)
def one_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)


def tick(second: float, price: float | None = 10.0, **more: Any) -> Tick:
    return {"symbol": "X", "event_time": int((BEGIN + second) * 1000), "price": price, "size": 100 if price else 0, "source": "s"} | more


def records(ticks: list[Tick]) -> list[RawRecord]:
    return [RawRecord(offset, 1 << 41, json.dumps(one).encode()) for offset, one in enumerate(ticks)]


def cleaned(ticks: list[Tick], *, restarts: bool = False) -> tuple[list[tuple[int, int | None, float | None]], list[str]]:
    """What each accepted tick carries (flags, gap, price before it), and the reasons of the others."""
    core = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    carried: list[tuple[int, int | None, float | None]] = []
    rejected: list[str] = []
    for one in records(ticks):
        rejected += [rejection.reason for rejection in core.chunk([one])]
        frame = core.make_frame()
        assert frame is not None
        carried += zip(*(frame.rows[name].to_pylist() for name in ("flags", "gap_s", "price_before_gap")), strict=True)
        if restarts:
            core = Cleaner.restore(0, 1, dict(core.records(0)), lateness_ms=200, revise_s=30)
    return carried, rejected


def rows(ticks: list[Tick], chunk: int = 5_000) -> list[dict[str, Any]]:
    """The rows of a log that is closed at its end; of several of one symbol and second the last."""
    newest = max(one["event_time"] for one in ticks) // 1000
    log = [*records(ticks), RawRecord(len(ticks), 1 << 41, json.dumps({"punctuate": newest, "source": "s"}).encode())]
    found = batch.run(log, partition=0, partitions=1, chunk=chunk).rows().to_pylist()
    return list({(row["symbol"], row["second"]): row for row in found}.values())


@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted"])
@pytest.mark.parametrize(
    ("second", "carries"), [(60, (0, None, None)), (61, (0, 61, 10.0)), (8 * 3600, (0, 8 * 3600, 10.0)), (8 * 3600 + 1, (0, None, None))]
)  # fmt: skip
def test_a_trade_after_more_than_a_minute_carries_the_gap(second: int, carries: tuple[int, int | None, float | None], restarts: bool) -> None:
    carried, _ = cleaned([tick(0), tick(30, None), tick(second, 11.0)], restarts=restarts)
    assert carried[2] == carries, "a quote is no trade"


def test_the_newest_trade_counts_and_not_the_last() -> None:
    carried, _ = cleaned([tick(10, 5.0), tick(9, 4.0), tick(75, 6.0), tick(74, 7.0), tick(140, 8.0)])
    assert [(gap, price) for _, gap, price in carried] == [(None, None), (None, None), (65, 5.0), (None, None), (65, 6.0)]


@pytest.mark.parametrize("restarts", [False, True], ids=["", "restarted"])
def test_another_currency_begins_a_series_and_ticks_of_before_are_late(restarts: bool) -> None:
    ticks = [
        tick(0, currency="GBp"), tick(1), tick(2, currency=""), tick(3, currency="GBP"), tick(3.5, currency="GBP"), tick(2.9), tick(4), tick(100),
        tick(101, currency="GBp"),
    ]  # fmt: skip
    carried, rejected = cleaned(ticks, restarts=restarts)
    assert [flags for flags, _, _ in carried] == [0, 0, 0, 4, 0, 0, 0, 4] and rejected == ["late"]
    assert [gap for _, gap, _ in carried] == [None] * 6 + [96, None]


def test_no_gap_leads_to_another_currency() -> None:
    carried, _ = cleaned([tick(0, currency="GBp"), tick(100, currency="GBP")])
    assert carried[1] == (4, None, None)


def test_a_currency_that_comes_before_the_symbols_newest_second_or_into_a_sent_one_is_late() -> None:
    carried, rejected = cleaned([tick(5, currency="GBp"), tick(4, currency="GBP"), tick(7, symbol="Y"), tick(5.5, currency="GBP"), tick(6, currency="GBP")])
    assert rejected == ["late", "late"] and [flags for flags, _, _ in carried] == [0, 0, 4]


def test_a_snapshot_of_an_earlier_release_knows_no_series() -> None:
    core = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    core.chunk(records([tick(0, currency="GBp")]))
    core.make_frame()
    state = cleaning_state.decoded(core.snapshot())
    assert (state.currencies, state.held_traded, state.held_price) == (["GBp"], [BEGIN], [10.0])
    state.held_traded, state.held_price, state.held_currencies, state.held_since, state.currencies = [], [], [], [], []
    state.require_fitting()
    (held,) = state.held().values()
    assert (held.traded, held.currency, held.since) == (0, None, 0)
    state.held_currencies = [1]
    with pytest.raises(ValueError, match="none of its list"):
        msgspec.structs.replace(state, currencies=["GBp"]).require_fitting()


@pytest.mark.parametrize("chunk", [1, 3, 5_000])
def test_nothing_of_before_a_change_of_currency_is_in_a_row(chunk: int) -> None:
    """The row of the change leaves out what came before within its second, too."""
    before = [tick(second, 8_000.0, currency="GBp") for second in range(50)]
    now = [tick(49.7, 80.0, currency="GBP"), *(tick(second, 80.0) for second in range(50, 60))]
    found = rows(before + now, chunk)
    assert len(found) == 60 and found[48]["volume_5m"] == 4_900
    first = found[49]
    assert (first["open"], first["volume"], first["ticks"], first["quality"]) == (80.0, 100, 1, "partial,new_series")
    assert [(row["high_5m"], row["seconds_5m"], row["volume_5m"]) for row in found[49:]] == [(80.0, n, 100 * n) for n in range(1, 12)]
    assert found[50]["return_1s"] == 0.0 and found[59]["return_10s"] == 0.0 and found[59]["return_30s"] is None


@pytest.mark.parametrize("chunk", [1, 4, 5_000])
def test_a_symbol_behind_its_source_changes_its_currency(chunk: int) -> None:
    """All its seconds are closed when its ticks come."""
    ticks = [one for n in range(40) for one in (tick(n, symbol="FAST"), tick(n - 2, 8_000.0 if n < 20 else 80.0, currency="GBp" if n < 20 else "GBP"))]
    found = {row["second"] - BEGIN: row for row in rows(ticks, chunk) if row["symbol"] == "X"}
    assert found[17]["high_5m"] == 8_000.0 and found[17]["quality"] == "partial,late"
    assert found[18]["quality"] == "partial,late,new_series" and found[18]["volume_5m"] == 100
    assert [found[second]["volume_5m"] for second in range(18, 38)] == [100 * n for n in range(1, 21)]
    assert {found[second]["low_5m"] for second in range(18, 38)} == {80.0} and not any(row["revised"] for row in found.values())


@pytest.mark.parametrize("chunk", [1, 5_000])
def test_what_was_traded_in_the_currency_before_is_not_taken_back(chunk: int) -> None:
    totals = [(0, 1_000, "GBp"), (1, 1_100, "GBp"), (2, 9_000, "GBp"), (2.5, 1_200, "GBP"), (3, 1_300, "GBP")]
    ticks = [tick(second, day_volume=total, currency=currency) for second, total, currency in totals]
    for one in ticks:
        del one["size"]
    found = rows(ticks, chunk)
    assert [row["volume"] for row in found] == [0, 100, 100, 100]


@pytest.mark.parametrize("split", [*SPLITS, *(1 / split for split in SPLITS)])
def test_prices_within_two_percent_of_a_split_are_possible_splits(split: float) -> None:
    before = np.full(5, 200.0)
    found = possible_split(before, before * split * np.array([0.979, 0.981, 1.0, 1.019, 1.021]))
    assert found.tolist() == [False, True, True, True, False]


def test_ordinary_prices_and_none_are_no_splits() -> None:
    before, price = np.array([100.0, 100.0, np.nan, 100.0, 100.0]), np.array([100.0, 130.0, 50.0, np.nan, 63.0])
    assert not possible_split(before, price).any()


def test_a_split_is_seen_across_a_gap_and_only_once() -> None:
    found = rows([tick(0, 200.0), tick(1, 200.0), tick(601, 100.0), tick(602, 100.0)])
    assert [row["quality"] for row in found] == ["partial", "partial", "partial,after_gap,possible_split", "partial"]

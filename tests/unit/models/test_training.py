from __future__ import annotations

import math
import random
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from models import features, training, xgboost
from models.training import TrainingError, columns_of, label, split_by_time, train


def table(rows: list[dict[str, Any]]) -> pa.Table:
    names = ("symbol", "source", "revised", *features.COLUMNS)
    blank = dict.fromkeys(features.COLUMNS, math.nan) | {"source": "s", "revised": False, "seconds_5m": 300}
    full = [blank | row for row in rows]
    return pa.table({name: [row[name] for row in full] for name in names})


def market(seconds: int, symbols: int = 2, seed: int = 0, start: int = 1_700_000_000, signal: float = 0.6) -> pa.Table:
    """A series whose next step has the sign of the book's imbalance more often than not."""
    rng = np.random.default_rng(seed)
    rows = []
    for symbol in range(symbols):
        imbalance = np.repeat(rng.choice([-0.5, 0.5], seconds // 10 + 1), 10)[:seconds]
        steps = 1e-4 * (signal * imbalance + rng.normal(0, 0.5, seconds))
        price = 100 * np.exp(np.concatenate([[0], np.cumsum(steps)[:-1]]))
        for i in range(seconds):
            rows.append({
                "symbol": f"S{symbol}", "second": start + i, "price": price[i], "mid": price[i], "close": price[i],
                "bid": price[i] - 0.01, "ask": price[i] + 0.01, "bid_size": 100 * (1 + imbalance[i]), "ask_size": 100 * (1 - imbalance[i]),
                "return_std_5m": 1e-4, "volume_5m": 300, "volume_10s": 10, "volume_60s": 60, "ticks_10s": 10, "ticks_5m": 300,
            })  # fmt: skip
    return table(rows)


def slow_label(rows: list[dict[str, Any]], horizon: int) -> dict[tuple[str, int], float]:
    """The definition, row by row."""
    out = {}
    for row in rows:
        own = sorted((r for r in rows if r["symbol"] == row["symbol"]), key=lambda r: r["second"])
        series = [own[0]]
        found = row is own[0]
        for before, now in pairwise(own):
            if now["second"] - before["second"] > 300 or now["seconds_5m"] < before["seconds_5m"]:
                if found:
                    break
                series = []
            series.append(now)
            found |= now is row
        if row["second"] + horizon <= series[-1]["second"]:
            then = [r for r in series if r["second"] <= row["second"] + horizon][-1]
            out[row["symbol"], row["second"]] = math.log(then["price"] / row["price"])
    return out


@given(st.integers(0, 1 << 32), st.sampled_from((1, 10, 60, 299)))
@settings(max_examples=60, deadline=None)
def test_labels_are_their_definition(seed: int, horizon: int) -> None:
    rng = random.Random(seed)
    rows = []
    for symbol in "AB":
        second, age = 1_000, 1
        for _ in range(rng.randint(1, 40)):
            step = rng.choice((1, 1, 2, 5, 9, 10, 11, 60, 300, 301, 5_000))
            second += step
            age = 1 if step > 300 or rng.random() < 0.03 else min(300, age + step)
            rows.append({"symbol": symbol, "second": second, "price": rng.choice((99.0, 100.0, 101.0)), "seconds_5m": age})
    columns = columns_of(table(rows))
    got = {("AB"[int(s)], int(t)): r for s, t, r in zip(columns["series"], columns["second"], label(columns, horizon), strict=True) if not np.isnan(r)}
    assert got == pytest.approx(slow_label(rows, horizon))


def test_a_label_never_sees_beyond_its_horizon() -> None:
    rows = [{"symbol": "A", "second": 100 + i, "price": 100.0 + (i > 10)} for i in range(30)]
    changed = label(columns_of(table(rows)), 10)
    assert changed[0] == 0 and changed[1] > 0
    assert np.isnan(changed[20:]).all() and not np.isnan(changed[:20]).any()


def test_revised_rows_and_rows_without_price_are_left_out() -> None:
    good = {"symbol": "A", "second": 1, "price": 1.0}
    assert columns_of(table([good, good | {"price": 2.0, "revised": True}, good | {"second": 2, "price": None}]))["price"].tolist() == [1.0]


def test_a_second_twice_is_reported() -> None:
    rows = [{"symbol": "A", "second": 1, "price": 1.0}, {"symbol": "B", "second": 7, "price": 1.0}, {"symbol": "B", "second": 7, "price": 2.0}]
    with pytest.raises(TrainingError, match="symbol B has second 7 twice: do the files overlap"):
        columns_of(table(rows))


@given(st.lists(st.integers(0, 10_000), min_size=10, max_size=200), st.integers(1, 120))
def test_parts_are_in_order_of_time_with_the_horizon_between(seconds: list[int], horizon: int) -> None:
    second = np.array(sorted(seconds), np.int64)
    parts: list[NDArray[np.int64]] = [second[part] for part in split_by_time(second).parts(second, horizon)]
    for earlier, later in ((parts[0], parts[1]), (parts[1], parts[2]), (parts[0], parts[2])):
        if len(earlier) and len(later):
            assert earlier.max() + horizon < later.min()


def test_a_model_learns_what_is_there_and_knows_how_good_it_is() -> None:
    trained = train(columns_of(market(3_000)), (1,), rounds=40)
    numbers = trained.metrics["1"]
    assert numbers["correlation"] > 0.4 and numbers["brier"] < numbers["brier_baseline"] - 0.02
    assert trained.rows["train"] > trained.rows["test"] > 0
    model = xgboost.load("m", "v", features.feature_hash(), trained.files)
    later = columns_of(market(2_000, seed=9))
    returns = label(later, 1)
    predicted, p_up = model.predict(features.matrix(later))
    known = np.isfinite(returns)
    assert np.corrcoef(predicted[known, 0], returns[known])[0, 1] > 0.4
    for low, high in ((0.0, 0.5), (0.5, 1.0)):          # p_up means what it says, on days it has not seen
        these = known & (p_up[:, 0] > low) & (p_up[:, 0] <= high)
        assert (returns[these] > 0).mean() == pytest.approx(p_up[these, 0].mean(), abs=0.06)


def test_where_nothing_is_to_learn_it_says_so() -> None:
    numbers = train(columns_of(market(3_000, signal=0.0)), (10,), rounds=40).metrics["10"]
    assert abs(numbers["correlation"]) < 0.2
    assert numbers["brier"] < numbers["brier_baseline"] + 0.02


def test_the_same_data_gives_the_same_model() -> None:
    columns = columns_of(market(1_000))
    assert train(columns, (10,), rounds=5).files == train(columns, (10,), rounds=5).files


def test_other_data_to_measure_on_must_be_later() -> None:
    columns = columns_of(market(1_500))
    later = columns_of(market(600, seed=3, start=1_700_010_000))
    assert train(columns, (10,), test=later, rounds=5).rows["test"] == 2 * 590
    with pytest.raises(TrainingError, match="begins before the training data ends"):
        train(later, (10,), test=columns, rounds=5)


def test_too_little_data_is_reported() -> None:
    with pytest.raises(TrainingError, match="too little data to calibrate at 10 s"):
        train(columns_of(market(600)), (10,), rounds=5)
    with pytest.raises(TrainingError, match="no rows"):
        train({name: values[:0] for name, values in columns_of(market(20)).items()}, (10,), rounds=5)


def test_training_sees_nothing_of_the_test_part() -> None:
    columns = columns_of(market(3_000))
    begin = training.split_by_time(columns["second"]).test_from
    assert begin is not None
    spoiled = {name: np.where(columns["second"] >= begin, values[::-1], values) for name, values in columns.items() if name not in ("second", "series")}
    spoiled |= {name: columns[name] for name in ("second", "series")}
    # prices of the test part must not reach into labels before it
    assert train(columns, (10,), rounds=5).files == train(spoiled, (10,), rounds=5).files

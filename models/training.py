"""Trains a model on `windows` rows, with labels without look-ahead, splits by time, and measures on rows that the model has not seen.

A row at second s is known at the end of that second. Its label over h seconds is log(price then / price), where 'price then' is the price of the last row
of the same series with a second <= s + h, as in the outcomes of `score`. A row has no label if s + h is beyond the series' last row, because its outcome
is unknown. No label spans a gap: a series ends after more than 300 s without a row, or where `seconds_5m` restarts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from models import features, xgboost
from models.evaluation import evaluate

SERIES_GAP_S = features.WINDOW_S
MIN_ROWS = 200
"""The least number of labelled rows in a part, for training or measuring."""

Columns = dict[str, NDArray[Any]]


class TrainingError(Exception):
    """No model can be trained on the data. Its text is one line."""


@dataclass(frozen=True)
class Split:
    """Boundaries in epoch seconds: rows before `calibrate_from` train, rows before `test_from` calibrate, the rest test. None: there is no test part."""

    calibrate_from: int
    test_from: int | None

    def parts(self, second: NDArray[np.int64], horizon_s: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.bool_]]:
        """Masks (n,) of the three parts. A row whose label reaches into the next part (second + horizon at or after its begin) is in none: the embargo."""
        end = np.iinfo(np.int64).max if self.test_from is None else self.test_from
        train = second + horizon_s < self.calibrate_from
        calibrate = (second >= self.calibrate_from) & (second + horizon_s < end)
        return train, calibrate, second >= end


@dataclass(frozen=True)
class Trained:
    """A trained model as files, with its `metrics` on the test part by horizon, and its `rows` by part."""

    files: dict[str, bytes]
    horizons_s: tuple[int, ...]
    metrics: dict[str, dict[str, Any]]
    rows: dict[str, int]
    split: Split


def columns_of(table: pa.Table) -> Columns:
    """The columns of `windows` rows for training, sorted by series and second: `features.COLUMNS` and `series` (int64, a number per symbol and source).

    Rows that are `revised` or have no price are left out, as in `score`. Raises `TrainingError` if a series has a second twice.
    """
    price, revised = table.column("price").to_numpy(), table.column("revised").to_numpy()
    table = table.filter(pa.array((price > 0) & ~revised))
    codes = [np.unique(np.asarray(table.column(name).to_pylist(), dtype=object).astype(str), return_inverse=True) for name in ("symbol", "source")]
    series = codes[0][1] * max(1, len(codes[1][0])) + codes[1][1]
    second = table.column("second").to_numpy()
    order = np.lexsort((second, series))
    out: Columns = {name: table.column(name).to_numpy()[order] for name in features.COLUMNS}
    out["series"] = series.astype(np.int64)[order]
    twice = (np.diff(out["series"]) == 0) & (np.diff(out["second"]) == 0)
    if twice.any():
        row = order[int(np.argmax(twice))]
        raise TrainingError(f"symbol {table.column('symbol')[int(row)].as_py()} has second {int(second[row])} twice: do the files overlap?")
    return out


def label(columns: Mapping[str, NDArray[Any]], horizon_s: int) -> NDArray[np.float64]:
    """The log return of `price` over `horizon_s` seconds, (n,) float64, NaN for rows without a label. Rows must be sorted by `series` and `second`."""
    second, price = columns["second"].astype(np.int64), columns["price"]
    if not len(second):
        return np.empty(0)
    step = np.diff(second)
    breaks = (np.diff(columns["series"]) != 0) | (step > SERIES_GAP_S) | (np.diff(columns["seconds_5m"]) < 0)
    number = np.concatenate([[0], np.cumsum(breaks)])
    last = second[np.concatenate([np.flatnonzero(breaks), [len(second) - 1]])][number]
    # one ascending key for all series; a series is found within its own numbers only
    span = np.int64(second.max() - second.min() + horizon_s + 1)
    key = number * span + (second - second.min())
    then = np.searchsorted(key, key + horizon_s, side="right") - 1
    out: NDArray[np.float64] = np.log(price[then] / price)
    out[second + horizon_s > last] = np.nan
    return out


def split_by_time(second: NDArray[np.int64], calibrate: float = 0.15, test: float = 0.15) -> Split:
    """A split by time: the last `test` share of the rows tests, the `calibrate` share before it calibrates. With `test` 0 there is no test part.

    Raises `TrainingError` if there are no rows.
    """
    if not len(second):
        raise TrainingError("no rows to train on")
    test_from = int(np.quantile(second, 1 - test)) if test else None
    return Split(int(np.quantile(second, 1 - test - calibrate)), test_from)


def train(
    columns: Columns,
    horizons_s: Sequence[int] = (10, 60),
    *,
    test: Columns | None = None,
    rounds: int = xgboost.ROUNDS,
    seed: int = 1,
    threads: int = 1,
    progress: Callable[[str], None] = lambda step: None,
) -> Trained:
    """Trains, calibrates and measures a model. The model measured is the model returned, and it never sees its test rows.

    `columns`, and `test` if other data is to measure the model, come from `columns_of`. `progress` is called with a text for each step. Raises
    `TrainingError` if there is too little data, or if the test data begins before the training data ends.
    """
    second = columns["second"].astype(np.int64)
    split = split_by_time(second, test=0.0 if test is not None else 0.15)
    if test is not None and len(test["second"]) and int(test["second"].min()) <= int(second.max(initial=0)):
        raise TrainingError("the test data begins before the training data ends")
    matrix = features.matrix(columns)
    test_matrix = features.matrix(test) if test is not None else matrix
    horizon_models, metrics = [], {}
    rows: dict[str, int] = {}
    for horizon_s in horizons_s:
        returns = label(columns, horizon_s)
        known = np.isfinite(returns)
        parts = [part & known for part in split.parts(second, horizon_s)]
        counts = dict(zip(("train", "calibrate", "test"), (int(part.sum()) for part in parts), strict=True))
        test_returns = returns[parts[2]]
        if test is not None:
            test_returns = label(test, horizon_s)
            counts["test"] = int(np.isfinite(test_returns).sum())
        for part, count in counts.items():
            if count < MIN_ROWS:
                raise TrainingError(f"too little data to {part} at {horizon_s} s: {count} rows with a known outcome, {MIN_ROWS} are needed")
        progress(f"{horizon_s} s: training on {counts['train']:,} rows")
        horizon_model = xgboost.train_horizon(horizon_s, matrix[parts[0]], returns[parts[0]], rounds=rounds, seed=seed, threads=threads)
        baseline = float((returns[parts[0]] > 0).mean())
        independent = len(np.unique(second[parts[1]])) / horizon_s
        horizon_model = xgboost.calibrated(horizon_model, matrix[parts[1]], returns[parts[1]], base=baseline, independent=independent)
        progress(f"{horizon_s} s: measuring on {counts['test']:,} rows")
        alone = xgboost.XGBoostModel("", "", features.feature_hash(), (horizon_model,))
        predicted, p_up = alone.predict(test_matrix if test is not None else matrix[parts[2]])
        metrics[str(horizon_s)] = evaluate(predicted[:, 0], p_up[:, 0], test_returns, baseline)
        horizon_models.append(horizon_model)
        rows = rows or counts
    model = xgboost.XGBoostModel("", "", features.feature_hash(), tuple(horizon_models))
    return Trained(model.files(), tuple(horizons_s), metrics, rows, split)

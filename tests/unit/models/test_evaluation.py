from __future__ import annotations

import numpy as np
import pytest

from models.evaluation import evaluate


def test_numbers_by_hand() -> None:
    got = evaluate(np.array([1.0, -1.0, 1.0, 2.0]), np.array([0.8, 0.3, 0.5, 0.9]), np.array([0.1, 0.1, 0.0, np.nan]), 0.5)
    assert got["n"] == 3 and got["moved"] == 2
    assert got["sign_hit_rate"] == 0.5
    assert got["up_rate"] == pytest.approx(2 / 3)
    assert got["brier"] == pytest.approx((0.2**2 + 0.7**2 + 0.5**2) / 3)
    assert got["brier_baseline"] == pytest.approx(0.25)
    assert got["log_loss"] == pytest.approx(-(np.log(0.8) + np.log(0.3) + np.log(0.5)) / 3)
    assert got["log_loss_baseline"] == pytest.approx(np.log(2))
    assert got["correlation"] == pytest.approx(np.corrcoef([1, -1, 1], [0.1, 0.1, 0.0])[0, 1])


def test_perfect_and_constant() -> None:
    realised = np.array([1.0, -1.0, 2.0])
    perfect = evaluate(realised, np.array([1.0, 0.0, 1.0]), realised, 0.5)
    assert perfect["correlation"] == pytest.approx(1) and perfect["sign_hit_rate"] == 1 and perfect["brier"] == 0
    assert evaluate(np.zeros(3), np.full(3, 0.5), realised, 0.5)["correlation"] is None


def test_nothing_known() -> None:
    got = evaluate(np.zeros(2), np.zeros(2), np.full(2, np.nan), 0.5)
    assert got["n"] == 0 and got["correlation"] is None and set(got) == set(evaluate(np.zeros(1), np.zeros(1), np.ones(1), 0.5))


def test_certain_and_wrong_is_finite() -> None:
    loss = evaluate(np.ones(1), np.zeros(1), np.ones(1), 0.5)["log_loss"]
    assert loss is not None and 10 < loss < 20

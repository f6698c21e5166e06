from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from models import ScoringModel, features, xgboost
from models.xgboost import HorizonModel, XGBoostModel, calibrated, platt, train_horizon
from tests.contracts.model import ModelContract, feature_rows


def sample(n: int, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    matrix = feature_rows(n, seed)
    return matrix, 1e-4 * (np.nan_to_num(matrix[:, 3]) + np.random.default_rng(seed + 1_000).normal(size=n))


@pytest.fixture(scope="module")
def trained() -> XGBoostModel:
    matrix, returns = sample(2_000)
    horizon_models = [calibrated(train_horizon(h, matrix, returns, rounds=30), matrix, returns, base=0.5, independent=2_000) for h in (10, 60)]
    return XGBoostModel("m", "v", features.feature_hash(), tuple(horizon_models))


class TestXGBoostModel(ModelContract):
    kind = "xgboost"

    @pytest.fixture
    def model(self, trained: XGBoostModel) -> ScoringModel:
        return trained

    def files(self, model: ScoringModel) -> dict[str, bytes]:
        assert isinstance(model, XGBoostModel)
        return model.files()


def test_it_learns_what_there_is_to_learn(trained: XGBoostModel) -> None:
    matrix, returns = sample(500, seed=6)
    predicted, p_up = trained.predict(matrix)
    assert (p_up > 0).all() and (p_up < 1).all() and np.abs(predicted).max() < 0.01
    assert np.corrcoef(predicted[:, 0], returns)[0, 1] > 0.3
    assert trained.horizons_s == (10, 60)


def test_the_forest_says_what_each_booster_says(trained: XGBoostModel) -> None:
    matrix, returns = sample(1_000, seed=8)
    several = XGBoostModel("m", "v", "", (trained.horizon_models[0], train_horizon(60, matrix, 3e-5 - returns, rounds=20)))
    apart = [b.inplace_predict(matrix, predict_type="margin", validate_features=False) for model in several.horizon_models for b in (model.returns, model.up)]
    np.testing.assert_allclose(several.forest.margins(matrix), np.column_stack(apart), rtol=0, atol=2e-6)
    assert all(np.abs(np.corrcoef(apart[0], other)[0, 1]) < 0.999 for other in apart[1:])


def test_files_of_something_else_are_refused(trained: XGBoostModel) -> None:
    files = trained.files()
    with pytest.raises(ValueError, match="not a booster"):
        xgboost.load("m", "v", "h", files | {"up_10s.ubj": b"{garbage"})
    with pytest.raises(KeyError):
        xgboost.load("m", "v", "h", {"heads.json": files["heads.json"]})
    with pytest.raises(ValueError, match="without boosters"):
        xgboost.load("m", "v", "h", {"heads.json": b"[]"})
    assert [item["horizon_s"] for item in json.loads(files["heads.json"])] == [10, 60]


def test_platt_finds_slope_and_intercept() -> None:
    rng = np.random.default_rng(1)
    margin = rng.normal(size=20_000)
    up = (rng.random(20_000) < 1 / (1 + np.exp(-(0.5 * margin - 1)))).astype(np.float64)
    slope, intercept = platt(margin, up, base=0.5, independent=20_000)
    assert slope == pytest.approx(0.5, abs=0.06) and intercept == pytest.approx(-1, abs=0.06)


def test_platt_believes_a_short_stretch_little_and_a_wrong_margin_not_at_all() -> None:
    margin = np.linspace(-1, 1, 1_000)
    slope, intercept = platt(margin, np.ones(1_000), base=0.4, independent=3)
    assert 0.4 < 1 / (1 + np.exp(-intercept)) < 0.75 and slope < 0.5
    against = platt(margin, (margin < 0).astype(np.float64), base=0.5, independent=1_000)
    assert against[0] == 0


def test_a_head_knows_its_horizon() -> None:
    matrix, returns = sample(400)
    model = train_horizon(7, matrix, returns, rounds=3)
    assert isinstance(model, HorizonModel) and model.horizon_s == 7

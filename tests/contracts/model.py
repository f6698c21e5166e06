"""What every scoring model must do, written once: each model's tests inherit `ModelContract`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models import ScoringModel, features
from models.registry import Registry

Matrix = NDArray[np.float32]


def feature_rows(n: int, seed: int = 0) -> Matrix:
    """A feature matrix (n, len(FEATURES)) as `features.matrix` makes it, a tenth of it NaN."""
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, len(features.FEATURES))).astype(np.float32)
    matrix[rng.random(matrix.shape) < 0.1] = np.nan
    return matrix


class ModelContract(ABC):
    kind: str
    """The module of `models` that loads it, as the registry stores it."""

    @pytest.fixture
    @abstractmethod
    def model(self) -> ScoringModel:
        """A trained model of two horizons or more."""

    @abstractmethod
    def files(self, model: ScoringModel) -> dict[str, bytes]:
        """What the registry stores of it, by file name."""

    def test_it_was_trained_on_the_features_of_today(self, model: ScoringModel) -> None:
        assert model.feature_hash == features.feature_hash()

    def test_horizons_are_whole_seconds_and_all_different(self, model: ScoringModel) -> None:
        assert len(model.horizons_s) >= 2 and len(set(model.horizons_s)) == len(model.horizons_s)
        assert all(isinstance(horizon, int) and horizon > 0 for horizon in model.horizons_s)

    @pytest.mark.parametrize("rows", [0, 1, 500])
    def test_it_predicts_a_return_and_a_probability_for_each_row_and_horizon(self, model: ScoringModel, rows: int) -> None:
        for column in model.predict(feature_rows(rows, seed=6)):
            assert column.shape == (rows, len(model.horizons_s)) and column.dtype == np.float64

    def test_its_numbers_are_finite_whatever_the_features_are(self, model: ScoringModel) -> None:
        width = len(features.FEATURES)
        extreme = np.finfo(np.float32).max
        odd = np.stack([np.full(width, value, np.float32) for value in (np.nan, 0, extreme, -extreme)])
        for matrix in (feature_rows(500, seed=6), odd):
            returns, p_up = model.predict(matrix)
            assert np.isfinite(returns).all() and (p_up >= 0).all() and (p_up <= 1).all()

    @pytest.mark.parametrize("size", [1, 3, 7, 64, 125])
    def test_a_prediction_depends_on_its_row_alone(self, model: ScoringModel, size: int) -> None:
        matrix = feature_rows(1_000, seed=5)
        parts = [model.predict(matrix[i : i + size]) for i in range(0, 1_000, size)]
        for column in (0, 1):
            assert np.concatenate([part[column] for part in parts]).tobytes() == model.predict(matrix)[column].tobytes()

    def test_it_leaves_the_features_as_they_are(self, model: ScoringModel) -> None:
        matrix = feature_rows(10)
        before = matrix.tobytes()
        matrix.flags.writeable = False
        model.predict(matrix)
        assert matrix.tobytes() == before

    def test_what_the_registry_stored_predicts_the_same_numbers(self, model: ScoringModel, tmp_path: Path) -> None:
        registry = Registry(str(tmp_path))
        entry = registry.store("stored", self.kind, self.files(model), {"horizons_s": list(model.horizons_s), "metrics": {}})
        again = registry.load("stored")
        assert (again.name, again.version) == ("stored", entry.version)
        assert (again.horizons_s, again.feature_hash) == (model.horizons_s, model.feature_hash)
        matrix = feature_rows(300, seed=7)
        for mine, theirs in zip(model.predict(matrix), again.predict(matrix), strict=True):
            assert mine.tobytes() == theirs.tobytes()

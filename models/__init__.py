"""Models: features, training, registry, evaluation. Imports neither Faust nor stockstream."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ScoringModel(Protocol):
    """The contract of a model that `score` runs.

    `predict` takes a feature matrix (n, k) float32 from `models.features.matrix`. It returns two float64 arrays (n, h), with a column for each of
    `horizons_s`: the expected log return, and the probability that the return is above 0. A row's results depend on that row alone, bit for bit.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def feature_hash(self) -> str: ...

    @property
    def horizons_s(self) -> tuple[int, ...]: ...

    def predict(self, matrix: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]: ...

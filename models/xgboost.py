"""Boosted trees: for each horizon one booster for the log return and one for the probability that it is above 0.

The return's booster learns basis points with squared error, with labels clipped at their 0.1 % tails. The probability has a smaller booster of its own,
calibrated on later data by Platt's logistic fit of its margin. It cannot be derived from the expected return, because the share of unchanged prices differs
between symbols far more than the expected return does. Brier scores on a real day, 10 s ahead: 0.206 for a constant, 0.192 for a logistic fit on expected
return, deviation and spread, 0.184 for trees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

KIND = "xgboost"
BASIS_POINT = 1e-4
ROUNDS = 150
UP_ROUNDS = 60
DEPTH = 4
_CLIP_QUANTILE = 0.999
PRIOR = 2.0
"""The precision of the prior in Platt's fit. Hours of data outweigh it by far, some minutes do not."""
_MOST_ROWS_OF_A_LEAF = 500

Floats = NDArray[np.float64]
Matrix = NDArray[np.float32]


@dataclass(frozen=True)
class HorizonModel:
    """The model of one horizon: its boosters, and Platt's `slope` and `intercept` on the margin of `up`."""

    horizon_s: int
    returns: xgb.Booster
    up: xgb.Booster
    slope: float = 1.0
    intercept: float = 0.0


class Forest:
    """The trees of several boosters as one booster with an output for each, since much of the cost of a call does not depend on its rows."""

    def __init__(self, boosters: Sequence[xgb.Booster]) -> None:
        """Combines boosters of one kind (trees, the same features), at least one. Raises `ValueError` or `KeyError` if they are not."""
        if not boosters:
            raise ValueError("a model without boosters")
        models = [json.loads(booster.save_raw("json")) for booster in boosters]
        grown = [model["learner"]["gradient_booster"]["model"] for model in models]
        trees = [tree for one in grown for tree in one["trees"]]
        outputs = [number for number, one in enumerate(grown) for _ in one["trees"]]
        for number, tree in enumerate(trees):
            tree["id"] = number
        learner = models[0]["learner"]
        learner["objective"] = {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}}
        param = learner["learner_model_param"]
        # one number for all outputs, or since 3.1 one for each
        param |= {"num_target": str(len(models)), "base_score": json.dumps([0.0] * len(models)) if param["base_score"].startswith("[") else "0E0"}
        grown[0] |= {"trees": trees, "tree_info": outputs, "iteration_indptr": [0, len(trees)]}
        grown[0]["gbtree_model_param"]["num_trees"] = str(len(trees))
        self._booster = _booster(json.dumps(models[0]).encode())
        unknown = np.full((1, boosters[0].num_features()), np.nan, np.float32)
        self._base = np.array([_predict(booster, unknown)[0] for booster in boosters], np.float64)
        self._base -= _predict(self._booster, unknown).reshape(-1)

    def margins(self, matrix: Matrix) -> Floats:
        """Each booster's output before any link function: (n, boosters) float64."""
        margins: Floats = _predict(self._booster, matrix).reshape(len(matrix), -1) + self._base
        return margins


@dataclass(frozen=True)
class XGBoostModel:
    """A `models.ScoringModel`; predicts with one thread."""

    name: str
    version: str
    feature_hash: str
    horizon_models: tuple[HorizonModel, ...] = field(repr=False)
    forest: Forest = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forest", Forest([booster for model in self.horizon_models for booster in (model.returns, model.up)]))

    @property
    def horizons_s(self) -> tuple[int, ...]:
        return tuple(model.horizon_s for model in self.horizon_models)

    def predict(self, matrix: Matrix) -> tuple[Floats, Floats]:
        """Expected log returns and probabilities of a rise, each (n, h) float64."""
        if not len(matrix):
            return np.empty((0, len(self.horizon_models))), np.empty((0, len(self.horizon_models)))
        margins = self.forest.margins(matrix)
        slopes, intercepts = np.array([model.slope for model in self.horizon_models]), np.array([model.intercept for model in self.horizon_models])
        return margins[:, 0::2] * BASIS_POINT, 1 / (1 + np.exp(-(intercepts + slopes * margins[:, 1::2])))

    def files(self) -> dict[str, bytes]:
        """The files to store in the registry, by name."""
        calibrations = [{"horizon_s": model.horizon_s, "slope": model.slope, "intercept": model.intercept} for model in self.horizon_models]
        out = {"heads.json": json.dumps(calibrations, indent=1).encode()}
        for model in self.horizon_models:
            out[f"return_{model.horizon_s}s.ubj"] = bytes(model.returns.save_raw("ubj"))
            out[f"up_{model.horizon_s}s.ubj"] = bytes(model.up.save_raw("ubj"))
        return out


def load(name: str, version: str, feature_hash: str, files: Mapping[str, bytes]) -> XGBoostModel:
    """The model in a registry's files. Raises `ValueError` or `KeyError` if they are not those of `XGBoostModel.files`."""
    horizon_models = tuple(
        HorizonModel(
            item["horizon_s"],
            _booster(files[f"return_{item['horizon_s']}s.ubj"]),
            _booster(files[f"up_{item['horizon_s']}s.ubj"]),
            item["slope"],
            item["intercept"],
        )
        for item in json.loads(files["heads.json"])
    )
    return XGBoostModel(name, version, feature_hash, horizon_models)


def train_horizon(horizon_s: int, matrix: Matrix, returns: Floats, *, rounds: int = ROUNDS, seed: int = 1, threads: int = 1) -> HorizonModel:
    """Trains the uncalibrated model of one horizon on a feature matrix (n, k) and the realised log returns (n,), without NaN."""
    points = returns / BASIS_POINT
    limit = float(np.quantile(np.abs(points), _CLIP_QUANTILE))
    leaf = max(1.0, min(_MOST_ROWS_OF_A_LEAF, len(returns) / 200))
    common = {"max_depth": DEPTH, "subsample": 0.5, "colsample_bytree": 0.5, "tree_method": "hist", "seed": seed, "nthread": threads}
    data = xgb.QuantileDMatrix(matrix, np.clip(points, -limit, limit), nthread=threads)
    booster = xgb.train({**common, "objective": "reg:squarederror", "eta": 0.03, "min_child_weight": 2 * leaf}, data, rounds)
    data.set_label((returns > 0).astype(np.float32))
    up_rounds = max(1, rounds * UP_ROUNDS // ROUNDS)
    # min_child_weight sums p (1 - p) per row here, about a fifth
    up = xgb.train({**common, "objective": "binary:logistic", "eta": 0.1, "min_child_weight": leaf / 5}, data, up_rounds)
    for made in (booster, up):
        made.set_param({"nthread": 1})
    return HorizonModel(horizon_s, booster, up)


def calibrated(model: HorizonModel, matrix: Matrix, returns: Floats, *, base: float, independent: float) -> HorizonModel:
    """The horizon model with Platt's fit on rows that it was not trained on.

    `base` is the share of rises among the training rows, `independent` the number of independent observations that the rows are equivalent to.
    """
    margin = _predict(model.up, matrix).astype(np.float64)
    slope, intercept = platt(margin, (returns > 0).astype(np.float64), base=base, independent=independent)
    return HorizonModel(model.horizon_s, model.returns, model.up, slope, intercept)


def platt(margin: Floats, up: Floats, *, base: float, independent: float, steps: int = 50) -> tuple[float, float]:
    """Slope (not below 0) and intercept of a logistic regression of `up` (0 or 1) on `margin`, by Newton's method.

    Rows overlap in time and symbols move together, so n rows count as `independent` ones. A Gaussian prior of precision PRIOR pulls the slope to 0 and the
    mean to `base`, so that a short one-sided stretch does not cause overconfidence. Platt, 'Probabilistic outputs for support vector machines', 1999.
    """
    base = min(max(base, 1e-3), 1 - 1e-3)
    middle = float(margin.mean())
    design = np.column_stack([margin - middle, np.ones_like(margin)])
    weight = min(1.0, independent / len(margin))
    centre = np.array([0.0, np.log(base / (1 - base))])
    fitted = centre.copy()
    for _ in range(steps):
        p = 1 / (1 + np.exp(-np.clip(design @ fitted, -30, 30)))
        curvature = weight * ((design * (p * (1 - p))[:, None]).T @ design) + PRIOR * np.eye(2)
        step = np.linalg.solve(curvature, weight * (design.T @ (up - p)) - PRIOR * (fitted - centre))
        fitted += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    slope = max(0.0, float(fitted[0]))
    return slope, float(fitted[1]) - slope * middle


def _booster(data: bytes) -> xgb.Booster:
    booster = xgb.Booster()
    try:
        booster.load_model(bytearray(data))
    except xgb.core.XGBoostError as error:
        raise ValueError(f"not a booster: {str(error).splitlines()[0]}") from None
    booster.set_param({"nthread": 1})
    return booster


def _predict(booster: xgb.Booster, matrix: Matrix) -> Any:
    return booster.inplace_predict(matrix, predict_type="margin", validate_features=False)

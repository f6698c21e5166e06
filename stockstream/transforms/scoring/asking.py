"""One question to one model, and what is wrong with the answer: a model is another's code and data, and no fault of it may leave this module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import ScoringModel, features
from stockstream.errors import ModelError

RING_S: Final = 128
"""Horizons are below it."""
UNITS_OF_RETURN: Final = 1e9
UNITS_OF_P_UP: Final = 1e6
"""Predictions are sent, and stored as int32, in units of 1e-9 and 1e-6. That is short, and what is sent does not depend on a processor's last bit."""
_MOST_RETURN: Final = 2.0

Units = NDArray[np.int32]
Reason = Literal["missing", "raised", "shape", "not_finite"]
"""Why a model's rows have no prediction; a label of `rows_not_predicted_total`, where `no_model` is the fifth."""


class ModelFault(NamedTuple):
    """What is wrong with a model, and the first row of the question that has no prediction for it."""

    reason: Reason
    detail: str
    row: int = 0


@dataclass(slots=True)
class Answer:
    """A model's answer for its first rows, in units (n, h); `fault` is why there is none for those that follow."""

    horizons_s: tuple[int, ...] = ()
    feature_hash: str = ""
    returns: Units | None = None
    p_up: Units | None = None
    fault: ModelFault | None = None


def require_usable(model: ScoringModel) -> None:
    """Raises `ModelError` where the model's horizons or features are not those that can be scored."""
    if not _can_be_judged(model.horizons_s):
        given = ", ".join(map(str, model.horizons_s)) or "none"
        raise ModelError(f"model {model.name} {model.version}: horizons must be 1 to {RING_S - 1} s, not {given}")
    if model.feature_hash != features.feature_hash():
        raise ModelError(f"model {model.name} {model.version} was trained on other features: train it again")


def _can_be_judged(horizons: Sequence[int]) -> bool:
    """Whether they are whole seconds within the ring, each there once."""
    whole = all(type(horizon) is int and 0 < horizon < RING_S for horizon in horizons)
    return bool(horizons) and whole and len(set(horizons)) == len(horizons)


def ask(model: ScoringModel, matrix: NDArray[np.float32]) -> Answer:
    """The model's answer for the rows of a feature matrix (n, k), n at least 1. Raises nothing that the model raises."""
    try:
        horizons, feature_hash = tuple(model.horizons_s), model.feature_hash
        answer: Any = model.predict(matrix)
        returns, p_up = answer
    except Exception as error:  # noqa: BLE001 (a model may raise anything; it is suspended for it)
        return Answer(fault=ModelFault("raised", f"{type(error).__name__}: {error}"))
    if not _can_be_judged(horizons):
        return Answer(fault=ModelFault("shape", f"its horizons are {horizons}"))
    shape = len(matrix), len(horizons)
    for name, values in (("returns", returns), ("probabilities", p_up)):
        if not isinstance(values, np.ndarray) or values.dtype.kind != "f" or values.shape != shape:
            found = f"{values.dtype} {values.shape}" if isinstance(values, np.ndarray) else type(values).__name__
            return Answer(fault=ModelFault("shape", f"its {name} are {found}, not floats of shape {shape}"))
    fault, count = None, shape[0]
    if not (np.isfinite(returns).all() and np.isfinite(p_up).all()):
        count = int(np.argmin((np.isfinite(returns) & np.isfinite(p_up)).all(axis=1)))
        fault = ModelFault("not_finite", "it gave numbers that are not finite", count)
    return Answer(
        horizons, feature_hash,
        np.rint(np.clip(returns[:count], -_MOST_RETURN, _MOST_RETURN) * UNITS_OF_RETURN).astype(np.int32),
        np.rint(np.clip(p_up[:count], 0, 1) * UNITS_OF_P_UP).astype(np.int32), fault,
    )  # fmt: skip

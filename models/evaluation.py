"""Measures the quality of predictions.

- `n`: number of predictions with a known outcome; `moved`: those of them whose price at the horizon differs.
- `correlation`: Pearson's, of predicted and realised log return, over all n. 0 is worthless; 0.16 at 10 s is a good day; far more means a leak.
- `sign_hit_rate`: share of the moved whose predicted return has the sign of the realised one. A coin gets 0.5.
- `up_rate`: share of the n whose realised return is above 0, the event of `p_up`. An unchanged price is not up.
- `brier`: mean of (p_up - up)^2; `log_loss`: mean of -log of the probability that was given to the outcome. Lower is better.
- `brier_baseline`, `log_loss_baseline`: the same for a constant prediction of `baseline_p`, the share of ups in the training rows.

Predictions of one symbol overlap in time, and symbols move together, so n counts far fewer independent trials.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_EDGE = 1e-6


def evaluate(predicted: Floats, p_up: Floats, realised: Floats, baseline_p: float) -> dict[str, float | int | None]:
    """The measures of the module's docstring for one horizon; an undefined one is None.

    Args:
        predicted: (n,) predicted log returns.
        p_up: (n,) probabilities of a rise.
        realised: (n,) realised log returns; rows with NaN are left out.
        baseline_p: the constant probability of the baseline.
    """
    known = np.isfinite(realised)
    predicted, p_up, realised = (np.asarray(x, np.float64)[known] for x in (predicted, p_up, realised))
    n = len(realised)
    if not n:
        return dict.fromkeys(("correlation", "sign_hit_rate", "up_rate", "brier", "log_loss", "brier_baseline", "log_loss_baseline")) | {"n": 0, "moved": 0}
    moved = realised != 0
    up = (realised > 0).astype(np.float64)
    varies = n > 1 and np.ptp(predicted) > 0 and np.ptp(realised) > 0
    base = np.full(n, baseline_p)
    return {
        "n": n,
        "moved": int(moved.sum()),
        "correlation": float(np.corrcoef(predicted, realised)[0, 1]) if varies else None,
        "sign_hit_rate": float((np.sign(predicted[moved]) == np.sign(realised[moved])).mean()) if moved.any() else None,
        "up_rate": float(up.mean()),
        "brier": _brier(p_up, up),
        "log_loss": _log_loss(p_up, up),
        "brier_baseline": _brier(base, up),
        "log_loss_baseline": _log_loss(base, up),
    }


def _brier(p: Floats, up: Floats) -> float:
    return float(((p - up) ** 2).mean())


def _log_loss(p: Floats, up: Floats) -> float:
    p = np.clip(p, _EDGE, 1 - _EDGE)
    return float(-(up * np.log(p) + (1 - up) * np.log(1 - p)).mean())

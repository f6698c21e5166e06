"""How good predictions are, in plain numbers.

- `n`: predictions whose outcome is known; `moved`: those among them whose price was another at the horizon.
- `correlation`: Pearson's, of predicted and realised log return, over all n. 0 is worth nothing; 0.16 at 10 s is a good day; far more means a leak.
- `sign_hit_rate`: share of the moved whose predicted return has the realised one's sign. A coin gets 0.5.
- `up_rate`: share of the n whose realised return is above 0 (what p_up is the probability of; a price that stands still is not up).
- `brier`: mean of (p_up - up)^2; `log_loss`: mean of -log of the probability given to what happened. Lower is better.
- `brier_baseline`, `log_loss_baseline`: the same for one who always says `baseline_p`, the share of ups known before (of the training rows).

Predictions of one symbol overlap in time, and symbols move together, so the n are far fewer independent trials than they look.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
_EDGE = 1e-6


def evaluate(predicted: Floats, p_up: Floats, realised: Floats, baseline_p: float) -> dict[str, float | int | None]:
    """The numbers of the module's docstring for one horizon; arrays of one length, rows with NaN in `realised` left out, None where undefined."""
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

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from models import features
from models.features import COLUMNS, FEATURES, matrix


def columns(n: int, seed: int = 0, gaps: float = 0.1) -> dict[str, NDArray[Any]]:
    """Rows of every kind, some columns unknown here and there."""
    rng = np.random.default_rng(seed)
    out: dict[str, NDArray[Any]] = {}
    for name in COLUMNS:
        if name == "second":
            out[name] = rng.integers(1_700_000_000, 1_700_100_000, n)
        elif name.startswith(("volume", "ticks", "seconds")):
            out[name] = rng.integers(0, 300, n)
        else:
            scale = 1e-4 if name.startswith("return") else 100.0
            values = np.abs(rng.normal(scale, scale / 10, n))
            values[rng.random(n) < gaps] = np.nan
            out[name] = values
    return out


def one(**known: float) -> dict[str, float]:
    row = {name: np.array([known.get(name, np.nan)]) for name in COLUMNS}
    return dict(zip(FEATURES, matrix(row)[0].tolist(), strict=True))


def test_definitions() -> None:
    got = one(
        price=100.5, mid=100.5, bid=100.0, ask=101.0, bid_size=300, ask_size=100, close=101.0, mean_5m=100.0, vwap_5m=100.2, high_5m=102.0, low_5m=99.0,
        return_std_5m=1e-4, return_1s=1e-4, return_60s=-2e-4, volume_10s=100, volume_60s=300, volume_5m=600, ticks_10s=5, ticks_5m=30, seconds_5m=300,
        second=3 * 3600 + 1800,
    )  # fmt: skip
    spread = 1.0 / 100.5 / 1e-4
    expected = {
        "return_1s_z": 1.0, "return_60s_z": -2 / math.sqrt(60), "price_mean_z": math.log(1.005) / (1e-4 * math.sqrt(300)),
        "price_vwap_z": math.log(100.5 / 100.2) / (1e-4 * math.sqrt(300)), "price_high_z": math.log(100.5 / 102) / (1e-4 * math.sqrt(300)),
        "price_low_z": math.log(100.5 / 99) / (1e-4 * math.sqrt(300)), "close_mid_z": math.log(101 / 100.5) / 1e-4, "spread_z": spread,
        "quote_imbalance": 0.5, "microprice_z": spread / 4, "volume_10s_rel": math.log1p(5.0), "volume_60s_rel": math.log1p(2.5),
        "tick_rate_rel": 5.0, "log_sd": math.log(1e-4), "hour_utc": 3.5,
    }  # fmt: skip
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name
    assert {name for name in FEATURES if math.isnan(got[name])} == {"return_5s_z", "return_10s_z", "return_30s_z"}


def test_the_price_level_does_not_matter() -> None:
    base = columns(200)
    prices = {"price", "mid", "close", "bid", "ask", "mean_5m", "vwap_5m", "high_5m", "low_5m"}
    scaled = {name: values * 7.0 if name in prices else values for name, values in base.items()}
    np.testing.assert_allclose(matrix(base), matrix(scaled), rtol=1e-4, atol=1e-4)


def test_nothing_but_numbers_and_nan_comes_out() -> None:
    edge = {name: np.array([0.0, 1.0, np.nan, -1.0, 1e308]) for name in COLUMNS}
    out = matrix(edge)
    assert out.dtype == np.float32 and out.shape == (5, len(FEATURES)) and out.flags.c_contiguous
    assert not np.isinf(out).any()


def test_no_rows() -> None:
    assert matrix(columns(0)).shape == (0, len(FEATURES))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 125])
def test_a_row_depends_on_itself_alone(size: int) -> None:
    whole = columns(1_000)
    parts = [matrix({name: values[i : i + size] for name, values in whole.items()}) for i in range(0, 1_000, size)]
    assert np.concatenate(parts).tobytes() == matrix(whole).tobytes()


def test_the_hash_follows_names_and_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    before = features.feature_hash()
    monkeypatch.setattr(features, "DEFINITIONS_VERSION", 2)
    assert features.feature_hash() != before
    monkeypatch.undo()
    monkeypatch.setattr(features, "FEATURES", FEATURES[::-1])
    assert features.feature_hash() != before

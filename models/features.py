"""The features of the models: numbers of one `windows` row, independent of the price level and, where it matters, of volatility.

`sd` below is `return_std_5m`, the deviation of one-second log returns; `p` is `price` (mid, else close, else carried).

| feature | definition |
| --- | --- |
| return_Ns_z | return_Ns / (sd x sqrt(N)), N = 1, 5, 10, 30, 60 |
| price_mean_z, price_vwap_z, price_high_z, price_low_z | log(p / mean_5m, vwap_5m, high_5m, low_5m) / (sd x sqrt(300)) |
| close_mid_z | log(close / mid) / sd |
| spread_z | (ask - bid) / mid / sd |
| quote_imbalance | (bid_size - ask_size) / (bid_size + ask_size) |
| microprice_z | quote_imbalance x spread_z / 2: how far the size-weighted price is from the mid |
| volume_10s_rel, volume_60s_rel | log(1 + volume a second over 10, 60 s / volume a second over 5 minutes) |
| tick_rate_rel | trades a second over 10 s / trades a second over 5 minutes |
| log_sd | log(sd) |
| hour_utc | hour of the day, UTC, with its fraction |

A feature is NaN if an input is missing (no quote in that second, no volume, no deviation). The trees learn which branch it takes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

DEFINITIONS_VERSION = 1
"""Raise it when the meaning of a feature changes and its name does not."""

FEATURES: tuple[str, ...] = (
    "return_1s_z", "return_5s_z", "return_10s_z", "return_30s_z", "return_60s_z",
    "price_mean_z", "price_vwap_z", "price_high_z", "price_low_z",
    "close_mid_z", "spread_z", "quote_imbalance", "microprice_z",
    "volume_10s_rel", "volume_60s_rel", "tick_rate_rel", "log_sd", "hour_utc",
)  # fmt: skip

COLUMNS: tuple[str, ...] = (
    "second", "close", "mid", "bid", "ask", "bid_size", "ask_size", "mean_5m", "vwap_5m", "high_5m", "low_5m", "return_std_5m",
    "return_1s", "return_5s", "return_10s", "return_30s", "return_60s", "volume_10s", "volume_60s", "volume_5m", "ticks_10s", "ticks_5m", "seconds_5m", "price",
)  # fmt: skip
"""Columns of a `windows` row that `matrix` reads."""

WINDOW_S = 300
"""The window of `windows` rows. It is repeated here because models import nothing of stockstream; a test compares both."""
_LAGS = (1, 5, 10, 30, 60)
_ROOTS = np.sqrt(np.array([[float(lag)] for lag in _LAGS]))
_LOG_SCALE = np.sqrt(np.array([[float(WINDOW_S)]] * 4 + [[1.0]]))


def feature_hash() -> str:
    """12 hex digits that change with the features' names, order or definitions."""
    return hashlib.sha256(f"{DEFINITIONS_VERSION}:{','.join(FEATURES)}".encode()).hexdigest()[:12]


def matrix(columns: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """The features of n rows, (n, len(FEATURES)) float32, C-contiguous.

    `columns` holds COLUMNS as arrays of length n: prices in the symbol's currency, sizes and volumes in shares, `second` in epoch seconds;
    NaN if the row has no value. A row's features depend on that row alone, bit for bit.
    """
    price, mid = columns["price"], columns["mid"]
    n = len(price)
    out = np.empty((n, len(FEATURES)), np.float32)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        sd = columns["return_std_5m"]
        out[:, 0:5] = (np.stack([columns[f"return_{lag}s"] for lag in _LAGS]) / (_ROOTS * sd)).T
        ratios = np.stack([price, price, price, price, columns["close"]]) / np.stack(
            [columns["mean_5m"], columns["vwap_5m"], columns["high_5m"], columns["low_5m"], mid]
        )
        out[:, 5:10] = (np.log(ratios) / (_LOG_SCALE * sd)).T
        spread = (columns["ask"] - columns["bid"]) / mid / sd
        bid_size, ask_size = columns["bid_size"], columns["ask_size"]
        imbalance = (bid_size - ask_size) / (bid_size + ask_size)
        out[:, 10], out[:, 11], out[:, 12] = spread, imbalance, imbalance * spread / 2
        seconds = columns["seconds_5m"]
        volume, ticks = columns["volume_5m"] / seconds, columns["ticks_5m"] / seconds
        out[:, 13:15] = np.log1p(np.stack([columns["volume_10s"] / 10, columns["volume_60s"] / 60]) / volume).T
        out[:, 15] = columns["ticks_10s"] / 10 / ticks
        out[:, 16] = np.log(sd)
        out[:, 17] = columns["second"] % 86_400 / 3_600
        out[~np.isfinite(out)] = np.nan
    return out

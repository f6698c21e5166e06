"""The rules themselves: on which rows each holds, how severe it is, and what its alert says.

| rule | condition, on a row that is not `revised` | value | baseline | threshold |
| --- | --- | --- | --- | --- |
| `volume_spike` | volume > 0, seconds_5m >= 120, volume >= 8 x volume_5m / seconds_5m | volume | volume_5m / seconds_5m | 8 x baseline |
| `price_drop` | close <= 0.99 x price_60s | close | price_60s | 0.99 x baseline |
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.records import Alert
from stockstream.transforms.frames import numbers
from stockstream.transforms.rules.state import WINDOW_COLUMNS, OpenAlert, Severity
from stockstream.wording import figure

VOLUME_SPIKE: Final = "volume_spike"
PRICE_DROP: Final = "price_drop"
VOLUME_MULTIPLE = 8.0
VOLUME_CRITICAL_MULTIPLE = 16.0
VOLUME_MIN_SECONDS = 120
PRICE_FACTOR = 0.99
PRICE_CRITICAL_FACTOR = 0.97
QUIET_S = 60
"""An alert closes when its condition has been gone for so long."""
RULES = (PRICE_DROP, VOLUME_SPIKE)
"""Every rule by its name, in the order of their alerts in the topic."""
_CLOSE, _VOLUME, _PRICE_60S, _VOLUME_5M, _SECONDS_5M = map(
    WINDOW_COLUMNS.index, ("close", "volume", "price_60s", "volume_5m", "seconds_5m")
)


def conditions(rows: pa.RecordBatch) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """By row, whether the condition of each of RULES holds; also for rows that are `revised`."""
    volume, volume_5m, seconds_5m = numbers(rows, "volume"), numbers(rows, "volume_5m"), numbers(rows, "seconds_5m")
    usual = volume_5m / np.maximum(seconds_5m, 1)
    drop = numbers(rows, "close") <= PRICE_FACTOR * numbers(rows, "price_60s")
    return drop, (volume > 0) & (seconds_5m >= VOLUME_MIN_SECONDS) & (volume >= VOLUME_MULTIPLE * usual)


def judge(rule: str, window: tuple[Any, ...]) -> tuple[float, float, float, Severity]:
    """Value, baseline, threshold and severity of a rule on a row on which it holds; `window` are its values of WINDOW_COLUMNS."""
    if rule == VOLUME_SPIKE:
        value, baseline = float(window[_VOLUME]), window[_VOLUME_5M] / window[_SECONDS_5M]
        return value, baseline, VOLUME_MULTIPLE * baseline, "critical" if value >= VOLUME_CRITICAL_MULTIPLE * baseline else "warning"
    value, baseline = window[_CLOSE], window[_PRICE_60S]
    return value, baseline, PRICE_FACTOR * baseline, "critical" if value <= PRICE_CRITICAL_FACTOR * baseline else "warning"


def sentence(alert: OpenAlert) -> str:
    """What an alert says while it is open."""
    if alert.rule == VOLUME_SPIKE:
        times = f"{alert.value / alert.baseline:.1f} times"
        return f"{alert.symbol}: {figure(alert.value, 0)} shares in one second, {times} the 5-minute average of {figure(alert.baseline, 1, 4)}."
    below = f"{100 * (1 - alert.value / alert.baseline):.2f} % below"
    return f"{alert.symbol}: {figure(alert.value)} is {below} {figure(alert.baseline)}, the price 60 s before."


def closing_sentence(alert: OpenAlert) -> str:
    """What it says when it closes."""
    since = datetime.fromtimestamp(alert.last, UTC).strftime("%H:%M:%S")
    what = "volume back to normal" if alert.rule == VOLUME_SPIKE else "no longer 1 % below the price a minute before"
    return f"{alert.symbol}: {what} for {QUIET_S} s, since {since} UTC."


def alert_of(alert: OpenAlert, state: Literal["opened", "updated", "closed"], second: int, message: str) -> Alert:
    """The message of `alerts` for this state of an alert; `second` is the one that brought it."""
    return Alert(
        id=f"{alert.symbol}-{alert.rule}-{alert.opened}", symbol=alert.symbol, rule=alert.rule, state=state, severity=alert.severity,
        opened_at=(alert.opened + 1) * 1000, as_of=(second + 1) * 1000, value=alert.value, baseline=alert.baseline, threshold=alert.threshold,
        message=message, window=dict(zip(WINDOW_COLUMNS, alert.window, strict=True)),
    )  # fmt: skip

"""The rules themselves: on which rows each holds, how severe it is, and what its alert says.

| rule | condition, on a row that is not `revised` | value | baseline | threshold |
| --- | --- | --- | --- | --- |
| `volume_spike` | seconds_5m >= 120, volume >= 8 x baseline > 0, little `accrued` | volume | (volume_5m - accrued_5m) / seconds_5m | 8 x baseline |
| `price_drop` | close <= 0.99 x price_60s | close | price_60s | 0.99 x baseline |

A new rule is one more `Rule` in `RULES`: `columns` and `detector` work for any number of them.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.records import TRADE_GAPS, Alert
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
_CLOSE, _VOLUME, _PRICE_60S, _VOLUME_5M, _SECONDS_5M, _ACCRUED_5M, _QUALITY, _GAP_S, _PRICE_BEFORE_GAP = map(
    WINDOW_COLUMNS.index, ("close", "volume", "price_60s", "volume_5m", "seconds_5m", "accrued_5m", "quality", "gap_s", "price_before_gap")
)

Window = tuple[Any, ...]
"""A row's values of WINDOW_COLUMNS."""
Judgement = tuple[float, float, float, Severity]
"""Value, baseline, threshold and severity."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule."""

    name: str
    holds: Callable[[pa.RecordBatch], NDArray[np.bool_]]
    """By row of `windows`, whether the condition holds; also for rows that are `revised`."""
    judge: Callable[[Window], Judgement]
    """What an alert reports of a row on which the condition holds."""
    more_extreme: Callable[[float, float], bool]
    """Whether a value is strictly more extreme than another; such a value updates an open alert."""
    sentence: Callable[[OpenAlert], str]
    """The message of an alert while it is open, after its symbol."""
    closing: str
    """The message when it closes, between its symbol and the times."""


def _price_drop_holds(rows: pa.RecordBatch) -> NDArray[np.bool_]:
    drop: NDArray[np.bool_] = numbers(rows, "close") <= PRICE_FACTOR * numbers(rows, "price_60s")
    return drop


def _judge_price_drop(window: Window) -> Judgement:
    value, baseline = window[_CLOSE], window[_PRICE_60S]
    return value, baseline, PRICE_FACTOR * baseline, "critical" if value <= PRICE_CRITICAL_FACTOR * baseline else "warning"


def _price_drop_sentence(alert: OpenAlert) -> str:
    below = f"{100 * (1 - alert.value / alert.baseline):.2f} % below"
    return f"{figure(alert.value)} is {below} {figure(alert.baseline)}, the price 60 s before."


def _volume_spike_holds(rows: pa.RecordBatch) -> NDArray[np.bool_]:
    volume, volume_5m, accrued_5m, seconds_5m = (numbers(rows, name) for name in ("volume", "volume_5m", "accrued_5m", "seconds_5m"))
    usual = (volume_5m - np.nan_to_num(accrued_5m)) / np.maximum(seconds_5m, 1)
    known = 2 * np.nan_to_num(accrued_5m) <= volume_5m                    # else the usual volume of a second is not known
    spike: NDArray[np.bool_] = known & (usual > 0) & (seconds_5m >= VOLUME_MIN_SECONDS) & (volume >= VOLUME_MULTIPLE * usual)
    if spike.any():
        spike &= ~np.asarray(pc.match_substring(rows.column("quality"), "accrued").to_numpy(zero_copy_only=False), dtype=bool)
    return spike


def _judge_volume_spike(window: Window) -> Judgement:
    value, baseline = float(window[_VOLUME]), (window[_VOLUME_5M] - (window[_ACCRUED_5M] or 0)) / window[_SECONDS_5M]
    return value, baseline, VOLUME_MULTIPLE * baseline, "critical" if value >= VOLUME_CRITICAL_MULTIPLE * baseline else "warning"


def _volume_spike_sentence(alert: OpenAlert) -> str:
    times = f"{alert.value / alert.baseline:.1f} times"
    return f"{figure(alert.value, 0)} shares in one second, {times} the 5-minute average of {figure(alert.baseline, 1, 4)}."


RULES: Final = (
    Rule(PRICE_DROP, _price_drop_holds, _judge_price_drop, operator.lt, _price_drop_sentence, "no longer 1 % below the price a minute before"),
    Rule(VOLUME_SPIKE, _volume_spike_holds, _judge_volume_spike, operator.gt, _volume_spike_sentence, "volume back to normal"),
)
"""Every rule, in alphabetical order, which is the order of their alerts in the topic."""
RULE_NAMES: Final = tuple(rule.name for rule in RULES)
_RULE_OF: Final = {rule.name: rule for rule in RULES}


def conditions(rows: pa.RecordBatch) -> list[NDArray[np.bool_]]:
    """For each of RULES, by row, whether its condition holds; also for rows that are `revised`."""
    return [rule.holds(rows) for rule in RULES]


def judge(rule: str, window: Window) -> Judgement:
    """Value, baseline, threshold and severity of a rule on a row on which it holds."""
    return _RULE_OF[rule].judge(window)


def more_extreme(rule: str, value: float, than: float) -> bool:
    """Whether `value` is strictly more extreme for this rule."""
    return _RULE_OF[rule].more_extreme(value, than)


def sentence(alert: OpenAlert) -> str:
    """The message of an open alert."""
    return f"{alert.symbol}: {_RULE_OF[alert.rule].sentence(alert)}{_gaps(alert.window)}"


def _gaps(window: Window) -> str:
    """What a reader should know of gaps before the row, as sentences behind the message; empty where there are none."""
    flags = (window[_QUALITY] or "").split(",")
    text = ""
    if "after_gap" in flags and window[_GAP_S] is not None:              # state of an earlier release has no figures
        text += f" It is the first trade after {window[_GAP_S]:,} s without one; the price before was {figure(window[_PRICE_BEFORE_GAP])}."
    if "gap" in flags:
        text += " The feed was away within these 5 minutes, so trades may be missing."
    return text


def closing_sentence(alert: OpenAlert) -> str:
    """The message of an alert that closes."""
    since = datetime.fromtimestamp(alert.last, UTC).strftime("%H:%M:%S")
    rule = _RULE_OF.get(alert.rule)                                      # state may hold alerts of a rule that only a newer release has
    return f"{alert.symbol}: {rule.closing if rule else 'condition gone'} for {QUIET_S} s, since {since} UTC."


def alert_of(alert: OpenAlert, state: Literal["opened", "updated", "closed"], second: int, message: str) -> Alert:
    """The message of `alerts` for this state of an alert; `second` is the one that brought it."""
    return Alert(
        id=f"{alert.symbol}-{alert.rule}-{alert.opened}", symbol=alert.symbol, rule=alert.rule, state=state, severity=alert.severity,
        opened_at=(alert.opened + 1) * 1000, as_of=(second + 1) * 1000, value=alert.value, baseline=alert.baseline, threshold=alert.threshold,
        message=message, window=_named(alert.window),
    )  # fmt: skip


def _named(window: Window) -> dict[str, Any]:
    """The window by column. Figures of a gap are left out where there is none, as in alerts of earlier releases: one change of an alert has one content."""
    return {name: value for name, value in zip(WINDOW_COLUMNS, window, strict=True) if value is not None or name not in TRADE_GAPS}

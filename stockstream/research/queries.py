"""The SQL behind the methods of `Archive`. Each gives the column `time`, and columns whose types do not depend on the rows."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from stockstream.research.times import Span, interval_s

MINUTE_S = 60
BARS = ("symbol", "source", "open", "high", "low", "close", "volume", "vwap", "ticks", "gap", "repaired")
"""Columns of bars of every interval."""
_SECOND = 'row(epoch_ms(event_time) // 1000, log, "offset", "index")'
"""The order of ticks in bars: by second, and within one by the log."""
_REAL = "(coalesce(flags, 0) & 2) = 0"
"""No correction, which counts in volume and value only."""

TICKS = {
    "symbol": "symbol", "source": "source", "price": "price", "size": "size", "bid": "bid", "ask": "ask", "bid_size": "bid_size", "ask_size": "ask_size",
    "exchange": "exchange", "condition": "condition", "trade_id": "trade_id", "flags": "coalesce(flags, 0)", "gap_s": "CAST(gap_s AS DOUBLE)",
    "price_before_gap": "price_before_gap", "gap_from": "CAST(epoch_ms(gap_from) AS TIMESTAMP_MS)", "log": "log", "partition": "partition",
    "offset": '"offset"', "index": '"index"',
}  # fmt: skip
ALERTS = {name: name for name in ("id", "symbol", "rule", "state", "severity", "opened_at", "value", "baseline", "threshold", "message")} | {
    "window": '"window"'
}
PREDICTIONS = {
    name: name for name in ("id", "symbol", "horizon_s", "predicted_return", "p_up", "price", "model", "version", "feature_hash", "made_at", "latency_ms")
}
OUTCOMES = {
    name: name
    for name in ("id", "symbol", "horizon_s", "predicted_return", "p_up", "realised_return", "price_then", "model", "version", "role", "judged_at")
}  # fmt: skip


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def among(column: str, values: Sequence[str] | None) -> str:
    """SQL, to be appended to a WHERE: the column has one of these values; None: any."""
    if values is None:
        return ""
    return f' AND "{column}" = {quoted(values[0])}' if len(values) == 1 else f' AND "{column}" IN ({", ".join(map(quoted, values))})'


def equal(column: str, value: str | int | None) -> str:
    """SQL, to be appended to a WHERE: the column has this value; None: any."""
    return "" if value is None else f' AND "{column}" = {quoted(value) if isinstance(value, str) else value}'


def chosen(columns: Sequence[str] | None, all_columns: Sequence[str]) -> Sequence[str]:
    """The columns to give. Raises `ValueError` for one that there is not."""
    if columns is None:
        return all_columns
    for name in columns:
        if name not in all_columns:
            near = difflib.get_close_matches(name, all_columns, 1)
            raise ValueError(f"there is no column {name!r}" + (f": did you mean {near[0]}?" if near else f"; choose from: {', '.join(all_columns)}"))
    return list(columns)


def select(view: str, time: str, columns: Mapping[str, str], names: Sequence[str], where: str, order: str = "symbol") -> str:
    """Rows of a view by time. `names` are those of `columns` to give, `where` begins with AND."""
    given = "".join(f', {columns[name]} AS "{name}"' for name in names)
    return f'SELECT "{time}" AS time{given} FROM {view} WHERE true{where} ORDER BY "{time}", {order}'


def bars(interval: str, span: Span, symbols: Sequence[str], source: str | None, names: Sequence[str]) -> str:
    """Bars from `ticks` for seconds, else from `bars_1m`. Raises `ValueError` for an interval that is none."""
    seconds = interval_s(interval)
    where = among("symbol", symbols) + equal("source", source)
    given = "".join(f', "{name}"' for name in names)
    if seconds % MINUTE_S:
        inner = _bars_of_ticks(seconds, where + span.conditions("event_time", hours=True))
    elif seconds == MINUTE_S:
        inner = f"SELECT minute AS time, * FROM bars_1m WHERE true{where}{span.conditions('minute')}"
    else:
        inner = _bars_of_bars(seconds, where + span.conditions("minute"))
    return f"SELECT time{given} FROM ({inner}) ORDER BY time, symbol, source"


def _bars_of_ticks(seconds: int, where: str) -> str:
    return f"""
SELECT symbol, source, time_bucket(INTERVAL {seconds} SECONDS, event_time) AS time,
       min_by(price, {_SECOND}) FILTER (WHERE {_REAL}) AS open, max(price) FILTER (WHERE {_REAL}) AS high, min(price) FILTER (WHERE {_REAL}) AS low,
       max_by(price, {_SECOND}) FILTER (WHERE {_REAL}) AS close, {_total("size")} AS volume,
       CASE WHEN sum(size) > 0 THEN sum(price * size) / sum(size) END AS vwap, count(*) FILTER (WHERE {_REAL}) AS ticks,
       bool_or((coalesce(flags, 0) & 8) > 0) AS gap, false AS repaired
FROM ticks WHERE price IS NOT NULL{where} GROUP BY ALL HAVING count(*) FILTER (WHERE {_REAL}) > 0"""


def _bars_of_bars(seconds: int, where: str) -> str:
    return f"""
SELECT symbol, source, time_bucket(INTERVAL {seconds} SECONDS, minute) AS time,
       min_by(open, minute) AS open, max(high) AS high, min(low) AS low, max_by(close, minute) AS close, {_total("volume")} AS volume,
       sum(vwap * volume) / nullif(sum(volume) FILTER (WHERE vwap IS NOT NULL), 0) AS vwap,
       CAST(sum(ticks) AS BIGINT) AS ticks, bool_or(gap) AS gap, bool_or(repaired) AS repaired
FROM bars_1m WHERE true{where} GROUP BY ALL"""


def _total(column: str) -> str:
    """The exact sum of numbers of shares."""
    whole, part = f"CAST(trunc({column}) AS BIGINT)", f"CAST({column} - trunc({column}) AS DECIMAL(18, 8))"
    return f"CAST(CAST(sum({whole}) AS DECIMAL(38, 8)) + sum({part}) AS DOUBLE)"

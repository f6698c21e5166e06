"""The views over the archive: their meaning, their columns, and their SQL, which runs on DuckDB and on Athena alike.

The SQL reads *stored tables*: `stored_<area>` has the rows that count of `processed/<area>` as they are stored, `stored_raw` the records of `raw`, each with
the columns `date` (DATE) and, but for `bars_1m` and `alerts`, `hour` (BIGINT) of its folder. An engine provides them. The SQL keeps to what both
dialects have: `min_by`, `max_by`, `row_number`, quoted names of columns; no EXCLUDE, QUALIFY or time_bucket.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from stockstream.records import TICK_FIELDS
from stockstream.sinks.archive.schemas import STORED

RAW_COLUMNS = {
    "partition": "INTEGER", "offset": "BIGINT", "timestamp": "BIGINT", "key": "VARCHAR", "value": "VARCHAR", "key_base64": "VARCHAR", "value_base64": "VARCHAR",
}  # fmt: skip
"""Fields of a line of a raw object, and their types in SQL."""

_TYPES = {"string": "VARCHAR", "int64": "BIGINT", "int32": "INTEGER", "double": "DOUBLE", "timestamp[ms]": "TIMESTAMP", "bool": "BOOLEAN"}
BY_DAY = ("bars_1m", "alerts")
"""Areas whose folders are days; those of the others are hours."""


def sql_type(kind: pa.DataType) -> str:
    """The type in SQL of a stored column."""
    return _TYPES[str(kind)]


def folder_columns(area: str) -> dict[str, str]:
    """The columns that an area's folders give, and their types in SQL."""
    return {"date": "DATE"} if area in BY_DAY else {"date": "DATE", "hour": "BIGINT"}


def stored_columns(area: str) -> dict[str, str]:
    """The columns of an area's objects, and their types in SQL."""
    return RAW_COLUMNS if area == "raw" else {field.name: sql_type(field.type) for field in STORED[area]}


@dataclass(frozen=True)
class View:
    """A view: its columns with their meanings, the area that it reads, and its SQL."""

    name: str
    meaning: str
    columns: Mapping[str, str]
    area: str
    sql: str


def _quoted(names: Mapping[str, str], of: str = "") -> str:
    return ", ".join(f'{of}"{name}"' for name in names)


def _newest_revisions(columns: Mapping[str, str]) -> str:
    """The rows of `windows` that no revision replaces. Revisions are few, so they are what is looked up; a row is stored once."""
    keys = ("symbol", "source", "second", "date", "hour")
    same = " AND ".join(f'revision."{name}" = stored."{name}"' for name in keys)
    revisions = f'SELECT {_listed(keys)}, max(row(log, "offset")) AS newest FROM stored_windows WHERE revised GROUP BY {_listed(keys)}'
    return (
        f"SELECT {_quoted(columns, 'stored.')} FROM stored_windows AS stored LEFT JOIN ({revisions}) AS revision ON {same}"
        ' WHERE revision.newest IS NULL OR row(stored.log, stored."offset") >= revision.newest'
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)


_PLACE = {
    "partition": "Kafka partition of the raw log", "log": "log id: names one life of the raw log",
}  # fmt: skip
_DATE = {"date": "UTC date of the folder; a condition on it skips the other folders"}
_HOUR = {**_DATE, "hour": "UTC hour of the folder, 0 to 23; a condition on it skips the other folders"}

TICKS = {field.name: field.meaning for field in TICK_FIELDS if field.carried} | {
    "event_time": "the market's time (UTC)",
    "flags": "a sum: 1 the size was traded over more than 2 s, 2 a correction, which takes back a size and is no tick, 4 its second begins a new series, "
    "8 its feed was away before it",
    "gap_s": "seconds since the symbol's last trade, if they are more than 60; else null",
    "price_before_gap": "price of the last trade before such a gap; else null",
    "offset": "Kafka offset of the tick's record in the raw log; a keyword of SQL, so write \"offset\"",
    "index": "place of the tick within its record, from 0",
    **_PLACE, **_HOUR,
}  # fmt: skip

BARS = {
    "symbol": "the symbol", "source": "the feed", "minute": "start of the minute (UTC)",
    "open": "price of the first trade of the minute", "high": "highest price", "low": "lowest price", "close": "price of the last trade",
    "volume": "shares traded", "vwap": "average price by volume; null without volume, and in a repaired bar",
    "ticks": "number of trades; 0 in a repaired bar", "gap": "a gap of the feed reaches into the minute: trades may be missing",
    "repaired": "the bar was fetched for a gap, since there are no ticks of the minute", **_DATE,
}  # fmt: skip

TRADED_BARS_SQL = """
SELECT symbol, source, minute,
       min_by(open, row(first_second, log, first_offset, first_index)) FILTER (WHERE ticks > 0) AS open, max(high) AS high, min(low) AS low,
       max_by(close, row(last_second, log, last_offset, last_index)) FILTER (WHERE ticks > 0) AS close,
       CAST(CAST(sum(CAST(floor(volume) AS BIGINT)) AS DECIMAL(38, 8)) + sum(CAST(volume - floor(volume) AS DECIMAL(18, 8))) AS DOUBLE) AS volume,
       CASE WHEN sum(volume) > 0 THEN sum(notional) / sum(volume) END AS vwap,
       CAST(sum(ticks) AS BIGINT) AS ticks, bool_or(coalesce(gap, false)) AS gap, false AS repaired, "date"
FROM stored_bars_1m WHERE NOT coalesce(repaired, false) GROUP BY symbol, source, minute, "date" HAVING sum(ticks) > 0
"""
"""One row for each symbol, source and minute with a price; late ticks, in a later part, revise it. `gap`: the feed was away for some of the minute.
A part without ticks has no place of a first and last one, and Athena compares no rows with null in them."""
BARS_SQL = f"""{TRADED_BARS_SQL}UNION ALL
SELECT symbol, max_by(source, row(log, first_offset)) AS source, minute,
       max_by(open, row(log, first_offset)) AS open, max_by(high, row(log, first_offset)) AS high, max_by(low, row(log, first_offset)) AS low,
       max_by(close, row(log, first_offset)) AS close, max_by(volume, row(log, first_offset)) AS volume, CAST(NULL AS DOUBLE) AS vwap,
       CAST(0 AS BIGINT) AS ticks, true AS gap, true AS repaired, "date"
FROM stored_bars_1m AS bar WHERE repaired AND NOT EXISTS (
    SELECT 1 FROM stored_bars_1m AS other
    WHERE other.symbol = bar.symbol AND other.minute = bar.minute AND other."date" = bar."date" AND other.ticks > 0
) GROUP BY symbol, minute, "date"
"""
"""These rows, and the newest repaired bar of each minute in which the symbol has no tick of any source. It reads the parts twice, so without repaired bars
use TRADED_BARS_SQL, which then gives the same."""

WINDOWS = {
    "symbol": "the symbol", "source": "the feed", "second": "the second, epoch s", "time": "the second as a timestamp (UTC)",
    "open": "price of the first trade of the second", "high": "highest price", "low": "lowest price", "close": "price of the last trade",
    "volume": "shares traded in the second", "ticks": "trades in the second", "quotes": "quotes in the second",
    "bid": "best bid", "ask": "best ask", "bid_size": "shares at the best bid", "ask_size": "shares at the best ask",
    "mid": "middle of bid and ask, where the quote is believable",
    "mean_5m": "average of the carried price over the 300 seconds up to this one", "vwap_5m": "average price by volume over them",
    "volume_5m": "shares traded in them", "high_5m": "highest price in them", "low_5m": "lowest price in them",
    "return_std_5m": "standard deviation of the one-second log returns in them", "ticks_5m": "trades in them", "seconds_5m": "seconds with a price in them",
    "quality": "remarks on the row, separated by commas, such as late or gap", "revised": "the row replaces an earlier one of the same second",
    "price": "the mid, else the close, else the price carried within the series", "price_60s": "the carried price 60 s before",
    "return_1s": "log return of the carried price over 1 s", "return_5s": "over 5 s", "return_10s": "over 10 s", "return_30s": "over 30 s",
    "return_60s": "over 60 s", "volume_10s": "shares traded in the last 10 s", "volume_60s": "shares traded in the last 60 s",
    "ticks_10s": "trades in the last 10 s", "accrued_5m": "shares of the 5 minutes of which nobody knows in which second they were traded",
    "gap_s": "seconds since the last trade before this second, if they are more than 60; else null",
    "price_before_gap": "price of that trade; else null",
    "offset": "raw offset through which the row counts; a keyword of SQL, so write \"offset\"", "partition": "Kafka partition", **_HOUR,
}  # fmt: skip

ALERTS = {
    "id": "symbol, rule and opening second: the same for all changes of an alert", "symbol": "the symbol", "rule": "the rule",
    "state": "opened, updated or closed", "severity": "warning or critical", "opened_at": "when the alert opened (UTC)",
    "as_of": "end of the second of this change (UTC)", "value": "the value that the rule judged", "baseline": "its usual value",
    "threshold": "the limit of the rule", "message": "the alert in words", "window": "the row of windows that made the change, as JSON", **_DATE,
}  # fmt: skip

_FORECAST = {
    "id": "the prediction", "symbol": "the symbol", "as_of": "end of the second of its row of windows (UTC)",
    "horizon_s": "how many seconds ahead it looks", "predicted_return": "predicted log return over the horizon",
    "p_up": "predicted probability that the return is above 0", "model": "the model", "version": "its version",
}  # fmt: skip
PREDICTIONS = _FORECAST | {
    "price": "the price at as_of", "feature_hash": "which features the model saw", "made_at": "when a worker made it (UTC)",
    "latency_ms": "ms of each hop from the tick on, as JSON", "partition": "Kafka partition",
    "offset": "raw offset of its row of windows; a keyword of SQL, so write \"offset\"", **_HOUR,
}  # fmt: skip
OUTCOMES = _FORECAST | {
    "role": "champion: its predictions are published; shadow: it is only evaluated", "realised_return": "log return that came",
    "price_then": "the price at the horizon", "judged_at": "when a worker compared them (UTC)", "partition": "Kafka partition", **_HOUR,
}  # fmt: skip

RAW = {
    "partition": "Kafka partition", "offset": "Kafka offset; a keyword of SQL, so write \"offset\"", "timestamp": "Kafka's time, epoch ms",
    "key": "the record's key", "value": "the record's value", "key_base64": "a key that is not UTF-8", "value_base64": "a value that is not UTF-8",
    "log": "log id: names one life of the raw log", **_HOUR,
}  # fmt: skip

SYMBOLS = {
    "symbol": "the symbol", "source": "the feed", "first_minute": "first minute with a bar (UTC)", "last_minute": "last minute with a bar (UTC)",
    "ticks": "trades in all of them", "volume": "shares traded in all of them", "last_price": "close of the last minute",
}  # fmt: skip

VIEWS = {
    view.name: view
    for view in (
        View("ticks", "accepted ticks, by event time (UTC)", TICKS, "ticks", f"SELECT {_quoted(TICKS)} FROM stored_ticks"),
        View("bars_1m", "one row for each symbol, source and minute with a price, made from the ticks; where there are none, repaired bars", BARS, "bars_1m",
             BARS_SQL),
        View("windows", "the second series: one row for each symbol, source and second with a tick, the newest revision of it", WINDOWS, "windows",
             _newest_revisions(WINDOWS)),
        View("alerts", "changes of alerts: opened, updated, closed, each once", ALERTS, "alerts",
             f"SELECT {_quoted(ALERTS)} FROM stored_alerts"),
        View("predictions", "published predictions: one row for each horizon", PREDICTIONS, "predictions",
             f"SELECT {_quoted(PREDICTIONS)} FROM stored_predictions"),
        View("outcomes", "predictions compared with what the price did by their horizon", OUTCOMES, "outcomes",
             f"SELECT {_quoted(OUTCOMES)} FROM stored_outcomes"),
        View("symbols", "one row for each symbol and source that has bars", SYMBOLS, "bars_1m",
             "SELECT symbol, source, min(minute) AS first_minute, max(minute) AS last_minute, CAST(sum(ticks) AS BIGINT) AS ticks,"
             " sum(volume) AS volume, max_by(close, minute) AS last_price FROM bars_1m GROUP BY symbol, source"),
        View("raw", "records of ticks.raw as received", RAW, "raw", f"SELECT {_quoted(RAW)} FROM stored_raw"),
    )
}  # fmt: skip
"""All views, those first that most users want; one that reads another comes after it."""

EXAMPLE = "SELECT symbol, minute, open, high, low, close, volume, vwap FROM bars_1m WHERE date = current_date ORDER BY volume DESC LIMIT 10"

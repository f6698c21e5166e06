"""Columns of the archive's Parquet objects, by area.

Times are timestamps in UTC. `partition`, `log` and the offset of a row's record give its place: in `ticks.raw` for ticks (`offset`), else in the topic that
the rows come from (`record_offset`; in a part of a bar the first raw offset of its object). `compaction` is null in an object as the archive wrote it,
and the number of the compaction that made the object otherwise.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA

_TIME = pa.timestamp("ms")
_COMPACTION = pa.field("compaction", pa.int32())
_PLACE = [pa.field("partition", pa.int32()), pa.field("log", pa.string()), pa.field("record_offset", pa.int64()), _COMPACTION]


def _with_times(fields: Sequence[pa.Field], *times: str) -> list[pa.Field]:
    return [field.with_type(_TIME) if field.name in times else field for field in fields]


STORED_TICKS = pa.schema([*_with_times(list(TICKS_SCHEMA), "event_time"), pa.field("partition", pa.int32()), pa.field("log", pa.string()), _COMPACTION])
"""Columns of `processed/ticks`: those of `ticks.clean`."""

STORED_BARS = pa.schema([
    ("symbol", pa.string()), ("source", pa.string()), ("minute", _TIME),
    ("open", pa.float64()), ("high", pa.float64()), ("low", pa.float64()), ("close", pa.float64()),
    ("volume", pa.float64()), ("notional", pa.float64()), ("ticks", pa.int64()),
    ("first_second", pa.int64()), ("first_offset", pa.int64()), ("first_index", pa.int32()),
    ("last_second", pa.int64()), ("last_offset", pa.int64()), ("last_index", pa.int32()), ("gap", pa.bool_()), ("repaired", pa.bool_()),
    *_PLACE,
])  # fmt: skip
"""Columns of `processed/bars_1m`: what the ticks of one raw object add to a minute, or a bar of `repairs`, which is `repaired` and has neither ticks nor
notional. `BARS_SQL` (`sql/views.py`) combines all parts of a minute. A part with `gap` has no ticks: a gap of the feed reaches into the minute."""

STORED_WINDOWS = pa.schema([
    *(field for field in WINDOWS_SCHEMA if field.name != "partition"), ("time", _TIME), *_PLACE,
])  # fmt: skip
"""Columns of `processed/windows`: those of `windows`, and `second` as a timestamp. `offset` is the raw offset through which a row counts."""

STORED_ALERTS = pa.schema([
    ("id", pa.string()), ("symbol", pa.string()), ("rule", pa.string()), ("state", pa.string()), ("severity", pa.string()),
    ("opened_at", _TIME), ("as_of", _TIME), ("value", pa.float64()), ("baseline", pa.float64()), ("threshold", pa.float64()),
    ("message", pa.string()), ("window", pa.string()), *_PLACE,
])  # fmt: skip
"""Columns of `processed/alerts`: one row for each change of an alert; `window` is JSON."""

STORED_PREDICTIONS = pa.schema([
    ("id", pa.string()), ("symbol", pa.string()), ("as_of", _TIME), ("price", pa.float64()), ("model", pa.string()), ("version", pa.string()),
    ("feature_hash", pa.string()), ("horizon_s", pa.int32()), ("predicted_return", pa.float64()), ("p_up", pa.float64()), ("offset", pa.int64()),
    ("made_at", _TIME), ("latency_ms", pa.string()), *_PLACE,
])  # fmt: skip
"""Columns of `processed/predictions`: one row for each horizon of a prediction; `latency_ms` is JSON, `offset` the raw offset."""

STORED_OUTCOMES = pa.schema([
    ("id", pa.string()), ("symbol", pa.string()), ("as_of", _TIME), ("horizon_s", pa.int32()), ("predicted_return", pa.float64()), ("p_up", pa.float64()),
    ("model", pa.string()), ("version", pa.string()), ("role", pa.string()), ("realised_return", pa.float64()), ("price_then", pa.float64()),
    ("judged_at", _TIME), *_PLACE,
])  # fmt: skip
"""Columns of `processed/outcomes`."""

STORED = {
    "ticks": STORED_TICKS, "bars_1m": STORED_BARS, "windows": STORED_WINDOWS, "alerts": STORED_ALERTS, "predictions": STORED_PREDICTIONS,
    "outcomes": STORED_OUTCOMES,
}  # fmt: skip
"""The areas of `processed/`."""


def without_place(area: str) -> pa.Schema:
    """The columns of an area without those that all rows of a small object have alike."""
    return pa.schema([field for field in STORED[area] if field.name not in ("partition", "log", "compaction")])


def times_of(seconds: pa.ChunkedArray) -> pa.Array:
    """The column `time` of `windows`, of its column `second`."""
    return pa.array(seconds.to_numpy() * 1_000, pa.int64()).cast(_TIME)

"""What travels: units, and which clock each time comes from.

Times are integers, epoch milliseconds UTC, unless the name ends in `_s` or the field is `second` (epoch seconds). `event_time` is the market's time,
`timestamp` Kafka's, `made_at` and `judged_at` the worker's. Prices are in the symbol's currency, sizes and volumes in shares, returns natural logarithms.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import pyarrow as pa
from msgspec import UNSET, UnsetType

SCHEMA_VERSION = 1

Role = Literal["champion", "shadow"]


class Tick(msgspec.Struct, kw_only=True, gc=False):
    """One trade, quote or snapshot, as any producer may write it to `ticks.raw`."""

    symbol: str
    event_time: int
    price: float | None
    size: int | float | UnsetType = UNSET
    source: str = "default"
    seq: int | None = None
    bid: float | None = None
    ask: float | None = None
    bid_size: float | None = None
    ask_size: float | None = None
    day_volume: int | None = None
    exchange: str | None = None
    condition: str | None = None
    currency: str | None = None
    session: str | None = None
    snapshot: bool = False
    received_at: int | None = None


class Punctuation(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Closes a source's seconds up to and including `punctuate` (epoch seconds) in one partition; written without key, partition given."""

    punctuate: int
    source: str = "default"


class Rejection(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A record, or one tick of a frame, that cannot be used: one message of `ticks.rejected`."""

    reason: str
    detail: str
    partition: int
    offset: int
    index: int = msgspec.field(default=-1)
    value: str | None = None
    value_base64: str | None = None


class Alert(msgspec.Struct, kw_only=True):
    """One change of one alert. `id` is symbol, rule and opening second; (id, state, as_of) is told once, or again with the same content."""

    id: str
    symbol: str
    rule: str
    state: Literal["opened", "updated", "closed"]
    severity: Literal["warning", "critical"]
    opened_at: int
    as_of: int
    value: float
    baseline: float
    threshold: float
    message: str
    window: dict[str, Any]


class Horizon(msgspec.Struct, kw_only=True):
    """What a model expects `horizon_s` seconds after the prediction's `as_of`: log return of the price, and the probability that it is above 0."""

    horizon_s: int
    predicted_return: float
    p_up: float


class Prediction(msgspec.Struct, kw_only=True):
    """The champion's prediction for one symbol and second; `as_of` = (second + 1) x 1000. `latency_ms` has a figure for each hop."""

    id: str
    symbol: str
    as_of: int
    price: float
    model: str
    version: str
    feature_hash: str
    partition: int
    offset: int
    made_at: int
    latency_ms: dict[str, int]
    horizons: list[Horizon]


class Outcome(msgspec.Struct, kw_only=True):
    """What the price did by a prediction's horizon; one item of a message of `outcomes`."""

    id: str
    symbol: str
    as_of: int
    horizon_s: int
    predicted_return: float
    p_up: float
    model: str
    version: str
    role: Role
    realised_return: float
    price_then: float
    judged_at: int


class Closing(msgspec.Struct, frozen=True, array_like=True):
    """At raw offset `offset` the source's seconds s with `after` < s <= `second` closed."""

    offset: int
    source: str
    after: int
    second: int


TICKS_SCHEMA = pa.schema([
    ("symbol", pa.string()), ("source", pa.string()), ("event_time", pa.int64()), ("price", pa.float64()), ("size", pa.int64()),
    ("bid", pa.float64()), ("ask", pa.float64()), ("bid_size", pa.float64()), ("ask_size", pa.float64()),
    ("exchange", pa.string()), ("condition", pa.string()), ("offset", pa.int64()), ("index", pa.int32()),
])  # fmt: skip
"""Columns of a `ticks.clean` frame, in log order."""

WINDOWS_SCHEMA = pa.schema([
    ("symbol", pa.string()), ("source", pa.string()), ("second", pa.int64()),
    ("open", pa.float64()), ("high", pa.float64()), ("low", pa.float64()), ("close", pa.float64()),
    ("volume", pa.int64()), ("ticks", pa.int64()), ("quotes", pa.int64()),
    ("bid", pa.float64()), ("ask", pa.float64()), ("bid_size", pa.float64()), ("ask_size", pa.float64()), ("mid", pa.float64()),
    ("mean_5m", pa.float64()), ("vwap_5m", pa.float64()), ("volume_5m", pa.int64()), ("high_5m", pa.float64()), ("low_5m", pa.float64()),
    ("return_std_5m", pa.float64()), ("ticks_5m", pa.int64()), ("seconds_5m", pa.int64()), ("quality", pa.string()), ("revised", pa.bool_()),
    ("partition", pa.int32()), ("offset", pa.int64()),
    ("price", pa.float64()), ("price_60s", pa.float64()),
    ("return_1s", pa.float64()), ("return_5s", pa.float64()), ("return_10s", pa.float64()), ("return_30s", pa.float64()), ("return_60s", pa.float64()),
    ("volume_10s", pa.int64()), ("volume_60s", pa.int64()), ("ticks_10s", pa.int64()),
])  # fmt: skip
"""Columns of a `windows` frame: one row for each symbol and second with a tick.

`price` is the mid, else the close, else the price carried within the series (null where there is none); `price_60s` the price carried (last traded
price) 60 s before, null where the series is younger; `return_Ns` the log return of the carried price over N seconds, null likewise.
"""

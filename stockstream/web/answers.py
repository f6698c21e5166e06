"""The answers of the views: one struct for each kind, and the columns of `windows` by type."""

from __future__ import annotations

from typing import Any, Generic, Literal, TypeVar

import msgspec
import pyarrow as pa

from stockstream.records import SHARES, WINDOWS_SCHEMA, Alert, Prediction

FLOATS = tuple(f.name for f in WINDOWS_SCHEMA if pa.types.is_floating(f.type) and f.name not in SHARES)
INTS = tuple(f.name for f in WINDOWS_SCHEMA if pa.types.is_integer(f.type) and f.name != "gap_s")
IN_SHARES = tuple(name for name in WINDOWS_SCHEMA.names if name in SHARES)
GAP = "gap_s"
"""The only whole number that may be null. Here it is a float, as null is NaN."""
BOOLS = tuple(f.name for f in WINDOWS_SCHEMA if pa.types.is_boolean(f.type))
STRINGS = tuple(f.name for f in WINDOWS_SCHEMA if pa.types.is_string(f.type) and f.name != "symbol")
WINDOW_5M = tuple(name for name in WINDOWS_SCHEMA.names if name.endswith("_5m"))


def or_null(value: Any) -> Any:
    """The value, None in place of NaN."""
    return None if value != value else value


def whole_or_null(name: str, value: Any) -> Any:
    """The value of a column, None in place of NaN; a number of shares without decimals, or of seconds, as an integer."""
    if (name in SHARES or name == GAP) and value == value and value.is_integer():
        return int(value)
    return or_null(value)


def _struct_of(name: str, columns: list[str]) -> type[msgspec.Struct]:
    """A struct with the `windows` columns `columns`: floats and `gap_s` may be null, the others not. Columns that earlier releases do not have are optional."""
    fields: list[Any] = []
    for column in columns:
        if column in FLOATS:
            fields.append((column, float | None, None))
        elif column == GAP:
            fields.append((column, int | None, None))
        elif column in SHARES:
            fields.append((column, int | float, 0) if column == "accrued_5m" else (column, int | float))
        else:
            fields.append((column, str if column in (*STRINGS, "symbol") else bool if column in BOOLS else int))
    return msgspec.defstruct(name, fields, kw_only=True, module=__name__)


WindowRow = _struct_of("WindowRow", WINDOWS_SCHEMA.names)
"""One row of `windows`, as JSON: all columns; a float may be null."""

Window5m = _struct_of("Window5m", list(WINDOW_5M))
"""The rolling values over the 300 s up to and including the last row's second."""


class PredictionSummary(msgspec.Struct, kw_only=True):
    """The first horizon of a symbol's newest prediction."""

    as_of: int
    horizon_s: int
    predicted_return: float | None
    p_up: float | None


class SymbolSummary(msgspec.Struct, kw_only=True):
    """One line of the list of symbols; the market's fields are null until a second of the symbol has closed. `age_s` is how long ago that second ended,
    by this worker's clock; `stale` where that is more than 60 s and `delay_s`, by which its source is delayed, and the exchange is in its session, or its
    sessions are not known. `session` is the exchange's state, such as `regular`, `closed` or `holiday`; null if it is not known."""

    symbol: str
    name: str | None
    currency: str | None
    exchange: str | None
    session: str | None
    source: str | None
    second: int | None
    age_s: int | None
    delay_s: int
    stale: bool | None
    price: float | None
    return_60s: float | None
    volume_5m: int | float | None
    quality: str | None
    prediction: PredictionSummary | None
    open_alerts: int


class SymbolDetail(msgspec.Struct, kw_only=True):
    """The present state of one symbol. `alerts` are its open alerts, newest first; `metadata` is the message in `symbols`."""

    symbol: str
    metadata: dict[str, Any] | None
    last: WindowRow | None  # type: ignore[valid-type]
    window_5m: Window5m | None  # type: ignore[valid-type]
    prediction: Prediction | None
    alerts: list[Alert]


class Bar(msgspec.Struct, kw_only=True):
    """A bar that begins at `second` (epoch s); `seconds` with a tick are in it. Prices are null if there were only quotes."""

    second: int
    open: float | None
    high: float | None
    low: float | None
    close: float | None
    volume: int | float
    ticks: int
    quotes: int
    seconds: int


class OutcomeCount(msgspec.Struct, kw_only=True):
    """What this worker has seen of one model's outcomes since it began to read.

    `moved` are the outcomes whose price changed (`realised_return` is not 0), `hits` those of them whose prediction has the sign right; their share is
    undefined while `moved` is 0. Errors are of log returns, over all outcomes.
    """

    model: str
    version: str
    role: str
    horizon_s: int
    outcomes: int = 0
    moved: int = 0
    hits: int = 0
    mean_absolute_error: float = 0.0


T = TypeVar("T")


class Page(msgspec.Struct, Generic[T], kw_only=True):
    """One page of a list. `next` is the parameter `?next=` for the following page, null on the last one."""

    items: list[T]
    next: str | None


AlertFilter = Literal["open", "opened", "updated", "closed"]

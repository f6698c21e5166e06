"""Limits on messages that the views accept. Anybody may write to the topics, and one message must neither fill the memory nor stop the reader."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import pyarrow as pa

from stockstream.errors import FrameError
from stockstream.records import WINDOWS_SCHEMA, Outcome
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TIME, symbol_fault
from stockstream.transforms.frame_checks import MAX_MAGNITUDE
from stockstream.web.answers import FLOATS, GAP, IN_SHARES, INTS

MAX_METADATA_BYTES, MAX_PREDICTION_BYTES, MAX_ALERT_BYTES = 8_192, 8_192, 4_096
"""The most bytes of one message; stockstream's have a few hundred. The views keep one message of each symbol, or of each alert."""

MAX_DEPTH = 32
"""The deepest nesting of metadata: deeper JSON might not be encoded later, from a deeper stack."""

MAX_QUALITY = 256
"""Characters of a row's flags: all of ours together have 65."""

MAX_RETURN = 1e6
"""The greatest log return or probability of an outcome, so that means stay finite."""


def within(data: bytes, limit: int) -> bytes:
    """The data. Raises `FrameError` if they are longer."""
    if len(data) > limit:
        raise FrameError(f"it has {len(data)} bytes, at most {limit} are kept")
    return data


def require_symbol(symbol: str) -> None:
    """Raises `FrameError` if the text cannot be a symbol."""
    fault = symbol_fault(symbol)
    if fault:
        raise FrameError(fault)


def depth(value: Any, most: int = MAX_DEPTH) -> int:
    """How deep a JSON value is nested, counted up to `most` + 1."""
    if not isinstance(value, (dict, list)) or most < 0:
        return 0
    return 1 + max((depth(part, most - 1) for part in (value.values() if isinstance(value, dict) else value)), default=0)


def check_row(values: dict[str, Any]) -> None:
    """Raises `FrameError` if a row of `latest` does not fit the columns."""
    require_symbol(values["symbol"])
    for name in (*INTS, *([GAP] if values[GAP] is not None else [])):
        if not -(1 << 63) <= values[name] < 1 << 63:
            raise FrameError(f"column {name!r} is out of range")
    for name in IN_SHARES:
        if not -MAX_MAGNITUDE <= values[name] <= MAX_MAGNITUDE:
            raise FrameError(f"column {name!r} is out of range")
    if not 0 <= values["second"] < 1 << 32 or not 0 <= values["partition"] < 1 << 31:
        raise FrameError("column 'second' or 'partition' is out of range")
    if len(values["source"]) > MAX_SOURCE or len(values["quality"]) > MAX_QUALITY:
        raise FrameError("column 'source' or 'quality' is too long")


def check_outcome(item: Outcome) -> None:
    """Raises `FrameError` if a field of an outcome is out of range."""
    require_symbol(item.symbol)
    numbers = (item.predicted_return, item.p_up, item.realised_return)
    if not (0 <= item.as_of <= MAX_TIME and 0 < item.horizon_s < 1 << 31 and all(abs(number) <= MAX_RETURN for number in numbers)):
        raise FrameError("a number is out of range")
    if len(item.model) > MAX_SOURCE or len(item.version) > MAX_SOURCE:
        raise FrameError("a model's name is too long")


def columns_of(rows: pa.RecordBatch) -> dict[str, npt.NDArray[Any]]:
    """The frame's columns as numpy arrays. Raises `FrameError` if one is missing or has a null that it may not have."""
    columns: dict[str, npt.NDArray[Any]] = {}
    for name in WINDOWS_SCHEMA.names:
        place = rows.schema.get_field_index(name)
        if place < 0:
            raise FrameError(f"no column {name!r}")
        column = rows.column(place)
        if column.type != WINDOWS_SCHEMA.field(name).type:
            raise FrameError(f"column {name!r} is {column.type}")
        if column.null_count and name not in FLOATS and name != GAP:
            raise FrameError(f"column {name!r} has nulls")
        columns[name] = column.to_numpy(zero_copy_only=False)
    if len(rows) and not 0 <= columns["second"].min() <= columns["second"].max() < 1 << 32:
        raise FrameError("column 'second' is not in epoch seconds")
    return columns

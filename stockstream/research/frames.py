"""Answers of DuckDB as Arrow, and Arrow as pandas: times in UTC, missing values as NaN and NaT, the same types whether or not there are rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

INDEX = "time"
"""The index of every frame that has one: when a row's bar begins, or its event time, second, or `as_of`."""


def utc_schema(schema: pa.Schema) -> pa.Schema:
    """The schema with the zone UTC in each column of times."""
    return pa.schema([pa.field(field.name, pa.timestamp(field.type.unit, "UTC")) if pa.types.is_timestamp(field.type) else field for field in schema])


def in_utc(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with the zone UTC in each column of times. No value changes."""
    schema = utc_schema(batch.schema)
    return pa.RecordBatch.from_arrays([column.cast(field.type) for column, field in zip(batch.columns, schema, strict=True)], schema=schema)


def to_pandas(table: pa.Table) -> pd.DataFrame:
    """The table as pandas: decimals and the sums of integers as float64, dates as datetime64, an integer column with NULL as float64."""
    for place, field in enumerate(table.schema):
        if pa.types.is_decimal(field.type):
            table = table.set_column(place, field.name, table.column(place).cast(pa.float64()))
    return table.to_pandas(date_as_object=False, split_blocks=True)


def with_index(table: pa.Table, **attrs: Any) -> pd.DataFrame:
    """The table as pandas with its column INDEX as the index."""
    place = table.schema.get_field_index(INDEX)
    frame = to_pandas(table.set_column(place, INDEX, table.column(place).cast(pa.timestamp("ms", "UTC")))).set_index(INDEX)
    frame.attrs.update(attrs)
    return frame

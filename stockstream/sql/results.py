"""A result: its columns, and its rows as Arrow batches that come as they are read. Every engine gives one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa


@dataclass
class Result:
    """The result of a query. Its batches can be read once, whether one by one or together.

    `notices`: lines for the user, such as that the archive has nothing of the dates asked for.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    notices: tuple[str, ...] = ()
    close: Callable[[], None] = lambda: None
    """Ends the query; the batches that were not read are gone."""

    @property
    def columns(self) -> list[str]:
        return list(self.schema.names)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as Python values: whole numbers of any size are int, decimals Decimal, times datetime in UTC."""
        for batch in self.batches:
            yield from zip(*(_values(column) for column in batch.columns), strict=True) if batch.num_columns else iter(())

    def fetch(self, limit: int = 0) -> tuple[list[tuple[Any, ...]], bool]:
        """At most `limit` rows (0: all), and whether there are more."""
        found: list[tuple[Any, ...]] = []
        for row in self.rows():
            if limit and len(found) == limit:
                self.close()
                return found, True
            found.append(row)
        return found, False

    def arrow(self) -> pa.Table:
        """All rows."""
        return pa.Table.from_batches(list(self.batches), self.schema)

    def df(self) -> Any:
        """All rows as a pandas `DataFrame`."""
        return self.arrow().to_pandas()


def _values(column: pa.Array) -> list[Any]:
    values: list[Any] = column.to_pylist()
    if pa.types.is_decimal(column.type) and column.type.scale == 0:      # what DuckDB makes of sums of integers
        return [int(value) if isinstance(value, Decimal) else value for value in values]
    if pa.types.is_map(column.type):
        return [dict(value) if value is not None else None for value in values]
    return values

"""A result: its columns, and its rows as Arrow batches that come as they are read. Every engine gives one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import pyarrow as pa

from stockstream.sql.errors import ArchiveChanged, SqlError

T = TypeVar("T")
ATTEMPTS = 4
"""How often a query runs whose objects a compaction replaces each time."""


@dataclass
class Result:
    """The result of a query. Its batches can be read once, whether one by one or together.

    Reading raises `SqlError`, and `ArchiveChanged` if a compaction replaced an object of it.
    """

    schema: pa.Schema
    batches: Iterator[pa.RecordBatch]
    notices: tuple[str, ...] = ()
    """Lines for the user, such as that the archive has nothing of the dates asked for."""
    close: Callable[[], None] = lambda: None
    """Ends the query; the batches that were not read are gone."""
    again: Callable[[], Result] | None = None
    """Runs the query again, on the objects that count then."""

    @property
    def columns(self) -> list[str]:
        return list(self.schema.names)

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """The rows as Python values: whole numbers of any size are int, decimals Decimal, times datetime in UTC."""
        for batch in self.batches:
            yield from rows_of(batch)

    def fetch(self, limit: int = 0) -> tuple[list[tuple[Any, ...]], bool]:
        """At most `limit` rows (0: all), and whether there are more."""
        return self.whole(lambda result: result._fetch(limit))

    def arrow(self) -> pa.Table:
        """All rows."""
        return self.whole(lambda result: pa.Table.from_batches(list(result.batches), result.schema))

    def df(self) -> Any:
        """All rows as a pandas `DataFrame`."""
        return self.arrow().to_pandas()

    def whole(self, read: Callable[[Result], T]) -> T:
        """What `read` makes of the result. If a compaction replaced an object meanwhile, it gets the result of another run, from its first row on."""
        result = self
        for _ in range(ATTEMPTS - 1):
            try:
                return read(result)
            except ArchiveChanged:
                if result.again is None:
                    raise
                result = result.again()
        return read(result)

    def _fetch(self, limit: int) -> tuple[list[tuple[Any, ...]], bool]:
        found: list[tuple[Any, ...]] = []
        for row in self.rows():
            if limit and len(found) == limit:
                self.close()
                return found, True
            found.append(row)
        return found, False


def rows_of(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """The rows of a batch as Python values. Raises `SqlError` for a time that Python has not."""
    return iter(zip(*map(_values, batch.columns), strict=True)) if batch.num_columns else iter(())


def _values(column: pa.Array) -> list[Any]:
    try:
        values: list[Any] = column.to_pylist()
    except (OverflowError, ValueError) as error:                         # infinity, for example
        raise SqlError(f"a value of type {column.type} is outside of the years 1 to 9999: cast it to VARCHAR, or write Parquet ({error})") from error
    if pa.types.is_decimal(column.type) and column.type.scale == 0:      # what DuckDB makes of sums of integers
        return [int(value) if isinstance(value, Decimal) else value for value in values]
    if pa.types.is_map(column.type):
        return [dict(value) if value is not None else None for value in values]
    return values

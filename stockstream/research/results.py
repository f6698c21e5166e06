"""The answer to SQL, read when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from stockstream.errors import StockstreamError
from stockstream.research.frames import to_pandas

if TYPE_CHECKING:
    import pandas as pd

BATCH_ROWS = 100_000


class Result:
    """The rows of one SELECT. Nothing is read before a method asks for it; each call reads the archive as it is then.

    Times are in UTC and have that zone, in every form.
    """

    def __init__(self, sql: str, read: Callable[[int], Iterator[pa.RecordBatch]]) -> None:
        self._sql, self._read = sql, read

    def batches(self, rows: int = BATCH_ROWS) -> Iterator[pa.RecordBatch]:
        """The rows as Arrow batches of about `rows`, one after the other. Memory holds some of them, and not the result: the way through many rows.

        The first one has the columns even if there is no row. Raises `ArchiveError`.
        """
        return self._read(rows)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        return self.batches()

    def arrow(self) -> pa.Table:
        """All rows as an Arrow table."""
        return pa.Table.from_batches(list(self.batches()))

    def df(self) -> pd.DataFrame:
        """All rows as pandas. NULL is NaN or NaT; decimals, the sums of integers and integers with NULL are float64; dates are datetime64."""
        return to_pandas(self.arrow())

    def pl(self) -> Any:
        """All rows as polars, which must be installed. Raises `StockstreamError` if it is not."""
        try:
            import polars
        except ImportError:
            raise StockstreamError("polars is not installed: pip install polars, or use .df() or .arrow()") from None
        return polars.from_arrow(self.arrow())

    def rows(self) -> list[tuple[Any, ...]]:
        """All rows as tuples of Python values."""
        from stockstream.sql.results import Result as Answer

        return list(Answer(pa.schema([]), self.batches()).rows())

    def __repr__(self) -> str:
        return f"<Result of {' '.join(self._sql.split())!r}: .df() .arrow() .pl() .rows(), or iterate over its batches>"


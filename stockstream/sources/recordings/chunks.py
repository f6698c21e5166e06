"""A piece of a recording: ticks as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be a tick; `row` counts from 1, a header aside. In a topic it is a text, partition and offset."""

    row: int | str
    reason: str

    @property
    def place(self) -> str:
        return f"row {self.row}" if isinstance(self.row, int) else self.row


@dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that can be ticks. Times are epoch ms; prices and quotes are NaN if there is none. `bad` are rows between them that cannot be ticks."""

    symbols: pa.DictionaryArray
    times: NDArray[np.int64]
    price: NDArray[np.float64]
    size: NDArray[np.float64]
    quotes: dict[str, NDArray[np.float64]]
    texts: dict[str, pa.DictionaryArray]
    bad: list[BadRow]

    def __len__(self) -> int:
        return len(self.times)

    def take(self, rows: NDArray[np.int64]) -> Chunk:
        """Some of the rows, and all bad ones."""
        at = pa.array(rows)
        quotes = {name: column[rows] for name, column in self.quotes.items()}
        texts = {name: column.take(at) for name, column in self.texts.items()}
        return Chunk(self.symbols.take(at), self.times[rows], self.price[rows], self.size[rows], quotes, texts, self.bad)

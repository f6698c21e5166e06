"""The rows that a frame brings: as columns for Arrow, and as JSON rows for `latest`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.records import SHARES, WINDOWS_SCHEMA, Closing
from stockstream.transforms.frames import empty, nullable, nulls, plain, spread
from stockstream.transforms.shares import for_json
from stockstream.transforms.windows.cells import Ints
from stockstream.transforms.windows.quality import LATE, TEXTS, quality_column

Row = msgspec.defstruct("Row", WINDOWS_SCHEMA.names, gc=False)
"""A row of `windows` as it is for JSON, which makes null of a NaN."""
_WHOLE = (*(name for name in SHARES if name in WINDOWS_SCHEMA.names), "gap_s")
"""Columns whose whole numbers are JSON without decimals."""


@dataclass(slots=True)
class SourceRows:
    """Rows of one source, by offset of the closing, second and symbol."""

    source: str
    symbols: list[str]
    symbol: Ints
    """Which of `symbols` each row is of."""
    values: dict[str, NDArray[Any]]
    """The columns of `windows` that differ from row to row; NaN where there is none, and `quality` as bits."""

    def json_rows(self, rows: list[int], partition: int) -> list[Any]:
        """Some of the rows, each as a `Row`."""
        places = np.array(rows)
        columns: dict[str, Iterable[Any]] = {
            name: for_json(array[places]) if name in _WHOLE else array[places].tolist() for name, array in self.values.items()
        }  # fmt: skip
        columns |= {
            "symbol": [self.symbols[number] for number in self.symbol[places].tolist()], "source": repeat(self.source), "partition": repeat(partition),
            "quality": [TEXTS[bits] for bits in self.values["quality"][places].tolist()],
        }  # fmt: skip
        return list(map(Row, *(columns[name] for name in WINDOWS_SCHEMA.names)))


@dataclass(slots=True)
class WindowRows:
    """What one frame brings: the closings to send, all of them in order, and their rows."""

    start: int
    through: int
    log_clock: int = 0
    """Newest Kafka time (epoch ms) of an accepted record up to `through`; 0: not known."""
    closings: list[Closing] = field(default_factory=list)
    by_source: list[SourceRows] = field(default_factory=list)

    def late(self) -> dict[str, int]:
        """By source, how many rows came late; none where there are none."""
        found: dict[str, int] = {}
        for group in self.by_source:
            count = int(np.count_nonzero(group.values["quality"] & LATE))
            if count:
                found[group.source] = found.get(group.source, 0) + count
        return found

    def newest(self) -> list[tuple[SourceRows, dict[str, int]]]:
        """By group and symbol the row that is the last of the symbol to have a price."""
        found: list[tuple[SourceRows, dict[str, int]]] = []
        for group in sorted(self.by_source, key=lambda group: group.source):
            priced = np.flatnonzero(~np.isnan(group.values["price"]))
            last = np.full(len(group.symbols), -1)
            last[group.symbol[priced]] = priced                           # of several the last stays
            numbers = np.flatnonzero(last >= 0)
            newest = {group.symbols[number]: row for number, row in zip(numbers.tolist(), last[numbers].tolist(), strict=True)}
            for other, rows in found:
                for symbol in newest.keys() & rows.keys():
                    older = group.values["offset"][newest[symbol]] < other.values["offset"][rows[symbol]]
                    del (newest if older else rows)[symbol]
            found.append((group, newest))
        return found

    def batch(self, partition: int) -> pa.RecordBatch:
        """The rows as WINDOWS_SCHEMA, ordered by closing (offset, source), second, symbol."""
        groups = sorted(self.by_source, key=lambda group: group.source)
        if not groups:
            return empty(WINDOWS_SCHEMA)
        values, symbols = groups[0].values, [spread(group.symbols, group.symbol) for group in groups]
        if len(groups) > 1:
            values = {name: np.concatenate([group.values[name] for group in groups]) for name in values}
        columns = {
            "symbol": pa.concat_arrays(symbols) if len(symbols) > 1 else symbols[0],
            "source": spread([group.source for group in groups], np.repeat(np.arange(len(groups)), [len(group.symbol) for group in groups])),
            "quality": quality_column(values["quality"]),
            "partition": plain(np.full(len(values["second"]), partition, np.int32)),
        }
        never_null = {name for name, array in values.items() if array.dtype.kind != "f" or name in SHARES} - {"quality"}
        columns |= {name: plain(values[name]) for name in never_null}
        columns |= nullable({name: array for name, array in values.items() if name not in never_null and name != "quality"})
        gaps = columns["gap_s"]
        columns["gap_s"] = gaps.cast(pa.int64()) if gaps.null_count < len(gaps) else nulls(len(gaps), pa.int64())
        batch = pa.RecordBatch.from_arrays([columns[spec.name] for spec in WINDOWS_SCHEMA], schema=WINDOWS_SCHEMA)
        if groups[0].source != groups[-1].source:
            batch = batch.take(pa.array(np.argsort(values["offset"], kind="stable")))
        return batch


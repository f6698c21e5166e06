"""A frame of `windows` as columns: the rows on which a rule holds, and a summary of each second for `market`."""

from __future__ import annotations

import math
from bisect import bisect_left
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.records import SHARES
from stockstream.transforms.frames import bounds_of_runs, numbers
from stockstream.transforms.rules.conditions import RULE_NAMES, conditions
from stockstream.transforms.rules.state import WINDOW_COLUMNS
from stockstream.transforms.shares import for_json, joined, split

_SECOND = WINDOW_COLUMNS.index("second")


class Hit(NamedTuple):
    """A row that has a rule's condition, with its values of WINDOW_COLUMNS."""

    second: int
    symbol: str
    rule: str
    window: tuple[Any, ...]


def _values(rows: pa.RecordBatch, found: NDArray[np.int64]) -> list[tuple[Any, ...]]:
    """WINDOW_COLUMNS of these rows, null as None."""
    out: list[list[Any]] = []
    indices = pa.array(found)
    for name in WINDOW_COLUMNS:
        column = rows.column(name)
        if pa.types.is_string(column.type):
            texts = column.take(indices).dictionary_encode()
            known = texts.dictionary.to_pylist()
            out.append([known[number] for number in texts.indices.to_numpy().tolist()])
        else:
            numbers_of = numbers(rows, name)[found]
            whole = name in SHARES or pa.types.is_integer(column.type)  # an integer column with nulls comes as floats
            is_float = numbers_of.dtype.kind == "f"
            values = for_json(numbers_of) if is_float and whole else numbers_of.tolist()
            if is_float:
                for place in np.flatnonzero(np.isnan(numbers_of)).tolist():
                    values[place] = None
            out.append(values)
    return list(zip(*out, strict=True))


class Columns:
    """A frame's rows as numpy columns; rows of one closing are neighbours, and `spans` has their places."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._symbol = rows.column("symbol")
        self._offset, self._second = numbers(rows, "offset"), numbers(rows, "second")
        self._volume, self._ticks = numbers(rows, "volume"), numbers(rows, "ticks")
        self._return_60s = numbers(rows, "return_60s")
        self._fresh = ~np.asarray(rows.column("revised").to_numpy(zero_copy_only=False), dtype=bool)
        quality = rows.column("quality").fill_null("").dictionary_encode()
        late = np.array(["late" in text.split(",") for text in quality.dictionary.to_pylist()], bool)
        self._on_time = self._fresh & ~late[quality.indices.to_numpy()] if late.any() else self._fresh
        sources = rows.column("source").dictionary_encode()
        self._sources, self._source = sources.dictionary.to_pylist(), sources.indices.to_numpy()
        bounds = bounds_of_runs(self._offset, self._source)
        self.spans = {self._place(low): slice(low, high) for low, high in pairwise(bounds)}
        self._hit_rows, self._hits = self._find(rows, [condition & self._fresh for condition in conditions(rows)])

    def _find(self, rows: pa.RecordBatch, masks: list[NDArray[np.bool_]]) -> tuple[list[int], list[Hit]]:
        """The rows on which rules hold, and the hits: one for each row and rule. `masks` are by rule, in the order of RULES."""
        found = np.flatnonzero(np.logical_or.reduce(masks))
        if not len(found):
            return [], []
        windows, symbols = _values(rows, found), self._symbol.take(pa.array(found)).to_pylist()
        hits = [
            (index, Hit(window[_SECOND], symbol, rule, window))
            for index, symbol, window, holds in zip(
                found.tolist(), symbols, windows, zip(*(mask[found].tolist() for mask in masks), strict=True), strict=True
            )
            for rule, hit in zip(RULE_NAMES, holds, strict=True)
            if hit
        ]
        return [index for index, _ in hits], [hit for _, hit in hits]

    def hits(self, rows: slice) -> list[Hit]:
        """What hits these rows, by second, symbol, rule."""
        found = self._hits[bisect_left(self._hit_rows, rows.start) : bisect_left(self._hit_rows, rows.stop)]
        return sorted(found, key=lambda hit: hit.second)

    def symbols(self, rows: slice) -> set[str]:
        """Symbols of the rows that are not revised."""
        return set(self._symbol.slice(rows.start, rows.stop - rows.start).filter(pa.array(self._fresh[rows])).to_pylist())

    def summaries(self, partition: int) -> dict[tuple[int, str], list[dict[str, Any]]]:
        """By closing, a summary of each second with rows that are neither revised nor late: each second has one."""
        fresh = np.flatnonzero(self._on_time)
        bounds = bounds_of_runs(self._offset[fresh], self._source[fresh], self._second[fresh])
        starts, sizes = bounds[:-1], np.diff(bounds).tolist()
        returns = self._return_60s[fresh]
        known = ~np.isnan(returns)
        *counts, whole, part = (
            np.add.reduceat(values, starts, dtype=np.int64) if starts else np.zeros(0, np.int64)
            for values in (returns > 0, returns < 0, known, self._ticks[fresh], *split(self._volume[fresh]))
        )
        up, down, with_return, ticks = (count.tolist() for count in counts)
        volume = for_json(joined(whole, part))
        values, squares = returns[known].tolist(), (returns * returns)[known].tolist()
        out: dict[tuple[int, str], list[dict[str, Any]]] = {}
        after = 0
        for number, first in enumerate(fresh[starts].tolist()):
            before, after = after, after + with_return[number]
            offset, source = place = self._place(first)
            out.setdefault(place, []).append({
                "partition": partition, "source": source, "second": int(self._second[first]), "offset": offset, "symbols": sizes[number],
                "advancers": up[number], "decliners": down[number], "unchanged": with_return[number] - up[number] - down[number],
                "volume": volume[number], "ticks": ticks[number], "returns_60s": with_return[number],
                "sum_return_60s": math.fsum(values[before:after]), "sum_square_return_60s": math.fsum(squares[before:after]),
            })  # fmt: skip
        return out

    def _place(self, row: int) -> tuple[int, str]:
        """Offset and source of the row's closing."""
        return int(self._offset[row]), self._sources[self._source[row]]

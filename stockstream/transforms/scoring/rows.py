"""The rows of a `windows` frame that are scored."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from models import features
from stockstream.transforms.frames import bounds_of_runs, numbers
from stockstream.transforms.scoring.scored import Floats, Ints

NEW_SERIES = "new_series"
"""In `quality`: with this second another currency begins."""


@dataclass(slots=True)
class RowsToScore:
    """The rows to score, in log order; `spans` has the places of each closing's, second by second."""

    batch: pa.RecordBatch
    symbol: list[str]
    second: Ints
    price: Floats
    offset: Ints
    spans: dict[tuple[int, str], dict[int, slice]]
    begun: dict[tuple[int, str], list[tuple[str, int]]]
    """By closing: symbols whose currency has changed, and the second with which that began. They may have no price."""

    @classmethod
    def of(cls, batch: pa.RecordBatch, expect: int) -> RowsToScore:
        """Of `windows` rows those at or beyond `expect` that are not `revised` and have a price."""
        begun: dict[tuple[int, str], list[tuple[str, int]]] = {}
        anew = np.asarray(pc.match_substring(batch.column("quality"), NEW_SERIES).to_numpy(zero_copy_only=False))
        if anew.any():
            some = batch.filter(pa.array(anew & (numbers(batch, "offset") >= expect))).select(["offset", "source", "symbol", "second"]).to_pydict()
            for at, name, symbol, began in zip(*some.values(), strict=True):
                begun.setdefault((at, name), []).append((symbol, began))
        price = numbers(batch, "price")
        wanted = (price > 0) & ~numbers(batch, "revised") & (numbers(batch, "offset") >= expect)
        if not wanted.all():
            batch = batch.filter(pa.array(wanted))
        offset, second = numbers(batch, "offset"), numbers(batch, "second")
        names = batch.column("source").dictionary_encode()
        code, table = names.indices.to_numpy(), names.dictionary.to_pylist()
        spans: dict[tuple[int, str], dict[int, slice]] = {}
        for low, high in pairwise(bounds_of_runs(offset, code, second)):
            spans.setdefault((int(offset[low]), table[code[low]]), {})[int(second[low])] = slice(low, high)
        return cls(batch, batch.column("symbol").to_pylist(), second, numbers(batch, "price"), offset, spans, begun)

    def features(self, run: slice) -> NDArray[np.float32]:
        batch = self.batch.slice(run.start, run.stop - run.start)
        return features.matrix({name: numbers(batch, name) for name in features.COLUMNS})

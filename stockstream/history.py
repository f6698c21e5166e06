"""Turns recorded ticks into `windows` rows, with the worker's own code, to train models on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

import numpy as np
import pyarrow as pa

from stockstream.errors import SourceError
from stockstream.records import QUOTES
from stockstream.sources.recordings.recording import Recording
from stockstream.transforms.batch import windows_of

SOURCE = "history"
TICKS = pa.schema([
    ("symbol", pa.string()), ("source", pa.string()), ("event_time", pa.int64()), ("price", pa.float64()), ("size", pa.float64()),
    *((name, pa.float64()) for name in QUOTES),
])  # fmt: skip
"""The ticks that `windows_of` reads: times in epoch ms, prices null in a pure quote."""


def read_ticks(path: Path, *, symbols: Collection[str] = (), progress: Callable[[int], None] = lambda ticks: None) -> pa.Table:
    """Reads a file of trades or bars in any format. Returns its ticks in order of time, with the schema TICKS.

    A bar becomes a tick at its last millisecond; bars of more than a second also have a column `interval_s`. Rows that cannot be ticks are left out.
    `progress` is called with the number of ticks read since the last call. Raises `SourceError` if the file cannot be read or has no ticks.
    """
    tables = []
    recording = Recording(path, symbols=symbols)
    for chunk in recording.unsorted_chunks():
        columns = {
            "symbol": chunk.symbols.cast(pa.string()),
            "source": pa.repeat(pa.scalar(SOURCE), len(chunk)),
            "event_time": pa.array(chunk.times, pa.int64()),
            "price": pa.array(chunk.price, pa.float64(), from_pandas=True),
            "size": pa.array(np.nan_to_num(chunk.size)),
        }
        for name in QUOTES:
            known = chunk.quotes.get(name)
            columns[name] = pa.nulls(len(chunk), pa.float64()) if known is None else pa.array(known, pa.float64(), from_pandas=True)
        tables.append(pa.table(columns, schema=TICKS))
        progress(len(chunk))
    ticks = pa.concat_tables(tables) if tables else TICKS.empty_table()
    if not ticks.num_rows:
        raise SourceError(f"{path}: no row is a valid tick" + (" of these symbols" if symbols else ""))
    if recording.interval_s > 1:
        ticks = ticks.append_column("interval_s", pa.repeat(pa.scalar(recording.interval_s), ticks.num_rows))
    return ticks.take(pa.array(np.argsort(ticks.column("event_time").to_numpy(), kind="stable")))


def window_rows(ticks: pa.Table) -> pa.Table:
    """The rows of `windows` (`records.WINDOWS_SCHEMA`) that a worker would compute from these ticks, with every second closed."""
    return windows_of(ticks)

"""Layouts of the same ticks: as a compaction sorts them, and otherwise, to see what the order and the size of row groups are worth."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from stockstream.sinks.archive.compacted_object import encoding_of
from stockstream.sinks.archive.processed import ROW_GROUP


@dataclass(frozen=True, slots=True)
class Layout:
    """One object an hour, sorted by time only or by symbol and time, in row groups of so many rows."""

    title: str
    by_time: bool
    row_group: int


OTHERS = {
    "by-time": Layout("by time only", True, ROW_GROUP),
    "small-groups": Layout(f"by symbol and time, row groups of {ROW_GROUP // 4:,}", False, ROW_GROUP // 4),
    "large-groups": Layout(f"by symbol and time, row groups of {ROW_GROUP * 8:,}", False, ROW_GROUP * 8),
}


def rewrite(source: Path, target: Path, layout: Layout) -> None:
    """Writes the rows of a compacted object in another layout, encoded as they are there."""
    table = pq.read_table(source, partitioning=None, read_dictionary=["symbol", "source", "exchange", "log"])
    if layout.by_time:
        table = table.sort_by([(name, "ascending") for name in ("event_time", "partition", "offset", "index")])
    target.parent.mkdir(parents=True, exist_ok=True)
    with pq.ParquetWriter(target, table.schema.with_metadata(None), **encoding_of("ticks")) as writer:
        writer.write_table(table, row_group_size=layout.row_group)


def write_layouts(pool: Executor, day: Path, folder: Path) -> dict[str, list[Path]]:
    """The compacted objects under `day` in each of OTHERS, under `folder`. Returns their paths."""
    found: dict[str, list[Path]] = {}
    running = []
    for name, layout in OTHERS.items():
        for source in sorted(day.rglob("*.parquet")):
            target = folder / name / source.relative_to(day)
            found.setdefault(name, []).append(target)
            running.append(pool.submit(rewrite, source, target, layout))
    for one in running:
        one.result()
    return found


def rows_of(paths: Sequence[Path]) -> str:
    """SQL of the rows of these objects, with the columns of their folders."""
    listed = ", ".join(f"'{path}'" for path in paths)
    return f"SELECT * FROM read_parquet([{listed}], hive_partitioning=true, hive_types={{'date': DATE, 'hour': BIGINT}})"


def merge(paths: Sequence[Path], target: Path, execute: Callable[[str], object]) -> None:
    """Writes the rows of these objects into one by symbol and time, as DuckDB encodes them."""
    order = 'ORDER BY symbol, event_time, partition, "offset", "index"'
    execute(f"COPY ({rows_of(paths)} {order}) TO '{target}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE 122880)")

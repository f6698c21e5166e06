"""Small archives in a folder, for tests of SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stockstream.sinks.archive.schemas import STORED

LOG = "0199c3d2a10-0a1b2c3d"


def write_rows(root: Path, area: str, folder: str, rows: Sequence[Mapping[str, Any]], first: int = 0, log: str = LOG) -> Path:
    """Writes rows as an object of an area, without a footer. Columns that are not given are null."""
    path = root / "processed" / area / folder / f"{log}-00000-{first:020d}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([dict(row) for row in rows], schema=STORED[area]), path)
    return path


def ticks(count: int, first: int = 0) -> list[dict[str, Any]]:
    """Ticks of AAPL, one a second from 2025-10-09 08:00 on, the offset as price."""
    return [
        {"symbol": "AAPL", "source": "mine", "event_time": 1_759_996_800_000 + (first + number) * 1000, "price": float(first + number), "size": 1.0,
         "offset": first + number, "index": 0, "partition": 0, "log": LOG}
        for number in range(count)
    ]  # fmt: skip

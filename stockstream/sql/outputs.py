"""How results are printed: a table for people, CSV and JSON for programs."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any

from stockstream.records import SHARES

TABLE_ROWS = 100
"""The most rows of a table without `--limit`; CSV and JSON are complete."""


def as_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned text: numbers to the right."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(value, int | float | None) and not isinstance(value, bool) for value in column) for column in zip(*rows, strict=True)]
    right = right or [False] * len(columns)
    lines = [[cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, float) and abs(value) >= 1e10 and math.isfinite(value):
        return f"{value:.2f}".removesuffix(".00")
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else str(value)


def as_csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([_shares(name, value) for name, value in zip(columns, row, strict=True)] for row in rows)
    return out.getvalue().rstrip("\n")


def as_json(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A JSON array of objects, with times in ISO 8601, and null for numbers that JSON cannot represent."""
    return json.dumps([{name: _plain(_shares(name, value)) for name, value in zip(columns, row, strict=True)} for row in rows], ensure_ascii=False)


def _shares(name: str, value: Any) -> Any:
    """A value of this column; a whole number of shares as an integer."""
    return int(value) if name in SHARES and isinstance(value, float) and value.is_integer() else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return value.isoformat() if isinstance(value, date | datetime) else str(value)


FORMATS = {"table": as_table, "csv": as_csv, "json": as_json}

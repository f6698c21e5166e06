"""How results are printed and stored: a table for people; CSV, JSON and Parquet for programs, as a stream in bounded memory."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa

from stockstream.errors import OutputError
from stockstream.records import SHARES
from stockstream.sql.results import Result, rows_of
from stockstream.sql.texts import is_nested, text_of

TABLE_ROWS = 100
"""The most rows of a table without `--limit`; the other forms are complete."""
_QUOTED = re.compile(r'[",\r\n]')
FORMATS = ("csv", "json", "parquet", "table")


class Limited:
    """The first `limit` rows of a result (0: all), as batches. `more`: whether it had further ones; `rows`: how many have come."""

    def __init__(self, result: Result, limit: int) -> None:
        self._result, self._limit = result, limit
        self.rows, self.more = 0, False

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        for batch in self._result.batches:
            left = self._limit - self.rows if self._limit else batch.num_rows
            if batch.num_rows > left:
                self.more = True
                batch = batch.slice(0, left)
            self.rows += batch.num_rows
            if batch.num_rows:
                yield batch
            if self.more:
                self._result.close()
                return


def as_table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned text: numbers to the right."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(isinstance(value, int | float | Decimal | None) and not isinstance(value, bool) for value in column) for column in zip(*rows, strict=True)]
    right = right or [False] * len(columns)
    lines = [[cell.rjust(width) if to_right else cell.ljust(width) for cell, width, to_right in zip(row, widths, right, strict=True)] for row in cells]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _cell(value: Any) -> str:
    if is_nested(value):
        return _json(value)
    if isinstance(value, float) and abs(value) >= 1e10 and math.isfinite(value):
        return f"{value:.2f}".removesuffix(".00")
    return "" if value is None else f"{value:.10g}" if isinstance(value, float) else f"{value:f}" if isinstance(value, Decimal) else text_of(value)


def write(result: Result, form: str, limit: int, out: TextIO) -> Limited:
    """Writes rows as `table`, `csv` or `json` and ends the line. Returns what was written."""
    limited = Limited(result, limit)
    if form == "table":
        rows = [row for batch in limited for row in rows_of(batch)]
        out.write(as_table(result.columns, rows) + "\n")
    elif form == "csv":
        _write_csv(result.columns, limited, out)
    else:
        _write_json(_different(result.columns), limited, out)
    return limited


def write_file(result: Result, form: str, limit: int, path: Path) -> Limited:
    """Writes rows to a file, which is complete once it has its name: they are written beside it first. An existing file is replaced, of a link the one
    that it leads to. What is no file, such as /dev/null or a named pipe, stays what it is and receives the rows.

    If a compaction replaces an object meanwhile, a file begins anew; for what is no file, `ArchiveChanged` is raised. Raises `OutputError`.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:12]}.part")

    def write_to(place: Path, of: Result) -> Limited:
        if form == "parquet":
            with place.open("wb") as binary:                             # pyarrow would seek in what it opens, which a pipe cannot
                return _write_parquet(of, limit, binary)
        with place.open("w", encoding="utf-8", newline="") as out:
            return write(of, form, limit, out)

    try:
        if path.exists() and not path.is_file():
            return write_to(path, result)
        written = result.whole(lambda of: write_to(temporary, of))
        temporary.replace(target)
    except pa.ArrowNotImplementedError as error:
        raise OutputError(f"cannot write {path}: Parquet has no type for a column; cast it, for example to VARCHAR ({error})") from error
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            os.unlink(temporary)                                         # noqa: PTH108  after a failure
    return written


def _write_csv(columns: Sequence[str], batches: Limited, out: TextIO) -> None:
    """CSV as DuckDB and PostgreSQL write it: nothing for null, `""` for an empty text."""
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    texts = [_whole if name in SHARES else _of_csv for name in columns]
    for batch in batches:
        for row in rows_of(batch):
            values = [text(value) for text, value in zip(texts, row, strict=True)]
            if "" in values or values == [None]:                         # which the csv module writes like null, and the reverse
                out.write(",".join(map(_field, values)) + "\n")
            else:
                writer.writerow(values)


def _of_csv(value: Any) -> Any:
    if isinstance(value, str | int | float | None):
        return value
    if is_nested(value):
        return _json(value)
    return f"{value:f}" if isinstance(value, Decimal) else text_of(value)


def _field(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    return '"{}"'.format(text.replace('"', '""')) if not text or _QUOTED.search(text) else text


def _write_json(columns: Sequence[str], batches: Limited, out: TextIO) -> None:
    """A JSON array of objects, with times in ISO 8601, numbers with all their digits, and null for numbers that JSON cannot represent."""
    names = [f"{json.dumps(name, ensure_ascii=False)}: " for name in columns]
    shares = [name in SHARES for name in columns]
    out.write("[")
    between = ""
    for batch in batches:
        lines = []
        for row in rows_of(batch):
            values = (name + _json(_whole(value) if whole else value) for name, value, whole in zip(names, row, shares, strict=True))
            lines.append(f"{{{', '.join(values)}}}")
        out.write(between + ", ".join(lines))
        between = ", "
    out.write("]\n")


def _write_parquet(result: Result, limit: int, out: BinaryIO) -> Limited:
    import pyarrow.parquet as pq  # only this form needs it

    limited = Limited(result, limit)
    schema = pa.schema([field.with_name(name) for field, name in zip(result.schema, _different(result.columns), strict=True)])
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for table in _gathered(limited, schema):
            writer.write_table(table)
    return limited


def _gathered(batches: Limited, schema: pa.Schema, rows: int = 100_000) -> Iterator[pa.Table]:
    """Tables of some batches each: every one becomes a row group."""
    waiting: list[pa.RecordBatch] = []
    for batch in batches:
        waiting.append(pa.RecordBatch.from_arrays(batch.columns, schema=schema))
        if sum(one.num_rows for one in waiting) >= rows:
            yield pa.Table.from_batches(waiting, schema)
            waiting = []
    if waiting:
        yield pa.Table.from_batches(waiting, schema)


def _different(columns: Sequence[str]) -> list[str]:
    """The names, those that occur again with a number behind them."""
    seen: Counter[str] = Counter()
    names = []
    for name in columns:
        names.append(f"{name}_{seen[name]}" if seen[name] else name)
        seen[name] += 1
    return names


def with_notice(result: Result, notice: Callable[[], None]) -> Result:
    """The result; `notice` is called each time a batch has come."""

    def batches() -> Iterator[pa.RecordBatch]:
        for batch in result.batches:
            notice()
            yield batch
        notice()

    again = result.again
    return replace(result, batches=batches(), again=None if again is None else lambda: with_notice(again(), notice))


def _whole(value: Any) -> Any:
    """A whole number of shares as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _json(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else "null"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{json.dumps(text_of(key), ensure_ascii=False)}: {_json(item)}' for key, item in value.items())}}}"
    if is_nested(value):
        return f"[{', '.join(map(_json, value))}]"
    return json.dumps(value.isoformat() if isinstance(value, date | datetime) else text_of(value), ensure_ascii=False)

"""The Parquet files of a backtest: `windows alerts predictions outcomes rejected`, with the columns of the topics' messages.

`made_at`, `judged_at` and `latency_ms`, which describe a worker, are null. Row groups are cut by rows alone, so equal results make equal files.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stockstream.errors import OutputError
from stockstream.records import WINDOWS_SCHEMA, Alert, Outcome, Prediction, Rejection
from stockstream.transforms.rules.state import WINDOW_COLUMNS
from stockstream.transforms.scoring.scored import Outcomes, Predictions, Scored

GROUP_ROWS = 65_536
GROUP_BYTES = 32_000_000
"""A group of rejections, whose originals may be long, ends at this size too."""
PART_ROWS = 8_192
_INT32 = {"partition", "index"}


def _type_of(kind: msgspec.inspect.Type, name: str) -> pa.DataType:
    match kind:
        case msgspec.inspect.IntType():
            return pa.int32() if name in _INT32 else pa.int64()
        case msgspec.inspect.FloatType():
            return pa.float64()
        case msgspec.inspect.BoolType():
            return pa.bool_()
        case msgspec.inspect.StrType() | msgspec.inspect.LiteralType():
            return pa.string()
        case msgspec.inspect.UnionType():
            (known,) = (one for one in kind.types if not isinstance(one, msgspec.inspect.NoneType))
            return _type_of(known, name)
        case msgspec.inspect.ListType():
            return pa.list_(_type_of(kind.item_type, name))
        case msgspec.inspect.StructType():
            return pa.struct([pa.field(field.name, _type_of(field.type, field.name)) for field in kind.fields])
        case msgspec.inspect.DictType() if name == "window":
            return pa.struct([WINDOWS_SCHEMA.field(column) for column in WINDOW_COLUMNS])
        case msgspec.inspect.DictType():
            return pa.map_(pa.string(), _type_of(kind.value_type, name))
    raise TypeError(f"{name}: no column type for {kind}")


def _schema_of(record: type[msgspec.Struct]) -> pa.Schema:
    return pa.schema(list(_type_of(msgspec.inspect.type_info(record), "")))


SCHEMAS: Mapping[str, pa.Schema] = {
    "windows": WINDOWS_SCHEMA, "alerts": _schema_of(Alert), "predictions": _schema_of(Prediction), "outcomes": _schema_of(Outcome),
    "rejected": _schema_of(Rejection),
}  # fmt: skip
"""The files' columns by file: those of the messages, with texts, whole numbers and doubles as in `windows`."""


class _Table:
    """One file. Columns are gathered until a group is full; rows likewise, with a bound in bytes."""

    def __init__(self, path: Path, schema: pa.Schema, group_rows: int) -> None:
        self._schema, self._group_rows = schema, group_rows
        self._writer = pq.ParquetWriter(path, schema, compression="zstd")
        self._batches: list[pa.Table] = []
        self._count = 0
        self._rows: list[dict[str, Any]] = []
        self._bytes = 0

    def add(self, table: pa.Table) -> None:
        """Adds rows given as columns."""
        start = 0
        while start < table.num_rows:
            some = table.slice(start, self._group_rows - self._count)
            self._batches.append(some)
            self._count += some.num_rows
            start += some.num_rows
            if self._count == self._group_rows:
                self._flush()

    def add_rows(self, rows: Iterable[dict[str, Any]]) -> None:
        """Adds rows given as objects."""
        for row in rows:
            self._rows.append(row)
            self._bytes += sum(len(value) for value in row.values() if isinstance(value, str))
            if len(self._rows) == self._group_rows or self._bytes >= GROUP_BYTES:
                self._flush()

    def _flush(self) -> None:
        if self._rows:
            self._batches.append(pa.Table.from_pylist(self._rows, schema=self._schema))
        if self._batches:
            # in one piece, so that pages do not depend on how the rows came
            self._writer.write_table(pa.concat_tables(self._batches).combine_chunks(), row_group_size=self._group_rows)
        self._batches, self._count, self._rows, self._bytes = [], 0, [], 0

    def close(self, *, keep: bool = True) -> None:
        """Completes the file; without `keep`, only so that it can be deleted."""
        if keep:
            self._flush()
        self._writer.close()


class Part:
    """The results of one partition, to be added in the log's order. They go to the files at once, or wait in files of their own until `ResultFiles.end`."""

    def __init__(self, tables: dict[str, _Table], waiting: Path | None) -> None:
        self.tables, self.waiting = tables, waiting

    def windows(self, rows: pa.RecordBatch) -> None:
        self._table("windows").add(pa.Table.from_batches([rows], schema=WINDOWS_SCHEMA))

    def alerts(self, alerts: Sequence[Alert]) -> None:
        if alerts:
            self._table("alerts").add_rows(msgspec.structs.asdict(alert) for alert in alerts)

    def rejected(self, rejections: Sequence[Rejection]) -> None:
        if rejections:
            self._table("rejected").add_rows(msgspec.structs.asdict(rejection) for rejection in rejections)

    def scored(self, scored: Scored) -> None:
        for predictions in scored.predictions:
            self._table("predictions").add(predictions_table(predictions, scored.partition))
        if scored.outcomes is not None:
            self._table("outcomes").add(outcomes_table(scored.outcomes))

    def _table(self, name: str) -> _Table:
        table = self.tables.get(name)
        if table is None:
            assert self.waiting is not None
            table = self.tables[name] = _Table(self.waiting / f"{name}.parquet", SCHEMAS[name], PART_ROWS)
        return table


def predictions_table(of: Predictions, partition: int) -> pa.Table:
    """The messages of `encode_predictions` as rows."""
    count, horizons = of.predicted_return.shape
    each = pa.StructArray.from_arrays(
        [pa.array(np.tile(np.asarray(of.horizons_s, np.int64), count)), pa.array(of.predicted_return.ravel()), pa.array(of.p_up.ravel())],
        ["horizon_s", "predicted_return", "p_up"],
    )
    columns = {
        "id": _ids(of.symbol, of.as_of.tolist(), [f"-{of.model}-{of.version}"] * count),
        "symbol": of.symbol, "as_of": of.as_of, "price": of.price, "model": [of.model] * count, "version": [of.version] * count,
        "feature_hash": [of.feature_hash] * count, "partition": np.full(count, partition, np.int32), "offset": of.offset,
        "horizons": pa.ListArray.from_arrays(pa.array(np.arange(count + 1, dtype=np.int32) * horizons), each),
    }  # fmt: skip
    return _table_of(SCHEMAS["predictions"], columns, count, ("made_at", "latency_ms"))


def outcomes_table(of: Outcomes) -> pa.Table:
    """The items of `encode_outcomes` as rows."""
    who = [member for member, count in of.by_model for _ in range(count)]
    columns = {
        "id": _ids(of.symbol, of.as_of.tolist(), [f"-{member.name}-{member.version}" for member in who]),
        "symbol": of.symbol, "as_of": of.as_of, "horizon_s": of.horizon_s, "predicted_return": of.predicted_return, "p_up": of.p_up,
        "model": [member.name for member in who], "version": [member.version for member in who], "role": [member.role for member in who],
        "realised_return": of.realised_return, "price_then": of.price_then,
    }  # fmt: skip
    return _table_of(SCHEMAS["outcomes"], columns, len(who), ("judged_at",))


def _ids(symbols: Sequence[str], times: Sequence[int], ends: Sequence[str]) -> list[str]:
    return [f"{symbol}-{as_of}{end}" for symbol, as_of, end in zip(symbols, times, ends, strict=True)]


def _table_of(schema: pa.Schema, columns: Mapping[str, Any], count: int, of_workers: Sequence[str]) -> pa.Table:
    return pa.table([pa.nulls(count, field.type) if field.name in of_workers else pa.array(columns[field.name], field.type) for field in schema], schema=schema)


class ResultFiles:
    """The files in a folder, which is created if it is missing. They appear under their names at `commit`, or not at all; use as a context.

    Raises `OutputError` where the folder cannot be written, or holds results and `force` is not set.
    """

    def __init__(self, folder: Path, *, force: bool = False) -> None:
        self.folder = folder
        self.paths = {name: folder / f"{name}.parquet" for name in SCHEMAS}
        present = [path.name for path in self.paths.values() if path.exists()]
        if present and not force:
            raise OutputError(f"{folder} holds results already ({', '.join(present)}): --force replaces them, or choose another --out")
        self._parts: list[Part] = []
        self._begun = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._aside = Path(tempfile.mkdtemp(prefix=".backtest-", dir=folder))
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {'a file is in its place' if isinstance(error, FileExistsError) else error.strerror}") from error
        self._tables = {name: _Table(self._aside / f"{name}.parquet", schema, GROUP_ROWS) for name, schema in SCHEMAS.items()}

    def __enter__(self) -> ResultFiles:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for table in [*self._tables.values(), *(table for part in self._parts for table in part.tables.values())]:
            with contextlib.suppress(OSError, pa.ArrowException):
                table.close(keep=False)
        shutil.rmtree(self._aside, ignore_errors=True)
        if isinstance(error, OSError):
            raise OutputError(f"{self.folder}: the results cannot be written: {error.strerror or error}") from error

    def begin(self) -> Part:
        """The results of another partition, behind those of all partitions that were begun before."""
        self._begun += 1
        waiting = self._aside / f"part-{self._begun}" if self._parts else None
        if waiting is not None:
            waiting.mkdir()
        part = Part({} if waiting else self._tables, waiting)
        self._parts.append(part)
        return part

    def end(self, part: Part) -> None:
        """Everything of this part has been added. Parts end in the order in which they began."""
        assert self._parts[0] is part
        self._parts.pop(0)
        if part.waiting is None:
            return
        for waiting in part.tables.values():
            waiting.close()
        for name, table in self._tables.items():
            path = part.waiting / f"{name}.parquet"
            if not path.exists():
                continue
            with pq.ParquetFile(path) as file:
                for group in range(file.num_row_groups):
                    rows = file.read_row_group(group)
                    table.add_rows(rows.to_pylist()) if name in ("alerts", "rejected") else table.add(rows)
        shutil.rmtree(part.waiting, ignore_errors=True)

    def commit(self) -> None:
        """Puts the files in place. Results that were there are removed first, so that two runs are never mixed."""
        for table in self._tables.values():
            table.close()
        for path in self.paths.values():
            path.unlink(missing_ok=True)
        for name, path in self.paths.items():
            (self._aside / f"{name}.parquet").replace(path)

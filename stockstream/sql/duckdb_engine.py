"""The engine on this machine: an embedded DuckDB that reads the objects of an archive, wherever it is, and can do nothing else.

It reads exactly the objects that count, which `current` lists, each by its name. So it sees the archive as it was when they were listed. If a compaction
replaces one of them before it is read, the query runs again on a new list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import duckdb
import pyarrow as pa

from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.repaired import REPAIRS
from stockstream.sinks.entries import Entry
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore
from stockstream.sql.errors import SqlError
from stockstream.sql.results import Result
from stockstream.sql.views import RAW_COLUMNS, TRADED_BARS_SQL, VIEWS, View, folder_columns, stored_columns

BATCH = 20_000
"""Rows of a batch of a result."""
_STORED_AS = {"VARCHAR": "BYTE_ARRAY", "BIGINT": "INT64", "INTEGER": "INT32", "DOUBLE": "DOUBLE", "TIMESTAMP": "INT64", "BOOLEAN": "BOOLEAN"}
"""Parquet's own type for each."""
_NAME_OF_RAW = r"([A-Za-z0-9._-]+)-\d{5}-\d{20}\.jsonl\.zst$"


class _Folder:
    """An archive in a folder."""

    def __init__(self, store: FileStore) -> None:
        self.allowed = str(store.root)

    def paths(self, entries: Sequence[Entry]) -> list[str]:
        return [f"{self.allowed}/{entry.name}" for entry in entries]


class _Bucket:
    """An archive in a bucket, whose objects DuckDB opens by fsspec."""

    def __init__(self, store: S3Store, connection: duckdb.DuckDBPyConnection) -> None:
        from stockstream.sinks.s3_files import S3Files  # fsspec takes 0.1 s, and most archives are folders

        self._files = S3Files(store)
        connection.register_filesystem(self._files)
        self.allowed = f"{store.url}/"

    def paths(self, entries: Sequence[Entry]) -> list[str]:
        return self._files.add(entries)


class DuckdbEngine:
    """Runs SQL over the archive in `store`. The views of `VIEWS` are there by name, and nothing else can be read or written.

    Objects are listed when a query first needs them. One query runs at a time. Use it in a `with` block, or `close` it.
    """

    def __init__(self, store: FileStore | S3Store) -> None:
        self.store = store
        self._connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
        self._place = _Bucket(store, self._connection) if isinstance(store, S3Store) else _Folder(store)
        self._listed: dict[str, list[Entry]] = {}
        for view in VIEWS.values():
            self._create(view, [])
        self._connection.execute("SET TimeZone = 'UTC'")
        self._connection.execute(f"SET allowed_directories=[{_quoted(self._place.allowed)}]")
        self._connection.execute("SET enable_external_access=false")
        self._connection.execute("SET lock_configuration=true")

    def __enter__(self) -> DuckdbEngine:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._connection.close()

    def run(self, sql: str) -> Result:
        """The result of one SELECT or EXPLAIN. Raises `SqlError`, and `ArchiveError` where the archive cannot be read."""
        self._require_one_select(sql)
        self._list(sql)
        try:
            reader = self._connection.sql(sql).to_arrow_reader(BATCH)
        except (duckdb.Error, RuntimeError) as error:
            raise SqlError(_reason(str(error))) from error
        return Result(reader.schema, _batches(reader))

    def columns(self, view: str) -> list[tuple[str, str]]:
        """Name and type of the view's columns."""
        return [(name, kind) for name, kind, *_ in self._connection.execute(f"DESCRIBE {view}").fetchall()]

    def _require_one_select(self, sql: str) -> None:
        try:
            statements = duckdb.extract_statements(sql)
        except duckdb.Error as error:
            raise SqlError(_reason(str(error))) from error
        if len(statements) != 1:
            raise SqlError(f"one SQL statement is expected, not {len(statements)}")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise SqlError("the archive is read-only: only SELECT and EXPLAIN are allowed")

    def _list(self, sql: str) -> None:
        """Lists the areas of the views that the SQL names."""
        words = set(re.findall(r"\w+", sql.lower()))
        everything = bool(words & {"query", "query_table"})              # functions whose argument names a view
        for view in VIEWS.values():
            if (everything or view.name in words) and view.area not in self._listed:
                entries = self._listed[view.area] = current(self.store, view.area)
                for other in VIEWS.values():
                    if other.area == view.area:
                        self._create(other, entries)

    def _create(self, view: View, entries: Sequence[Entry]) -> None:
        stored = f"stored_{view.area}"
        sql = view.sql
        if view.name == "bars_1m" and not any(entry.name.rpartition("/")[2].startswith((REPAIRS, "compacted-")) for entry in entries):
            sql = TRADED_BARS_SQL
        source = f"WITH {stored} AS NOT MATERIALIZED ({self._stored(view.area, entries)}) " if stored in sql else ""
        self._connection.execute(f"CREATE OR REPLACE VIEW {view.name} AS {source}SELECT * FROM ({sql}) AS {view.name}_rows")

    def _stored(self, area: str, entries: Sequence[Entry]) -> str:
        """A SELECT of the stored rows of an area."""
        columns, folders = stored_columns(area), folder_columns(area)
        if not entries:
            wanted = columns | folders | ({"log": "VARCHAR"} if area == "raw" else {})
            return f"SELECT {_nulls(wanted)} WHERE false"
        paths = self._place.paths(entries)
        at = f"[{', '.join(map(_quoted, paths))}]"
        types = ", ".join(f"'{column}': {kind}" for column, kind in folders.items())
        options = f"hive_partitioning=true, hive_types={{{types}}}"
        if area == "raw":
            given = ", ".join(f"'{column}': '{kind}'" for column, kind in RAW_COLUMNS.items())
            lines = f"read_json({at}, format='newline_delimited', compression='zstd', columns={{{given}}}, filename=true, {options})"
            return f"SELECT *, regexp_extract(filename, '{_NAME_OF_RAW}', 1) AS log FROM {lines}"
        if self._differ(paths, entries, columns):
            return f"SELECT * FROM read_parquet({at}, union_by_name=true, {options}) UNION ALL BY NAME SELECT {_nulls(columns)} WHERE false"
        return f"SELECT * FROM read_parquet({at}, {options})"

    def _differ(self, paths: Sequence[str], entries: Sequence[Entry], columns: Mapping[str, str]) -> bool:
        """Whether objects of an earlier release, which has fewer columns, or whole numbers of shares, are among these.

        DuckDB then must read every file's footer (0.2 ms each). So only four files are looked at: the first and the last by name, the oldest and the newest.
        """
        by_age = sorted(range(len(paths)), key=lambda at: entries[at].modified)
        few = {paths[at] for at in (0, -1, by_age[0], by_age[-1])}
        stored = {(name, _STORED_AS[kind]) for name, kind in columns.items()}
        found = [set(self._connection.execute("SELECT name, type FROM parquet_schema(?)", [path]).fetchall()) for path in few]
        return any(not stored <= of_file for of_file in found)


def connect(archive: Path | FileStore | S3Store) -> DuckdbEngine:
    """The engine over an archive in a folder or a bucket."""
    return DuckdbEngine(archive if isinstance(archive, FileStore | S3Store) else FileStore(archive))


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    try:
        yield from reader
    except (duckdb.Error, RuntimeError, pa.ArrowException) as error:
        raise SqlError(_reason(str(error))) from error


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _nulls(columns: Mapping[str, str]) -> str:
    return ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in columns.items())


def _reason(text: str) -> str:
    """DuckDB's message on one line; of a traceback, which it gives where the store fails, the last line without the error's name."""
    if "Traceback (most recent call last)" in text:
        return text.strip().splitlines()[-1].partition(": ")[2] or text.strip().splitlines()[-1]
    return text.split("\n\n")[0].replace("\n", " ")

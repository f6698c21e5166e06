"""The engine on this machine: an embedded DuckDB that reads the objects of an archive, wherever it is, and can do nothing else.

It reads exactly the objects that count, which `current` lists, each by its name. So it sees the archive as it was when they were listed. If a compaction
replaces one of them before it is read, the query runs again on a new list.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
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

Parameters = Sequence[Any] | Mapping[str, Any] | None

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

    Objects are listed when a query first needs them, only those in the folders of dates `begin` to `end` where these are given. One query runs at a time.
    Use it in a `with` block, or `close` it.
    """

    def __init__(self, store: FileStore | S3Store, begin: date | None = None, end: date | None = None) -> None:
        self.store, self._dates = store, (begin, end)
        self._connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
        self._place = _Bucket(store, self._connection) if isinstance(store, S3Store) else _Folder(store)
        self._listed: dict[str, list[Entry]] = {}
        self._created: set[str] = set()
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

    def run(self, sql: str, params: Parameters = None, rows: int = BATCH, views: Collection[str] | None = None) -> Result:
        """The result of one SELECT or EXPLAIN, in batches of about `rows`.

        `params`: the values of `?` and `$1` by place, or of `$name` by name. `views`: those that the SQL reads; None: all whose names are in it.
        Raises `SqlError`, and `ArchiveError` where the archive cannot be read.
        """
        require_one_select(sql)
        self._list(_named(sql) if views is None else views)
        try:
            reader = self._connection.sql(sql, params=params).to_arrow_reader(rows)
        except (duckdb.Error, RuntimeError) as error:
            raise SqlError(_reason(str(error))) from error
        return Result(reader.schema, _batches(reader))

    def columns(self, view: str) -> list[tuple[str, str]]:
        """Name and type of the view's columns."""
        return [(name, kind) for name, kind, *_ in self._connection.execute(f"DESCRIBE {view}").fetchall()]

    def stored(self, area: str) -> str:
        """A SELECT of the rows of an area that count as they are stored: all revisions, with all columns and those of the folders."""
        return self._stored(area, self._entries(area))

    def _entries(self, area: str) -> list[Entry]:
        if area not in self._listed:
            self._listed[area] = current(self.store, area, *self._dates)
        return self._listed[area]

    def _list(self, views: Collection[str]) -> None:
        """Lists the areas of these views, and makes the views over what is there."""
        for area in {VIEWS[name].area for name in views} - self._created:
            self._created.add(area)
            for view in VIEWS.values():
                if view.area == area:
                    self._create(view, self._entries(area))

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


def _named(sql: str) -> Collection[str]:
    """The views whose names are in the SQL, as tables or otherwise."""
    words = set(re.findall(r"\w+", sql.lower()))
    return VIEWS if words & {"query", "query_table"} else words & set(VIEWS)     # functions whose argument names a view


def require_one_select(sql: str) -> None:
    """Raises `SqlError` if this is not one SELECT or EXPLAIN."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise SqlError(_reason(str(error))) from error
    if len(statements) != 1:
        raise SqlError(f"one SQL statement is expected, not {len(statements)}")
    if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        raise SqlError("the archive is read-only: only SELECT and EXPLAIN are allowed")


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

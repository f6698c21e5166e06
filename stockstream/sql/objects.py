"""The archive's objects as DuckDB reads them: their paths, and the SQL of the stored tables over them."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import duckdb

from stockstream.sinks.archive.compactions import compaction_of_data
from stockstream.sinks.archive.layout import LOG_OF_RAW, OF_A_RECORD, REPAIRS
from stockstream.sinks.entries import Entry
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore
from stockstream.sql.views import RAW_COLUMNS, TRADED_BARS_SQL, VIEWS, View, folder_columns, stored_columns
from stockstream.wording import counted

_STORED_AS = {"VARCHAR": "BYTE_ARRAY", "BIGINT": "INT64", "INTEGER": "INT32", "DOUBLE": "DOUBLE", "TIMESTAMP": "INT64", "BOOLEAN": "BOOLEAN"}
"""Parquet's own type for each."""
_DATE = re.compile(r"date=(\d{4}-\d\d-\d\d)/")
_ASKED = re.compile(r"\bdate\"?\s*=\s*(?:DATE\s*)?'(\d{4}-\d\d-\d\d)'", re.IGNORECASE)


class Folder:
    """An archive in a folder."""

    def __init__(self, store: FileStore) -> None:
        self.allowed = str(store.root)

    def paths(self, entries: Sequence[Entry]) -> list[str]:
        return [f"{self.allowed}/{entry.name}" for entry in entries]


class Bucket:
    """An archive in a bucket, whose objects DuckDB opens by fsspec."""

    def __init__(self, store: S3Store, connection: duckdb.DuckDBPyConnection) -> None:
        from stockstream.sinks.s3_files import S3Files  # fsspec takes 0.1 s, and most archives are folders

        self._files = S3Files(store)
        connection.register_filesystem(self._files)
        self.allowed = f"{store.url}/"

    def paths(self, entries: Sequence[Entry]) -> list[str]:
        return self._files.add(entries)


@dataclass
class Listing:
    """The objects of an area that count. `differs`: some have fewer columns than others, so DuckDB must read the columns of each."""

    entries: list[Entry]
    listed_at: float
    differs: bool = False

    def dates(self) -> list[str]:
        return sorted({found[1] for entry in self.entries if (found := _DATE.search(entry.name))})

    def notice(self, area: str, sql: str, *, nothing: bool) -> str:
        """A line for the user where the query asks for dates of which there is nothing, or has no rows; else empty."""
        dates = self.dates()
        if not dates:
            return f"the archive has no {area} yet"
        span = f"{dates[0]} to {dates[-1]}, {counted(len(dates), 'date')}" if len(dates) > 1 else dates[0]
        absent = sorted(set(_ASKED.findall(sql)) - set(dates))
        if absent:
            return f"the archive has no {area} of {', '.join(absent)}; it has {span}"
        return f"no rows; the archive has {area} of {span}" if nothing else ""


def view_sql(view: View, stored: str, entries: Sequence[Entry]) -> str:
    """The query of a view, whose stored table is the query `stored`."""
    table, sql = f"stored_{view.area}", view.sql
    if table not in sql:                                                 # it reads another view
        return sql
    if view.name == "bars_1m" and not any(entry.name.rpartition("/")[2].startswith(REPAIRS) or compaction_of_data(entry.name) for entry in entries):
        sql = TRADED_BARS_SQL
    return f"WITH {table} AS NOT MATERIALIZED ({stored}) SELECT * FROM ({sql}) AS {view.name}_rows"


def stored_rows(area: str, paths: Sequence[str], *, differs: bool) -> str:
    """A query of the rows of these objects as they are stored, with the columns of their folders."""
    columns, folders = stored_columns(area), folder_columns(area)
    if not paths:
        return f"SELECT {_nulls(columns | folders | ({'log': 'VARCHAR'} if area == 'raw' else {}))} WHERE false"
    at = f"[{', '.join(map(_quoted, paths))}]"
    types = ", ".join(f"'{column}': {kind}" for column, kind in folders.items())
    options = f"hive_partitioning=true, hive_types={{{types}}}"
    if area == "raw":
        return f"SELECT *, regexp_extract(filename, '{LOG_OF_RAW}', 1) AS log FROM {_lines(at)}, filename=true, {options}) WHERE {OF_A_RECORD}"
    if differs:
        return f"SELECT * FROM read_parquet({at}, union_by_name=true, {options}) UNION ALL BY NAME SELECT {_nulls(columns)} WHERE false"
    return f"SELECT * FROM read_parquet({at}, {options})"


def differ(connection: duckdb.DuckDBPyConnection, paths: Sequence[str], entries: Sequence[Entry], area: str) -> bool:
    """Whether objects of an earlier release, which has fewer columns, or whole numbers of shares, are among these.

    DuckDB then must read every object's footer (0.2 ms each). So only four are looked at: the first and the last by name, the oldest and the newest. If others
    differ, the query fails with an error that shows it.
    """
    by_age = sorted(range(len(paths)), key=lambda at: entries[at].modified)
    few = {paths[at] for at in (0, -1, by_age[0], by_age[-1])}
    read = " ".join(view.sql for view in VIEWS.values() if view.area == area)
    stored = {(name, _STORED_AS[kind]) for name, kind in stored_columns(area).items() if re.search(rf"\b{name}\b", read)}
    try:
        found = [set(connection.execute("SELECT name, type FROM parquet_schema(?)", [path]).fetchall()) for path in few]
    except duckdb.Error:                                                 # the query meets the same error, and reports it
        return False
    return any(not stored <= of_object for of_object in found)


def first_unreadable(connection: duckdb.DuckDBPyConnection, area: str, paths: Sequence[str], within_s: float) -> str | None:
    """The path of the first object that cannot be read; None if there is none, or it was not found within that time."""
    end = time.monotonic() + within_s
    for path in paths:
        source = f"{_lines(_quoted(path))})" if area == "raw" else f"read_parquet({_quoted(path)})"
        try:
            connection.execute(f"SELECT bit_xor(hash(stored)) FROM {source} AS stored").fetchall()
        except duckdb.Error:
            return path
        if time.monotonic() > end:
            return None
    return None


def _lines(at: str) -> str:
    given = ", ".join(f"'{column}': '{kind}'" for column, kind in RAW_COLUMNS.items())
    return f"read_json({at}, format='newline_delimited', compression='zstd', columns={{{given}}}"


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _nulls(columns: Mapping[str, str]) -> str:
    return ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in columns.items())

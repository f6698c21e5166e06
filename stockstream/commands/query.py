"""`stockstream query`: SQL over the archive, by an embedded DuckDB that can only read it."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Any

import click
import duckdb

from stockstream.errors import ArchiveError, SettingsError
from stockstream.records import SHARES
from stockstream.settings import load_settings
from stockstream.sinks.archive.processed import BARS_SQL, TRADED_BARS_SQL
from stockstream.sinks.archive.repaired import REPAIRS
from stockstream.sinks.archive.schemas import STORED_BARS, STORED_TICKS
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import FileStore, open_archive
from stockstream.wording import counted

TABLE_ROWS = 100
"""The most rows of a table without `--limit`; CSV and JSON are complete."""

RAW_COLUMNS = {
    "partition": "INTEGER", "offset": "BIGINT", "timestamp": "BIGINT", "key": "VARCHAR", "value": "VARCHAR", "key_base64": "VARCHAR", "value_base64": "VARCHAR",
}  # fmt: skip
_TYPES = {"string": "VARCHAR", "int64": "BIGINT", "int32": "INTEGER", "double": "DOUBLE", "timestamp[ms]": "TIMESTAMP", "bool": "BOOLEAN"}
_STORED_AS = {"VARCHAR": "BYTE_ARRAY", "BIGINT": "INT64", "INTEGER": "INT32", "DOUBLE": "DOUBLE", "TIMESTAMP": "INT64", "BOOLEAN": "BOOLEAN"}
"""Parquet's own type for each."""
_NAME_OF_RAW = r"([A-Za-z0-9._-]+)-\d{5}-\d{20}\.jsonl\.zst$"

VIEWS = {
    "ticks": "accepted ticks, by event time (UTC)",
    "bars_1m": "one row for each symbol, source and minute with a price, made from the ticks; where there are none, repaired bars",
    "raw": "records of ticks.raw as received; timestamp is Kafka's, epoch ms",
}
EXAMPLE = "SELECT symbol, minute, open, high, low, close, volume, vwap FROM bars_1m WHERE date = current_date ORDER BY volume DESC LIMIT 10"


class SqlError(ArchiveError):
    """The user's SQL fails; the text is DuckDB's message, on one line."""


class _Folder:
    """An archive in a folder: DuckDB finds the files itself."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self.allowed = str(self._root)

    def files(self, folder: str, pattern: str) -> tuple[str, Sequence[tuple[str, float]]]:
        """What DuckDB reads, in SQL; and the files, in the order of their names, with their ages."""
        found = sorted((self._root / folder).glob(pattern))
        return _quoted(str(self._root / folder / pattern)), [(str(path), path.stat().st_mtime) for path in found]


class _Bucket:
    """An archive in a bucket: its objects are listed once."""

    def __init__(self, store: S3Store, connection: duckdb.DuckDBPyConnection) -> None:
        from stockstream.sinks.s3_files import S3Files  # fsspec takes 0.1 s, and most archives are folders

        self._files = S3Files(store)
        connection.register_filesystem(self._files)
        self.allowed = f"{store.url}/"

    def files(self, folder: str, pattern: str) -> tuple[str, Sequence[tuple[str, float]]]:
        found = self._files.find_objects(f"{folder}/", pattern.rpartition("*")[2], pattern.count("/"))
        return f"[{', '.join(_quoted(url) for url, _ in found)}]", found


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def connect(archive: Path | FileStore | S3Store) -> tuple[duckdb.DuckDBPyConnection, bool]:
    """A connection with the views `ticks`, `bars_1m` and `raw` over the archive, and whether there is anything in it.

    Nothing else can be read or written through it. A view of nothing has its columns and no rows. Raises `ArchiveUnavailable` if a bucket cannot be listed.
    """
    connection = duckdb.connect(config={"autoload_known_extensions": False, "autoinstall_known_extensions": False})
    place = _Bucket(archive, connection) if isinstance(archive, S3Store) else _Folder(archive.root if isinstance(archive, FileStore) else archive)
    found = repaired = False
    for name, folder, pattern, columns in (
        ("stored_ticks", "processed/ticks", "*/*/*.parquet", {field.name: _TYPES[str(field.type)] for field in STORED_TICKS}),
        ("bar_parts", "processed/bars_1m", "*/*.parquet", {field.name: _TYPES[str(field.type)] for field in STORED_BARS}),
        ("stored_raw", "raw", "*/*/*.jsonl.zst", RAW_COLUMNS),
    ):
        hive = {"date": "DATE"} | ({} if name == "bar_parts" else {"hour": "BIGINT"})
        at, files = place.files(folder, pattern)
        if not files:
            wanted = columns | hive | ({"filename": "VARCHAR"} if name == "stored_raw" else {})
            nothing = ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in wanted.items())
            connection.execute(f"CREATE VIEW {name} AS SELECT {nothing} WHERE false")
            continue
        found = True
        repaired = repaired or (name == "bar_parts" and any(Path(file).name.startswith(REPAIRS) for file, _ in files))
        types = ", ".join(f"'{column}': {kind}" for column, kind in hive.items())
        options = f"hive_partitioning=true, hive_types={{{types}}}"
        if name == "stored_raw":
            given = ", ".join(f"'{column}': '{kind}'" for column, kind in columns.items())
            source = f"read_json({at}, format='newline_delimited', compression='zstd', columns={{{given}}}, filename=true, {options})"
        else:
            source = f"read_parquet({at}, {options})"
            if _differ(connection, files, columns):
                missing = ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in columns.items())
                source = f"(SELECT * FROM read_parquet({at}, union_by_name=true, {options}) UNION ALL BY NAME SELECT {missing} WHERE false)"
        connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {source}")
    connection.execute("CREATE VIEW ticks AS SELECT * EXCLUDE (compaction) FROM stored_ticks")
    connection.execute(f"CREATE VIEW bars_1m AS {BARS_SQL if repaired else TRADED_BARS_SQL}")
    connection.execute(f"CREATE VIEW raw AS SELECT * EXCLUDE (filename), regexp_extract(filename, '{_NAME_OF_RAW}', 1) AS log FROM stored_raw")
    connection.execute(f"SET allowed_directories=[{_quoted(place.allowed)}]")
    connection.execute("SET enable_external_access=false")
    connection.execute("SET lock_configuration=true")
    return connection, found


def _differ(connection: duckdb.DuckDBPyConnection, files: Sequence[tuple[str, float]], columns: Mapping[str, str]) -> bool:
    """Whether objects of an earlier release, which has fewer columns, or whole numbers of shares, are among these files.

    DuckDB then must read every file's footer (0.2 ms each). So only four files are looked at: the first and the last by name, the oldest and the newest.
    """
    by_age = sorted(files, key=lambda file: file[1])
    few = {file for file, _ in (files[0], files[-1], by_age[0], by_age[-1])}
    stored = {(name, _STORED_AS[kind]) for name, kind in columns.items()}
    found = [set(connection.execute("SELECT name, type FROM parquet_schema(?)", [path]).fetchall()) for path in few]
    return any(not stored <= of_file for of_file in found)


def run_sql(connection: duckdb.DuckDBPyConnection, sql: str, limit: int) -> tuple[list[str], list[tuple[Any, ...]], bool]:
    """Columns, rows (at most `limit`; 0: all) and whether there were more. Raises `SqlError`."""
    try:
        statements = duckdb.extract_statements(sql)
        if len(statements) != 1:
            raise SqlError(f"one SQL statement is expected, not {len(statements)}")
        if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
            raise SqlError("the archive is read-only: only SELECT and EXPLAIN are allowed")
        result = connection.execute(statements[0])
        columns = [column[0] for column in result.description or []]
        rows = result.fetchmany(limit + 1) if limit else result.fetchall()
    except duckdb.Error as error:
        raise SqlError(_reason(str(error))) from error
    return columns, rows[:limit] if limit else rows, bool(limit) and len(rows) > limit


def _reason(text: str) -> str:
    """DuckDB's message on one line; of a traceback, which it gives where the store fails, the last line without the error's name."""
    if "Traceback (most recent call last)" in text:
        return text.strip().splitlines()[-1].partition(": ")[2] or text.strip().splitlines()[-1]
    return text.split("\n\n")[0].replace("\n", " ")


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


def describe(connection: duckdb.DuckDBPyConnection) -> str:
    """The views with their columns, and an example."""
    lines = []
    for view, meaning in VIEWS.items():
        columns = connection.execute(f"DESCRIBE {view}").fetchall()
        lines += [f"{view}: {meaning}", "    " + ", ".join(f"{column[0]} {column[1]}" for column in columns), ""]
    return "\n".join([*lines, "Example:", f'    stockstream query "{EXAMPLE}"'])


@click.command(help="Query the archive in SQL. Without SQL, list its views and columns.")
@click.argument("sql", required=False)
@click.option("--archive", help="The archive: a folder, path or file://path, or s3://bucket/prefix.  [default: STOCKSTREAM_ARCHIVE]")
@click.option("--format", "form", type=click.Choice(sorted(FORMATS)), default="table", show_default=True, help="How rows are printed.")
@click.option("--json", "as_json_", is_flag=True, help="The same as --format json.")
@click.option("--limit", type=click.IntRange(min=0), help=f"Maximum number of rows; 0: all.  [default: {TABLE_ROWS} for a table, else all]")
def command(sql: str | None, archive: str | None, form: str, as_json_: bool, limit: int | None) -> None:
    url = archive or load_settings().archive
    if url == "none":
        raise SettingsError("there is no archive: STOCKSTREAM_ARCHIVE is none; name the archive's folder with --archive")
    archive_store = open_archive(url)
    form = "json" if as_json_ else form
    connection, found = connect(archive_store)
    with connection:
        if not found:
            click.echo(f"{archive_store.url.removeprefix('file://')} holds no archive yet: the views are empty", err=True)
        if sql is None:
            click.echo(describe(connection))
            return
        columns, rows, more = run_sql(connection, sql, (TABLE_ROWS if form == "table" else 0) if limit is None else limit)
        click.echo(FORMATS[form](columns, rows))
        if more:
            click.echo(f"only {counted(len(rows), 'row')} shown; use --limit for more", err=True)

"""`stockstream query`: SQL over the archive."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from stockstream.console import archive_option
from stockstream.errors import SettingsError
from stockstream.locations import S3_URL
from stockstream.settings import Settings, load_settings
from stockstream.sinks.stores import archive_place, open_archive
from stockstream.sql.athena.tables import DATABASE, WORKGROUP
from stockstream.sql.descriptions import as_json, as_text
from stockstream.sql.duckdb_engine import connect
from stockstream.sql.outputs import FORMATS, TABLE_ROWS, with_notice, write, write_file
from stockstream.sql.progress import QueryProgress
from stockstream.sql.results import Result
from stockstream.sql.views import VIEWS
from stockstream.wording import counted

if TYPE_CHECKING:
    from stockstream.sql.athena.engine import AthenaEngine, Progress

ENGINES = ("duckdb", "athena")
ALL_VIEWS = "*"
OF_TABLES = ("", "txt")
"""Endings of files with a table."""


@click.command(help="Query the archive in SQL. Without SQL, a shell; - reads SQL from stdin, as does a pipe.")
@click.argument("sql", required=False)
@archive_option
@click.option("--engine", type=click.Choice(ENGINES), default="duckdb", show_default=True, help="What runs the query: this machine, or Amazon Athena.")
@click.option("--database", default=DATABASE, show_default=True, metavar="NAME", help="Athena's database: see stockstream athena create.")
@click.option("--workgroup", default=WORKGROUP, show_default=True, metavar="NAME", help="Athena's workgroup.")
@click.option("--scan-limit", type=click.IntRange(min=0), default=0, metavar="BYTES", help="Stop the query on Athena when it has scanned more; 0: no limit.")
@click.option("--tables", is_flag=False, flag_value=ALL_VIEWS, metavar="[VIEW]", help="Describe the views and their columns, or one view.")
@click.option("--format", "form", type=click.Choice(FORMATS), help="How rows are written.  [default: table, or by the name of --output]")
@click.option("--json", "as_json_", is_flag=True, help="The same as --format json.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write rows to a file; parquet needs it.")
@click.option("--limit", type=click.IntRange(min=0), help=f"Maximum number of rows; 0: all.  [default: {TABLE_ROWS} for a table, else all]")
def command(
    sql: str | None, archive: str | None, engine: str, database: str, workgroup: str, scan_limit: int, tables: str | None, form: str | None, as_json_: bool,
    output: Path | None, limit: int | None,
) -> None:  # fmt: skip
    form = _form(form, output, as_json_=as_json_)
    if tables is not None:
        if sql is not None:
            if tables != ALL_VIEWS:
                raise click.UsageError("--tables describes views and takes no SQL")
            tables = sql
        click.echo((as_json if form == "json" else as_text)(_views(tables)))
        return
    settings = load_settings()
    url = archive_place(archive, settings)
    interactive = sql is None and sys.stdin.isatty() and sys.stdout.isatty()
    if sql == "-" or (sql is None and not sys.stdin.isatty()):
        sql = click.get_text_stream("stdin").read().strip() or None
    if engine == "athena":
        if sql is None:
            raise SettingsError("--engine athena needs SQL: as an argument, or on stdin")
        _print(_athena(settings, url, database, workgroup, scan_limit).run(sql), form, limit, output)
        return
    store = open_archive(url)
    progress = QueryProgress()
    with connect(store) as duckdb:
        empty = not next(store.list("raw/"), None) and not next(store.list("processed/"), None)
        if empty:
            click.echo(f"{store.url.removeprefix('file://')} holds no archive yet: the views are empty", err=True)
        if interactive:
            from stockstream.sql.shell import Shell  # most queries need neither the shell nor Athena

            Shell(duckdb, form, limit).run()
        elif sql is None:
            click.echo(as_text(list(VIEWS)))
        else:
            duckdb.waited = lambda seconds: progress.show(seconds, duckdb.progress())
            try:
                result = duckdb.run(sql)
                _print(with_notice(result, progress.clear), form, limit, output, quiet=empty)
            finally:
                progress.clear()


def _form(form: str | None, output: Path | None, *, as_json_: bool) -> str:
    if form is None:
        suffix = output.suffix.lstrip(".").lower() if output else ""
        if not as_json_ and suffix not in (*FORMATS, *OF_TABLES):
            raise click.UsageError(f"no format is known by the ending .{suffix}: end the name in .csv, .json, .parquet or .txt (a table), or give --format")
        form = "json" if as_json_ else suffix if suffix in FORMATS else "table"
    if form == "parquet" and output is None:
        raise click.UsageError("--format parquet needs --output FILE")
    return form


def _views(name: str) -> list[str]:
    if name != ALL_VIEWS and name not in VIEWS:
        raise click.UsageError(f"there is no view {name!r}; the views are {', '.join(VIEWS)}")
    return list(VIEWS) if name == ALL_VIEWS else [name]


def _athena(settings: Settings, url: str, database: str, workgroup: str, scan_limit: int) -> AthenaEngine:
    if not url.startswith(S3_URL):
        raise SettingsError(f"Athena reads an archive in S3, and {url} is none: name it with --archive s3://bucket/prefix, or by STOCKSTREAM_ARCHIVE")
    from stockstream.sql.athena.engine import AthenaEngine

    athena = AthenaEngine.of(settings, database, workgroup, scan_limit, _show if click.get_text_stream("stderr").isatty() else None)
    athena.require_tables(url)
    return athena


def _print(result: Result, form: str, limit: int | None, output: Path | None, *, quiet: bool = False) -> None:
    if output is None:
        most = (TABLE_ROWS if form == "table" else 0) if limit is None else limit
        written = write(result, form, most, click.get_text_stream("stdout"))
    else:
        written = write_file(result, form, limit or 0, output)
        click.echo(f"{counted(written.rows, 'row')} in {output}", err=True)
    if written.more:
        click.echo(f"only {counted(written.rows, 'row')} {'shown' if output is None else 'written'}; use --limit for more", err=True)
    for notice in () if quiet else result.notices:
        click.echo(notice, err=True)


def _show(progress: Progress) -> None:
    done = progress.state in ("SUCCEEDED", "FAILED", "CANCELLED")
    text = f"Athena: {progress.state.lower()}, {progress.seconds:.0f} s, {progress.scanned / 1e6:,.0f} MB scanned"
    click.echo(f"\r{text:60}{chr(13) + ' ' * 60 + chr(13) if done else ''}", nl=False, err=True)

"""`stockstream query`: SQL over the archive."""

from __future__ import annotations

import click

from stockstream.errors import SettingsError
from stockstream.settings import load_settings
from stockstream.sinks.stores import open_archive
from stockstream.sql.duckdb_engine import DuckdbEngine, connect
from stockstream.sql.outputs import FORMATS, TABLE_ROWS
from stockstream.sql.views import EXAMPLE, VIEWS
from stockstream.wording import counted


def describe(engine: DuckdbEngine) -> str:
    """The views with their columns, and an example."""
    lines = []
    for view in VIEWS.values():
        lines += [f"{view.name}: {view.meaning}", "    " + ", ".join(f"{name} {kind}" for name, kind in engine.columns(view.name)), ""]
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
    with connect(archive_store) as engine:
        if not next(archive_store.list("raw/"), None) and not next(archive_store.list("processed/"), None):
            click.echo(f"{archive_store.url.removeprefix('file://')} holds no archive yet: the views are empty", err=True)
        if sql is None:
            click.echo(describe(engine))
            return
        result = engine.run(sql)
        rows, more = result.fetch((TABLE_ROWS if form == "table" else 0) if limit is None else limit)
        click.echo(FORMATS[form](result.columns, rows))
        if more:
            click.echo(f"only {counted(len(rows), 'row')} shown; use --limit for more", err=True)

"""`stockstream query`: SQL over the archive."""

from __future__ import annotations

import click

from stockstream.errors import SettingsError
from stockstream.locations import S3_URL
from stockstream.settings import load_settings
from stockstream.sinks.stores import open_archive
from stockstream.sql.athena.engine import AthenaEngine, Progress
from stockstream.sql.athena.tables import DATABASE, WORKGROUP
from stockstream.sql.duckdb_engine import DuckdbEngine, connect
from stockstream.sql.outputs import FORMATS, TABLE_ROWS
from stockstream.sql.results import Result
from stockstream.sql.views import EXAMPLE, VIEWS
from stockstream.wording import counted

ENGINES = ("duckdb", "athena")


def describe(engine: DuckdbEngine) -> str:
    """The views with their columns, and an example."""
    lines = []
    for view in VIEWS.values():
        lines += [f"{view.name}: {view.meaning}", "    " + ", ".join(f"{name} {kind}" for name, kind in engine.columns(view.name)), ""]
    return "\n".join([*lines, "Example:", f'    stockstream query "{EXAMPLE}"'])


@click.command(help="Query the archive in SQL. Without SQL, list its views and columns.")
@click.argument("sql", required=False)
@click.option("--archive", help="The archive: a folder, path or file://path, or s3://bucket/prefix.  [default: STOCKSTREAM_ARCHIVE]")
@click.option("--engine", type=click.Choice(ENGINES), default="duckdb", show_default=True, help="What runs the query: this machine, or Amazon Athena.")
@click.option("--database", default=DATABASE, show_default=True, metavar="NAME", help="Athena's database: see stockstream athena create.")
@click.option("--workgroup", default=WORKGROUP, show_default=True, metavar="NAME", help="Athena's workgroup.")
@click.option("--scan-limit", type=click.IntRange(min=0), default=0, metavar="BYTES", help="Stop the query on Athena when it has scanned more; 0: no limit.")
@click.option("--format", "form", type=click.Choice(sorted(FORMATS)), default="table", show_default=True, help="How rows are printed.")
@click.option("--json", "as_json_", is_flag=True, help="The same as --format json.")
@click.option("--limit", type=click.IntRange(min=0), help=f"Maximum number of rows; 0: all.  [default: {TABLE_ROWS} for a table, else all]")
def command(
    sql: str | None, archive: str | None, engine: str, database: str, workgroup: str, scan_limit: int, form: str, as_json_: bool, limit: int | None,
) -> None:  # fmt: skip
    settings = load_settings()
    url = archive or settings.archive
    if url == "none":
        raise SettingsError("there is no archive: STOCKSTREAM_ARCHIVE is none; name the archive's folder with --archive")
    form = "json" if as_json_ else form
    if engine == "athena" and sql is not None:
        if not url.startswith(S3_URL):
            raise SettingsError(f"Athena reads an archive in S3, and {url} is none: name it with --archive s3://bucket/prefix, or by STOCKSTREAM_ARCHIVE")
        athena = AthenaEngine.of(settings, database, workgroup, scan_limit, _show if click.get_text_stream("stderr").isatty() else None)
        athena.require_tables(url)
        _print(athena.run(sql), form, limit)
        return
    archive_store = open_archive(url)
    with connect(archive_store) as duckdb:
        if not next(archive_store.list("raw/"), None) and not next(archive_store.list("processed/"), None):
            click.echo(f"{archive_store.url.removeprefix('file://')} holds no archive yet: the views are empty", err=True)
        if sql is None:
            click.echo(describe(duckdb))
            return
        _print(duckdb.run(sql), form, limit)


def _print(result: Result, form: str, limit: int | None) -> None:
    rows, more = result.fetch((TABLE_ROWS if form == "table" else 0) if limit is None else limit)
    click.echo(FORMATS[form](result.columns, rows))
    if more:
        click.echo(f"only {counted(len(rows), 'row')} shown; use --limit for more", err=True)
    for notice in result.notices:
        click.echo(notice, err=True)


def _show(progress: Progress) -> None:
    done = progress.state in ("SUCCEEDED", "FAILED", "CANCELLED")
    text = f"Athena: {progress.state.lower()}, {progress.seconds:.0f} s, {progress.scanned / 1e6:,.0f} MB scanned"
    click.echo(f"\r{text:60}{chr(13) + ' ' * 60 + chr(13) if done else ''}", nl=False, err=True)

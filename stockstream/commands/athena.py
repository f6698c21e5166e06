"""`stockstream athena`: the archive's tables for Amazon Athena."""

from __future__ import annotations

from datetime import datetime

import click

from stockstream.errors import SettingsError
from stockstream.locations import S3_URL
from stockstream.settings import Settings, load_settings
from stockstream.sql.athena.create import MIN_SCAN_LIMIT, SCAN_LIMIT, create
from stockstream.sql.athena.ddl import statements
from stockstream.sql.athena.tables import DATABASE, SINCE, WORKGROUP, Catalog
from stockstream.wording import counted

_ARCHIVE = click.option("--archive", metavar="URL", help="The archive: s3://bucket/prefix.  [default: STOCKSTREAM_ARCHIVE]")
_DATABASE = click.option("--database", default=DATABASE, show_default=True, metavar="NAME", help="The database in the Glue catalogue.")
_SINCE = click.option(
    "--since", type=click.DateTime(["%Y-%m-%d"]), default=str(SINCE), show_default=True, metavar="DATE", help="Folders of earlier dates are not looked for."
)


def _catalog(archive: str | None, settings: Settings, database: str, since: datetime) -> Catalog:
    url = archive or settings.archive
    if not url.startswith(S3_URL):
        raise SettingsError(f"Athena reads an archive in S3, and {url} is none: name it with --archive s3://bucket/prefix, or by STOCKSTREAM_ARCHIVE")
    if not database.replace("_", "").isalnum() or database != database.lower():
        raise SettingsError(f"--database: {database!r} has other characters than small letters, digits and underscores")
    return Catalog(url, database, since.date())


@click.group(help="Tables and views of the archive for Amazon Athena.")
def command() -> None:
    pass


@command.command("ddl", help="Print the statements that make the database, its tables and views. Nothing is made, and no credentials are needed.")
@_ARCHIVE
@_DATABASE
@_SINCE
def ddl(archive: str | None, database: str, since: datetime) -> None:
    catalog = _catalog(archive, load_settings(), database, since)
    click.echo(";\n\n".join(statements(catalog)) + ";")


@command.command("create", help="Make the database, its tables and views, and a workgroup with a limit of scanned bytes, or bring them up to date.")
@_ARCHIVE
@_DATABASE
@_SINCE
@click.option("--workgroup", default=WORKGROUP, show_default=True, metavar="NAME", help="The workgroup of Athena in which queries run.")
@click.option("--results", default="", metavar="URL", help="Where Athena writes results: s3://bucket/prefix.  [default: athena-results in the archive]")
@click.option(
    "--scan-limit", type=click.IntRange(min=MIN_SCAN_LIMIT), default=SCAN_LIMIT, show_default=True, metavar="BYTES",
    help="Athena cancels a query that scans more.",
)
def create_(archive: str | None, database: str, since: datetime, workgroup: str, results: str, scan_limit: int) -> None:
    settings = load_settings()
    if results and not results.startswith(S3_URL):
        raise SettingsError(f"--results: {results!r} is not s3://bucket/prefix")
    catalog = _catalog(archive, settings, database, since)
    results = results and results.rstrip("/") + "/"
    changes = create(catalog, settings, click.echo, workgroup=workgroup, results=results, scan_limit=scan_limit)
    click.echo(f"{counted(changes, 'change')}; query it with: stockstream query --engine athena \"SELECT ...\"" if changes else "nothing to change")

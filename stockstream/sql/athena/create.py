"""Makes the archive's database, tables, views and workgroup on AWS, or brings them up to date. A second time it changes nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from stockstream.aws import AwsError, asking, client
from stockstream.errors import SettingsError
from stockstream.settings import Settings
from stockstream.sql.athena.ddl import create_views
from stockstream.sql.athena.engine import AthenaEngine
from stockstream.sql.athena.tables import WORKGROUP, Catalog

RESULTS = "athena-results/"
"""The folder of the archive for the results of queries, unless another place is given."""
MIN_SCAN_LIMIT = 10_000_000
"""Bytes; Athena accepts no lower limit for a workgroup."""
SCAN_LIMIT = 10_000_000_000
VIEWS = "stockstream.views"
"""The parameter of the database that has the digest of its views: Athena stores a view's text in a form of its own, which cannot be compared."""


def workgroup_configuration(results: str, scan_limit: int) -> dict[str, Any]:
    """`Configuration` of the workgroup, for the API of Athena and for CloudFormation. A query that scans more than `scan_limit` bytes is cancelled."""
    return {
        "ResultConfiguration": {"OutputLocation": results}, "EnforceWorkGroupConfiguration": True, "PublishCloudWatchMetricsEnabled": True,
        "BytesScannedCutoffPerQuery": scan_limit,
    }  # fmt: skip


def create(
    catalog: Catalog, settings: Settings, report: Callable[[str], None], *, workgroup: str = WORKGROUP, results: str = "", scan_limit: int = SCAN_LIMIT,
) -> int:  # fmt: skip
    """Returns how many things were made or changed; `report` gets a line for each thing. Raises `AwsError`, and `SettingsError` if the database has the tables
    of another archive."""
    made = _Creation(catalog, settings, report)
    made.database()
    for table in catalog.table_inputs():
        made.table(table)
    made.workgroup(workgroup, workgroup_configuration(results or f"{catalog.archive}/{RESULTS}", scan_limit))
    made.views(AthenaEngine.of(settings, catalog.database, workgroup))
    return made.changes


class _Creation:
    def __init__(self, catalog: Catalog, settings: Settings, report: Callable[[str], None]) -> None:
        self._catalog, self._report = catalog, report
        self._glue, self._athena = client("glue", settings), client("athena", settings)
        self.changes = 0

    def database(self) -> None:
        wanted = self._catalog.database_input()
        found = self._found("glue", lambda: self._glue.get_database(Name=wanted["Name"])["Database"], "EntityNotFoundException")
        if found is None:
            with asking("glue"):
                self._glue.create_database(DatabaseInput=wanted)
        self._done(f"database {wanted['Name']}", "created" if found is None else "")

    def table(self, wanted: Mapping[str, Any]) -> None:
        database, name = self._catalog.database, wanted["Name"]
        found = self._found("glue", lambda: self._glue.get_table(DatabaseName=database, Name=name)["Table"], "EntityNotFoundException")
        if found is None:
            with asking("glue"):
                self._glue.create_table(DatabaseName=database, TableInput=wanted)
            self._done(f"table {name}", "created")
            return
        place, of = (table["StorageDescriptor"]["Location"].rstrip("/") for table in (wanted, found))
        if place != of:
            raise SettingsError(f"table {name} of database {database} is that of {of}, and not of {place}: choose another with --database")
        differs = not _has(found, wanted)
        if differs:
            with asking("glue"):
                self._glue.update_table(DatabaseName=database, TableInput=wanted)
        self._done(f"table {name}", "changed" if differs else "")

    def workgroup(self, name: str, wanted: dict[str, Any]) -> None:
        found = self._found("athena", lambda: self._athena.get_work_group(WorkGroup=name)["WorkGroup"], "InvalidRequestException")
        differs = found is not None and not _has(found.get("Configuration") or {}, wanted)
        with asking("athena"):
            if found is None:
                self._athena.create_work_group(Name=name, Description="Queries of stockstream's archive", Configuration=wanted)
            elif differs:
                updates = {key: value for key, value in wanted.items() if key != "ResultConfiguration"}
                self._athena.update_work_group(
                    WorkGroup=name, ConfigurationUpdates={**updates, "ResultConfigurationUpdates": wanted["ResultConfiguration"]}
                )
        limit = f"(a query that scans more than {wanted['BytesScannedCutoffPerQuery'] / 1e9:g} GB is cancelled)"
        self._done(f"workgroup {name} {limit}", "created" if found is None else "changed" if differs else "")

    def views(self, athena: AthenaEngine) -> None:
        name = self._catalog.database
        views = create_views(name)
        digest = hashlib.sha256("\n".join(views.values()).encode()).hexdigest()[:16]
        with asking("glue"):
            database = self._glue.get_database(Name=name)["Database"]
            tables = {table["Name"] for page in self._glue.get_paginator("get_tables").paginate(DatabaseName=name) for table in page["TableList"]}
        parameters = database.get("Parameters") or {}
        known = tables if parameters.get(VIEWS) == digest else set()
        for view, statement in views.items():
            if view not in known:
                athena.execute(statement)
            self._done(f"view {view}", "" if view in known else "changed" if view in tables else "created")
        if parameters.get(VIEWS) != digest:
            kept = {key: database[key] for key in ("Description", "LocationUri") if database.get(key)}
            with asking("glue"):
                self._glue.update_database(Name=name, DatabaseInput={"Name": name, **kept, "Parameters": {**parameters, VIEWS: digest}})

    def _found(self, service: str, ask: Callable[[], Any], missing: str) -> Any:
        try:
            with asking(service):
                return ask()
        except AwsError as error:
            if error.code != missing:
                raise
            return None

    def _done(self, what: str, change: str) -> None:
        self.changes += bool(change)
        self._report(f"{what}: {change or 'unchanged'}")


def _has(found: Any, wanted: Any) -> bool:
    """Whether everything that is wanted is there; services add fields of their own."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(_has(found.get(key), value) for key, value in wanted.items())
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(_has, found, wanted))
    return bool(found == wanted) or str(found).rstrip("/") == str(wanted).rstrip("/")

"""The archive's tables and views as statements that Athena executes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stockstream.sinks.archive.layout import LOG_OF_RAW, OF_A_RECORD
from stockstream.sinks.archive.schemas import STORED
from stockstream.sql.athena.tables import COMPACTIONS, Catalog
from stockstream.sql.views import VIEWS, folder_columns, stored_columns


def statements(catalog: Catalog) -> list[str]:
    """Every statement, in the order of execution: the database, its tables, the views over them."""
    name = catalog.database
    tables = [create_table(name, table) for table in catalog.table_inputs()]
    return [f"CREATE DATABASE IF NOT EXISTS `{name}`", *tables, *create_views(name).values()]


def create_views(database: str) -> dict[str, str]:
    """By name, the statement that creates each view; one that reads another comes after it. They find tables in the database that the query runs in."""
    found = {f"stored_{area}": stored_sql(area) for area in ("raw", *STORED)} | {name: view.sql for name, view in VIEWS.items()}
    return {name: f'CREATE OR REPLACE VIEW "{database}"."{name}" AS\n{sql.strip()}' for name, sql in found.items()}


def stored_sql(area: str) -> str:
    """The rows of an area's table that count: those that a compaction made, and those that none has replaced (`compactions.py`).

    That of `raw`: all, with the log id, which is in the names of the objects only.
    """
    columns = [f'"{name}"' for name in (*stored_columns(area), *folder_columns(area))]
    if area == "raw":
        return f"""SELECT {', '.join(columns)}, regexp_extract("$path", {quoted(LOG_OF_RAW)}, 1) AS log\nFROM raw_objects\nWHERE {OF_A_RECORD}"""
    place = "offset" if area == "ticks" else "record_offset"
    hour = "AND c.hour = o.hour" if "hour" in folder_columns(area) else "AND c.hour = -1"
    return "\n".join([
        f"SELECT {', '.join(f'o.{name}' for name in columns)}",
        f"FROM {area}_objects o LEFT JOIN {COMPACTIONS} c",
        f"""    ON c.area = {quoted(area)} AND c."date" = o."date" {hour} AND c.log = o.log AND c."partition" = o."partition\"""",
        f"""    AND o."{place}" BETWEEN c."first" AND c."last\"""",
        "WHERE coalesce(o.compaction, -1) = coalesce(c.compaction, -1)",
    ])  # fmt: skip


def create_table(database: str, table: Mapping[str, Any]) -> str:
    """`CREATE EXTERNAL TABLE` of a Glue `TableInput`."""
    storage = table["StorageDescriptor"]
    keys = ", ".join(f"`{key['Name']}` {key['Type']}" for key in table["PartitionKeys"])
    serde = storage["SerdeInfo"]["SerializationLibrary"]
    properties = {key: value for key, value in table["Parameters"].items() if key not in ("EXTERNAL", "comment")}
    return "\n".join([
        f"CREATE EXTERNAL TABLE IF NOT EXISTS `{database}`.`{table['Name']}` (",
        ",\n".join(f"  `{column['Name']}` {column['Type']}" for column in storage["Columns"]),
        ")",
        f"COMMENT {quoted(table['Parameters']['comment'])}",
        f"PARTITIONED BY ({keys})",
        f"ROW FORMAT SERDE {quoted(serde)}",
        f"STORED AS INPUTFORMAT {quoted(storage['InputFormat'])}",
        f"OUTPUTFORMAT {quoted(storage['OutputFormat'])}",
        f"LOCATION {quoted(storage['Location'])}",
        "TBLPROPERTIES (",
        ",\n".join(f"  {quoted(key)} = {quoted(value)}" for key, value in properties.items()),
        ")",
    ])  # fmt: skip


def quoted(text: str) -> str:
    """A text as a literal of SQL."""
    return "'" + text.replace("'", "''") + "'"

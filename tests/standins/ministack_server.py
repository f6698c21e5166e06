# mypy: ignore-errors
"""MiniStack's server, run by MiniStack's own Python: `python -P ministack_server.py PORT`.

What Athena has and MiniStack 1.5 lacks is added here, and nothing else:

- `CREATE DATABASE` and `CREATE VIEW`, and views in a query (MiniStack knows tables only);
- a table has the columns that its definition declares, null where a file has none (MiniStack shows the columns that the files have);
- the column `"$path"` (hidden in Athena; `SELECT *` shows it here).
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import sys

from hypercorn.asyncio import serve
from hypercorn.config import Config
from ministack.app import app
from ministack.services import athena, glue

NOTHING = {"columns": [], "rows": [], "column_types": []}
VIEW = re.compile(r'\s*CREATE\s+(?:OR\s+REPLACE\s+)?VIEW\s+(?:"?(\w+)"?\.)?"?(\w+)"?\s+AS\s+(.*?);?\s*$', re.IGNORECASE | re.DOTALL)
DATABASE = re.compile(r"\s*CREATE\s+(?:DATABASE|SCHEMA)\s+(IF\s+NOT\s+EXISTS\s+)?`?(\w+)`?\s*$", re.IGNORECASE)
PRESTO = "/* Presto View: "

run_duckdb, rewrite, stored, empty = athena._run_duckdb, athena._rewrite_data_paths, athena._table_relation, athena._empty_relation


async def run_statement(query, database, catalog=None):
    if create := DATABASE.match(query):
        if create[2] not in glue._databases:
            glue._create_database({"DatabaseInput": {"Name": create[2]}})
        elif not create[1]:
            raise ValueError(f"Database {create[2]} already exists")
        return NOTHING
    if create := VIEW.match(query):
        schema, name, sql = create[1] or database, create[2], create[3]
        found = await run_duckdb(f"SELECT * FROM ({sql}) LIMIT 0", schema, catalog)
        columns = [{"name": column, "type": kind} for column, kind in zip(found["columns"], found["column_types"], strict=True)]
        text = base64.b64encode(json.dumps({"originalSql": sql, "catalog": "awsdatacatalog", "schema": schema, "columns": columns}).encode()).decode()
        glue._tables.pop(f"{schema}/{name}", None)
        glue._create_table({"DatabaseName": schema, "TableInput": {
            "Name": name, "TableType": "VIRTUAL_VIEW", "Parameters": {"presto_view": "true", "comment": "Presto View"},
            "ViewOriginalText": f"{PRESTO}{text} */", "ViewExpandedText": "/* Presto View */", "StorageDescriptor": {"Columns": []},
        }})
        return NOTHING
    return await run_duckdb(query, database, catalog)


async def with_views(query, database, catalog=None):
    for _ in range(10):                                                  # a view of views of views
        edits = []
        for found in athena._table_references(query):
            table = glue._tables.get(f"{found.database or database}/{found.table}") or {}
            text = table.get("ViewOriginalText") or ""
            if text.startswith(PRESTO):
                sql = json.loads(base64.b64decode(text[len(PRESTO) : -3]))["originalSql"]
                edits.append((found.start, found.end, f"({sql})" + ("" if found.aliased else f' AS "{found.table}"')))
        for start, end, replacement in sorted(edits, reverse=True):
            query = query[:start] + replacement + query[end:]
        if not edits:
            break
    return await rewrite(query, database, catalog)


def as_declared(table, files):
    form = athena._data_format(table)
    if form not in ("parquet", "json"):
        return stored(table, files)
    columns = [(column["Name"], athena._duckdb_type(column)) for column in table["StorageDescriptor"]["Columns"]]
    reading = f"filename = '$path', {athena._hive_options(athena._path_partition_keys(table, files))}"
    if form == "json":
        types = ", ".join(f"'{name}': '{kind}'" for name, kind in columns)
        return f"read_json({athena._sql_list(files)}, format = 'newline_delimited', columns = {{{types}}}, {reading})"
    nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in columns)
    read = f"SELECT * FROM read_parquet({athena._sql_list(files)}, union_by_name = true, {reading})"
    return f"({read} UNION ALL BY NAME SELECT {nothing} WHERE false)"


def options(partitions):
    """As text, because DuckDB takes a bare `DATE` for a column where the relation is joined."""
    types = ", ".join(f"'{key['Name']}': '{athena._duckdb_type(key)}'" for key in partitions)
    return f"hive_partitioning = true, hive_types = {{{types}}}" if partitions else "hive_partitioning = false"


def nothing_with_path(table):
    return f"""(SELECT *, CAST(NULL AS VARCHAR) AS "$path" FROM {empty(table)})"""


athena._run_duckdb, athena._rewrite_data_paths = run_statement, with_views
athena._table_relation, athena._empty_relation, athena._hive_options = as_declared, nothing_with_path, options

if __name__ == "__main__":
    config = Config()
    config.bind = [f"127.0.0.1:{sys.argv[1]}"]
    config.accesslog = None
    asyncio.run(serve(app, config))

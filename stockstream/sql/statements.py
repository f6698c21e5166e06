"""What a query may be: one statement that reads. DuckDB's own parser decides, so no way of writing it can hide anything.

DuckDB lets a SELECT write, by a COPY in its WITH clause for example, and it has table functions that load, register or run something. So every node of the
parsed statement must be one that reads, and every table function one of `TABLE_FUNCTIONS`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import duckdb

from stockstream.sql.errors import SqlError
from stockstream.sql.views import VIEWS

READ_ONLY = "the archive is read-only: only SELECT and EXPLAIN are allowed"
PIVOT = "PIVOT needs the values of its columns here: PIVOT ticks ON source IN ('a', 'b') USING sum(size)"
_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
TABLE_FUNCTIONS = {
    "range", "generate_series", "unnest", "repeat", "repeat_row", "json_each", "json_tree", "histogram", "histogram_values", "glob",
    "read_parquet", "parquet_scan", "parquet_metadata", "parquet_schema", "parquet_file_metadata", "parquet_kv_metadata", "parquet_full_metadata",
    "read_json", "read_json_auto", "read_ndjson", "read_ndjson_auto", "read_json_objects", "read_ndjson_objects", "read_csv", "read_csv_auto",
    "read_text", "read_blob", "sniff_csv",
    "duckdb_columns", "duckdb_functions", "duckdb_keywords", "duckdb_settings", "duckdb_types", "duckdb_views", "duckdb_tables", "pragma_version",
    "pg_timezone_names",
}  # fmt: skip
"""Those that only read, and only from the archive."""
_EXPLAIN = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/)*EXPLAIN\b(?:\s*ANALYZE\b|\s*VERBOSE\b|\s*\([^()]*\)|\s)*", re.IGNORECASE | re.DOTALL)
_BARE_OFFSET = re.compile(r"(?<![\w\".])offset(?![\w\"])", re.IGNORECASE)
_STRINGS = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/", re.DOTALL)
_NO_COLUMN = re.compile(r"(?:Referenced column|Column|Values list .* column named|Table \"[^\"]*\" does not have a column named) \"(?P<name>[^\"]+)\"")
_NO_TABLE = re.compile(r"Table with name (?P<name>\S+) does not exist")
_BARE_DATE = re.compile(r"INTEGER -> DATE|type DATE and type INTEGER|type INTEGER and type DATE")
_CANDIDATES = re.compile(r"Candidate (?:bindings|columns)(?: in FROM clause)?:? (?P<names>.*)")


class Statement(NamedTuple):
    """A statement that reads: the names of its tables, in lower case, and whether it opens objects by itself, by a table function."""

    tables: frozenset[str]
    reads_files: bool


def checked(connection: duckdb.DuckDBPyConnection, sql: str) -> Statement:
    """The statement. Raises `SqlError` if it is none, or one that is not allowed."""
    try:
        statements = duckdb.extract_statements(sql)
    except duckdb.Error as error:
        raise SqlError(_of_syntax(sql, str(error))) from error
    if len(statements) != 1:
        raise SqlError(f"one SQL statement is expected, not {len(statements)}")
    kind = statements[0].type
    explains = kind == duckdb.StatementType.EXPLAIN
    if kind == duckdb.StatementType.MULTI:                               # DuckDB makes several statements of it, one of which creates a type
        raise SqlError(PIVOT)
    if not explains and kind != duckdb.StatementType.SELECT:
        raise SqlError(READ_ONLY)
    body = _EXPLAIN.sub("", sql, count=1) if explains else sql
    [(text,)] = connection.execute("SELECT json_serialize_sql(?::VARCHAR)", [body]).fetchall()
    parsed = json.loads(text)
    if parsed["error"]:
        raise SqlError(READ_ONLY)
    tables, functions = set(), set()
    for node in _nodes(parsed["statements"]):
        of = node.get("type")
        if isinstance(of, str) and of.endswith("_NODE") and of not in _NODES:
            raise SqlError(READ_ONLY)
        if of == "TABLE_FUNCTION":
            name = node["function"].get("function_name", "").lower()
            functions.add(name)
            if name not in TABLE_FUNCTIONS:
                raise SqlError(f"the table function {name} is not available here")
        if of in ("BASE_TABLE", "SHOW_REF") and node.get("table_name"):
            tables.add(node["table_name"].strip('"').lower())
    return Statement(frozenset(tables), any(name.startswith(("read_", "parquet_")) for name in functions))


def _nodes(parsed: Any) -> Iterator[dict[str, Any]]:
    waiting = [parsed]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting.extend(one.values())
        elif isinstance(one, list):
            waiting.extend(one)


def is_complete(sql: str) -> bool:
    """Whether the text ends a statement: its last sign outside of strings and comments is a semicolon."""
    plain = _STRINGS.sub(lambda match: "x" if match[0][0] in "'\"" else " ", sql).rstrip()
    return plain.endswith(";") and not re.search(r"['\"]|/\*", plain)


def reason(text: str, columns: Collection[str] = ()) -> str:
    """DuckDB's message on one line. For an unknown name, it has names that are near it, of `columns` or of the views.

    Of a traceback, which DuckDB gives where the store fails, the last line without the error's name.
    """
    if "Traceback (most recent call last)" in text:
        return text.strip().splitlines()[-1].partition(": ")[2] or text.strip().splitlines()[-1]
    text = " ".join(text.split("\n\nLINE ")[0].split())
    if found := _NO_TABLE.search(text):
        return f"there is no view {found['name']!r}: {_near(found['name'], VIEWS)}the views are {', '.join(VIEWS)}"
    if found := _NO_COLUMN.search(text):
        candidates = {name.rpartition(".")[2].strip('", ') for name in of["names"].split(",")} if (of := _CANDIDATES.search(text)) else set()
        known = sorted({*columns, *candidates} - {""})
        return f"there is no column {found['name']!r}: {_near(found['name'], known)}stockstream query --tables describes all columns"
    if _BARE_DATE.search(text):
        return f"{text}; write a date as DATE '2025-10-09', in quotes"
    return text


def _near(name: str, names: Collection[str]) -> str:
    near = difflib.get_close_matches(name.lower(), list(names), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(near)}? " if near else ""


def _of_syntax(sql: str, text: str) -> str:
    if "syntax error" in text and _BARE_OFFSET.search(_STRINGS.sub("''", sql)):
        return 'a syntax error: offset is a keyword of SQL; as the name of the column write it in quotes, "offset"'
    return reason(text)

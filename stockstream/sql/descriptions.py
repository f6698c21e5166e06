"""Describes the views: for people as text, for programs as JSON."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

from stockstream.console import table
from stockstream.sinks.stores import FileStore
from stockstream.sql.duckdb_engine import DuckdbEngine
from stockstream.sql.views import EXAMPLE, VIEWS


def described(names: list[str]) -> dict[str, list[tuple[str, str, str]]]:
    """Name, type and meaning of each column of these views. No archive is needed."""
    with DuckdbEngine(FileStore(Path("nowhere"))) as engine:
        return {name: [(column, kind, VIEWS[name].columns[column]) for column, kind in engine.columns(name)] for name in names}


def as_text(names: list[str]) -> str:
    lines = []
    for name, columns in described(names).items():
        rows = table(["  column", "type", "meaning"], [[f"  {column}", kind, meaning] for column, kind, meaning in columns])
        lines += [f"{name}: {VIEWS[name].meaning}", rows, ""]
    return "\n".join([*lines, "Example:", f'    stockstream query "{EXAMPLE}"'])


def as_json(names: list[str]) -> str:
    views = [
        {"view": name, "meaning": VIEWS[name].meaning, "columns": [dict(zip(("name", "type", "meaning"), column, strict=True)) for column in columns]}
        for name, columns in described(names).items()
    ]
    return json.dumps(views, ensure_ascii=False)


def as_markdown() -> str:
    """The views as they are in docs/sql.md."""
    parts = []
    for name, columns in described(list(VIEWS)).items():
        rows = [f"| `{column}` | {kind} | {meaning} |" for column, kind, meaning in columns]
        parts.append("\n".join([f"#### `{name}`", "", f"{VIEWS[name].meaning[0].upper()}{VIEWS[name].meaning[1:]}.", "",
                                "| column | type | meaning |", "| --- | --- | --- |", *rows]))  # fmt: skip
    return "\n".join(line if line.startswith("|") else textwrap.fill(line, 100) for line in "\n\n".join(parts).split("\n"))

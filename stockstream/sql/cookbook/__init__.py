"""Queries that traders ask, each in a file of its own: comments with title and text, then SQL that DuckDB and Athena both run."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Recipe:
    """`name` is that of the file, without its number; `text` may have Markdown."""

    name: str
    title: str
    text: str
    sql: str


def recipes() -> list[Recipe]:
    """All of them, in the order of the documentation."""
    found = []
    for file in sorted((file for file in files(__name__).iterdir() if file.name.endswith(".sql")), key=lambda file: file.name):
        lines = file.read_text("utf-8").splitlines()
        comments = [line.removeprefix("--").strip() for line in lines if line.startswith("--")]
        sql = "\n".join(line for line in lines if not line.startswith("--")).strip()
        found.append(Recipe(file.name.removesuffix(".sql").partition("_")[2], comments[0], " ".join(comments[1:]), sql))
    return found


def as_markdown() -> str:
    """The recipes as they are in docs/sql.md."""
    return "\n".join(f"### {one.title}\n\n{textwrap.fill(one.text, 100)}\n\n{textwrap.indent(one.sql, '    ')}\n" for one in recipes())

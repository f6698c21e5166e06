"""Values that Arrow, CSV and JSON have no type for, as DuckDB writes them in text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from duckdb.sqltypes import DuckDBPyType

_NOT_IN_ARROW = {"uhugeint", "bignum", "bit", "time with time zone", "variant"}
"""Types of DuckDB whose values Arrow would have changed: another number, without their zone, or as DuckDB's own bytes."""
_ESCAPED = re.compile(rb"[^ -~]|[\\'\"]")


def projection(columns: Sequence[str], types: Sequence[DuckDBPyType]) -> str | None:
    """What to select from a relation so that Arrow has all its values, by place: the types that Arrow has not become VARCHAR. None: they are all there."""
    casts = [_cast(kind) for kind in types]
    if not any(casts):
        return None
    names = [name.replace('"', '""') for name in columns]
    return ", ".join(f'CAST(#{place} AS {cast}) AS "{name}"' if cast else f"#{place}" for place, (name, cast) in enumerate(zip(names, casts, strict=True), 1))


def _cast(kind: DuckDBPyType) -> str | None:
    """The type in SQL that this one becomes; None if it stays."""
    if kind.id in _NOT_IN_ARROW:
        return "VARCHAR"
    if kind.id not in ("list", "array", "struct", "map", "union"):
        return None
    children = [(name, of, _cast(of)) for name, of in kind.children if isinstance(of, DuckDBPyType)]
    if not any(cast for *_, cast in children):
        return None
    types = [cast or str(of) for _, of, cast in children]
    if kind.id == "list":
        return f"{types[0]}[]"
    if kind.id == "array":
        return f"{types[0]}[{dict(kind.children)['size']}]"
    if kind.id == "map":
        return f"MAP({types[0]}, {types[1]})"
    if kind.id == "union":
        return "VARCHAR"
    fields = ('"{}" {}'.format(name.replace('"', '""'), kind) for (name, *_), kind in zip(children, types, strict=True))
    return f"STRUCT({', '.join(fields)})"


def is_nested(value: Any) -> bool:
    return isinstance(value, dict | list | tuple) and not isinstance(value, pa.MonthDayNano)


def text_of(value: Any) -> str:
    """The text of a value that is neither null nor nested."""
    if isinstance(value, bytes):
        return _ESCAPED.sub(lambda match: b"\\x%02X" % match[0][0], value).decode("ascii")
    return _interval(value) if isinstance(value, pa.MonthDayNano) else str(value)


def _interval(of: pa.MonthDayNano) -> str:
    years, months = divmod(abs(of.months), 12)
    sign = "-" if of.months < 0 else ""
    counts = ((f"{sign}{years}", "year"), (f"{sign}{months}", "month"), (f"{of.days}", "day"))
    parts = [f"{count} {unit}{'' if count.lstrip('-') == '1' else 's'}" for count, unit in counts if count.lstrip("-") != "0"]
    micros = abs(of.nanoseconds) // 1000
    if micros or not parts:
        seconds, fraction = divmod(micros, 1_000_000)
        clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
        parts.append(f"{'-' if of.nanoseconds < 0 else ''}{clock}" + (f".{fraction:06d}".rstrip("0") if fraction else ""))
    return " ".join(parts)

"""Which column of a file is what, and whose file it is."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from stockstream.sources.recordings.files import DataFile

Kind = Literal["trades", "bars"]
Places = tuple[int, ...]
"""Numbers of the columns of which a value is put together; nearly always one."""

OF_BARS = {"close": "price", "volume": "size"}
"""What a bar's columns are called, and the fields of ours that hold them."""
_TUPLE = re.compile(r"\(\s*'.*'\s*\)")
_FIELDS = frozenset({"open", "high", "low", "close", "adj close", "volume"})


@dataclass(frozen=True, slots=True)
class Keep:
    """Rows of which `column` holds one of `values`; all others are left out: they are `others`, a plural."""

    column: int
    values: frozenset[str]
    others: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How ticks are made of a file's rows. `columns` has by field of ours its place in the file; a bar's close is `price` and its volume `size`.

    `symbol` is the one of all rows, where no column has it; `symbol_from` names where it comes from. `wide` has for each of several symbols its own columns.
    `zone`, `unit` and `day` are as for `EventTimes`. `divisors` are those of whole numbers that stand for decimals. `interval_s` is 0 for bars whose length is
    found by their times. `provider` is whose symbols these are, empty if they are taken as they are. `own`: a file in our own words.
    """

    format: str
    kind: Kind
    columns: Mapping[str, Places]
    symbol: str = ""
    symbol_from: str = ""
    wide: Mapping[str, Mapping[str, Places]] = field(default_factory=dict)
    zone: str = ""
    unit: str = ""
    day: date | None = None
    divisors: Mapping[str, float] = field(default_factory=dict)
    keep: tuple[Keep, ...] = ()
    end_mark: str = ""
    interval_s: int = 0
    provider: str = ""
    own: bool = False

    def word(self, ours: str) -> str:
        """What a field of ours is called in a file of this kind."""
        return next((theirs for theirs, name in OF_BARS.items() if name == ours), ours) if self.kind == "bars" else ours


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a file shows its format: its columns in lower case, its first rows, its name."""

    file: DataFile
    names: tuple[str, ...]

    def at(self, *names: str) -> int | None:
        """The number of the first of these columns that there is."""
        return next((self.names.index(name) for name in names if name in self.names), None)

    def has(self, *names: str) -> bool:
        return all(name in self.names for name in names)

    def values(self, name: str) -> list[str]:
        """The column's values in the first rows, without the empty ones."""
        return [value for value in self.file.head[self.names.index(name)] if value.strip()]

    def columns(self, **ours: str | tuple[str, ...]) -> dict[str, Places]:
        """Places by field of ours, of the columns that there are; several names are tried in their order."""
        found = {name: self.at(*((theirs,) if isinstance(theirs, str) else theirs)) for name, theirs in ours.items()}
        return {name: (at,) for name, at in found.items() if at is not None}

    def all_match(self, name: str, pattern: str) -> bool:
        """Whether all values of the first rows match, and there are some."""
        values = self.values(name)
        return bool(values) and all(re.fullmatch(pattern, value) for value in values)


def shape_of(file: DataFile) -> Shape:
    return Shape(file, tuple(name.lower().strip("<>") for name in file.columns))


class Frame:
    """A table with columns for each of several symbols, as pandas writes it for an index of two levels; `symbols` is empty if a file is none."""

    def __init__(self, file: DataFile) -> None:
        self.symbols: dict[str, dict[str, Places]] = {}
        self.time: int | None = None
        levels = self._of_names(file) if file.is_parquet else self._of_rows(file)
        if levels is None:
            return
        fields, symbols = levels
        for number, (of, symbol) in enumerate(zip(fields, symbols, strict=True)):
            if of.lower() in _FIELDS and symbol:
                self.symbols.setdefault(symbol, {})[of.lower()] = (number,)

    def _of_names(self, file: DataFile) -> tuple[Sequence[str], Sequence[str]] | None:
        """Parquet: the column of Close of AAPL is called `('Close', 'AAPL')`."""
        if not any(_TUPLE.fullmatch(name) for name in file.columns):
            return None
        pairs = [_pair(name) for name in file.columns]
        self.time = next((number for number, pair in enumerate(pairs) if not pair[1]), None)
        return _fields_first([pair[0] for pair in pairs], [pair[1] for pair in pairs])

    def _of_rows(self, file: DataFile) -> tuple[Sequence[str], Sequence[str]] | None:
        """CSV: a row of fields, a row of symbols, and one that names the index, else empty."""
        if not file.header or len(file.head[0]) < 2:
            return None
        second, third = ([column[row] for column in file.head] for row in (0, 1))
        if third[0].lower() not in ("date", "datetime") or any(third[1:]):
            return None
        first = list(file.header[0])
        file.set_header_rows(3)
        self.time = 0
        return _fields_first(["", *first[1:]], ["", *second[1:]])


def _pair(name: str) -> tuple[str, str]:
    try:
        first, second = ast.literal_eval(name) if _TUPLE.fullmatch(name) else (name, "")
    except (ValueError, SyntaxError):
        return name, ""
    return str(first), str(second)


def _fields_first(first: list[str], second: list[str]) -> tuple[list[str], list[str]] | None:
    for fields, symbols in ((first, second), (second, first)):
        if {"close", "volume"} <= {name.lower() for name in fields}:
            return fields, symbols
    return None

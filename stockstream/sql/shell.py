"""The shell of `stockstream query`: statements that end with a semicolon, a history, completion of names, and commands that begin with a dot."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from stockstream.errors import StockstreamError
from stockstream.sql.descriptions import as_text
from stockstream.sql.duckdb_engine import DuckdbEngine
from stockstream.sql.outputs import TABLE_ROWS, with_notice, write
from stockstream.sql.progress import QueryProgress
from stockstream.sql.statements import is_complete
from stockstream.sql.views import VIEWS
from stockstream.wording import counted, one_line

PROMPT, MORE = "stockstream> ", "        ...> "
FORMATS = ("csv", "json", "table")
HISTORY_LINES = 2_000
KEYWORDS = (
    "SELECT", "FROM", "WHERE", "GROUP", "BY", "ORDER", "LIMIT", "HAVING", "AND", "OR", "NOT", "IN", "IS", "NULL", "LIKE", "BETWEEN", "AS", "ON", "USING",
    "JOIN", "LEFT", "INNER", "CROSS", "ASOF", "UNION", "ALL", "DISTINCT", "WITH", "CASE", "WHEN", "THEN", "ELSE", "END", "ASC", "DESC", "OVER",
    "PARTITION", "ROWS", "PRECEDING", "CURRENT", "ROW", "INTERVAL", "DATE", "TIMESTAMP", "CAST", "EXISTS", "EXPLAIN", "DESCRIBE", "SHOW", "TABLES",
    "count", "sum", "avg", "min", "max", "min_by", "max_by", "date_trunc", "date_diff", "coalesce", "nullif", "round", "abs", "stddev_samp", "corr",
    "row_number", "lag", "lead", "current_date",
)  # fmt: skip
BARE_WORDS = ("exit", "help", "quit")
"""Commands that need no dot: people type them so, and no statement is one of these words."""
HELP = """Statements end with a semicolon and may take several lines. Tab completes names, the arrow keys go through the history.

    .tables [VIEW]               describe the views, or one of them
    .format table|csv|json       how rows are printed
    .limit N                     the most rows of a result; 0: all
    .help                        this text
    .quit                        leave, as Ctrl-D does

Ctrl-C ends a running query, or drops the statement that is being written. help, quit and exit work without the dot too."""


def history_file() -> Path:
    """Where the history is kept: below XDG_STATE_HOME, which is ~/.local/state by default."""
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "stockstream" / "query_history"


def completions(line: str, word: str) -> list[str]:
    """What the last word of a line may become: a command, a view, a column of the views that the line names (of all, if it names none), or a keyword."""
    if line.lstrip().startswith("."):
        if line.lstrip() == word:
            return [name for name in (".tables", ".format", ".limit", ".help", ".quit") if name.startswith(word)]
        return [name for name in (*VIEWS, *FORMATS) if name.startswith(word)]
    if re.search(r"\b(from|join)\s+$", line.removesuffix(word), re.IGNORECASE):
        return [name for name in VIEWS if name.startswith(word.lower())]
    named = [view for name, view in VIEWS.items() if re.search(rf"\b{name}\b", line)] or list(VIEWS.values())
    columns = dict.fromkeys(f'"{name}"' if name in ("offset", "index") else name for view in named for name in view.columns)
    plain = word.lstrip('"').lower()
    names = [name for name in (*VIEWS, *columns) if plain and name.lstrip('"').startswith(plain)]
    keywords = [keyword.lower() if word.islower() else keyword for keyword in KEYWORDS if plain and keyword.lower().startswith(plain)]
    return [*names, *(keyword for keyword in keywords if keyword not in names)]


class Shell:
    """Reads statements from the terminal and prints their results, until Ctrl-D. `limit`: the most rows of a result; None: TABLE_ROWS of a table, else all."""

    def __init__(self, engine: DuckdbEngine, form: str = "table", limit: int | None = None) -> None:
        self._engine, self._form, self._limit = engine, form if form in FORMATS else "table", limit
        self._progress = QueryProgress()
        engine.waited = lambda seconds: self._progress.show(seconds, engine.progress())
        self._commands: dict[str, Callable[[Sequence[str]], None]] = {
            ".tables": self._tables, ".format": self._set_format, ".limit": self._set_limit, ".help": lambda _: print(HELP),
        }  # fmt: skip

    def run(self) -> None:
        remember = _line_editing()
        print(f"SQL over {self._engine.store.url.removeprefix('file://')}; .help shows the commands, .tables the views")
        while True:
            try:
                text = self._read(remember)
            except KeyboardInterrupt:
                print()
                continue
            except EOFError:
                print()
                return
            if text in (".quit", ".exit"):
                return
            try:
                self._do(text)
            except KeyboardInterrupt:
                self._progress.clear()
                print("cancelled", file=sys.stderr)
            except StockstreamError as error:
                self._progress.clear()
                print(f"error: {one_line(error)}", file=sys.stderr)

    def _read(self, remember: Callable[[str], None]) -> str:
        """A command, or a statement without its semicolon."""
        lines: list[str] = []
        while True:
            lines.append(input(MORE if lines else PROMPT))
            text = "\n".join(lines).strip()
            if not text:
                lines = []
            elif len(lines) == 1 and (word := text.rstrip(";").lower()) in BARE_WORDS:
                return f".{word}"
            elif text.startswith(".") or is_complete(text):
                remember(text)
                return text

    def _do(self, text: str) -> None:
        if text.startswith("."):
            name, *arguments = text.rstrip(";").split()
            known = self._commands.get(name)
            if known is None:
                print(f"error: there is no command {name}; .help shows all", file=sys.stderr)
            else:
                known(arguments)
            return
        begin = time.monotonic()
        result = with_notice(self._engine.run(text), self._progress.clear)
        limit = (TABLE_ROWS if self._form == "table" else 0) if self._limit is None else self._limit
        written = write(result, self._form, limit, sys.stdout)
        cut = "; more with .limit" if written.more else ""
        print(f"({counted(written.rows, 'row')}{cut}, {time.monotonic() - begin:.2f} s)", file=sys.stderr)
        for notice in result.notices:
            print(notice, file=sys.stderr)

    def _tables(self, arguments: Sequence[str]) -> None:
        unknown = [name for name in arguments if name not in VIEWS]
        if unknown:
            print(f"error: there is no view {unknown[0]}; the views are {', '.join(VIEWS)}", file=sys.stderr)
        elif arguments:
            print(as_text(list(arguments)))
        else:
            print("\n".join(f"{name}: {view.meaning}" for name, view in VIEWS.items()))

    def _set_format(self, arguments: Sequence[str]) -> None:
        if len(arguments) == 1 and arguments[0] in FORMATS:
            self._form = arguments[0]
        else:
            print(f"the format is {self._form}; the formats are {', '.join(FORMATS)}")

    def _set_limit(self, arguments: Sequence[str]) -> None:
        if len(arguments) == 1 and arguments[0].isdecimal():
            self._limit = int(arguments[0])
        else:
            print("error: .limit needs a number of rows; 0: all", file=sys.stderr)


def _line_editing() -> Callable[[str], None]:
    """Sets up the history and the completion of names, where Python has readline. Returns what adds a statement to the history."""
    try:
        import readline
    except ImportError:                                                  # Windows: its console edits lines, without completion
        return lambda _: None
    path = history_file()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.read_history_file(path)
    readline.set_history_length(HISTORY_LINES)
    readline.set_auto_history(False)
    readline.set_completer_delims(" \t\n,()=<>+-*/;'")
    found: list[str] = []

    def complete(word: str, number: int) -> str | None:
        if number == 0:
            found[:] = completions(readline.get_line_buffer()[: readline.get_endidx()], word)
        return found[number] if number < len(found) else None

    readline.set_completer(complete)
    libedit = "libedit" in (readline.__doc__ or "")
    readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")

    def remember(text: str) -> None:
        readline.add_history(" ".join(re.sub(r"--[^\n]*", "", text).split()))
        with suppress(OSError):                                          # a history that cannot be kept is no reason to end
            readline.write_history_file(path)

    return remember

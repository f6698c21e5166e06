"""What commands print for a person on stderr: lines, and progress; and tables of text."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from datetime import date, datetime
from typing import Any

import click

archive_option = click.option("--archive", help="The archive: a folder, path or file://path, or s3://bucket/prefix.  [default: STOCKSTREAM_ARCHIVE]")
"""Of commands that read an archive: its value is for `sinks.stores.archive_place`."""

_DATE = click.DateTime(["%Y-%m-%d"])


def date_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options `--date`, `--from` and `--to` of commands that work on folders; the values are for `dates`."""
    for option, name, which in (("--to", "end", "up to this date"), ("--from", "begin", "of this date and later ones"), ("--date", "day", "of this date")):
        command = click.option(option, name, type=_DATE, metavar="DATE", help=f"Only folders {which}.")(command)
    return command


def dates(day: datetime | None, begin: datetime | None, end: datetime | None) -> tuple[date | None, date | None]:
    """The first and the last date that `date_options` name; None: no limit. Raises `UsageError`."""
    if day and (begin or end):
        raise click.UsageError("give either --date, or --from and --to")
    return (begin or day).date() if begin or day else None, (end or day).date() if end or day else None  # type: ignore[union-attr]


def report(text: str) -> None:
    """Prints a line on stderr."""
    click.echo(f"stockstream: {text}", err=True)


@contextlib.contextmanager
def progress(length: int | None, label: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal and `shown` is set. The function advances it; all steps together are `length`, None for no end."""
    stderr = click.get_text_stream("stderr")
    if not shown or not stderr.isatty():
        yield lambda _: None
        return
    endless = (step for step in list[int]())               # click has a bar without an end only for an iterable without a length
    with click.progressbar(endless, length=length, label=label, show_pos=length is None, file=stderr) as bar:
        yield bar.update


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of texts with a head, in columns that are as wide as their longest text. A column without any text is left out."""
    used = [at for at in range(len(names)) if any(row[at] for row in rows)]
    lines = [[line[at] for at in used] for line in (names, *rows)]
    widths = [max(len(line[at]) for line in lines) for at in range(len(used))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines)

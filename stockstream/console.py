"""What commands print for a person on stderr: lines, and progress."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import click


def report(text: str) -> None:
    """Prints a line on stderr."""
    click.echo(f"stockstream: {text}", err=True)


@contextlib.contextmanager
def progress(length: int, label: str, *, shown: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr, if that is a terminal and `shown` is set. The function advances it; all steps together are `length`."""
    stderr = click.get_text_stream("stderr")
    if not shown or not stderr.isatty():
        yield lambda _: None
        return
    with click.progressbar(length=length, label=label, file=stderr) as bar:
        yield bar.update

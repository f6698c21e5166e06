"""Shows on a terminal that a query runs: nothing for a quick one, and nothing where stderr is no terminal."""

from __future__ import annotations

import sys

SHOWN_AFTER_S = 1.0


class QueryProgress:
    """One line on stderr, which `clear` takes away before anything else is printed."""

    def __init__(self) -> None:
        self._shown = 0
        self._terminal = sys.stderr.isatty()

    def show(self, seconds: float, share: float) -> None:
        """`share`: how much of the query is done, 0 to 1; below 0 if that is not known."""
        if not self._terminal or seconds < SHOWN_AFTER_S:
            return
        text = f"{f'{min(share, 1):.0%}, ' if share >= 0 else ''}{seconds:.0f} s; Ctrl-C ends the query"
        sys.stderr.write(f"\r{text.ljust(self._shown)}")
        sys.stderr.flush()
        self._shown = len(text)

    def clear(self) -> None:
        if self._shown:
            sys.stderr.write(f"\r{' ' * self._shown}\r")
            sys.stderr.flush()
            self._shown = 0

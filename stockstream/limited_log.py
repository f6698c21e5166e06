"""Limits log lines that repeat: of one kind, one line a minute."""

from __future__ import annotations

from collections.abc import Callable, Hashable

LOG_EVERY_S = 60.0
"""The least time between log lines of one kind. The first is logged at once; later ones give the number of cases that were left out since."""
MAX_KINDS = 1_024
"""Kinds are few by contract; beyond this many, all further ones count as one kind."""


class LimitedLog:
    """Decides which of many similar log lines are written. Its memory is bounded by MAX_KINDS.

    Args:
        clock: monotonic, in seconds.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._kinds: dict[Hashable, tuple[float, int]] = {}
        """By kind: when a line was last written, and how many cases were left out since."""

    def due(self, *kind: Hashable) -> str | None:
        """The end of the line for a case of this kind; None if the line must be left out. The end counts the cases left out since the last line."""
        key: Hashable = kind if kind in self._kinds or len(self._kinds) < MAX_KINDS else None
        now, written = self._clock(), self._kinds.get(key)
        if written is not None and now - written[0] < LOG_EVERY_S:
            self._kinds[key] = written[0], written[1] + 1
            return None
        self._kinds[key] = now, 0
        return f" ({written[1]} more since the last such line)" if written is not None and written[1] else ""

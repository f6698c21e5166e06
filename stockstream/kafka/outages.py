"""Says once that something is away, again where the reason changes or REMIND_S have passed, and once that it is back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from stockstream.clock import now_s

REMIND_S = 300.0


class Outage:
    """One thing that can be away.

    Args:
        what: said before the reason, e.g. `waiting for a broker at kafka://localhost:9092`.
        back: said before the seconds that it was away, e.g. `the broker answers again, after`.
        say: takes a line.
        now: seconds, see `stockstream.clock`.
    """

    def __init__(self, what: str, back: str, say: Callable[[str], None], now: Callable[[], float] = now_s) -> None:
        self._what, self._back, self._say, self._now = what, back, say, now
        self._since = self._said = 0.0
        self._reason: str | None = None
        self._clock = ""

    def away(self, reason: str) -> str:
        """It is away, for this reason; returns the state in words, with the time of its beginning (UTC)."""
        now = self._now()
        if self._reason is None:
            self._since, self._clock = now, f"{datetime.now(UTC):%H:%M:%S} UTC"
        elif reason == self._reason and now - self._said < REMIND_S:
            return f"{self._what}: {reason}, since {self._clock}"
        still = f" (for {now - self._since:.0f} s)" if self._reason is not None else ""
        self._reason, self._said = reason, now
        self._say(f"{self._what}: {reason}{still}")
        return f"{self._what}: {reason}, since {self._clock}"

    def back(self) -> None:
        """It is there; says so where it was away."""
        if self._reason is not None:
            self._reason = None
            self._say(f"{self._back} {self._now() - self._since:.0f} s")

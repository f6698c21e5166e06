"""Reports an outage once, again if its reason changes or REMIND_S have passed, and its end once."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

from stockstream.clock import now_s

REMIND_S = 300.0


class Outage:
    """The outages of one thing.

    Args:
        what: text before the reason, e.g. `waiting for a broker at kafka://localhost:9092`.
        back: text before the seconds of the outage, e.g. `the broker answers again, after`.
        log: called with each line.
        now: seconds, see `stockstream.clock`.
    """

    def __init__(self, what: str, back: str, log: Callable[[str], None], now: Callable[[], float] = now_s) -> None:
        self._what, self._back, self._log, self._now = what, back, log, now
        self._since = self._reported = 0.0
        self._reason: str | None = None
        self._clock = ""

    def away(self, reason: str) -> str:
        """Reports an outage with its reason. Returns the state as text, with the time since when it lasts (UTC)."""
        now = self._now()
        if self._reason is None:
            self._since, self._clock = now, f"{datetime.now(UTC):%H:%M:%S} UTC"
        elif reason == self._reason and now - self._reported < REMIND_S:
            return f"{self._what}: {reason}, since {self._clock}"
        still = f" (for {now - self._since:.0f} s)" if self._reason is not None else ""
        self._reason, self._reported = reason, now
        self._log(f"{self._what}: {reason}{still}")
        return f"{self._what}: {reason}, since {self._clock}"

    def back(self) -> None:
        """Reports the end of an outage, if there was one."""
        if self._reason is not None:
            self._reason = None
            self._log(f"{self._back} {self._now() - self._since:.0f} s")

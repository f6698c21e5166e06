"""The sessions of the exchanges whose symbols the views show."""

from __future__ import annotations

from typing import Any

from stockstream.sources.sessions import UNKNOWN, Session, Sessions
from stockstream.sources.yahoo.frames import NAME

MAX_EXCHANGES = 200
DELAY_S = 1_200
"""How late ticks of Yahoo's delayed exchanges come at most: 15 to 20 minutes, by exchange."""


def delay_of(source: str) -> int:
    """How much later than they happen the ticks of a `source` come, in seconds: those of `yahoo.<EXCHANGE>` are delayed."""
    return DELAY_S if source.startswith(f"{NAME}.") else 0


class Exchanges:
    """The exchanges that were seen, at most MAX_EXCHANGES. Times are epoch s."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._seen: set[str] = set()

    def see(self, exchange: Any) -> None:
        """Adds an exchange, if it is a text."""
        if isinstance(exchange, str) and len(self._seen) < MAX_EXCHANGES:
            self._seen.add(exchange)

    def at(self, exchange: str | None, now: float | None) -> Session:
        """The exchange's state; unknown without an exchange or a time."""
        if exchange is None or now is None:
            return UNKNOWN
        self.see(exchange)
        return self._sessions.at(exchange, int(now * 1_000))

    def states(self, now: float) -> dict[str, str]:
        """The state of each exchange that was seen, as far as it is known."""
        states = {exchange: self.at(exchange, now).state for exchange in sorted(self._seen)}
        return {exchange: state for exchange, state in states.items() if state != "unknown"}

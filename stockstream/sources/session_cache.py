"""The present sessions of exchanges, looked up in a thread, so that reading a calendar never blocks the loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from stockstream.sources.gaps import SessionLike
from stockstream.sources.health import reason_of

logger = logging.getLogger(__name__)

SessionAt = Callable[[str, int], SessionLike]
"""Returns the session of an exchange, by its code, at a time in epoch ms. May take long."""
VALID_MS = 60_000
"""A session is looked up again after this long at the latest."""
MAX_EXCHANGES = 1_024
"""The most exchanges that are known at a time. Further ones have no session."""


class CurrentSessions:
    """The present session of each exchange that was asked for.

    Args:
        session_at: looks sessions up; None if nothing is known of any.
    """

    def __init__(self, session_at: SessionAt | None) -> None:
        self._session_at = session_at
        self._found: dict[str, tuple[int, SessionLike | None]] = {}
        """By exchange: until when it is valid, and the session."""
        self._failed: set[str] = set()

    def of(self, exchange: str) -> SessionLike | None:
        """The session as of the last `refresh`; None if it is not known (yet)."""
        found = self._found.get(exchange)
        if found is None:
            if len(self._found) < MAX_EXCHANGES:
                self._found[exchange] = 0, None
            return None
        return found[1]

    async def refresh(self, now: int) -> None:
        """Looks up the sessions that are not valid any more. An exchange that cannot be looked up is logged once, and unknown."""
        if self._session_at is None:
            return
        for exchange, (until, _) in list(self._found.items()):
            if now >= until:
                session = None
                try:
                    session = await asyncio.to_thread(self._session_at, exchange, now)
                except Exception as error:  # noqa: BLE001  without a session, silence is no gap, and nothing else depends on it
                    if exchange not in self._failed:
                        logger.warning("the sessions of exchange %r are not known: %s", exchange[:40], reason_of(error))
                        self._failed.add(exchange)
                end = session.until if session is not None else None
                self._found[exchange] = min(now + VALID_MS, end if end is not None and end > now else now + VALID_MS), session

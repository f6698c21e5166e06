"""Logs an outage of the store: the first failure, a reminder each minute, and the end."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

REMIND_S = 60.0
QUIET_S = 10.0
"""The outage of a store that fails at random is over after this many seconds without a failure."""


class StoreFailures:
    """Records the result of each attempt, by `failed` or `worked`."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.since: float | None = None
        self._last = self._reported = 0.0

    def failed(self, error: Exception) -> None:
        now = self._clock()
        if self.since is None:
            self.since = self._reported = now
            logger.warning("archive: %s; the write is tried again, and what does not fit into the buffer is read back from Kafka later", error)
        elif now - self._reported >= REMIND_S:
            self._reported = now
            logger.warning("archive: the store has been failing for %.0f s: %s", now - self.since, error)
        self._last = now

    def worked(self) -> None:
        if self.since is not None and self._clock() - self._last >= QUIET_S:
            logger.info("archive: the store works again, %.0f s after the first failure", self._clock() - self.since)
            self.since = None

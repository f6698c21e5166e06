"""What the writers of the archive share about failures: the pauses, and the log of an outage: its first failure, a reminder each minute, and its end."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 0.5, 10.0
"""The pause after the first failed attempt, which doubles with each further one, and the longest pause."""
CLOSE_S = 4.0
"""How long a worker that stops may still write. Its writers close at the same time."""
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

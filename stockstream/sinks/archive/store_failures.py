"""Says in the log that the store fails: once at the first failure, once a minute, and once when it is over."""

from __future__ import annotations

import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)

REMIND_S = 60.0
QUIET_S = 10.0
"""A store that fails at random is reported to work again after this long without a failure."""


class StoreFailures:
    """`failed` and `worked` take what each attempt brought."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.since: float | None = None
        self._last = self._reported = 0.0

    def failed(self, error: Exception) -> None:
        now = self._clock()
        if self.since is None:
            self.since = self._reported = now
            logger.warning("archive: %s; it is tried again, and read back from Kafka once that goes well", error)
        elif now - self._reported >= REMIND_S:
            self._reported = now
            logger.warning("archive: failing for %.0f s: %s", now - self.since, error)
        self._last = now

    def worked(self) -> None:
        if self.since is not None and self._clock() - self._last >= QUIET_S:
            logger.info("archive: works again, %.0f s after the first failure", self._clock() - self.since)
            self.since = None

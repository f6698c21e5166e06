"""Invalid records: they are counted, logged with their place, and skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from stockstream.metrics import Metrics

logger = logging.getLogger(__name__)

LOG_EVERY_S = 60.0
"""The least time between log lines of one topic and reason. The first is logged at once; later ones give the number of records since."""
DETAIL_LENGTH = 300
"""How many characters of a detail are logged, since a record may hold a megabyte."""
TALLIES = 1_024


class Fault(NamedTuple):
    """Why one record cannot be used. `reason` is one of a few fixed texts, for a metric's label; `detail` is for the log."""

    reason: str
    detail: str


class _Tally:
    """For one topic and reason: when it was last logged, and how many records came since."""

    __slots__ = ("logged_at", "since")

    def __init__(self) -> None:
        self.logged_at: float | None = None
        self.since = 0


class SkippedRecords:
    """Counts skipped records in `records_skipped_total{topic,reason}`, and logs at most one line a minute for each topic and reason.

    Args:
        metrics: the worker's.
        prefix: of the topics' names; metrics and log leave it out.
        clock: monotonic, in seconds.
    """

    def __init__(self, metrics: Metrics, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._prefix, self._clock = metrics, prefix, clock
        self._tallies: dict[tuple[str, str], _Tally] = {}

    def skip(self, topic: str, partition: int, offset: int, fault: Fault) -> None:
        """Counts a record, and logs its place and why it cannot be used. Never raises, whatever the fault's texts are."""
        name = topic.removeprefix(self._prefix)
        self._metrics.record_skipped(name, fault.reason)
        key = (name, fault.reason)
        if key not in self._tallies and len(self._tallies) >= TALLIES:
            key = ("", "")                                               # reasons are few by contract; the excess shares one tally
        tally = self._tallies.setdefault(key, _Tally())
        now = self._clock()
        if tally.logged_at is not None and now - tally.logged_at < LOG_EVERY_S:
            tally.since += 1
            return
        more = f" ({tally.since} more of them since the last such line)" if tally.since else ""
        tally.logged_at, tally.since = now, 0
        logger.warning("%s[%d] offset %d passed over, %s: %s%s", name, partition, offset, fault.reason, shortened(fault.detail), more)


def shortened(text: str, length: int = DETAIL_LENGTH) -> str:
    """At most `length` characters of the text, on one line."""
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else text[: length - 3] + "..."

"""Invalid records: they are counted, logged with their place, and skipped."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import NamedTuple

from stockstream.limited_log import LimitedLog
from stockstream.metrics import Metrics

logger = logging.getLogger(__name__)

DETAIL_LENGTH = 300
"""How many characters of a detail are logged, since a record may hold a megabyte."""


class Fault(NamedTuple):
    """Why one record cannot be used. `reason` is one of a few fixed texts, for a metric's label; `detail` is for the log."""

    reason: str
    detail: str


class SkippedRecords:
    """Counts skipped records in `records_skipped_total{topic,reason}`, and logs at most one line a minute for each topic and reason.

    Args:
        metrics: the worker's.
        prefix: of the topics' names; metrics and log leave it out.
        clock: monotonic, in seconds.
    """

    def __init__(self, metrics: Metrics, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._metrics, self._prefix = metrics, prefix
        self._log = LimitedLog(clock)

    def skip(self, topic: str, partition: int, offset: int, fault: Fault) -> None:
        """Counts a record, and logs its place and its fault. It never raises."""
        name = topic.removeprefix(self._prefix)
        self._metrics.record_skipped(name, fault.reason)
        end = self._log.due(name, fault.reason)
        if end is not None:
            logger.warning("%s[%d] offset %d skipped, %s: %s%s", name, partition, offset, fault.reason, shortened(fault.detail), end)


def shortened(text: str, length: int = DETAIL_LENGTH) -> str:
    """At most `length` characters of the text, on one line."""
    text = " ".join(text[: 4 * length].split())
    return text if len(text) <= length else text[: length - 3] + "..."

"""Records and messages that were set aside: each is counted, logged with its place and listed in `/api/pipeline`; processing continues."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from stockstream.limited_log import LimitedLog
from stockstream.skipped import shortened

logger = logging.getLogger(__name__)

KEPT = 100


class Aside(NamedTuple):
    """A record that was read, or a message that could not be sent (`offset` is -1). `at` is epoch ms by the worker's clock."""

    topic: str
    partition: int
    offset: int
    agent: str
    reason: str
    at: int


class SetAside:
    """Lists the newest records and messages that were set aside, and counts all.

    Args:
        prefix: of the topics' names; the counter leaves it out.
        clock: monotonic, in seconds.
    """

    def __init__(self, prefix: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix, self._log = prefix, LimitedLog(clock)
        self.count: Callable[[str, str], None] = lambda topic, agent: None
        """Called for each with its topic, without prefix, and the agent."""
        self.newest: deque[Aside] = deque(maxlen=KEPT)
        self.total = 0

    def add(self, topic: str, partition: int, offset: int, agent: str, reason: str, detail: str = "") -> None:
        """Sets one aside for `agent`. `reason` is one of a few fixed texts, `detail` describes this case."""
        self.total += 1
        text = shortened(f"{reason}: {detail}" if detail else reason)
        self.newest.append(Aside(topic, partition, offset, agent, text, time.time_ns() // 1_000_000))
        self.count(topic.removeprefix(self._prefix), agent)
        end = self._log.due(topic, agent, reason)
        if end is not None:
            where = f"{topic}[{partition}]" + (f" offset {offset}" if offset >= 0 else "")
            logger.error("%s: %s set aside, %s%s", agent, where, text, end)

"""Filters a worker's log: repeated messages of libraries are collapsed, and their notices, tables and banners are dropped.

Holds global state: the last reason of a failed connection.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass

from stockstream.clock import now_s

LIBRARIES = frozenset({"aiokafka", "kafka", "faust", "mode", "asyncio"})
FIRST_SUMMARY_S = 10.0
LAST_SUMMARY_S = 300.0
"""A message that keeps repeating is summarised after 10, 20, 40 ... and then every 300 s."""
QUIET_S = 60.0
"""A message that has not come for this long counts as new."""
KINDS_KEPT = 500
_VARYING = re.compile(r"0x[0-9a-f]+|\d+|'[^']*'")
_SERVICE = "[^"
"""The prefix of messages of mode's services, in any module: `[^--Producer]: Starting...`."""


@dataclass(slots=True)
class _Repeat:
    last: float
    due: float
    interval: float = FIRST_SUMMARY_S
    left_out: int = 0
    since: float = 0.0


_last_fault = ""


def last_fault() -> str:
    """The last operating-system error that a library logged, e.g. `[Errno 111] Connect call failed`; empty if there is none."""
    return _last_fault


class Repeats(logging.Filter):
    """Passes the first message of a kind, then one per interval with the number left out. The interval begins at FIRST_SUMMARY_S and doubles each time.

    A kind is a logger, a level, and a text without its numbers and quoted names, so that no new fault is hidden. The filter applies to messages of
    libraries only. It drops those below WARNING, unless `verbose`. It is a filter for handlers, and one object may serve several.
    """

    def __init__(self, *, verbose: bool = False, now: Callable[[], float] = now_s) -> None:
        super().__init__()
        self._now, self._verbose = now, verbose
        self._kinds: dict[tuple[str, int, str], _Repeat] = {}
        self._lock = threading.Lock()

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.partition(".")[0] not in LIBRARIES and not str(record.msg).startswith(_SERVICE):
            return True
        if record.levelno < logging.WARNING:
            return self._verbose
        passed: bool | None = getattr(record, "passed_repeats", None)    # by another handler
        if passed is None:
            passed = record.passed_repeats = self._pass(record)
        return passed

    def _pass(self, record: logging.LogRecord) -> bool:
        global _last_fault
        text = record.getMessage()
        for argument in record.args or () if isinstance(record.args, tuple) else ():
            if isinstance(argument, OSError):
                _last_fault = str(argument)
        kind = record.name, record.levelno, _VARYING.sub("#", text[:300])
        now = self._now()
        with self._lock:
            repeat = self._kinds.pop(kind, None)
            if repeat is None or now - repeat.last >= QUIET_S + repeat.interval:
                if len(self._kinds) >= KINDS_KEPT:
                    del self._kinds[next(iter(self._kinds))]             # the one least recently seen
                self._kinds[kind] = _Repeat(now, now + FIRST_SUMMARY_S, since=now)
                return True
            self._kinds[kind] = repeat
            repeat.last = now
            if now < repeat.due:
                repeat.left_out += 1
                return False
            if repeat.left_out:
                record.msg, record.args = f"{text} (and {repeat.left_out} more like it in {now - repeat.since:.0f} s)", ()
                record.exc_info = record.exc_text = None
            repeat.interval = min(2 * repeat.interval, LAST_SUMMARY_S)
            repeat.due, repeat.left_out, repeat.since = now + repeat.interval, 0, now
            return True


def install(level: int) -> None:
    """Adds the filter to the root logger's handlers. Call it once logging is set up, with the requested level."""
    repeats = Repeats(verbose=0 < level < logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.addFilter(repeats)


def without_banner() -> None:
    """Keeps `faust worker` from printing its table of versions; stockstream logs one line instead."""
    command = sys.modules.get("faust.cli.worker")
    if command is not None:
        command.worker.on_worker_created = lambda self, worker: None

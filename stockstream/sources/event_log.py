"""A file of JSON lines that never blocks its source: lines that cannot be written are kept, within bounds, and written later."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

KEPT_BYTES = 1_000_000
"""The most bytes of unwritten lines that are kept, some 10,000 lines. Further lines are dropped and counted."""
RETRY_S = 1.0


class EventLog:
    """Appends lines to a file. A write error is logged once and retried once a second; `trouble` gives the reason meanwhile.

    Each line is written whole and once. If the disk took only a part of it, the rest follows once there is room again.

    Args:
        path: of the file; its folder is created if it is missing.
        clock: monotonic, in seconds.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = path
        self.trouble = ""
        """Why lines are waiting, as text; empty if none are."""
        self.left_out = 0
        """How many lines were dropped since the last successful write, because KEPT_BYTES were waiting."""
        self._clock = clock
        self._waiting = bytearray()
        self._next_try = 0.0

    def append(self, lines: Sequence[bytes]) -> None:
        """Writes the lines, each with its line end, or keeps them for later. Does not raise errors of the disk."""
        for line in lines:
            if len(self._waiting) + len(line) <= KEPT_BYTES:
                self._waiting += line
            else:
                self.left_out += 1
        self.flush()

    def flush(self) -> None:
        """Writes the waiting lines, unless the next retry is not due yet."""
        if not self._waiting or (self.trouble and self._clock() < self._next_try):
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                while self._waiting:
                    del self._waiting[: os.write(file, self._waiting)]
            finally:
                os.close(file)
        except OSError as error:
            self._next_try = self._clock() + RETRY_S
            trouble = f"{self.path.absolute()} cannot be written: {error.strerror or error}"
            if trouble != self.trouble:
                logger.warning("%s; the ticks continue, and the write is retried every second", trouble)
            self.trouble = trouble
            return
        if self.trouble:
            logger.info("%s can be written again; %d lines were dropped", self.path.absolute(), self.left_out)
        self.trouble, self.left_out = "", 0

"""A worker's compaction of the archive: `stockstream compact` from time to time, in a child process at low priority."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import IO, Any

from stockstream.children import Child
from stockstream.limited_log import LimitedLog

logger = logging.getLogger(__name__)

FIRST_S, EVERY_S = 60.0, 300.0
LONGEST_S = 3_600.0
"""A run that takes longer is killed; the next one continues."""
POLL_S = 1.0


def compact_command(archive: str) -> list[str]:
    return [sys.executable, "-m", "stockstream.cli", "compact", "--archive", archive, "--background", "--json"]


class Compactor:
    """Runs the command while this worker owns partition 0 of `ticks.raw`, so that one worker of the group compacts. Two at once would do no harm.

    A failure is logged and reported, and tried again with the next run; nothing else notices.
    """

    def __init__(self, command: Sequence[str], clock: Callable[[], float] = time.monotonic) -> None:
        self._command, self._clock = command, clock
        self._mine = self._closed = False
        self._child: Child | None = None
        self._output: IO[bytes] | None = None
        self._due = self._since = clock() + FIRST_S
        self._log = LimitedLog(clock)
        self._report: dict[str, Any] = {"state": "waiting", "ended_at": None, "objects": 0, "deleted": 0, "fault": ""}

    def own(self, partitions: Collection[int]) -> None:
        """The partitions of `ticks.raw` that this worker owns now."""
        self._mine = 0 in partitions

    def report(self) -> dict[str, Any]:
        """State (`elsewhere`: another worker compacts; `waiting running failing`), when the last run ended (epoch ms), small objects replaced and objects
        deleted since the worker started, and why the last run failed."""
        state = "running" if self._child else "failing" if self._report["fault"] else "waiting" if self._mine else "elsewhere"
        return self._report | {"state": state}

    async def run(self) -> None:
        """Runs the command when it is due, until it is closed."""
        while not self._closed:
            self.step()
            await asyncio.sleep(POLL_S)

    def step(self) -> None:
        """Starts the command if it is due, or looks whether it has ended."""
        try:
            if self._child is None:
                if self._mine and self._clock() >= self._due:
                    self._start()
            elif (status := self._child.poll()) is not None:
                self._ended(status)
            elif self._clock() > self._since + LONGEST_S:
                self._child.kill()
        except OSError as error:                                         # no process can be started, or no temporary file
            if self._output is not None:
                self._output.close()
            self._failed(f"{type(error).__name__}: {error}")

    def _start(self) -> None:
        self._since, self._due = self._clock(), self._clock() + EVERY_S
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  it is closed when the command has ended
        self._child = Child(self._command, output=self._output)

    def _ended(self, status: int) -> None:
        output, self._output, self._child = self._output, None, None
        assert output is not None
        with output:
            output.seek(0)
            text = output.read().decode(errors="replace").strip()
        self._due = self._clock() + EVERY_S
        self._report["ended_at"] = int(datetime.now(UTC).timestamp() * 1_000)
        last = text.rpartition("\n")[2]
        try:
            found = json.loads(last)
            folders, faults = found["folders"], found["faults"]
        except (ValueError, KeyError, TypeError):
            self._failed(last or f"it ended with status {status}")
            return
        replaced, made, deleted = (sum(one[name] for one in folders) for name in ("replaced", "made", "deleted"))
        self._report["objects"] += replaced
        self._report["deleted"] += deleted
        if made:
            logger.info("archive: compacted %d objects of %d folders to %d, in %.0f s", replaced, len(folders), made, self._clock() - self._since)
        self._report["fault"] = ""
        if faults:
            self._failed(faults[0] if len(faults) == 1 else f"{faults[0]} (and {len(faults) - 1} more)")

    def _failed(self, reason: str) -> None:
        self._report["fault"] = reason
        if (end := self._log.due(reason)) is not None:
            logger.warning("archive: compaction: %s%s", reason, end)

    def close(self) -> None:
        """Ends it. A compaction that is killed is finished by the next run of any worker."""
        self._closed = True
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child = None
        if self._output is not None:
            self._output.close()

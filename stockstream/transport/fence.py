"""The fence: whether this worker may still act for its partitions, and how the process ends where it may not."""

from __future__ import annotations

from collections.abc import Callable

from stockstream.clock import now_s
from stockstream.endings import exit_now
from stockstream.errors import FencedError

FENCE_EXIT_STATUS = 75


class Fence:
    """Knows whether this worker may still act for its partitions; when not, the process leaves at once.

    `limit_s` is half the session: by then nobody else has the partitions yet.
    """

    def __init__(self, session_s: float, leave: Callable[[str], None] | None = None) -> None:
        self.limit_s = session_s / 2
        self._leave = leave or leave_now
        self._seen: float | None = None                                  # the imports before the first tick are no standing still
        self.left = False
        self.heard: Callable[[], float] = lambda: 0.0
        """When the group last confirmed us (`stockstream.clock`): a process that computes for long is no frozen one, its heartbeats have their own thread."""

    def tick(self) -> None:
        """Called several times a second by the watchdog; a process that was frozen notices here or in `check`, whichever comes first."""
        self.check()
        self._seen = now_s()

    def check(self) -> None:
        """Raises `FencedError` where the process has neither run nor been heard by its group for half a session, after asking it to leave."""
        if self.left:
            raise FencedError("this worker has left")
        stood = 0.0 if self._seen is None else now_s() - max(self._seen, self.heard())
        if stood > self.limit_s:
            self.leave(f"this process stood still for {stood:.1f} s, more than half the session")

    def leave(self, why: str) -> None:
        """Ends the process, once."""
        if not self.left:
            self.left = True
            self._leave(why)
        raise FencedError(why)


def leave_now(why: str) -> None:
    """Tells why, in one line, and exits without any clean-up that could write."""
    exit_now(FENCE_EXIT_STATUS, f"leaving: {why} (a supervisor starts the worker again)")

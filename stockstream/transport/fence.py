"""The fence: ends the process once this worker may no longer own its partitions."""

from __future__ import annotations

from collections.abc import Callable

from stockstream.clock import now_s
from stockstream.endings import exit_now
from stockstream.errors import FencedError

FENCE_EXIT_STATUS = 75


class Fence:
    """Ends the process once this worker may no longer own its partitions.

    `limit_s` is half the session timeout. Within that time no other worker can own the partitions.

    Args:
        session_s: the session timeout of the consumer group, in seconds.
        leave: ends the process, given the reason.
    """

    def __init__(self, session_s: float, leave: Callable[[str], None] | None = None) -> None:
        self.limit_s = session_s / 2
        self._leave = leave or leave_now
        self._last_tick: float | None = None                                  # time before the first watchdog tick (imports) does not count as a stall
        self.left = False
        self.last_heartbeat: Callable[[], float] = lambda: 0.0
        """When the group last confirmed this worker (s of `stockstream.clock`). Heartbeats have their own thread, so a long computation is no stall."""

    def tick(self) -> None:
        """Records that the process runs; the watchdog calls it several times a second. Raises `FencedError` as `check` does."""
        self.check()
        self._last_tick = now_s()

    def check(self) -> None:
        """Ends the process and raises `FencedError` if, for half the session timeout, the process neither ran nor completed a heartbeat."""
        if self.left:
            raise FencedError("this worker has ended itself")
        stalled_s = 0.0 if self._last_tick is None else now_s() - max(self._last_tick, self.last_heartbeat())
        if stalled_s > self.limit_s:
            self.leave(f"this process stalled for {stalled_s:.1f} s, more than half the session timeout")

    def leave(self, why: str) -> None:
        """Ends the process, once. Raises `FencedError`."""
        if not self.left:
            self.left = True
            self._leave(why)
        raise FencedError(why)


def leave_now(why: str) -> None:
    """Prints the reason in one line, and exits without any clean-up that could write."""
    exit_now(FENCE_EXIT_STATUS, f"leaving: {why} (a supervisor starts the worker again)")

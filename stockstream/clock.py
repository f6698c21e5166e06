"""A clock for durations: it never goes back, and it runs on while the machine is suspended, if the system has such a clock."""

from __future__ import annotations

import time

_BOOTTIME: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def now_s() -> float:
    """Seconds since a fixed time of this boot (Linux: CLOCK_BOOTTIME; elsewhere `time.monotonic`, which may stop in suspend)."""
    return time.monotonic() if _BOOTTIME is None else time.clock_gettime(_BOOTTIME)

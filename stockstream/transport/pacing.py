"""Decides when the consumer fetches and how long it pauses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

PACE_S = 0.08
"""Pause after a small fetch, in seconds. Without it there are hundreds of tiny fetches a second."""
CLOSING_MS = 100
CLOSING_PACE_S = 0.003
"""Pause while the ticks that close a second are due: within CLOSING_MS, until each partition has closed one."""
AHEAD_MS = 50
"""The next closings are due this long before the earliest of the last ones."""
CLOSINGS_KEPT = 64
CLOSED_S = 0.5
COMPANY_S = 0.005
"""Pause after frames have arrived, except in a backlog, so that frames of other partitions come with the same fetch."""
BACKLOG_S = 3.0
"""A worker counts as catching up for this long after a large fetch. The full pipeline needs two seconds for what one fetch can return of eight partitions."""
SMALL_FETCH = 500
SEND_ITERATIONS = 6
"""How many iterations of the event loop it takes to produce: pipe, sender, request, and the answer to the last request."""


async def yield_to_loop(count: int) -> None:
    """Lets other tasks run for `count` iterations of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)


class Pace:
    """Decides how long reading pauses after a fetch, because a fetch costs the same whatever it returns.

    The pause is PACE_S in general, CLOSING_PACE_S while a second is due to close, and COMPANY_S once the broker holds frames for an agent of this worker.

    Args:
        lateness_ms: how long after its end a second closes.
    """

    def __init__(self, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._arrived = asyncio.Event()
        self._closed: dict[int, float] = {}
        self._lags: deque[int] = deque(maxlen=CLOSINGS_KEPT)
        """The delays of the last closings: milliseconds after the second's end plus `lateness_ms`."""
        self._shift_ms = 0
        self._backlog = -BACKLOG_S
        """When a fetch last returned many records (monotonic s)."""
        self.partitions: set[int] = set()
        """The partitions of `ticks.raw` that this worker reads."""

    def _since_due(self, timestamp: int) -> int:
        """Milliseconds from the latest due closing to this time (epoch ms). The last closings set the phase, because sources lag and their clocks differ."""
        return (timestamp - self._lateness_ms - self._shift_ms) % 1_000

    def _open(self, partition: int) -> bool:
        return time.monotonic() - self._closed.get(partition, -CLOSED_S) >= CLOSED_S

    @property
    def catching_up(self) -> bool:
        """Whether a fetch has returned many records within the last BACKLOG_S."""
        return time.monotonic() - self._backlog < BACKLOG_S

    async def let_pass(self, count: int) -> None:
        """Lets other tasks run for `count` iterations of the event loop, except in a backlog, where that would only delay the task with the most work."""
        if count and not self.catching_up:
            await yield_to_loop(count)

    def awaited(self, partition: int, first: int, last: int) -> bool:
        """Whether ticks that arrived from `first` to `last` (epoch ms) should go to `clean` at once because they may close an open second."""
        since = self._since_due(last)
        return (since < CLOSING_MS or since <= last - first) and self._open(partition)

    def closed(self, partition: int) -> None:
        """Records that a second of this partition has closed."""
        self._closed[partition] = time.monotonic()
        if not self.catching_up:
            self._lags.append((time.time_ns() // 1_000_000 - self._lateness_ms) % 1_000)
            self._shift_ms = max(0, min(self._lags) - AHEAD_MS)

    def arrived(self) -> None:
        """Records that the broker holds frames for an agent of this worker."""
        self._arrived.set()

    def fetching(self) -> None:
        """Records that a fetch is being sent. It returns whatever has arrived so far."""
        self._arrived.clear()

    async def after(self, count: int) -> None:
        """Pauses after a fetch of `count` records. After an empty fetch there is no pause: the wait for records was long enough."""
        if not count or count >= SMALL_FETCH:
            if count:
                self._backlog = time.monotonic()
            await asyncio.sleep(0)
            return
        since = self._since_due(time.time_ns() // 1_000_000)
        pause = min(PACE_S, (1_000 - since) / 1_000)
        if since < CLOSING_MS and any(map(self._open, self.partitions)):
            pause = CLOSING_PACE_S
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._arrived.wait()
                if not self.catching_up:
                    await asyncio.sleep(COMPANY_S)

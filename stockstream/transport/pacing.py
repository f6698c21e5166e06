"""When the consumer fetches, and how long it pauses."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque

PACE_S = 0.08
"""Pause after a small fetch; there are hundreds of tiny ones a second otherwise."""
CLOSING_MS = 100
CLOSING_PACE_S = 0.003
"""Pause while ticks are due that close a second: within CLOSING_MS, until each partition has closed one."""
AHEAD_MS = 50
"""So long before the earliest of the last closings the next ones are due."""
CLOSINGS_KEPT = 64
CLOSED_S = 0.5
COMPANY_S = 0.005
"""Pause after frames have arrived, but in a backlog: those of other partitions are on their way."""
BACKLOG_S = 3.0
"""So long after a large fetch a worker counts as catching up: the full line takes two seconds over what one fetch can bring of eight partitions."""
SMALL_FETCH = 500
SEND_TURNS = 6


async def turns(count: int) -> None:
    """Lets all else that is ready run so many times. To produce takes about SEND_TURNS: pipe, sender, request, and the answer to the request before."""
    for _ in range(count):
        await asyncio.sleep(0)


class Pace:
    """How long reading pauses after a fetch, which costs the same whatever it brings: long while nobody waits, briefly while a second is due to close, and
    COMPANY_S where frames have arrived at the broker that an agent here waits for.

    Args:
        lateness_ms: how long after its end a second closes.
    """

    def __init__(self, lateness_ms: int) -> None:
        self._lateness_ms = lateness_ms
        self._arrived = asyncio.Event()
        self._closed: dict[int, float] = {}
        self._lags: deque[int] = deque(maxlen=CLOSINGS_KEPT)
        """Of the last closings: milliseconds after a second's end and `lateness_ms`."""
        self._shift_ms = 0
        self._backlog = -BACKLOG_S
        """When a fetch last brought many records."""
        self.partitions: set[int] = set()
        """Of `ticks.raw`, those that are read."""

    def _since_due(self, timestamp: int) -> int:
        """Milliseconds since a second became due at this time (epoch ms): by the last closings, since sources lag, and their clocks differ."""
        return (timestamp - self._lateness_ms - self._shift_ms) % 1_000

    def _open(self, partition: int) -> bool:
        return time.monotonic() - self._closed.get(partition, -CLOSED_S) >= CLOSED_S

    @property
    def catching_up(self) -> bool:
        """Whether a fetch has brought many records within the last BACKLOG_S."""
        return time.monotonic() - self._backlog < BACKLOG_S

    async def let_pass(self, count: int) -> None:
        """Gives others so many turns, but in a backlog: there it only keeps work from who has most of it."""
        if count and not self.catching_up:
            await turns(count)

    def awaited(self, partition: int, first: int, last: int) -> bool:
        """Whether ticks of a partition that arrived from `first` to `last` (epoch ms) should go to `clean` at once: they may close a second that is open."""
        since = self._since_due(last)
        return (since < CLOSING_MS or since <= last - first) and self._open(partition)

    def closed(self, partition: int) -> None:
        """A second of this partition has closed."""
        self._closed[partition] = time.monotonic()
        if not self.catching_up:
            self._lags.append((time.time_ns() // 1_000_000 - self._lateness_ms) % 1_000)
            self._shift_ms = max(0, min(self._lags) - AHEAD_MS)

    def arrived(self) -> None:
        """Frames that an agent here waits for are at the broker."""
        self._arrived.set()

    def fetching(self) -> None:
        """A fetch goes out now: it brings what has arrived so far."""
        self._arrived.clear()

    async def after(self, count: int) -> None:
        """Pauses after so many records have come; where none have, waiting for them was the pause."""
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

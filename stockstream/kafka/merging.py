"""Merges the partitions of a topic in the order of their records' times.

A source has one watermark in a partition of `ticks.raw`, to which ticks of several partitions of another topic come. If one of these were read far ahead
of another, the other's ticks would be late.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from heapq import heappop, heappush
from typing import Generic, Protocol, TypeVar

ENOUGH, LEAST = 50_000, 200
"""Records that wait, of all partitions together, and of one at least; a partition with its share is not read further until some are taken."""


class Timed(Protocol):
    """A record: `timestamp` is Kafka's, in epoch milliseconds."""

    @property
    def timestamp(self) -> int: ...


R = TypeVar("R", bound=Timed)


class Merge(Generic[R]):
    """Holds what was read of each partition and gives it back in the order of time, each partition in its own order."""

    def __init__(self, partitions: Iterable[int]) -> None:
        self._waiting: dict[int, deque[R]] = {partition: deque() for partition in partitions}
        self._heads: list[tuple[int, int]] = []
        self._enough = max(LEAST, ENOUGH // max(1, len(self._waiting)))

    @property
    def partitions(self) -> list[int]:
        return list(self._waiting)

    def add(self, partition: int, records: Iterable[R]) -> None:
        """Adds records that follow those of the partition that were added before."""
        waiting = self._waiting[partition]
        empty = not waiting
        waiting.extend(records)
        if empty and waiting:
            heappush(self._heads, (waiting[0].timestamp, partition))

    def full(self, partition: int) -> bool:
        """Whether enough of the partition waits."""
        return len(self._waiting[partition]) >= self._enough

    def empty(self, partition: int) -> bool:
        return not self._waiting[partition]

    def take(self, most: int, behind: Iterable[int]) -> list[R]:
        """The next records, at most `most`. `behind` are partitions of which older records may still come while nothing of them waits."""
        missing = {partition for partition in behind if not self._waiting[partition]}
        blocking = set(behind)
        out: list[R] = []
        while self._heads and len(out) < most and not missing:
            _, partition = heappop(self._heads)
            waiting = self._waiting[partition]
            out.append(waiting.popleft())
            if waiting:
                heappush(self._heads, (waiting[0].timestamp, partition))
            elif partition in blocking:
                missing.add(partition)
        return out

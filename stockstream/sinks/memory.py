"""A store in memory with switches for failures: the fake for tests of everything that archives."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.entries import Entry

_UNKNOWN = datetime.fromtimestamp(0, UTC)
"""When an object was written that a test put in directly."""


class MemoryStore:
    """A `Store` in memory.

    `down`: every call fails. `failing`: the share of calls (0 to 1) that fail. Half of the failed creates fail after the object was created, as after a
    lost response. `delay_s`: how long each call takes. `before_create(name)` runs before the object is created, outside the lock.
    """

    url = "memory://"

    def __init__(self, seed: int = 0) -> None:
        self.objects: dict[str, bytes] = {}
        self.written: dict[str, datetime] = {}
        """When each was created; a test may change it."""
        self.down = False
        self.failing = 0.0
        self.delay_s = 0.0
        self.before_create: Callable[[str], None] | None = None
        self.calls = 0
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    def create(self, name: str, data: bytes) -> bool:
        lost = self._fail_or_wait(name, can_be_late=True)
        if self.before_create:
            self.before_create(name)
        with self._lock:
            new = name not in self.objects
            self.objects.setdefault(name, bytes(data))
            if new:
                self.written[name] = datetime.now(UTC)
        if lost:
            raise ArchiveUnavailable(f"memory: no answer for {name}")
        return new

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        self._fail_or_wait(prefix)
        with self._lock:
            names = sorted(name for name in self.objects if name.startswith(prefix) and name > start_after)
        yield from names

    def entries(self, prefix: str, start_after: str = "") -> Iterator[Entry]:
        names = list(self.list(prefix, start_after))
        with self._lock:
            found = [Entry(name, len(self.objects[name]), self.written.get(name, _UNKNOWN)) for name in names if name in self.objects]
        yield from found

    def delete(self, name: str) -> None:
        self._fail_or_wait(name)
        with self._lock:
            self.objects.pop(name, None)

    def read(self, name: str, tail: int = 0) -> bytes:
        self._fail_or_wait(name)
        with self._lock:
            if name not in self.objects:
                raise ArchiveError(f"memory: there is no {name}")
            return self.objects[name][-tail:] if tail else self.objects[name]

    def read_range(self, name: str, first: int, end: int) -> bytes:
        return self.read(name)[first : max(first, end)]

    def size(self, name: str) -> int | None:
        self._fail_or_wait(name)
        with self._lock:
            return len(self.objects[name]) if name in self.objects else None

    def _fail_or_wait(self, name: str, can_be_late: bool = False) -> bool:
        self.calls += 1
        if self.delay_s:
            time.sleep(self.delay_s)
        if self.down:
            raise ArchiveUnavailable(f"memory: down, cannot reach {name}")
        if self.failing and self._random.random() < self.failing:
            if can_be_late and self._random.random() < 0.5:
                return True
            raise ArchiveUnavailable(f"memory: failed on purpose at {name}")
        return False

"""A changelog in memory, for cores that write their state and are restored from the ranges that it names."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from stockstream.state.changelog_table import Needs, Reading, Stored
from stockstream.transforms.changelog_index import ChangelogIndex


class Changelog:
    """Records in the order of writing, compacted now and then; confirmations come late, and some do not give the offsets."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._log: dict[int, tuple[bytes, bytes]] = {}
        self.end = 0
        self._unconfirmed: dict[int, tuple[ChangelogIndex, deque[tuple[int, int]]]] = {}
        self.read_records = 0

    def write(self, records: Sequence[tuple[bytes, bytes]], index: ChangelogIndex | None = None) -> None:
        """Appends the records; `index` receives their offsets, now or later. Without an index the writer has died."""
        if not records:
            return
        first = self.end
        for record in records:
            self._log[self.end] = record
            self.end += 1
        if self._rng.random() < 0.1:
            self._compact()
        if index is not None:
            _, waiting = self._unconfirmed.setdefault(id(index), (index, deque()))
            waiting.append((first, self.end - 1) if self._rng.random() < 0.9 else (-1, len(records) - 2))
            while waiting and self._rng.random() < 0.7:
                index.confirmed(*waiting.popleft())

    def take_over(self, old: ChangelogIndex, new: ChangelogIndex) -> None:
        """Confirms to the copy what `old` waits for."""
        self._unconfirmed[id(new)] = new, self._unconfirmed.pop(id(old), (old, deque()))[1]

    def _compact(self) -> None:
        last = {key: offset for offset, (key, _) in self._log.items()}
        self._log = {offset: record for offset, record in self._log.items() if last[record[0]] == offset or offset == self.end - 1}

    def read(self, needs: Needs) -> Stored:
        """What a restart reads, a few records at a time."""
        reading = Reading(0, self.end, needs, self._rng.choice((1, 4, 64)))
        while (position := reading.begin_range()) is not None:
            while not reading.reached(position):
                offset = next((offset for offset in self._log if offset >= position), self.end)
                if offset in self._log:
                    key, value = self._log[offset]
                    record: Any = SimpleNamespace(offset=offset, key=key, value=value)
                    reading.stored.keep(record)
                    self.read_records += 1
                position = offset + 1
        return reading.stored

"""The newest seconds of symbols whose partitions a worker takes over, so that the time without an owner is on record as a gap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from stockstream.errors import FencedError
from stockstream.sources.attempts import within
from stockstream.sources.health import reason_of

logger = logging.getLogger(__name__)

TAKEOVER_S = 3.0
"""How long the symbols of new partitions wait until their newest seconds are known. After that they start without."""
VALID_MS = 60_000
"""How long after a takeover a symbol still gets its newest second: its record on the watchlist is read after the takeover."""


@dataclass(frozen=True, slots=True)
class Newest:
    """The newest row of a symbol that another worker has published."""

    source: str
    last: int
    """End of its second, epoch ms."""
    usual_ms: float
    """Mean interval of the symbol's rows; 0 if there is only one."""


ReadNewest = Callable[[Collection[int]], Coroutine[Any, Any, Mapping[int, Mapping[str, Newest]]]]
"""Returns the newest rows by symbol of each of these partitions, from the newest part of `windows`."""


class Takeovers:
    """What is known of symbols in partitions that were taken over lately. Partitions in `waiting` are not looked up yet, so their symbols must wait."""

    def __init__(self, read: ReadNewest | None, now_ms: Callable[[], int]) -> None:
        self._read, self._now_ms = read, now_ms
        self._held: frozenset[int] = frozenset()
        self._newest: dict[int, tuple[int, Mapping[str, Newest]]] = {}
        """By partition: until when it is valid, and the rows."""
        self.waiting: set[int] = set()

    def assign(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions."""
        held = frozenset(partitions)
        if self._read is not None:
            self.waiting = (self.waiting | (held - self._held)) & held
        for partition in self._newest.keys() - held:
            del self._newest[partition]
        self._held = held

    async def look_up(self) -> bool:
        """Reads the newest rows of the waiting partitions. Returns whether there were any; afterwards they wait no longer, whatever happened."""
        partitions = frozenset(self.waiting)
        if not partitions or self._read is None:
            return False
        found: Mapping[int, Mapping[str, Newest]] = {}
        try:
            found = await within(TAKEOVER_S, self._read(sorted(partitions)), "reading them")
        except FencedError:
            raise
        except Exception as error:  # noqa: BLE001  a gap that is not on record must not keep ticks away
            text = "the newest windows of %d partitions could not be read, so the gap before this takeover is not on record: %s"
            logger.warning(text, len(partitions), reason_of(error))
        until = self._now_ms() + VALID_MS
        self._newest |= {partition: (until, rows) for partition, rows in found.items() if partition in self._held}
        self.waiting -= partitions
        return True

    def newest(self, partition: int, symbol: str) -> Newest | None:
        """The newest row of a symbol, if its partition was taken over lately."""
        until, rows = self._newest.get(partition, (0, {}))
        if self._now_ms() >= until:
            self._newest.pop(partition, None)
            return None
        return rows.get(symbol)

"""The most notices of a route in a minute, and what becomes of the others."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from stockstream.records import Alert
from stockstream.sinks.notify.notices import Notice, summary

MINUTE_S = 60.0
NAMED = 20
"""How many symbols a summary's JSON names."""


class Allowance:
    """Counts notices in windows of a minute, each of which begins with its first notice.

    Args:
        limit: notices in a window; 0: any number.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._began = float("-inf")
        self._used = 0

    def take(self, now_s: float) -> bool:
        """Whether one more may be sent; it then counts. `now_s` is monotonic."""
        if not self.limit:
            return True
        if self.is_over(now_s):
            self._began, self._used = now_s, 0
        if self._used >= self.limit:
            return False
        self._used += 1
        return True

    def is_over(self, now_s: float) -> bool:
        """Whether the window has ended."""
        return now_s >= self._began + MINUTE_S


class Held(msgspec.Struct, frozen=True):
    """Changes of one partition that go into the next summary. `first` is the offset of the first, times are epoch ms."""

    first: int
    count: int
    critical: int
    symbols: list[str]
    first_ms: int
    last_ms: int


def held_with(held: Held | None, offset: int, alert: Alert) -> Held:
    """`held` and one change more."""
    critical = int(alert.severity == "critical")
    if held is None:
        return Held(offset, 1, critical, [alert.symbol], alert.as_of, alert.as_of)
    named = held.symbols if alert.symbol in held.symbols or len(held.symbols) >= NAMED else [*held.symbols, alert.symbol]
    return Held(held.first, held.count + 1, held.critical + critical, named, min(held.first_ms, alert.as_of), max(held.last_ms, alert.as_of))


def summary_of(route: str, held: Sequence[tuple[int, Held]]) -> Notice:
    """The summary of what partitions hold: (number, held). Its key follows from the first of them."""
    number, first = min(held, key=lambda each: (each[0], each[1].first))
    symbols = list(dict.fromkeys(symbol for _, each in held for symbol in each.symbols))[:NAMED]
    return summary(
        f"more-{route}-{number}-{first.first}", sum(each.count for _, each in held), sum(each.critical for _, each in held), symbols,
        min(each.first_ms for _, each in held), max(each.last_ms for _, each in held),
    )  # fmt: skip

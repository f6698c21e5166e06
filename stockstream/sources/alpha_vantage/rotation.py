"""Which symbol the next request is spent on, and when. Pure functions.

A symbol that was never requested is requested at once. After that a day's requests are spread evenly over the hours in which its symbols are traded, and each
goes to the symbol whose last request is longest ago. Without a limit per day, a request is due as soon as the other limits allow it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import NamedTuple

CLOSING_LOOK_MS = 30 * 60_000
"""The hours end this long after the close, so that the last request brings the closing price, delayed quotes included."""
LAST_MS = 60_000
"""The last request of a day is due this long before the hours end."""
YIELD_MS = 3_000
"""A worker leaves a request for this long to another worker with a symbol that has waited longer."""


class Hours(NamedTuple):
    """A time in which a market is traded, epoch ms."""

    opens: int
    closes: int


@dataclass(frozen=True, slots=True)
class Choice:
    """The symbols to request next, and when (epoch ms). No symbols: nothing is due as long as nothing changes."""

    symbols: tuple[str, ...] = ()
    due: int = 0


def choose(
    symbols: Collection[str], asked: Mapping[str, int], now: int, hours: Callable[[str], Hours | None], *, left: int | None, newest: int, at_once: int = 1,
) -> Choice:  # fmt: skip
    """The next request of a worker.

    Args:
        symbols: of this worker.
        asked: by symbol, also of other workers: when it was last requested, epoch ms.
        now: epoch ms.
        hours: the hours of a symbol's market that contain `now`, or ended less than CLOSING_LOOK_MS ago; None while it is closed.
        left: requests left today; None without a limit per day.
        newest: when a worker last made a request, epoch ms; 0 if never.
        at_once: symbols per request.
    """
    if not symbols or left == 0:
        return Choice()
    new = sorted(symbol for symbol in symbols if symbol not in asked)
    if new:
        return Choice(tuple(new[:at_once]), now)
    traded = {symbol: found for symbol in symbols if (found := hours(symbol)) is not None}
    if not traded:
        return Choice()
    waiting = sorted(traded, key=lambda symbol: (asked[symbol], symbol))
    if left is None:
        return Choice(tuple(waiting[:at_once]), now)
    start = max(newest, min(found.opens for found in traded.values()))
    end = max(found.closes for found in traded.values()) + CLOSING_LOOK_MS - LAST_MS
    due = start + max(0, end - start) // left
    if any(at < asked[waiting[0]] for symbol, at in asked.items() if symbol not in symbols):
        due += YIELD_MS
    return Choice(tuple(waiting[:at_once]), due)

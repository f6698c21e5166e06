"""Finds the gaps in a source's ticks. Pure: it knows event times, the reasons that it is given, and the sessions; it has no clock and sends nothing.

A gap begins at a symbol's newest tick before it, or at the beginning of the session if nothing is missing before that, and ends with the tick after it. If
only the end of an earlier session is missing, it ends with that session.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from stockstream.records import GapReason
from stockstream.transforms.cleaning.limits import MIN_TIME

LEAST_SILENT_MS, SILENT_INTERVALS = 60_000, 20
"""In an open session, a pause of more than a minute and of more than 20 of the symbol's usual intervals is a gap."""
LEAST_AWAY_MS, AWAY_INTERVALS = 2_000, 2
"""If the feed is known to have been away, a pause of more than 2 s and of more than two usual intervals is a gap: in a shorter one nothing is missing."""
NEWEST_SHARE = 0.1
"""Weight of the newest interval in the usual one."""
MOST_AHEAD_MS = 86_400_000
"""A tick further ahead of the worker's clock, or from before 1990, has a wrong time: `clean` rejects it, so it counts as none."""
LONGEST_INTERVAL_MS = 300_000
"""Longer pauses, such as nights, count as this much in the usual interval."""
MOST_DELAYED_MS = 20 * 60_000
"""Feeds of delayed exchanges are at most so far behind the clock."""
TRADED = ("pre", "regular", "post")


class SessionLike(Protocol):
    """A session of an exchange: `state` is one of pre, regular, post, closed, holiday, always, unknown; times are epoch ms, null where unknown."""

    @property
    def state(self) -> str: ...
    @property
    def since(self) -> int | None: ...
    @property
    def until(self) -> int | None: ...


SessionAt = Callable[[str, int], SessionLike]
"""Returns the session of an exchange, by its code, at a time in epoch ms. Never waits: while it has no answer yet, the session is unknown."""
SessionOf = Callable[[str, int], SessionLike | None]
"""Returns the session of a symbol at a time in epoch ms; None if its exchange is not known."""


class Missed(NamedTuple):
    """A time in which ticks may be missing, found with the tick after it. Event times in epoch ms; it ends with that tick if `end` is None."""

    start: int
    reason: GapReason
    end: int | None = None


@dataclass(slots=True)
class Seen:
    """The newest confirmed tick of a symbol."""

    last: int
    """Its event time, epoch ms."""
    arrived: int
    """When it was confirmed, epoch ms by the worker's clock. Older ticks that come again do not count."""
    usual_ms: float = 0.0
    """The usual time between two ticks; 0 if not known."""
    missing: GapReason | None = None
    """Why ticks after it may be missing."""
    missing_since: int | None = None
    """Since when, epoch ms by the worker's clock; None if that is not known."""

    @property
    def silent_ms(self) -> float:
        """How long the symbol may be silent before that is a gap."""
        return max(LEAST_SILENT_MS, SILENT_INTERVALS * self.usual_ms)


class GapTracker:
    """The newest ticks of a source's symbols, and the gaps that follow from the next ones.

    `find` changes nothing, so that a batch that was not delivered leaves no trace; `confirm` takes a delivered batch into account.

    Args:
        continuous: whether the source's ticks come by themselves, so that silence in an open session is a gap.
        session_of: returns the session of a symbol at an event time.
    """

    def __init__(self, continuous: bool, session_of: SessionOf = lambda symbol, ms: None) -> None:
        self._continuous, self._session_of = continuous, session_of
        self._seen: dict[str, Seen] = {}

    def seen(self, symbol: str) -> Seen | None:
        """The newest tick of a symbol, if there is one."""
        return self._seen.get(symbol)

    def find(self, symbols: Sequence[str], times: Sequence[int], now: int | None = None) -> Mapping[int, Missed]:
        """The gaps before these ticks, by the tick's place among them. `now`: epoch ms by the worker's clock, to leave out ticks with a wrong time."""
        found: dict[int, Missed] = {}
        newest: dict[str, int] = {}
        for place, (symbol, time) in enumerate(zip(symbols, times, strict=True)):
            seen = self._seen.get(symbol)
            if seen is None:
                continue
            last = newest.get(symbol)
            missing = seen.missing if last is None else None
            before = seen.last if last is None else last
            if time <= before or not _is_time(time, now):
                continue
            newest[symbol] = time
            if time - before > LEAST_AWAY_MS and (missed := self._judge(symbol, seen, missing, before, time)) is not None:
                found[place] = missed
        return found

    def _judge(self, symbol: str, seen: Seen, missing: GapReason | None, before: int, time: int) -> Missed | None:
        away_ms = max(LEAST_AWAY_MS, AWAY_INTERVALS * seen.usual_ms)
        if time - before <= (away_ms if missing is not None else seen.silent_ms):
            return None
        if missing is not None:
            since = before if seen.missing_since is None else seen.missing_since - min(max(seen.arrived - seen.last, 0), MOST_DELAYED_MS)
            if (found := absence(before, time, away_ms, since, lambda ms: self._session_of(symbol, ms))) is not None:
                return Missed(found[0], missing, found[1])
        session = self._session_of(symbol, time)
        state = session.state if session is not None else "unknown"
        opened = session.since if session is not None and state in TRADED else None
        start = before if opened is None else max(before, opened)
        if self._continuous and state in ("regular", "always") and time - start > seen.silent_ms:
            return Missed(start, "silent")
        return None

    def confirm(self, symbols: Sequence[str], times: Sequence[int], now: int) -> None:
        """Takes ticks into account that the broker has confirmed. `now`: epoch ms by the worker's clock."""
        for symbol, time in zip(symbols, times, strict=True):
            if not _is_time(time, now):
                continue
            seen = self._seen.get(symbol)
            if seen is None:
                self._seen[symbol] = Seen(time, now)
                continue
            pause = time - seen.last
            if pause > 0:
                seen.arrived = now
                if seen.missing is None:
                    pause = min(pause, LONGEST_INTERVAL_MS)
                    seen.usual_ms += NEWEST_SHARE * (pause - seen.usual_ms) if seen.usual_ms else pause
                seen.last, seen.missing = time, None

    def interrupt(self, reason: GapReason, symbols: Collection[str] | None = None, since: int | None = None) -> None:
        """Records that ticks of these symbols may be missing; of all symbols if None. An earlier reason stays until a tick comes.

        `since`: epoch ms by the worker's clock; None if it is not known.
        """
        for symbol in self._seen.keys() if symbols is None else symbols:
            seen = self._seen.get(symbol)
            if seen is not None and seen.missing is None:
                seen.missing, seen.missing_since = reason, since

    def restore(self, symbol: str, last: int, usual_ms: float, now: int) -> None:
        """Takes over a symbol from another worker, whose newest tick was at `last`. Does nothing if a newer one is known."""
        seen = self._seen.get(symbol)
        if seen is None or seen.last < last:
            self._seen[symbol] = Seen(last, now, usual_ms, "worker_away")

    def keep(self, symbols: Collection[str]) -> None:
        """Forgets all other symbols."""
        for symbol in [symbol for symbol in self._seen if symbol not in symbols]:
            del self._seen[symbol]


def absence(before: int, time: int, away_ms: float, since: int, session_at: Callable[[int], SessionLike | None]) -> tuple[int, int | None] | None:
    """Begin and end of the time in which ticks are missing, if a feed was away between two ticks; None if none are, an end of None is the second tick.

    Args:
        before, time: event times of the two ticks.
        away_ms: a shorter pause misses nothing.
        since: when the feed went away, as an event time.
        session_at: the session of the symbol's exchange at an event time.
    """
    session = session_at(time)
    opened = session.since if session is not None and session.state in TRADED else None
    if opened is None or opened <= before:
        return (before, None) if time - before > away_ms else None
    earlier = session_at(before)
    closed = earlier.until if earlier is not None and earlier.state in TRADED else None
    cut = closed is not None and since < closed <= opened and closed - before > away_ms
    if time - opened > away_ms:
        return before if cut else opened, None
    return (before, closed) if cut else None


def _is_time(time: int, now: int | None) -> bool:
    return time >= MIN_TIME and (now is None or time <= now + MOST_AHEAD_MS)

"""The state of each watched symbol's feed, and which of them are due to be published. Pure: times are given, in epoch ms by the worker's clock."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from stockstream.records import Feed, FeedState
from stockstream.sources.base import FeedNote
from stockstream.sources.gaps import Seen, SessionLike
from stockstream.wording import utc_time

LEAST_PAUSE_MS = 10_000
"""A symbol's state is published at most this often."""
FIRST_MS = 3_000
"""A symbol that waits for its first tick is published after this long, so that its next state need not wait."""
REFRESH_MS = 60_000
"""A state that does not change is published again after this long."""


OF_THE_PROVIDER: frozenset[FeedState] = frozenset(("rate_limited", "not_permitted", "unknown_symbol"))
"""Notes that explain more than that the source fails."""


def feed_state(now: int, seen: Seen | None, session: SessionLike | None, note: FeedNote | None = None, failure: str | None = None) -> tuple[FeedState, str]:
    """The state of a symbol's feed and its reason, empty where there is nothing to explain.

    Args:
        now: epoch ms.
        seen: its newest confirmed tick.
        session: the present session of its exchange, if that is known.
        note: what the source knows about it.
        failure: why the source fails, None if it runs.
    """
    if failure is not None and (note is None or note.state not in OF_THE_PROVIDER):
        return "failed", failure
    if note is not None and note.state is not None:
        return note.state, note.reason
    closed = session is not None and session.state in ("closed", "holiday")
    before_close = closed and session is not None and session.since is not None and seen is not None and seen.last < session.since
    if seen is not None and seen.missing is None and now - seen.arrived <= seen.silent_ms and not before_close:
        return "fresh", ""
    if session is not None and closed:
        return "holiday" if session.state == "holiday" else "closed", f"the exchange opens at {utc_time(session.until)}" if session.until else ""
    if seen is None:
        return "waiting", "no tick yet"
    if now - seen.arrived <= seen.silent_ms:
        return "waiting", f"no tick since it resumed; the last one was at {utc_time(seen.last)}"
    return "quiet", f"no tick since {utc_time(seen.last)}"


@dataclass(slots=True)
class _Entry:
    """The state of one symbol; `written` is when it was last published."""

    state: FeedState
    reason: str
    since: int
    last: int | None
    changed: bool = True
    written: int | None = None


def _is_due(entry: _Entry, now: int) -> bool:
    if entry.written is None:
        return entry.state != "waiting" or now - entry.since >= FIRST_MS
    return now - entry.written >= (LEAST_PAUSE_MS if entry.changed else REFRESH_MS)


class FeedBoard:
    """The states of the symbols that a source reads on this worker."""

    def __init__(self, source: str) -> None:
        self._source = source
        self._entries: dict[str, _Entry] = {}

    def set(self, symbol: str, state: FeedState, reason: str, last: int | None, now: int) -> None:
        """Records the present state of a symbol; `last` is the event time of its newest tick."""
        entry = self._entries.get(symbol)
        if entry is None:
            self._entries[symbol] = _Entry(state, reason, now, last)
            return
        if entry.state != state:
            entry.since = now
        if (entry.state, entry.reason) != (state, reason):
            entry.state, entry.reason, entry.changed = state, reason, True
        entry.last = last

    def due(self, worker: str, now: int) -> list[Feed]:
        """The records that must be written now. Those that are written must be reported to `written`."""
        return [
            Feed(
                symbol=symbol, source=self._source, worker=worker, state=entry.state, reason=entry.reason, since=entry.since,
                last_event_time=entry.last, at=now,
            )
            for symbol, entry in self._entries.items()
            if _is_due(entry, now)
        ]  # fmt: skip

    def written(self, feeds: Sequence[Feed]) -> None:
        """Records that the broker has confirmed these."""
        for feed in feeds:
            entry = self._entries.get(feed.symbol)
            if entry is not None:
                entry.written = feed.at
                entry.changed = (entry.state, entry.reason) != (feed.state, feed.reason)

    def keep(self, symbols: Collection[str]) -> None:
        """Forgets all other symbols."""
        for symbol in [symbol for symbol in self._entries if symbol not in symbols]:
            del self._entries[symbol]

    def counts(self) -> dict[FeedState, int]:
        """How many symbols are in each state that occurs."""
        found: dict[FeedState, int] = {}
        for entry in self._entries.values():
            found[entry.state] = found.get(entry.state, 0) + 1
        return found

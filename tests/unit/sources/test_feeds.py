from __future__ import annotations

from dataclasses import dataclass

import pytest

from stockstream.sources.base import FeedNote, FeedState
from stockstream.sources.feeds import FIRST_MS, LEAST_PAUSE_MS, REFRESH_MS, FeedBoard, feed_state
from stockstream.sources.gaps import Seen

NOW = 1_800_000_000_000


@dataclass
class Session:
    state: str
    since: int | None = None
    until: int | None = None


RECENT, OLD = Seen(NOW - 1_000, NOW - 900, 1_000.0), Seen(NOW - 120_000, NOW - 119_000, 1_000.0)
SLOW = Seen(NOW - 120_000, NOW - 119_000, 10_000.0)
MISSING = Seen(NOW - 5_000, NOW - 4_900, 1_000.0, "source_away")
REGULAR, CLOSED, HOLIDAY = Session("regular"), Session("closed", None, NOW + 3_600_000), Session("holiday")


@pytest.mark.parametrize(("seen", "session", "note", "failure", "state", "reason"), [
    (None, None, None, None, "waiting", "no tick yet"),
    (RECENT, None, None, None, "fresh", ""),
    (RECENT, CLOSED, None, None, "fresh", ""),
    (SLOW, REGULAR, None, None, "fresh", ""),
    (RECENT, Session("closed", NOW - 500, NOW + 3_600_000), None, None, "closed", "the exchange opens at 2027-01-15 09:00:00 UTC"),
    (RECENT, Session("closed", NOW - 2_000, NOW + 3_600_000), None, None, "fresh", ""),
    (RECENT, REGULAR, FeedNote(state="rate_limited", reason="spent"), "spent", "rate_limited", "spent"),
    (OLD, REGULAR, None, None, "quiet", "no tick since 2027-01-15 07:58:00 UTC"),
    (OLD, None, None, None, "quiet", "no tick since 2027-01-15 07:58:00 UTC"),
    (OLD, CLOSED, None, None, "closed", "the exchange opens at 2027-01-15 09:00:00 UTC"),
    (None, CLOSED, None, None, "closed", "the exchange opens at 2027-01-15 09:00:00 UTC"),
    (OLD, HOLIDAY, None, None, "holiday", ""),
    (MISSING, REGULAR, None, None, "waiting", "no tick since it resumed; the last one was at 2027-01-15 07:59:55 UTC"),
    (RECENT, REGULAR, FeedNote(state="halted", reason="news"), None, "halted", "news"),
    (RECENT, REGULAR, FeedNote(exchange="NMS"), None, "fresh", ""),
    (RECENT, REGULAR, FeedNote(state="fresh"), "no answer", "failed", "no answer"),
    (None, CLOSED, FeedNote(state="unknown_symbol", reason="Yahoo does not know it"), None, "unknown_symbol", "Yahoo does not know it"),
])  # fmt: skip
def test_the_state_of_a_feed(
    seen: Seen | None, session: Session | None, note: FeedNote | None, failure: str | None, state: FeedState, reason: str
) -> None:  # fmt: skip
    assert feed_state(NOW, seen, session, note, failure) == (state, reason)


def test_a_change_is_published_after_ten_seconds_and_the_same_state_after_a_minute() -> None:
    board, published = FeedBoard("feed"), []
    for second in range(200):
        now = NOW + second * 1000
        state: FeedState = "fresh" if second < 100 or second >= 104 else "quiet"
        board.set("A", state, "", now, now)
        due = board.due("here:1:2", now)
        board.written(due)
        published += [(second, feed.state, (feed.since - NOW) // 1000) for feed in due]
        assert all((feed.source, feed.worker, feed.last_event_time, feed.at) == ("feed", "here:1:2", now, now) for feed in due)
    assert published == [(0, "fresh", 0), (60, "fresh", 0), (100, "quiet", 100), (110, "fresh", 104), (170, "fresh", 104)]
    assert (LEAST_PAUSE_MS, REFRESH_MS) == (10_000, 60_000)


def test_what_is_not_confirmed_stays_due() -> None:
    board = FeedBoard("feed")
    board.set("A", "waiting", "no tick yet", None, NOW - FIRST_MS)
    assert board.due("w", NOW - 1) == []
    due = board.due("w", NOW)
    board.set("A", "fresh", "", NOW, NOW)                                # between sending and confirmation
    assert [feed.state for feed in board.due("w", NOW)] == ["fresh"]
    board.written(due)
    assert board.due("w", NOW + LEAST_PAUSE_MS - 1) == []
    assert [feed.state for feed in board.due("w", NOW + LEAST_PAUSE_MS)] == ["fresh"]
    board.keep(())
    assert board.due("w", NOW + LEAST_PAUSE_MS) == [] and board.counts() == {}

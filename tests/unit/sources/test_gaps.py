from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.sources.gaps import LONGEST_INTERVAL_MS, GapTracker, Missed

OPEN_S = 1_750_000_000
BASE = OPEN_S * 1000


@dataclass
class Session:
    state: str
    since: int | None = None
    until: int | None = None


class Scene:
    """A tracker of one symbol with a tick each `every_s` seconds up to second 600; times are given in seconds."""

    def __init__(self, session: Session | None, every_s: float = 1.0, *, continuous: bool = True) -> None:
        self.tracker = GapTracker(continuous, lambda symbol, ms: session)
        for number in range(int(600 / every_s)):
            self.confirm(OPEN_S + number * every_s)
        self.last = OPEN_S + (int(600 / every_s) - 1) * every_s

    def confirm(self, second: float) -> None:
        self.tracker.confirm(["A"], [int(second * 1000)], int(second * 1000))

    def after(self, pause_s: float) -> Missed | None:
        """The gap that a tick would end that comes so long after the last one."""
        return self.tracker.find(["A"], [int((self.last + pause_s) * 1000)]).get(0)


REGULAR = Session("regular", OPEN_S * 1000)


@pytest.mark.parametrize(("every_s", "pause_s", "found"), [(1, 60, False), (1, 61, True), (10, 190, False), (10, 205, True), (0.1, 61, True)])
def test_silence_in_an_open_session_is_a_gap_by_the_symbols_own_pace(every_s: float, pause_s: float, found: bool) -> None:
    scene = Scene(REGULAR, every_s)
    assert scene.after(pause_s) == (Missed(int(scene.last * 1000), "silent") if found else None)


@pytest.mark.parametrize("session", [None, Session("unknown"), Session("closed", 0), Session("holiday", 0), Session("pre", 0), Session("post", 0)])
def test_silence_is_no_gap_where_no_session_is_open(session: Session | None) -> None:
    assert Scene(session).after(4_000) is None


def test_silence_of_a_polled_source_is_no_gap() -> None:
    assert Scene(REGULAR, continuous=False).after(4_000) is None


def test_a_market_that_never_closes_is_always_open() -> None:
    scene = Scene(Session("always"))
    assert scene.after(4_000) == Missed(int(scene.last * 1000), "silent")


def test_a_night_is_no_gap_and_the_time_since_the_opening_is_one() -> None:
    scene = Scene(REGULAR)
    opened = int(scene.last + 60_000) * 1000
    scene.tracker = GapTracker(True, lambda symbol, ms: Session("regular", opened))
    scene.confirm(scene.last)
    assert scene.after(60_030) is None
    assert scene.after(60_090) == Missed(opened, "silent")
    scene.tracker.interrupt("source_away")
    assert scene.after(60_001) is None and scene.after(60_030) == Missed(opened, "source_away")


DAYS = [Session("regular", BASE + day * 86_400_000, BASE + day * 86_400_000 + 23_400_000) for day in range(3)]
CLOSE, OPENING = DAYS[0].until or 0, DAYS[1].since or 0


def session_at(ms: int) -> Session:
    return next((day for day in DAYS if day.since <= ms < day.until), Session("closed", CLOSE, OPENING))  # type: ignore[operator]


@pytest.mark.parametrize(("last", "since", "time", "found"), [
    (CLOSE - 300_000, CLOSE - 299_000, OPENING + 1_000, Missed(CLOSE - 300_000, "source_away", CLOSE)),                 # nothing is missing of the new day
    (CLOSE - 300_000, None, OPENING + 1_000, Missed(CLOSE - 300_000, "source_away", CLOSE)),
    (CLOSE - 300_000, CLOSE - 299_000, OPENING + 60_000, Missed(CLOSE - 300_000, "source_away")),                       # of both days
    (CLOSE - 300_000, CLOSE + 3_600_000, OPENING + 1_000, None),                                                        # it went away at night
    (CLOSE - 300_000, CLOSE + 3_600_000, OPENING + 60_000, Missed(OPENING, "source_away")),
    (CLOSE - 1_000, CLOSE - 900, OPENING + 1_000, None),
    (CLOSE - 300_000, CLOSE - 299_000, CLOSE - 200_000, Missed(CLOSE - 300_000, "source_away")),
])  # fmt: skip
def test_an_absence_before_the_close_is_on_record_and_the_night_is_not(last: int, since: int | None, time: int, found: Missed | None) -> None:
    tracker = GapTracker(True, lambda symbol, ms: session_at(ms))
    tracker.confirm(["A"], [last], last)
    tracker.interrupt("source_away", since=since)
    assert tracker.find(["A"], [time], time).get(0) == found


def test_a_tick_with_a_wrong_time_ends_no_gap() -> None:
    tracker = GapTracker(True)
    tracker.confirm(["A"], [BASE], BASE)
    tracker.interrupt("source_away")
    assert tracker.find(["A", "A"], [BASE + 10 * 86_400_000, BASE + 9_000], BASE + 9_000) == {1: Missed(BASE, "source_away")}


@pytest.mark.parametrize(("every_s", "pause_s", "found"), [(1, 1, False), (1, 2, False), (1, 2.5, True), (0.1, 2.1, True), (10, 15, False), (10, 21, True)])
@pytest.mark.parametrize("session", [None, Session("closed", 0), REGULAR])
def test_after_an_absence_more_than_two_usual_intervals_are_a_gap(session: Session | None, every_s: float, pause_s: float, found: bool) -> None:
    for continuous in (True, False):
        scene = Scene(session, every_s, continuous=continuous)
        scene.tracker.interrupt("source_away")
        assert scene.after(pause_s) == (Missed(int(scene.last * 1000), "source_away") if found else None)


def test_the_first_reason_stays_until_a_tick_is_confirmed() -> None:
    scene = Scene(REGULAR)
    scene.tracker.interrupt("halted", ["A", "unknown"])
    scene.tracker.interrupt("source_away")
    assert scene.after(30) == scene.after(30) == Missed(int(scene.last * 1000), "halted")
    scene.confirm(scene.last - 5)                                        # an old tick shows nothing
    assert scene.after(30) is not None
    scene.confirm(scene.last + 30)
    scene.last += 30
    assert scene.after(30) is None


def test_in_one_batch_only_the_first_tick_after_the_gap_ends_it() -> None:
    tracker = GapTracker(True)
    tracker.confirm(["A", "B"], [BASE, BASE], BASE)
    tracker.interrupt("source_away")
    found = tracker.find(["C", "A", "B", "A", "A"], [BASE + 9_000, BASE - 900, BASE + 9_000, BASE + 9_000, BASE + 10_000])
    assert found == {2: Missed(BASE, "source_away"), 3: Missed(BASE, "source_away")}


def test_a_symbol_taken_over_has_a_gap_since_its_newest_row() -> None:
    tracker = GapTracker(True)
    now = BASE + 3_001
    tracker.restore("A", BASE, 1_000.0, now)
    tracker.restore("B", BASE, 10_000.0, now)
    assert tracker.find(["A", "B"], [now, now]) == {0: Missed(BASE, "worker_away")}
    tracker.confirm(["A"], [now], now)
    tracker.restore("A", BASE, 1_000.0, now)
    assert tracker.find(["A"], [now + 900]) == {}


def test_an_old_tick_that_comes_again_makes_no_feed_fresh() -> None:
    tracker = GapTracker(True)
    tracker.confirm(["A"], [BASE], BASE)
    for again in (BASE, BASE - 5_000):
        tracker.confirm(["A"], [again], BASE + 3_600_000)
    assert (seen := tracker.seen("A")) is not None and seen.arrived == BASE


def test_what_is_not_kept_is_forgotten() -> None:
    tracker = GapTracker(True)
    tracker.confirm(["A", "B"], [BASE, BASE], BASE)
    tracker.keep({"B"})
    assert tracker.seen("A") is None and tracker.seen("B") is not None


@given(st.lists(st.integers(1, 10_000_000), max_size=30))
def test_the_usual_interval_is_bounded_and_of_the_size_of_the_intervals(pauses: list[int]) -> None:
    tracker, time = GapTracker(True), BASE
    tracker.confirm(["A"], [time], time)
    for pause in pauses:
        time += pause
        tracker.confirm(["A"], [time], time)
    seen = tracker.seen("A")
    bounded = [min(pause, LONGEST_INTERVAL_MS) for pause in pauses]
    assert seen is not None and seen.last == time
    assert min(bounded, default=0) - 1e-6 <= seen.usual_ms <= max(bounded, default=0) + 1e-6


@given(st.lists(st.tuples(st.sampled_from("AB"), st.integers(0, 200_000)), max_size=40), st.booleans())
def test_finding_changes_nothing_and_a_gap_lies_before_its_tick(ticks: list[tuple[str, int]], away: bool) -> None:
    tracker = GapTracker(True, lambda symbol, ms: Session("always"))
    ticks = [(symbol, BASE + time) for symbol, time in ticks]
    tracker.confirm(["A", "B"], [BASE + 50_000, BASE + 50_000], BASE)
    if away:
        tracker.interrupt("source_away")
    symbols, times = [symbol for symbol, _ in ticks], [time for _, time in ticks]
    found = tracker.find(symbols, times)
    assert found == tracker.find(symbols, times)
    for place, missed in found.items():
        assert BASE + 50_000 <= missed.start < times[place]
        assert all(time <= missed.start for symbol, time in ticks[:place] if symbol == symbols[place])


def test_a_tick_with_a_wrong_time_counts_as_none() -> None:
    tracker = GapTracker(True, lambda symbol, ms: Session("always"))
    tracker.confirm(["A"], [BASE], BASE)
    for wrong in (OPEN_S, BASE * 1000, 0, BASE + 2 * 86_400_000):
        tracker.confirm(["A", "B"], [wrong, wrong], BASE)
    assert (seen := tracker.seen("A")) is not None and seen.last == BASE and tracker.seen("B") is None

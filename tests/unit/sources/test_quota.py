from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.budgets import PERIOD_MS, Limits, LogEntry
from stockstream.sources.quota import DAILY_PAUSE_MS, BudgetSpent, Grant, Ledger, MemoryRequestLog, Refusal, Scheduler, day_end, day_of
from tests.contracts.source import FakeClock

NOON = round(datetime(2026, 11, 30, 17, tzinfo=UTC).timestamp() * 1000)
"""12:00 in New York."""
DAY = 86_400_000


def scheduler(budget: str, clock: FakeClock, entries: list[LogEntry] | None = None, worker: str = "one") -> Scheduler:
    return Scheduler("alpha_vantage", Limits.parse(budget), MemoryRequestLog(clock, entries), clock=clock, worker=worker)


async def spend(scheduler: Scheduler, most: int = 100) -> list[Grant]:
    """What is granted until the budget is spent."""
    found: list[Grant] = []
    try:
        while len(found) < most:
            found.append(await scheduler.acquire())
    except BudgetSpent:
        pass
    return found


async def test_a_days_requests_are_granted_once_over_restarts_and_workers() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    assert len(await spend(scheduler("1/s,25/d", clock, entries), 7)) == 7
    restarted, other = scheduler("1/s,25/d", clock, entries), scheduler("1/s,25/d", clock, entries, "two")
    granted = await asyncio.gather(spend(restarted), spend(other))
    assert sum(map(len, granted)) == 18 and all(granted)
    assert await spend(scheduler("1/s,25/d", clock, entries)) == []
    clock.ms = day_end(NOON)
    assert len(await spend(scheduler("1/s,25/d", clock, entries))) == 25


async def test_a_spent_day_gives_its_end_and_writes_nothing_more() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    one = scheduler("2/d", clock, entries)
    await spend(one)
    size = len(entries)
    with pytest.raises(BudgetSpent, match="all 2 requests of the day to alpha_vantage are spent, until 2026-12-01 05:00:00 UTC") as caught:
        await one.acquire()
    assert caught.value.until == day_end(NOON) and caught.value.retriable and len(entries) == size
    assert [(budget.per, budget.limit, budget.left, budget.resets_at) for budget in one.budgets()] == [("day", 2, 0, day_end(NOON))]


async def test_seconds_and_minutes_are_kept_by_all_workers_together() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    one, two = (scheduler("2/s,5/min,100/d", clock, entries, name) for name in ("one", "two"))
    slots = sorted(grant.slot for grants in await asyncio.gather(spend(one, 6), spend(two, 6)) for grant in grants)
    assert all(later - earlier >= PERIOD_MS["second"] for earlier, later in zip(slots, slots[2:], strict=False))
    assert all(later - earlier >= PERIOD_MS["minute"] for earlier, later in zip(slots, slots[5:], strict=False))
    assert len(slots) == 12


async def test_a_request_that_was_not_sent_is_given_back() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    one, two = scheduler("3/d", clock, entries), scheduler("3/d", clock, entries, "two")
    granted = await spend(one)
    await one.give_back(granted[0])
    assert [len(await spend(worker)) for worker in (two, one)] == [1, 0]


async def test_a_cancelled_wait_gives_the_request_back() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()

    class Stopped(FakeClock):
        async def sleep(self, seconds: float) -> None:
            await asyncio.Event().wait()

    one = Scheduler("alpha_vantage", Limits.parse("1/s,25/d"), MemoryRequestLog(clock, entries), clock=Stopped(NOON))
    await one.acquire()
    waiting = asyncio.create_task(one.acquire())
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert one.left_today == 24


@pytest.mark.parametrize(("refusal", "pauses"), [("burst", [2, 4, 8, 16, 32, 60, 60]), ("rate", [60, 120, 240]), ("unanswered", [15, 30, 60, 120])])
async def test_the_circuit_breaker_by_class_of_refusal(refusal: Refusal, pauses: Sequence[int]) -> None:
    clock = FakeClock(NOON)
    one = scheduler("1000/d", clock)
    for pause in pauses:
        await one.report(refusal)
        blocked = one.blocked()
        assert blocked is not None and blocked.until - clock.ms == pause * 1000
        clock.ms = blocked.until
        assert one.blocked() is None
    await one.report(None)
    await one.report(refusal, retry_after_s=33)
    blocked = one.blocked()
    assert blocked is not None and blocked.until - clock.ms == max(33, pauses[0]) * 1000


async def test_what_the_provider_reports_of_the_budget_holds_for_all_workers_and_after_restarts() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    one, two = scheduler("1/s,25/d", clock, entries), scheduler("1/s,25/d", clock, entries, "two")
    await one.acquire(["IBM"])
    await one.report("daily")
    for other in (two, scheduler("1/s,25/d", clock, entries, "three")):
        await other.refresh(0)
        assert other.left_today == 0
        with pytest.raises(BudgetSpent, match="reports that the day's requests are spent"):
            await other.acquire()
    clock.ms = NOON + DAILY_PAUSE_MS                                    # its day may begin at another time than ours
    assert two.left_today == 24 and await two.acquire()
    clock.ms = day_end(NOON) - 1_000
    await two.report("daily")
    clock.ms = day_end(NOON)
    assert two.left_today == 25 and await two.acquire()


async def test_no_answer_pauses_one_worker_only() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    one, two = scheduler("25/d", clock, entries), scheduler("25/d", clock, entries, "two")
    for _ in range(4):
        await one.report("unanswered", reason="it did not answer in time")
    with pytest.raises(BudgetSpent, match="alpha_vantage: it did not answer in time: the next request at 2026"):
        await one.acquire()
    assert await two.acquire()


async def test_a_week_of_requests_for_many_symbols_keeps_memory_flat() -> None:
    clock = FakeClock(NOON)
    one = scheduler("600/min", clock)
    symbols = [f"S{number}" for number in range(1_000)]
    for number in range(5_000):
        await one.acquire(symbols[number % 10 * 100 :][:100])
        clock.ms += 120_000
    assert len(one._ledger._newest) + len(one._ledger._asked) + sum(map(len, one._ledger._days.values())) < 1_500
    assert one.asked().keys() == set(symbols) and one._log._entries is None  # type: ignore[attr-defined]


async def test_a_request_that_is_given_back_leaves_its_symbols_as_they_were() -> None:
    clock = FakeClock(NOON)
    one = scheduler("25/d", clock)
    await one.acquire(["IBM"])
    clock.ms += 1_000
    grant = await one.acquire(["IBM", "AAPL"])
    assert one.asked() == {"IBM": NOON + 1_000, "AAPL": NOON + 1_000}
    await one.give_back(grant)
    await one.give_back(grant)
    assert one.asked() == {"IBM": NOON} and one.left_today == 24


async def test_without_a_limit_per_day_the_common_log_is_not_used() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    one = scheduler("75/min", clock, entries)
    assert len(await spend(one, 80)) == 80 and not entries and clock.ms >= NOON + 60_000 and one.left_today is None


async def test_what_was_requested_when_survives_a_restart() -> None:
    clock, entries = FakeClock(NOON), list[LogEntry]()
    await scheduler("1/s,25/d", clock, entries).acquire(["IBM", "AAPL"])
    two = scheduler("1/s,25/d", clock, entries)
    await two.refresh()
    assert two.asked() == {"IBM": NOON, "AAPL": NOON} and two.newest == NOON


def test_records_that_are_not_ours_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    ledger = Ledger("alpha_vantage")
    no_budget = b'{"source":"alpha_vantage","step":"request","id":"x","worker":"","budget":"a","at":1}'
    for offset, value in enumerate((b"", b"nonsense", b"{}", b"[]", b'{"other":' + b"[" * 100_000, no_budget)):
        assert ledger.apply(LogEntry(offset, NOON, value)) is None
    assert ledger.apply(LogEntry(9, NOON, entry("yahoo", "y"))) is None
    assert ledger.used(day_of(NOON)) == 0 and len(caplog.records) == 6


def entry(source: str, name: str, step: str = "request", budget: str = "1/s,5/d", until: int = 0) -> bytes:
    return msgspec.json.encode({"source": source, "step": step, "id": name, "worker": "w", "budget": budget, "until": until, "reason": "burst", "at": 0})


@given(st.lists(st.tuples(st.sampled_from(["request", "returned", "pause"]), st.integers(0, 20), st.integers(0, 40_000_000)), max_size=60))
def test_of_any_log_no_more_than_the_budget_is_granted(steps: list[tuple[str, int, int]]) -> None:
    entries = [LogEntry(at, NOON + ahead, entry("alpha_vantage", str(name), step, until=NOON + ahead + 5_000)) for at, (step, name, ahead) in enumerate(steps)]
    one, other = Ledger("alpha_vantage"), Ledger("alpha_vantage")
    granted = [one.apply(each) for each in entries]
    assert granted == [other.apply(each) for each in entries]
    for day in {grant.day for grant in granted if grant is not None}:
        assert one.used(day) <= 5
    slots = [grant.slot for grant in granted if grant is not None]
    assert all(later - earlier >= PERIOD_MS["second"] for earlier, later in pairwise(slots))


def test_a_providers_day_has_23_or_25_hours_when_the_clocks_change() -> None:
    spring, autumn = (round(datetime(2026, month, day, 5, tzinfo=UTC).timestamp() * 1000) for month, day in ((3, 8), (11, 1)))
    assert day_of(spring) == "2026-03-08" and day_end(spring) - spring == 23 * 3_600_000
    assert day_end(autumn) == autumn + 24 * 3_600_000 and day_of(autumn) == "2026-11-01"

"""Repairs: which gaps, which minutes, when, within which budget, and what happens when Yahoo or Kafka fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.budgets import Limits
from stockstream.errors import BrokerError, SourceError
from stockstream.records import Gap, Repair
from stockstream.sources.base import SourceUnavailable
from stockstream.sources.quota import MemoryRequestLog, Scheduler
from stockstream.sources.yahoo.repair import COMPLETE_MS, FIRST_RETRY_S, KEPT_MS, Repairer, minutes_of, of_yahoo
from tests.contracts.source import FakeClock

MINUTE = 60_000
T0 = 1_764_600_000_000 // MINUTE * MINUTE                                # 2025-12-01 14:40 UTC


@dataclass(frozen=True)
class Record:
    offset: int
    value: bytes | None


@dataclass
class Gaps:
    """The topic `gaps` in memory, with its committed offsets."""

    records: dict[int, list[Record]] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    down: bool = False

    def add(self, partition: int, **gap: Any) -> None:
        values = {"symbol": "AAPL", "source": "yahoo", "from": T0 + 5_000, "to": T0 + 5 * MINUTE + 3_000, "reason": "source_away"} | gap
        self.put(partition, json.dumps(values).encode())

    def put(self, partition: int, value: bytes | None) -> None:
        records = self.records.setdefault(partition, [])
        records.append(Record(len(records), value))

    async def poll(self, cursors: Mapping[int, int | None]) -> Mapping[int, Sequence[Record]]:
        if self.down:
            raise BrokerError("no broker answers")
        places = {number: self.committed.get(number, 0) if cursor is None else cursor for number, cursor in cursors.items()}
        return {number: found for number, place in places.items() if (found := self.records.get(number, [])[place:])}

    async def commit(self, offsets: Mapping[int, int]) -> None:
        if self.down:
            raise BrokerError("no broker answers")
        self.committed |= offsets


class Bars:
    """A bar of every minute, in place of `YahooQuery`."""

    def __init__(self, clock: FakeClock, limits: str = "1000/s,1000/d") -> None:
        self.quota = Scheduler("yahoo", Limits.parse(limits), MemoryRequestLog(clock), clock=clock)
        self.asked: list[tuple[str, int, int]] = []
        self.fail: Exception | None = None
        self.fails: set[str] = set()
        """Symbols of which no answer can be used."""

    async def bars(self, symbol: str, first: int, end: int) -> list[tuple[int, float, float, float, float, float]]:
        if self.fail is not None or symbol in self.fails:
            raise self.fail or SourceUnavailable("Yahoo reports an error (HTTP 500)")
        await self.quota.acquire([symbol])
        self.asked.append((symbol, first, end))
        return [(minute, 1.0, 2.0, 0.5, 1.5, 100.0) for minute in range(first, end, MINUTE)]


class Line:
    def __init__(self, limits: str = "1000/s,1000/d", gaps: Gaps | None = None) -> None:
        self.clock = FakeClock(T0 + 10 * MINUTE)
        self.gaps, self.query = gaps or Gaps(), Bars(self.clock, limits)
        self.sent: list[Repair] = []
        self.skipped: list[tuple[int, int, str]] = []
        self.fail: Exception | None = None
        self.repairer = Repairer(self.query, self.gaps, self._publish, lambda *what: self.skipped.append(what), self.clock)  # type: ignore[arg-type]

    async def _publish(self, repairs: Sequence[Repair]) -> None:
        if self.fail is not None:
            raise self.fail
        self.sent += repairs

    def step(self, times: int = 1) -> None:
        async def main() -> None:
            for _ in range(times):
                await self.repairer.step()

        asyncio.run(main())

    def run(self, seconds: float) -> None:
        async def main() -> None:
            task = asyncio.create_task(self.repairer.run())
            until = self.clock.now_ms() + seconds * 1000
            while self.clock.now_ms() < until and not task.done():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        asyncio.run(main())

    def minutes(self) -> list[int]:
        return [(repair.minute - T0) // MINUTE for repair in self.sent]


def gap(start: int, end: int) -> Gap:
    return Gap(symbol="A", source="yahoo", from_=start, to=end, reason="silent")


def test_a_gap_that_ends_in_the_future_keeps_nothing_from_being_committed() -> None:
    line = Line()
    line.gaps.add(0, to=T0 + 400 * 86_400_000)
    line.gaps.add(0)
    line.repairer.own([0])
    line.step(3)
    assert line.minutes() == [1, 2, 3, 4] and line.gaps.committed == {0: 2}
    assert line.skipped == [(0, 0, f"the gap ends in the future, at {T0 + 400 * 86_400_000}")]


def test_a_gap_that_always_fails_keeps_no_other_waiting() -> None:
    line = Line()
    line.query.fails = {"B"}
    for symbol in "BCD":
        line.gaps.add(0, symbol=symbol)
    line.repairer.own([0])
    line.run(60)
    assert {symbol for symbol, _, _ in line.query.asked} == {"C", "D"} and len(line.repairer._pending) == 1


@given(st.integers(0, 10 * MINUTE), st.integers(0, 10 * MINUTE))
def test_the_minutes_of_a_gap_lie_wholly_inside_it(start: int, length: int) -> None:
    found = minutes_of(gap(T0 + start, T0 + start + length), T0)
    if found is None:
        assert length < 2 * MINUTE
        return
    first, end = found
    assert T0 + start < first < end <= T0 + start + length and first % MINUTE == end % MINUTE == 0
    assert first - MINUTE <= T0 + start and end + MINUTE > T0 + start + length, "no minute is left out"


def test_what_yahoo_no_longer_has_is_left_out() -> None:
    now = T0 + KEPT_MS + 3 * MINUTE
    assert minutes_of(gap(T0, T0 + 10 * MINUTE), now) == (T0 + 3 * MINUTE, T0 + 10 * MINUTE)
    assert minutes_of(gap(T0, T0 + 2 * MINUTE), now) is None


@pytest.mark.parametrize(("source", "expected"), [
    ("yahoo", True), ("yahoo.LSE", True), ("yahoo_polling.AAPL", True), ("yahoo_polling", True), ("yahoo2", False), ("alpha_vantage", False),
])  # fmt: skip
def test_gaps_of_yahoos_sources_are_repaired(source: str, expected: bool) -> None:
    assert of_yahoo(source) is expected


def test_a_gap_is_repaired_once_it_is_complete_and_then_committed() -> None:
    line = Line()
    line.repairer.own([0, 1])
    line.gaps.add(0, symbol="BRK-B", source="yahoo.LSE")
    line.gaps.add(0, symbol="MSFT", source="simulated.1")
    line.gaps.add(1, to=T0 + 9 * MINUTE)
    line.step()
    assert {(repair.symbol, repair.source) for repair in line.sent} == {("BRK-B", "yahoo.LSE")} and line.minutes() == [1, 2, 3, 4]
    assert line.sent[0] == Repair(symbol="BRK-B", source="yahoo.LSE", minute=T0 + MINUTE, open=1.0, high=2.0, low=0.5, close=1.5, volume=100.0)
    assert line.gaps.committed == {0: 2, 1: 0}, "the gap of the other partition is too young"
    line.clock.ms = T0 + 9 * MINUTE + COMPLETE_MS
    line.step()
    assert line.gaps.committed == {0: 2, 1: 1} and line.minutes()[4:] == list(range(1, 9))
    line.step(3)
    assert len(line.query.asked) == 2


def test_what_cannot_be_used_is_counted_and_passed() -> None:
    line = Line()
    line.repairer.own([0])
    for value in (b"{", None, b'{"symbol": "A"}', b'{"symbol": "\xff"}', b'{"other": ' + b"[" * 100_000):
        line.gaps.put(0, value)
    line.gaps.add(0, symbol="a b c")
    line.query.fail = SourceError("Yahoo's chart has another shape than expected")
    line.step(2)
    assert [offset for _, offset, _ in line.skipped] == [0, 1, 2, 3, 4, 5] and line.gaps.committed == {0: 6}


def test_failures_wait_and_are_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    line = Line()
    line.repairer.own([0])
    line.gaps.add(0)
    line.query.fail = SourceUnavailable("Yahoo does not answer: down")
    line.run(2)
    line.query.fail, line.fail = None, BrokerError("no broker answers")
    line.run(4 * FIRST_RETRY_S)
    assert line.sent == [] and line.gaps.committed == {0: 0}
    line.fail = None
    line.gaps.down = True
    line.run(8 * FIRST_RETRY_S)
    line.gaps.down = False
    line.run(40 * FIRST_RETRY_S)
    assert line.minutes() == [1, 2, 3, 4] and line.gaps.committed == {0: 1}
    texts = [record.message for record in caplog.records]
    assert [text for text in texts if "Yahoo does not answer" in text] == ["yahoo: repairs wait: Yahoo does not answer: down"]


def test_a_quarter_of_the_day_is_left_to_quotes() -> None:
    line = Line("1000/s,8/d")
    line.repairer.own([0])
    for number in range(10):
        line.gaps.add(0, symbol=f"S{number}")
    line.step(20)
    assert len(line.query.asked) == 6 and line.gaps.committed == {0: 6}
    line.clock.ms += 86_400_000
    line.step(20)
    assert len(line.query.asked) == 10 and line.gaps.committed == {0: 10}


def test_a_partition_that_comes_back_is_read_from_its_commit() -> None:
    line = Line()
    line.repairer.own([0])
    line.gaps.add(0)
    line.gaps.add(0, symbol="MSFT", to=T0 + 9 * MINUTE)
    line.step()
    line.repairer.own([])
    line.step()
    line.repairer.own([0])
    line.clock.ms = T0 + 9 * MINUTE + COMPLETE_MS
    line.step(3)
    assert [symbol for symbol, _, _ in line.query.asked] == ["AAPL", "MSFT"]
    other = Line(gaps=line.gaps)
    other.repairer.own([0])
    other.step(3)
    assert other.query.asked == []

from __future__ import annotations

import logging
import time

import pytest

from stockstream import clock
from stockstream.kafka.outages import REMIND_S, Outage
from stockstream.logs import FIRST_SUMMARY_S, QUIET_S, Repeats, last_fault
from stockstream.transport.fence import Fence


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


@pytest.fixture
def reported(request: pytest.FixtureRequest) -> tuple[Lines, Clock]:
    lines, now = Lines(), Clock()
    lines.addFilter(Repeats(now=now))
    return lines, now


def log(handler: logging.Handler, name: str, level: int, text: str, *arguments: object) -> None:
    handler.handle(logging.LogRecord(name, level, __file__, 1, text, arguments, None))


def test_repeats_are_one_line_and_then_a_summary_at_growing_intervals(reported: tuple[Lines, Clock]) -> None:
    lines, now = reported
    for number in range(100_000):
        log(lines, "aiokafka.client", logging.ERROR, "Unable connect to node with id %s: %s", number % 3, OSError(111, f"refused {number}"))
        now.now += 2**-10                                                # adds up without rounding
    # 97 s: after the first one, at 10, 30 and 70 s
    assert [line.partition(" (and ")[2].partition(" more")[0] for line in lines.lines] == ["", "10239", "20479", "40959"]
    assert "refused" in last_fault()


def test_a_new_kind_is_never_hidden(reported: tuple[Lines, Clock]) -> None:
    lines, _ = reported
    for text in ("a fault of 'x'", "a fault of 'y'", "another fault", "a fault of 'z'"):
        log(lines, "aiokafka.client", logging.ERROR, text)
    log(lines, "aiokafka.client", logging.CRITICAL, "a fault of 'x'")
    log(lines, "aiokafka.conn", logging.ERROR, "a fault of 'x'")
    assert lines.lines == ["a fault of 'x'", "another fault", "a fault of 'x'", "a fault of 'x'"]


def test_after_a_quiet_time_a_kind_is_new_again(reported: tuple[Lines, Clock]) -> None:
    lines, now = reported
    for pause in (0.0, QUIET_S + FIRST_SUMMARY_S):
        now.now += pause
        log(lines, "aiokafka.client", logging.ERROR, "away")
    assert lines.lines == ["away", "away"]


def test_our_own_lines_pass_and_notices_of_libraries_do_not(reported: tuple[Lines, Clock]) -> None:
    lines, _ = reported
    for _ in range(3):
        log(lines, "stockstream.kafka.client", logging.INFO, "ours")
        log(lines, "faust.tables.recovery", logging.INFO, "a table")
        log(lines, "stockstream.transport", logging.INFO, "[^--Producer]: Starting...")
    assert lines.lines == ["ours"] * 3
    lines.filters = [Repeats(verbose=True)]
    log(lines, "faust.tables.recovery", logging.DEBUG, "a table")
    assert lines.lines[3:] == ["a table"]


def test_two_handlers_agree() -> None:
    one, other = Lines(), Lines()
    both = Repeats(now=Clock())
    one.addFilter(both)
    other.addFilter(both)
    for _ in range(2):
        record = logging.LogRecord("aiokafka.client", logging.ERROR, __file__, 1, "away", (), None)
        one.handle(record)
        other.handle(record)
    assert one.lines == other.lines == ["away"]


def test_an_outage_is_reported_once_again_where_its_reason_changes_and_when_it_is_over() -> None:
    messages: list[str] = []
    now = Clock()
    outage = Outage("broker lost", "broker back after", messages.append, now)
    outage.back()
    for reason, pause in (("refused", 1.0), ("refused", 2.0), ("no route", 3.0), ("no route", REMIND_S), ("no route", 1.0)):
        state = outage.away(reason)
        assert state.startswith(f"broker lost: {reason}, since ")
        now.now += pause
    outage.back()
    outage.back()
    assert messages == [
        "broker lost: refused", "broker lost: no route (for 3 s)",
        f"broker lost: no route (for {6 + REMIND_S:.0f} s)", f"broker back after {7 + REMIND_S:.0f} s",
    ]  # fmt: skip


def test_a_suspended_machine_counts_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The monotonic clock stops in suspend; where the system has one that does not, the fence sees the time that has passed."""
    boot = [50.0]
    monkeypatch.setattr(clock, "_BOOTTIME", 7)
    monkeypatch.setattr(time, "clock_gettime", lambda which: boot[0])
    left: list[str] = []
    fence = Fence(6.0, left.append)
    fence.tick()
    fence.check()
    boot[0] += 3_600.0                                                   # the lid was closed for an hour
    with pytest.raises(Exception, match=r"stalled for 3600\.0 s"):
        fence.check()
    assert len(left) == 1


def test_without_such_a_clock_it_is_the_monotonic_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_BOOTTIME", None)
    monkeypatch.setattr(time, "monotonic", lambda: 7.5)
    assert clock.now_s() == 7.5

"""Which changes a route sends, how many, and what is stored of it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from stockstream.errors import StateError
from stockstream.notifying.choosing import Choice, Memory
from stockstream.notifying.limits import MINUTE_S, Allowance, Held, held_with, summary_of
from stockstream.notifying.positions import Position, encode, key_of, newest, readable
from stockstream.sinks.notify.log import LogSettings
from tests.contracts.route import alert


def test_repeats() -> None:
    memory = Memory()
    changes = [alert(state="opened"), alert(state="updated", as_of=2), alert(state="updated", as_of=3), alert(state="closed", as_of=4)]
    assert [memory.take(change)[0] for change in changes] == [False] * 4
    assert [memory.take(change)[0] for change in changes] == [True] * 4
    assert not memory.take(alert(symbol="MSFT"))[0]


def test_memory_is_bounded() -> None:
    memory = Memory(limit=10)
    for number in range(1_000):
        memory.take(alert(symbol=f"S{number}"))
    assert len(memory._changes) == len(memory._severities) == 10


def test_severities_that_rise() -> None:
    memory = Memory()
    found = [
        memory.take(alert(state=state, severity=severity, as_of=number))[1]
        for number, (state, severity) in enumerate([("opened", "warning"), ("updated", "warning"), ("updated", "critical"), ("updated", "critical")])
    ]  # fmt: skip
    assert found == [False, False, True, False]
    assert Memory().take(alert(state="updated", severity="critical"))[1]     # its opening is forgotten: better a notice too many than none


@pytest.mark.parametrize(
    ("settings", "change", "raised", "wanted"),
    [
        ({}, {}, False, True),
        ({}, {"state": "closed"}, False, True),
        ({}, {"state": "updated"}, False, False),
        ({}, {"state": "updated"}, True, True),
        ({"states": ["updated"]}, {"state": "updated"}, False, True),
        ({"states": ["updated"]}, {}, False, False),
        ({"severity": "critical"}, {"severity": "warning"}, False, False),
        ({"severity": "critical"}, {"severity": "critical"}, False, True),
        ({"rules": ["volume_spike"]}, {}, False, False),
        ({"rules": ["volume_spike", "price_drop"]}, {}, False, True),
        ({"symbols": ["MSFT"]}, {}, False, False),
        ({"symbols": ["MSFT", "AAPL"]}, {}, False, True),
        ({"groups": ["empty"]}, {}, False, False),
    ],
)  # fmt: skip
def test_filters(settings: dict[str, object], change: dict[str, Any], raised: bool, wanted: bool) -> None:
    choice = Choice(LogSettings(kind="log", **settings))  # type: ignore[arg-type]
    assert choice.wants(alert(**change), raised=raised) is wanted


def test_the_allowance_of_a_minute() -> None:
    allowance = Allowance(3)
    assert [allowance.take(now) for now in (0.0, 1.0, 2.0, 3.0, MINUTE_S - 0.1)] == [True, True, True, False, False]
    assert allowance.is_over(MINUTE_S) and allowance.take(MINUTE_S)
    assert not allowance.is_over(MINUTE_S + 1)
    assert all(Allowance(0).take(0.0) for _ in range(1_000))


def test_the_summary_of_what_is_held() -> None:
    held = None
    for number in range(50):
        held = held_with(held, 100 + number, alert(symbol=f"S{number}", severity="critical" if number < 3 else "warning", as_of=1_000 * number))
    assert held is not None and (held.first, held.count, held.critical, len(held.symbols)) == (100, 50, 3, 20)
    notice = summary_of("ops", [(4, held), (2, Held(7, 1, 0, ["S3"], 500, 500))])
    assert notice.key == "more-ops-2-7" and "51 more alerts, 3 of them critical" in notice.text
    fields = msgspec.json.decode(notice.body)
    assert (fields["count"], fields["critical"], fields["first"], fields["last"], fields["state"]) == (51, 3, 0, 49_000, "summary")
    assert notice == summary_of("ops", [(2, Held(7, 1, 0, ["S3"], 500, 500)), (4, held)]) or notice.key


def test_the_furthest_position_counts() -> None:
    def record(**routes: Position) -> bytes:
        return encode(routes)

    early, late = Position(since=1, next=10, held=Held(1, 1, 0, ["A"], 0, 0)), Position(since=1, next=20)
    assert newest([]) == {}
    assert newest([(5, record(a=late)), (6, record(a=early))]) == {"a": late}       # a worker that woke up late wrote the last one
    assert newest([(5, record(a=late, b=early)), (6, record(a=late))]) == {"a": late}
    cleared = Position(since=1, next=10)
    assert newest([(6, record(a=cleared)), (5, record(a=early))]) == {"a": cleared}
    assert newest([(5, record(a=late)), (6, record(a=Position(since=2, next=0)))]) == {"a": Position(since=2, next=0)}
    assert key_of(3) == key_of(11)


def test_records_of_others() -> None:
    assert readable(b"routes-0", encode({"a": Position(since=1, next=2)})) == ""
    with pytest.raises(msgspec.DecodeError):
        readable(b"routes-0", b"nonsense")
    with pytest.raises(StateError, match="newer"):
        readable(b"routes-0", b'{"version":2,"other":[]}')

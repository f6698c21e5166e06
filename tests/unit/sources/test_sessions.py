from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from stockstream.sources.sessions import CALENDARS, UNKNOWN, Session, Sessions, Span
from stockstream.sources.symbols import EXCHANGE_OF_SUFFIX
from tests.patience import PATIENCE_S

HOUR = 3_600_000


def ms(text: str, zone: str = "UTC") -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).timestamp() * 1000)


@pytest.fixture(scope="module")
def sessions() -> Sessions:
    return Sessions()


NEW_YORK, LONDON, TOKYO, HONG_KONG = "America/New_York", "Europe/London", "Asia/Tokyo", "Asia/Hong_Kong"


@pytest.mark.parametrize(
    ("exchange", "zone", "local", "state"),
    [
        ("NMS", NEW_YORK, "2026-11-24T03:59", "closed"), ("NMS", NEW_YORK, "2026-11-24T04:00", "pre"), ("NMS", NEW_YORK, "2026-11-24T09:29:59", "pre"),
        ("NMS", NEW_YORK, "2026-11-24T09:30", "regular"), ("NYQ", NEW_YORK, "2026-11-24T15:59:59", "regular"), ("PCX", NEW_YORK, "2026-11-24T16:00", "post"),
        ("XNYS", NEW_YORK, "2026-11-24T19:59:59", "post"), ("XNAS", NEW_YORK, "2026-11-24T20:00", "closed"), ("nms", NEW_YORK, "2026-11-24T12:00", "regular"),
        # Thanksgiving, and the half day after it
        ("NMS", NEW_YORK, "2026-11-25T23:59", "closed"), ("NMS", NEW_YORK, "2026-11-26T00:00", "holiday"), ("NMS", NEW_YORK, "2026-11-26T12:00", "holiday"),
        ("NMS", NEW_YORK, "2026-11-27T00:00", "closed"), ("NMS", NEW_YORK, "2026-11-27T12:59", "regular"), ("NMS", NEW_YORK, "2026-11-27T13:00", "post"),
        ("NMS", NEW_YORK, "2026-11-27T16:59", "post"), ("NMS", NEW_YORK, "2026-11-27T17:00", "closed"), ("NMS", NEW_YORK, "2026-11-28T12:00", "closed"),
        # daylight-saving time began in the US three weeks before Europe
        ("NMS", "UTC", "2026-03-06T14:29", "pre"), ("NMS", "UTC", "2026-03-06T14:30", "regular"), ("NMS", "UTC", "2026-03-09T13:29", "pre"),
        ("NMS", "UTC", "2026-03-09T13:30", "regular"), ("LSE", "UTC", "2026-03-09T08:00", "regular"), ("LSE", "UTC", "2026-03-30T07:00", "regular"),
        ("LSE", "UTC", "2026-03-30T06:59", "closed"), ("LSE", LONDON, "2026-12-24T12:29", "regular"), ("LSE", LONDON, "2026-12-24T12:31", "closed"),
        ("LSE", LONDON, "2026-12-25T12:00", "holiday"), ("LSE", LONDON, "2026-12-26T12:00", "closed"), ("LSE", LONDON, "2026-12-28T12:00", "holiday"),
        # lunch in Hong Kong
        ("HKG", HONG_KONG, "2026-11-24T11:59", "regular"), ("HKG", HONG_KONG, "2026-11-24T12:30", "closed"), ("HKG", HONG_KONG, "2026-11-24T13:00", "regular"),
        ("JPX", TOKYO, "2026-11-23T10:00", "holiday"), ("JPX", TOKYO, "2026-11-24T10:00", "regular"), ("JPX", TOKYO, "2027-01-02T10:00", "closed"),
        ("NMS", NEW_YORK, "2027-01-01T12:00", "holiday"), ("NMS", NEW_YORK, "2026-12-31T23:00", "closed"),
        ("CCY", NEW_YORK, "2026-11-27T16:59", "regular"), ("CCY", NEW_YORK, "2026-11-27T17:00", "closed"), ("CCY", NEW_YORK, "2026-11-29T16:59", "closed"),
        ("CCY", NEW_YORK, "2026-11-29T17:00", "regular"), ("CCY", NEW_YORK, "2026-12-02T03:00", "regular"),
        ("CCC", "UTC", "2026-11-28T03:00", "always"), ("SIM", "UTC", "2026-11-28T03:00", "always"),
        ("NOWHERE", "UTC", "2026-11-24T12:00", "unknown"), ("", "UTC", "2026-11-24T12:00", "unknown"), ("../x", "UTC", "2026-11-24T12:00", "unknown"),
    ],
)  # fmt: skip
def test_the_state_of_an_exchange(sessions: Sessions, exchange: str, zone: str, local: str, state: str) -> None:
    at = ms(local, zone)
    session = sessions.wait_at(exchange, at)
    assert session.state == state
    assert sessions.at(exchange, at) == session
    if session.since is not None and session.until is not None:
        assert session.since <= at < session.until
        assert sessions.wait_at(exchange, session.since).state == state
        assert sessions.wait_at(exchange, session.since - 1).state != state
        assert sessions.wait_at(exchange, session.until).state != state


def test_a_state_has_its_begin_and_end(sessions: Sessions) -> None:
    assert sessions.wait_at("NMS", ms("2026-11-27T12:00", NEW_YORK)) == Session("regular", ms("2026-11-27T09:30", NEW_YORK), ms("2026-11-27T13:00", NEW_YORK))
    assert sessions.wait_at("NMS", ms("2026-11-28T12:00", NEW_YORK)) == Session("closed", ms("2026-11-27T17:00", NEW_YORK), ms("2026-11-30T04:00", NEW_YORK))
    assert sessions.wait_at("LSE", ms("2026-12-31T23:30", LONDON)).until == ms("2027-01-01T00:00", LONDON)


def test_only_a_regular_session_is_open(sessions: Sessions) -> None:
    assert Session("regular").is_open is True and Session("always").is_open is True
    assert UNKNOWN.is_open is None
    assert [Session(state).is_open for state in ("pre", "post", "closed", "holiday")] == [False] * 4


@pytest.mark.parametrize("at", [0, -1, 10**18, ms("1980-01-01T00:00"), ms("2109-12-31T00:00")])
def test_a_time_outside_every_calendar_is_unknown(sessions: Sessions, at: int) -> None:
    assert sessions.wait_at("XKLS", at) in (UNKNOWN, sessions.at("XKLS", at))
    assert sessions.wait_at(None, at) == UNKNOWN


def test_every_calendar_is_in_the_library(sessions: Sessions) -> None:
    import exchange_calendars

    names = set(exchange_calendars.get_calendar_names())
    assert {name for name in CALENDARS.values() if name not in names} == set()
    without = {"DOH", "CAI", "VSE", "CCC"}
    assert {code for code in EXCHANGE_OF_SUFFIX.values() if code not in CALENDARS} <= without


def test_the_answer_does_not_wait_for_a_calendar() -> None:
    loads: list[tuple[str, int]] = []

    def slow(calendar: str, year: int) -> list[Span]:
        loads.append((calendar, year))
        time.sleep(0.2)
        return [(0, 2**42, "regular")]

    sessions = Sessions(slow)
    at = ms("2026-11-24T12:00")
    began = time.monotonic()
    assert sessions.at("NMS", at) == UNKNOWN and sessions.at("NYQ", at) == UNKNOWN
    assert time.monotonic() - began < 0.1
    deadline = time.monotonic() + PATIENCE_S
    while sessions.at("NMS", at) == UNKNOWN and time.monotonic() < deadline:
        time.sleep(0.01)
    assert sessions.at("NYQ", at) == Session("regular", 0, 2**42)
    assert loads == [("XNYS", 2026)]


def test_a_calendar_that_cannot_be_loaded_is_unknown_and_tried_once() -> None:
    loads: list[str] = []

    def fail(calendar: str, year: int) -> list[Span]:
        loads.append(calendar)
        raise RuntimeError("no such thing")

    sessions = Sessions(fail)
    at = int(datetime.now(UTC).timestamp() * 1000)
    assert [sessions.wait_at("NMS", at) for _ in range(3)] == [UNKNOWN] * 3
    assert loads == ["XNYS"]


def test_the_library_is_loaded_when_it_is_asked_for() -> None:
    code = "import sys; from stockstream.sources.sessions import Sessions; Sessions().at('CCC', 1); print('exchange_calendars' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"

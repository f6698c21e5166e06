from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from stockstream.sources.session_cache import VALID_MS, CurrentSessions


@dataclass
class Session:
    state: str
    since: int | None = None
    until: int | None = None


async def test_a_session_is_looked_up_when_it_was_asked_for_and_again_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[tuple[str, int]] = []

    def at(exchange: str, ms: int) -> Session:
        asked.append((exchange, ms))
        if exchange == "XXX":
            raise KeyError("XXX")
        return Session("regular", 0, 30_000) if ms < 30_000 else Session("closed", 30_000, None)

    sessions = CurrentSessions(at)
    with caplog.at_level(logging.WARNING):
        assert sessions.of("NMS") is None and sessions.of("XXX") is None
        for now in (0, 1_000, 29_999, 30_000, 31_000, 30_000 + VALID_MS):
            await sessions.refresh(now)
    assert [ms for exchange, ms in asked if exchange == "NMS"] == [0, 30_000, 30_000 + VALID_MS]
    assert (found := sessions.of("NMS")) is not None and found.state == "closed" and sessions.of("XXX") is None
    assert caplog.text.count("the sessions of exchange 'XXX' are not known: KeyError") == 1


async def test_without_calendars_nothing_is_known() -> None:
    sessions = CurrentSessions(None)
    assert sessions.of("NMS") is None
    await sessions.refresh(0)
    assert sessions.of("NMS") is None

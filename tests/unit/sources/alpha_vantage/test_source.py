"""The source against its stand-in server, with a clock that passes only while somebody sleeps."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Iterator
from contextlib import aclosing, suppress
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any, cast

import pytest

from stockstream.budgets import Limits, LogEntry
from stockstream.errors import SourceError
from stockstream.sources.alpha_vantage.client import Client
from stockstream.sources.alpha_vantage.source import AlphaVantageSource
from stockstream.sources.base import SourceUnavailable
from stockstream.sources.quota import MemoryRequestLog, Scheduler
from stockstream.sources.sessions import Sessions
from tests.contracts.source import FakeClock, SourceContract
from tests.patience import PATIENCE_S
from tests.standins.alpha_vantage import Running, StandIn

SECRET = "QX7PLM2ZK9TREWQ1"
MONDAY = round(datetime(2026, 11, 30, 17, tzinfo=UTC).timestamp() * 1000)
"""12:00 in New York, in the session."""
SESSIONS = Sessions()
"""Of all tests, because a calendar takes a second to load."""


class PatientClock(FakeClock):
    """Its long sleeps take real time too, so that another task's request can be answered meanwhile."""

    async def sleep(self, seconds: float) -> None:
        await super().sleep(seconds)
        if seconds > 5:
            await asyncio.sleep(0.003)


class Line:
    """A stand-in, a common log of requests, and sources over both."""

    def __init__(self, server: Running) -> None:
        self.clock, self.entries, self.standin, self.url = cast(FakeClock, PatientClock(MONDAY)), list[LogEntry](), server.standin, server.url
        self.standin.now = lambda: self.clock.ms / 1000

    def source(self, budget: str = "1/s,25/d", *, key: str = SECRET, parameters: str = "", timeout_s: float = 5.0) -> AlphaVantageSource:
        scheduler = Scheduler("alpha_vantage", Limits.parse(budget), MemoryRequestLog(self.clock, self.entries), clock=self.clock)
        client = Client(self.url + parameters, key, timeout_s=timeout_s)
        return AlphaVantageSource(client, scheduler, clock=self.clock, sessions=SESSIONS, has_key=bool(key))

    async def ticks(self, source: AlphaVantageSource, symbols: list[str], most: int, until_ms: int = 86_400_000) -> list[dict[str, Any]]:
        """The first ticks of a source, as far as they come before this much time has passed."""
        end = self.clock.ms + until_ms
        found: list[dict[str, Any]] = []
        source.subscribe(symbols)

        async def read() -> None:
            async with aclosing(cast(Any, source.stream())) as stream:
                async for batch in stream:
                    found.extend(map(json.loads, batch.values))
                    if len(found) >= most:
                        return

        async def watch() -> None:
            while self.clock.ms < end:
                await asyncio.sleep(0)

        tasks = [asyncio.create_task(read()), asyncio.create_task(watch())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED, timeout=PATIENCE_S)
            if tasks[0].done():
                tasks[0].result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await source.stop()
        return found


@pytest.fixture
def line() -> Iterator[Line]:
    with Running(StandIn(key=SECRET)) as server:
        yield Line(server)


class TestContract(SourceContract):
    """The contract that every source fulfils."""

    @pytest.fixture(autouse=True)
    def _line(self, line: Line) -> None:
        self.line = line
        line.standin.daily = None

    def source(self, clock: FakeClock) -> AlphaVantageSource:
        clock.ms = max(clock.ms, MONDAY)
        self.line.clock, self.line.entries = clock, []
        return self.line.source("1/s,1000/d")

    @property
    def symbols(self) -> list[str]:
        return ["AAPL", "IBM", "MSFT"]


async def test_quotes_are_snapshots_with_the_volume_of_the_day(line: Line) -> None:
    (tick,) = await line.ticks(line.source(), ["IBM"], 1)
    assert tick["price"] > 0 and tick["day_volume"] > 1_000_000 and "size" not in tick
    assert (tick["symbol"], tick["source"], tick["snapshot"], tick["session"]) == ("IBM", "alpha_vantage", True, "regular 2026-11-30")
    assert tick["event_time"] == MONDAY                                  # the answer has the present day, and no delay


async def test_a_delayed_quote_is_as_old_as_the_provider_states(line: Line) -> None:
    line.standin.delayed = True
    (tick,) = await line.ticks(line.source(parameters="?entitlement=delayed"), ["IBM"], 1)
    assert tick["event_time"] == MONDAY - 900_000


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (datetime(2026, 11, 29, 17, tzinfo=UTC), datetime(2026, 11, 27, 18, tzinfo=UTC)),       # Sunday: the close of Friday, a half day
        (datetime(2026, 12, 1, 3, tzinfo=UTC), datetime(2026, 11, 30, 21, tzinfo=UTC)),         # the evening in New York
        (datetime(2026, 7, 1, 2, tzinfo=UTC), datetime(2026, 6, 30, 20, tzinfo=UTC)),           # in summer
    ],
)
async def test_an_old_quote_is_never_now(line: Line, now: datetime, expected: datetime) -> None:
    line.clock.ms = round(now.timestamp() * 1000)
    (tick,) = await line.ticks(line.source(), ["IBM"], 1)
    assert tick["event_time"] == round(expected.timestamp() * 1000) - 1


async def test_a_feed_has_the_state_of_its_last_quote_and_of_its_market(line: Line) -> None:
    source = line.source()
    source.subscribe(["IBM", "^NONE"])
    states = [source.health().feeds["IBM"].state]
    await line.ticks(source, ["IBM"], 1)
    states.append(source.health().feeds["IBM"].state)
    line.clock.ms += 3_600_001
    note = source.health().feeds["IBM"]
    assert (note.state, note.reason) == ("quiet", "last requested at 17:00 UTC")
    line.clock.ms += 86_400_000 - 3_600_001
    states.append(source.health().feeds["IBM"].state)                    # the next day, in the session
    line.clock.ms += 8 * 3_600_000
    states.append(source.health().feeds["IBM"].state)                    # after it: the session explains it
    assert states == [None, "fresh", "quiet", None]


async def test_another_exchange_has_a_clock_of_its_own(line: Line) -> None:
    ticks = await line.ticks(line.source(), ["IBM", "VOD.L"], 2)
    assert {tick["symbol"]: tick["source"] for tick in ticks} == {"IBM": "alpha_vantage", "VOD.L": "alpha_vantage.LSE"}
    assert [request["symbol"] for request in line.standin.requests] == ["IBM", "VOD.LON"]


async def test_no_request_is_spent_on_what_has_no_quotes(line: Line) -> None:
    source = line.source()
    assert len(await line.ticks(source, ["^GSPC", "EURUSD=X", "BTC-USD", "GC=F", "BRK-B"], 1)) == 1
    assert [request["symbol"] for request in line.standin.requests] == ["BRK-B"]
    feeds = source.health().feeds
    assert {symbol for symbol, note in feeds.items() if note.state == "unknown_symbol"} == {"^GSPC", "EURUSD=X", "BTC-USD", "GC=F"}


@pytest.mark.slow
async def test_each_symbol_at_once_then_the_rest_of_the_day_is_spread_over_the_session(line: Line) -> None:
    await line.ticks(line.source(), ["A", "B", "C"], 1_000, until_ms=10 * 3_600_000)
    at = [round(request["at"] - MONDAY / 1000) for request in line.standin.requests]
    assert len(at) == 25 and at[:3] == [0, 1, 2] and not any(request["error"] for request in line.standin.requests)
    pauses = [later - earlier for earlier, later in pairwise(at[2:])]
    assert min(pauses) > 600 and max(pauses) - min(pauses) < 60
    assert at[-1] <= 4.5 * 3600                                          # by half past four in New York, with the closing price


async def test_exactly_25_requests_a_day_though_the_source_restarts_and_two_run(line: Line) -> None:
    symbols = [f"S{number}" for number in range(40)]
    found = 0
    for _ in range(4):
        found += len(await line.ticks(line.source(), symbols, 3))
    one, two = await asyncio.gather(line.ticks(line.source(), symbols[:20], 100, 3_600_000), line.ticks(line.source(), symbols[20:], 100, 3_600_000))
    assert len(line.standin.requests) == 25 == found + len(one) + len(two)
    assert len({request["symbol"] for request in line.standin.requests}) == 25


async def test_bulk_quotes_for_a_plan_without_a_limit_per_day(line: Line) -> None:
    line.standin.daily, line.standin.premium = None, True
    source = line.source("75/min")
    ticks = await line.ticks(source, ["AAPL", "IBM", "MSFT", "NONE1"], 3)
    assert [tick["event_time"] for tick in ticks] == sorted(tick["event_time"] for tick in ticks)
    assert {tick["symbol"] for tick in ticks} == {"AAPL", "IBM", "MSFT"}
    assert [request["function"] for request in line.standin.requests] == ["MARKET_STATUS", "REALTIME_BULK_QUOTES"]
    assert source.health().feeds["NONE1"].state == "unknown_symbol"


async def test_a_plan_without_bulk_quotes_is_served_one_by_one(line: Line) -> None:
    line.standin.daily = None
    assert len(await line.ticks(line.source("75/min"), ["AAPL", "IBM"], 2)) == 2
    assert [request["function"] for request in line.standin.requests[1:]] == ["REALTIME_BULK_QUOTES", "GLOBAL_QUOTE", "GLOBAL_QUOTE"]


@pytest.mark.parametrize(
    ("fault", "state", "text"),
    [
        ("daily", "rate_limited", "reports that the day's requests are spent; the next one at 2026-11-30 19:00:00 UTC"),
        ("burst", "rate_limited", "asks for fewer requests"), ("minute", "rate_limited", "asks for fewer requests"),
        ("429", "rate_limited", "asks for fewer requests"), ("symbol", "unknown_symbol", "no data of the symbol"),
    ],
)  # fmt: skip
async def test_a_refusal_is_a_state_of_the_feed_and_no_error(line: Line, fault: str, state: str, text: str) -> None:
    line.standin.fault = fault
    source = line.source()
    source.subscribe(["IBM"])
    assert len(await source._request(await source._scheduler.acquire(["IBM"]))) == 0
    note = source.health().feeds["IBM"]
    assert note.state == state and text in note.reason
    await source.stop()


@pytest.mark.parametrize(
    ("fault", "text"),
    [
        ("html", "answered with a web page instead of JSON"), ("500", "HTTP 500"), ("invalid", "no JSON"), ("shape", "no Global Quote for IBM"),
        ("unknown_text", "refused the request: The service is being moved"), ("slow", "did not answer in time"), ("abrupt", "connection ended"),
        ("truncated", "connection ended"),
    ],
)  # fmt: skip
async def test_what_is_no_answer_fails_the_attempt_and_pauses_the_requests(line: Line, fault: str, text: str) -> None:
    line.standin.fault, line.standin.slow_s = fault, 2.0
    source = line.source(timeout_s=0.5)
    with pytest.raises(SourceUnavailable, match=text):
        await line.ticks(source, ["IBM"], 1)
    assert len(line.standin.requests) == 1 and source.health().feeds["IBM"].state == "failed"
    line.standin.fault = "none"
    assert len(await line.ticks(source, ["IBM"], 1, until_ms=60_000)) == 1 and line.clock.ms >= MONDAY + 15_000


@pytest.mark.parametrize("fault", ["shape", "500", "slow", "premium"])
async def test_a_symbol_whose_answers_are_never_usable_takes_no_requests_of_the_others(line: Line, fault: str) -> None:
    line.standin.faults, line.standin.slow_s = {"AAA": fault}, 2.0
    source, found = line.source(timeout_s=0.3), list[dict[str, Any]]()
    for _ in range(8):
        with suppress(SourceUnavailable):
            found += await line.ticks(source, ["AAA", "IBM", "MSFT"], 1, until_ms=3_600_000)
    asked = [request["symbol"] for request in line.standin.requests]
    assert {tick["symbol"] for tick in found} == {"IBM", "MSFT"}
    assert asked.count("AAA") <= 4 and min(asked.count("IBM"), asked.count("MSFT")) >= 2, "it is tried again once, and then in its turn"
    assert fault != "premium" or (source.health().feeds["AAA"].state == "not_permitted" and asked.count("AAA") == 1)


async def test_no_network_costs_no_request(line: Line) -> None:
    line.url = "http://127.0.0.1:1/query"
    for _ in range(30):
        with pytest.raises(SourceUnavailable, match=r"it cannot be reached: 127\.0\.0\.1:1: Connect"):
            await line.ticks(line.source(), ["IBM"], 1)
    source = line.source()
    await source._scheduler.refresh()
    assert source._scheduler.left_today == 25


async def test_a_wrong_key_stops_the_source_and_no_key_does_too_without_a_request(line: Line) -> None:
    for key, requests in (("WRONGKEY12345678", 1), ("", 1)):
        with pytest.raises(SourceError, match="the key is wrong or missing: set STOCKSTREAM_ALPHA_VANTAGE_KEY") as caught:
            await line.ticks(line.source(key=key), ["IBM"], 1)
        assert caught.value.stops and not caught.value.retriable
        assert line.standin.refused_keys == requests and "WRONGKEY" not in str(caught.value)
    source = line.source()
    await source._scheduler.refresh()
    assert source._scheduler.left_today == 25 and not source._scheduler.asked()          # so that IBM is requested at once with the right key


async def test_after_a_restart_a_symbol_waits_for_its_turn_and_the_reason_is_given(line: Line) -> None:
    await line.ticks(line.source(), ["IBM"], 1)
    source = line.source()
    source.subscribe(["IBM"])
    await source._scheduler.refresh()
    await source._load_hours()
    note = source.health().feeds["IBM"]
    assert note.state == "waiting" and note.reason.startswith("requested before this worker, at ") and note.reason.endswith("again when its turn comes")


async def test_the_key_is_in_no_log_no_error_no_state_no_record(line: Line, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    seen: list[str] = []
    for fault in ("none", "daily", "burst", "minute", "premium", "key", "symbol", "html", "invalid", "shape", "unknown_text", "429", "500", "slow", "abrupt"):
        line.standin.fault, line.standin.slow_s, line.entries = fault, 1.0, []
        source = line.source(timeout_s=0.3)
        try:
            seen += map(str, await line.ticks(source, ["IBM", f"X.{fault}"], 2, until_ms=5_000))
        except SourceError as error:
            seen += [str(error), repr(error), "".join(traceback.format_exception(error))]
            logging.getLogger("stockstream").exception("as a worker would log it")
        seen += [str(source.health()), str(await source.describe(["IBM"])), str(line.entries)]
    line.url = "http://127.0.0.1:1/query"
    with pytest.raises(SourceUnavailable) as caught:
        await line.ticks(line.source(), ["IBM"], 1)
    seen += ["".join(traceback.format_exception(caught.value)), caplog.text, *(str(record.__dict__) for record in caplog.records)]
    assert len(line.standin.requests) > 12 and not [text for text in seen if SECRET in text]

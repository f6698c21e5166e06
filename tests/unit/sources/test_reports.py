from __future__ import annotations

from collections import Counter
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.errors import FrameError
from stockstream.records import Budget, Connection, Feed, SourceReport
from stockstream.sources.reporter import MOST_CONNECTIONS, ConnectionState, summarised
from stockstream.sources.reports import FEED_STATES, MAX_BYTES, REPORT_MS, TROUBLE, SourceReports, read_all

NOW = 1_796_000_000_000


def report(source: str = "yahoo", worker: str = "a:1", **changes: Any) -> tuple[bytes, bytes]:
    values: dict[str, Any] = {
        "source": source, "worker": worker, "name": source, "state": "running", "reason": "", "since": NOW - 60_000, "next_attempt": None, "failures": 0,
        "symbols": 1, "at": NOW - 1_000,
    }  # fmt: skip
    return f"{source}@{worker}".encode(), msgspec.json.encode(SourceReport(**values | changes))


def feed(symbol: str, worker: str = "a:1", source: str = "yahoo", **changes: Any) -> tuple[bytes, bytes]:
    values: dict[str, Any] = {"state": "fresh", "reason": "", "since": NOW - 9_000, "last_event_time": NOW - 2_500, "at": NOW - 1_000}
    return symbol.encode(), msgspec.json.encode(Feed(symbol=symbol, source=source, worker=worker, **values | changes))


def watch(symbol: str, source: str = "yahoo", active: bool = True) -> tuple[bytes, bytes]:
    return symbol.encode(), msgspec.json.encode({"symbol": symbol, "source": source, "active": active})


def reports(*, watched: list[Any] = [], feeds: list[Any] = [], of: list[Any] = []) -> SourceReports:  # noqa: B006  they are only read
    return read_all([*(("watchlist", *one) for one in watched), *(("feeds", *one) for one in feeds), *(("sources", *one) for one in of)])


def test_nothing_is_known_of_nothing() -> None:
    empty = SourceReports()
    assert (empty.summaries(NOW), list(empty.entries(NOW)), empty.note(NOW), empty.known_sources(NOW)) == ([], [], "", [])


def test_a_symbol_has_the_state_that_its_worker_reports() -> None:
    of = reports(watched=[watch("AAPL"), watch("MSFT")], feeds=[feed("AAPL"), feed("MSFT", state="closed", reason="opens at 14:30 UTC")], of=[report()])
    aapl, msft = of.entries(NOW)
    assert (aapl.worker, aapl.state, aapl.age_s, aapl.since) == ("a:1", "fresh", 1.5, NOW - 9_000)
    assert (msft.age_s, msft.state, msft.reason) == (2.5, "closed", "opens at 14:30 UTC")
    (summary,) = of.summaries(NOW)
    assert (summary.state, summary.watched, summary.feeds, of.note(NOW)) == ("running", 2, {"closed": 1, "fresh": 1}, "")


@pytest.mark.parametrize(
    ("feeds", "of", "reason"),
    [
        ([], [], "no worker runs yahoo (STOCKSTREAM_SOURCE)"),
        ([feed("AAPL")], [report(at=NOW - REPORT_MS - 1)], "no worker runs yahoo (STOCKSTREAM_SOURCE)"),
        ([], [report()], "no worker has reported it yet"),
        ([feed("AAPL", source="simulated")], [report(), report("simulated")], "no worker has reported it yet"),
        ([feed("AAPL", worker="gone:1")], [report()], "gone:1 no longer reports; another worker takes over"),
    ],
)  # fmt: skip
def test_a_symbol_that_no_worker_ingests_waits_and_the_reason_is_given(feeds: list[Any], of: list[Any], reason: str) -> None:
    (entry,) = reports(watched=[watch("AAPL")], feeds=feeds, of=of).entries(NOW)
    assert (entry.state, entry.worker, entry.reason) == ("waiting", "", reason)


def test_entries_of_a_source_in_a_state_after_a_symbol() -> None:
    watched = [watch("A"), watch("B"), watch("C"), watch("D", "simulated"), watch("E", active=False)]
    of = reports(watched=watched, feeds=[feed("A"), feed("B", state="quiet"), feed("C")], of=[report()])
    assert [entry.symbol for entry in of.entries(NOW, "yahoo")] == ["A", "B", "C"]
    assert [entry.symbol for entry in of.entries(NOW, "yahoo", "fresh", "A")] == ["C"]
    assert [entry.symbol for entry in of.entries(NOW, "nobody")] == []
    assert of.known_sources(NOW) == ["simulated", "yahoo"]


def test_a_source_has_failed_if_it_has_on_one_worker() -> None:
    day = Budget(per="day", limit=25, left=3, resets_at=NOW)
    of = reports(of=[
        report(last_tick_at=NOW - 5, budgets=(msgspec.structs.replace(day, left=4),)),
        report(worker="b:2", state="failed", reason="no network", last_error="no network", next_attempt=NOW + 500, last_tick_at=NOW - 9, budgets=(day,)),
    ])  # fmt: skip
    (summary,) = of.summaries(NOW)
    assert (summary.state, summary.reason, summary.last_error) == ("failed", "no network", "no network")
    assert (summary.next_attempt, summary.last_tick_at) == (NOW + 500, NOW - 5)
    assert summary.budgets == [day]
    assert [worker.worker for worker in summary.workers] == ["a:1", "b:2"]
    assert of.note(NOW) == "yahoo has failed on b:2: no network"


def test_a_worker_that_was_killed_and_started_again_counts_once() -> None:
    old, new = report(worker="a:6066:1", state="stopped", reason="the key is refused", at=NOW - 12_000), report(worker="a:6066:2", at=NOW - 1_000)
    other = report(worker="a:6067:3", at=NOW - 12_000)
    (summary,) = reports(of=[old, new, other]).summaries(NOW)
    assert (summary.state, [one.worker for one in summary.workers]) == ("running", ["a:6066:2", "a:6067:3"])
    (summary,) = reports(of=[old, report(worker="a:6066:2", at=NOW - 4_000)]).summaries(NOW)
    assert summary.state == "stopped"


def test_an_error_that_is_over_is_still_the_last_one() -> None:
    (summary,) = reports(of=[report(last_error="Edge: Too Many Requests"), report(worker="b:2")]).summaries(NOW)
    assert (summary.state, summary.last_error) == ("running", "Edge: Too Many Requests")


@pytest.mark.parametrize(
    ("watched", "feeds", "of", "note"),
    [
        ([watch("A"), watch("B")], [], [], "no worker runs yahoo, which 2 symbols of the watchlist wait for"),
        ([watch("A")], [], [], "no worker runs yahoo, which 1 symbol of the watchlist waits for"),
        ([], [], [report(state="failed", reason="the key is refused")], "yahoo has failed: the key is refused"),
        ([], [], [report(state="stopped", reason="the key is refused"), report(worker="b:2")],
         "yahoo is stopped until its settings change on a:1: the key is refused"),
        ([], [], [report(reason="the event log cannot be written")], "yahoo: the event log cannot be written"),
        ([], [], [report(state="idle", reason="the watchlist has no symbol for it")], ""),
        ([watch("A")], [feed("A", state="unknown_symbol")], [report()], "1 symbol of yahoo: unknown symbol (A)"),
        ([watch(name) for name in "DACB"], [feed(name, state="feed_dead") for name in "DACB"], [report()], "4 symbols of yahoo: feed dead (A, B, C ...)"),
        ([watch("A")], [feed("A", state="holiday")], [report()], ""),
        ([], [], [report(budgets=(Budget(per="day", limit=25, left=0, resets_at=1_796_014_800_000), Budget(per="second", limit=1, left=0, resets_at=NOW)))],
         "yahoo has used its 25 requests of the day; the next at 05:00 UTC"),
        ([watch("A")], [feed("A", state="rate_limited")], [report(reason="spent", budgets=(Budget(per="day", limit=25, left=0, resets_at=NOW),))],
         "yahoo: spent"),
        ([], [], [report(connections=(
            Connection(name="1", state="open", symbols=2, since=NOW), Connection(name="2", state="silent", symbols=2, since=NOW, reason="no frame for 20 s"),
         ))], "1 of 2 connections of yahoo is silent (no frame for 20 s)"),
        ([watch("A"), watch("B")], [feed("A", state="failed"), feed("B", state="unknown_symbol")], [report(state="starting", reason="no network", connections=(
            Connection(name="1", state="closed", symbols=2, since=NOW, reason="no network"),
         ))], "yahoo: no network; 1 symbol of yahoo: unknown symbol (B)"),
        ([], [], [report("alpha_vantage", state="failed", reason="Alpha Vantage: no key")], "alpha_vantage has failed: no key"),
        ([], [], [report("alpha_vantage", reason="alpha_vantage: other workers have taken the next requests")],
         "alpha_vantage: other workers have taken the next requests"),
        ([], [], [report("alpha_vantage", reason="alpha_vantage asks for fewer requests")], "alpha_vantage asks for fewer requests"),
        ([], [], [report(reason="yahoo_polling: no network")], "yahoo: yahoo_polling: no network"),
        ([], [], [report(connections=(
            Connection(name="1", state="silent", symbols=2, since=NOW), Connection(name="30 more", state="closed", symbols=9, since=NOW, count=30),
         ))], "31 of 31 connections of yahoo are silent"),
        ([], [], [report(state="failed", reason="x"), report("alpha_vantage", state="failed", reason="y")], "alpha_vantage has failed: y; yahoo has failed: x"),
    ],
)  # fmt: skip
def test_sources_in_trouble_are_one_line(watched: list[Any], feeds: list[Any], of: list[Any], note: str) -> None:
    assert reports(watched=watched, feeds=feeds, of=of).note(NOW) == note


def test_deleted_messages_are_forgotten() -> None:
    of = reports(watched=[watch("AAPL")], feeds=[feed("AAPL")], of=[report()])
    of.watch(b"AAPL", None)
    of.feed(b"AAPL", None)
    of.report(b"yahoo@a:1", None)
    assert of.known_sources(NOW) == [] and list(of.entries(NOW)) == []


@given(st.lists(st.tuples(st.sampled_from("ABC"), st.sampled_from(["watch", "feed", "unwatch", "forget"]), st.sampled_from(["yahoo", "simulated"]),
                          st.sampled_from(["a:1", "gone:1"]), st.sampled_from(["fresh", "quiet"])), max_size=30))  # fmt: skip
def test_a_summary_counts_what_the_entries_are(steps: list[tuple[str, str, str, str, str]]) -> None:
    of = reports(of=[report(), report("simulated")])
    for symbol, step, source, worker, state in steps:
        match step:
            case "watch":
                of.watch(*watch(symbol, source))
            case "feed":
                of.feed(*feed(symbol, worker, source, state=state))
            case "unwatch":
                of.watch(symbol.encode(), None)
            case _:
                of.feed(symbol.encode(), None)
    counted: dict[str, Counter[str]] = {}
    for entry in of.entries(NOW):
        counted.setdefault(entry.source, Counter())[entry.state] += 1
    assert {summary.source: summary.feeds for summary in of.summaries(NOW) if summary.feeds} == counted


@pytest.mark.parametrize("value", [b"", b"{", b"[]", b'{"symbol": 1}', b"[" * 100_000, b"x" * 100_000, b"\xff"])
def test_what_cannot_be_read_changes_nothing(value: bytes) -> None:
    of = reports(watched=[watch("AAPL")], feeds=[feed("AAPL")], of=[report()])
    for take in (of.watch, of.feed, of.report):
        with pytest.raises((FrameError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError)):
            take(b"AAPL", value)
    with pytest.raises(FrameError):
        of.feed(*feed("AAPL", at=1 << 60))
    with pytest.raises(FrameError):
        of.report(*report(at=-1))
    (entry,) = of.entries(NOW)
    assert entry.state == "fresh"


def test_the_oldest_reports_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sources.reports.MAX_REPORTS", 2)
    of = reports(of=[report(worker="a", at=NOW - 3), report(worker="b", at=NOW - 9), report(worker="c", at=NOW - 1)])
    assert [worker.worker for worker in of.summaries(NOW)[0].workers] == ["a", "c"]


def test_the_states_in_trouble_are_states() -> None:
    assert set(TROUBLE) < set(FEED_STATES)


@pytest.mark.parametrize("count", [0, 1, MOST_CONNECTIONS, MOST_CONNECTIONS + 1, 250, 5_000])
def test_a_report_fits_however_many_connections_there_are(count: int) -> None:
    states: tuple[ConnectionState, ...] = ("open", "open", "silent", "connecting", "closed")
    every = [
        Connection(name="\x01" * 500, state=states[n % 5], symbols=200, since=NOW - n, last_message_at=NOW + n if n % 2 else None, reason="\x01" * 5_000)
        for n in range(count)
    ]  # fmt: skip
    few = summarised(every)
    assert len(few) <= MOST_CONNECTIONS + 4 and sum(one.symbols for one in few) == 200 * count
    for state in states:
        assert sum(one.count for one in few if one.state == state) == sum(one.state == state for one in every)
    if count:
        assert min(one.since for one in few) == min(one.since for one in every)
    long = "\x01" * 300
    key, value = report(connections=few, reason=long, last_error=long)
    assert len(value) < MAX_BYTES
    (summary,) = reports(of=[(key, value)]).summaries(NOW)
    assert summary.workers[0].connections == few


def test_a_few_connections_are_listed_as_they_are() -> None:
    every = tuple(Connection(name=str(n), state="closed" if n else "open", symbols=n, since=NOW, reason="reset") for n in range(MOST_CONNECTIONS))
    assert summarised(every) == every


def test_connections_in_trouble_are_listed_first() -> None:
    every = [Connection(name=str(n), state="silent" if n == 180 else "open", symbols=200, since=NOW) for n in range(200)]
    few = summarised(every)
    assert few[0] == every[180] and (few[-1].name, few[-1].state, few[-1].count, few[-1].symbols) == ("150 more", "open", 150, 30_000)

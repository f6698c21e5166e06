"""The agent of the watchlist and the sources' runner, without Kafka."""

from __future__ import annotations

import asyncio
import json
import logging
from types import SimpleNamespace
from typing import Any, NamedTuple

import msgspec
import pytest
from faust.types import TP

import agents.ingest
from agents.ingest import stage
from stockstream.errors import FencedError
from stockstream.instance import app
from stockstream.skipped import SkippedRecords
from stockstream.sources.health import SourceState
from stockstream.sources.ingestion import Ingest
from stockstream.status import metrics, status
from stockstream.transforms.partitioning import home_partition
from stockstream.transport.messages import Chunk, Message, Outgoing
from tests.contracts.source import FakeClock
from tests.patience import PATIENCE_S
from tests.unit.sources.test_ingestion import Feed, Wire, stop, until


class Record(NamedTuple):
    offset: int
    key: bytes | None
    value: bytes | None


def skipped(reason: str) -> float:
    return metrics.registry.get_sample_value("stockstream_records_skipped_total", {"topic": "watchlist", "reason": reason}) or 0.0


def chunk(*messages: tuple[bytes | None, bytes | None]) -> Chunk:
    return Chunk(app.settings.topic("watchlist"), 3, [Record(100 + number, *message) for number, message in enumerate(messages)])


@pytest.fixture
def ingest(monkeypatch: pytest.MonkeyPatch) -> Ingest:
    """The stage's, with one source `feed`."""
    made = Ingest(app.settings, Wire().send, clock=FakeClock(), sources={"feed": Feed()}, metrics=metrics)
    made.assign(range(8))
    monkeypatch.setattr(stage, "ingest", made)
    monkeypatch.setattr(agents.ingest, "skipped", SkippedRecords(metrics, app.settings.topic_prefix))
    return made


def good(symbol: str) -> tuple[bytes, bytes]:
    return symbol.encode(), json.dumps({"symbol": symbol, "source": "feed"}).encode()


def test_bad_records_among_good_ones_are_counted_and_logged_with_their_place(ingest: Ingest, caplog: pytest.LogCaptureFixture) -> None:
    before = {reason: skipped(reason) for reason in ("invalid_json", "invalid_symbol", "invalid_key")}
    deep = b'{"symbol":"A","source":"feed","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    with caplog.at_level(logging.WARNING):
        stage.take(chunk(good("FIRST"), good("S" * 33), (b"A", deep), (b"A", b"not json"), (b"\xff", b"{}"), good("LAST")))
    assert set(ingest._watched) == {"FIRST", "LAST"}
    assert {reason: skipped(reason) - count for reason, count in before.items()} == {"invalid_json": 2, "invalid_symbol": 1, "invalid_key": 1}
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 3 and said[0].startswith("watchlist[3] offset 101 skipped, invalid_symbol: ")
    assert said[1].startswith("watchlist[3] offset 102 skipped, invalid_json: ")
    assert said[2].startswith("watchlist[3] offset 104 skipped, invalid_key: ")


def test_an_error_that_nobody_has_foreseen_stops_no_other_record(ingest: Ingest, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    watch, before = ingest.watch, skipped("unexpected")

    def odd(key: bytes | None, value: bytes | None) -> Any:
        if key == b"ODD":
            raise ZeroDivisionError("odd")
        return watch(key, value)

    monkeypatch.setattr(ingest, "watch", odd)
    with caplog.at_level(logging.WARNING):
        stage.take(chunk(good("FIRST"), good("ODD"), good("LAST")))
    assert set(ingest._watched) == {"FIRST", "LAST"} and skipped("unexpected") == before + 1
    assert "watchlist[3] offset 101 skipped, unexpected: ZeroDivisionError: odd (at " in caplog.text


async def test_the_worker_tells_of_its_sources(ingest: Ingest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "sources", ingest.states)
    (shown,) = msgspec.convert(status.sources(), list[SourceState], strict=True)
    assert (shown.source, shown.state, shown.failures) == ("feed", "starting", 0)


async def test_the_runner_is_started_again_whatever_ends_it_and_never_touches_the_fence(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(seconds: float) -> None:
        pauses.append(seconds)

    async def run() -> None:
        runs.append(len(pauses))
        if len(runs) < 4:
            raise [ValueError("odd"), OSError("gone"), RecursionError("deep")][len(runs) - 1]
        raise FencedError("this worker has left")

    runs, pauses, left = list[int](), list[float](), list[str]()
    monkeypatch.setattr(asyncio, "sleep", at_once)
    monkeypatch.setattr(stage.ingest, "run", run)
    monkeypatch.setattr(app.fence, "leave", left.append)
    with pytest.raises(FencedError):
        await asyncio.wait_for(agents.ingest.feed(), PATIENCE_S)
    assert runs == [0, 1, 2, 3] and left == []


async def test_a_partition_that_comes_is_read_from_its_beginning_and_one_that_goes_is_forgotten(ingest: Ingest) -> None:
    watchlist = app.settings.topic("watchlist")
    stage.take(chunk(good("A"), good("B")))
    homes = {symbol: home_partition(symbol, app.settings.partitions) for symbol in ("A", "B")}
    assert homes["A"] != homes["B"]
    found = await stage.assign({watchlist: [homes["A"]], app.settings.topic("ticks.raw"): [0, 1]})
    assert found == {TP(watchlist, homes["A"]): None}, "None: from the beginning"
    assert set(ingest._watched) == {"A"}
    assert await stage.assign({}) == {} and ingest._watched == {}


async def test_what_is_released_brings_nothing_more(ingest: Ingest) -> None:
    running = asyncio.create_task(ingest.run())
    stage.take(chunk(good("A")))
    await until(lambda: ingest.live["feed"] == frozenset({"A"}), running)
    await stage.release(0.0)
    assert ingest.live["feed"] == frozenset()
    await stop(running)


async def test_the_agent_takes_the_chunks_of_its_stream_one_after_the_other(ingest: Ingest) -> None:
    async def stream() -> Any:
        yield chunk(good("A"), good("B"))
        yield chunk((b"A", None), good("C"))

    agent: Any = agents.ingest.ingest
    await agent.fun(stream())
    assert set(ingest._watched) == {"B", "C"}


async def test_ticks_are_sent_through_the_workers_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Outgoing] = []

    async def send(out: Outgoing) -> list[Any]:
        sent.append(out)
        return []

    monkeypatch.setattr(app, "sender", SimpleNamespace(send=send))
    assert await agents.ingest._send("ticks.raw", 5, [(b"A", b"1"), (None, b"2")]) == []
    assert sent == [Outgoing("ticks.raw", 5, [Message(b"A", b"1"), Message(None, b"2")])]

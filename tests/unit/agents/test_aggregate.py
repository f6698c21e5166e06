"""The agent that adds up windows, without Kafka: what it sends for its frames, and when it sends a symbol's row to `latest`."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from faust.types import TP

from agents.aggregate import LATEST_S, Aggregation, stage
from stockstream import topics
from stockstream.records import WINDOWS_SCHEMA
from stockstream.state.frame_reader import input_position
from stockstream.transforms.frames import Frame, decode
from stockstream.transforms.windows.rows import SourceRows, WindowRows
from stockstream.transforms.windows.windows import Windows
from stockstream.transport.hops import hops_of
from tests.unit.agents.bench import LOG, PARTITION, Bench
from tests.unit.transforms.test_window_state import START, Feed


@pytest.fixture
async def aggregation() -> AsyncIterator[Aggregation]:
    await stage.release(0)
    yield stage
    await stage.release(0)


def latest_of(aggregation: Aggregation, *rows: tuple[str, int, float | None], source: str = "simulated.1") -> list[tuple[str, int]]:
    symbols, seconds, prices = zip(*rows, strict=True)
    known = sorted(set(symbols))
    values = {column.name: np.zeros(len(rows), column.type.to_pandas_dtype()) for column in WINDOWS_SCHEMA if column.type != pa.string()}
    values |= {"second": np.array(seconds), "price": np.array(prices, float), "quality": np.zeros(len(rows), np.int64)}
    part = SourceRows(source, known, np.array([known.index(symbol) for symbol in symbols]), values)
    messages = aggregation._latest(WindowRows(0, 1, by_source=[part]), 0)
    return [(str(message.key, "utf-8"), msgspec.json.decode(message.value)["second"]) for message in messages if message.key]


async def test_the_last_priced_row_of_a_symbol_is_told_once_a_minute(aggregation: Aggregation) -> None:
    assert latest_of(aggregation, ("A", 100, 1.0), ("B", 100, None), ("A", 101, 2.0)) == [("A", 101)]
    assert latest_of(aggregation, ("A", 101 + LATEST_S - 1, 3.0), ("B", 102, 5.0)) == [("B", 102)]
    again = next(second for second in range(101, 101 + 2 * LATEST_S) if latest_of(aggregation, ("A", second, 4.0)))
    assert again >= 101 + LATEST_S
    assert latest_of(aggregation, ("A", again + LATEST_S - 1, 5.0)) == []
    assert latest_of(aggregation, ("A", again + LATEST_S, 6.0)) == [("A", again + LATEST_S)]


async def test_symbols_heard_first_in_one_second_are_not_all_told_in_one_later(aggregation: Aggregation) -> None:
    symbols = [f"S{number}" for number in range(300)]
    assert len(latest_of(aggregation, *((symbol, 100, 1.0) for symbol in symbols))) == 300
    counts = [len(latest_of(aggregation, *((symbol, second, 1.0) for symbol in symbols))) for second in range(101, 101 + 2 * LATEST_S)]
    assert sum(counts) >= 300 and max(counts) < 30


async def test_another_source_of_a_symbol_is_told_at_once(aggregation: Aggregation) -> None:
    latest_of(aggregation, ("A", 100, 1.0))
    assert latest_of(aggregation, ("A", 101, 2.0), source="yahoo") == [("A", 101)]


async def test_what_a_rebalance_may_have_dropped_is_told_again(aggregation: Aggregation) -> None:
    """Else a symbol that has gone quiet would keep an old face, or none."""
    assert latest_of(aggregation, ("A", 100, 1.0)) == [("A", 100)]
    await aggregation.release(0)
    assert latest_of(aggregation, ("A", 100, 1.0)) == [("A", 100)]


@pytest.fixture
async def bench(aggregation: Aggregation, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(aggregation, Windows(PARTITION, revise_s=30), monkeypatch)


def ticking(seconds: range, symbols: str = "A") -> list[Frame]:
    """A frame for each second, with a tick of each symbol, that closes the second before."""
    feed = Feed()
    return [
        dataclasses.replace(feed.frame([("s", symbol, START + at, 100.0 + at) for symbol in symbols], {"s": START + at - 1}), log=LOG) for at in seconds
    ]


def rows(bench: Bench) -> list[tuple[str, int, float]]:
    """(symbol, second, close) of what was sent to `windows`."""
    frames = [decode(message.value, WINDOWS_SCHEMA) for message in bench.messages(bench.stage.app.settings.topic("windows"))]
    return [(row["symbol"], row["second"] - START, row["close"]) for frame in frames for row in frame.rows.to_pylist()]


async def test_closed_seconds_go_to_windows_and_the_open_one_does_not(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(*ticking(range(4))))
    assert rows(bench) == [("A", at, 100.0 + at) for at in range(3)]
    assert bench.partitions(bench.stage.app.settings.topic("windows")) == {PARTITION} and bench.submissions == 1


async def test_a_frame_that_closes_nothing_sends_nothing(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(dataclasses.replace(Feed().frame([("s", "A", START, 100.0)], {}), log=LOG)))
    assert bench.sends == []


async def test_the_latest_row_goes_to_its_symbol(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(*ticking(range(4), "AB")))
    assert [(message.key, msgspec.json.decode(message.value)["second"] - START) for message in bench.messages(topics.latest)] == [(b"A", 0), (b"B", 0)]


async def test_the_times_of_the_hops_before_travel_on_with_the_frame(bench: Bench) -> None:
    first, second = ticking(range(2))
    await bench.stage.process(bench.chunk(first, second, hops=[1_000, 2_000]))
    raw, clean, sent = hops_of(bench.messages(bench.stage.app.settings.topic("windows"))[-1])
    assert (raw, clean) == (1_000, 2_000) and sent > 2_000


async def test_a_restart_after_each_frame_changes_no_frame(bench: Bench) -> None:
    frames, windows = ticking(range(8), "AB"), bench.stage.app.settings.topic("windows")
    for frame in frames:
        await bench.stage.process(bench.chunk(frame))
    whole = [message.value for message in bench.messages(windows)]
    bench.sends.clear()
    bench.stored.clear()
    for number in range(len(frames)):
        core = Windows.restore(PARTITION, bench.stored, revise_s=30)
        bench.place(core)
        bench.offset = input_position(core) or 0
        await bench.stage.process(bench.chunk(*frames[bench.offset : number + 1]))
    again = [message.value for message in bench.messages(windows)]
    assert list(dict.fromkeys(again)) == whole and len(whole) == len(frames)


async def test_frames_that_the_broker_has_lost_are_sent_again_and_no_others(bench: Bench) -> None:
    """The core begins anew with the first frame of its input, and what it sends again has the same content."""
    frames, windows = ticking(range(8), "AB"), bench.stage.app.settings.topic("windows")
    await bench.stage.process(bench.chunk(*frames))
    whole = [message.value for message in bench.messages(windows)]
    bench.sends.clear()
    core = Windows.restore(PARTITION, bench.stored, revise_s=30)
    bench.place(core)
    assert aggregation_of(bench).sent_before(PARTITION) == frames[-1].through + 1
    assert aggregation_of(bench).log_of(PARTITION) == LOG
    assert aggregation_of(bench).send_again(PARTITION, frames[4].start) == {TP(bench.stage.topic, PARTITION): None}
    assert aggregation_of(bench).sent_before(PARTITION) == -1
    bench.offset = 0
    await bench.stage.process(bench.chunk(*frames))
    lost = [value for value in whole if decode(value, WINDOWS_SCHEMA).through >= frames[4].start]
    assert [message.value for message in bench.messages(windows)] == lost and len(lost) == 4


def aggregation_of(bench: Bench) -> Aggregation:
    assert isinstance(bench.stage, Aggregation)
    return bench.stage


async def test_a_chunk_that_was_read_for_an_earlier_assignment_changes_nothing(bench: Bench) -> None:
    await bench.stage.process(bench.chunk(*ticking(range(4)), assignment_number=bench.assignment_number - 1))
    assert (bench.submissions, bench.sends, bench.stored) == (0, [], {})


async def test_a_row_of_latest_has_whole_shares_without_decimals(aggregation: Aggregation) -> None:
    core = Windows(PARTITION, revise_s=30)
    frame = Feed().frame([("s", "A", START, 100.0)], {"s": START})
    found = core.take_frame(dataclasses.replace(frame, log=LOG))
    assert found is not None
    (message,) = aggregation._latest(found, PARTITION)
    for part in (b'"volume":3,', b'"volume_5m":3,', b'"accrued_5m":0,', b'"gap_s":null,'):
        assert part in message.value, part

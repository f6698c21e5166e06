"""Gaps of a feed: which rows they reach, in any chunks, with late ticks, revisions and restarts. The models check random logs (`test_windows`)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest

from stockstream.records import AFTER_FEED_GAP
from stockstream.transforms import batch
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import cleaner as cleaning
from stockstream.transforms.cleaning import judging
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.windows import state as window_state
from stockstream.transforms.windows.feed_gaps import FeedGaps
from stockstream.transforms.windows.ticks import Ticks
from stockstream.transforms.windows.windows import Windows

BEGIN = 1_700_000_000
Tick = dict[str, Any]


@pytest.fixture(autouse=True)
def one_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)


def tick(second: float, **more: Any) -> Tick:
    return {"symbol": "X", "event_time": int((BEGIN + second) * 1000), "price": 10.0, "size": 100, "source": "s"} | more


def at(second: float) -> int:
    return int((BEGIN + second) * 1000)


def records(ticks: list[Tick]) -> list[RawRecord]:
    return [RawRecord(offset, 1 << 41, json.dumps(one).encode()) for offset, one in enumerate(ticks)]


def sent(ticks: list[Tick], chunk: int = 5_000) -> list[tuple[int, bool, bool]]:
    """Second since the beginning, whether the row is revised and whether it has the flag, of the rows of a log that is closed at its end."""
    end = {"punctuate": max(one["event_time"] for one in ticks if "symbol" in one) // 1000, "source": "s"}
    found = batch.run(records([*ticks, end]), partition=0, partitions=1, chunk=chunk).rows().to_pylist()
    return [(row["second"] - BEGIN, row["revised"], "gap" in row["quality"].split(",")) for row in found if row["symbol"] == "X"]


def flagged(ticks: list[Tick], chunk: int = 5_000) -> list[int]:
    """Seconds whose last row has the flag."""
    return [second for second, gap in {second: gap for second, _, gap in sent(ticks, chunk)}.items() if gap]


CHUNKS = pytest.mark.parametrize("chunk", [1, 3, 5_000])


@CHUNKS
def test_a_row_whose_window_reaches_into_the_gap_has_the_flag(chunk: int) -> None:
    ticks = [tick(second) for second in range(10)] + [tick(second, **({"gap_from": at(9)} if second == 30 else {})) for second in range(30, 340)]
    assert flagged(ticks, chunk) == list(range(30, 330))


@pytest.mark.slow
@CHUNKS
def test_several_gaps_far_apart_and_late(chunk: int) -> None:
    """No other row is inside them."""
    ends, late = [30, 1_000, 1_295, 2_000], [(1_315, 1_306), (1_640, 1_635)]
    ticks = [tick(second, **({"gap_from": at(second - 1)} if second in ends else {})) for second in range(2_400)]
    for place, second in reversed(late):
        ticks.insert(place, tick(second, gap_from=at(second - 1)))
    wanted = [second for second in range(2_400) if any(0 <= second - end < 300 for end in (*ends, *(second for _, second in late)))]
    assert sorted(flagged(ticks, chunk)) == wanted


@CHUNKS
def test_a_quote_may_be_the_first_tick_after_the_gap(chunk: int) -> None:
    assert flagged([tick(0), tick(20, price=None, size=0, bid=9.9, gap_from=at(0)), tick(25)], chunk) == [20, 25]


@CHUNKS
def test_the_second_in_which_the_gap_begins_is_whole_unless_it_ends_there_too(chunk: int) -> None:
    assert flagged([tick(1), tick(1.9, gap_from=at(1.2)), tick(2)], chunk) == [1, 2]
    assert flagged([tick(0), tick(1.9, gap_from=at(0.1)), tick(2)], chunk) == [1, 2]


@CHUNKS
def test_a_gap_that_begins_behind_its_tick_marks_the_ticks_second(chunk: int) -> None:
    assert flagged([tick(0), tick(5, gap_from=at(9)), tick(6)], chunk) == [5, 6]


@CHUNKS
def test_a_late_tick_from_inside_the_gap_has_the_flag_as_soon_as_the_gap_is_known(chunk: int) -> None:
    """Before the tick that tells of the gap nobody knows of it: what was sent is not sent again for it."""
    before = [tick(0), tick(5), tick(7)]
    after = [tick(20, gap_from=at(2)), tick(21), tick(8), tick(23), tick(6.5), tick(24)]
    assert sent(before + after, chunk) == [
        (0, False, False), (5, False, False), (7, False, True), (8, False, True), (20, False, True), (21, False, True),
        (6, False, True), (7, True, True), (8, True, True), (20, True, True), (21, True, True), (23, False, True), (24, False, True),
    ]  # fmt: skip


@CHUNKS
def test_a_gap_that_comes_late_revises_the_rows_behind_it(chunk: int) -> None:
    rows = sent([tick(0), tick(5), tick(7), tick(9), tick(6, gap_from=at(3)), tick(11)], chunk)
    assert [second for second, revised, gap in rows if gap] == [6, 7, 9, 11]
    assert (7, True, True) in rows and (5, True, True) not in rows


@CHUNKS
def test_a_change_of_currency_ends_it(chunk: int) -> None:
    ticks = [tick(0, currency="GBp"), tick(5, gap_from=at(0)), tick(6), tick(7, currency="GBP"), tick(8)]
    assert flagged(ticks, chunk) == [5, 6]


@CHUNKS
def test_the_gap_before_a_tick_that_is_too_late_goes_to_the_next_one(chunk: int) -> None:
    """A provider that is reached again sends each symbol's last trade, which may be of before."""
    others = [tick(second, symbol="Y") for second in range(100)]
    late = [tick(20, gap_from=at(0)), tick(30, gap_from=at(10))]
    assert flagged([tick(0), *others, *late, tick(100), tick(101)], chunk) == [100, 101]
    assert flagged([tick(0), *others, *late, tick(100, gap_from=at(50)), tick(90)], chunk) == [90, 100]


def test_state_of_a_restart_keeps_it_and_a_release_without_it_has_none() -> None:
    ticks = [tick(0), *(tick(second, gap_from=at(0)) if second == 40 else tick(second) for second in range(40, 60))]
    later = [tick(45), *(tick(second) for second in range(60, 345))]
    core, windows = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x"), Windows(0, revise_s=30)
    core.chunk(records(ticks))
    frame = core.make_frame()
    assert frame is not None
    windows.take_frame(frame)
    stored = dict(windows.records(0))
    core.chunk([record._replace(offset=record.offset + len(ticks)) for record in records(later)])
    more = core.make_frame()
    assert more is not None
    old = dict(stored)
    for key, value in stored.items():
        if not window_state.is_checkpoint(key):
            bucket = window_state.bucket_of(value)
            fields = window_state.STORED[:-1]
            assert window_state.STORED[-1] == "away_s"
            for second in bucket.seconds:
                second.data = second.data[: 8 * len(fields) * len(second.symbols)]
            old[key] = window_state.bucket_record([], 0, msgspec.structs.replace(bucket, fields=fields))[1]
    seen: list[dict[int, bool]] = []
    for state in (stored, old):
        restored = Windows.restore(0, state, revise_s=30)
        seen.append({})
        for part in (frame, more):
            rows = restored.take_frame(part)
            assert rows is not None
            seen[-1] |= {row["second"] - BEGIN: "gap" in row["quality"].split(",") for row in rows.batch(0).to_pylist()}
    assert [second for second, gap in seen[0].items() if gap] == list(range(45, 340))
    assert not any(seen[1].values())


def test_a_row_inside_a_gap_knows_it_from_its_closing_on() -> None:
    gaps = FeedGaps()
    symbol, second, offset, away_s = (np.array(values) for values in ([0, 1, 0], [90, 50, 95], [7, 8, 9], [10, 1, 3]))
    gaps.note(Ticks(symbol, second, np.ones(3), np.ones(3), offset, {}, None, away_s))
    assert len(gaps) == 2, "a gap of its own second reaches over no other"
    rows = [(0, 80, 9), (0, 81, 6), (0, 81, 7), (0, 89, 7), (0, 90, 9), (0, 94, 8), (0, 94, 9), (0, 95, 9), (1, 49, 9)]
    index, second, offset = np.array(rows).T
    assert gaps.inside(index, second, offset).tolist() == [False, False, True, True, False, False, True, False, False]
    gaps.renumber({0: 3})
    assert gaps.inside(np.array([3, 0]), np.array([85, 85]), np.array([9, 9])).tolist() == [True, False]
    gaps.forget(90)
    assert len(gaps) == 1


@pytest.mark.parametrize("many", [2, 5_000], ids=["at once", "one by one"])
def test_the_size_of_an_interval_has_accrued(many: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleaning, "MANY", many)
    core = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    core.chunk(records([tick(0), tick(0)]))
    core.make_frame()
    bar: Tick = {"interval_s": 60}
    given: list[Tick] = [bar, {"interval_s": 2}, {"interval_s": 2.001}, bar | {"size": 0}, bar | {"size": 1e-12}, {"gap_from": at(0)}]
    core.chunk([record._replace(offset=record.offset + 2) for record in records([tick(1, **more) for more in given])])
    frame = core.make_frame()
    assert frame is not None
    assert frame.rows.column("flags").to_pylist() == [1, 0, 1, 0, 0, AFTER_FEED_GAP]
    assert frame.rows.column("gap_from").to_pylist() == [None] * 5 + [at(0)]

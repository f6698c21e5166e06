"""The windows are the model's, bit for bit the same however the log is cut, and after any crash."""

from __future__ import annotations

import copy
import json
import math
import random
from collections.abc import Collection
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stockstream.transforms import batch
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import judging
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import Frame
from stockstream.transforms.timing import Lateness
from stockstream.transforms.windows import arithmetic, cells
from stockstream.transforms.windows.cells import SPARE_S, Cells
from stockstream.transforms.windows.windows import Windows
from tests import oracle
from tests.changelogs import Changelog
from tests.logs import cuts, day_records, generated_day, real_day, records_of
from tests.model import recovery_model, windows_model
from tests.seeds import some_quick

Key = tuple[str, int, int]


@pytest.fixture(autouse=True)
def one_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)


def frames_of(rng: random.Random, records: list[Any], longest: int, lateness: int | Lateness = 200) -> list[Frame]:
    core = Cleaner(0, 8, lateness_ms=lateness, revise_s=30, log="x")
    out = []
    for some in cuts(rng, records, longest):
        core.chunk(some)
        frame = core.make_frame()
        assert frame is not None
        out.append(frame)
    return out


def equal(got: Any, want: Any, name: str) -> bool:
    if isinstance(want, float) and got is not None:
        return math.isclose(got, want, rel_tol=1e-9, abs_tol=1e-12 if name == "return_std_5m" else 0.0)
    return bool(got == want)


class Judge:
    """Holds every row ever sent to the model's, and to the bits it was sent with before."""

    def __init__(self, log: list[Any], lateness: Lateness = Lateness(200)) -> None:  # noqa: B008 (frozen)
        closings = windows_model.closings(log, lambda source, offset: lateness.of(source))
        self.want: dict[Key, dict[str, Any]] = {(r["symbol"], r["second"], r["offset"]): r for c in closings for r in c["rows"]}
        self.bits: dict[Key, str] = {}
        self.seen: set[Key] = set()

    def take(self, rows: list[dict[str, Any]]) -> None:
        for row in rows:
            key = row["symbol"], row["second"], row["offset"]
            assert key in self.want
            assert self.bits.setdefault(key, repr(row)) == repr(row)
            for name, value in self.want[key].items():
                assert equal(row[name], value, name), (key, name, row[name], value)
            self.seen.add(key)


def work(core: Windows, frame: Frame, at: int, term: int) -> tuple[list[dict[str, Any]], list[tuple[bytes, bytes]]]:
    rows = core.take_frame(frame, at)
    if rows is None:
        return [], []
    return rows.batch(0).to_pylist(), core.records(term)


@pytest.mark.parametrize("seed", some_quick(range(40), 10))
def test_rows_are_the_models_in_any_chunks(seed: int) -> None:
    rng = random.Random(seed)
    log = recovery_model.random_log(rng, rng.randrange(20, 160))
    judge = Judge(log)
    for longest in (2, 12, 1_000):
        judge.seen.clear()
        core = Windows(0, revise_s=30)
        for at, frame in enumerate(frames_of(rng, records_of(log), longest)):
            judge.take(work(core, frame, at, 0)[0])
        assert judge.seen == judge.want.keys()


@pytest.mark.parametrize("seed", some_quick(range(20), 5))
def test_rows_are_the_models_where_sources_have_a_lateness_of_their_own(seed: int) -> None:
    rng = random.Random(seed)
    log, lateness = recovery_model.random_log(rng, 160), Lateness.parse(rng.choice(("200,b=2500", "1000,a=0,c=5000", "b=0,a=999")))
    judge = Judge(log, lateness)
    for longest in (3, 1_000):
        judge.seen.clear()
        core = Windows(0, revise_s=30)
        for at, frame in enumerate(frames_of(rng, records_of(log), longest, lateness)):
            judge.take(work(core, frame, at, 0)[0])
        assert judge.seen == judge.want.keys()


@pytest.mark.parametrize("seed", some_quick(range(60), 15))
def test_crashes_and_woken_workers_change_nothing(seed: int) -> None:
    """Dies while sending and while writing; frozen copies wake, send and write. A restart reads the ranges of the changelog that its end names."""
    rng = random.Random(seed)
    log = recovery_model.random_log(rng, rng.randrange(20, 160))
    judge = Judge(log)
    frames = frames_of(rng, records_of(log), 12)
    changelog = Changelog(rng)
    core, at, term, crashes = Windows(0, revise_s=30), 0, 0, 0
    asleep: list[tuple[Windows, int, int, list[Any], list[Any]]] = []
    while at < len(frames):
        rows, records = work(core, frames[at], at, term)
        die = rng.random()
        if die < 0.12:
            judge.take(rows[: rng.randrange(len(rows) + 1)] if die < 0.06 else rows)
            changelog.write(records[: rng.randrange(len(records) + 1)] if die >= 0.06 else [])
            if rng.random() < 0.4:
                zombie = copy.deepcopy(core)                             # it was frozen, not dead
                changelog.take_over(core.index, zombie.index)
                asleep.append((zombie, at + 1, term, rows, records))
            term += 1
            crashes += 1
            stored = changelog.read(Windows.needs)
            core = Windows.restore(0, stored.records, stored.offsets, revise_s=30)
            at = core.resume_input
            continue
        judge.take(rows)
        changelog.write(records, core.index)
        at += 1
        if asleep and rng.random() < 0.2:
            zombie, its, old, rows, records = asleep.pop(rng.randrange(len(asleep)))
            judge.take(rows)                                             # it goes on where it stood: its writes come in order
            changelog.write(records, zombie.index)
            for frame in frames[its : its + rng.randrange(1, 4)]:
                rows, records = work(zombie, frame, its, old)
                its += 1
                judge.take(rows)
                changelog.write(records, zombie.index)
    assert judge.seen == judge.want.keys()


@pytest.mark.parametrize("chunk", some_quick([5_000, 37], 1))
def test_a_generated_day_equals_pandas(chunk: int) -> None:
    day = generated_day()
    results = batch.run(day_records(day, "replay.generated"), partition=0, partitions=1, chunk=chunk)
    assert results.rejections == []
    got = results.rows().to_pandas()
    assert not got.revised.any()
    assert oracle.differences(got, oracle.rows(day)) == []


@pytest.mark.parametrize("chunk", some_quick([5_000, 37], 1))
def test_a_day_with_gaps_of_its_feed_equals_pandas(chunk: int) -> None:
    """A feed that notices each silence of more than ten seconds of a symbol."""
    day = generated_day(seed=11, seconds=2_500)
    newest = day.groupby("symbol").event_time.transform(lambda times: times.cummax().shift())
    day["gap_from"] = pd.Series([int(last) if at - last > 10_000 else None for at, last in zip(day.event_time, newest, strict=True)], day.index, dtype=object)
    assert day.gap_from.notna().sum() > 20
    results = batch.run(day_records(day, "replay.generated"), partition=0, partitions=1, chunk=chunk)
    got = results.rows().to_pandas()
    assert results.rejections == [] and 0.1 < got.quality.str.endswith("gap").mean() < 0.9
    assert oracle.differences(got, oracle.rows(day)) == []


def last_words(rows: pd.DataFrame) -> pd.DataFrame:
    """The row of each symbol and second that counts, without how it came about."""
    last = rows.drop_duplicates(["symbol", "second"], keep="last").assign(revised=False)
    return last.assign(quality=[",".join(flag for flag in text.split(",") if flag != "late") for text in last.quality])


def late_day() -> pd.DataFrame:
    """A day with series over many stretches, of which every hundredth tick comes up to 20 s late."""
    day = generated_day(seconds=1_800, symbols=4)
    late = np.random.default_rng(3).random(len(day)) < 0.01
    arrival = day.event_time + np.where(late, 20_000, 0)
    return day.iloc[np.argsort(arrival.to_numpy(), kind="stable")].reset_index(drop=True)


@pytest.mark.parametrize("many", [0, 1_000_000])
def test_late_ticks_in_any_chunks_give_the_same_bits(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    """All ways of adding along the seconds, and the last word on every second is what pandas says."""
    day = late_day()
    records = day_records(day, "replay.late")
    whole = batch.run(records, partition=0, partitions=1, chunk=5_000)
    monkeypatch.setattr(arithmetic, "MANY_SYMBOLS", many)
    parts = batch.run(records, partition=0, partitions=1, chunk=37)
    assert whole.rejections == parts.rejections == []
    got = parts.rows()
    assert got.equals(whole.rows())
    rows = got.to_pandas()
    assert rows.revised.sum() > 500 and rows.quality.str.contains("late").sum() > 5
    late = rows[rows.quality.str.contains("late")]
    assert not late.revised.any() and not rows[~rows.revised].duplicated(["symbol", "second"]).any(), "the first row of a second, and no other"
    last = last_words(rows)
    assert oracle.differences(last, oracle.rows(day)) == []


@pytest.mark.slow
def test_the_latest_ticks_find_all_that_they_change(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ticks as late as may be, with not a second to spare: the same bits as with room for the whole day."""
    ticks = []
    for second in range(1_700_000_000, 1_700_000_900):
        ticks.append((second, "A"))
        if second % 7 == 0:
            ticks.append((second - 30, "AB"[second % 2]))                # `second` - 1 is closed
    day = pd.DataFrame(ticks, columns=["second", "symbol"])
    day = day.assign(event_time=day.second * 1000 + 500, price=100.0 + day.index % 11, size=day.index).drop(columns="second")
    records = day_records(day, "replay.late")
    whole = batch.run(records, partition=0, partitions=1, chunk=5_000)
    monkeypatch.setattr(cells, "SPARE_S", 0)
    parts = batch.run(records, partition=0, partitions=1, chunk=1)
    assert parts.rejections == []
    assert parts.rows().equals(whole.rows())
    rows = parts.rows().to_pandas()
    assert rows.revised.sum() > 100
    assert oracle.differences(last_words(rows), oracle.rows(day)) == []


@pytest.mark.slow
def test_restarts_within_long_series_change_no_bit() -> None:
    rng = random.Random(5)
    cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    frames = []
    for some in cuts(rng, day_records(late_day(), "replay.late"), 60):
        cleaner.chunk(some)
        frames.append(cleaner.make_frame())
    changelog: dict[bytes, bytes] = {}
    core, restarted = Windows(0, revise_s=30), Windows(0, revise_s=30)
    sent: dict[Key, str] = {}
    for at, frame in enumerate(frames):
        assert frame is not None
        sent |= {(r["symbol"], r["second"], r["offset"]): repr(r) for r in work(core, frame, at, 0)[0]}
    at = term = 0
    while at < len(frames):
        frame = frames[at]
        assert frame is not None
        rows, records = work(restarted, frame, at, term)
        assert all(sent[r["symbol"], r["second"], r["offset"]] == repr(r) for r in rows)
        changelog |= dict(records)
        at += 1
        if rng.random() < 0.1 and at < len(frames) - 20:
            term += 1
            restarted = Windows.restore(0, changelog, revise_s=30)
            at = restarted.resume_input
    assert term > 10
    assert not restarted._rings["replay.late"].through                   # what stored buckets count is behind


@pytest.mark.parametrize("begins", [260, 299, 300, 301, 359])
def test_a_series_that_begins_anew_counts_nothing_of_the_one_before(begins: int) -> None:
    """The old price is still carried in the stretch of 300 s in which the new series begins; quotes show it."""
    stretch = 1_700_000_100
    assert stretch % 300 == 0
    first = [(stretch - 60 + at, 100.0 + at % 7) for at in range(15)]
    again = [(stretch + begins + at, 200.0 + at % 5) for at in range(0, 400, 3)]
    quotes = [(second, np.nan) for second in range(stretch - 40, stretch + 700, 10)]
    day = pd.DataFrame(first + again + quotes, columns=["second", "price"])
    day = day.assign(symbol="A", event_time=day.second * 1000, size=np.where(day.price.isna(), 0, 5), bid=99.0).drop(columns="second")
    day = day.sort_values("event_time", kind="stable").reset_index(drop=True)
    for chunk in (7, 5_000):
        got = batch.run(day_records(day, "replay.anew"), partition=0, partitions=1, chunk=chunk).rows().to_pandas()
        assert oracle.differences(got, oracle.rows(day)) == []


@pytest.mark.slow
def test_the_real_day_equals_pandas() -> None:
    _, day = real_day()
    results = batch.run(day_records(day, "replay.day"), partition=0, partitions=1)
    assert sum(frame.rows.num_rows for frame in results.clean) == 388_417
    assert results.rejections == []
    got = results.rows().to_pandas()
    assert oracle.differences(got, oracle.rows(day)) == []


def test_two_sources_of_different_delay_do_not_disturb_each_other() -> None:
    day = generated_day(seconds=1_500, symbols=4)
    mine, other = day[day.symbol != "G1"], day[day.symbol == "G1"].assign(event_time=lambda d: d.event_time - 900_000)
    alone = batch.run(day_records(mine, "a"), partition=0, partitions=1).rows().to_pandas()
    records = day_records(mine, "a") + day_records(other, "b")
    rng = random.Random(1)
    order = sorted(range(len(records)), key=lambda i: (i if i <= len(mine) else (i - len(mine)) * (len(mine) / len(other))) + rng.random())
    mixed = [records[i]._replace(offset=offset, timestamp=records[-1].timestamp + 10**7) for offset, i in enumerate(order)]
    both = batch.run(mixed, partition=0, partitions=1).rows().to_pandas()
    columns = [name for name in alone.columns if name != "offset"]
    got = both[both.source == "a"][columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(got, alone[columns].reset_index(drop=True))
    assert (both.source == "b").any()
    order = list(both[["offset", "source", "second", "symbol"]].itertuples(index=False))
    assert order == sorted(order)


def test_a_long_silence_costs_no_memory() -> None:
    day = generated_day(seconds=1_200, symbols=3)
    later = day.assign(event_time=day.event_time + 40 * 86_400_000)
    core, cleaner = Windows(0, revise_s=30), Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    cleaner.chunk(day_records(pd.concat([day, later], ignore_index=True), "replay.two"))
    frame = cleaner.make_frame()
    assert frame is not None
    rows = core.take_frame(frame)
    assert rows is not None
    assert oracle.differences(rows.batch(0).to_pandas(), pd.concat([oracle.rows(day), oracle.rows(later)])) == []
    ring = core._rings["replay.two"]
    assert ring.past.width < 10_000
    quiet = later.event_time.max() // 1000 + np.arange(3_000)            # as live: now few seconds at a time are needed
    for second in quiet.tolist():
        ring.ensure_capacity(second, second)
        ring.close(second)
    assert (ring.current.width, ring.past.width) < (31 + 40, 331 + 40)


def test_a_restart_keeps_no_more_than_windows_look_at() -> None:
    day = generated_day(seconds=1_500, symbols=5)
    core, cleaner = Windows(0, revise_s=30), Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    cleaner.chunk(day_records(day, "replay.a"))
    frame = cleaner.make_frame()
    assert frame is not None
    core.take_frame(frame)
    ring = Windows.restore(0, dict(core.records(0)), revise_s=30)._rings["replay.a"]
    before = core._rings["replay.a"]
    assert (ring.current.width, ring.past.width) == (31 + SPARE_S, 331 + SPARE_S)
    assert ring.closed == before.closed
    rows, seconds = before.cells_between(ring.closed - 30, ring.closed)
    again = ring.register_symbols([before.names[row] for row in rows.tolist()])
    for name, values in before.statistics(rows, seconds).items():
        np.testing.assert_array_equal(ring.statistics(again, seconds)[name], values)


def life(begin: int, ts: int) -> list[tuple[int, dict[str, Any]]]:
    """Two minutes of one source, with Kafka's times, closed at the end."""
    ticks = [(ts + at * 1000, {"symbol": "A", "event_time": (begin + at) * 1000, "price": 100.0 + at % 7, "size": at, "source": "a"}) for at in range(120)]
    return [*ticks, (ts + 130_000, {"punctuate": begin + 119, "source": "a"})]


def rows_of(log: list[tuple[int, dict[str, Any]]], chunk: int, restarts: Collection[int] = ()) -> list[dict[str, Any]]:
    """The rows of a log in chunks of so many records; before each of `restarts`, all that is kept are state records."""
    core, cleaner = Windows(0, revise_s=30), Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    kept: dict[bytes, bytes] = {}
    frames: list[Frame] = []
    out = []
    for at in range(0, len(log), chunk):
        some = [RawRecord(offset, ts, json.dumps(value).encode()) for offset, (ts, value) in enumerate(log[at : at + chunk], at)]
        assert cleaner.chunk(some) == []
        frame = cleaner.make_frame()
        assert frame is not None
        frames.append(frame)
        if at in restarts:
            core = Windows.restore(0, kept, revise_s=30)
        for number in range(core.resume_input if at in restarts else len(frames) - 1, len(frames)):
            told, records = work(core, frames[number], number, 0)
            out += [row | {"offset": None} for row in told]
            kept |= dict(records)
    return out


@pytest.mark.parametrize("back", some_quick([331, 40, 100, 3_000, 400_000], 1))
@pytest.mark.parametrize("chunk", [1, 7, 50, 1_000])
def test_a_source_that_was_forgotten_begins_another_series(back: int, chunk: int) -> None:
    """A day of the log's time later it tells of seconds from `back` before its last, however the log is cut."""
    begin = 1_700_000_000
    first, second = life(begin, begin * 1000), life(begin + 120 - back, (begin + 90_000) * 1000)
    assert rows_of(first + second, chunk) == rows_of(first, 1) + rows_of(second, 1)


@pytest.mark.parametrize("back", some_quick([120, 100, 1_000], 1))
@pytest.mark.parametrize("chunk", [1, 7])
def test_what_is_stored_of_a_series_before_counts_no_more(back: int, chunk: int) -> None:
    """A restart in the second telling of the same seconds finds buckets of both."""
    begin = 1_700_000_000
    log = life(begin, begin * 1000) + life(begin + 120 - back, (begin + 90_000) * 1000)
    restarts = range(0, len(log), chunk)
    assert rows_of(log, chunk, [at for at in restarts if at > 130][::5]) == rows_of(log, 1)


def test_cells_go_round() -> None:
    cells = Cells(("high", "price", "volume_total"), 5)
    cells.resize(3, cells.width)
    rows = np.arange(3)
    written: dict[int, int] = {}

    def holds() -> None:
        kept = range(max(cells.base, min(written)), cells.last + 1)
        for name in ("high", "price", "volume_total"):
            want = np.array([[written[second] * 10 + row for row in rows] for second in kept], cells.of(name).dtype)
            field = cells.fields[name]
            got = cells.read(slice(field, field + 1), kept[0], kept[-1], slice(0, 3))[0].view(cells.of(name).dtype)
            np.testing.assert_array_equal(got, want)
            at = cells.at(np.tile(rows, len(kept)), np.repeat(np.array(kept), 3))
            np.testing.assert_array_equal(cells.flat(name).take(at), want.reshape(-1))

    rng = random.Random(3)
    second, widths = 1_000, set()
    for turn in range(400):
        step = rng.choice((1, 1, 1, 2, 30 if turn < 200 else 1))
        cells.ensure_capacity(second, second + step)
        assert cells.base <= second - cells.depth
        for new in range(second, second + step + 1):
            at = cells.at(rows, np.full(3, new))
            if new not in written:
                assert (cells.flat("high").take(at) == -np.inf).all()
            for name in ("high", "price", "volume_total"):
                cells.flat(name)[at] = new * 10 + rows
            written[new] = new
        second += step
        holds()
        if turn == 100:
            cells.resize(7, cells.width)
            assert np.isnan(cells.of("price")[:, 3:]).all()
        widths.add(cells.width)
    assert len(widths) > 1
    assert cells.columns(second, second - 1) == [slice(0, 0)]
    assert cells.width <= cells.depth + 2 * (2 + 1 + SPARE_S)

"""What `aggregate` stores and keeps: bounded records and memory, exact after a write in part, older formats, rubbish."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockstream.errors import StateError
from stockstream.records import TICKS_SCHEMA, Closing
from stockstream.transforms.frames import Frame
from stockstream.transforms.timing import FORGET_MS
from stockstream.transforms.versioned import MAX_VALUE_BYTES
from stockstream.transforms.windows import state as window_state
from stockstream.transforms.windows import windows as windows
from stockstream.transforms.windows.ring import Ring
from stockstream.transforms.windows.windows import REST_MS, Windows
from tests.changelogs import Changelog

START = 1_700_000_100
DAY_S = 86_400
Tick = tuple[str, str, int, float | None]
"""Source, symbol, second, price; without a price a quote."""


class Feed:
    """Frames of ticks, whose offsets and closings follow upon each other."""

    def __init__(self) -> None:
        self.offset = 0
        self.closed: dict[str, int] = {}

    def again(self, source: str) -> Feed:
        """The source was forgotten: its next closing follows upon nothing."""
        del self.closed[source]
        return self

    def frame(self, ticks: Sequence[Tick], closings: dict[str, int], clock: int = 0) -> Frame:
        """The ticks, and behind them for each source the second that is closed."""
        start, columns = self.offset, dict[str, list[Any]]()
        for source, symbol, second, price in ticks:
            values = {
                "symbol": symbol, "source": source, "event_time": second * 1_000, "price": price, "size": 3 if price else 0, "offset": self.offset, "index": 0,
                "bid": None if price else 99.5,
            }  # fmt: skip
            for field in TICKS_SCHEMA:
                columns.setdefault(field.name, []).append(values.get(field.name, None if field.nullable else 0))
            self.closed.setdefault(source, second - 1)
            self.offset += 1
        told = []
        for source, second in closings.items():
            told.append(Closing(self.offset, source, self.closed.get(source, second - 1), second))
            self.closed[source] = second
            self.offset += 1
        self.offset += 1
        rows = pa.RecordBatch.from_pydict(columns, TICKS_SCHEMA) if columns else pa.RecordBatch.from_pylist([], TICKS_SCHEMA)
        return Frame("log", start, self.offset - 1, tuple(told), rows, log_clock=clock)


def rows_of(core: Windows, frames: Sequence[Frame], *, state: bool = True) -> Iterator[list[dict[str, Any]]]:
    for at, frame in enumerate(frames):
        rows = core.take_frame(frame, at)
        assert rows is not None
        if state:
            core.records(0)
        yield [{name: repr(value) for name, value in row.items()} for row in rows.batch(0).to_pylist()]


def sparse(rng: random.Random, frames: int) -> list[Frame]:
    """Several sources that are heard now and then, whose symbols come, fall silent and come back."""
    feed, out = Feed(), []
    seconds = {name: START + 1_000 * number for number, name in enumerate("abc")}
    for _ in range(frames):
        heard = rng.sample("abc", rng.choice((1, 1, 2)))
        ticks, closings = [], {}
        for source in heard:
            begin, step = seconds[source], rng.choice((1, 1, 5, 40, 350, 700))
            seconds[source] = begin + step
            for _ in range(rng.randrange(1, 6)):
                symbol = f"{source}{rng.randrange(3) + (begin - START) // 900 * rng.choice((0, 2))}"
                late = rng.choice((0, 0, 0, 20))
                second = max(begin + rng.randrange(1, step + 1) - late, feed.closed.get(source, 0) - 28)
                ticks.append((source, symbol, second, rng.choice((None, 10.5, 11.0, 12.25))))
            closings[source] = seconds[source]
        out.append(feed.frame(ticks, closings))
    return out


@pytest.mark.slow
@given(st.integers(0, 1 << 32))
@settings(max_examples=8, deadline=None)
def test_sources_at_rest_and_symbols_without_a_row_change_no_bit(seed: int) -> None:
    frames = sparse(random.Random(seed), 60)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "REST_FRAMES", 1 << 40)
        patch.setattr(Ring, "make_room", lambda *_: None)
        want = list(rows_of(Windows(0, revise_s=30), frames))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "REST_FRAMES", 0)
        core, kept = Windows(0, revise_s=30), Ring.make_room
        patch.setattr(Ring, "make_room", lambda ring, symbols: kept(ring, symbols))
        assert list(rows_of(core, frames)) == want


@pytest.mark.slow
def test_symbols_that_fell_silent_give_up_their_rows_and_the_bits_stay() -> None:
    feed, frames = Feed(), list[Frame]()
    rng = random.Random(2)
    for at in range(0, 12_000, 50):
        names = [f"N{at // 500 * 20 + number}" for number in range(20)] + ["ALWAYS", f"BACK{at % 3_000 // 1_000}"]
        ticks: list[Tick] = [("s", name, START + at + rng.randrange(1, 50), 10.0 + rng.randrange(9)) for name in names]
        frames.append(feed.frame(ticks, {"s": START + at + 50}))
    core = Windows(0, revise_s=30)
    got, most = [], 0
    for at, frame in enumerate(frames):
        rows = core.take_frame(frame, at)
        assert rows is not None
        got.append([repr(row) for row in rows.batch(0).to_pylist()])
        most = max(most, len(core._rings["s"].symbols))
    assert most < 100, "of 480 symbols"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "make_room", lambda *_: None)
        want = [[repr(row) for row in rows.batch(0).to_pylist()] for rows in map(Windows(0, revise_s=30).take_frame, frames) if rows is not None]
    assert got == want


def test_a_source_is_dropped_a_day_of_the_logs_time_after_its_last_frame_also_across_restarts() -> None:
    feed = Feed()
    hour = 3_600_000
    frames = [
        feed.frame([("gone", "A", START, 10.0), ("live", "B", START, 10.0)], {"gone": START, "live": START}, clock=hour),
        feed.frame([("live", "B", START + 1, 10.0)], {"live": START + 1}, clock=hour + REST_MS + 1),
        feed.frame([("live", "B", START + 2, 10.0)], {"live": START + 2}, clock=0),
        feed.frame([("live", "B", START + 3, 10.0)], {"live": START + 3}, clock=hour + FORGET_MS),
        feed.frame([("live", "B", START + 4, 10.0)], {"live": START + 4}, clock=hour + FORGET_MS + 1),
        feed.again("gone").frame(
            [("gone", "A", START - 500, 20.0), ("live", "B", START + 5, 10.0)], {"gone": START - 500, "live": START + 5}, clock=hour + FORGET_MS + 2
        ),
    ]
    steady = Windows(0, revise_s=30)
    want = list(rows_of(steady, frames))
    for restart in (False, True):
        core, changelog, known, got = Windows(0, revise_s=30), Changelog(random.Random(1)), [], []
        for at, frame in enumerate(frames):
            rows = core.take_frame(frame, at)
            assert rows is not None
            got.append([{name: repr(value) for name, value in row.items()} for row in rows.batch(0).to_pylist()])
            changelog.write(core.records(at), core.index)
            if restart:
                stored = changelog.read(Windows.needs)
                core = Windows.restore(0, stored.records, stored.offsets, revise_s=30)
            known.append(sorted(core._rings))
        assert got == want
        assert known == [["gone", "live"]] * 4 + [["live"], ["gone", "live"]]
        assert {"gone", "live"} == set(core._rings) and core._rings["gone"].series_offset > 0
    assert steady._rings["gone"].closed == START - 500


@pytest.mark.slow
def test_thirty_days_of_new_symbols_and_sources_keep_memory_and_state_flat() -> None:
    """Each day 300 new symbols of a living source, and eight recordings, each of 30 symbols of its own."""
    core, feed, rng = Windows(0, revise_s=30), Feed(), random.Random(4)
    by_day: dict[int, list[int]] = {}
    for day in range(30):
        most = [0, 0, 0, 0]
        for step in range(48):
            at = day * DAY_S + step * 1_800
            now = START + at
            ticks: list[Tick] = [("live", f"D{day}N{rng.randrange(300)}", now + rng.randrange(1, 1_800), 10.0 + rng.randrange(9)) for _ in range(20)]
            ticks.sort(key=lambda tick: tick[2])
            closings = {"live": now + 1_800}
            if step % 6 == 0:
                name = f"replay.{day}.{step}"
                ticks += [(name, f"{name}.{number}", now + second, 10.0) for second in range(0, 300, 20) for number in range(30)]
                closings[name] = now + 300
            rows = core.take_frame(feed.frame(ticks, closings, clock=now * 1_000), day * 48 + step)
            assert rows is not None
            records = core.records(0)
            core.index.confirmed(feed.offset * 10, feed.offset * 10 + len(records) - 1)
            rings = core._rings.values()
            now_is = [
                len(rings), sum(ring.array_bytes for ring in rings), sum(len(ring.symbols) for ring in rings),
                sum(len(value) for key, value in records if window_state.is_checkpoint(key)),
            ]  # fmt: skip
            most = [max(*pair) for pair in zip(most, now_is, strict=True)]
        by_day[day] = most
        assert len(core.index._batches) <= len(core._rings) and len(core._inputs) < 5
    sources, _, symbols, head = by_day[29]
    assert sources <= 10 and symbols < 700 and head < 5_000
    assert all(now <= 1.15 * then for now, then in zip(by_day[29], by_day[3], strict=True)), by_day


@pytest.mark.slow
def test_records_of_many_sources_and_symbols_with_long_names_stay_below_a_message() -> None:
    feed, core = Feed(), Windows(0, revise_s=30)
    names = [f"{number:04d}" + "源" * 124 for number in range(2_500)]
    stored: dict[bytes, bytes] = {}
    for second in (START, START + 1):
        ticks: list[Tick] = [(name, "銘" * 32, second, 10.0) for name in names]
        assert core.take_frame(feed.frame(ticks, dict.fromkeys(names, second)), second - START) is not None
        records = core.records(0)
        assert max(len(value) for _, value in records) < MAX_VALUE_BYTES + 1_000
        heads = [key for key, _ in records if window_state.is_checkpoint(key)]
        assert len(heads) > 1
        before, stored = dict(stored), stored | dict(records)
    for cut in range(1, len(heads) + 1):
        kept = before | dict(records[: len(records) - cut])
        assert Windows.restore(0, kept, revise_s=30)._last < core._last, "the head before is whole"
    again = Windows.restore(0, stored, revise_s=30)
    assert again._last == core._last and again._rings.keys() == core._rings.keys()


@pytest.mark.slow
def test_a_second_of_twenty_thousand_symbols_is_cut_by_bytes() -> None:
    feed, core, symbols = Feed(), Windows(0, revise_s=30), ["銘" * 26 + f"{number:06d}" for number in range(20_000)]
    core.take_frame(feed.frame([("s", symbol, START, 10.0) for symbol in symbols], {"s": START}))
    records = core.records(0)
    assert len(records) > 6 and max(len(value) for _, value in records) < MAX_VALUE_BYTES + 1_000
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Ring, "close", lambda *_: None)                   # its arrays are as large as in life; that takes a while
        again = Windows.restore(0, dict(records), revise_s=30)
    assert list(again._rings["s"].symbols) == symbols


def version_1(records: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The records as version 1 had them."""
    out = {}
    for key, value in records:
        kind = msgspec.msgpack.decode(key)
        if window_state.is_checkpoint(key):
            head = window_state.checkpoint_of(value)
            sources = {name: [s.closed, s.counted_through, s.stored, s.series_offset] for name, s in head.sources.items()}
            record: Any = [head.last, head.log, head.resume_raw, head.resume_input, head.sent_from, sources, head.ranges]
            out[msgspec.msgpack.encode(kind[:2])] = msgspec.msgpack.encode(record)
        else:
            bucket = window_state.bucket_of(value)
            for second in bucket.seconds:                                # it has no parts of shares
                second.data = second.data[: 8 * len(window_state.FIRST_STORED) * len(second.symbols)]
            out[key] = msgspec.msgpack.encode([bucket.through, bucket.log, bucket.source, bucket.seconds])
    return out


def test_records_of_version_1_are_read() -> None:
    frames = sparse(random.Random(6), 60)
    want = list(rows_of(Windows(0, revise_s=30), frames))
    core, stored = Windows(0, revise_s=30), dict[bytes, bytes]()
    for at, frame in enumerate(frames[:40]):
        core.take_frame(frame, at)
        stored |= version_1(core.records(0))
    assert all(Windows.readable(key, value) == "" for key, value in stored.items())
    again = Windows.restore(0, stored, revise_s=30)
    assert list(rows_of(again, frames[40:])) == want[40:]


def some_records() -> dict[bytes, bytes]:
    core, stored = Windows(0, revise_s=30), dict[bytes, bytes]()
    for at, frame in enumerate(sparse(random.Random(6), 30)):
        core.take_frame(frame, at)
        stored |= dict(core.records(0))
    return stored


def test_unknown_fields_are_ignored_missing_ones_are_zero_and_newer_formats_are_refused() -> None:
    stored, changed = some_records(), dict[bytes, bytes]()
    fields = [*window_state.FIRST_STORED[1:], "mood"]
    for key, value in stored.items():
        record = msgspec.msgpack.decode(value) | {"colour": "green"}
        if not window_state.is_checkpoint(key):
            for second in record["seconds"]:
                columns = np.frombuffer(second[2], np.int64).reshape(len(window_state.FIRST_STORED), -1)
                second[2] = np.concatenate([columns[1:], columns[:1]]).tobytes()
                second.append("new")
            record["fields"] = fields
        changed[key] = msgspec.msgpack.encode(record)
        newer = msgspec.msgpack.encode(record | {"v": 4})
        with pytest.raises(StateError, match=r"newer stockstream \(format 4"):
            Windows.readable(key, newer)
        with pytest.raises(StateError, match=r"newer stockstream"):
            Windows.restore(0, {key: newer}, revise_s=30)
    assert all(Windows.readable(key, value) == "" for key, value in changed.items())
    got, want = (Windows.restore(0, records, revise_s=30) for records in (changed, stored))
    for name, ring in want._rings.items():
        np.testing.assert_array_equal(got._rings[name].past.of("price"), ring.past.of("price"))


@pytest.mark.slow
def test_rubbish_is_told_from_records_and_never_raises_anything_else() -> None:
    rng, good = random.Random(1), some_records()
    assert all(Windows.readable(key, value) == "" for key, value in good.items())
    keys = rng.sample(list(good), 4) + [key for key in good if window_state.is_checkpoint(key)] + [msgspec.msgpack.encode(["head", 0]), b"\xc1", b"[]"]
    values = [b"", b"\xc1", b"[]", b"\x80", msgspec.msgpack.encode([1, 2]), b"\x91" * 5_000]
    values.append(msgspec.msgpack.encode([1, "log", "a", [[1 << 31, ["A"], b"123"]]]))
    far = [window_state.Second(second, ["A"], bytes(8 * len(window_state.STORED))) for second in (5, START, 1 << 31)]
    values.append(msgspec.msgpack.encode(window_state.Bucket(v=2, through=1 << 61, log="log", source="a", seconds=far, fields=window_state.STORED)))
    for value in rng.sample(list(good.values()), 6):
        values += [value[: rng.randrange(len(value))] for _ in range(5)]
        for _ in range(25):
            changed = bytearray(value)
            changed[rng.randrange(len(value))] = rng.randrange(256)
            values.append(bytes(changed))
    for key in keys:
        for value in values:
            try:
                assert isinstance(Windows.readable(key, value), str)
                Windows.restore(0, good | {key: value}, revise_s=30)
            except StateError:
                continue
    assert Windows.readable(b"\xc1", next(iter(good.values()))) != ""


@pytest.mark.parametrize("late", [(), (1,), (5, 1)], ids=["in order", "a second late", "seconds late"])
@pytest.mark.parametrize("after", [1, 2], ids=["closed before", "closed two before"])
def test_a_source_that_is_heard_again_after_days_needs_no_room_for_the_days_between(late: tuple[int, ...], after: int) -> None:
    """Its first ticks may come in a frame of their own, before its first closing: a thin feed on a Monday morning."""
    monday = START + 3 * DAY_S
    names = [f"S{number:03d}" for number in range(300)]

    def told(cut: bool) -> list[dict[str, Any]]:
        feed, core = Feed(), Windows(0, revise_s=30)
        frames = [feed.frame([("a", name, START, 10.0) for name in names], {"a": START})]
        feed.again("a")
        feed.closed["a"] = monday - after
        ticks = [("a", "S000", monday, 11.0), *(("a", "S001", monday - back, 11.5) for back in late)]
        if cut:
            frames += [feed.frame([tick], {}) for tick in ticks] + [feed.frame([("a", "S002", monday + 1, 12.0)], {"a": monday + 1})]
        else:
            frames += [feed.frame([*ticks, ("a", "S002", monday + 1, 12.0)], {"a": monday + 1})]
        rows = [row for part in rows_of(core, frames, state=cut) for row in part]
        (ring,) = core._rings.values()
        assert ring.current.width < 1_000 and ring.past.width < 1_000
        return [{name: value for name, value in row.items() if name != "offset"} for row in rows]

    assert told(cut=True) == told(cut=False)
    assert len(told(cut=True)) == len(names) + 2 + len(late)


def test_a_restart_between_the_first_tick_after_days_and_its_closing_loses_no_row() -> None:
    monday = START + 3 * DAY_S
    feed, log, core = Feed(), Changelog(random.Random(1)), Windows(0, revise_s=30)
    frames = [feed.frame([("a", "X", START, 10.0), ("b", "Y", START, 10.0)], {"a": START, "b": START})]
    feed.again("a")
    feed.closed["a"] = monday - 1
    frames.append(feed.frame([("a", "X", monday, 11.0)], {}))
    frames.append(feed.frame([("b", "Y", START + 1, 10.0)], {"b": START + 1}))           # its checkpoint is written while X waits
    frames.append(feed.frame([("a", "X", monday + 1, 12.0)], {"a": monday + 1}))
    told: list[tuple[str, int]] = []
    for number, frame in enumerate(frames):
        rows = core.take_frame(frame, number)
        assert rows is not None
        told += [(row["symbol"], row["second"]) for row in rows.batch(0).to_pylist()]
        log.write(core.records(0), core.index)
        if number == 2:
            stored = log.read(Windows.needs)
            core = Windows.restore(0, stored.records, stored.offsets, revise_s=30)
            for again, earlier in enumerate(frames[:3]):
                if again >= core.resume_input:
                    core.take_frame(earlier, again)
    assert told == [("X", START), ("Y", START), ("Y", START + 1), ("X", monday), ("X", monday + 1)]

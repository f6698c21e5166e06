"""A restart reads the ranges that the end of a changelog names, and they hold all that it needs."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.transforms.batch import RawRecord
from stockstream.transforms.changelog_index import OPEN, ChangelogIndex, Range, merge, subtract
from stockstream.transforms.cleaning import judging
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.windows.ring import RESTORE_S
from stockstream.transforms.windows.windows import Windows
from tests.changelogs import Changelog

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], pair[0] + pair[1])), max_size=6)


def offsets(of: list[Range]) -> set[int]:
    return {offset for first, last in of for offset in range(first, last + 1)}


@given(ranges, ranges)
def test_ranges_are_sets_of_offsets(some: list[Range], known: list[Range]) -> None:
    assert offsets(merge(some, 1)) == offsets(some)
    assert offsets(subtract(some, known)) == offsets(some) - offsets(known)
    merged = merge(some, 5)
    assert offsets(some) <= offsets(merged)
    assert all(b[0] - a[1] > 5 for a, b in pairwise(merged))


@given(st.integers(0, 1 << 32))
def test_every_record_that_is_needed_lies_in_a_range(seed: int) -> None:
    rng = random.Random(seed)
    index, end, lost = ChangelogIndex(), 0, rng.random() < 0.5
    log: list[tuple[int, str, int]] = []
    waiting: list[tuple[int, int]] = []
    newest = {"a": 0, "b": 0}
    for _ in range(rng.randrange(60)):
        source = rng.choice("ab") if rng.random() < 0.9 else "roster"
        if source != "roster" and rng.random() < 0.05:
            index.forget(source)
            newest[source] = max(0, newest[source] - rng.randrange(500))
            log = [record for record in log if record[1] != source]
        if source == "roster":
            index.written({}, ["roster"])
            second = 0
            log = [record for record in log if record[1] != "roster"]
        else:
            newest[source] += rng.randrange(1, 40)
            second = newest[source] - (rng.randrange(30) if rng.random() < 0.2 else 0)
            index.written({source: second})
        size = rng.randrange(1, 1_500)
        log.append((end + rng.randrange(size), source, second))
        waiting.append((end, end + size - 1))
        end += size
        while waiting and rng.random() < 0.6:
            place = waiting.pop(0)
            index.confirmed(*(place if not lost or rng.random() < 0.7 else (-1, -1)))
        needed = index.needed({name: second - 100 for name, second in newest.items()})
        for offset, name, second in log:
            if name == "roster" or second >= newest[name] - 100:
                assert any(first <= offset <= last for first, last in needed), (offset, name, second, needed)


def test_a_source_that_has_ended_costs_its_own_range_and_no_more() -> None:
    index = ChangelogIndex()
    for at in range(20_000):
        index.written({"old": at} if at < 700 else {"new": at})
        index.confirmed(at, at)
    assert index.needed({"old": 600, "new": 19_990}) == [(600, 699), (19_990, OPEN)]
    assert index.needed({"new": 19_995}) == [(19_995, OPEN)], "who is not asked for any more is forgotten"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_restart_late_in_a_long_log_reads_the_last_windows_and_says_the_same(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)
    rng = random.Random(seed)
    seconds, symbols = 1_600, 3
    cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    steady, core, changelog = Windows(0, revise_s=30), Windows(0, revise_s=30), Changelog(rng)
    inputs = []
    for second in range(seconds):
        said = [
            b'{"symbol":"S%d","event_time":%d,"price":%d.5,"size":%d,"source":"s"}' % (n, (10_000 + second) * 1_000 + 300 * n, rng.randrange(9, 12), second)
            for n in range(symbols)
        ]
        cleaner.chunk([RawRecord(second * symbols + n, (10_000 + second) * 1_000 + 300 * n, value) for n, value in enumerate(said)])
        frame = cleaner.make_frame()
        assert frame is not None
        inputs.append(frame)
    restarts, at, term = sorted(rng.sample(range(900, seconds), 3)), 0, 0
    told = {}
    for place, frame in enumerate(inputs):
        rows = steady.take_frame(frame, place)
        assert rows is not None
        told[frame.start] = rows.batch(0)
    while at < seconds:
        rows = core.take_frame(inputs[at], at)
        assert rows is not None and (not rows.closings or rows.batch(0).equals(told[inputs[at].start]))
        changelog.write(core.records(term), core.index)
        at += 1
        if restarts and at > restarts[0]:
            restarts.pop(0)
            term += 1
            changelog.read_records = 0
            stored = changelog.read(Windows.needs)
            assert changelog.read_records < 2 * (RESTORE_S + 30) + 300
            core = Windows.restore(0, stored.records, stored.offsets, revise_s=30)
            at = core.resume_input
    assert not restarts

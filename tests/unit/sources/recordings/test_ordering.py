from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.sources.recordings import ordering
from stockstream.sources.recordings.chunks import Chunk
from stockstream.sources.recordings.intervals import interval_of
from stockstream.sources.recordings.ordering import bounds_of, sorted_by_time


def chunk(times: list[int], first: int) -> Chunk:
    rows = np.arange(first, first + len(times), dtype=np.float64)
    symbols = pa.array([f"S{time % 3}" for time in times]).dictionary_encode()
    return Chunk(symbols, np.array(times, dtype=np.int64), rows, rows, {"bid": rows}, {"exchange": symbols}, [])


@given(st.lists(st.lists(st.integers(0, 50), max_size=8), max_size=6), st.lists(st.integers(0, 50), max_size=4), st.booleans())
def test_ticks_come_in_the_order_of_time_and_equal_times_in_that_of_the_file(pieces: list[list[int]], bounds: list[int], newest_first: bool) -> None:
    chunks, row = [], 0
    for times in pieces:
        chunks.append(chunk(times, row))
        row += len(times)
    found = [one for some in sorted_by_time(chunks, sorted(set(bounds)), 5, newest_first=newest_first) for one in zip(
        some.times.tolist(), some.price.tolist(), some.symbols.to_pylist(), some.quotes["bid"].tolist(), some.texts["exchange"].to_pylist(), strict=True)]
    times = [time for piece in pieces for time in piece]
    rows = sorted(range(len(times)), key=lambda at: (times[at], -at if newest_first else at))
    assert found == [(times[at], float(at), f"S{times[at] % 3}", float(at), f"S{times[at] % 3}") for at in rows]


def test_a_large_recording_is_cut_where_its_ticks_are(monkeypatch: pytest.MonkeyPatch) -> None:
    assert bounds_of(np.arange(10), 100) == []
    monkeypatch.setattr(ordering, "PIECE_TICKS", 25)
    bounds = bounds_of(np.arange(100), 100)
    assert len(bounds) == 3 and all(20 <= step <= 30 for step in np.diff([0, *bounds, 100]))


def test_nothing_is_left_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    some = sorted_by_time([chunk([5, 1, 9], 0)], [3, 6], 10, newest_first=False)
    next(some)
    assert len(list(tmp_path.iterdir())) == 1
    some.close()  # type: ignore[attr-defined]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "length"), [
    ([0, 60, 120, 180], 60), ([0, 60, 240, 300], 60), ([0, 300, 600, 647], 300), ([0, 23 * 3600, 47 * 3600], 86_400),
    ([0, 7 * 86_400, 14 * 86_400], 7 * 86_400),
    ([0, 31 * 86_400, 59 * 86_400], 30 * 86_400), ([0], 0), ([], 0), ([5, 5], 0), ([0, 1, 2], 1),
])  # fmt: skip
def test_the_length_of_bars_is_seen(seconds: list[int], length: int) -> None:
    times = np.array(seconds, dtype=np.int64) * 1000
    assert interval_of(times, np.zeros(len(times), dtype=np.int64)) == length
    assert interval_of(times[::-1], np.zeros(len(times), dtype=np.int64)) == length

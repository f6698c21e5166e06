"""Local times, above all those of the nights in which clocks change."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.errors import SourceError
from stockstream.sources.recordings.options import ReadOptions
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.recordings.zones import LocalTimes
from tests.seeds import some_quick

ZONES = ["America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns", "UTC"]


def local(utc: list[int], zone: str) -> np.ndarray:
    """What the clocks show, in ms since 1970."""
    shown = [datetime.fromtimestamp(second, ZoneInfo(zone)).replace(tzinfo=UTC) for second in utc]
    return np.array([round(moment.timestamp() * 1000) for moment in shown], dtype=np.int64)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("step_s", some_quick([600, 300, 60, 1], 2))
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("piece", [7, 10_000])
def test_every_second_of_the_days_with_a_change_is_found_again(zone: str, step_s: int, descending: bool, piece: int) -> None:
    for day in ("2024-03-10", "2024-11-03", "2024-10-27", "2024-04-07", "2024-10-06"):
        noon = int(datetime.fromisoformat(f"{day}T12:00+00:00").timestamp())
        utc = list(range(noon - 86_400, noon + 43_200, step_s * (1 if step_s > 1 else 7)))
        if descending:
            utc.reverse()
        shown = local(utc, zone)
        clock = LocalTimes(zone, descending=descending)
        parts = [clock.to_utc(shown[start : start + piece]) for start in range(0, len(shown), piece)]
        assert np.concatenate([part[0] for part in parts]).tolist() == [second * 1000 for second in utc]
        assert all(part[1].all() for part in parts)


@given(st.sampled_from(ZONES), st.lists(st.integers(0, 4 * 10**9), min_size=1, max_size=20))
def test_a_time_that_comes_once_is_its_moment(zone: str, seconds: list[int]) -> None:
    found, exists = LocalTimes(zone).to_utc(local(seconds, zone))
    assert exists.all()
    for utc, got in zip(seconds, found.tolist(), strict=True):
        moment = datetime.fromtimestamp(utc, ZoneInfo(zone))
        assert got == utc * 1000 or moment.replace(fold=0).utcoffset() != moment.replace(fold=1).utcoffset()


def test_a_time_that_the_clocks_skip_is_no_time(tmp_path: Path) -> None:
    shown = int(datetime(2024, 3, 10, 2, 30, tzinfo=UTC).timestamp() * 1000)
    assert LocalTimes("America/New_York").to_utc(np.array([shown - 3_600_000, shown, shown + 3_600_000]))[1].tolist() == [True, False, True]
    path = tmp_path / "A.csv"
    path.write_text("time,price,size\n2024-03-10 02:30:00,1,1\n")
    with pytest.raises(SourceError, match=r"the clocks of America/New_York never showed it: name another --zone"):
        Recording(path, ReadOptions(zone="America/New_York")).survey()


def test_minute_bars_through_the_end_of_daylight_saving(tmp_path: Path) -> None:
    first = int(datetime(2024, 11, 3, 4, tzinfo=UTC).timestamp())
    utc = [first + 60 * minute for minute in range(240)]
    for name, moments in (("A.csv", utc), ("B.csv", utc[::-1])):
        rows = [f"{datetime.fromtimestamp(second, ZoneInfo('America/New_York')):%Y-%m-%d %H:%M:%S},1,1,1,1,5" for second in moments]
        (tmp_path / name).write_text("timestamp,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
        recording = Recording(tmp_path / name)
        found = [time for chunk in recording.chunks() for time in chunk.times.tolist()]
        assert found == [second * 1000 + 59_999 for second in utc] and recording.interval_s == 60


SYMBOLS = ["AAPL", "IBM", "MSFT"]
Bars = list[tuple[str, int]]


def orders() -> dict[str, Callable[[Bars], Bars]]:
    """Ways in which a file may be sorted; in the last by what its clocks show, so that the two bars of one time stand next to each other."""
    return {
        "by time": lambda bars: sorted(bars, key=lambda bar: (bar[1], bar[0])),
        "by symbol": lambda bars: sorted(bars),
        "newest first": lambda bars: sorted(bars, key=lambda bar: (-bar[1], bar[0])),
        "newest first of each symbol": lambda bars: sorted(bars, key=lambda bar: (bar[0], -bar[1])),
        "by local time": lambda bars: sorted(bars, key=lambda bar: (int(local([bar[1]], "America/New_York")[0]), bar[0], bar[1])),
    }


@pytest.mark.parametrize("order", list(orders()))
@pytest.mark.parametrize("minutes", [1, 15, 30, 60])
@pytest.mark.parametrize("symbols", [1, 2, 3])
def test_bars_of_both_hours(tmp_path: Path, order: str, minutes: int, symbols: int) -> None:
    first = int(datetime(2024, 11, 2, 22, tzinfo=UTC).timestamp())
    bars = orders()[order]([(symbol, first + 60 * minute) for symbol in SYMBOLS[:symbols] for minute in range(0, 16 * 60, minutes)])
    shown = [f"{datetime.fromtimestamp(second, ZoneInfo('America/New_York')):%Y-%m-%d %H:%M:%S}" for _, second in bars]
    rows = [f"{time},{symbol},1,1,1,1,{second // 60 % 100_000}" for time, (symbol, second) in zip(shown, bars, strict=True)]
    path = tmp_path / "bars.csv"
    path.write_text("timestamp,symbol,open,high,low,close,volume\n" + "\n".join(rows) + "\n")
    found = {
        (symbol, time, size)
        for chunk in Recording(path, ReadOptions(zone="America/New_York")).chunks()
        for symbol, time, size in zip(chunk.symbols.to_pylist(), chunk.times.tolist(), chunk.size.tolist(), strict=True)
    }
    assert found == {(symbol, (second + 60 * minutes) * 1000 - 1, float(second // 60 % 100_000)) for symbol, second in bars}


@pytest.mark.parametrize("piece", [1, 2, 3])
@pytest.mark.parametrize("descending", [False, True])
def test_both_hours_of_bars_that_come_in_pieces(piece: int, descending: bool) -> None:
    utc = [int(datetime(2024, 11, 3, 4, tzinfo=UTC).timestamp()) + 3600 * hour for hour in range(4)]
    bars = [(symbol, second) for second in (reversed(utc) if descending else utc) for symbol in SYMBOLS]
    clock = LocalTimes("America/New_York", descending=descending)
    found: list[int] = []
    for start in range(0, len(bars), piece):
        some = bars[start : start + piece]
        symbols = pa.array([symbol for symbol, _ in some]).dictionary_encode()
        found += clock.to_utc(local([second for _, second in some], "America/New_York"), symbols)[0].tolist()
    assert found == [second * 1000 for _, second in bars]


def test_a_bar_of_the_second_hour_alone_follows_the_rows_before() -> None:
    utc = [int(datetime(2024, 11, 3, 5, tzinfo=UTC).timestamp()) + 60 * minute for minute in range(90)]
    bars = [("AAPL", second) for second in utc] + [("IBM", utc[75])]
    bars.sort(key=lambda bar: bar[1])
    found, _ = LocalTimes("America/New_York").to_utc(
        local([second for _, second in bars], "America/New_York"), pa.array([symbol for symbol, _ in bars]).dictionary_encode()
    )
    assert found.tolist() == [second * 1000 for _, second in bars]


def test_trades_of_one_moment_are_of_one_hour() -> None:
    utc = [int(datetime(2024, 11, 3, 5, 30, tzinfo=UTC).timestamp())] * 3
    assert LocalTimes("America/New_York").to_utc(local(utc, "America/New_York"))[0].tolist() == [second * 1000 for second in utc]


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "America", "../etc/passwd"])
def test_an_unknown_zone_is_one_line(name: str) -> None:
    with pytest.raises(SourceError, match="there is no time zone"):
        LocalTimes(name)


def test_a_zone_without_summer_time_only_moves() -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    shown = np.array([int((moment + timedelta(minutes=n)).timestamp() * 1000) for n in range(3)])
    assert (LocalTimes("Asia/Kolkata").to_utc(shown)[0] - shown).tolist() == [-19_800_000] * 3

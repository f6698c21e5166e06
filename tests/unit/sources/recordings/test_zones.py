"""Local times, above all those of the nights in which clocks change."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.errors import SourceError
from stockstream.sources.recordings.options import ReadOptions
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.recordings.zones import LocalTimes

ZONES = ["America/New_York", "Europe/London", "Australia/Lord_Howe", "Asia/Kolkata", "America/St_Johns", "UTC"]


def local(utc: list[int], zone: str) -> np.ndarray:
    """What the clocks show, in ms since 1970."""
    shown = [datetime.fromtimestamp(second, ZoneInfo(zone)).replace(tzinfo=UTC) for second in utc]
    return np.array([round(moment.timestamp() * 1000) for moment in shown], dtype=np.int64)


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize("step_s", [1, 60, 300, 600])
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


@pytest.mark.parametrize("name", ["", "Mars/Olympus", "America", "../etc/passwd"])
def test_an_unknown_zone_is_one_line(name: str) -> None:
    with pytest.raises(SourceError, match="there is no time zone"):
        LocalTimes(name)


def test_a_zone_without_summer_time_only_moves() -> None:
    moment = datetime(2024, 1, 1, tzinfo=UTC)
    shown = np.array([int((moment + timedelta(minutes=n)).timestamp() * 1000) for n in range(3)])
    assert (LocalTimes("Asia/Kolkata").to_utc(shown)[0] - shown).tolist() == [-19_800_000] * 3

"""Spans and intervals as users give them."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pandas as pd
import pytest

from stockstream.research.times import DAY_S, Span, interval_s, span

DAY = 1_759_968_000_000     # 2025-10-09
HOUR = 3_600_000


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (date(2025, 10, 9), DAY), ("2025-10-09", DAY), (datetime(2025, 10, 9, 9), DAY + 9 * HOUR), (datetime(2025, 10, 9, 9, tzinfo=UTC), DAY + 9 * HOUR),  # noqa: DTZ001
        (datetime(2025, 10, 9, 9, tzinfo=timezone(timedelta(hours=2))), DAY + 7 * HOUR), ("2025-10-09T09:00:00+02:00", DAY + 7 * HOUR),
        ("2025-10-09 09:00", DAY + 9 * HOUR), ("2025-10-09T09:00Z", DAY + 9 * HOUR), (pd.Timestamp("2025-10-09 09:00"), DAY + 9 * HOUR),
        (pd.Timestamp("2025-10-09 05:00", tz="America/New_York"), DAY + 9 * HOUR), (np.datetime64("2025-10-09T09:00:00.250"), DAY + 9 * HOUR + 250),
        (np.datetime64("2025-10-09T09:00:00.250000001"), DAY + 9 * HOUR + 250), ("2025-10-09T09:00:00.0001", DAY + 9 * HOUR + 1),
    ],
)  # fmt: skip
def test_a_time_in_any_form(given: Any, expected: int) -> None:
    assert span(given, "2025-10-11").begin == expected
    assert span(None, given).end == expected


def test_without_an_end_a_date_is_a_day_and_a_time_goes_on() -> None:
    whole = Span(DAY, DAY + DAY_S * 1000)
    assert span("2025-10-09", None) == span(date(2025, 10, 9), None) == span("20251009", None) == whole
    assert span("2025-10-09T00:00", None) == span(pd.Timestamp("2025-10-09"), None) == Span(DAY, None)
    assert span(None, None) == Span() and Span().conditions("t") == ""
    assert span("2025-10-09", "2025-10-09") == Span(DAY, DAY)


def test_the_last_time_that_there_is() -> None:
    for whole in (span(None, datetime.max), span("9999-12-31", None)):   # noqa: DTZ901
        assert whole.last_date == date.max and whole.conditions("t", hours=True)


def test_the_dates_of_a_span_are_those_of_its_times() -> None:
    whole = span("2025-10-09", "2025-10-11")
    assert (whole.first_date, whole.last_date) == (date(2025, 10, 9), date(2025, 10, 10))
    assert (Span().first_date, Span().last_date) == (None, None)
    assert "hour BETWEEN 9 AND 10" in span("2025-10-09T09:30", "2025-10-09T10:30").conditions("t", hours=True)
    assert "hour" not in whole.conditions("t", hours=True)


@pytest.mark.parametrize("given", ["yesterday", "", "2025-13-01", "9:30"])
def test_a_text_that_is_no_time(given: str) -> None:
    with pytest.raises(ValueError, match="is no time like 2025-10-09"):
        span(given, None)


@pytest.mark.parametrize("given", [1_759_968_000, 1.5, pd.NaT])
def test_what_is_no_time(given: Any) -> None:
    with pytest.raises(TypeError, match="is no date, no time"):
        span(given, None)


def test_an_end_before_the_start() -> None:
    with pytest.raises(ValueError, match="end 2025-10-08 is before start 2025-10-09"):
        span("2025-10-09", "2025-10-08")


def test_intervals() -> None:
    assert [interval_s(text) for text in ("1s", "15s", "1m", "5m", "1h", "4h", "1d")] == [1, 15, 60, 300, 3_600, 14_400, 86_400]


@pytest.mark.parametrize("given", ["7m", "0s", "2d", "1w", "m", "1 m", "-5m", 60, None])
def test_what_is_no_interval(given: Any) -> None:
    with pytest.raises(ValueError, match="is not like 1s, 1m"):
        interval_s(given)

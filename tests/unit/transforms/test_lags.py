"""How far ticks come behind their source's watermark: what `clean` counts, and what a worker reports of it."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import cleaner as validation
from stockstream.transforms.cleaning import judging
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.lags import EDGES_MS, RECENT, SYMBOLS_KEPT, SourceLags, percentiles
from stockstream.transforms.timing import Lateness
from stockstream.watermark_lags import MAX_SOURCES, SLOTS, SPAN_S, WatermarkLags
from stockstream.web.openapi import SourceLateness

NOW = 1_700_000_000_000


@pytest.fixture(autouse=True)
def one_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)


def feed(core: Cleaner, ticks: list[tuple[str, int] | dict[str, Any]], *, arrays: bool = False) -> dict[str, SourceLags]:
    """Ticks as (symbol, event_time after NOW), each a record of its own unless they go as arrays; returns what was counted."""
    items: list[Any] = [
        one if isinstance(one, dict) else {"symbol": one[0], "source": "s", "event_time": NOW + one[1], "price": 1.0, "size": 1} for one in ticks
    ]
    begin = max(core.expect, 0)
    core.chunk([RawRecord(begin + at, NOW + 10**8, json.dumps([item] if arrays else item).encode()) for at, item in enumerate(items)])
    return core.memory.take_lags()


def new(lateness: int | Lateness = 200) -> Cleaner:
    return Cleaner(0, 1, lateness_ms=lateness, revise_s=30, log="x")


@pytest.mark.parametrize("arrays", [False, True])
@pytest.mark.parametrize("many", [2, 10_000])
def test_a_slow_symbol_is_named_and_the_lateness_that_it_needs(many: int, arrays: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MANY", many)
    core, seen = new(Lateness.parse("5,s=200")), WatermarkLags()
    feed(core, [("X", -1_000), ("SLOW", -1_000)], arrays=arrays)
    seen.add(feed(core, [tick for second in range(100) for tick in (("X", 1_000 * second), ("SLOW", 1_000 * second - 1_300))], arrays=arrays))
    (found,) = seen.report()
    assert msgspec.convert(found, SourceLateness)
    assert found["slow_symbols"] == ["SLOW"] and found["lateness_ms"] == 200
    assert (found["ticks"], found["late_ticks"], found["rejected_late"]) == (200, 100, 0)
    assert found["lag_ms"]["p50"] == 0 and 1_300 <= found["lag_ms"]["p99"] <= 1_430
    assert found["suggested_lateness_ms"] in (1_100, 1_200)
    again = new(found["suggested_lateness_ms"])
    feed(again, [("X", -1_000), ("SLOW", -1_000)], arrays=arrays)
    taken = feed(again, [tick for second in range(100) for tick in (("X", 1_000 * second), ("SLOW", 1_000 * second - 1_300))], arrays=arrays)
    assert taken["s"].late == 0


def test_ticks_that_are_too_late_are_counted_and_others_that_are_rejected_are_not() -> None:
    core = new()
    feed(core, [("A", 0)])
    lags = feed(core, [("A", 100_000), ("A", 1_000), ("A", 100_001), {"symbol": "A", "event_time": 5}])["s"]
    assert (lags.ticks, lags.late, lags.rejected) == (2, 0, 1) and lags.symbols == {"A": [1, 3]}
    assert lags.lag.sum() == lags.needed.sum() == 3


def test_a_punctuation_is_no_lag_and_neither_is_a_restart() -> None:
    core = new(2_500)
    feed(core, [("A", 0), ("A", 500)])
    core.chunk([RawRecord(core.expect, NOW, json.dumps({"punctuate": NOW // 1000, "source": "s"}).encode())])
    assert feed(core, [("A", 1_100), ("A", 1_200)])["s"].lag[0] == 2
    core.make_frame()
    core = Cleaner.restore(0, 1, dict(core.records(0)), lateness_ms=2_500, revise_s=30)
    assert feed(core, [("A", 2_200), ("A", 2_100)])["s"].lag[0] == 1


def test_percentiles_are_at_most_a_tenth_too_high() -> None:
    lags = SourceLags()
    assert percentiles(lags.lag, (0.5, 0.999)) == [None, None]
    for value in (7, 250, 90_000):
        counts = lags.lag * 0
        counts[EDGES_MS.searchsorted(value)] = 5
        (found,) = percentiles(counts, (0.5,))
        assert found is not None and value <= found <= value * 1.1 + 1
    counts[-1] = 10**6
    assert percentiles(counts, (0.999,)) == [EDGES_MS[-1]]


def test_symbols_are_bounded_and_what_they_did_long_ago_fades() -> None:
    lags = SourceLags()
    lags.add_symbols((f"S{number}" for number in range(SYMBOLS_KEPT + 5)), ())
    assert len(lags.symbols) == SYMBOLS_KEPT
    lags.add_symbols(["S0"] * 30, [("S0", 30)])
    assert lags.slow_symbols(10) == ["S0"]
    for _ in range(8):
        lags.add_symbols([], [("S0", RECENT)])
    assert "S0" not in lags.symbols


def test_figures_are_of_the_last_hour_and_metrics_since_the_start() -> None:
    now = 1_000.0
    seen = WatermarkLags(lambda: now)
    core = new()
    feed(core, [("A", 0)])
    seen.add(feed(core, [("A", 5_000), ("A", 900)]))
    seen.add_late_rows("s", 3)
    registry = CollectorRegistry()
    registry.register(seen)
    for _ in range(2):
        text = generate_latest(registry).decode()
        assert 'stockstream_source_late_rows_total{source="s"} 3.0' in text and 'stockstream_source_late_ticks_total{source="s"} 1.0' in text
        assert 'stockstream_source_lag_seconds_bucket{le="+Inf",source="s"} 2.0' in text and 'le="2.5",source="s"} 1.0' in text
        assert 'stockstream_source_lateness_seconds{source="s"} 0.2' in text
        ticks = seen.report()[0]["ticks"]
        assert (ticks, seen.report()[0]["late_rows"]) == ((2, 3) if now == 1_000.0 else (0, 0))
        now += SLOTS * SPAN_S
    for number in range(2 * MAX_SOURCES):
        seen.add_late_rows(f"replay.{number}", 1)
    assert len(seen.report()) == MAX_SOURCES + 1 and {"s", "other"} < {one["source"] for one in seen.report()}

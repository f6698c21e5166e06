from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from stockstream.metrics import MAX_LABELS, SPAN_S, Metrics

ROOT = Path(__file__).resolve().parents[2]


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    families = text_string_to_metric_families(metrics.exposition().decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def test_what_is_reported_is_exposed() -> None:
    m = Metrics(Clock())
    m.ticks_accepted(5)
    m.ticks_rejected("late", 2)
    m.noted("volume", "taken_back", 3)
    m.noted("numbering", "same_number", 2)
    m.rows("windows", 7)
    m.alert("volume_spike", "opened")
    m.predictions(3)
    m.hole("expired", 4)
    m.frame_dropped("detect", "beyond")
    m.restart("tail")
    m.lag("ticks.raw", 3, 12)
    m.archive_offset(3, 99)
    m.unreadable("alerts", "ValidationError")
    got = samples(m)
    assert got["stockstream_ticks_accepted_total", ()] == 5
    assert got["stockstream_ticks_rejected_total", (("reason", "late"),)] == 2
    assert got["stockstream_volume_figures_total", (("reason", "taken_back"),)] == 3
    assert got["stockstream_numbering_total", (("reason", "same_number"),)] == 2
    assert got["stockstream_rows_total", (("topic", "windows"),)] == 7
    assert got["stockstream_alerts_total", (("rule", "volume_spike"), ("state", "opened"))] == 1
    assert got["stockstream_predictions_total", ()] == 3
    assert got["stockstream_holes_total", (("kind", "expired"),)] == 4
    assert got["stockstream_frames_dropped_total", (("agent", "detect"), ("why", "beyond"))] == 1
    assert got["stockstream_restarts_total", (("what", "tail"),)] == 1
    assert got["stockstream_lag", (("partition", "3"), ("topic", "ticks.raw"))] == 12
    assert got["stockstream_archive_offset", (("partition", "3"),)] == 99
    assert m.rejected() == {"late": 2}
    assert m.totals()["ticks_accepted"] == 5
    m.forget_lag("ticks.raw", 3)
    m.forget_archive_offset(3)
    m.forget_archive_offset(4)
    assert not any(name in ("stockstream_lag", "stockstream_archive_offset") for name, _ in samples(m))


def test_histogram_is_cumulative_and_arrays_count_as_single_values_do() -> None:
    values = np.array([0.001, 0.005, 0.3, 20.0, 0.3])
    one, many = Metrics(Clock()), Metrics(Clock())
    for value in values:
        one.observe("score", float(value))
    many.observe_many("score", values)
    many.observe_many("score", 0.3, 0)
    assert {k: v for k, v in samples(one).items() if "latency" in k[0]} == pytest.approx({k: v for k, v in samples(many).items() if "latency" in k[0]})
    got = samples(one)
    for edge, count in (("0.005", 2), ("0.25", 2), ("0.5", 4), ("10.0", 4), ("+Inf", 5)):
        assert got["stockstream_latency_seconds_bucket", (("hop", "score"), ("le", edge))] == count
    assert got["stockstream_latency_seconds_count", (("hop", "score"),)] == 5
    assert one.latency_ms() == many.latency_ms()


def test_percentiles_are_of_the_last_minute() -> None:
    clock = Clock()
    m = Metrics(clock)
    values = np.random.default_rng(1).exponential(0.2, 20_000)
    m.observe_many("a", values)
    m.observe_many("a", float("nan"))
    m.observe_many("a", np.array([np.inf, np.nan]))
    got = m.latency_ms()["a"]
    assert got["count"] == 20_000
    assert got["p50"] == pytest.approx(np.percentile(values, 50) * 1_000, rel=0.03)
    assert got["p99"] == pytest.approx(np.percentile(values, 99) * 1_000, rel=0.03)
    clock.now += SPAN_S - 1
    assert m.latency_ms()["a"]["count"] == 20_000
    clock.now += 1
    assert m.latency_ms()["a"] == {"p50": None, "p99": None, "count": 0}
    clock.now += 10 * SPAN_S
    m.observe("a", 1.0)
    assert m.latency_ms()["a"]["count"] == 1


def test_rates_are_of_the_time_since_the_start_at_first() -> None:
    clock = Clock()
    m = Metrics(clock)
    for _ in range(10):
        m.ticks_accepted(100)
        clock.now += 1
    assert m.rates()["ticks_accepted"] == pytest.approx(1_000 / 11, abs=0.001)
    for _ in range(200):
        m.ticks_accepted(50)
        clock.now += 1
    assert m.rates()["ticks_accepted"] == pytest.approx(50, rel=0.02)
    clock.now += 100
    assert m.rates()["ticks_accepted"] == 0


def test_labels_are_bounded() -> None:
    m = Metrics(Clock())
    for i in range(1_000):
        m.ticks_rejected(f"reason-{i}")
        m.observe(f"hop-{i}", 1.0)
    assert len(m.rejected()) == MAX_LABELS + 1
    assert m.rejected()["other"] == 1_000 - MAX_LABELS
    assert len(m.latency_ms()) == MAX_LABELS + 1


def test_two_instances_share_nothing() -> None:
    one, two = Metrics(Clock()), Metrics(Clock())
    one.ticks_accepted(1)
    assert samples(two)["stockstream_ticks_accepted_total", ()] == 0


def test_every_metric_that_is_declared_is_moved_by_the_product() -> None:
    moved_by: dict[str, set[str]] = {}
    module = ast.parse((ROOT / "stockstream" / "metrics.py").read_text())
    (declared,) = (node for node in module.body if isinstance(node, ast.ClassDef) and node.name == "Metrics")
    for method in (node for node in declared.body if isinstance(node, ast.FunctionDef)):
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
                moved_by.setdefault(node.attr, set()).add(method.name)
    collectors = {name.removeprefix("_") for name, value in vars(Metrics()).items() if isinstance(value, MetricWrapperBase)}
    used = {name for folder in ("stockstream", "agents", "tables") for path in (ROOT / folder).rglob("*.py") for name in used_of_metrics(path)}
    assert len(collectors) >= 15
    unmoved = {name for name in collectors if not (moved_by[f"_{name}"] - {"__init__"}) & used}
    assert unmoved == set()
    assert {name for name in vars(Metrics) if name.startswith("forget_")} <= used


def used_of_metrics(path: Path) -> Iterator[str]:
    """Names of the methods that a module calls, or hands on, of something called `metrics`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            owner = node.value
            if (owner.attr if isinstance(owner, ast.Attribute) else owner.id if isinstance(owner, ast.Name) else "").endswith("metrics"):
                yield node.attr


def test_sources_and_records_that_were_passed_over_are_exposed() -> None:
    m = Metrics(Clock())
    m.record_skipped("watchlist", "invalid_json", 3)
    m.source_up("simulated", True)
    m.source_failed("simulated")
    got = samples(m)
    assert got["stockstream_records_skipped_total", (("reason", "invalid_json"), ("topic", "watchlist"))] == 3
    assert got["stockstream_source_up", (("source", "simulated"),)] == 1
    assert got["stockstream_source_failures_total", (("source", "simulated"),)] == 1

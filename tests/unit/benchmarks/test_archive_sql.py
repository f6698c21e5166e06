"""The day of the archive's benchmark is what it should be, and the benchmark runs through."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.archive_day import AWAY_S, DATE, HALTED, HALTED_S, SHARES, Day, slots, write_partition
from benchmarks.archive_sql import PRODUCT, archive_sql, same
from benchmarks.load import PARTITIONS
from stockstream.sinks.archive.current import current
from stockstream.sinks.stores import FileStore
from stockstream.sql.duckdb_engine import DuckdbEngine

DAY = Day(40_000, 60, flush_s=900)


def test_a_day_has_its_ticks_and_is_as_uneven_as_it_should_be() -> None:
    found = [slot for partition in range(PARTITIONS) for slot in slots(DAY, partition)]
    symbol, time = (np.concatenate([getattr(slot, name) for slot in found]) for name in ("symbol", "event_time"))
    assert len(symbol) == DAY.ticks
    second = time // 1_000 - int(DATE.timestamp())
    by_hour = np.bincount(second // 3_600) / DAY.ticks
    assert all(by_hour[hour] == pytest.approx(share, rel=0.01) for hour, share in SHARES.items())
    counts = np.bincount(symbol)
    assert counts[0] > 3 * counts[-1] > 0 and len(counts) == DAY.symbols
    halted = (second >= HALTED_S[0]) & (second < HALTED_S[1] // 900 * 900)
    assert halted.any() and not (symbol[halted] == HALTED).any()


def test_the_feed_is_away_for_a_minute() -> None:
    for slot in slots(Day(30_000, 20), 0):
        second = slot.event_time // 1_000 - int(DATE.timestamp())
        assert not ((second >= AWAY_S[0]) & (second < AWAY_S[1])).any()


def test_records_arrive_in_the_order_of_kafkas_time_and_prices_walk() -> None:
    last: dict[int, int] = {}
    for slot in slots(DAY, 1):
        assert (np.diff(slot.timestamp) >= 0).all() and (slot.timestamp >= slot.event_time).all() and (slot.size > 0).all()
        order = slot.event_time.argsort(kind="stable")
        for symbol, cents in zip(slot.symbol[order].tolist(), slot.cents[order].tolist(), strict=True):
            assert cents >= 100 and abs(cents - last.get(symbol, cents)) <= 2
            last[symbol] = cents


def test_a_seed_makes_the_same_archive_again(tmp_path: Path) -> None:
    made = []
    for name in ("a", "b"):
        assert write_partition(tmp_path / name, DAY, 2) > 0
        made.append({str(path.relative_to(tmp_path / name)): path.read_bytes() for path in (tmp_path / name).rglob("*") if path.is_file()})
    assert made[0] == made[1] and len(made[0]) > 3 * 26


def test_the_archive_has_every_tick(tmp_path: Path) -> None:
    accepted = write_partition(tmp_path, DAY, 0)
    with DuckdbEngine(FileStore(tmp_path)) as engine:
        [(ticks,)] = engine.run("SELECT count(*) FROM ticks").rows()
        [(in_bars,)] = engine.run("SELECT sum(ticks) FROM bars_1m").rows()
        [(raw,)] = engine.run("SELECT count(*) FROM raw").rows()
    assert ticks == in_bars == raw == accepted == sum(len(slot.symbol) for slot in slots(DAY, 0))
    assert len(current(FileStore(tmp_path), "ticks")) == 26


def test_results_are_compared() -> None:
    assert same([("A", 1.0, None)], [("A", 1.0 + 1e-12, None)])
    assert not same([("A", 1.0)], [("A", 1.1)]) and not same([("A", 1.0)], []) and not same([("A", None)], [("A", 1.0)])


@pytest.mark.slow
def test_the_benchmark_runs_through_and_keeps_the_archive(tmp_path: Path) -> None:
    text, data = archive_sql(argparse.Namespace(rows=20_000, symbols=20, repeat=1, flush_s=1_800, archive=tmp_path / "made"))
    assert data["ticks"] == 20_000 and data["lines"] == data["hour_rows"] == pytest.approx(2_900, abs=8)
    assert data["queries"]["top_movers"][PRODUCT]["warm"] and set(data["commands"]) >= {"day", "movers-ticks"}
    assert "| compacted: by symbol and time" in text
    assert [path.name for path in tmp_path.iterdir()] == ["made"] and len(current(FileStore(tmp_path / "made"), "ticks")) > 26

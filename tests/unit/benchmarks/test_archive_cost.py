"""The benchmark of what archiving costs: each row's age is noted once, when a query first returns it, and aims are compared with what was measured."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import duckdb
import pytest

from benchmarks.archive_cost import VIEWS, WAYS, Freshness, table

COLUMNS = {"ticks": "event_time TIMESTAMPTZ", "windows": "second BIGINT", "predictions": "as_of TIMESTAMPTZ"}


@pytest.mark.parametrize("view", list(VIEWS))
def test_the_age_of_a_row_is_noted_once(view: str) -> None:
    held = duckdb.connect()
    held.execute(f'CREATE TABLE {view} ("partition" INTEGER, "offset" BIGINT, {COLUMNS[view]})')
    archive: Any = SimpleNamespace(sql=lambda sql: SimpleNamespace(df=lambda: held.execute(sql).df()))
    seen = Freshness(archive, view)

    def add(partition: int, offset: int, age_s: int) -> None:
        second = int(time.time()) - age_s
        value = str(second) if view == "windows" else f"to_timestamp({second})"
        held.execute(f"INSERT INTO {view} VALUES ({partition}, {offset}, {value})")

    seen.ask()
    assert seen.ages_s == []
    for rows in ([(0, 5, 100), (0, 6, 100)], [(1, 0, 200)], [(0, 7, 300), (1, 1, 400), (2, 0, 500)], []):
        for row in rows:
            add(*row)
        before = len(seen.ages_s)
        seen.ask()
        found = sorted(seen.ages_s[before:])
        assert len(found) == len(rows)
        assert all(-1 <= got - age <= 60 for got, (*_, age) in zip(found, sorted(rows, key=lambda row: row[2]), strict=True))


def test_the_archives_share_is_that_of_the_whole_line() -> None:
    def way(name: str, us: float) -> dict[str, Any]:
        return {"way": name, "us_a_tick": us, "cpu_s": 3.0, "wall_s": 60.0, "behind_s": [1.0, 1.1], "children_cpu_s": 0.5, "compaction_us_a_tick": 1.25}

    held = {"rate": 100_000, "offered_rate": 9e4, "processed_rate": 8e4, "behind_s": [1.0, 9.0], "catching_up_rate": 120_000.0, "held_live": False}
    fresh = {"rate": 2_000, "views": {"ticks": {"rows": 5, "p50_s": 16.0, "worst_s": 31.5, "slowest_query_s": 0.2}}}
    text = table([way(name, us) for name, us in zip(WAYS, (8.0, 9.0, 10.0), strict=True)], held, fresh, 30.0)
    assert "| archive as by default | 10.00 | 3.00 | 5% | 20.0% | 1.1 |" in text
    assert "not held live" in text and "120,000 ticks/s" in text and "aim: 35 s at the latest" in text and "1.25 us a tick once an hour" in text

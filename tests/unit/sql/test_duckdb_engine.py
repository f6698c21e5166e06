"""The engine on this machine: what it sees of the archive, what it refuses, and what it does when objects vanish or cannot be read."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stockstream.sinks.archive import current
from stockstream.sinks.stores import FileStore
from stockstream.sql import duckdb_engine
from stockstream.sql.duckdb_engine import DuckdbEngine, Limits, connect
from stockstream.sql.errors import ArchiveChanged, QueryTooLong, SqlError
from stockstream.sql.views import VIEWS
from tests.unit.sql.archives import LOG, ticks, write_rows

DAY, HOUR = "date=2025-10-09", "date=2025-10-09/hour=08"
LONG = "SELECT count(*) FROM range(1000000000000) AS numbers(i) WHERE i % 3 = 7"


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[DuckdbEngine]:
    write_rows(tmp_path, "ticks", HOUR, ticks(10))
    with connect(tmp_path) as opened:
        yield opened


def test_only_the_views_are_listed(engine: DuckdbEngine) -> None:
    assert {name for (name,) in engine.run("SHOW TABLES").rows()} == set(VIEWS)
    assert {name for (name,) in engine.run("SELECT table_name FROM information_schema.tables").rows()} == set(VIEWS)


def test_every_view_has_a_meaning_for_each_column(engine: DuckdbEngine) -> None:
    for name, view in VIEWS.items():
        assert [column for column, _ in engine.columns(name)] == list(view.columns), name
        assert all(view.columns.values())


@pytest.mark.parametrize(
    "sql",
    [
        "COPY (SELECT 1) TO '{out}'", "EXPLAIN ANALYZE COPY (SELECT 1) TO '{out}'", "EXPLAIN ANALYZE CREATE TABLE t AS SELECT 1",
        "WITH a AS (COPY (SELECT 1) TO '{out}') SELECT * FROM a", "SELECT (SELECT a FROM (WITH z AS (COPY (SELECT 1) TO '{out}') SELECT 1 AS a FROM z))",
        "WITH a AS (INSERT INTO t VALUES (1)) SELECT * FROM a", "EXPLAIN /* x */ ANALYZE -- y\nCOPY (SELECT 1) TO '{out}'",
        "SELECT * FROM query('WITH a AS (COPY (SELECT 1) TO ''{out}'') SELECT * FROM a')", "SELECT * FROM arrow_scan(1, 2, 3)",
        "CREATE TABLE t (a INT)", "DROP VIEW ticks", "ATTACH '{out}' AS x", "SET memory_limit = '1GB'", "CALL force_checkpoint()", "LOAD httpfs",
    ],
)  # fmt: skip
def test_what_would_write_or_run_something_is_refused(tmp_path: Path, engine: DuckdbEngine, sql: str) -> None:
    with pytest.raises(SqlError, match=r"read-only|not available"):
        engine.run(sql.format(out=tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["processed"]


@pytest.mark.parametrize(
    "sql",
    ["EXPLAIN SELECT 1", "explain analyze select 1", "-- a remark\nEXPLAIN (FORMAT json) SELECT 1", "FROM ticks", "VALUES (1)", "DESCRIBE ticks",
     "SUMMARIZE ticks", "SELECT 1 AS copy;", "WITH a AS (SELECT 1 AS x) SELECT * FROM a", "SELECT * FROM ticks t ASOF JOIN ticks u ON t.price >= u.price"],
)  # fmt: skip
def test_what_reads_is_allowed(engine: DuckdbEngine, sql: str) -> None:
    assert engine.run(sql).fetch()[0]


@pytest.mark.parametrize(
    ("sql", "message"),
    [
        ("SELECT offset FROM ticks", 'offset is a keyword of SQL; as the name of the column write it in quotes, "offset"'),
        ("SELECT symbol FROM ticks WHERE offset > 3", 'write it in quotes, "offset"'),
        ("SELECT pric FROM ticks", "there is no column 'pric': did you mean price"),
        ("SELECT * FROM tick", "there is no view 'tick': did you mean ticks"),
        ("SELECT 1; SELECT 2", "one SQL statement is expected, not 2"),
        ("SELEC 1", "syntax error"),
    ],
)
def test_errors_say_what_to_do_in_one_line(engine: DuckdbEngine, sql: str, message: str) -> None:
    with pytest.raises(SqlError) as raised:
        engine.run(sql)
    assert message in str(raised.value) and "\n" not in str(raised.value)
    assert engine.run('SELECT max("offset") FROM ticks').fetch() == ([(9,)], False)


def test_dates_without_data_are_named(engine: DuckdbEngine, tmp_path: Path) -> None:
    write_rows(tmp_path, "ticks", "date=2025-10-11/hour=01", ticks(1, 100), 100)
    absent = engine.run("SELECT count(*) FROM ticks WHERE date = DATE '2025-10-10'")
    assert absent.notices == ("the archive has no ticks of 2025-10-10; it has 2025-10-09 to 2025-10-11, 2 dates",) and absent.fetch() == ([(0,)], False)
    assert engine.run("SELECT * FROM ticks WHERE symbol = 'X'").notices == ("no rows; the archive has ticks of 2025-10-09 to 2025-10-11, 2 dates",)
    assert engine.run("SELECT * FROM alerts").notices == ("the archive has no alerts yet",)
    assert engine.run("SELECT * FROM ticks WHERE date = DATE '2025-10-11'").notices == ()


def test_only_the_dates_of_the_engine_are_read(engine: DuckdbEngine, tmp_path: Path) -> None:
    write_rows(tmp_path, "ticks", "date=2025-10-11/hour=01", ticks(3, 100), 100)
    day = datetime(2025, 10, 11, tzinfo=UTC).date()
    with DuckdbEngine(FileStore(tmp_path), day, day) as bound:
        assert bound.run("SELECT count(*) FROM ticks WHERE price > $least", {"least": 100}).fetch() == ([(2,)], False)
        assert len(list(bound.stored("ticks", ["offset"]).rows())) == 3


def test_the_newest_revision_of_a_second_counts_once(tmp_path: Path) -> None:
    second = {"symbol": "A", "source": "x", "second": 1_759_996_800, "partition": 0, "log": LOG}
    place = {"offset": 5, "record_offset": 1}
    write_rows(tmp_path, "windows", HOUR, [{**second, "close": 1.0, **place}, {**second, "symbol": "B", **place}])
    write_rows(tmp_path, "windows", HOUR, [{**second, "close": 2.0, "offset": 9, "record_offset": 2, "revised": True}], 2)
    with connect(tmp_path) as engine:
        assert list(engine.run("SELECT symbol, close FROM windows ORDER BY symbol").rows()) == [("A", 2.0), ("B", None)]
        assert engine.run("SELECT close FROM windows WHERE symbol = 'A' AND date = DATE '2025-10-09'").fetch() == ([(2.0,)], False)


def test_an_object_that_is_replaced_before_it_is_read_is_not_counted_twice(engine: DuckdbEngine, tmp_path: Path) -> None:
    assert engine.run("SELECT count(*) FROM ticks").fetch() == ([(10,)], False)
    (path,) = (tmp_path / "processed").rglob("*.parquet")
    path.unlink()
    write_rows(tmp_path, "ticks", HOUR, ticks(10), 1)
    assert engine.run("SELECT count(*), sum(price) FROM ticks").fetch() == ([(10, 45.0)], False)


@pytest.mark.slow
def test_an_object_that_is_replaced_while_rows_come_is_read_anew_or_an_error(tmp_path: Path) -> None:
    # DuckDB reads 10 MB of rows and opens 8 objects for each core ahead
    paths = [write_rows(tmp_path, "ticks", HOUR, ticks(200, first), first) for first in range(0, 120_000, 200)]
    with DuckdbEngine(FileStore(tmp_path), limits=Limits(threads=1)) as engine:
        def replaced() -> None:
            paths[-1].unlink(missing_ok=True)
            write_rows(tmp_path, "ticks", HOUR, ticks(200, 119_800), 119_801)

        result = engine.run("SELECT * FROM ticks", rows=2048)
        next(result.batches)
        replaced()
        with pytest.raises(ArchiveChanged, match="run the query again"):
            sum(batch.num_rows for batch in result.batches)
        assert result.again is not None
        assert sorted(result.again().arrow().column("offset").to_pylist()) == list(range(120_000))


def test_an_object_that_is_replaced_before_the_views_are_made_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rows(tmp_path, "ticks", HOUR, ticks(10))
    inner = current.current

    def listed_and_replaced(*given: Any) -> Any:
        found = inner(*given)
        if path.exists():                                                # DuckDB reads the first object's columns when a view is made
            path.unlink()
            write_rows(tmp_path, "ticks", HOUR, ticks(10), 1)
        return found

    monkeypatch.setattr(duckdb_engine, "current", listed_and_replaced)
    with connect(tmp_path) as engine:
        assert engine.run("SELECT count(*), sum(price) FROM ticks").fetch() == ([(10, 45.0)], False)


@pytest.mark.parametrize("damage", ["cut", "empty"])
def test_the_only_object_that_cannot_be_read_is_named(tmp_path: Path, damage: str) -> None:
    path = write_rows(tmp_path, "ticks", HOUR, ticks(10))
    data = path.read_bytes()
    path.write_bytes(data[:-10] if damage == "cut" else b"")
    with connect(tmp_path) as engine:
        for _ in range(2):
            with pytest.raises(SqlError, match=f"{path.name} cannot be read"):
                engine.run("SELECT * FROM ticks")
        path.write_bytes(data)
        assert engine.run("SELECT count(*) FROM ticks").fetch() == ([(10,)], False)


def test_sql_that_names_objects_itself_is_not_repeated(engine: DuckdbEngine, tmp_path: Path) -> None:
    (path,) = (tmp_path / "processed").rglob("*.parquet")
    assert engine.run("SELECT count(*) FROM ticks").fetch() == ([(10,)], False)
    path.unlink()
    with pytest.raises(ArchiveChanged):
        engine.run(f"SELECT count(*) FROM read_parquet('{path}')")


def test_stored_rows_are_read_anew_if_an_object_is_replaced(engine: DuckdbEngine, tmp_path: Path) -> None:
    assert engine.dates("ticks") == ["2025-10-09"]
    (path,) = (tmp_path / "processed").rglob("*.parquet")
    path.unlink()
    write_rows(tmp_path, "ticks", HOUR, ticks(10), 1)
    assert sorted(engine.stored("ticks", ["offset"], " AND price < 3").rows()) == [(0,), (1,), (2,)]


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_an_object_that_cannot_be_read_is_named(engine: DuckdbEngine, tmp_path: Path, damage: str) -> None:
    path = write_rows(tmp_path, "ticks", HOUR, ticks(10, 10), 10)
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-10], "flipped": bytes(byte ^ 255 if 4 <= at < 30 else byte for at, byte in enumerate(data)), "empty": b""}[damage])
    with pytest.raises(SqlError, match=path.name):
        engine.run("SELECT * FROM ticks").fetch()


def test_objects_of_an_earlier_release_are_found_by_the_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet as pq

    for first in range(3):
        write_rows(tmp_path, "ticks", HOUR, ticks(1, first), first)
    middle = sorted((tmp_path / "processed").rglob("*.parquet"))[1]
    pq.write_table(pq.read_table(middle, partitioning=None).drop_columns(["trade_id"]), middle)
    monkeypatch.setattr(duckdb_engine, "differ", lambda *_: False)
    with connect(tmp_path) as engine:
        assert engine.run("SELECT count(trade_id), count(*) FROM ticks").fetch() == ([(0, 3)], False)
    with connect(tmp_path) as engine:
        assert list(engine.stored("ticks", ["trade_id"]).rows()) == [(None,)] * 3


def test_a_time_limit_ends_a_query(tmp_path: Path) -> None:
    with DuckdbEngine(FileStore(tmp_path), limits=Limits(timeout_s=0.3)) as engine:
        with pytest.raises(QueryTooLong, match=r"after 0\.3 s"):
            engine.run(LONG)
        assert engine.run("SELECT 1").fetch() == ([(1,)], False)


def test_who_waits_sees_the_progress(tmp_path: Path) -> None:
    seen: list[float] = []
    with DuckdbEngine(FileStore(tmp_path), limits=Limits(timeout_s=2)) as counting:
        counting.waited = lambda _: seen.append(counting.progress())
        with pytest.raises(QueryTooLong):
            counting.run(LONG)
    assert len(seen) > 3 and seen[-1] <= 1


def test_a_large_result_comes_in_batches(engine: DuckdbEngine) -> None:
    """Whoever computed or read all of it would not come to an end."""
    result = engine.run("SELECT i, repeat('x', 100) AS text FROM range(1000000000000) AS numbers(i)")
    assert next(result.batches).num_rows > 0
    result.close()
    assert engine.run("SELECT 1").fetch() == ([(1,)], False)


def test_the_temporary_folder_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    with DuckdbEngine(FileStore(tmp_path), limits=Limits(memory="60MB", threads=1)) as engine:
        rows = engine.run("SELECT i FROM range(3000000) AS numbers(i) ORDER BY hash(i)").arrow().num_rows
    assert rows == 3_000_000 and list((tmp_path / "temporary").iterdir()) == []

"""What `stockstream query` prints and stores."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import click
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from stockstream.commands import query
from stockstream.errors import OutputError
from stockstream.sql import descriptions
from stockstream.sql.duckdb_engine import connect
from stockstream.sql.errors import SqlError
from stockstream.sql.outputs import write_file
from stockstream.sql.views import VIEWS
from tests.unit.sql.archives import ticks, write_rows

HOUR = "date=2025-10-09/hour=08"
EXACT = (
    "SELECT 9007199254740993 AS big, 170141183460469231731687303715884105727::HUGEINT - 170141183460469231731687303715884105000 AS huge, sum(i) AS total,"
    " 0.1::DOUBLE AS tenth, 1.50::DECIMAL(10, 2) AS exact, 'NaN'::DOUBLE AS nan, [1, 2] AS list, {'a': 'ü\"'} AS struct, NULL AS nothing, true AS yes,"
    " TIMESTAMP '2025-10-09 08:00:00.25' AS at FROM range(10) AS numbers(i)"
)


def run(root: Path, *arguments: str, text: str | None = None) -> Result:
    result = CliRunner().invoke(query.command, ["--archive", str(root), *arguments], input=text, standalone_mode=False)
    if result.exception:
        raise result.exception
    return result


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    write_rows(tmp_path / "archive", "ticks", HOUR, ticks(10))
    return tmp_path / "archive"


def test_numbers_keep_all_their_digits(archive: Path, tmp_path: Path) -> None:
    text = run(archive, "--json", EXACT).stdout
    assert '"exact": 1.50' in text and '"tenth": 0.1,' in text
    assert json.loads(text) == [
        {"big": 9007199254740993, "huge": 727, "total": 45, "tenth": 0.1, "exact": 1.5, "nan": None, "list": [1, 2], "struct": {"a": 'ü"'}, "nothing": None,
         "yes": True, "at": "2025-10-09T08:00:00.250000"},
    ]  # fmt: skip
    (row,) = csv.DictReader(run(archive, "--format", "csv", EXACT).stdout.splitlines())
    assert (row["big"], row["huge"], row["exact"], row["nan"], row["nothing"]) == ("9007199254740993", "727", "1.50", "nan", "")
    run(archive, "--output", str(tmp_path / "exact.parquet"), "SELECT 9007199254740993 AS big, 1.50::DECIMAL(10, 2) AS exact")
    assert pq.read_table(tmp_path / "exact.parquet").to_pylist() == [{"big": 9007199254740993, "exact": Decimal("1.50")}]


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_a_file_has_all_rows_and_its_ending_selects_the_format(archive: Path, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"out.{ending}"
    path.write_text("before")
    result = run(archive, "--output", str(path), "SELECT i AS number, 'text' AS text FROM range(250000) AS numbers(i)")
    assert (result.stdout, result.stderr) == ("", f"250,000 rows in {path}\n")
    if ending == "parquet":
        rows: Any = pq.read_table(path).column("number").to_pylist()
        assert 2 <= pq.read_metadata(path).num_row_groups <= 4
    elif ending == "json":
        rows = [row["number"] for row in json.loads(path.read_text())]
    else:
        rows = [int(row["number"]) for row in csv.DictReader(path.read_text().splitlines())]
    assert rows == list(range(250_000))
    assert {each.name for each in tmp_path.iterdir()} == {"archive", path.name}


def test_limits_are_kept_in_files_too(archive: Path, tmp_path: Path) -> None:
    result = run(archive, "--limit", "7", "--output", str(tmp_path / "few.csv"), "SELECT * FROM range(100000)")
    assert len((tmp_path / "few.csv").read_text().splitlines()) == 8
    assert result.stderr.splitlines() == [f"7 rows in {tmp_path}/few.csv", "only 7 rows written; use --limit for more"]
    assert "use --limit" not in run(archive, "--limit", "10", "SELECT * FROM range(10)").stderr


def test_a_failed_query_leaves_no_file_and_the_old_one_as_it_is(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    path.write_text("before")
    with pytest.raises(Exception, match="Could not convert"):
        run(archive, "--output", str(path), "SELECT CAST(CASE WHEN i = 99999 THEN 'x' ELSE '1' END AS INTEGER) FROM range(100000) AS numbers(i)")
    assert path.read_text() == "before" and {each.name for each in tmp_path.iterdir()} == {"archive", "out.csv"}
    with pytest.raises(OutputError, match=r"cannot write .*/nowhere/out.csv: No such file"):
        run(archive, "--output", str(tmp_path / "nowhere" / "out.csv"), "SELECT 1")


def test_a_file_begins_anew_if_an_object_is_replaced(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path, "ticks", HOUR, ticks(50_000, first), first) for first in range(0, 500_000, 50_000)]
    with connect(tmp_path) as engine:
        result = engine.run('SELECT "offset" FROM ticks')
        paths[-1].unlink()
        write_rows(tmp_path, "ticks", HOUR, ticks(50_000, 450_000), 450_001)
        assert write_file(result, "parquet", 0, tmp_path / "all.parquet").rows == 500_000
    assert sorted(pq.read_table(tmp_path / "all.parquet").column("offset").to_pylist()) == list(range(500_000))


def test_columns_of_the_same_name_are_kept(archive: Path, tmp_path: Path) -> None:
    assert json.loads(run(archive, "--json", "SELECT 1 AS a, 2 AS a").stdout) == [{"a": 1, "a_1": 2}]
    run(archive, "--output", str(tmp_path / "a.parquet"), "SELECT 1 AS a, 2 AS a")
    assert pq.read_table(tmp_path / "a.parquet").to_pylist() == [{"a": 1, "a_1": 2}]


def test_empty_results(archive: Path, tmp_path: Path) -> None:
    nothing = "SELECT symbol, price FROM ticks WHERE date = DATE '2030-01-01'"
    result = run(archive, "--json", nothing)
    assert result.stdout == "[]\n" and result.stderr == "the archive has no ticks of 2030-01-01; it has 2025-10-09\n"
    assert run(archive, "--format", "csv", nothing).stdout == "symbol,price\n"
    run(archive, "--output", str(tmp_path / "none.parquet"), nothing)
    assert pq.read_schema(tmp_path / "none.parquet").names == ["symbol", "price"]


def test_sql_comes_by_a_pipe(archive: Path) -> None:
    assert run(archive, "--json", text="SELECT 1 AS one;\n").stdout == run(archive, "--json", "-", text="SELECT 1 AS one").stdout == '[{"one": 1}]\n'


def test_parquet_needs_a_file(archive: Path) -> None:
    with pytest.raises(click.UsageError, match="needs --output"):
        run(archive, "--format", "parquet", "SELECT 1")


def test_a_reader_that_leaves_is_no_error(archive: Path) -> None:
    sql = "SELECT i FROM range(3000000) AS numbers(i)"
    command = f"{sys.executable} -m stockstream.cli query --archive {archive} --format csv '{sql}' | head -2"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("i\n0\n", "")


def test_views_are_described(tmp_path: Path) -> None:
    everything = run(tmp_path, "--tables").stdout
    assert all(f"{name}: {view.meaning}" in everything for name, view in VIEWS.items())
    one = run(tmp_path, "--tables", "ticks").stdout
    assert "price_before_gap" in one and "bars_1m:" not in one
    (view,) = json.loads(run(tmp_path, "--tables", "bars_1m", "--json").stdout)
    assert view["view"] == "bars_1m" and {"name": "vwap", "type": "DOUBLE", "meaning": VIEWS["bars_1m"].columns["vwap"]} in view["columns"]
    with pytest.raises(click.UsageError, match="there is no view 'nothing'; the views are ticks, bars_1m"):
        run(tmp_path, "--tables", "nothing")


def test_the_documentation_has_the_views() -> None:
    """`descriptions.as_markdown()` prints the section anew."""
    page = (Path(__file__).parents[3] / "docs" / "sql.md").read_text()
    assert page.partition("## Views\n")[2].partition("\n\n#### ")[2].partition("\n\n## Cookbook")[0] == descriptions.as_markdown().removeprefix("#### ")


@pytest.mark.parametrize("ending", ["csv", "json", "parquet"])
def test_what_is_no_file_receives_the_rows_and_is_not_replaced(archive: Path, tmp_path: Path, ending: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)                  # there is a reader and room for all, so nothing waits
    try:
        run(archive, "--format", ending, "--output", str(pipe), "SELECT 7 AS a")
        read = os.read(reader, 60_000)
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    if ending == "parquet":
        assert pq.read_table(pa.BufferReader(read)).to_pylist() == [{"a": 7}]
    else:
        assert read == {"csv": b"a\n7\n", "json": b'[{"a": 7}]\n'}[ending]
    assert {each.name for each in tmp_path.iterdir()} == {"archive", "pipe"}


def test_a_link_stays_and_its_file_is_replaced(archive: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.csv"
    link.symlink_to(tmp_path / "there" / "out.csv")
    for number in ("1", "2"):
        run(archive, "--output", str(link), f"SELECT {number} AS a")
        assert link.is_symlink() and (tmp_path / "there" / "out.csv").read_text() == f"a\n{number}\n"
    assert [each.name for each in (tmp_path / "there").iterdir()] == ["out.csv"]


@pytest.mark.parametrize("value", ["'infinity'::TIMESTAMP", "DATE '20000-01-01'", "'-infinity'::DATE", "[TIMESTAMP '290000-01-01']"])
@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_a_time_that_python_has_not_is_one_line(archive: Path, form: str, value: str) -> None:
    with pytest.raises(SqlError, match="outside of the years 1 to 9999"):
        run(archive, "--format", form, f"SELECT {value} AS at")


@pytest.mark.parametrize("value", ["INTERVAL 1 MONTH", "union_value(a := 1)"])
def test_a_type_that_parquet_has_not_is_one_line(archive: Path, tmp_path: Path, value: str) -> None:
    with pytest.raises(OutputError, match="Parquet has no type"):
        run(archive, "--output", str(tmp_path / "out.parquet"), f"SELECT {value} AS value")
    assert {each.name for each in tmp_path.iterdir()} == {"archive"}


def test_nested_values_are_json_in_csv(archive: Path) -> None:
    sql = "SELECT [TIMESTAMP '2020-01-01', NULL] AS list, {'a': 1.50::DECIMAL(5, 2), 'b': NULL, 'c': 'x'} AS struct"
    (row,) = csv.DictReader(run(archive, "--format", "csv", sql).stdout.splitlines())
    assert row == {"list": '["2020-01-01T00:00:00", null]', "struct": '{"a": 1.50, "b": null, "c": "x"}'}


def test_null_and_an_empty_text_differ_in_csv(archive: Path) -> None:
    """As in DuckDB's and PostgreSQL's CSV."""
    two = "SELECT * FROM (VALUES (NULL, 1), ('', 2), ('a,b', NULL), ('\"', 3)) AS rows(a, b)"
    assert run(archive, "--format", "csv", two).stdout == 'a,b\n,1\n"",2\n"a,b",\n"""",3\n'
    one = "SELECT * FROM (VALUES (NULL), (''), ('a'), ('NULL')) AS rows(a)"
    assert run(archive, "--format", "csv", one).stdout == 'a\n\n""\na\nNULL\n'
    assert run(archive, "--format", "csv", "SELECT '' AS a, 'x,\"' AS b, [1, 2] AS c, 1.50 AS d").stdout == 'a,b,c,d\n"","x,""","[1, 2]",1.50\n'


@pytest.mark.parametrize(
    "value",
    [
        "340282366920938463463374607431768211455::UHUGEINT", "'123456789012345678901234567890123456789012345'::BIGNUM", "'0101'::BIT",
        r"'\xAA\x00b\x22\x27\x5C,~\x7F'::BLOB", "TIMETZ '12:00:00.5+02:30'", "1.5::VARIANT",
        "INTERVAL '14 months 3 days 04:00:06.007'", "INTERVAL '-13 months -1 day -00:00:03'", "INTERVAL '-1 month 100 hours'", "INTERVAL 0 DAY",
        "INTERVAL '2 years 1 day'", "INTERVAL '-0.5 seconds'", "INTERVAL '1 month -5 microseconds'",
    ],
)  # fmt: skip
def test_types_without_a_form_of_their_own_are_written_as_duckdb_writes_them(archive: Path, value: str) -> None:
    [(text,)] = duckdb.execute(f"SELECT ({value})::VARCHAR").fetchall()
    sql = f"SELECT 1 AS \"a b\", {value} AS value, [{value}, NULL] AS list, {{'x \"y': {value}}} AS struct, 2 AS a"
    (of_json,) = json.loads(run(archive, "--json", sql).stdout)
    assert of_json == {"a b": 1, "value": text, "list": [text, None], "struct": {'x "y': text}, "a": 2}
    (of_csv,) = csv.DictReader(run(archive, "--format", "csv", sql).stdout.splitlines())
    assert of_csv["value"] == text and json.loads(of_csv["list"]) == [text, None] and json.loads(of_csv["struct"]) == {'x "y': text}
    head, _, row = run(archive, f"SELECT {value} AS value").stdout.splitlines()
    assert (head, row) == ("value", text)


def test_parquet_has_the_types_that_arrow_would_change_as_text(archive: Path, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    run(archive, "--output", str(path), "SELECT 340282366920938463463374607431768211455::UHUGEINT AS huge, MAP {'a': '01'::BIT} AS map, 'b'::BLOB AS bytes")
    assert pq.read_table(path).to_pylist() == [{"huge": "340282366920938463463374607431768211455", "map": [("a", "01")], "bytes": b"b"}]


def test_pivot_needs_its_values(archive: Path) -> None:
    assert json.loads(run(archive, "--json", "PIVOT ticks ON symbol IN ('AAPL', 'MSFT') USING count(*) GROUP BY source").stdout) == [
        {"source": "mine", "AAPL": 10, "MSFT": 0}
    ]
    for sql in ("PIVOT ticks ON symbol USING count(*)", "SELECT * FROM (PIVOT ticks ON symbol USING count(*))"):
        with pytest.raises(SqlError, match=r"PIVOT needs the values of its columns here: PIVOT ticks ON .* IN"):
            run(archive, sql)

"""The archive on Athena: its tables are made, and every query of the cookbook gives the rows that DuckDB gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner

from stockstream.commands import athena, query
from stockstream.errors import SettingsError
from stockstream.settings import load_settings
from stockstream.sinks.stores import open_archive
from stockstream.sql.athena.create import create
from stockstream.sql.athena.ddl import statements
from stockstream.sql.athena.engine import AthenaEngine
from stockstream.sql.athena.tables import Catalog
from stockstream.sql.cookbook import Recipe, recipes
from stockstream.sql.errors import SqlError
from stockstream.sql.views import VIEWS
from tests.filled_archive import DATE, fill
from tests.standins.ministack import MiniStack, ministack
from tests.standins.s3 import environment_of

ARCHIVE = "s3://bucket/archive"


@pytest.fixture(scope="module")
def running() -> Iterator[MiniStack]:
    with ministack() as server, pytest.MonkeyPatch.context() as monkeypatch, environment_of(server, monkeypatch):
        fill(open_archive(ARCHIVE))
        create(Catalog(ARCHIVE), load_settings(), lambda _: None)
        yield server


@pytest.fixture(autouse=True)
def _environment(running: MiniStack, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with environment_of(running, monkeypatch):
        yield


def run(command: Any, *arguments: str) -> Any:
    result = CliRunner().invoke(command, list(arguments))
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def rows_of(engine: str, sql: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(run(query.command, "--json", "--engine", engine, sql).stdout)
    return rows


def require_same(here: list[dict[str, Any]], there: list[dict[str, Any]]) -> None:
    """The same columns and rows. Sums of floats may differ in their last digits, since engines add in another order."""
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        assert list(one) == list(other)
        for name, value in one.items():
            assert other[name] == (pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value), (name, one, other)


@pytest.mark.parametrize("recipe", recipes(), ids=lambda recipe: recipe.name)
def test_a_query_of_the_cookbook_gives_the_same_rows_on_both_engines(recipe: Recipe) -> None:
    require_same(rows_of("duckdb", recipe.sql), rows_of("athena", recipe.sql))


@pytest.mark.parametrize("view", VIEWS)
def test_a_view_has_the_same_rows_on_both_engines(view: str) -> None:
    """Also of the hour and the day whose small objects are still there after their compaction."""
    columns = ", ".join(f'"{name}"' for name in VIEWS[view].columns)
    sql = f"SELECT {columns} FROM {view} ORDER BY {', '.join(str(number + 1) for number in range(len(VIEWS[view].columns)))}"
    require_same(rows_of("duckdb", sql), rows_of("athena", sql))


def test_the_printed_statements_make_the_same_tables(running: MiniStack) -> None:
    printed = run(athena.command, "ddl", "--archive", ARCHIVE, "--database", "by_hand").stdout
    assert printed == ";\n\n".join(statements(Catalog(ARCHIVE, "by_hand"))) + ";\n"
    engine = AthenaEngine.of(load_settings())
    for statement in printed.removesuffix(";\n").split(";\n\n"):
        engine.execute(statement)
    glue = running.client("glue")
    for wanted in Catalog(ARCHIVE, "by_hand").table_inputs():
        found = glue.get_table(DatabaseName="by_hand", Name=wanted["Name"])["Table"]
        assert found["PartitionKeys"] == wanted["PartitionKeys"] and found["Parameters"].items() >= wanted["Parameters"].items()
        storage = found["StorageDescriptor"]
        assert storage["Location"] + "/" == wanted["StorageDescriptor"]["Location"]
        assert {key: storage[key] for key in ("Columns", "InputFormat", "OutputFormat", "SerdeInfo")} == {
            key: wanted["StorageDescriptor"][key] for key in ("Columns", "InputFormat", "OutputFormat", "SerdeInfo")
        }
    counting = "SELECT count(*) AS n FROM ticks"
    ((count,),), _ = AthenaEngine.of(load_settings(), "by_hand").run(counting).fetch()
    assert [{"n": count}] == rows_of("duckdb", counting)


def test_a_second_creation_changes_nothing_and_a_changed_limit_only_that(running: MiniStack) -> None:
    def changes(*arguments: str) -> list[str]:
        return [line for line in run(athena.command, "create", *arguments).stdout.splitlines() if not line.endswith(": unchanged")]

    assert changes() == ["nothing to change"]
    assert changes("--scan-limit", "50000000")[0] == "workgroup stockstream (a query that scans more than 0.05 GB is cancelled): changed"
    configuration = running.client("athena").get_work_group(WorkGroup="stockstream")["WorkGroup"]["Configuration"]
    assert configuration["BytesScannedCutoffPerQuery"] == 50_000_000 and configuration["EnforceWorkGroupConfiguration"]
    assert configuration["ResultConfiguration"] == {"OutputLocation": "s3://bucket/archive/athena-results/"}
    since = changes("--since", "2023-01-01")
    assert [line.rpartition(": ")[0] for line in since[:-1]] == [
        *(f"table {table['Name']}" for table in Catalog(ARCHIVE).table_inputs()), "workgroup stockstream (a query that scans more than 10 GB is cancelled)",
    ]  # fmt: skip
    changes()
    with pytest.raises(SettingsError, match="table raw_objects of database stockstream is that of s3://bucket/archive/raw, and not of s3://bucket/other/raw"):
        changes("--archive", "s3://bucket/other")


def test_scanned_bytes_and_cost_are_printed_beside_the_rows() -> None:
    result = run(query.command, "--engine", "athena", f"SELECT symbol FROM symbols WHERE symbol = 'AAPL' -- {DATE}")
    assert result.stdout.splitlines() == ["symbol", "------", "AAPL"]
    assert "Athena scanned 0.00 MB in" in result.stderr and "at $5 a TB" in result.stderr
    limited = run(query.command, "--engine", "athena", "--limit", "2", "--format", "csv", "SELECT symbol FROM ticks")
    assert len(limited.stdout.splitlines()) == 3 and "only 2 rows shown" in limited.stderr


@pytest.mark.parametrize(("arguments", "kind", "text"), [
    (("SELECT nothing FROM ticks",), SqlError, "nothing"),
    (("SELECT * FROM nowhere",), SqlError, "nowhere .*stockstream athena create"),
    (("SELEC 1",), SqlError, "read-only"),
    (("DROP TABLE ticks_objects",), SqlError, "read-only: only SELECT and EXPLAIN are allowed, not DROP"),
    (("--database", "other", "SELECT 1"), SettingsError, "no tables of the archive in database other: create them with: stockstream athena create"),
    (("--workgroup", "other", "SELECT 1"), SettingsError, "no workgroup other .*stockstream athena create"),
    (("--archive", "s3://bucket/other", "SELECT 1"), SettingsError, "those of s3://bucket/archive"),
    (("--archive", "somewhere", "SELECT 1"), SettingsError, "Athena reads an archive in S3"),
], ids=["column", "table", "syntax", "write", "database", "workgroup", "archive", "folder"])  # fmt: skip
def test_what_cannot_be_asked_is_one_line(arguments: tuple[str, ...], kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text) as raised:
        run(query.command, "--engine", "athena", *arguments)
    assert "\n" not in str(raised.value)


def test_a_day_without_data_is_an_empty_result() -> None:
    assert rows_of("athena", "SELECT * FROM ticks WHERE date = DATE '2001-01-01'") == []

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream import cli
from stockstream.budgets import Limits
from stockstream.commands.backfill import COLUMNS, as_csv, fetch, file_of, write
from stockstream.errors import OutputError, SourceError
from stockstream.sources.alpha_vantage.answers import AnswerError
from stockstream.sources.alpha_vantage.client import Client
from stockstream.sources.base import SourceUnavailable
from stockstream.sources.quota import BudgetSpent, MemoryRequestLog, Scheduler
from tests.contracts.source import FakeClock
from tests.standins.alpha_vantage import Running, StandIn

SECRET = "QX7PLM2ZK9TREWQ1"


@pytest.fixture
def server() -> Iterator[Running]:
    with Running(StandIn(key=SECRET)) as running:
        yield running


def scheduler(budget: str = "2/d") -> Scheduler:
    clock = FakeClock()
    return Scheduler("alpha_vantage", Limits.parse(budget), MemoryRequestLog(clock), clock=clock)


async def test_a_month_becomes_a_file_as_the_provider_writes_it(server: Running, tmp_path: Path) -> None:
    client = Client(server.url, SECRET)
    minutes = await fetch(client, scheduler(), "VOD.L", "2024-05")
    await client.stop()
    path = file_of(tmp_path, "VOD.L", "2024-05")
    write(path, as_csv(minutes))
    rows = list(csv.reader(path.read_text().splitlines()))
    assert path == tmp_path / "2024-05" / "intraday_1min_VOD.LON.csv" and tuple(rows[0]) == COLUMNS
    assert len(rows) == 781 and rows[1][0] == "2024-05-01 09:30:00" and rows[-1][0] == "2024-05-02 15:59:00"
    assert [path.name for path in path.parent.iterdir()] == [path.name]
    with pytest.raises(OutputError, match="exists already"):
        write(path, "other")
    assert list(csv.reader(path.read_text().splitlines())) == rows


async def test_each_request_is_counted_and_a_spent_day_is_one_line(server: Running) -> None:
    client, budget = Client(server.url, SECRET), scheduler()
    for symbol in ("IBM", "AAPL"):
        await fetch(client, budget, symbol, "")
    with pytest.raises(BudgetSpent, match="all 2 requests of the day"):
        await fetch(client, budget, "MSFT", "")
    await client.stop()
    assert len(server.standin.requests) == 2


@pytest.mark.parametrize(("fault", "kind"), [("symbol", "symbol"), ("premium", "premium"), ("daily", "daily"), ("html", "html")])
async def test_a_refusal_is_one_line(server: Running, fault: str, kind: str) -> None:
    client, server.standin.fault = Client(server.url, SECRET), fault
    with pytest.raises(AnswerError) as caught:
        await fetch(client, scheduler(), "IBM", "")
    await client.stop()
    assert caught.value.kind == kind and "\n" not in str(caught.value)


async def test_no_network_costs_no_request() -> None:
    client, budget = Client("http://127.0.0.1:1/query", SECRET), scheduler()
    with pytest.raises(SourceUnavailable):
        await fetch(client, budget, "IBM", "")
    await client.stop()
    assert budget.left_today == 2


def test_what_cannot_work_is_found_before_a_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["backfill", "IBM"]) == 1 and "set STOCKSTREAM_ALPHA_VANTAGE_KEY" in capsys.readouterr().err
    monkeypatch.setenv("STOCKSTREAM_ALPHA_VANTAGE_KEY", SECRET)
    (tmp_path / "intraday_1min_IBM.csv").touch()
    for arguments, status, text in (
        (["ibm", "--out", str(tmp_path)], 1, "exists already"), (["IBM", "--month", "May"], 2, "is no month"), ([], 2, "SYMBOLS"),
        ([" ", "--out", str(tmp_path)], 1, "no symbol"),
    ):  # fmt: skip
        assert cli.run(["backfill", *arguments]) == status
        assert text in (found := capsys.readouterr().err) and SECRET not in found, found


def test_an_error_of_a_symbol_is_an_error_of_the_source() -> None:
    assert issubclass(AnswerError, SourceError)

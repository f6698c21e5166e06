"""`stockstream watch` and `stockstream sources`, on the embedded broker."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from stockstream import cli
from stockstream.kafka.admin import ensure_topics, producer_options
from stockstream.kafka.compacted_topic import read_compacted, read_tables
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.records import Budget, Connection, Feed, SourceReport
from stockstream.settings import Settings, load_settings

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def settings(embedded: EmbeddedBroker, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("STOCKSTREAM_BROKER", embedded.bootstrap)
    monkeypatch.setenv("STOCKSTREAM_TOPIC_PREFIX", prefix)
    monkeypatch.setenv("STOCKSTREAM_PARTITIONS", "2")
    return load_settings()


@pytest.fixture
def run(settings: Settings, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `stockstream` with the arguments: exit code, stdout, stderr."""

    def one(*arguments: str) -> tuple[int, str, str]:
        code = cli.run(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return one


def watched(settings: Settings) -> dict[str, str]:
    return {key.decode(): json.loads(value)["source"] for key, value in asyncio.run(read_compacted(settings, "watchlist")).items()}


async def write(settings: Settings, messages: list[tuple[str, str, Any]]) -> None:
    await ensure_topics(settings)
    producer = AIOKafkaProducer(**await producer_options(settings))
    await producer.start()
    try:
        for topic, key, value in messages:
            await producer.send_and_wait(settings.topic(topic), msgspec.json.encode(value), key=key.encode())
    finally:
        await producer.stop()


def report(source: str, **changes: Any) -> tuple[str, str, Any]:
    now = time.time_ns() // 1_000_000
    values: Mapping[str, Any] = {
        "source": source, "worker": "host:1", "name": source, "state": "running", "reason": "", "since": now, "next_attempt": None, "failures": 0, "symbols": 1,
        "at": now,
    }  # fmt: skip
    return "sources", f"{source}@host:1", SourceReport(**{**values, **changes})


def test_add_list_and_remove(run: Run, settings: Settings, tmp_path: Path) -> None:
    file = tmp_path / "symbols.txt"
    file.write_text("\ufeff# mine\nbtc/usd, aapl  # again\n\nVOD.L\n")
    code, out, err = run("watch", "add", "aapl", "BRK.B", "q{x}", "AAPL", "--file", str(file), "--source", "yahoo")
    assert code == 1
    assert out.splitlines() == ["added to yahoo: AAPL, BRK-B, BTC-USD, VOD.L", "written as: AAPL for aapl, BRK-B for BRK.B, BTC-USD for btc/usd"]
    assert err.splitlines() == [
        "stockstream: 'q{x}' is no symbol: letters and digits are expected, with . - = & only between them (BRK-B, 0700.HK, ^GSPC, EURUSD=X)",
        "stockstream: no worker runs yahoo at present: start one with STOCKSTREAM_SOURCE=yahoo",
    ]
    assert watched(settings) == dict.fromkeys(("AAPL", "BRK-B", "BTC-USD", "VOD.L"), "yahoo")

    code, out, _ = run("watch", "add", "AAPL,MSFT", "BRK-B", "--source", "simulated")
    assert (code, out.splitlines()) == (0, ["added to simulated: MSFT", "moved from yahoo to simulated: AAPL, BRK-B"])
    code, out, _ = run("watch", "add", "msft", "--source", "simulated", "--json")
    assert json.loads(out) == {"source": "simulated", "added": [], "moved": {}, "existing": ["MSFT"], "renamed": {"msft": "MSFT"}, "invalid": []}

    code, out, _ = run("watch", "list")
    lines = out.splitlines()
    assert code == 0 and lines[0].split() == ["symbol", "source", "state", "reason"] and lines[-1] == "5 symbols: 5 waiting"
    assert lines[1].split(maxsplit=3) == ["AAPL", "simulated", "waiting", "no worker runs simulated (STOCKSTREAM_SOURCE)"]
    assert [item["symbol"] for item in json.loads(run("watch", "list", "--source", "yahoo", "--json")[1])["items"]] == ["BTC-USD", "VOD.L"]
    assert run("watch", "list", "--source", "nobody", "--state", "fresh")[1] == "no symbol of source 'nobody' in state fresh is on the watchlist\n"

    code, out, err = run("watch", "remove", "brk.b", "VOD.L", "NVDA")
    assert (code, out, err) == (1, "removed: BRK-B, VOD.L\n", "stockstream: 'NVDA' is not on the watchlist\n")
    assert watched(settings) == {"AAPL": "simulated", "BTC-USD": "yahoo", "MSFT": "simulated"}


def test_a_symbol_of_another_spelling_that_is_on_the_watchlist_can_be_removed(run: Run, settings: Settings) -> None:
    asyncio.run(write(settings, [("watchlist", symbol, {"symbol": symbol, "source": "simulated"}) for symbol in ("q{x}", "brk.b")]))
    assert run("watch", "remove", "q{x}", "brk.b")[:2] == (0, "removed: q{x}, brk.b\n")
    assert watched(settings) == {}


def test_removed_symbols_of_the_settings_come_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_SYMBOLS", "AAPL")
    monkeypatch.setenv("STOCKSTREAM_SOURCE", "simulated")
    assert run("watch", "add", "AAPL")[1] == "added to simulated: AAPL\n"
    assert run("watch", "remove", "AAPL")[2] == "stockstream: STOCKSTREAM_SYMBOLS names AAPL: the next worker that starts with it adds them again\n"


def test_nothing_there_is_one_line(run: Run, settings: Settings) -> None:
    empty = "the watchlist is empty: add symbols with `stockstream watch add AAPL MSFT --source yahoo`\n"
    assert run("watch", "list") == (0, empty, "")
    assert run("sources") == (0, f"no worker runs a source, and {empty}", "")
    assert json.loads(run("sources", "--json")[1]) == json.loads(run("watch", "list", "--json")[1]) == {"items": []}
    assert run("watch", "remove", "AAPL") == (1, "", "stockstream: 'AAPL' is not on the watchlist\n")
    assert asyncio.run(read_tables(settings, ["watchlist", "feeds"])) == {}          # looking creates no topic
    asyncio.run(ensure_topics(settings))
    assert asyncio.run(read_tables(settings, ["watchlist", "feeds"])) == {"watchlist": {}, "feeds": {}}
    assert run("watch", "list") == (0, empty, "")


@pytest.mark.parametrize("arguments", [["add", "--source", "yahoo"], ["add", "", " , ", "--source", "yahoo"], ["remove"]])
def test_no_symbol_is_one_line(run: Run, arguments: list[str]) -> None:
    assert run("watch", *arguments) == (1, "", "stockstream: no symbol is named: give symbols, or --file\n")


def test_a_file_without_symbols_or_text_is_one_line(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "symbols"
    file.write_text("# nothing\n\n")
    assert run("watch", "add", "--file", str(file), "--source", "yahoo") == (1, "", f"stockstream: no symbol in {file}\n")
    file.write_bytes(b"\xff\xfe\x00")
    code, _, err = run("watch", "add", "--file", str(file), "--source", "yahoo")
    assert code == 1 and err.startswith(f"stockstream: {file} cannot be read as text") and err.count("\n") == 1
    assert run("watch", "add", "--file", str(tmp_path / "none"), "--source", "yahoo")[0] == 2


def test_no_source_and_an_unknown_one(run: Run) -> None:
    assert run("watch", "add", "AAPL")[2].startswith("stockstream: no source is named: use --source (simulated, yahoo")
    assert run("watch", "add", "AAPL", "--source", "nobody")[0] == 2


def test_no_broker_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_BROKER", "localhost:1")
    monkeypatch.setattr("stockstream.commands.watch.BROKER_TIMEOUT_S", 0.5)
    for command in (["watch", "list"], ["watch", "add", "AAPL", "--source", "yahoo"], ["watch", "remove", "AAPL"], ["sources"]):
        code, out, err = run(*command)
        assert (code, out, err.count("\n")) == (1, "", 1) and "no broker answers at kafka://localhost:1" in err, command


def test_what_workers_report(run: Run, settings: Settings) -> None:
    now = time.time_ns() // 1_000_000
    feed: dict[str, Any] = {"source": "yahoo", "worker": "host:1", "since": now, "at": now}
    silent = Connection(name="2", state="silent", symbols=1, since=now, reason="no frame for 20 s")
    budgets = Budget(per="second", limit=1, left=1, resets_at=now), Budget(per="day", limit=25, left=4, resets_at=1_796_014_800_000)
    messages: list[tuple[str, str, Any]] = [
        report(
            "yahoo", last_tick_at=now - 1_000, last_error="no network",
            connections=(Connection(name="1", state="open", symbols=2, since=now), silent),
        ),
        report("alpha_vantage", budgets=budgets, state="failed", reason="alpha_vantage: refused", last_error="alpha_vantage: no answer"),
        report("simulated", state="failed", reason="the disk is full", next_attempt=now + 100_000, last_error="the disk is full"),
        ("feeds", "AAPL", Feed(symbol="AAPL", state="fresh", reason="", last_event_time=now - 200_000, **feed)),
        ("feeds", "MSFT", Feed(symbol="MSFT", state="closed", reason="opens at 14:30 UTC", last_event_time=None, **feed)),
        *(("watchlist", symbol, {"symbol": symbol, "source": "yahoo"}) for symbol in ("AAPL", "MSFT", "NVDA")),
    ]  # fmt: skip
    asyncio.run(write(settings, messages))
    assert run("watch", "list")[1].splitlines() == [
        "symbol  source  state    newest tick  worker  reason",
        "AAPL    yahoo   fresh    3 min ago    host:1",
        "MSFT    yahoo   closed                host:1  opens at 14:30 UTC",
        "NVDA    yahoo   waiting                       no worker has reported it yet",
        "3 symbols: 1 fresh, 1 closed, 1 waiting",
    ]
    lines = run("sources")[1].splitlines()
    assert lines[0].split() == ["source", "state", "symbols", "fresh", "newest", "tick", "workers"]
    assert [" ".join(line.split()[:4]) for line in lines[1:4]] == ["alpha_vantage failed 0 0", "simulated failed 0 0", "yahoo running 3 1"]
    assert lines[4:] == [
        "alpha_vantage has failed: refused",
        "alpha_vantage: requests left: 1 of 1 this second, 4 of 25 this day until 05:00 UTC",
        "alpha_vantage: last error: no answer",
        "simulated has failed: the disk is full",
        lines[8],
        "1 of 2 connections of yahoo is silent (no frame for 20 s)",
        "yahoo: symbols: 1 closed, 1 waiting",
        "yahoo: 2 connections with 3 symbols: 1 open, 1 silent",
        "yahoo: last error: no network",
    ]
    assert lines[8].startswith("simulated: next attempt in ")
    assert [item["source"] for item in json.loads(run("sources", "--json")[1])["items"]] == ["alpha_vantage", "simulated", "yahoo"]

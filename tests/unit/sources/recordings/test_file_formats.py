"""Each vendor's shape is recognised without an option, and gives the ticks that it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pytest

from stockstream.errors import SourceError
from stockstream.sources.recordings.options import ReadOptions
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.replay import ReplaySource
from tests.recordings import DATABENTO_CSV, FRAME_TICKS, SAMPLES, TAQ, YAHOO_CSV, Sample, utc, write


def ticks(recording: Recording) -> list[dict[str, Any]]:
    return [msgspec.json.decode(value) for batch in ReplaySource(recording, "replay.day").batches() for value in batch.values]


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_a_file_of_a_known_format_needs_no_option(sample: Sample, tmp_path: Path) -> None:
    recording = Recording(sample.make(tmp_path))
    found = ticks(recording)
    assert [(tick["symbol"], tick["event_time"], tick["price"], tick["size"]) for tick in found] == sample.ticks
    assert {tick.get("interval_s", 1) for tick in found} == {sample.interval_s}
    survey = recording.survey()
    assert (survey.bad_count, survey.bad_times, survey.bad_values) == (0, "", "")


def test_what_else_a_format_holds_is_carried(tmp_path: Path) -> None:
    first = ticks(Recording(SAMPLES["databento.tbbo.parquet"].make(tmp_path)))[0]
    assert (first["bid"], first["ask"], first["bid_size"], first["ask_size"]) == (0.2598, 0.26, 100, 100)
    first = ticks(Recording(SAMPLES["polygon.trades"].make(tmp_path)))[0]
    assert (first["condition"], first["exchange"]) == ("12,37", "11")
    assert ticks(Recording(SAMPLES["binance.trades"].make(tmp_path)))[0]["trade_id"] == "4362410853"


@pytest.mark.parametrize(("name", "notes", "left_out"), [
    ("alpha_vantage.csv", [
        "read as alpha_vantage, bars of 1 minute", "symbol IBM, by the file's name (--symbol names another)",
        "times are those of America/New_York (--zone names another)",
        "the file has its newest rows first: it is read in the order of time (--order file leaves it)"], {}),
    ("binance.klines.us", [
        "read as binance, bars of 1 second", "symbol DOGE-USDT, by the file's name (--symbol names another)", "event_time is read as microseconds"], {}),
    ("databento.tbbo.parquet", ["read as databento, trades"], {"rows of the book that are no trades": 1}),
    ("polygon.trades", [
        "read as polygon, trades", "event_time is read as nanoseconds",
        "the file is not in the order of time: it is read in the order of time (--order file leaves it)"], {"cancelled or corrected trades": 1}),
    ("nyse_taq", [
        "read as nyse_taq, trades", "times are those of America/New_York (--zone names another)",
        "the file is not in the order of time: it is read in the order of time (--order file leaves it)"], {"cancelled or corrected trades": 1}),
])  # fmt: skip
def test_what_was_found_out_is_reported(name: str, notes: list[str], left_out: dict[str, int], tmp_path: Path) -> None:
    survey = Recording(SAMPLES[name].make(tmp_path)).survey()
    assert (survey.notes, survey.left_out) == (notes, left_out)


def test_pandas_writes_frames_as_the_sample_has_them(tmp_path: Path) -> None:
    index = pd.DatetimeIndex(["2025-10-13 13:30", "2025-10-13 13:31"], tz="UTC", name="Datetime")
    columns = pd.MultiIndex.from_tuples([("Close", "AAPL"), ("Close", "^GSPC"), ("Volume", "AAPL"), ("Volume", "^GSPC")], names=["Price", "Ticker"])
    frame = pd.DataFrame([[246.37, 6655.2, 1814021, 0.0], [246.91, None, 402110, None]], index=index, columns=columns)
    frame.to_parquet(tmp_path / "frame.parquet")
    frame.to_csv(tmp_path / "frame.csv")
    frame.swaplevel(axis=1).to_parquet(tmp_path / "by_ticker.parquet")
    for name in ("frame.parquet", "frame.csv", "by_ticker.parquet"):
        found = ticks(Recording(tmp_path / name))
        assert [(tick["symbol"], tick["event_time"], tick["price"], tick["size"]) for tick in found] == FRAME_TICKS
    one = frame["Close"][["AAPL"]].rename(columns={"AAPL": "Close"}).assign(Open=1.0, High=1.0, Low=1.0, Volume=[5, 6])
    one.to_parquet(tmp_path / "AAPL.parquet")
    assert [(tick["symbol"], tick["price"], tick["size"]) for tick in ticks(Recording(tmp_path / "AAPL.parquet"))] == [("AAPL", 246.37, 5), ("AAPL", 246.91, 6)]


def test_a_long_frame_of_several_symbols_is_put_in_the_order_of_time(tmp_path: Path) -> None:
    rows = [f"2025-01-0{day},{symbol},1,1,1,{price},{price},100" for symbol, price in (("AAPL", 10), ("MSFT", 20)) for day in (2, 3)]
    path = write("long.csv", "Date,Ticker,Open,High,Low,Close,Adj Close,Volume\n" + "\n".join(rows) + "\n")(tmp_path)
    assert [(tick["symbol"], tick["price"]) for tick in ticks(Recording(path))] == [("AAPL", 10), ("MSFT", 20)] * 2


@pytest.mark.parametrize(("name", "text", "options", "line"), [
    ("history.csv", YAHOO_CSV, {}, "no column and no file name has a symbol: name it with --symbol"),
    ("AAPL.csv", YAHOO_CSV.replace("Close,", "Closing,", 1), {}, r"column close is missing: name it with --columns close=NAME \(there are: Date, Open,"),
    ("AAPL.csv", YAHOO_CSV, {"format": "polygon"}, "this is not polygon: column .* is missing; there are: Date, .*; leave out --format, or use --columns"),
    ("AAPL.csv", YAHOO_CSV, {"format": "poly"}, "there is no format 'poly': there are stockstream, databento, "),
    ("AAPL.csv", YAHOO_CSV, {"zone": "America/Newyork"}, "there is no time zone 'America/Newyork': use a name such as America/New_York"),
    ("AAPL.csv", YAHOO_CSV, {"unit": "minutes"}, "there is no unit 'minutes': use --unit s, ms, us, ns or date, or a pattern"),
    ("AAPL.csv", YAHOO_CSV.replace("-", "/"), {}, r"row 1: event_time is missing .* \(column Date, '2024/01/02'\); name its form with --unit"),
    ("AAPL.csv", YAHOO_CSV, {"columns": {"price": "Last"}}, r"there is no column 'Last' for --columns price=Last \(there are: Date, "),
    ("AAPL.csv", YAHOO_CSV, {"columns": {"cost": "Close"}}, "there is no field 'cost': --columns names columns for symbol, event_time, price, size"),
    ("AAPL.csv", "Date,Open,High,Low,Close,Volume\n2024-01-02 10:07,1,1,1,1,1\n", {}, "by its rows it is not clear how long .*: give it with --interval"),
    ("trades.csv", DATABENTO_CSV, {"unit": "ms"}, "the times look like nanoseconds, not like milliseconds: leave out --unit"),
    ("TRADE.gz", TAQ, {}, "it holds times of day only, and its name no day: name the day with --date"),
    ("x.csv", "1,2,3\n4,5,6\n", {}, r"name them with --columns symbol=NAME,.* \(it has no header, so that its columns are called 1 to 3; .*1,2,3"),
    ("IBM.csv", '{"Information": "your key is X"}', {}, "this is JSON, not CSV or Parquet"),
    ("IBM.csv", "<html><body>Too Many Requests</body></html>", {}, "this is HTML or XML, not CSV or Parquet"),
])  # fmt: skip
def test_a_wrong_column_unit_or_zone_is_one_line_with_the_option_that_mends_it(
    name: str, text: str, options: dict[str, Any], line: str, tmp_path: Path
) -> None:
    with pytest.raises(SourceError, match=line) as error:
        Recording(write(name, text)(tmp_path), ReadOptions(**options)).survey()
    assert "\n" not in str(error.value) and "your key" not in str(error.value)


def test_an_unknown_file_is_read_with_options(tmp_path: Path) -> None:
    text = "Datum;Zeit;Kürzel;Letzter;Umsatz\n27.10.2024;01:30:00;SAP;187,50;1.200\n27.10.2024;01:31:00;SAP;1.187,5;300\n"
    path = write("kurse.csv", "\ufeff" + text)(tmp_path)
    columns = {"event_time": "Datum+Zeit", "symbol": "Kürzel", "price": "Letzter", "size": "Umsatz"}
    recording = Recording(path, ReadOptions(columns=columns, unit="%d.%m.%Y %H:%M:%S", zone="Europe/Berlin"))
    assert [(tick["symbol"], tick["event_time"], tick["price"], tick["size"]) for tick in ticks(recording)] == [
        ("SAP", utc("2024-10-26 23:30"), 187.5, 1200), ("SAP", utc("2024-10-26 23:31"), 1187.5, 300)]  # fmt: skip
    assert "numbers have a decimal comma (--decimal . if not)" in recording.survey().notes


def test_thousands_in_quotes_and_other_names_of_columns_are_read(tmp_path: Path) -> None:
    path = write("day.csv", 'Ticker,Time,Last,Qty\nA,1696000000,"$1,234.50","12,000"\nA,1696000001,$999.25,7\n')(tmp_path)
    recording = Recording(path)
    assert [(tick["event_time"], tick["price"], tick["size"]) for tick in ticks(recording)] == [(1696000000000, 1234.5, 12000), (1696000001000, 999.25, 7)]
    assert recording.survey().notes == [
        "read as trades by the names of its columns: symbol=Ticker, event_time=Time, price=Last, size=Qty", "event_time is read as seconds"]  # fmt: skip


def test_a_date_and_a_time_of_day_are_one_time(tmp_path: Path) -> None:
    path = write("XAUUSD.csv", "<DATE>\t<TIME>\t<OPEN>\t<HIGH>\t<LOW>\t<CLOSE>\t<VOLUME>\n2024-01-02\t09:30\t1\t1\t1\t2\t5\n2024-01-02\t09:31\t1\t1\t1\t3\t\n")
    recording = Recording(path(tmp_path))
    assert [(tick["event_time"], tick["price"], tick["size"], tick["interval_s"]) for tick in ticks(recording)] == [
        (utc("2024-01-02T09:30") + 59_999, 2, 5, 60), (utc("2024-01-02T09:31") + 59_999, 3, 0, 60)]  # fmt: skip
    assert "times without a zone are read as UTC (--zone names another, such as America/New_York)" in recording.survey().notes


def test_bars_without_a_price_are_left_out(tmp_path: Path) -> None:
    path = write("AAPL.csv", YAHOO_CSV + "2024-01-05,null,null,null,null,null,null\n")(tmp_path)
    survey = Recording(path).survey()
    assert (survey.ticks, survey.bad_count, survey.left_out) == (3, 0, {"without a price": 1})


def test_columns_of_a_file_without_a_header_have_numbers(tmp_path: Path) -> None:
    path = write("x.csv", "1696000000;A;10.5;7\n1696000001;A;10.75;8\n")(tmp_path)
    recording = Recording(path, ReadOptions(columns={"event_time": "1", "symbol": "2", "price": "3", "size": "4"}))
    assert [(tick["symbol"], tick["event_time"], tick["price"], tick["size"]) for tick in ticks(recording)] == [
        ("A", 1696000000000, 10.5, 7), ("A", 1696000001000, 10.75, 8)]  # fmt: skip

from __future__ import annotations

import asyncio
import bz2
import codecs
import csv
import gzip
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from unicodedata import normalize

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stockstream.errors import SourceError
from stockstream.sources.base import MarketDataSource
from stockstream.sources.recordings.chunks import BadRow
from stockstream.sources.recordings.files import CHUNK_ROWS
from stockstream.sources.recordings.options import ReadOptions
from stockstream.sources.recordings.recording import Recording, Span
from stockstream.sources.replay import ReplaySource, obstacle, refusal, source_name
from stockstream.transforms.partitioning import home_partition
from tests.contracts.source import DeterministicSourceContract, FakeClock, decode, gather

START = 1_381_132_800_000
Rows = Sequence[dict[str, Any]]


def trade(symbol: str, ms: int, price: float | None = 10.5, size: float | None = 100, **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "event_time": START + ms, "price": price, "size": size} | more


def bar(symbol: str, second: int, close: float | None, volume: float | None, **more: Any) -> dict[str, Any]:
    return {"symbol": symbol, "event_time": START + second * 1000, "close": close, "volume": volume} | more


def parquet(folder: Path, rows: Rows, name: str = "day.parquet", time: pa.DataType | None = None) -> Path:
    table = pa.Table.from_pylist(list(rows))
    table = table.set_column(1, "event_time", table["event_time"].cast(pa.timestamp("ms", "UTC")).cast(time or pa.timestamp("ms", "UTC")))
    pq.write_table(table, folder / name)
    return folder / name


def text(folder: Path, lines: Sequence[str], name: str = "day.csv") -> Path:
    (folder / name).write_text("\n".join(lines) + "\n")
    return folder / name


def ticks(path: Path, **options: Any) -> list[dict[str, Any]]:
    source = ReplaySource(Recording(path, **options), "replay.day")
    batches = asyncio.run(gather(source, 10**9))
    return [msgspec.json.decode(value) for batch in batches for value in batch.values]


class TestReplaySource(DeterministicSourceContract):
    @pytest.fixture(autouse=True)
    def _file(self, tmp_path: Path) -> None:
        self.path = parquet(tmp_path, [trade(symbol, ms) for ms in range(0, 4000, 100) for symbol in ("B", "A")])

    def source(self, clock: FakeClock) -> MarketDataSource:
        return ReplaySource(Recording(self.path), "replay.day", speed=10, clock=clock)

    @property
    def symbols(self) -> list[str]:
        return ["A", "B"]


def test_a_trade_becomes_a_tick_and_equal_ones_remain(tmp_path: Path) -> None:
    one = trade("A", 464, 167.41, 100, exchange="P", condition='2"0', suspicious=True)
    found = ticks(parquet(tmp_path, [one, one, trade("B", 465, 0.1 + 0.2, 1, exchange=None, condition=None, suspicious=False)]))
    first = {"symbol": "A", "source": "replay.day", "event_time": START + 464, "price": 167.41, "size": 100, "exchange": "P", "condition": '2"0'}
    assert found == [first, first, {"symbol": "B", "source": "replay.day", "event_time": START + 465, "price": 0.1 + 0.2, "size": 1}]


def test_a_bar_is_a_tick_at_the_end_of_its_second_and_without_volume_a_quote(tmp_path: Path) -> None:
    quotes = {"bid": 9.9, "ask": 10.1, "bid_size": 200.0, "ask_size": None}
    path = parquet(tmp_path, [bar("A", 0, 10.0, 300.0, **quotes), bar("A", 1, None, None, **quotes)])
    assert Recording(path).kind == "bars"
    head, tail = {"symbol": "A", "source": "replay.day"}, {"bid": 9.9, "ask": 10.1, "bid_size": 200.0}
    assert ticks(path) == [
        head | {"event_time": START + 999, "price": 10.0, "size": 300} | tail,
        head | {"event_time": START + 1999, "price": None, "size": 0} | tail,
    ]


def test_a_trade_file_may_hold_quotes(tmp_path: Path) -> None:
    rows = [trade("A", 0, 10.0, 5, bid=9.0, ask=11.0), trade("A", 1, None, 0, bid=9.0, ask=None), trade("A", 2, None, None, bid=None, ask=12.0)]
    assert [(tick["price"], tick["size"]) for tick in ticks(parquet(tmp_path, rows))] == [(10.0, 5), (None, 0), (None, 0)]


@pytest.mark.parametrize("written", [
    lambda ms: str(START + ms),
    lambda ms: (datetime(2013, 10, 7, 8, tzinfo=UTC) + timedelta(milliseconds=ms)).isoformat(),
    lambda ms: (datetime(2013, 10, 7, 8, tzinfo=UTC) + timedelta(milliseconds=ms)).isoformat().replace("+00:00", "Z"),
    lambda ms: (datetime(2013, 10, 7, 8) + timedelta(milliseconds=ms)).isoformat(" ", "milliseconds"),  # noqa: DTZ001
    lambda ms: ("garbage", "2013-10-07T10:00:00.464+02:00")[ms > 0],
])  # fmt: skip
def test_csv_says_times_in_several_ways(tmp_path: Path, written: Any) -> None:
    path = text(tmp_path, ["size,symbol,event_time,price,note", f'100,A,{written(0)},10.5,"a, b"', f"200,NA,{written(464)},11,"])
    found = ticks(path)
    assert found[-1] == {"symbol": "NA", "source": "replay.day", "event_time": START + 464, "price": 11.0, "size": 200}
    assert [tick["event_time"] for tick in found[:-1]] in ([START], [])


@pytest.mark.parametrize("time", [pa.timestamp("us", "Europe/Berlin"), pa.timestamp("ns"), pa.int64()])
def test_parquet_keeps_times_in_several_types(tmp_path: Path, time: pa.DataType) -> None:
    assert ticks(parquet(tmp_path, [trade("A", 464)], time=time))[0]["event_time"] == START + 464


DAY = 1_381_104_000_000
"""Midnight of START's day."""
UNITS: list[tuple[Any, str, int]] = [
    (START // 1000, "seconds", START), (START / 1000 + 0.123, "seconds", START + 123), (START, "milliseconds", START), (START + 0.5, "milliseconds", START),
    (START * 1000 + 999, "microseconds", START), (START * 1_000_000 + 1, "nanoseconds", START), (20_131_007, "a date (YYYYMMDD)", DAY),
    (20_131_007.0, "a date (YYYYMMDD)", DAY),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(("written", "unit", "time"), UNITS, ids=[str(written) for written, *_ in UNITS])
def test_the_unit_of_a_number_is_seen_by_its_magnitude(tmp_path: Path, written: Any, unit: str, time: int, kind: str) -> None:
    if kind == "csv":
        path = text(tmp_path, ["symbol,event_time,price,size", "A,,10.5,1", f"A,{written!r},10.5,1"])
    else:
        path = tmp_path / "day.parquet"
        pq.write_table(pa.table({"symbol": ["A", "A"], "event_time": [None, written], "price": [10.5, 10.5], "size": [1, 1]}), path)
    assert [tick["event_time"] for tick in ticks(path)] == [time]
    survey = Recording(path).survey()
    assert (survey.unit, survey.first, survey.bad_count, survey.bad_times) == (unit, time, 1, "")


def test_a_column_of_dates_is_midnights(tmp_path: Path) -> None:
    pq.write_table(pa.table({"symbol": ["A"], "event_time": [date(2013, 10, 7)], "price": [10.5], "size": [1]}), tmp_path / "day.parquet")
    assert [tick["event_time"] for tick in ticks(tmp_path / "day.parquet")] == [DAY]
    assert [tick["event_time"] for tick in ticks(text(tmp_path, ["symbol,event_time,price,size", "A,2013-10-07,1,1"]))] == [DAY]


def test_a_number_that_is_none_of_the_files_unit_is_a_bad_row(tmp_path: Path) -> None:
    survey = Recording(text(tmp_path, ["symbol,event_time,price,size", f"A,{START // 1000},1,1", f"A,{START},1,1", "A,7,1,1"])).survey()
    assert survey.ticks == 1 and [row.row for row in survey.bad] == [2, 3]


@pytest.mark.parametrize(("rows", "why", "rebased"), [
    ([trade("A", 0)], None, None),
    ([trade("A", 0) | {"event_time": 34_200_000}], "no event_time is one of 1990 to 2109: as epoch milliseconds the first would be 34200000", None),
    ([trade("A", 0, price=-5.0), trade("A", 1, size=1e12)], "no row has a price and a size within the limits of a tick", "no row"),
    ([trade("A", 10**10)], "every event_time is in the future, the first is 2014-01-31 01:46:40 UTC", None),
])  # fmt: skip
def test_a_recording_of_which_nothing_would_be_accepted_is_foreseen(tmp_path: Path, rows: Rows, why: str | None, rebased: str | None) -> None:
    survey = Recording(parquet(tmp_path, rows, time=pa.int64())).survey()
    for found, wanted in ((refusal(survey, START + 10**9), why), (refusal(survey, START + 10**9, rebased=True), rebased)):
        assert (found is None) == (wanted is None) and (found or "").startswith(wanted or "")


def test_symbols_are_composed(tmp_path: Path) -> None:
    path = text(tmp_path, ["symbol,event_time,price,size", *(f"{normalize(form, 'É')},{START},1,1" for form in ("NFC", "NFD"))])
    assert [tick["symbol"] for tick in ticks(path)] == ["\u00c9"] * 2
    assert [tick["symbol"] for tick in ticks(path, symbols=["E\u0301"])] == ["\u00c9"] * 2
    assert Recording(path).survey().first_seen == {"\u00c9": START}


def test_rows_that_cannot_be_ticks_are_counted_with_their_numbers(tmp_path: Path) -> None:
    lines = ["symbol,event_time,price,size", f"A,{START},10,1", f",{START},10,1", f"A,{START},10,1,7", f"A,{START},,1", "A,,10,1"]
    survey = Recording(text(tmp_path, [*lines, f"A,{START},ten,1", f"A,{START},10,nan", f"A,{START},inf,1", f"A,{START},-5,-1"])).survey()
    assert (survey.ticks, survey.bad_count) == (2, 7)
    assert sorted(survey.bad, key=lambda at: at.row) == [
        BadRow(2, "symbol is missing"), BadRow(3, "not as many columns as the header"), BadRow(4, "price is missing or not a number"),
        BadRow(5, "event_time is missing or not a time"), BadRow(6, "price is missing or not a number"), BadRow(7, "size is missing or not a number"),
        BadRow(8, "price is missing or not a number"),
    ]  # fmt: skip


def test_bars_need_a_trade_or_a_quote(tmp_path: Path) -> None:
    rows = [bar("A", 0, 10.0, 300.0, bid=9.0), bar("A", 1, None, None, bid=None), bar("A", 2, None, 300.0, bid=9.0), bar("A", 3, 10.0, None, bid=None)]
    survey = Recording(parquet(tmp_path, rows)).survey()
    assert survey.bad == [
        BadRow(2, "without a volume it must have a bid or an ask"), BadRow(3, "close is missing or not a number"),
        BadRow(4, "without a volume it must have a bid or an ask"),
    ]  # fmt: skip


def test_the_survey_of_a_long_file_counts_across_chunks(tmp_path: Path) -> None:
    rows = [trade("AB"[i % 2], i) for i in range(2 * CHUNK_ROWS + 10)]
    rows[CHUNK_ROWS + 3] = trade("C", 0)
    rows[CHUNK_ROWS + 5] = trade("A", CHUNK_ROWS, None)
    survey = Recording(parquet(tmp_path, rows)).survey()
    assert (survey.ticks, survey.first, survey.last) == (len(rows) - 1, START, START + len(rows) - 1)
    assert survey.first_seen == {"A": START, "B": START + 1, "C": START}
    assert (survey.unordered, survey.behind_ms) == (1, CHUNK_ROWS + 2)
    assert survey.bad == [BadRow(CHUNK_ROWS + 6, "price is missing or not a number")]


def test_symbols_and_a_limit_choose(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("ABC"[i % 3], i) for i in range(30)])
    found = ticks(path, symbols=["A", "C"], limit=5)
    assert [tick["event_time"] - START for tick in found] == [0, 2, 3, 5, 6]
    assert Recording(path, symbols=["A", "C"], limit=5).survey().ticks == 5


@pytest.mark.parametrize(("make", "says"), [
    (lambda folder: folder / "none.parquet", "no such file"),
    (lambda folder: text(folder, ["not parquet"], "x.parquet"), "columns symbol, event_time, price, size are missing: name them with --columns symbol=NAME,"),
    (lambda folder: text(folder, ["PAR1 not parquet"], "x.parquet"), "cannot be read as Parquet"),
    (lambda folder: text(folder, ["symbol,event_time,price"]), "column size is missing"),
    (lambda folder: text(folder, ["symbol,event_time,price,size"]), "no row is a valid tick"),
    (lambda folder: text(folder, ["symbol,event_time,price,size", "A,soon,1,1"]), "no row is a valid tick: row 1: event_time is missing or not a time"),
    (lambda folder: parquet(folder, [trade("A", 0)], time=pa.string()).with_suffix(".csv"), "no such file"),
])  # fmt: skip
def test_a_file_that_cannot_be_used_is_reported_in_one_line(tmp_path: Path, make: Any, says: str) -> None:
    with pytest.raises(SourceError, match=says) as error:
        Recording(make(tmp_path)).survey()
    assert "\n" not in str(error.value)


GOOD = {"symbol": ["A", "B"], "event_time": [START, START + 1], "price": [1.0, 2.0], "size": [1, 2]}


@pytest.mark.parametrize(("columns", "line"), [
    ({"price": [[1.0], [2.0]]}, r"column price is list<.*>: it must be a number in each row"),
    ({"size": [{"a": 1}, {"a": 2}]}, r"column size is struct<.*>: it must be a number in each row"),
    ({"bid": [[1.0], [2.0]]}, r"column bid is list<.*>: it must be a number in each row"),
    ({"symbol": [["A"], ["B"]]}, r"column symbol is list<.*>: it must be a text in each row"),
    ({"condition": [["@"], ["T", "I"]]}, r"column condition is list<.*>: it must be a text in each row"),
    ({"event_time": [[1], [2]]}, r"column event_time is list<.*>: it must be a timestamp, a date or a number"),
    ({"price": [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)]}, r"column price is timestamp.*: it must be a number in each row"),
    ({"symbol": [b"A", b"\xff"]}, r"cannot be read as Parquet: Invalid UTF8"),
])  # fmt: skip
def test_a_column_of_another_type_is_one_line(tmp_path: Path, columns: dict[str, Any], line: str) -> None:
    pq.write_table(pa.table(GOOD | columns), tmp_path / "day.parquet")
    with pytest.raises(SourceError, match=line) as error:
        Recording(tmp_path / "day.parquet").survey()
    assert "\n" not in str(error.value)


def test_columns_that_are_not_read_may_be_lists(tmp_path: Path) -> None:
    pq.write_table(pa.table(GOOD | {"conditions": [["@"], ["T", "I"]]}), tmp_path / "day.parquet")
    assert Recording(tmp_path / "day.parquet").survey().ticks == 2


@pytest.mark.parametrize(("start", "line"), [
    (b"\x1f\x8b\x08\x00", "cannot be read as CSV: "), (b"\x28\xb5\x2f\xfd", "cannot be read as CSV: "), (b"PK\x03\x04", "cannot be read as CSV: "),
    (b"\x00\x01", "this is neither text nor Parquet, not CSV or Parquet"),
])  # fmt: skip
def test_a_file_that_is_torn_or_no_text_is_one_line(tmp_path: Path, start: bytes, line: str) -> None:
    (tmp_path / "day.csv").write_bytes(start + b"more\n")
    with pytest.raises(SourceError) as error:
        Recording(tmp_path / "day.csv").survey()
    assert str(error.value).startswith(f"{tmp_path / 'day.csv'}: {line}") and "\n" not in str(error.value)


def test_the_content_decides_what_a_file_is_and_not_its_name(tmp_path: Path) -> None:
    pq.write_table(pa.table(GOOD), tmp_path / "parquet.csv")
    lines = [f"symbol, event_time,price , size\nA,{START},1,1\n".encode(), f"symbol;event_time;price;size\nA;{START};1;1\n".encode()]
    lines += [codecs.BOM_UTF8 + lines[0], lines[0].decode().encode("utf-16"), gzip.compress(lines[0])]
    lines += [gzip.compress(lines[0][:20]) + gzip.compress(lines[0][20:])]
    lines += [pa.compress(lines[0], codec="zstd", asbytes=True), bz2.compress(lines[0])]
    assert Recording(tmp_path / "parquet.csv").survey().ticks == 2
    for number, data in enumerate(lines):
        (tmp_path / f"{number}.parquet").write_bytes(data)
        assert Recording(tmp_path / f"{number}.parquet").survey().first_seen == {"A": START}, number


def test_columns_of_one_name_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"more than one column is called price: rename or remove the others$"):
        Recording(text(tmp_path, ["symbol,event_time,price,size,price", f"A,{START},1,1,1"]))


def test_a_span_chooses_by_event_time(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("A", ms) for ms in (0, 10, 20, 30)])
    recording = Recording(path, span=Span(START + 10, START + 30))
    assert (recording.survey().first, recording.survey().last) == (START + 10, START + 20)
    assert source_name(recording) == f"replay.day.from{START // 1000}.to{START // 1000}"
    with pytest.raises(SourceError, match="no row is a valid tick of these times"):
        Recording(path, span=Span(START + 31)).survey()


def test_trades_far_from_the_order_of_time_are_sorted_unless_told_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [trade(symbol, ms) for symbol in "ABC" for ms in range(0, 400_000, 40)]
    path = parquet(tmp_path, rows)
    by_time = [(tick["event_time"], tick["symbol"]) for tick in ticks(path)]
    assert by_time == sorted(by_time) and len(by_time) == len(rows)
    left = Recording(path, ReadOptions(order="file"))
    assert not left.survey().sorted and left.survey().behind_ms == 399_960
    monkeypatch.setattr("stockstream.sources.recordings.ordering.PIECE_TICKS", 3_000)        # by way of files
    assert [(tick["event_time"], tick["symbol"]) for tick in ticks(path)] == by_time
    newest_first = parquet(tmp_path, [trade("A", ms, price=float(n)) for n, ms in enumerate((90_000, 90_000, 50_000, 0, 0))][:5], "newest.parquet")
    assert [tick["price"] for tick in ticks(newest_first)] == [4.0, 3.0, 2.0, 1.0, 0.0]


def test_a_loop_begins_again_after_its_end(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("A", ms) for ms in (0, 500, 2_000)])

    async def main() -> list[int]:
        found: list[int] = []
        async for batch in ReplaySource(Recording(path), "replay.day", loop=True).stream():
            found += batch.event_times
            if len(found) == 9:
                break
        return [time - START for time in found]

    assert asyncio.run(main()) == [0, 500, 2_000, 3_000, 3_500, 5_000, 6_000, 6_500, 8_000]


def test_minute_bars_in_our_own_words_are_no_seconds(tmp_path: Path) -> None:
    rows = [bar("A", 60 * minute, 10.0, 300.0) for minute in range(3)]
    found = ticks(parquet(tmp_path, rows))
    assert [(tick["event_time"] - START, tick["interval_s"]) for tick in found] == [(59_999, 60), (119_999, 60), (179_999, 60)]
    assert "interval_s" not in ticks(parquet(tmp_path, rows), options=ReadOptions(bars=True))[0]
    assert "interval_s" not in ticks(parquet(tmp_path, [bar("A", second, 10.0, 300.0) for second in (0, 7, 14)]))[0]


def test_an_empty_file_and_a_time_of_another_type_are_reported(tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_bytes(b"")
    with pytest.raises(SourceError, match="the file is empty"):
        Recording(tmp_path / "empty.csv")
    pq.write_table(pa.table({"symbol": ["A"], "event_time": [True], "price": [1.0], "size": [1]}), tmp_path / "truth.parquet")
    with pytest.raises(SourceError, match="must be a timestamp, a date or a number"):
        Recording(tmp_path / "truth.parquet").survey()


def test_a_torn_parquet_file_is_reported(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("A", i) for i in range(5000)])
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    with pytest.raises(SourceError, match="cannot be read as Parquet"):
        Recording(path).survey()


def test_pacing_follows_event_time(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("A", ms) for ms in (0, 10, 1000, 900, 61_000)])
    clock = FakeClock()

    async def main() -> list[tuple[int, int]]:
        begun, found = clock.ms, []
        async for batch in ReplaySource(Recording(path), "replay.day", speed=10, shift_ms=5000, clock=clock).stream():
            found += [(time - START - 5000, clock.ms - begun) for time in batch.event_times]
        return found

    found = asyncio.run(main())
    assert [time for time, _ in found] == [0, 10, 1000, 900, 61_000]
    assert all(0 <= wall - max(t for t, _ in found[: i + 1]) / 10 <= 60 for i, (_, wall) in enumerate(found))


def test_the_source_is_named_after_file_and_options(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("A", 0), trade("B", 0)], "my day.v2.parquet")
    assert source_name(Recording(path)) == "replay.my-day-v2"
    assert source_name(Recording(path, symbols=["B", "A"], limit=7), rebased=True) == "replay.my-day-v2.A+B.first7.rebased"
    many = [Recording(path, symbols=[f"SYMBOL{i}" for i in range(n)]) for n in (40, 41)]
    assert len({source_name(one) for one in many}) == 2 and all(len(source_name(one)) <= 128 for one in many)
    with pytest.raises(SourceError, match="128"):
        ReplaySource(many[0], "x" * 129)


def test_what_would_be_rejected_is_foreseen(tmp_path: Path) -> None:
    survey = Recording(parquet(tmp_path, [trade("A", 10_000), trade("B", 20_000)])).survey()
    at = (START + 10_000) // 1000
    same = next(name for name in map(str, range(10**6)) if home_partition(name, 8) == home_partition("A", 8))
    elsewhere = next(name for name in map(str, range(10**6)) if home_partition(name, 8) not in {home_partition("A", 8), home_partition("B", 8)})

    def verdict(symbol: str, source: str, second: int, shift_ms: int = 0) -> str | None:
        return obstacle(survey, "me", {symbol: {"source": source, "second": second}}, 8, shift_ms=shift_ms)

    assert obstacle(survey, "me", {}, 8) is None
    assert verdict(same, "me", at - 1) is None
    assert "me has been replayed into this log before, up to 2013-10-07 08:00:10 UTC: ticks of A" in str(verdict(same, "me", at))
    assert verdict(elsewhere, "me", at + 10_000) is None
    assert verdict("A", "other", at - 301) is None
    assert "A belongs to other" in str(verdict("A", "other", at - 300))
    assert "other_source" in str(verdict("A", "other", at + 10**8))
    assert verdict("A", "other", at + 10**8, shift_ms=10**11 + 10**6) is None
    assert verdict("C", "other", at) is None


def test_values_are_ticks(tmp_path: Path) -> None:
    path = parquet(tmp_path, [trade("Ä\"\\", 0, 1e-7, 3.0), trade("A", 1, 1e22, 2.5)])
    batches = asyncio.run(gather(ReplaySource(Recording(path), 'replay."x"'), 2))
    found = [decode(value) for batch in batches for value in batch.values]
    assert [(tick.symbol, tick.price, tick.size, tick.source) for tick in found] == [('Ä"\\', 1e-7, 3, 'replay."x"'), ("A", 1e22, 2.5, 'replay."x"')]


def test_csv_written_by_others_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pandas.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["", "symbol", "event_time", "open", "high", "low", "close", "volume", "bid", "ask"])
        writer.writeheader()
        writer.writerow({"": 0, "symbol": "A", "event_time": "2013-10-07 08:00:00+00:00", "close": "10.0", "volume": "300.0", "bid": "", "ask": ""})
        writer.writerow({"": 1, "symbol": "A", "event_time": "2013-10-07 08:00:01+00:00", "close": "", "volume": "", "bid": "9.5", "ask": "10"})
    assert [(tick["event_time"] - START, tick["price"], tick.get("ask")) for tick in ticks(path)] == [(999, 10.0, None), (1999, None, 10.0)]

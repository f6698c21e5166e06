"""`stockstream.research.Archive` on small archives: frames, their types, errors, and what is read."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stockstream.errors import ArchiveError, SettingsError, StockstreamError
from stockstream.records import CORRECTION, TICKS_SCHEMA, Repair
from stockstream.research import Archive
from stockstream.research.archive import UnknownSymbol
from stockstream.research.frames import in_utc
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.repaired import Bar, write
from stockstream.sinks.stores import FileStore
from stockstream.sql.errors import ArchiveChanged
from tests.archives import Record, append
from tests.recorded_markets import BEGIN_S, SYMBOLS, Recorded, record
from tests.unit.sql.archives import write_rows

T0 = 1_760_000_400_000      # 2025-10-09 09:00


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("recorded") / "archive", 420)


@pytest.fixture
def archive(recorded: Recorded) -> Archive:
    return Archive(recorded.root)


def write_ticks(root: Path, objects: list[list[dict[str, Any]]], log: str = "log1") -> None:
    """An archive of these ticks; each list is an object, and each of its ticks a record."""
    chain = Chain(FileStore(root), log, 0)
    chain.open()
    offset = 0
    for ticks in objects:
        offsets = range(offset, offset + len(ticks))
        rows = [{"symbol": "A", "source": "x", "index": 0, **tick, "offset": number} for number, tick in zip(offsets, ticks, strict=True)]
        append(chain, [Record(number, T0 + number, b"{}", b"A") for number in offsets], pa.Table.from_pylist(rows, TICKS_SCHEMA))
        offset += len(ticks)


def tick(second: float, price: float | None, size: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"event_time": T0 + int(second * 1000), "price": price, "size": size, **more}


# -- bars -------------------------------------------------------------------


def test_bars_of_every_interval_are_those_of_the_ticks(recorded: Recorded, archive: Archive) -> None:
    ticks = recorded.clean().to_pandas()
    ticks["time"] = pd.to_datetime(ticks["event_time"], unit="ms", utc=True)
    ticks["second"] = ticks["event_time"] // 1000
    ticks = ticks.sort_values(["second", "offset", "index"])
    ticks["value"] = ticks["price"] * ticks["size"]
    for interval, alias in {"1s": "1s", "10s": "10s", "90s": "90s", "1m": "1min", "5m": "5min", "1h": "1h", "1d": "1D"}.items():
        groups = ticks.groupby([pd.Grouper(key="time", freq=alias), "symbol"])
        expected = groups["price"].agg(["first", "max", "min", "last", "size"])
        expected = expected.join(groups[["size", "value"]].sum().rename(columns={"size": "size_of"})).reset_index("symbol")
        bars = archive.bars(SYMBOLS, interval)
        assert bars.index.equals(expected.index.as_unit("ms")) and bars["symbol"].tolist() == expected["symbol"].tolist(), interval
        for name, other in {"open": "first", "high": "max", "low": "min", "close": "last", "ticks": "size", "volume": "size_of"}.items():
            assert bars[name].tolist() == expected[other].tolist(), (interval, name)
        assert bars["vwap"].tolist() == pytest.approx((expected["value"] / expected["size_of"]).tolist(), rel=1e-12)
        assert not bars["gap"].any() and not bars["repaired"].any()


def test_a_bar_holds_only_what_lies_in_the_span(archive: Archive) -> None:
    minutes = archive.bars("AAPL", "1m", "2025-10-09T08:57", "2025-10-09T09:02")
    assert [f"{at:%H:%M}" for at in minutes.index] == ["08:57", "08:58", "08:59", "09:00", "09:01"]
    fives = archive.bars("AAPL", "5m", "2025-10-09T08:57", "2025-10-09T09:02")
    assert [f"{at:%H:%M}" for at in fives.index] == ["08:55", "09:00"]
    assert fives["ticks"].tolist() == [minutes["ticks"][:3].sum(), minutes["ticks"][3:].sum()]


def test_a_late_tick_and_a_correction_count_as_in_bars_of_minutes(tmp_path: Path) -> None:
    write_ticks(tmp_path, [[tick(0.9, 10.0, 2), tick(1.5, 12.0)], [tick(0.5, 9.0, 3), tick(1.6, 12.0, -1, flags=CORRECTION), tick(2, None, 0, bid=1.0)]])
    archive = Archive(tmp_path)
    seconds = archive.bars("A", "1s")
    assert seconds[["open", "high", "low", "close", "volume", "ticks"]].to_numpy().tolist() == [[10, 10, 9, 9, 5, 2], [12, 12, 12, 12, 0, 1]]
    assert seconds["vwap"].tolist() == pytest.approx([47 / 5, float("nan")], nan_ok=True)
    minute, same = archive.bars("A", "1m").iloc[0], archive.bars("A", "30s").iloc[0]
    assert minute.to_dict() == same.to_dict()


def test_repaired_bars_count_in_longer_ones(tmp_path: Path) -> None:
    write_ticks(tmp_path, [[tick(0, 10.0, 4), tick(30, 11.0, 4)]])
    repair = Repair(symbol="A", source="y", minute=T0 + 60_000, open=20.0, high=21.0, low=19.0, close=20.5, volume=100)
    write(FileStore(tmp_path), 0, [Bar(0, T0, repair)])
    archive = Archive(tmp_path)
    assert archive.bars("A", "1m")["repaired"].tolist() == [False, True] and archive.bars("A", "1s")["repaired"].tolist() == [False, False]
    assert archive.bars("A", "1h", source="x")["volume"].tolist() == [8]
    hours = archive.bars("A", "1h")
    assert hours["source"].tolist() == ["x", "y"] and hours["vwap"].tolist() == pytest.approx([10.5, float("nan")], nan_ok=True)


# -- frames -----------------------------------------------------------------


def frames(archive: Archive, *times: str) -> dict[str, pd.DataFrame]:
    return {
        **{interval: archive.bars("AAPL", interval, *times) for interval in ("1s", "1m", "1h")},
        "ticks": archive.ticks("AAPL", *times), "windows": archive.windows("AAPL", *times), "features": archive.features("AAPL", *times),
        "alerts": archive.alerts("AAPL", *times), "predictions": archive.predictions("AAPL", *times), "outcomes": archive.outcomes("AAPL", *times),
    }  # fmt: skip


@pytest.mark.slow
def test_frames_without_rows_have_the_same_types(archive: Archive, tmp_path: Path) -> None:
    full, empty, none = frames(archive), frames(archive, "2025-10-10"), frames(Archive(tmp_path))
    for name, frame in full.items():
        assert not len(empty[name]) and not len(none[name]), name
        assert frame.dtypes.equals(empty[name].dtypes) and frame.dtypes.equals(none[name].dtypes), name
        for one in (frame, empty[name], none[name]):
            assert one.index.name == "time" and str(one.index.dtype) == "datetime64[ms, UTC]", name
    assert archive.symbols().dtypes.equals(Archive(tmp_path).symbols().dtypes)


def test_what_is_missing_is_nan(tmp_path: Path) -> None:
    write_ticks(tmp_path, [[tick(0, 10.0), tick(100, 10.5, gap_s=100, price_before_gap=10.0, flags=8, gap_from=T0 + 5_000), tick(101, None, 0, bid=9.0)]])
    ticks = Archive(tmp_path).ticks("A")
    assert ticks["gap_s"].tolist()[1] == 100 and ticks["gap_s"].isna().tolist() == [True, False, True]
    assert ticks["price"].isna().tolist() == [False, False, True] and ticks["exchange"].isna().all()
    assert ticks["gap_from"].isna().tolist() == [True, False, True] and ticks["gap_from"].iloc[1] == pd.Timestamp(T0 + 5_000, unit="ms", tz="UTC")
    assert ticks["flags"].tolist() == [0, 8, 0]


def test_ticks_are_those_that_clean_accepted(recorded: Recorded, archive: Archive) -> None:
    symbols = ["AAPL", "KO"]
    ticks = archive.ticks(symbols, "2025-10-09T08:58", "2025-10-09T09:01", columns=["symbol", "price", "offset"])
    clean = recorded.clean()
    first = int(datetime(2025, 10, 9, 8, 58, tzinfo=UTC).timestamp() * 1000)
    times = clean.column("event_time")
    mine = clean.filter(pc.and_(pc.is_in(clean.column("symbol"), pa.array(symbols)), pc.and_(pc.greater_equal(times, first), pc.less(times, first + 180_000))))
    expected = sorted(zip(*(mine.column(name).to_pylist() for name in ("event_time", "symbol", "price", "offset")), strict=True))
    got = [(int(at.timestamp() * 1000 + 0.5), *row) for at, row in zip(ticks.index, ticks.to_numpy().tolist(), strict=True)]
    assert got == expected and list(ticks.columns) == ["symbol", "price", "offset"]


def test_symbols(recorded: Recorded, archive: Archive) -> None:
    symbols = archive.symbols()
    assert symbols["symbol"].tolist() == sorted(SYMBOLS)
    assert symbols["ticks"].sum() == recorded.clean().num_rows and symbols["ticks"].dtype == "int64"
    assert (symbols["first_minute"] == pd.Timestamp(BEGIN_S, unit="s", tz="UTC")).all()


# -- SQL --------------------------------------------------------------------


def test_sql_in_every_form(archive: Archive) -> None:
    columns = "symbol, sum(ticks) AS n, min(minute) AS first, min(date) AS day, NULL::INTEGER AS no"
    result = archive.sql(f"SELECT {columns} FROM bars_1m WHERE symbol = ? GROUP BY 1", ["KO"])
    first = datetime(2025, 10, 9, 8, 56, tzinfo=UTC)
    assert result.rows() == [("KO", 420, first, first.date(), None)]
    frame = result.df()
    assert frame["n"].dtype == "float64" and str(frame["first"].dtype).endswith("UTC]") and frame["day"].tolist() == [pd.Timestamp("2025-10-09")]
    assert result.arrow().column("first").type.tz == "UTC" and frame["no"].isna().all()
    assert archive.sql("SELECT symbol FROM bars_1m WHERE symbol = $name LIMIT 1", {"name": "KO"}).rows() == [("KO",)]
    assert "SELECT symbol FROM bars_1m LIMIT 1" in repr(archive.sql("SELECT symbol\nFROM bars_1m LIMIT 1"))


def test_batches_are_bounded(archive: Archive) -> None:
    result = archive.sql("SELECT i FROM range(1_000_000) AS t(i)")
    sizes = [batch.num_rows for batch in result.batches(10_000)]
    assert sum(sizes) == 1_000_000 and max(sizes) <= 20_000
    assert sum(batch.num_rows for batch in result) == 1_000_000
    (only,) = archive.sql("SELECT symbol FROM ticks WHERE false").batches()
    assert only.num_rows == 0 and only.schema.names == ["symbol"]


@pytest.mark.parametrize(
    ("sql", "expected"),
    [
        ("DROP VIEW ticks", "read-only"), ("SELECT 1; SELECT 2", "one SQL statement"), ("SELEC", "syntax error"), ("SELECT nothing FROM ticks", "nothing"),
        ("SELECT * FROM read_csv('/etc/passwd')", "."), ("COPY (SELECT 1) TO '/tmp/x.csv'", "read-only"), ("SELECT * FROM nowhere", "nowhere"),
    ],
)  # fmt: skip
def test_sql_that_cannot_run(archive: Archive, sql: str, expected: str) -> None:
    with pytest.raises(ArchiveError, match=expected) as caught:
        archive.sql(sql).rows()
    assert "\n" not in str(caught.value)


def test_variables_of_the_program_are_no_tables(archive: Archive) -> None:
    mine = pd.DataFrame({"a": [1]})
    with pytest.raises(ArchiveError, match="mine"):
        archive.sql("SELECT * FROM mine").rows()
    assert len(mine) == 1


def test_polars(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(StockstreamError, match="polars is not installed"):
        archive.sql("SELECT 1 AS a").pl()
    polars = ModuleType("polars")
    polars.from_arrow = lambda table: ("polars", table.to_pylist())  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "polars", polars)
    assert archive.sql("SELECT 1 AS a").pl() == ("polars", [{"a": 1}])


# -- errors -----------------------------------------------------------------


def test_an_archive_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArchiveError, match=r"there is no archive: .*absent does not exist"):
        Archive(tmp_path / "absent")
    with pytest.raises(SettingsError, match="did you mean s3_endpoint"):
        Archive(tmp_path, s3_endpont="http://localhost")
    monkeypatch.setenv("STOCKSTREAM_ARCHIVE", "none")
    with pytest.raises(SettingsError, match="STOCKSTREAM_ARCHIVE is none"):
        Archive()
    monkeypatch.setenv("STOCKSTREAM_ARCHIVE", str(tmp_path))
    assert Archive().url == f"file://{tmp_path}"


@pytest.mark.parametrize("call", ["bars", "ticks", "windows", "features", "alerts", "outcomes"])
@pytest.mark.slow
def test_an_unknown_symbol_is_an_error_with_similar_names(archive: Archive, call: str) -> None:
    with pytest.raises(UnknownSymbol, match="the archive has no symbol 'aapl': did you mean AAPL"):
        getattr(archive, call)(["MSFT", "aapl"])
    with pytest.raises(UnknownSymbol, match=r"no symbol 'ZZ'; .symbols\(\) lists the 6 symbols that it has"):
        getattr(archive, call)("ZZ", start="2025-10-10")


def test_a_symbol_of_quotes_only_is_known(tmp_path: Path) -> None:
    write_ticks(tmp_path, [[tick(0, None, 0, bid=1.0, ask=1.1), tick(0, 5.0, symbol="B")]])
    archive = Archive(tmp_path)
    assert archive.bars("A").empty and len(archive.ticks("A")) == 1


def test_arguments_that_are_wrong(archive: Archive) -> None:
    with pytest.raises(ValueError, match="there is no column 'clsoe': did you mean close"):
        archive.bars("AAPL", columns=["clsoe"])
    with pytest.raises(ValueError, match="at least one symbol"):
        archive.ticks([])
    with pytest.raises(TypeError, match="is no symbol"):
        archive.ticks([1])  # type: ignore[list-item]
    with pytest.raises(UnknownSymbol):
        archive.ticks("x' OR true --")


def test_a_closed_archive_is_not_read(recorded: Recorded) -> None:
    with Archive(recorded.root) as archive:
        result = archive.sql("SELECT 1")
    for call in (archive.symbols, result.rows):
        with pytest.raises(ArchiveError, match="is closed"):
            call()
    assert "closed" in repr(archive)


# -- what it holds, threads, forks, imports ---------------------------------


def test_its_representation_says_what_it_holds(recorded: Recorded, archive: Archive, tmp_path: Path) -> None:
    assert repr(archive).startswith(f"<Archive file://{recorded.root}: 2025-10-09, 6 symbols, about ")
    ticks = int(repr(archive).partition("about ")[2].partition(" ticks")[0].replace(",", ""))
    assert ticks == pytest.approx(recorded.clean().num_rows, rel=0.5)
    assert "6 symbols" in archive._repr_html_() and "<Archive" not in archive._repr_html_()
    assert "holds nothing yet" in repr(Archive(tmp_path))


def _bars_of(archive: Archive) -> int:
    return len(archive.bars("AAPL"))


def test_threads_and_processes_share_it(archive: Archive) -> None:
    assert _bars_of(archive) == 7
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: _bars_of(archive), range(8))) == [7] * 8
    assert _bars_of(pickle.loads(pickle.dumps(archive))) == 7


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_process_reads_it(archive: Archive) -> None:
    assert _bars_of(archive) == 7
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_bars_of, [archive]).get(60) == 7


def test_importing_it_loads_nothing_that_is_slow() -> None:
    program = "import sys, stockstream.research; print(*sorted(sys.modules))"
    loaded = set(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split())
    assert loaded & {"pandas", "duckdb", "faust", "mode", "aiokafka", "boto3", "botocore", "pydantic", "matplotlib", "xgboost"} == set()


@pytest.mark.parametrize("read", [
    lambda archive: archive.ticks("A", "2025-10-09"), lambda archive: archive.windows("A", "2025-10-09", computed=False),
])  # fmt: skip
def test_what_a_compaction_replaces_while_it_is_read_is_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Archive], Any]) -> None:
    place = {"symbol": "A", "source": "x", "partition": 0, "log": "log1"}
    paths = [
        write_rows(tmp_path, "ticks", "date=2025-10-09/hour=09", [{**place, "event_time": T0, "price": 1.0, "offset": 0, "index": 0}]),
        write_rows(tmp_path, "windows", "date=2025-10-09/hour=09", [{**place, "second": T0 // 1000, "close": 1.0, "offset": 0, "revised": False,
                                                                     "time": T0, "record_offset": 0}]),
    ]  # fmt: skip
    archive = Archive(tmp_path)
    before, runs = read(archive), 0

    def replaced(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal runs
        runs += 1
        if runs == 1:
            for path in paths:
                path.rename(path.with_name(path.name.replace("-00000-", "-00001-")))
            raise ArchiveChanged("replaced")
        return in_utc(batch)

    monkeypatch.setattr("stockstream.research.reading.in_utc", replaced)
    pd.testing.assert_frame_equal(read(archive), before)
    assert runs == 2 and len(before) == 1


def test_only_the_dates_of_a_span_are_read(recorded: Recorded, tmp_path: Path, archive: Archive) -> None:
    """What other dates hold is not even opened."""
    for area in ("ticks/date=2025-10-08/hour=09", "bars_1m/date=2025-10-08"):
        (tmp_path / "processed" / area).mkdir(parents=True)
        (tmp_path / "processed" / area / "log-00000-00000000000000000000.parquet").write_bytes(b"no Parquet")
    for path in recorded.root.rglob("*.parquet"):
        target = tmp_path / path.relative_to(recorded.root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.hardlink_to(path)
    broken = Archive(tmp_path)
    for frame, other in zip(frames(broken, "2025-10-09").values(), frames(archive, "2025-10-09").values(), strict=True):
        pd.testing.assert_frame_equal(frame, other)


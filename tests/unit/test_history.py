from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet
import pytest

from stockstream.errors import SourceError
from stockstream.history import TICKS, read_ticks, window_rows
from stockstream.records import WINDOWS_SCHEMA
from tests.recordings import SAMPLES

START = 1_700_000_000


def bars() -> pd.DataFrame:
    return pd.DataFrame({
        "symbol": ["A", "B", "A", "A"], "event_time": pd.to_datetime([START, START, START + 2_000, START + 1_000], unit="s", utc=True).as_unit("ms"),
        "close": [10.0, 20.0, 10.3, np.nan], "volume": [5.0, 7.0, 1.0, np.nan], "bid": [9.9, 19.0, 10.2, 10.1], "ask": [10.1, 21.0, 10.4, 10.3],
        "bid_size": [1.0] * 4, "ask_size": [2.0] * 4,
    })  # fmt: skip


@pytest.mark.parametrize("kind", ["parquet", "csv"])
def test_bars_are_ticks_at_the_end_of_their_second_in_order_of_time(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"bars.{kind}"
    bars().to_parquet(path) if kind == "parquet" else bars().to_csv(path, index=False)
    ticks = read_ticks(path)
    assert ticks.schema.equals(TICKS)
    assert ticks.column("event_time").to_pylist() == [1_000 * START + after + 999 for after in (0, 0, 1_000_000, 2_000_000)]
    assert ticks.column("price").to_pylist() == [10.0, 20.0, None, 10.3]
    assert ticks.column("size").to_pylist() == [5, 7, 0, 1]
    assert read_ticks(path, symbols=["B"]).column("symbol").to_pylist() == ["B"]


def test_rows_are_those_of_a_worker(tmp_path: Path) -> None:
    bars().to_parquet(tmp_path / "bars.parquet")
    rows = window_rows(read_ticks(tmp_path / "bars.parquet"))
    assert rows.schema.equals(WINDOWS_SCHEMA)
    table = rows.to_pandas().set_index(["symbol", "second"])
    assert sorted(table.index) == [("A", START), ("A", START + 1_000), ("A", START + 2_000), ("B", START)]
    assert not table.revised.any()
    assert table.loc[("A", START + 1_000), "price"] == pytest.approx(10.2)       # the mid of a second of quotes only
    assert table.loc[("A", START + 2_000), "seconds_5m"] == 1                    # a new series after more than 300 s


def test_trades_without_quotes(tmp_path: Path) -> None:
    path = tmp_path / "trades.parquet"
    times = [1_000 * START + 500, 1_000 * START + 400]
    pa.parquet.write_table(pa.table({"symbol": ["A", "A"], "event_time": times, "price": [2.0, 1.0], "size": [10, 20]}), path)
    rows = window_rows(read_ticks(path)).to_pylist()
    assert [(r["open"], r["close"], r["volume"], r["bid"], r["price"]) for r in rows] == [(1.0, 2.0, 30, None, 2.0)]


def test_a_file_of_nothing_is_reported(tmp_path: Path) -> None:
    bars().iloc[:0].to_parquet(tmp_path / "none.parquet")
    with pytest.raises(SourceError, match="no row is a valid tick"):
        read_ticks(tmp_path / "none.parquet")


def test_a_minutes_volume_is_not_taken_for_that_of_a_second(tmp_path: Path) -> None:
    rows = window_rows(read_ticks(SAMPLES["alpha_vantage.csv"].make(tmp_path))).to_pandas()
    assert len(rows) == 4 and (rows.accrued_5m > 0).all() and rows.quality.str.contains("accrued").all()

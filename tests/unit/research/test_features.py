"""Features of archived and of recomputed rows: those that the scorer gave to its model, bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from numpy.typing import NDArray

from models import features
from stockstream.errors import ModelError
from stockstream.records import WINDOWS_SCHEMA
from stockstream.research import Archive
from stockstream.research.recomputed import hours_of
from stockstream.research.times import Span
from tests.backtests import run
from tests.recorded_markets import BEGIN_S, Recorded, record


class Watching:
    """A model that keeps what it is asked."""

    name, version, horizons_s = "watching", "1", (10, 60)

    def __init__(self, feature_hash: str = "") -> None:
        self.feature_hash = feature_hash or features.feature_hash()
        self.asked: list[NDArray[np.float32]] = []

    def predict(self, matrix: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        self.asked.append(matrix.copy())
        first = np.nan_to_num(matrix[:, :1].astype(np.float64)) / 100
        return np.concatenate([first, -first], axis=1), np.full((len(matrix), 2), 0.25)


SEEN = Watching()


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    return record(tmp_path_factory.mktemp("recorded") / "archive", model=SEEN)


def as_matrix(frame: object) -> NDArray[np.float32]:
    matrix: NDArray[np.float32] = frame[list(features.FEATURES)].to_numpy()  # type: ignore[index]
    return matrix


def in_order(matrix: NDArray[np.float32]) -> NDArray[np.uint32]:
    """The rows' bits in an order that does not depend on where they came from."""
    bits = np.ascontiguousarray(matrix).view(np.uint32)
    return bits[np.lexsort(bits.T)]


@pytest.mark.parametrize("computed", [False, True])
def test_features_are_what_the_model_was_given(recorded: Recorded, computed: bool) -> None:
    symbols = recorded.windows().column("symbol").unique().to_pylist()
    frame = Archive(recorded.root).features(symbols, computed=computed)
    asked = np.concatenate(SEEN.asked)
    assert len(frame) == len(asked) and len(asked) > 5_000
    assert (in_order(as_matrix(frame)) == in_order(asked)).all()
    assert frame[list(features.FEATURES)].dtypes.eq("float32").all()
    assert bool(frame.attrs["computed"]) == computed
    assert pc.sum(recorded.windows().column("revised")).as_py() > 50, "the market has late ticks"


def test_a_span_within_is_the_same_as_the_whole(recorded: Recorded) -> None:
    """Computed rows need what was before the span."""
    archive = Archive(recorded.root)
    whole = archive.features("AAPL", computed=True)
    begin = BEGIN_S + 700
    part = archive.features("AAPL", f"{np.datetime64(begin, 's')}", f"{np.datetime64(begin + 100, 's')}", computed=True)
    expected = whole[(whole.index >= part.index[0]) & (whole.index <= part.index[-1])]
    assert len(part) == 100 and part.attrs["computed"] == ["2025-10-09T09:07:40Z/2025-10-09T09:09:20Z"]
    assert (as_matrix(part).view(np.uint32) == as_matrix(expected).view(np.uint32)).all() and (part["price"] == expected["price"]).all()


def test_computed_windows_are_those_of_the_worker(recorded: Recorded) -> None:
    archive, table = Archive(recorded.root), recorded.windows()
    frame = archive.windows("MSFT", computed=True)
    mine = table.filter(pc.equal(table.column("symbol"), "MSFT")).sort_by([("second", "ascending"), ("offset", "descending")])
    newest = {row["second"]: row for row in reversed(mine.to_pylist())}
    assert len(frame) == len(newest)
    columns = [name for name in WINDOWS_SCHEMA.names if name not in ("second", "partition")]
    rows = pa.Table.from_pandas(frame[columns].astype({"gap_s": "float64"}), preserve_index=False).to_pylist()
    assert rows == [{name: newest[second][name] for name in columns} for second in sorted(newest)]


def test_features_of_a_backtest_of_the_archive_are_the_same(recorded: Recorded, tmp_path: Path) -> None:
    model = Watching()
    run(recorded.root, tmp_path / "results", partitions=2, model=model)
    frame = Archive(recorded.root).features(["AAPL", "MSFT", "NVDA", "TSLA", "KO", "XOM"])
    assert (in_order(as_matrix(frame)) == in_order(np.concatenate(model.asked))).all()


def test_a_models_answers_are_added(recorded: Recorded) -> None:
    frame = Archive(recorded.root).features("KO", model=Watching())
    answers = {(one.symbol[row], int(one.as_of[row]) // 1000 - 1): one.predicted_return[row, 0] for results in recorded.results.values()
               for scored in results.scored for one in scored.predictions for row in range(len(one.symbol))}  # fmt: skip
    expected = [answers["KO", int(at.timestamp())] for at in frame.index]
    assert frame["predicted_return_10s"].tolist() == expected and any(expected)
    assert (frame["predicted_return_60s"] == -frame["predicted_return_10s"]).all() and (frame["p_up_60s"] == 0.25).all()
    empty = Archive(recorded.root).features("KO", "2025-10-10", model=Watching())
    assert not len(empty) and empty.dtypes.equals(frame.dtypes)


def test_a_model_of_other_features_is_refused(recorded: Recorded) -> None:
    with pytest.raises(ModelError, match="trained on other features"):
        Archive(recorded.root).features("KO", model=Watching("0123456789ab"))


def test_a_model_by_name_is_the_champion_of_the_registry(recorded: Recorded, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        Archive(recorded.root, models=str(tmp_path)).features("KO", model="xgboost")


def test_hours_without_windows_are_computed() -> None:
    hour = 3_600_000
    assert hours_of(Span(), [5, 6, 8, 9], [9]) == [Span(5 * hour, 7 * hour), Span(8 * hour, 9 * hour)]
    assert hours_of(Span(5 * hour + 1, 6 * hour + 2), [5, 6], []) == [Span(5 * hour + 1, 6 * hour + 2)]
    assert hours_of(Span(5 * hour, 6 * hour), [5], [5]) == [] == hours_of(Span(0, 10), [], [])

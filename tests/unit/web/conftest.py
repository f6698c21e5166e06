"""Rows, frames and messages as the topics carry them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec
import pyarrow as pa
import pytest

from stockstream.records import SHARES, WINDOWS_SCHEMA, Alert, Closing, Horizon, Outcome, Prediction
from stockstream.transforms.frames import Frame

SECOND = 1_700_000_000


class Make:
    """Makes messages; every figure can be overridden."""

    second = SECOND

    def row(self, symbol: str = "ABC", second: int = SECOND, offset: int = 10, **changes: Any) -> dict[str, Any]:
        row: dict[str, Any] = {field.name: None for field in WINDOWS_SCHEMA}
        row |= {f.name: 1 for f in WINDOWS_SCHEMA if pa.types.is_integer(f.type)}
        row |= dict.fromkeys((name for name in SHARES if name in row), 0)
        row |= {
            "symbol": symbol, "source": "simulated.1", "second": second, "offset": offset, "partition": 0, "quality": "", "revised": False,
            "open": 10.0, "high": 12.0, "low": 9.0, "close": 11.0, "volume": 100, "ticks": 3, "price": 11.0, "volume_5m": 5_000, "return_60s": 0.01,
        }  # fmt: skip
        return row | changes

    def frame(
        self, rows: Iterable[dict[str, Any]], log: str = "00000000001-00000001", start: int = 0, through: int | None = None,
        closings: Iterable[Closing] = (),
    ) -> Frame:  # fmt: skip
        rows = list(rows)
        last = max((row["offset"] for row in rows), default=start)
        if not closings:
            newest: dict[str, int] = {}
            for row in rows:
                newest[row["source"]] = max(newest.get(row["source"], 0), row["second"])
            closings = [Closing(last, source, second - 1, second) for source, second in newest.items()]
        return Frame(log, start, last if through is None else through, tuple(closings), pa.RecordBatch.from_pylist(rows, schema=WINDOWS_SCHEMA))

    def prediction(self, symbol: str = "ABC", as_of: int = (SECOND + 1) * 1_000, offset: int = 10, **changes: Any) -> bytes:
        prediction = Prediction(
            id=f"{symbol}:{as_of}", symbol=symbol, as_of=as_of, price=11.0, model="xgboost", version="1", feature_hash="f", partition=0, offset=offset,
            made_at=as_of + 200, latency_ms={"score": 3}, horizons=[Horizon(horizon_s=60, predicted_return=0.001, p_up=0.6)],
        )  # fmt: skip
        return msgspec.json.encode(msgspec.structs.replace(prediction, **changes))

    def alert(self, number: int = 1, state: str = "opened", symbol: str = "ABC", as_of: int = 0, rule: str = "volume_spike", **window: Any) -> bytes:
        opened_at = (SECOND + number) * 1_000
        alert = Alert(
            id=f"{symbol}:{rule}:{opened_at}", symbol=symbol, rule=rule, state=state, severity="warning", opened_at=opened_at, as_of=as_of or opened_at,  # type: ignore[arg-type]
            value=9.0, baseline=1.0, threshold=8.0, message="volume is 9 times its mean", window={"volume_5m": 5_000} | window,
        )  # fmt: skip
        return msgspec.json.encode(alert)

    def outcome(self, predicted: float, realised: float, as_of: int = 1, symbol: str = "ABC") -> Outcome:
        return Outcome(
            id=f"{symbol}:{as_of}", symbol=symbol, as_of=as_of, horizon_s=60, predicted_return=predicted, p_up=0.5, model="xgboost", version="1",
            role="champion", realised_return=realised, price_then=1.0, judged_at=2,
        )  # fmt: skip


@pytest.fixture
def make() -> Make:
    return Make()

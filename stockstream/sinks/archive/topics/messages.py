"""Rows of `alerts`, `predictions` and `outcomes`: JSON messages in, columns out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Annotated, Any

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta

from stockstream.records import Alert, Horizon, Outcome, Prediction
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.sinks.archive.schemas import without_place
from stockstream.sinks.archive.topics.gathered import Gathered
from stockstream.sinks.archive.topics.positions import State
from stockstream.transforms.cleaning.limits import MAX_INT, MAX_TIME

Time = Annotated[int, Meta(ge=0, lt=MAX_TIME)]
Int = Annotated[int, Meta(ge=0, le=MAX_INT)]
Seconds = Annotated[int, Meta(ge=0, lt=1 << 31)]
Number = Annotated[float, Meta(ge=-1e300, le=1e300)]
"""Finite."""
Text = Annotated[str, Meta(min_length=1, max_length=1_024)]


class _Alert(Alert, kw_only=True, gc=False):
    id: Text
    symbol: Text
    rule: Text
    opened_at: Time
    as_of: Time
    value: Number
    baseline: Number
    threshold: Number
    window: msgspec.Raw  # type: ignore[assignment]


class _Horizon(Horizon, kw_only=True, gc=False):
    horizon_s: Seconds
    predicted_return: Number
    p_up: Number


class _Prediction(Prediction, kw_only=True, gc=False):
    id: Text
    symbol: Text
    as_of: Time
    price: Number
    offset: Int
    made_at: Time
    latency_ms: msgspec.Raw  # type: ignore[assignment]
    horizons: Annotated[list[_Horizon], Meta(min_length=1)]  # type: ignore[assignment]


class _Outcome(Outcome, kw_only=True, gc=False):
    id: Text
    symbol: Text
    as_of: Time
    horizon_s: Seconds
    predicted_return: Number
    p_up: Number
    realised_return: Number
    price_then: Number
    judged_at: Time


Items = list[tuple[int, Any]]
"""Offset of the record, and a message or an item of one."""
Columns = Mapping[str, Sequence[Any]]


def _columns(items: Sequence[Any], names: Sequence[str]) -> dict[str, Sequence[Any]]:
    return {name: list(map(attrgetter(name), items)) for name in names}


def _alerts(items: Items) -> tuple[Columns, Columns, Sequence[int] | None]:
    alerts = [alert for _, alert in items]
    columns = _columns(alerts, ("id", "symbol", "rule", "state", "severity", "opened_at", "as_of", "value", "baseline", "threshold", "message"))
    return columns | {"window": [_object(alert.window) for alert in alerts], "record_offset": [offset for offset, _ in items]}, {}, None


def _predictions(items: Items) -> tuple[Columns, Columns, Sequence[int] | None]:
    predictions = [prediction for _, prediction in items]
    columns = _columns(predictions, ("id", "symbol", "as_of", "price", "model", "version", "feature_hash", "offset", "made_at"))
    columns |= {"latency_ms": [_object(prediction.latency_ms) for prediction in predictions], "record_offset": [offset for offset, _ in items]}
    horizons = _columns([horizon for prediction in predictions for horizon in prediction.horizons], ("horizon_s", "predicted_return", "p_up"))
    return columns, horizons, [len(prediction.horizons) for prediction in predictions]


def _outcomes(items: Items) -> tuple[Columns, Columns, Sequence[int] | None]:
    columns = _columns([outcome for _, outcomes in items for outcome in outcomes], _Outcome.__struct_fields__)
    return columns | {"record_offset": [offset for offset, outcomes in items for _ in outcomes]}, {}, None


def _object(raw: msgspec.Raw) -> str:
    """The text of a JSON object. Raises `ValueError` if it is something else."""
    text = bytes(raw).decode()
    if not text.startswith("{"):
        raise ValueError(f"an object is expected, not {text[:40]}")
    return text


_KINDS: dict[str, tuple[Callable[[bytes], Any], Callable[[Items], tuple[Columns, Columns, Sequence[int] | None]]]] = {
    "alerts": (msgspec.json.Decoder(_Alert).decode, _alerts),
    "predictions": (msgspec.json.Decoder(_Prediction).decode, _predictions),
    "outcomes": (msgspec.json.Decoder(list[_Outcome]).decode, _outcomes),
}
"""By topic, the decoder of a message, and what makes columns of messages: those with a value for each message, those with one for each of its rows, and the
numbers of rows; None: one each."""


class MessageGatherer:
    """`Gatherer` of `alerts`, `predictions` or `outcomes`. Every message is complete; repetitions are left out later, by `repeated`."""

    def __init__(self, topic: str) -> None:
        self._decode, self._to_columns = _KINDS[topic]
        self._schema = without_place(topic)

    def gather(self, records: Sequence[RawRecord]) -> Gathered:
        faults: list[tuple[int, str]] = []
        items: Items = []
        for record in records:
            try:
                items.append((record.offset, self._decode(record.value or b"")))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                faults.append((record.offset, str(error)))
        try:
            rows = self._table(items)
        except (pa.ArrowException, ValueError, OverflowError):           # UnicodeError is a ValueError
            rows = self._singly(items, faults)
        return Gathered(rows, records[-1] if records else None, len(records), 0, State(), sorted(faults))

    def _table(self, items: Items) -> pa.Table:
        columns, of_rows, counts = self._to_columns(items)
        row_of = pa.array(np.repeat(np.arange(len(items)), counts)) if counts is not None else None
        arrays = []
        for field in self._schema:
            if field.name in of_rows:
                arrays.append(_array(of_rows[field.name], field.type))
            else:
                array = _array(columns[field.name], field.type)
                arrays.append(array if row_of is None else array.take(row_of))
        return pa.table(arrays, schema=self._schema)

    def _singly(self, items: Items, faults: list[tuple[int, str]]) -> pa.Table:
        """One of the messages cannot be a row: finds it."""
        tables = []
        for item in items:
            try:
                tables.append(self._table([item]))
            except (pa.ArrowException, ValueError, OverflowError) as error:
                faults.append((item[0], str(error)))
        return pa.concat_tables([self._table([]), *tables]).combine_chunks()


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(values, kind)

"""Rows of `alerts`, `predictions` and `outcomes`: JSON messages in, columns out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any

import msgspec
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


class _Alert(Alert, kw_only=True):
    id: Text
    symbol: Text
    rule: Text
    opened_at: Time
    as_of: Time
    value: Number
    baseline: Number
    threshold: Number
    window: msgspec.Raw  # type: ignore[assignment]


class _Horizon(Horizon, kw_only=True):
    horizon_s: Seconds
    predicted_return: Number
    p_up: Number


class _Prediction(Prediction, kw_only=True):
    id: Text
    symbol: Text
    as_of: Time
    price: Number
    offset: Int
    made_at: Time
    latency_ms: msgspec.Raw  # type: ignore[assignment]
    horizons: Annotated[list[_Horizon], Meta(min_length=1)]  # type: ignore[assignment]


class _Outcome(Outcome, kw_only=True):
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


def _columns(items: Items, names: Sequence[str]) -> dict[str, list[Any]]:
    return {name: [getattr(item, name) for _, item in items] for name in names}


def _alerts(items: Items) -> dict[str, list[Any]]:
    columns = _columns(items, ("id", "symbol", "rule", "state", "severity", "opened_at", "as_of", "value", "baseline", "threshold", "message"))
    return columns | {"window": [_object(item.window) for _, item in items], "record_offset": [offset for offset, _ in items]}


def _predictions(items: Items) -> dict[str, list[Any]]:
    rows = [(offset, item, horizon) for offset, item in items for horizon in item.horizons]
    latency = [_object(item.latency_ms) for _, item in items]
    columns = _columns([(0, item) for _, item, _ in rows], ("id", "symbol", "as_of", "price", "model", "version", "feature_hash", "offset", "made_at"))
    columns |= _columns([(0, horizon) for _, _, horizon in rows], ("horizon_s", "predicted_return", "p_up"))
    columns["latency_ms"] = [text for text, (_, item) in zip(latency, items, strict=True) for _ in item.horizons]
    return columns | {"record_offset": [offset for offset, _, _ in rows]}


def _outcomes(items: Items) -> dict[str, list[Any]]:
    rows = [(offset, outcome) for offset, outcomes in items for outcome in outcomes]
    return _columns(rows, _Outcome.__struct_fields__) | {"record_offset": [offset for offset, _ in rows]}


def _object(raw: msgspec.Raw) -> str:
    """The text of a JSON object. Raises `ValueError` if it is something else."""
    text = bytes(raw).decode()
    if not text.startswith("{"):
        raise ValueError(f"an object is expected, not {text[:40]}")
    return text


_KINDS: dict[str, tuple[Callable[[bytes], Any], Callable[[Items], dict[str, list[Any]]]]] = {
    "alerts": (msgspec.json.Decoder(_Alert).decode, _alerts),
    "predictions": (msgspec.json.Decoder(_Prediction).decode, _predictions),
    "outcomes": (msgspec.json.Decoder(list[_Outcome]).decode, _outcomes),
}


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
        columns = self._to_columns(items)
        arrays = [_array(columns[field.name], field.type) for field in self._schema]
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


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    return pa.array(values, pa.int64()).cast(kind) if pa.types.is_timestamp(kind) else pa.array(values, kind)

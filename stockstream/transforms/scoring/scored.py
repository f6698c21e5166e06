"""The results of scoring as columns, and their JSON: predictions, outcomes, and rows that have no prediction."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from stockstream.records import Horizon, Outcome, Prediction
from stockstream.transforms.frames import MAX_FRAME_BYTES
from stockstream.transforms.scoring.roster import Member

OUTCOMES_OF_A_MESSAGE: Final = 2_000
"""Kafka's default message limit is 1 MiB."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_json = msgspec.json.Encoder().encode
_json_lines = msgspec.json.Encoder().encode_lines


@dataclass(frozen=True, slots=True)
class Predictions:
    """Columns of one model's predictions: n rows by (closing offset, source, second, symbol), h horizons."""

    model: str
    version: str
    feature_hash: str
    horizons_s: tuple[int, ...]
    symbol: list[str]
    as_of: Ints
    price: Floats
    offset: Ints
    predicted_return: Floats
    p_up: Floats


@dataclass(frozen=True, slots=True)
class Outcomes:
    """Columns of what became of predictions, in the order of judging; `by_model` has the models, each with its number of rows, in turn."""

    by_model: list[tuple[Member, int]]
    symbol: list[str]
    as_of: Ints
    horizon_s: Ints
    predicted_return: Floats
    p_up: Floats
    realised_return: Floats
    price_then: Floats


class Missed(NamedTuple):
    """Rows that a model should have predicted and did not; name and version are empty where there is no champion at all."""

    name: str
    version: str
    reason: str
    rows: int


@dataclass(frozen=True, slots=True)
class Scored:
    """What a frame brought. `through` is the raw offset counted through; all is in the log's order, however it was cut.

    `suspended` are the models that this frame has shown to be faulty; from the next offset on they do not score.
    """

    partition: int
    through: int
    predictions: tuple[Predictions, ...] = ()
    outcomes: Outcomes | None = None
    missed: tuple[Missed, ...] = ()
    suspended: tuple[Member, ...] = ()

    @property
    def symbols(self) -> list[str]:
        """The symbol of each prediction, in the order of `encode_predictions`."""
        return [symbol for of in self.predictions for symbol in of.symbol]


def encode_predictions(scored: Scored, made_at: int, latency_ms: Mapping[str, int]) -> list[bytes]:
    """Each prediction as the JSON of `records.Prediction`, in the order of `scored.symbols`, the messages' keys. Times in epoch ms, latencies in ms."""
    same = {"partition": scored.partition, "made_at": made_at, "latency_ms": dict(latency_ms)}
    out: list[bytes] = []
    for of in scored.predictions:
        template = _template(
            Prediction, {**same, "model": of.model, "version": of.version, "feature_hash": of.feature_hash},
            **_named(of.model, of.version), horizons=b"[%b]" % b",".join(_template(Horizon, {"horizon_s": horizon}) for horizon in of.horizons_s),
        )  # fmt: skip
        symbol, as_of = _open(of.symbol), _texts(of.as_of)
        answers = [_texts(values[:, column]) for column in range(len(of.horizons_s)) for values in (of.predicted_return, of.p_up)]
        columns = (symbol, as_of, symbol, as_of, _texts(of.price), _texts(of.offset), *answers)
        out += map(template.__mod__, zip(*columns, strict=True))
    return out


def encode_outcomes(scored: Scored, judged_at: int) -> list[bytes]:
    """The outcomes as JSON arrays of `records.Outcome`, each within `MAX_FRAME_BYTES`; none where there are none. `judged_at` in epoch ms."""
    of = scored.outcomes
    if of is None:
        return []
    columns = (of.as_of, of.horizon_s, of.predicted_return, of.p_up, of.realised_return, of.price_then)
    rows = zip(of.symbol, *(column.tolist() for column in columns), strict=True)
    items: list[Outcome] = []
    for by, count in of.by_model:
        suffix = f"-{by.name}-{by.version}"
        items += [
            Outcome(
                id=f"{symbol}-{as_of}{suffix}", symbol=symbol, as_of=as_of, horizon_s=horizon_s, predicted_return=predicted, p_up=p, model=by.name,
                version=by.version, role=by.role, realised_return=realised, price_then=price, judged_at=judged_at,
            )
            for symbol, as_of, horizon_s, predicted, p, realised, price in islice(rows, count)
        ]  # fmt: skip
    return [message for start in range(0, len(items), OUTCOMES_OF_A_MESSAGE) for message in _within(items[start : start + OUTCOMES_OF_A_MESSAGE])]


def _within(items: list[Outcome]) -> Iterator[bytes]:
    """The items as one array, or as several where long names make it too large for a message."""
    data = _json(items)
    if len(data) <= MAX_FRAME_BYTES or len(items) == 1:
        yield data
        return
    middle = len(items) // 2
    yield from _within(items[:middle])
    yield from _within(items[middle:])


def _template(record: type[msgspec.Struct], same: Mapping[str, Any], **parts: bytes) -> bytes:
    """What makes records' JSON by `%`: they are alike in `same`; `%b`, or what `parts` has for it, stands for each other field, in the record's order."""
    parts |= {name: _fixed(value) for name, value in same.items()}
    return b"{%b}" % b",".join(b'"%b":%b' % (name.encode(), parts.get(name, b"%b")) for name in record.__struct_fields__)


def _named(model: str, version: str) -> dict[str, bytes]:
    """The parts of a template that take an `_open` symbol: the id, with `as_of`, and the symbol itself."""
    return {"id": b"%b-%b" + _fixed(f"-{model}-{version}")[1:], "symbol": b'%b"'}


def _fixed(value: object) -> bytes:
    return _json(value).replace(b"%", b"%%")


def _texts(column: NDArray[Any]) -> list[bytes]:
    """The JSON of each value."""
    return _json_lines(column.tolist()).split(b"\n")[:-1]


def _open(strings: list[str]) -> list[bytes]:
    """The JSON of each without its last quote, for more to follow; within JSON a line's end is escaped."""
    return _json_lines(strings).split(b'"\n')[:-1]

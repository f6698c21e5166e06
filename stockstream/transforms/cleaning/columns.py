"""Reads many records of `ticks.raw` at once, as columns of their ticks.

Only plain ticks are read this way: every value within its limits, the size given, and nothing that `Cleaner` judges by the ticks before it. `read`
stops at the first record that is not so. That is not a verdict: `Cleaner` judges that record by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter
from types import MappingProxyType
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from stockstream.records import ACCRUED, AFTER_FEED_GAP, CARRIED_TEXTS, QUOTES, TEXTS, TICKS_SCHEMA
from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.transforms.cleaning.limits import LENGTHS, MAX_ARRAY, NO_DATA, PLACEHOLDERS, RANGES, composed
from stockstream.transforms.frames import coded, nulls, plain, spread
from stockstream.transforms.shares import all_rounded
from stockstream.transforms.timing import ACCRUED_MS

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Record(Protocol):
    """A Kafka record: `timestamp` is Kafka's, in epoch milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


def _within(name: str) -> Meta:
    """The limits of a field as constraints of its decoder."""
    if name in LENGTHS:
        least, most = LENGTHS[name]
        return Meta(min_length=least, max_length=most)
    low, high = RANGES[name]
    return Meta(ge=low, le=high)


class _Trade(msgspec.Struct, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A plain tick with a symbol, a price, a size, and no more."""

    symbol: Annotated[str, _within("symbol")]
    event_time: Annotated[int, _within("event_time")]
    price: Annotated[float, _within("price")] | None
    size: Annotated[float, _within("size")]
    source: Annotated[str, _within("source")] = "default"
    seq: Annotated[int, _within("seq")] | None = None
    received_at: int | None = None


_Plain: Any = msgspec.defstruct(
    "_Plain",
    [
        *((name, float | None, None) for name in QUOTES),               # their placeholders are out of range
        *((name, Annotated[str, _within(name)] | None, None) for name in TEXTS),
        ("day_volume", None, None),
        ("epoch", Annotated[int, _within("epoch")] | None, None),
        ("gap_from", Annotated[int, _within("gap_from")] | None, None),
        ("interval_s", Annotated[float, _within("interval_s")] | None, None),
        ("snapshot", bool, False),
    ],
    bases=(_Trade,), kw_only=True, gc=False, forbid_unknown_fields=False,
)  # fmt: skip
"""Any plain tick. One with a `day_volume` is not plain: its size follows from it."""

_decode_trade = msgspec.json.Decoder(_Trade | list[_Trade]).decode
_decode_plain = msgspec.json.Decoder(_Plain | list[_Plain]).decode

_NO_SIZES = sorted(value for value in NO_DATA if 0 <= value <= RANGES["size"][1])
"""Those of NO_DATA that a plain size may be."""
EXTRAS = (*QUOTES, *CARRIED_TEXTS, "gap_from")
"""Fields that most ticks do not have."""


class OddRecord(Exception):
    """A record that must be judged by itself; `number` is its place among the records."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def require_none(odd: NDArray[np.bool_], record: Ints) -> None:
    """Raises `OddRecord` if any tick is odd, for the first record that has one. `record` holds the number of each tick's record."""
    if odd.any():
        raise OddRecord(int(record[odd].min()))


@dataclass(frozen=True, slots=True)
class Columns:
    """Plain ticks in the order of the log: arrays of one value a tick, unless noted otherwise."""

    offset: Ints
    """Of each record."""
    timestamp: Ints
    """Kafka's, in epoch milliseconds, of each record."""
    record: Ints
    """Number of the tick's record."""
    symbols: list[str]
    """The different symbols."""
    symbol: Ints
    """Index into `symbols`."""
    sources: list[str]
    """The different sources."""
    source: Ints
    """Index into `sources`."""
    event_time: Ints
    size: Floats
    seq: Ints | None
    """None if no tick has one."""
    currencies: list[str]
    """The different currencies."""
    currency: Ints | None
    """Index into `currencies`, -1 where the tick names none; None if no tick names one."""
    epoch: Ints | None
    """-1 where a tick has none; None if no tick has one."""
    ticks: list[Any]
    """As they were decoded."""
    columns: dict[str, pa.Array]
    """By name, those of TICKS_SCHEMA in which some tick may have a value, without offset and index."""

    @property
    def alone(self) -> bool:
        """Whether each record has one tick."""
        return len(self.record) == len(self.offset)

    def batch(self, more: Mapping[str, pa.Array] = MappingProxyType({})) -> pa.RecordBatch:
        """The ticks as TICKS_SCHEMA, with some columns more."""
        count = len(self.record)
        index = np.zeros(count, np.int32)
        if not self.alone:
            place = np.arange(count)
            index[:] = place - np.maximum.accumulate(np.where(np.diff(self.record, prepend=-1), place, 0))
        columns = {"flags": plain(np.zeros(count, np.int32)), **self.columns, **more, "offset": plain(self.offset[self.record]), "index": plain(index)}
        arrays = [columns[spec.name] if spec.name in columns else nulls(count, spec.type) for spec in TICKS_SCHEMA]
        return pa.RecordBatch.from_arrays(arrays, schema=TICKS_SCHEMA)


def read(records: Sequence[Record]) -> Columns:
    """The ticks of all these records.

    Raises `OddRecord` at a record that is not plain ticks, or if some of its ticks have a `seq` and others of these records have none. Records before it
    may be odd as well.
    """
    try:                                                                 # most ticks are trades, which take half the time
        items, extras = _decoded(records, _decode_trade), False
    except OddRecord:
        items, extras = _decoded(records, _decode_plain), True
    ticks, record = items, np.arange(len(items))
    if list in set(map(type, items)):
        counts = np.array([len(item) if type(item) is list else 1 for item in items])
        require_none((counts == 0) | (counts > MAX_ARRAY), record)
        ticks, record = list(chain.from_iterable(item if type(item) is list else [item] for item in items)), record.repeat(counts)
    seq = [tick.seq for tick in ticks]
    unnumbered = seq.count(None)
    if 0 < unnumbered < len(seq):
        require_none(np.array([(number is None) != (seq[0] is None) for number in seq]), record)
    columns = {name: _column(ticks, name) for name in ("symbol", "source", "event_time", "price", "size")}
    size = columns["size"].to_numpy()
    require_none(np.isin(size, _NO_SIZES), record)
    if columns["price"].null_count:
        require_none(columns["price"].is_null().to_numpy(zero_copy_only=False) & (size > 0), record)
    size = all_rounded(size)
    columns["size"] = plain(size)
    if extras:
        require_none(np.array([tick.snapshot for tick in ticks]), record)
        columns |= {name: _column(ticks, name) for name in CARRIED_TEXTS}
        columns |= {name: _quotes(ticks, name, record) for name in QUOTES}
        columns |= _about_the_feed(ticks, size)
    epochs = [-1 if tick.epoch is None else tick.epoch for tick in ticks] if extras else []
    symbols, symbol = coded(columns["symbol"])
    if (names := list(map(composed, symbols))) != symbols:
        columns["symbol"] = spread(names, symbol)
        symbols, symbol = coded(columns["symbol"])
    currencies, currency = _currencies(ticks) if extras else ([], None)
    return Columns(
        _ints([one.offset for one in records]), _ints([one.timestamp for one in records]), record,
        symbols, symbol, *coded(columns["source"]), columns["event_time"].to_numpy(), size, None if unnumbered else _ints(seq),
        currencies, currency, _ints(epochs) if max(epochs, default=-1) >= 0 else None, ticks, columns,
    )  # fmt: skip


def _decoded(records: Sequence[Record], decode: Callable[[Any], Any]) -> list[Any]:
    items: list[Any] = []
    try:
        for record in records:
            items.append(decode(record.value))
    except (*UNREADABLE, TypeError) as error:
        raise OddRecord(len(items)) from error
    return items


def _column(ticks: list[Any], name: str) -> pa.Array:
    return pa.array(list(map(attrgetter(name), ticks)), TICKS_SCHEMA.field(name).type)


def _quotes(ticks: list[Any], name: str, record: Ints) -> pa.Array:
    """A column of quotes, null where one is a placeholder. Raises `OddRecord` where one is out of range."""
    column = _column(ticks, name)
    if column.null_count == len(column):
        return column
    values = column.to_numpy(zero_copy_only=False).copy()
    missing = np.isin(values, list(PLACEHOLDERS[name]))
    values[missing] = np.nan
    low, high = RANGES[name]
    require_none((values < low) | (values > high), record)
    return pa.array(values, from_pandas=True) if missing.any() else column


def _about_the_feed(ticks: list[Any], size: Floats) -> dict[str, pa.Array]:
    """The columns `gap_from` and `flags`; empty where no tick has a gap or an interval."""
    gaps, intervals = list(map(attrgetter("gap_from"), ticks)), list(map(attrgetter("interval_s"), ticks))
    if gaps.count(None) == intervals.count(None) == len(ticks):
        return {}
    gap_from = pa.array(gaps, pa.int64())
    accrued = (np.array([interval or 0.0 for interval in intervals]) * 1000 > ACCRUED_MS) & (size > 0)
    flags = accrued * ACCRUED + gap_from.is_valid().to_numpy(zero_copy_only=False) * AFTER_FEED_GAP
    return {"gap_from": gap_from, "flags": plain(flags.astype(np.int32))}


def _currencies(ticks: list[Any]) -> tuple[list[str], Ints | None]:
    """The different currencies, and which of them each tick names, -1 for none; None where none names any."""
    named = pa.array([tick.currency or None for tick in ticks], pa.string())
    if named.null_count == len(named):
        return [], None
    encoded = named.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.fill_null(-1).to_numpy().astype(np.int64)


def _ints(values: list[Any]) -> Ints:
    return np.fromiter(values, np.int64, len(values))

"""The columns of many records at once, where all their ticks are plain: within their ranges, the size given, nothing that `Cleaner` must judge by itself.

Such records are decoded in one go and judged as arrays. What is not plain, or not JSON, is no fault yet: `read` ends before it, and it is looked at by
itself.

Records are joined by line feeds, and two broken ones never make a good tick: each must begin and end with a bracket or brace, and none may hold a line feed.
Then no value reaches over a line's end, since after a nested value JSON wants a comma or the end of what it is in, and in a string a line feed is an error.
So each line holds whole values, at least one, and where there are as many values as records, each record is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Protocol

import msgspec
import numpy as np
import pyarrow as pa
from msgspec import Meta
from numpy.typing import NDArray

from stockstream import accelerated
from stockstream.records import CARRIED_TEXTS, QUOTES, TEXTS, TICKS_SCHEMA
from stockstream.transforms.cleaning.limits import LENGTHS, RANGES
from stockstream.transforms.frames import coded, nullable, nulls, plain, spread

LINE_FEED = 10
_OPENING, _CLOSING = (np.isin(np.arange(256), np.frombuffer(marks, np.uint8)) for marks in (b"[{", b"]}"))
"""Which bytes begin and end a record."""

Ints = NDArray[np.int64]


class Record(Protocol):
    """A Kafka record: `timestamp` is Kafka's, in epoch milliseconds."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


def _within(name: str) -> Meta:
    """The limits of a field, as a decoder holds them."""
    if name in LENGTHS:
        least, most = LENGTHS[name]
        return Meta(min_length=least, max_length=most)
    low, high = RANGES[name]
    return Meta(ge=low, le=high)


class _Trade(msgspec.Struct, kw_only=True, gc=False, forbid_unknown_fields=True):
    """A plain tick of a symbol, price and size, and no more."""

    symbol: Annotated[str, _within("symbol")]
    event_time: Annotated[int, _within("event_time")]
    price: Annotated[float, _within("price")] | None
    size: Annotated[int, _within("size")]
    source: Annotated[str, _within("source")] = "default"
    seq: Annotated[int, _within("seq")] | None = None
    received_at: int | None = None


_Plain: Any = msgspec.defstruct(
    "_Plain",
    [
        *((name, Annotated[float, _within(name)] | None, None) for name in QUOTES),
        *((name, Annotated[str, _within(name)] | None, None) for name in TEXTS),
        ("day_volume", None, None), ("snapshot", bool, False),
    ],
    bases=(_Trade,), kw_only=True, gc=False, forbid_unknown_fields=False,
)  # fmt: skip
"""Any plain tick; a `day_volume` is weighed by itself, and so is a snapshot."""


MANY = 50
"""Records from which on it is cheaper to take them at once (measured: 0.1 ms, and half the time for each)."""
EXTRAS = (*QUOTES, *CARRIED_TEXTS)
"""Columns that a trade does not have."""

_decode_trades = msgspec.json.Decoder(_Trade | list[_Trade]).decode_lines
_decode_plain = msgspec.json.Decoder(_Plain | list[_Plain]).decode_lines


@dataclass(frozen=True, slots=True)
class Columns:
    """Plain ticks in the order of the log: arrays of one value a tick, unless noted otherwise."""

    offset: Ints
    """Of each record."""
    timestamp: Ints
    """Of each record."""
    symbols: list[str]
    """The different ones."""
    symbol: Ints
    """Which of `symbols`."""
    sources: list[str]
    """The different ones."""
    source: Ints | None
    """Which of `sources`; None where there is only one."""
    record: Ints
    """Number of the tick's record."""
    event_time: Ints
    size: Ints
    seq: Ints | None
    """None where no tick has one."""
    columns: dict[str, pa.Array]
    """Columns of TICKS_SCHEMA as they are sent; what is missing is null."""
    decoded: bool = False
    """Whether the compiled reader gave them up, and they were decoded as any JSON."""

    @property
    def alone(self) -> bool:
        """Whether each record is one tick."""
        return len(self.record) == len(self.offset)

    @property
    def only_trades(self) -> bool:
        return not self.columns.keys() & set(EXTRAS)

    def batch(self) -> pa.RecordBatch:
        """The ticks as TICKS_SCHEMA."""
        count, offset = len(self.record), self.offset
        index = np.zeros(count, np.int32)
        if not self.alone:
            offset, place = offset[self.record], np.arange(count)
            index[:] = place - np.maximum.accumulate(np.where(np.diff(self.record, prepend=-1), place, 0))
        columns = self.columns | {
            "event_time": plain(self.event_time), "size": plain(self.size), "offset": plain(offset), "index": plain(index),
        }  # fmt: skip
        arrays = [columns[spec.name] if spec.name in columns else nulls(count, spec.type) for spec in TICKS_SCHEMA]
        return pa.RecordBatch.from_arrays(arrays, schema=TICKS_SCHEMA)


def read(records: Sequence[Record], *, trades_first: bool, any_json: bool = True) -> Columns | None:
    """The ticks of records, from the first record on as far as all are plain; None where not even the first is.

    What the compiled reader gives up, which knows only the fields of a tick and texts without escapes, may be decoded as any JSON: then all of the records
    are read, or none. It is, with `any_json`, where the compiled one reads fewer than `MANY`.
    With `trades_first` it is tried as trades and nothing more before it is tried as any plain ticks, which take longer; without it the other way round.
    """
    if accelerated.ticks is None:
        return _decoded(records, trades_first=trades_first)
    found = accelerated.ticks.read(records)
    few = (0 if found is None else len(found[0])) < min(MANY, len(records))
    decoded = _decoded(records, trades_first=trades_first) if any_json and few else None
    return decoded or (None if found is None else _of_compiled(*found))


def _of_compiled(
    offset: Ints, timestamp: Ints, symbols: list[str], record: Ints, symbol: Ints, event_time: Ints, size: Ints, price: NDArray[np.float64], seq: Ints | None,
    sources: list[str], source: Ints | None, more: dict[str, Any],
) -> Columns:  # fmt: skip
    """What `_ticks.read` gives, as columns."""
    columns = {
        "symbol": spread(symbols, symbol),
        "source": spread(sources, np.zeros(len(record), np.int64) if source is None else source),
    } | nullable({"price": price} | {name: values for name, values in more.items() if not isinstance(values, tuple)})
    for name, values in more.items():
        if isinstance(values, tuple):
            texts, which = values
            columns[name] = pa.array(texts, pa.string()).take(pa.array(which, mask=which < 0))
    return Columns(offset, timestamp, symbols, symbol, sources, source, record, event_time, size, seq, columns)


def _decoded(records: Sequence[Record], *, trades_first: bool) -> Columns | None:
    try:
        lines = b"\n".join([*[record.value for record in records], b""])  # type: ignore[list-item]
    except TypeError:
        return None                                                      # a record without a value
    text = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(text == LINE_FEED)
    if len(ends) != len(records) or not _OPENING[text[np.append(0, ends[:-1] + 1)]].all() or not _CLOSING[text[ends - 1]].all():
        return None
    for only_trades in (trades_first, not trades_first):
        try:
            items: list[Any] = (_decode_trades if only_trades else _decode_plain)(lines)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            continue
        return _flat(records, items, only_trades=only_trades) if len(items) == len(records) else None
    return None


def _flat(records: Sequence[Record], items: list[Any], *, only_trades: bool) -> Columns | None:
    """The columns of ticks and frames of them, one item a record; None where a frame is empty."""
    ticks, record = items, np.arange(len(items))
    if list in set(map(type, items)):
        frames = [item if type(item) is list else [item] for item in items]
        counts = [len(frame) for frame in frames]
        if 0 in counts:
            return None
        ticks, record = list(chain.from_iterable(frames)), np.repeat(record, counts)
    return _columns(records, ticks, record, only_trades=only_trades)


def _columns(records: Sequence[Record], ticks: list[Any], record: Ints, *, only_trades: bool) -> Columns | None:
    count = len(ticks)
    size, price = _ints([tick.size for tick in ticks]), pa.array([tick.price for tick in ticks], pa.float64())
    if price.null_count and size[price.is_null().to_numpy(zero_copy_only=False)].any():
        return None
    numbers = [tick.seq for tick in ticks]
    unnumbered = numbers.count(None)
    if 0 < unnumbered < count:
        return None
    columns = {"symbol": pa.array([tick.symbol for tick in ticks], pa.string()), "price": price}
    symbols, symbol = coded(columns["symbol"])
    names, source = [tick.source for tick in ticks], None
    if names.count(names[0]) == count:
        columns["source"], names = pa.repeat(pa.scalar(names[0], pa.string()), count), names[:1]
    else:
        columns["source"] = pa.array(names, pa.string())
        names, source = coded(columns["source"])
    if not only_trades:
        if True in [tick.snapshot for tick in ticks]:
            return None
        extras = {name: pa.array([getattr(tick, name) for tick in ticks], TICKS_SCHEMA.field(name).type) for name in EXTRAS}
        columns |= {name: column for name, column in extras.items() if column.null_count < count}
    return Columns(
        _ints([record.offset for record in records]), _ints([record.timestamp for record in records]),
        symbols, symbol, names, source, record, _ints([tick.event_time for tick in ticks]), size,
        None if unnumbered else _ints(numbers), columns, decoded=True,
    )  # fmt: skip


def _ints(values: list[Any]) -> Ints:
    return np.fromiter(values, np.int64, len(values))

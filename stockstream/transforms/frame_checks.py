"""Checks of a frame before anybody reads it. Frames lie in topics that others may write to, and Arrow trusts what it reads: an offset buffer that lies
about its lengths ends the process with a segmentation fault at the first access (Arrow's security notes ask for `validate(full=True)`).

The order matters. First the envelope, here and by hand: one schema message, one record batch, no compression (a compressed buffer states how much memory
it needs), no dictionaries, buffers aligned. Then Arrow decodes the columns that we know, and no others, and validates them. Then ranges.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stockstream.errors import FrameError
from stockstream.records import CARRIED_TEXTS, SHARES, TICKS_SCHEMA, WINDOWS_SCHEMA, Closing
from stockstream.transforms.cleaning.limits import LENGTHS, MAX_OFFSET, MAX_SIZE, MAX_SOURCE, MAX_TIME, RANGES

MAX_PARTS = 512
"""A closing's rows at the most: 20,000 symbols in each of 60 seconds (the longest lateness) are some 400 messages."""
MAX_LOG = 64
_LOG = re.compile("[0-9a-f]{11}-[0-9a-f]{8}")
LOG_AHEAD_MS = 24 * 3_600_000
"""The clock that issues a log's id may differ from the one that stamps messages."""
MAX_SECOND = MAX_TIME // 1000
MIN_SECOND = -100
"""A closing may begin before 1970: a tick of its first second closes up to `LATENESS_MS`, at most 60 s, before that."""
MAX_MAGNITUDE = 1e18
"""Of numbers that are derived: squares and sums of millions of them stay finite."""

_OPTIONAL = frozenset(("flags", "gap_s", "gap_from", *CARRIED_TEXTS))
"""Columns that may be null, besides floats."""
_ZERO = ("flags", "accrued_5m")
"""Columns that are 0 in frames that do not have them."""

_CONTINUATION = 0xFFFFFFFF
_SCHEMA, _RECORD_BATCH = 1, 3
_read_u16, _read_u32, _read_i32, _read_message_prefix, _read_i64 = (struct.Struct(form).unpack_from for form in ("<H", "<I", "<i", "<Ii", "<q"))

_TEXT_BYTES = {name: 4 * LENGTHS[name][1] for name in ("symbol", "source")}
"""UTF-8 has up to four bytes a character."""
_TICK_RANGES: Mapping[str, tuple[float, float]] = {name: RANGES[name] for name in TICKS_SCHEMA.names if name in RANGES} | {
    "index": (0, (1 << 31) - 1), "event_time": (1, RANGES["event_time"][1]), "size": (-MAX_SIZE, MAX_SIZE),
    "flags": (0, (1 << 31) - 1), "gap_s": (1, MAX_SECOND),
}  # fmt: skip
"""Earlier releases accepted times from 1970 on. The size of a correction is negative."""
_WINDOW_RANGES: Mapping[str, tuple[float, float]] = {
    "second": (-1, MAX_SECOND), "partition": (0, (1 << 31) - 1), "ticks": (0, 1 << 32), "quotes": (0, 1 << 32),
    "gap_s": (1, MAX_SECOND),
}  # fmt: skip
"""`seconds_5m` and sums are what they are: nobody indexes by them."""


def _table_fields(data: memoryview, at: int) -> list[int]:
    """Places of a flatbuffer table's fields, 0 where a field is not there. Raises `struct.error` or `FrameError` outside of the data."""
    vtable = at - _read_i32(data, at)[0]
    if vtable < 0:
        raise FrameError("a table outside of its message")
    size = _read_u16(data, vtable)[0]
    return [at + place if (place := _read_u16(data, vtable + 4 + 2 * number)[0]) else 0 for number in range((size - 4) // 2)]


def _field(fields: Sequence[int], number: int) -> int:
    return fields[number] if number < len(fields) else 0


def _message(data: memoryview, at: int, kind: int) -> tuple[memoryview, list[int], int, int]:
    """The message at a place of an IPC stream: its metadata, the fields of its header, where its body begins and how many bytes it has."""
    continuation, size = _read_message_prefix(data, at)
    begin = at + 8
    if continuation != _CONTINUATION or size <= 0 or size % 8 or begin + size > len(data):
        raise FrameError("no Arrow message where one must be")
    metadata = data[begin : begin + size]
    message = _table_fields(metadata, _read_u32(metadata, 0)[0])
    found, header, length = _field(message, 1), _field(message, 2), _field(message, 3)
    if not found or metadata[found] != kind or not header:
        raise FrameError("not a schema and one record batch")
    body = _read_i64(metadata, length)[0] if length else 0
    if not 0 <= body <= len(data) - begin - size:
        raise FrameError("a body that is longer than its message")
    return metadata, _table_fields(metadata, header + _read_u32(metadata, header)[0]), begin + size, body


def _envelope(data: bytes) -> None:
    """Raises `FrameError` unless the bytes are a schema and one record batch whose buffers lie within its body, aligned and not compressed."""
    whole = memoryview(data)
    *_, at, size = _message(whole, 0, _SCHEMA)
    metadata, batch, begin, body = _message(whole, at + size, _RECORD_BATCH)
    if size or data[begin + body :] not in (b"", b"\xff\xff\xff\xff\0\0\0\0"):
        raise FrameError("more than a schema and one record batch")
    if _field(batch, 3):
        raise FrameError("its body is compressed")
    place = _field(batch, 2)
    if place:
        vector = place + _read_u32(metadata, place)[0]
        count = _read_u32(metadata, vector)[0]
        buffers = np.frombuffer(metadata, "<i8", 2 * count, vector + 4).reshape(-1, 2)
        if count and ((buffers < 0).any() or (buffers[:, 0] % 8).any() or (buffers > body).any() or (buffers.sum(axis=1) > body).any()):
            raise FrameError("a buffer outside of its body, or not aligned")


class Layout:
    """What there is to check in each column of one of our schemas."""

    def __init__(self, schema: pa.Schema, ranges: Mapping[str, tuple[float, float]]) -> None:
        self.schema = schema
        self.optional = {field.name for field in schema if field.name in _OPTIONAL or (pa.types.is_floating(field.type) and field.name not in SHARES)}
        self.columns = [(field.name, field.name not in self.optional, self._kind(field, ranges), ranges.get(field.name, (0, 0))) for field in schema]

    @staticmethod
    def _kind(field: pa.Field, ranges: Mapping[str, tuple[float, float]]) -> str:
        if field.name == "offset":
            return "offset"
        if field.name in ranges:
            return "range"
        if field.name in _TEXT_BYTES:
            return "text"
        return "finite" if pa.types.is_floating(field.type) else ""


_LAYOUTS = {id(TICKS_SCHEMA): Layout(TICKS_SCHEMA, _TICK_RANGES), id(WINDOWS_SCHEMA): Layout(WINDOWS_SCHEMA, _WINDOW_RANGES)}


def layout_of(schema: pa.Schema) -> Layout:
    """Of TICKS_SCHEMA or WINDOWS_SCHEMA, themselves: there are no others."""
    return _LAYOUTS[id(schema)]


def read_batch(data: bytes, layout: Layout, newest: int) -> tuple[Mapping[bytes, bytes], pa.RecordBatch]:
    """The schema's metadata, and the columns of the layout in its order: columns that are not there are null, others are left out.

    Args:
        newest: format version above which nothing is read.

    Raises `FrameError`, and what Arrow, numpy and struct raise on bytes that are no such frame.
    """
    _envelope(data)
    reader = pa.ipc.open_stream(data)
    found = reader.schema
    metadata: Mapping[bytes, bytes] = found.metadata or {}
    version = number_of(metadata, b"version", 1, MAX_OFFSET, b"1")
    if version > newest:
        raise FrameError(f"written by a newer stockstream (format {version}, this one reads up to {newest}): upgrade this worker")
    if found.equals(layout.schema):
        batch = reader.read_next_batch()
        batch.validate(full=True)
        return metadata, batch
    return metadata, _known_columns(data, found, layout)


def _known_columns(data: bytes, found: pa.Schema, layout: Layout) -> pa.RecordBatch:
    """The columns of a frame that has others than ours: those of a newer or an older stockstream."""
    schema = layout.schema
    if any(pa.types.is_dictionary(field.type) for field in found):
        raise FrameError("a column is a dictionary")
    places: dict[str, int] = {}
    for place, field in enumerate(found):
        if field.name not in schema.names:
            continue
        if field.name in places:
            raise FrameError(f"column {field.name!r} is there twice")
        if field.type != schema.field(field.name).type and not (field.name in SHARES and field.type == pa.int64()):
            raise FrameError(f"column {field.name!r} is {field.type}")
        places[field.name] = place
    missing = [name for name in schema.names if name not in places and name not in layout.optional and name not in _ZERO]
    if missing:
        raise FrameError(f"no column {missing[0]!r}")
    reader = pa.ipc.open_stream(data, options=pa.ipc.IpcReadOptions(included_fields=sorted(places.values())))
    batch = reader.read_next_batch()
    batch.validate(full=True)
    return pa.RecordBatch.from_arrays([_column(batch, field) for field in schema], schema=schema)


def _column(batch: pa.RecordBatch, field: pa.Field) -> pa.Array:
    """A column of ours in a frame that may not have it, or has it as whole numbers."""
    place = batch.schema.get_field_index(field.name)
    if place >= 0:
        return batch.column(place).cast(field.type, safe=False)
    return pa.repeat(pa.scalar(0, field.type), batch.num_rows) if field.name in _ZERO else pa.nulls(batch.num_rows, field.type)


def check(batch: pa.RecordBatch, layout: Layout, start: int, through: int) -> None:
    """Raises `FrameError` where a null is not allowed, or values are beyond what our machines can count with. `batch` is valid for Arrow and has
    the layout's columns."""
    count = batch.num_rows
    if not count:
        return
    for (name, required, kind, (low, high)), column in zip(layout.columns, batch.columns, strict=True):
        nulls = column.null_count
        if nulls and required:
            raise FrameError(f"column {name!r} has nulls")
        if not kind or nulls == count:
            continue
        if kind == "finite":
            # one pass over all: a sum of squares that is not finite, or is too large, has such a number in it
            values: NDArray[Any] = (column.fill_null(0.0) if nulls else column).to_numpy()
            with np.errstate(over="ignore", invalid="ignore"):
                squares = values.dot(values)
            if not squares <= MAX_MAGNITUDE**2:
                raise FrameError(f"column {name!r} has numbers that are not finite or too large")
        elif kind == "range":
            least, most = _bounds(column)
            if not low <= least <= most <= high:
                raise FrameError(f"column {name!r} is from {least} to {most}")
        elif kind == "offset":
            offsets = column.to_numpy()
            if offsets[0] < start or offsets[-1] > through or (offsets[1:] < offsets[:-1]).any():
                raise FrameError("offsets do not ascend from `from` to `through`")
        else:
            ends = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + count + 1]
            lengths = ends[1:] - ends[:-1]
            if lengths.min() < 1 or lengths.max() > _TEXT_BYTES[name]:
                raise FrameError(f"column {name!r} has texts of {lengths.min()} to {lengths.max()} bytes")


def _bounds(column: pa.Array) -> tuple[Any, Any]:
    """Least and most of what is not null."""
    if column.null_count:
        found = pc.min_max(column)
        return found["min"].as_py(), found["max"].as_py()
    values = column.to_numpy()
    return values.min(), values.max()


def check_closings(closings: Sequence[Closing], start: int, through: int) -> None:
    """Raises `FrameError` unless the closings are in the log's order, within the frame, and close seconds forwards."""
    offset = start
    for closing in closings:
        if not offset <= closing.offset <= through:
            raise FrameError("closings do not ascend from `from` to `through`")
        if not 0 < len(closing.source) <= MAX_SOURCE:
            raise FrameError(f"a closing's source has {len(closing.source)} characters")
        if not MIN_SECOND <= closing.after <= closing.second <= MAX_SECOND:
            raise FrameError(f"a closing from {closing.after} to {closing.second}")
        offset = closing.offset


def check_log(log: str, timestamp: int) -> None:
    """Raises `FrameError` unless the log's id has the form of ours and was issued at most LOG_AHEAD_MS after the message's Kafka time (epoch ms; 0 or less:
    not known)."""
    if not _LOG.fullmatch(log):
        raise FrameError(f"not a frame: {log!r} is no log's id")
    ahead = int(log[:11], 16) - timestamp
    if timestamp > 0 and ahead > LOG_AHEAD_MS:
        raise FrameError(f"not a frame: its log would begin {ahead // 1000} s after its Kafka time")


def number_of(metadata: Mapping[bytes, bytes], name: bytes, low: int, high: int, default: bytes | None = None) -> int:
    """A whole number in the metadata. Raises `FrameError` out of its range, `KeyError` where it is missing without a default."""
    value = int(metadata[name] if default is None else metadata.get(name, default))
    if not low <= value <= high:
        raise FrameError(f"{name.decode()} is not from {low} to {high}")
    return value

"""Frames: Arrow IPC streams whose schema metadata says which raw offsets they cover.

Metadata (all UTF-8): `log` the raw log's id; `from` and `through` the raw offsets covered, both included; `closings` a JSON array of
`[offset, source, after, second]`; `part` and `parts` where one offset's rows were too many for one message (0 of 1 otherwise);
`version` of the format (1 where it is missing); `clock` the newest Kafka time (epoch ms) of an accepted record up to `through` (0: not known).
Frames of one log tile it: `from` is the `through` of the frame before plus one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream import compiled
from stockstream.errors import FrameError
from stockstream.records import Closing

MAX_FRAME_BYTES = 900_000
"""Kafka's default message limit is 1 MiB; headers and the rest of a record batch need room."""

FRAME_VERSION = 2
"""Raised when an older reader would misunderstand a frame; a new column or metadata field needs no new version."""

END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"
"""Arrow's IPC format: a message of no length."""

_encode_closings = msgspec.json.Encoder().encode
_decode_closings = msgspec.json.Decoder(list[Closing]).decode


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of `ticks.clean` or `windows`: rows in log order and the closings among them."""

    log: str
    start: int
    through: int
    closings: tuple[Closing, ...]
    rows: pa.RecordBatch
    part: int = 0
    parts: int = 1
    clock: int = 0
    """Newest Kafka time (epoch ms) of an accepted record up to `through`: what is forgotten, and when, follows from it. 0 where it is not known: in
    frames of version 1, and in all but the last of the messages that one frame was cut into."""


def encode(frame: Frame) -> bytes:
    """The frame as an Arrow IPC stream."""
    metadata = {
        b"log": frame.log.encode(), b"from": b"%d" % frame.start, b"through": b"%d" % frame.through,
        b"closings": _encode_closings(frame.closings), b"part": b"%d" % frame.part, b"parts": b"%d" % frame.parts,
        b"version": b"%d" % FRAME_VERSION, b"clock": b"%d" % frame.clock,
    }  # fmt: skip
    return b"".join((frame.rows.schema.with_metadata(metadata).serialize(), frame.rows.serialize(), END_OF_STREAM))


def decode(data: bytes) -> Frame:
    """The frame in a message's value. Raises `FrameError`."""
    try:
        reader = pa.ipc.open_stream(data)
        metadata = reader.schema.metadata
        rows = reader.read_next_batch()
        return Frame(
            metadata[b"log"].decode(), int(metadata[b"from"]), int(metadata[b"through"]), tuple(_decode_closings(metadata[b"closings"])),
            rows, int(metadata[b"part"]), int(metadata[b"parts"]), int(metadata.get(b"clock", 0)),
        )  # fmt: skip
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, StopIteration, msgspec.MsgspecError) as error:
        raise FrameError(f"not a frame: {error}") from error


def encode_within(frame: Frame, limit: int = MAX_FRAME_BYTES) -> Iterator[bytes]:
    """The frame in as many messages as the limit asks for: cut between offsets where that helps, else one offset's rows in parts.

    Rows must have an ascending `offset` column.
    """
    indivisible = frame.rows.num_rows <= 1
    about = 8 * frame.rows.num_rows * frame.rows.num_columns             # bytes: no time goes into one that is too large
    if indivisible or about <= limit:
        data = encode(frame)
        if indivisible or len(data) <= limit:
            yield data
            return
    offsets = frame.rows.column("offset").to_numpy()
    share = len(offsets) // max(2, -(-about // limit))                   # of as many messages as there must be
    split = int(offsets.searchsorted(offsets[share])) or int(offsets.searchsorted(offsets[0], "right"))
    if split < len(offsets):
        cut = int(offsets[split])
        before = replace(frame, through=cut - 1, closings=tuple(c for c in frame.closings if c.offset < cut), rows=frame.rows.slice(0, split), clock=0)
        after = replace(frame, start=cut, closings=tuple(c for c in frame.closings if c.offset >= cut), rows=frame.rows.slice(split))
        yield from encode_within(before, limit)
        yield from encode_within(after, limit)
        return
    parts = 2 + frame.rows.nbytes // limit
    count = -(-frame.rows.num_rows // parts)
    parts = -(-frame.rows.num_rows // count)
    for part in range(parts):
        yield encode(replace(frame, rows=frame.rows.slice(part * count, count), part=part, parts=parts))


class Assembler:
    """Puts the parts of one offset's rows together again; whole frames pass as they are."""

    def __init__(self) -> None:
        self._parts: list[Frame] = []

    def feed(self, frame: Frame) -> Frame | None:
        """The whole frame once its last part is in, else None. A part out of order starts the wait anew."""
        if frame.parts == 1:
            self._parts.clear()
            return frame
        first = self._parts[0] if self._parts else None
        expected = len(self._parts)
        if frame.part != expected or (first and (first.log, first.start, first.through, first.parts) != (frame.log, frame.start, frame.through, frame.parts)):
            self._parts.clear()
            if frame.part:
                return None
        self._parts.append(frame)
        if len(self._parts) < frame.parts:
            return None
        rows = pa.Table.from_batches([part.rows for part in self._parts]).combine_chunks().to_batches()[0]
        self._parts.clear()
        return replace(frame, rows=rows, part=0, parts=1)


def numbers(rows: pa.RecordBatch, name: str) -> NDArray[Any]:
    """A column as a numpy array; null is NaN."""
    return np.asarray(rows.column(name).to_numpy(zero_copy_only=False))


def bounds_of_runs(*columns: NDArray[Any]) -> list[int]:
    """Where runs of rows that are alike in all columns begin, and the end; empty without rows."""
    if not len(columns[0]):
        return []
    changes = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return [0, *(np.flatnonzero(changes) + 1).tolist(), len(columns[0])]


def coded(column: pa.StringArray) -> tuple[list[str], NDArray[np.int64]]:
    """The different texts of a column without nulls, in the order of their first appearance, and which of them each row has."""
    if compiled.ticks is None:
        encoded = column.dictionary_encode()
        return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)
    if not len(column):
        return [], np.zeros(0, np.int64)
    _, offsets, data = column.buffers()
    begin = column.offset
    found: tuple[list[str], NDArray[np.int64]] = compiled.ticks.coded(
        np.frombuffer(offsets, np.int32)[begin : begin + len(column) + 1], np.frombuffer(data or b"", np.uint8)
    )
    return found


def spread(texts: list[str], which: NDArray[np.int64]) -> pa.StringArray:
    """A column that has in each row the text of this number."""
    if compiled.ticks is None:
        return pa.array(texts, pa.string()).take(pa.array(which))
    return pa.StringArray.from_buffers(len(which), *map(pa.py_buffer, compiled.ticks.spread(texts, which)))


def plain(array: NDArray[Any]) -> pa.Array:
    """Numbers or truths, none of them null, where they lie. `pa.array` would do for all of it, but loads numpy's masked arrays to look for those."""
    data = np.packbits(array, bitorder="little") if array.dtype.kind == "b" else np.ascontiguousarray(array)
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(data)], 0)


@functools.lru_cache(maxsize=1)
def _zeros(size: int) -> pa.Buffer:
    return pa.py_buffer(bytes(size))


def nulls(count: int, kind: pa.DataType) -> pa.Array:
    """Nothing in each row, of numbers or texts: `pa.nulls` without new memory for each column."""
    zeros = _zeros(1 << (8 * count + 8).bit_length())
    valid, texts = zeros.slice(0, -(-count // 8)), pa.types.is_string(kind)
    parts = [zeros.slice(0, 4 * (count + 1)), zeros.slice(0, 0)] if texts else [zeros.slice(0, kind.bit_width // 8 * count)]
    return pa.Array.from_buffers(kind, count, [valid, *parts], count)


def nullable(columns: Mapping[str, NDArray[np.float64]]) -> dict[str, pa.Array]:
    """As Arrow arrays of one length, NaN as null."""
    arrays, count = list(columns.values()), len(next(iter(columns.values())))
    if compiled.ring is None:
        known = ~np.isnan(np.array(arrays))
        bits, found = np.packbits(known, axis=1, bitorder="little"), known.sum(axis=1).tolist()
    else:
        bits = np.zeros((len(arrays), -(-count // 8)), np.uint8)
        found = [compiled.ring.known(array, row) for array, row in zip(arrays, bits, strict=True)]
    return {
        name: pa.Array.from_buffers(pa.float64(), count, [pa.py_buffer(row) if some < count else None, pa.py_buffer(array)], count - some)
        if some else nulls(count, pa.float64())
        for (name, array), row, some in zip(columns.items(), bits, found, strict=True)
    }  # fmt: skip


def empty(schema: pa.Schema) -> pa.RecordBatch:
    """A batch of no rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)

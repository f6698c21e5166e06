"""Frames: Arrow IPC streams whose schema metadata has the range of raw offsets that they account for.

Metadata (all UTF-8): `log` the raw log's id; `from` and `through` the first and last raw offset that it accounts for; `closings` a JSON array of
`[offset, source, after, second]`; `part` and `parts` where one offset's rows or closings were too many for one message (0 of 1 otherwise): the closings
are those of all parts together, each counted once, for it may be in several;
`version` of the format (1 where it is missing); `clock` the newest Kafka time (epoch ms) of an accepted record up to `through` (0: not known).
Frames of one log follow each other without gap or overlap: `from` is the `through` of the frame before plus one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.errors import FrameError
from stockstream.records import Closing
from stockstream.transforms.cleaning.limits import MAX_OFFSET, MAX_TIME
from stockstream.transforms.frame_checks import MAX_LOG, MAX_PARTS, check, check_closings, check_log, layout_of, number_of, read_batch
from stockstream.wording import one_line

MAX_FRAME_BYTES = 900_000
"""Kafka's default message limit is 1 MiB; headers and the rest of a record batch need room."""

FRAME_VERSION = 3
"""Raised when an older reader would misunderstand a frame; a new column or metadata field needs no new version. Up to 2, numbers of shares were int64."""

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
    log_clock: int = 0
    """Newest Kafka time (epoch ms) of an accepted record up to `through`: it decides what is forgotten, and when. 0 where it is not known: in
    frames of version 1, and in all but the last of the messages that one frame was cut into."""


def encode(frame: Frame) -> bytes:
    """The frame as an Arrow IPC stream."""
    metadata = {
        b"log": frame.log.encode(), b"from": b"%d" % frame.start, b"through": b"%d" % frame.through,
        b"closings": _encode_closings(frame.closings), b"part": b"%d" % frame.part, b"parts": b"%d" % frame.parts,
        b"version": b"%d" % FRAME_VERSION, b"clock": b"%d" % frame.log_clock,
    }  # fmt: skip
    return b"".join((frame.rows.schema.with_metadata(metadata).serialize(), frame.rows.serialize(), END_OF_STREAM))


def decode(data: bytes, schema: pa.Schema) -> Frame:
    """The frame in a message's value, validated: nothing that its reader does with it can fail for what it holds, whoever wrote it.

    Rows have the columns of `schema`, TICKS_SCHEMA or WINDOWS_SCHEMA. Raises `FrameError`, whatever the bytes are.
    """
    layout = layout_of(schema)
    try:
        metadata, rows = read_batch(data, layout, FRAME_VERSION)
        log = metadata[b"log"].decode()
        if not 0 < len(log) <= MAX_LOG:
            raise FrameError(f"the log's id has {len(log)} characters")
        start = number_of(metadata, b"from", 0, MAX_OFFSET)
        through = number_of(metadata, b"through", start, MAX_OFFSET)
        closings = tuple(_decode_closings(metadata[b"closings"]))
        parts = number_of(metadata, b"parts", 1, MAX_PARTS)
        frame = Frame(
            log, start, through, closings, rows, number_of(metadata, b"part", 0, parts - 1), parts, number_of(metadata, b"clock", 0, MAX_TIME, b"0")
        )
        check(rows, layout, start, through)
        check_closings(closings, start, through)
    except FrameError as error:
        raise FrameError(f"not a frame: {error}") from error
    except Exception as error:
        # Arrow, numpy, struct and msgspec raise a dozen kinds on bytes like these, MemoryError and RecursionError among them
        raise FrameError(f"not a frame: {type(error).__name__}: {one_line(error)[:300]}") from error
    return frame


def decode_trusted(data: bytes, schema: pa.Schema) -> Frame:
    """The frame in bytes that `encode` has made of it in this process: nothing is validated. Bytes from elsewhere go through `decode`."""
    reader = pa.ipc.open_stream(data)
    metadata = reader.schema.metadata
    return Frame(
        metadata[b"log"].decode(), int(metadata[b"from"]), int(metadata[b"through"]), tuple(_decode_closings(metadata[b"closings"])),
        reader.read_next_batch().replace_schema_metadata(schema.metadata), int(metadata[b"part"]), int(metadata[b"parts"]), int(metadata[b"clock"]),
    )  # fmt: skip


def received(data: bytes, schema: pa.Schema, timestamp: int) -> Frame:
    """The frame in a message of Kafka's, of this time (epoch ms; 0 or less: not known): `decode`, and the log's id is one that `clean` may have issued.

    Readers leave a log for one of a greater id, and so whoever invents an id could end the log of a partition. Raises `FrameError`.
    """
    frame = decode(data, schema)
    check_log(frame.log, timestamp)
    return frame


def _cut_at(frame: Frame, cut: int) -> tuple[Frame, Frame]:
    """The frame before and from raw offset `cut` on."""
    split = int(frame.rows.column("offset").to_numpy().searchsorted(cut))
    before = replace(frame, through=cut - 1, closings=tuple(c for c in frame.closings if c.offset < cut), rows=frame.rows.slice(0, split), log_clock=0)
    after = replace(frame, start=cut, closings=tuple(c for c in frame.closings if c.offset >= cut), rows=frame.rows.slice(split))
    return before, after


def _middle(frame: Frame, size: int, limit: int) -> int | None:
    """A raw offset to cut a frame of about `size` bytes at, so that both sides have less; None where all that it has is of one offset."""
    if frame.rows.num_rows > 1:
        offsets = frame.rows.column("offset").to_numpy()
        share = len(offsets) // max(2, -(-size // limit))                # of as many messages as there must be
        split = int(offsets.searchsorted(offsets[share])) or int(offsets.searchsorted(offsets[0], "right"))
        if split < len(offsets):
            return int(offsets[split])
    places = sorted({*(c.offset for c in frame.closings), *(frame.rows.column("offset").to_pylist()[:1])})
    return places[len(places) // 2] if len(places) > 1 else None


def encode_within(frame: Frame, limit: int = MAX_FRAME_BYTES) -> Iterator[bytes]:
    """The frame in as many messages as the limit asks for: cut between offsets where that helps, else one offset's rows and closings in parts.

    Rows must have an ascending `offset` column, and closings ascend too. One row and one closing always go in one message.
    """
    about = 8 * frame.rows.num_rows * frame.rows.num_columns             # bytes: no time goes into one that is too large
    if about <= limit or frame.rows.num_rows <= 1:
        data = encode(frame)
        if len(data) <= limit or frame.rows.num_rows + len(frame.closings) <= 1:
            yield data
            return
        about = len(data)
    cut = _middle(frame, about, limit)
    if cut is None:
        yield from _in_parts(frame, limit)
        return
    for part in _cut_at(frame, cut):
        yield from encode_within(part, limit)


def _in_parts(frame: Frame, limit: int) -> list[bytes]:
    """One offset's rows and closings in parts of equal counts, as few as each fits the limit.

    Closings are in every part while they take little of it, as readers of version 1 expect; else each has its share.
    """
    repeated = len(_encode_closings(frame.closings)) <= limit // 4
    parts = 2 + frame.rows.nbytes // limit
    while True:
        count, share = -(-frame.rows.num_rows // parts) or 1, -(-len(frame.closings) // parts) or 1
        parts = max(-(-frame.rows.num_rows // count), 1 if repeated else -(-len(frame.closings) // share))
        messages = [
            encode(replace(
                frame, rows=frame.rows.slice(part * count, count), part=part, parts=parts,
                closings=frame.closings if repeated else frame.closings[part * share : (part + 1) * share],
            ))
            for part in range(parts)
        ]  # fmt: skip
        smallest = count == 1 and (repeated or share == 1)
        if smallest or all(len(data) <= limit for data in messages):
            return messages
        parts *= 2


MOST_STARTED = 16
"""Beginnings of frames in parts that an `Assembler` keeps; those that no part has come to for the longest go first."""


class Assembler:
    """Puts the parts of one offset's rows and closings together again; whole frames pass as they are.

    Messages of other frames may lie between the parts, whole or parts themselves. A part goes to the newest beginning of the same frame that it continues,
    and leaves that beginning as it was: a part that somebody else has forged does not displace the one that follows.
    """

    def __init__(self) -> None:
        self._started: list[tuple[int, tuple[Frame, ...]]] = []
        """Offset of the first part, and the parts so far; the one that was continued last is last."""
        self.first = 0
        """Offset, as given to `feed`, of the first part of the newest whole frame."""

    def feed(self, frame: Frame, offset: int = 0) -> Frame | None:
        """The whole frame once its last part is in, else None. `offset` is the message's in its topic. Raises `FrameError` where parts do not match."""
        if frame.parts == 1:
            self.first = offset
            return frame
        beginning = (offset, ()) if frame.part == 0 else next((one for one in reversed(self._started) if _continues(frame, one[1])), None)
        if beginning is None:
            return None
        first, parts = beginning[0], (*beginning[1], frame)
        if len(parts) < frame.parts:
            self._started = [*self._started, (first, parts)][-MOST_STARTED:]
            return None
        self._started = [one for one in self._started if _identity(one[1][0]) != _identity(frame)]
        self.first = first
        rows = [part.rows for part in parts if part.rows.num_rows]
        if any(before.column("offset")[-1].as_py() > after.column("offset")[0].as_py() for before, after in pairwise(rows)):
            raise FrameError("not a frame: offsets do not ascend from part to part")
        whole = pa.Table.from_batches(rows).combine_chunks().to_batches()[0] if rows else frame.rows
        closings = tuple(dict.fromkeys(closing for part in parts for closing in part.closings))
        check_closings(closings, frame.start, frame.through)
        return replace(frame, rows=whole, closings=closings, part=0, parts=1)


def _identity(frame: Frame) -> tuple[str, int, int, int]:
    return frame.log, frame.start, frame.through, frame.parts


def _continues(frame: Frame, parts: tuple[Frame, ...]) -> bool:
    return frame.part == len(parts) and _identity(frame) == _identity(parts[0])


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
    """The different texts of a column without nulls, in the order of their first appearance, and the index of each row's text among them."""
    encoded = column.dictionary_encode()
    return encoded.dictionary.to_pylist(), encoded.indices.to_numpy().astype(np.int64)


def spread(texts: list[str], which: NDArray[np.int64]) -> pa.StringArray:
    """The column of `texts[which]`."""
    return pa.array(texts, pa.string()).take(pa.array(which))


def plain(array: NDArray[Any]) -> pa.Array:
    """Numbers or truths, none of them null, where they lie. `pa.array` would do for all of it, but loads numpy's masked arrays to look for those."""
    data = np.packbits(array, bitorder="little") if array.dtype.kind == "b" else np.ascontiguousarray(array)
    return pa.Array.from_buffers(_type_of(array.dtype), len(array), [None, pa.py_buffer(data)], 0)


_type_of = functools.cache(pa.from_numpy_dtype)


@functools.lru_cache(maxsize=1)
def _zeros(size: int) -> pa.Buffer:
    return pa.py_buffer(bytes(size))


@functools.lru_cache(maxsize=256)
def nulls(count: int, kind: pa.DataType) -> pa.Array:
    """Nothing in each row, of numbers or texts: `pa.nulls` without new memory for each column. Live chunks have the same few lengths."""
    zeros = _zeros(1 << (8 * count + 8).bit_length())
    valid, texts = zeros.slice(0, -(-count // 8)), pa.types.is_string(kind)
    parts = [zeros.slice(0, 4 * (count + 1)), zeros.slice(0, 0)] if texts else [zeros.slice(0, kind.bit_width // 8 * count)]
    return pa.Array.from_buffers(kind, count, [valid, *parts], count)


def nullable(columns: Mapping[str, NDArray[np.float64]]) -> dict[str, pa.Array]:
    """As Arrow arrays of one length, NaN as null."""
    arrays, count = list(columns.values()), len(next(iter(columns.values())))
    known = ~np.isnan(np.array(arrays))
    bits, found = np.packbits(known, axis=1, bitorder="little"), known.sum(axis=1).tolist()
    return {
        name: pa.Array.from_buffers(pa.float64(), count, [pa.py_buffer(row) if some < count else None, pa.py_buffer(array)], count - some)
        if some else nulls(count, pa.float64())
        for (name, array), row, some in zip(columns.items(), bits, found, strict=True)
    }  # fmt: skip


def empty(schema: pa.Schema) -> pa.RecordBatch:
    """A batch of no rows."""
    return pa.RecordBatch.from_pylist([], schema=schema)

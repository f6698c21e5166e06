"""Hostile Arrow frames of `ticks.clean` and `windows`: bytes changed, metadata forged, other schemas, impossible values, buffers that lie."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from tests.fuzz.mutations import NUMBERS, RAW, TEXTS, WORDS, Rng, changed, changed_bytes, dumped

END = b"\xff\xff\xff\xff\0\0\0\0"
CONTINUATION = b"\xff\xff\xff\xff"
Metadata = dict[bytes, bytes]


def hostile_frame(rng: Rng, real: Sequence[bytes]) -> bytes:
    """A frame made of one of `real`; a few of them are harmless."""
    data = rng.choice(real)
    kind = rng.choice(_KINDS)
    try:
        return kind(rng, data)
    except (pa.ArrowException, ValueError, TypeError, OverflowError, RecursionError, struct.error, IndexError):
        return changed_bytes(rng, data)                                  # Arrow's own writer would not write it


def opened(data: bytes) -> tuple[pa.RecordBatch, Metadata]:
    """Rows and metadata of a real frame."""
    reader = pa.ipc.open_stream(data)
    return reader.read_next_batch(), dict(reader.schema.metadata)


def written(rows: pa.RecordBatch, metadata: Metadata, compression: str | None = None) -> bytes:
    """A stream of one batch."""
    schema = rows.schema.with_metadata(metadata)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as writer:
        writer.write_batch(rows.replace_schema_metadata(metadata))
    return bytes(sink.getvalue())


def _bytes(rng: Rng, data: bytes) -> bytes:
    return changed_bytes(rng, data)


def _metadata(rng: Rng, data: bytes) -> bytes:
    rows, metadata = opened(data)
    for _ in range(rng.choice((1, 1, 2))):
        name = rng.choice(list(metadata) or [b"log"])
        draw = rng.random()
        if draw < 0.15:
            del metadata[name]
        elif name == b"closings":
            metadata[name] = dumped(changed(rng, json.loads(metadata[name]) or [[1, "fast", 2, 3]])) if draw < 0.8 else rng.choice(RAW[2:5])
        elif name == b"log":
            metadata[name] = rng.choice((b"", b"zzzz", b"0", b"\xff\xfe", b"x" * 70_000, metadata[name] + b"0"))
        else:
            metadata[name] = rng.choice((b"%d" % rng.choice(WORDS), b"%d" % (int(metadata[name]) + rng.choice((-1, 1, 1000))), b"x", b"", b"1" * 5_000))
    return written(rows, metadata)


def _schema(rng: Rng, data: bytes) -> bytes:
    """Columns that are missing, more, in another order, of another type or name."""
    rows, metadata = opened(data)
    names, columns = list(rows.schema.names), list(rows.columns)
    at = rng.randrange(len(names))
    draw = rng.random()
    if draw < 0.2:
        del names[at], columns[at]
    elif draw < 0.3:
        names[at] = rng.choice((*names, "other", ""))
    elif draw < 0.4:
        names.insert(at, rng.choice(names))
        columns.insert(at, columns[at])
    elif draw < 0.5:
        order = list(range(len(names)))
        rng.shuffle(order)
        names, columns = [names[i] for i in order], [columns[i] for i in order]
    else:
        columns[at] = _of_another_type(rng, columns[at])
    return written(pa.RecordBatch.from_arrays(columns, names), metadata)


def _of_another_type(rng: Rng, column: pa.Array) -> pa.Array:
    count = len(column)
    kinds: tuple[Callable[[], pa.Array], ...] = (
        lambda: pa.nulls(count, column.type), lambda: pa.nulls(count), lambda: column.cast(pa.string()), lambda: column.cast(pa.large_string()),
        lambda: column.cast(pa.float32()), lambda: column.cast(pa.int8()), lambda: column.cast(pa.uint64()), lambda: column.dictionary_encode(),
        lambda: pa.array([[1]] * count), lambda: pa.array([b"\xff\xfe"] * count), lambda: pa.array([{"a": 1}] * count), lambda: pa.array([True] * count),
        lambda: pa.array([2**40] * count, pa.timestamp("us")), lambda: pa.array(["x"] * count), lambda: pa.array([1.5] * count),
    )  # fmt: skip
    return rng.choice(kinds)()


def _values(rng: Rng, data: bytes) -> bytes:
    """Well-formed columns with values that cannot be: offsets that do not ascend, seconds beyond all, nulls, numbers that are not finite, odd texts."""
    rows, metadata = opened(data)
    columns = list(rows.columns)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(len(columns))
        column = columns[at]
        values: list[Any] = column.to_pylist()
        if not values:
            break
        if rng.random() < 0.2:
            rng.shuffle(values)
        else:
            for _ in range(rng.choice((1, 1, len(values)))):
                values[rng.randrange(len(values))] = _value(rng, column.type)
        columns[at] = pa.array(values, column.type)
    return written(pa.RecordBatch.from_arrays(columns, rows.schema.names), metadata)


def _value(rng: Rng, kind: pa.DataType) -> Any:
    if rng.random() < 0.15:
        return None
    if pa.types.is_string(kind):
        return rng.choice([text for text in TEXTS if text != "\ud800"])
    if pa.types.is_boolean(kind):
        return rng.random() < 0.5
    if pa.types.is_floating(kind):
        return float(np.float64(rng.choice([n for n in NUMBERS if isinstance(n, float)])))
    low, high = (-(2**31), 2**31 - 1) if kind.bit_width == 32 else (-(2**63), 2**63 - 1)
    return max(low, min(high, rng.choice(WORDS)))


def _rows(rng: Rng, data: bytes) -> bytes:
    """Other rows than the metadata speak of: none, some, some twice, in another order, very many."""
    rows, metadata = opened(data)
    count = rows.num_rows
    draw = rng.random()
    if draw < 0.25:
        rows = rows.slice(0, 0)
    elif draw < 0.5:
        rows = rows.slice(rng.randrange(count + 1))
    elif draw < 0.75 and count:
        rows = rows.take(pa.array([rng.randrange(count) for _ in range(rng.randrange(1, 40))]))
    elif count:
        rows = rows.take(pa.array(np.zeros(rng.choice((300, 3_000)), np.int64)))
    return written(rows, metadata)


def _lengths(rng: Rng, data: bytes) -> bytes:
    """A number in the batch's own description, or in its body, that lies: buffer places and lengths, counts of rows and nulls, offsets of texts."""
    at = data.find(CONTINUATION, 4)                                      # the second message is the batch
    size = struct.unpack_from("<i", data, at + 4)[0]
    begin, end = at + 8, at + 8 + size
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2))):
        if rng.random() < 0.6:
            place = rng.randrange(begin, end - 7) // 8 * 8
            struct.pack_into("<q", out, place, _lie(rng, struct.unpack_from("<q", out, place)[0], 63))
        else:
            place = rng.randrange(end, len(out) - 11) // 4 * 4
            struct.pack_into("<i", out, place, _lie(rng, struct.unpack_from("<i", out, place)[0], 31))
    return bytes(out)


def _lie(rng: Rng, true: int, bits: int) -> int:
    value = rng.choice((*WORDS, true + 1, true - 1, true + 8, 2 * true, -true, true * 1_000_000))
    return max(-(1 << bits), min((1 << bits) - 1, value))


def _compressed(rng: Rng, data: bytes) -> bytes:
    """A compressed body, as it is or with a lie about how long it was before."""
    rows, metadata = opened(data)
    whole = bytearray(written(rows, metadata, rng.choice(("lz4", "zstd"))))
    if rng.random() < 0.8:
        at = whole.find(CONTINUATION, 4)
        body = at + 8 + struct.unpack_from("<i", whole, at + 4)[0]
        places = range(body, len(whole) - 16, 8)
        place = rng.choice(places)
        struct.pack_into("<q", whole, place, rng.choice(WORDS))
    return bytes(whole)


def _stream(rng: Rng, data: bytes) -> bytes:
    """Other messages than one schema and one batch: none, two, a schema alone, a tail, another frame's batch."""
    at = data.find(CONTINUATION, 4)
    schema, batch = data[:at], data[at : -len(END)]
    return rng.choice((
        schema + END, schema, batch + END, schema + batch + batch + END, schema + batch, data + data, data + rng.randbytes(40), schema + schema + batch + END,
        schema + batch + rng.randbytes(12) + END, rng.randbytes(rng.randrange(200)), b"", END, CONTINUATION * 4, b"ARROW1\0\0" + data, data[8:],
    ))  # fmt: skip


_KINDS: tuple[Callable[[Rng, bytes], bytes], ...] = (
    _bytes, _bytes, _bytes, _metadata, _metadata, _schema, _values, _values, _rows, _lengths, _lengths, _lengths, _compressed, _stream,
)  # fmt: skip

"""Frames as nobody of ours writes them. Run as a script it gives each to the decoder, and what comes through to every machine that reads frames:
`python -m tests.forged SEED COUNT`. A line says how many came through; a signal or another error is the fault that is looked for."""

from __future__ import annotations

import json
import random
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from stockstream.errors import FrameError
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA, Closing
from stockstream.transforms import batch
from stockstream.transforms.frames import Frame, decode, encode
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.windows.windows import Windows
from stockstream.web.live import Live

EXTREMES = (0, 1, 7, 0x7F, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 311 << 40)


def good_frames() -> list[tuple[pa.Schema, Frame]]:
    """A second of three symbols: what `clean` and `aggregate` make of it."""
    records = [
        batch.RawRecord(number, 1_700_000_000_000 + 250 * number, json.dumps({
            "symbol": f"S{number % 3}", "event_time": 1_700_000_000_000 + 250 * number, "price": 10.0 + number % 5, "size": number,
            "source": "a" * (1 + number % 2), "bid": 9.0 if number % 2 else None,
        }).encode())
        for number in range(60)
    ]  # fmt: skip
    found = batch.run(records, partition=0, partitions=1, chunk=20)
    return [(TICKS_SCHEMA, frame) for frame in found.clean] + [(WINDOWS_SCHEMA, frame) for frame in found.windows]


def stream_of(frame: Frame, rows: pa.RecordBatch, *, codec: str | None = None, times: int = 1, metadata: dict[bytes, bytes] | None = None) -> bytes:
    """The frame's metadata over any rows, as an Arrow IPC stream."""
    metadata_of = dict(pa.ipc.open_stream(encode(frame)).schema.metadata) | (metadata or {})
    schema = rows.schema.with_metadata(metadata_of)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        for _ in range(times):
            writer.write_batch(rows.replace_schema_metadata(metadata_of))
    written: bytes = sink.getvalue().to_pybytes()
    return written


def lying_text(frame: Frame, name: str, end: int) -> bytes:
    """The frame, with the last end of a text column's values somewhere else."""
    data = bytearray(encode(frame))
    column = frame.rows.column(name)
    ends = bytes(column.buffers()[1])[: 4 * (len(column) + 1)]
    at = data.index(ends) + len(ends) - 4
    data[at : at + 4] = end.to_bytes(4, "little", signed=True)
    return bytes(data)


def with_column(rows: pa.RecordBatch, name: str, column: pa.Array) -> pa.RecordBatch:
    return rows.set_column(rows.schema.get_field_index(name), name, column)


def structured(frame: Frame) -> Iterator[tuple[str, bytes]]:
    """Well-formed Arrow streams that are no frame of ours, by what is wrong."""
    rows = frame.rows
    count = rows.num_rows
    yield "no batch", stream_of(frame, rows, times=0)
    yield "two batches", stream_of(frame, rows, times=2)
    yield "compressed with zstd", stream_of(frame, rows, codec="zstd")
    yield "compressed with lz4", stream_of(frame, rows, codec="lz4")
    yield "a dictionary", stream_of(frame, with_column(rows, "symbol", rows.column("symbol").dictionary_encode()))
    yield "a dictionary beside", stream_of(frame, rows.append_column("more", rows.column("symbol").dictionary_encode()))
    for name in ("symbol", "source", "offset"):
        yield f"no {name}", stream_of(frame, rows.drop_columns([name]))
        yield f"null {name}", stream_of(frame, with_column(rows, name, pa.nulls(count, rows.schema.field(name).type)))
        yield f"{name} twice", stream_of(frame, rows.append_column(name, rows.column(name)))
    for name in ("symbol", "source"):
        yield f"{name} of another type", stream_of(frame, with_column(rows, name, pa.array([1] * count)))
        yield f"empty {name}", stream_of(frame, with_column(rows, name, pa.array([""] * count)))
        yield f"endless {name}", stream_of(frame, with_column(rows, name, pa.array(["x" * 5_000] * count)))
        yield f"{name} that is no text", stream_of(
            frame, with_column(rows, name, pa.Array.from_buffers(pa.string(), count, pa.array([b"\xff\xfe"] * count, pa.binary()).buffers()))
        )
        for end in (-5, 1 << 30, (1 << 31) - 1):
            yield f"{name} ends at {end}", lying_text(frame, name, end)
    yield "offset as a float", stream_of(frame, with_column(rows, "offset", rows.column("offset").cast(pa.float64())))
    for wrong in ("descending", "below", "beyond"):
        offsets = rows.column("offset").to_numpy().copy()
        descending = offsets[::-1] if offsets[0] != offsets[-1] else np.append(offsets[:-1], frame.start - 1)
        offsets = {"descending": descending, "below": offsets - 1_000, "beyond": offsets + 1_000}[wrong]
        yield f"offsets {wrong}", stream_of(frame, with_column(rows, "offset", pa.array(offsets.copy())))
    for number in (float("inf"), 1e300):
        yield f"a price of {number}", stream_of(frame, with_column(rows, "price", pa.array([number] * count)))
    time = "event_time" if "event_time" in rows.schema.names else "second"
    for number in (-5, (1 << 63) - 1, -(1 << 63)):
        yield f"a {time} of {number}", stream_of(frame, with_column(rows, time, pa.array([number] * count)))
    for field, values in {
        b"from": (b"-1", b"x", b"9" * 5_000, b"%d" % (frame.through + 1)), b"through": (b"9" * 30, b"", b"1e3"), b"part": (b"1", b"-1"),
        b"parts": (b"0", b"1000000"), b"clock": (b"-1", b"9" * 30), b"log": (b"", b"\xff", b"x" * 500), b"version": (b"99", b"0"),
        b"closings": (
            b"", b"{}", b"[" * 50_000, b'[[1]]', b'[[5,"a",3,4],[4,"a",4,5]]', b'[[%d,"a",3,2]]' % frame.through, b'[[%d,"",3,4]]' % frame.through,
            b'[[%d,"a",3,%d]]' % (frame.through, 1 << 62), b'[[%d,"a",3,4]]' % (frame.through + 1), b'[[%d,"%s",3,4]]' % (frame.through, b"y" * 500),
        ),
    }.items():  # fmt: skip
        for value in values:
            yield f"{field.decode()} {value[:20]!r}", stream_of(frame, rows, metadata={field: value})


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The bytes with a few of them changed, moved or gone."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(out))
        way = rng.randrange(6)
        if way == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif way in (1, 2):
            size = rng.choice((4, 8))
            at = min(at // size * size, len(out) - size)
            out[at : at + size] = (rng.choice(EXTREMES) & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        elif way == 3:
            del out[at : at + rng.choice((1, 4, 8, 64))]
        elif way == 4:
            other = rng.randrange(len(out))
            out[at : at + 16] = out[other : other + 16]
        else:
            out = out[: max(1, at)]
        if not out:
            return bytes(data)
    return bytes(out)


def read(schema: pa.Schema, data: bytes) -> bool:
    """Gives the bytes to the decoder, and a frame to the machines; whether it was one."""
    try:
        frame = decode(data, schema)
    except FrameError:
        return False
    frame.rows.to_pylist()
    frame = replace(frame, part=0, parts=1)
    if schema is TICKS_SCHEMA:
        machine = Windows(0, revise_s=30)
        try:
            rows = machine.take_frame(frame)
        except FrameError:
            return True
        if rows is not None:
            rows.batch(0)
        machine.records(0)
    else:
        Detector(0).take_frame(frame)
        live = Live()
        try:
            live.frame(0, frame)
        except FrameError:
            return True
        for symbol in {row["symbol"] for row in frame.rows.select(["symbol"]).to_pylist()}:
            live.symbol(symbol)
            live.bars(symbol, 60, 300)
    return True


def main(seed: int, count: int) -> None:
    warnings.simplefilter("ignore")
    good = good_frames()
    rng = random.Random(seed)
    came = 0
    for schema, frame in good:
        assert read(schema, encode(frame)), "a frame of ours must come through"
        for what, data in structured(frame):
            assert not read(schema, data), f"{what} came through"
    for _ in range(count):
        schema, frame = rng.choice(good)
        rows: Any = frame.rows.slice(0, rng.randrange(1, frame.rows.num_rows + 1))
        sent = replace(frame, rows=rows, closings=(*frame.closings, Closing(frame.through, "z", 3, 4)))
        came += read(schema, mutated(encode(sent), rng))
    print(f"{came} of {count} came through")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))

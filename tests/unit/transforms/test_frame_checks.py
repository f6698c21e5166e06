"""A frame is validated before anybody reads it: what is no frame of ours is a `FrameError`, whatever the bytes are, and never ends the process."""

from __future__ import annotations

import subprocess
import sys

import pyarrow as pa
import pytest

from stockstream.errors import FrameError
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA, Closing
from stockstream.transforms.frames import FRAME_VERSION, MAX_FRAME_BYTES, Assembler, Frame, decode, empty, encode, encode_within
from tests.forged import good_frames, stream_of, structured, with_column

GOOD = [(WINDOWS_SCHEMA, [frame for schema, frame in good_frames() if schema is WINDOWS_SCHEMA and frame.rows.num_rows][-1]),
        (TICKS_SCHEMA, next(frame for schema, frame in good_frames() if schema is TICKS_SCHEMA and frame.rows.num_rows > 2))]  # fmt: skip
CASES = [
    pytest.param(schema, data, id=f"{'windows' if schema is WINDOWS_SCHEMA else 'ticks'}, {what}")
    for schema, frame in GOOD for what, data in structured(frame)
]  # fmt: skip


@pytest.mark.slow
def test_no_forged_frame_ends_the_process_that_reads_it() -> None:
    done = subprocess.run([sys.executable, "-m", "tests.forged", "7", "4000"], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "came through" in done.stdout


@pytest.mark.parametrize(("schema", "data"), CASES)
def test_what_is_no_frame_of_ours_is_an_error_of_one_kind(schema: pa.Schema, data: bytes) -> None:
    with pytest.raises(FrameError, match="not a frame"):
        decode(data, schema)


def test_a_compressed_body_is_refused_before_it_is_decoded() -> None:
    """One megabyte of zstd can stand for any memory."""
    schema, frame = GOOD[0]
    bomb = with_column(frame.rows, "quality", pa.array(["x" * 50_000_000] + [""] * (frame.rows.num_rows - 1)))
    data = stream_of(frame, bomb, codec="zstd")
    assert len(data) < 100_000
    before = pa.total_allocated_bytes()
    pool = pa.default_memory_pool()
    peak = pool.max_memory()
    with pytest.raises(FrameError, match="compressed"):
        decode(data, schema)
    assert pool.max_memory() == peak and pa.total_allocated_bytes() <= before


@pytest.mark.parametrize(("schema", "frame"), GOOD)
def test_columns_that_are_not_known_are_left_out_and_those_that_may_be_null_need_not_be_there(schema: pa.Schema, frame: Frame) -> None:
    nested = pa.array([[{"deep": 1}]] * frame.rows.num_rows)
    newer = frame.rows.append_column("of_a_later_release", nested).select([*reversed(schema.names), "of_a_later_release"])
    got = decode(stream_of(frame, newer), schema)
    assert got == frame and got.rows.schema.equals(schema)
    older = decode(stream_of(frame, frame.rows.drop_columns(["bid"])), schema)
    assert older.rows.column("bid").null_count == frame.rows.num_rows
    assert older.rows.drop_columns(["bid"]) == frame.rows.drop_columns(["bid"])


@pytest.mark.parametrize(("schema", "frame"), GOOD)
def test_a_frame_of_a_newer_format_says_what_to_do(schema: pa.Schema, frame: Frame) -> None:
    data = stream_of(frame, frame.rows.drop_columns(["symbol"]), metadata={b"version": b"%d" % (FRAME_VERSION + 1)})
    with pytest.raises(FrameError, match=r"written by a newer stockstream .*upgrade this worker"):
        decode(data, schema)


# -- closings that alone pass the limit --------------------------------------


def sources(count: int) -> list[str]:
    return [f"{number:05d}" + "源" * 123 for number in range(count)]


@pytest.mark.parametrize("offsets", ["one offset", "an offset each"])
@pytest.mark.parametrize("rows", [0, 1, 4_000])
def test_closings_of_4000_sources_with_long_names_go_in_parts(offsets: str, rows: int) -> None:
    names = sources(4_000)
    at = [7] * len(names) if offsets == "one offset" else [7 + number for number in range(len(names))]
    closings = tuple(Closing(offset, name, 3, 4) for offset, name in zip(at, names, strict=True))
    tick = {"symbol": "AAA", "event_time": 4_500, "price": 10.5, "size": 3, "index": 0}
    table = [tick | {"source": names[number], "offset": at[number]} for number in range(rows)]
    sent = Frame("x", 7, at[-1], closings, pa.RecordBatch.from_pylist(table, schema=TICKS_SCHEMA), log_clock=5_000)
    messages = list(encode_within(sent))
    assert len(messages) > 1 and max(map(len, messages)) <= MAX_FRAME_BYTES
    assembler = Assembler()
    got = [whole for whole in (assembler.feed(decode(data, TICKS_SCHEMA)) for data in messages) if whole is not None]
    assert [one.start for one in got] + [sent.through + 1] == [sent.start] + [one.through + 1 for one in got]
    assert [closing for one in got for closing in one.closings] == list(closings)
    assert pa.Table.from_batches([one.rows for one in got]).to_pylist() == sent.rows.to_pylist()
    assert got[-1].log_clock == 5_000
    if offsets == "one offset":
        assert len(got) == 1


def test_few_closings_are_in_every_part_as_older_readers_expect() -> None:
    tick = {"symbol": "AAA", "source": "a", "event_time": 1, "size": 3, "offset": 7}
    rows = pa.RecordBatch.from_pylist([tick | {"index": number} for number in range(3_000)], schema=TICKS_SCHEMA)
    sent = Frame("x", 7, 7, (Closing(7, "a", 3, 4), Closing(7, "b", 3, 4)), rows)
    parts = [decode(data, TICKS_SCHEMA) for data in encode_within(sent, limit=60_000)]
    assert len(parts) > 1 and all(part.closings == sent.closings for part in parts)
    assembler = Assembler()
    assert [whole for whole in map(assembler.feed, parts) if whole is not None] == [sent]


def test_parts_whose_rows_do_not_follow_are_no_frame() -> None:
    tick = {"symbol": "AAA", "source": "a", "event_time": 1, "size": 3, "index": 0}
    rows = [pa.RecordBatch.from_pylist([tick | {"offset": offset}], schema=TICKS_SCHEMA) for offset in (9, 8)]
    assembler = Assembler()
    first, second = (decode(encode(Frame("x", 1, 9, (), some, part=part, parts=2)), TICKS_SCHEMA) for part, some in enumerate(rows))
    assert assembler.feed(first) is None
    with pytest.raises(FrameError, match="part to part"):
        assembler.feed(second)
    whole = Frame("x", 10, 11, (), empty(TICKS_SCHEMA))
    assert assembler.feed(whole) == whole

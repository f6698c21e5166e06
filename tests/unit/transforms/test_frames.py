"""Frames on the wire: Arrow IPC streams, cut where a message's limit asks for it."""

from __future__ import annotations

import math
import random
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stockstream.errors import FrameError
from stockstream.records import TICKS_SCHEMA, Closing
from stockstream.transforms.frames import Assembler, Frame, coded, decode, decode_trusted, empty, encode, encode_within, nullable, nulls, plain, spread


def rows(offsets: list[int]) -> pa.RecordBatch:
    tick = {"symbol": "AAA", "source": "a", "event_time": 1, "price": 10.5, "size": 3, "bid": 1.0}
    indexes = [offsets[:at].count(offset) for at, offset in enumerate(offsets)]
    return pa.RecordBatch.from_pylist([tick | {"offset": o, "index": i} for o, i in zip(offsets, indexes, strict=True)], schema=TICKS_SCHEMA)


def frame(offsets: list[int]) -> Frame:
    return Frame("x", offsets[0], offsets[-1], (Closing(offsets[-1], "a", 3, 4),), rows(offsets))


@pytest.mark.parametrize("batch", [empty(TICKS_SCHEMA), rows([5]), rows(list(range(4, 1_004))), rows(list(range(1_000))).slice(100, 7)])
def test_a_frame_is_an_arrow_stream_and_comes_back(batch: pa.RecordBatch) -> None:
    sent = Frame("log-1", 4, 1_003, (Closing(5, "a", 3, 4), Closing(6, "b", 1, 2)), batch, part=1, parts=3)
    data = encode(sent)
    assert decode(data, TICKS_SCHEMA) == decode_trusted(data, TICKS_SCHEMA) == sent
    with pa.ipc.open_stream(data) as reader:
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, reader.schema) as writer:
            writer.write_batch(batch)
    assert data == sink.getvalue().to_pybytes()


@pytest.mark.parametrize("data", [b"", b"no", encode(frame([1, 2]))[:-200], encode(frame([1]))[8:], pa.schema([]).serialize().to_pybytes()])
def test_what_is_no_frame_is_told(data: bytes) -> None:
    with pytest.raises(FrameError, match="not a frame"):
        decode(data, TICKS_SCHEMA)


@pytest.mark.parametrize("offsets", [list(range(2_000)), [7] * 2_000, [1] * 900 + [2] * 5 + list(range(3, 900))])
def test_what_is_too_long_for_a_message_goes_in_several_and_is_one_again(offsets: list[int]) -> None:
    sent = frame(offsets)
    messages = list(encode_within(sent, limit=60_000))
    assert len(messages) > 1 and all(len(data) <= 60_000 for data in messages)
    assembler = Assembler()
    got = [whole for whole in (assembler.feed(decode(data, TICKS_SCHEMA)) for data in messages) if whole is not None]
    assert pa.Table.from_batches([one.rows for one in got]).to_pylist() == sent.rows.to_pylist()
    assert [one.start for one in got] + [sent.through + 1] == [sent.start] + [one.through + 1 for one in got]
    assert [closing for one in got for closing in one.closings] == list(sent.closings)


@pytest.mark.parametrize("times", [1.5, 2.3, 2.95, 3.4])
def test_it_goes_in_as_few_messages_as_can_be_all_about_as_large(times: float) -> None:
    sent = frame(list(range(3_000)))
    limit = int(8 * sent.rows.num_rows * sent.rows.num_columns / times)
    messages = [decode(data, TICKS_SCHEMA).rows.num_rows for data in encode_within(sent, limit)]
    assert len(messages) == math.ceil(times) and max(messages) - min(messages) <= 2


def test_an_offset_of_many_rows_leaves_the_small_ones_behind_it_together() -> None:
    sent = frame([0] * 1_200 + list(range(1, 1_801)))
    limit = int(8 * sent.rows.num_rows * sent.rows.num_columns / 2.3)
    assert [decode(data, TICKS_SCHEMA).rows.num_rows for data in encode_within(sent, limit)] == [1_200, 900, 900]


# -- columns ----------------------------------------------------------------


@pytest.mark.parametrize("count", [0, 1, 9, 1_003])
@pytest.mark.parametrize("kind", [np.int64, np.int32, np.float64, np.bool_])
def test_plain_numbers_and_truths_are_what_arrow_makes_of_them(kind: Any, count: int) -> None:
    values = np.random.default_rng(count).integers(0, 2, 2 * count).astype(kind)
    for array in (values[:count], values[::2]):
        column = plain(array)
        column.validate(full=True)
        assert column.equals(pa.array(array)) and column.null_count == 0


def test_nulls_are_arrows_and_stay_when_more_are_made() -> None:
    kinds = (pa.float64(), pa.int32(), pa.string())
    made = {(count, kind): nulls(count, kind) for count in (0, 1, 8, 5_000, 20) for kind in kinds}
    for (count, kind), column in made.items():
        column.validate(full=True)
        assert column.equals(pa.nulls(count, kind)) and column.null_count == count
        if count:
            assert [buffer.size for buffer in column.buffers()[:2]] == [buffer.size for buffer in pa.nulls(count, kind).buffers()[:2]]



def test_texts_by_number_and_back() -> None:
    known, rng = ["A", "", "BRK.B", "\u00e9\U0001f600", "x" * 500], random.Random(4)
    for count in (0, 1, 7, 3_000):
        which = np.array([rng.randrange(len(known)) for _ in range(count)], np.int64)
        column = spread(known, which)
        column.validate(full=True)
        assert column.to_pylist() == [known[number] for number in which]
        for part in (column, column.slice(count // 3), column.slice(0, count // 2)):
            texts, codes = coded(part)
            assert [texts[code] for code in codes] == part.to_pylist() and texts == list(dict.fromkeys(part.to_pylist()))


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 64, 1_003])
def test_nan_is_null(count: int) -> None:
    rng = np.random.default_rng(count)
    some = np.where(rng.random(count) < 0.5, np.nan, rng.random(count))
    found = nullable({"some": some, "none": np.full(count, np.nan), "all": np.ones(count)})
    for name, values in (("some", some), ("none", np.full(count, np.nan)), ("all", np.ones(count))):
        found[name].validate(full=True)
        assert found[name].equals(pa.array(values, pa.float64(), from_pandas=True))

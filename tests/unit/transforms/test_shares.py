"""Numbers of shares have decimals, and their sums are exact: in any chunks, over restarts, with corrections and accrued volume."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.records import ACCRUED, CORRECTION, TICKS_SCHEMA, WINDOWS_SCHEMA, Closing
from stockstream.transforms import shares
from stockstream.transforms.frames import Frame, decode, encode
from stockstream.transforms.rules.detector import Detector
from stockstream.transforms.windows import state as window_state
from stockstream.transforms.windows.windows import Windows

START = 1_700_000_100
SIZES = st.one_of(
    st.integers(0, 10**11).map(float),
    st.builds(lambda units, places: float(Decimal(units).scaleb(-places)), st.integers(0, 10**8), st.integers(0, 8)),
    st.sampled_from([1e-8, 0.0387, 0.1, 0.2, 0.3, 67_108_863.12345678, 99_999_999_999.5]),
)


def exact(sizes: list[float]) -> float:
    """The double nearest to the sum of the decimals."""
    return float(sum(Fraction(repr(size)) for size in sizes))


@given(st.lists(SIZES, min_size=1, max_size=60))
def test_a_sum_is_the_double_nearest_to_the_decimals(sizes: list[float]) -> None:
    if max(sizes) >= 1 << 26:
        sizes = [float(math.floor(size)) if size >= 1 << 26 else size for size in sizes]         # doubles have no 8 decimals there
    whole, part = shares.split(np.array(sizes))
    assert shares.joined(whole.sum(keepdims=True), part.sum(keepdims=True)).tolist() == [exact(sizes)]
    assert shares.total(np.array(sizes)) == exact(sizes)
    assert [shares.rounded(size) for size in sizes] == sizes == shares.all_rounded(np.array(sizes)).tolist()


@given(st.lists(st.floats(0, 1e11), min_size=1))
def test_more_decimals_are_rounded_alike_one_by_one_and_together(sizes: list[float]) -> None:
    once = [shares.rounded(size) for size in sizes]
    assert once == shares.all_rounded(np.array(sizes)).tolist()
    assert all(abs(a - b) <= max(0.5e-8, math.ulp(b)) * 1.01 for a, b in zip(once, sizes, strict=True))
    assert [shares.rounded(size) for size in once] == once


def test_whole_numbers_are_json_without_decimals() -> None:
    values = shares.for_json(np.array([300.0, 0.5, np.nan, -2.0, 6e9]))
    assert json.dumps(values) == "[300, 0.5, NaN, -2, 6000000000]"
    assert json.dumps(shares.for_json(np.array([1.0, 2.0]))) == "[1, 2]"


Event = tuple[str, int, float | None, float, int]
"""Symbol, second, price, size, flags."""


def events_of(rng: random.Random, seconds: int) -> Iterator[list[Event]]:
    """By second, ticks with and without decimals, some accrued; now and then a correction of one of the last seconds' ticks."""
    told: list[Event] = []
    for second in range(START, START + seconds):
        of_second: list[Event] = []
        for symbol in "AB":
            for _ in range(rng.choice((0, 1, 1, 3))):
                size = rng.choice((float(rng.randrange(1_000)), round(rng.random() * 50, rng.randrange(1, 9)), 1e9))
                of_second.append((symbol, second, 100.0 + rng.randrange(9), size, ACCRUED if rng.random() < 0.1 else 0))
        if told and rng.random() < 0.2:
            symbol, then, price, size, flags = rng.choice(told[-20:])
            if then > second - 20:
                of_second.append((symbol, then, price, -size, flags | CORRECTION))
                told.remove((symbol, then, price, size, flags))
        told += [event for event in of_second if not event[4] & CORRECTION]
        yield of_second


def frames_of(rng: random.Random, seconds: int, longest: int = 1) -> list[Frame]:
    out: list[Frame] = []
    rows: list[dict[str, Any]] = []
    closings: list[Closing] = []
    offset = start = 0
    for number, events in enumerate(events_of(rng, seconds)):
        for symbol, second, price, size, flags in events:
            rows.append({
                "symbol": symbol, "source": "s", "event_time": second * 1000, "price": price, "size": size, "flags": flags, "offset": offset, "index": 0,
                "bid": 1.0 if flags & CORRECTION else None,
            })  # fmt: skip
            offset += 1
        closings.append(Closing(offset, "s", START + number - 1, START + number))
        offset += 1
        if (number + 1) % longest == 0 or number == seconds - 1:
            out.append(Frame("log", start, offset - 1, tuple(closings), pa.RecordBatch.from_pylist(rows, TICKS_SCHEMA)))
            start, rows, closings = offset, [], []
    return out


def expected(rng: random.Random, seconds: int) -> dict[tuple[str, int], dict[str, Any]]:
    """By symbol and second, what the last row of it must hold."""
    events = [event for some in events_of(rng, seconds) for event in some]
    out: dict[tuple[str, int], dict[str, Any]] = {}
    for symbol, second in {(event[0], event[1]) for event in events}:
        mine = [event for event in events if event[:2] == (symbol, second)]
        ticks = [event[2] for event in mine if not event[4] & CORRECTION]
        window = [event for event in events if event[0] == symbol and second - 300 < event[1] <= second]
        accrued = [event[3] for event in window if event[4] & ACCRUED]
        volume = sum(Fraction(repr(event[3])) for event in window)
        out[symbol, second] = {
            "volume": exact([event[3] for event in mine]), "ticks": len(ticks), "quotes": 0, "open": ticks[0], "close": ticks[-1], "bid": None,
            "volume_10s": exact([event[3] for event in window if event[1] > second - 10]), "volume_5m": float(volume),
            "accrued_5m": float(sum(round(Fraction(repr(size)) * 10**6) for size in accrued) / Fraction(10**6)),
            "accrued": sum(round(Fraction(repr(event[3])) * 10**6) for event in mine if event[4] & ACCRUED) > 0,
        }  # fmt: skip
    return out


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_windows_sum_shares_exactly_with_corrections_and_accrued_volume(seed: int) -> None:
    last: dict[tuple[str, int], dict[str, Any]] = {}
    sent: dict[tuple[str, int, int], str] = {}
    for longest in (1, 7, 1_000):
        core = Windows(0, revise_s=30)
        for frame in frames_of(random.Random(seed), 400, longest):
            rows = core.take_frame(frame)
            assert rows is not None
            for row in rows.batch(0).to_pylist():
                place = row["symbol"], row["second"], row["offset"]
                if longest == 1:
                    last[row["symbol"], row["second"]] = row
                    sent[place] = repr(row)
                elif place in sent:
                    assert sent[place] == repr(row)
    want = expected(random.Random(seed), 400)
    assert last.keys() == want.keys()
    for key, values in want.items():
        row = last[key] | {"accrued": "accrued" in last[key]["quality"].split(",")}
        assert {name: row[name] for name in values if name != "accrued_5m"} == {name: value for name, value in values.items() if name != "accrued_5m"}, key
        assert row["accrued_5m"] == pytest.approx(values["accrued_5m"], rel=1e-15)


@pytest.mark.slow
def test_a_restart_changes_no_bit() -> None:
    frames = frames_of(random.Random(9), 700)
    core, stored, want = Windows(0, revise_s=30), dict[bytes, bytes](), list[Any]()
    for at, frame in enumerate(frames):
        rows = core.take_frame(frame, at)
        assert rows is not None
        want.append(rows.batch(0))
        stored |= dict(core.records(0)) if at < 500 else {}
    again = Windows.restore(0, stored, revise_s=30)
    for at in range(again.resume_input, len(frames)):
        rows = again.take_frame(frames[at], at)
        assert rows is not None
        if at >= 500:
            assert rows.batch(0).equals(want[at])


def test_whole_shares_are_stored_as_before_and_parts_beside_them() -> None:
    for size, fields in ((5.0, None), (0.5, list(window_state.STORED))):
        core = Windows(0, revise_s=30)
        row = {"symbol": "A", "source": "s", "event_time": START * 1000, "price": 1.0, "size": size, "offset": 0, "index": 0}
        core.take_frame(Frame("log", 0, 1, (Closing(1, "s", START - 1, START),), pa.RecordBatch.from_pylist([row], TICKS_SCHEMA)))
        (value,) = [value for key, value in core.records(0) if not window_state.is_checkpoint(key)]
        assert msgspec.msgpack.decode(value).get("fields") == fields
        assert window_state.bucket_of(value).fields == window_state.STORED


def old_frame(schema: pa.Schema, frame: Frame) -> bytes:
    """The frame as version 2 had it: whole numbers of shares, without the later columns."""
    whole = {"size", "volume", "volume_5m", "volume_10s", "volume_60s"}
    names = [name for name in schema.names if name not in ("flags", "gap_s", "price_before_gap", "accrued_5m")]
    columns = [frame.rows.column(name).cast(pa.int64()) if name in whole else frame.rows.column(name) for name in names]
    rows = pa.RecordBatch.from_arrays(columns, names)
    metadata = pa.ipc.open_stream(encode(frame)).schema.metadata | {b"version": b"2"}
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema.with_metadata(metadata)) as writer:
        writer.write_batch(rows.replace_schema_metadata(metadata))
    data: bytes = sink.getvalue().to_pybytes()
    return data


def test_frames_of_whole_numbers_are_read() -> None:
    row = {"symbol": "A", "source": "s", "event_time": START * 1000, "price": 1.0, "size": 5, "flags": 0, "offset": 0, "index": 0}
    clean = Frame("log", 0, 1, (Closing(1, "s", START - 1, START),), pa.RecordBatch.from_pylist([row], TICKS_SCHEMA))
    assert decode(old_frame(TICKS_SCHEMA, clean), TICKS_SCHEMA).rows.equals(clean.rows)
    rows = Windows(0, revise_s=30).take_frame(clean)
    assert rows is not None
    closed = Frame("log", 0, 1, clean.closings, rows.batch(0))
    read = decode(old_frame(WINDOWS_SCHEMA, closed), WINDOWS_SCHEMA)
    assert read.rows.equals(closed.rows)
    assert Detector(0).take_frame(read) is not None


def spike(quality: str = "", **changes: Any) -> list[dict[str, Any]]:
    """The alerts of a second with 8 times the usual volume, or with these changes."""
    row = dict.fromkeys(WINDOWS_SCHEMA.names) | {
        "symbol": "A", "source": "s", "second": START, "ticks": 1, "quotes": 0, "ticks_5m": 9, "seconds_5m": 200, "revised": False, "partition": 0, "offset": 0,
        "ticks_10s": 1, "close": 1.0, "volume": 0.8, "volume_5m": 20.0, "volume_10s": 1.0, "volume_60s": 5.0, "accrued_5m": 0.0, "quality": quality,
    } | changes  # fmt: skip
    found = Detector(0).take_frame(Frame("log", 0, 0, (Closing(0, "s", START - 1, START),), pa.RecordBatch.from_pylist([row], WINDOWS_SCHEMA)))
    assert found is not None
    return [{"value": alert.value, "baseline": alert.baseline, "message": alert.message, "window": alert.window} for alert in found.alerts]


def test_a_spike_of_parts_of_shares() -> None:
    (alert,) = spike()
    assert (alert["value"], alert["baseline"]) == (0.8, 0.1)
    assert alert["message"].startswith("A: 0.8 shares in one second, 8.0 times")
    assert json.dumps(alert["window"]["volume_5m"]) == "20"


def test_accrued_volume_is_no_spike_and_in_no_baseline() -> None:
    assert spike(quality="partial,accrued", accrued_5m=0.8) == []
    assert spike(volume=0.4) == []
    (alert,) = spike(volume=0.4, accrued_5m=10.0)
    assert alert["baseline"] == 0.05
    assert spike(volume_5m=0.0) == []

"""Frames of Yahoo's stream: the real ones that public tests quote, the decimal numbers behind float32, sessions and delayed exchanges."""

from __future__ import annotations

import base64
import json
import struct
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.sources.yahoo.frames import Frame, FrameFault, Parse, load_protobuf, read, rounded, session_of, source_of, tick_of
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner

REAL = {
    "AAPL regular": ("CgRBQVBMFZqZmUMY8PTPovpnKgNOTVMwCDgBRc9iNL9I9PGVBWUAhQvAsAFi2AEE", ("AAPL", 307.2, 1785937395000, 5422202, "regular 2026-08-05")),
    "DKNG regular": ("CgRES05HFa5HxEEYkJu3uYxoKgNOTVMwCDgBRet8lUBIpqS0BmXwKIw/2AEE", ("DKNG", 24.535, 1788377229000, 6719763, "regular 2026-09-02")),
    "AAPL pre": ("CgRBQVBMFUjhmEMY4Jbi68lnKgNOTVMwCDgARTxEgT5lACBFP9gBBA==", ("AAPL", 305.76, None, 0, "pre")),
    "TSLA post": ("CgRUU0xBFYG9y0MYgM6B7JtnKgNOTVMwCDgCRbV+qr1lANStvtgBBA==", ("TSLA", 407.4805, None, 0, "post")),
}


@pytest.fixture(scope="module")
def parse() -> Parse:
    return load_protobuf()


def pricing(**fields: Any) -> bytes:
    from yfinance.pricing_pb2 import PricingData

    return base64.b64encode(PricingData(**fields).SerializeToString())


def enveloped(message: bytes, kind: str = "pricing") -> bytes:
    return json.dumps({"type": kind, "message": message.decode()}).encode()


@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("wrap", [enveloped, lambda message: message])
def test_real_frames(parse: Parse, name: str, wrap: Any) -> None:
    message, (symbol, price, event_time, day_volume, session) = REAL[name]
    frame = read(wrap(message.encode()), parse)
    assert frame is not None
    assert (frame.symbol, frame.price, frame.day_volume, frame.exchange, frame.quote_type) == (symbol, price, day_volume, "NMS", 8)
    assert frame.event_time == event_time or (event_time is None and frame.event_time % 1000 == 0)
    assert (session_of(frame) or "").startswith(session)


def test_the_tick_of_a_regular_frame_leaves_its_size_to_clean(parse: Parse) -> None:
    frame = read(REAL["AAPL regular"][0].encode(), parse)
    assert frame is not None
    assert json.loads(tick_of(frame, "AAPL", "yahoo", 1785937395700)) == {
        "symbol": "AAPL", "event_time": 1785937395000, "price": 307.2, "source": "yahoo", "snapshot": True, "day_volume": 5422202, "exchange": "NMS",
        "session": "regular 2026-08-05", "received_at": 1785937395700,
    }  # fmt: skip


def test_nobody_knows_how_much_was_traded_outside_the_regular_session(parse: Parse) -> None:
    frame = read(REAL["TSLA post"][0].encode(), parse)
    assert frame is not None
    tick = json.loads(tick_of(frame, "TSLA", "yahoo", 0))
    assert tick["size"] == 0
    assert "day_volume" not in tick


@pytest.mark.parametrize(("message", "reason"), [
    (b"not base64 at all!", "invalid_base64"),
    (b'{"type": "pricing", "message": "?"}', "invalid_base64"),
    (b'{"type": "pricing", "mess', "invalid_json"),
    (b'{"type": 5}', "invalid_json"),
    (base64.b64encode(b"\x0a\xff\xff\xff\xff"), "invalid_protobuf"),
    (b"", "no_symbol"),
    (enveloped(b""), "no_symbol"),
])  # fmt: skip
def test_what_is_no_frame_has_a_reason(parse: Parse, message: bytes, reason: str) -> None:
    with pytest.raises(FrameFault) as fault:
        read(message, parse)
    assert fault.value.reason == reason


def test_a_frame_without_price_or_time_is_none(parse: Parse) -> None:
    for fields in ({"id": "A", "time": 1785937395000}, {"id": "A", "price": 5.0}, {"id": "A", "price": float("nan"), "time": 1785937395000}):
        with pytest.raises(FrameFault, match="no_price"):
            read(pricing(**fields), parse)


def test_heartbeats_and_other_types_are_no_prices(parse: Parse) -> None:
    assert read(enveloped(pricing(quote_type=7, time=1785937395000)), parse) is None
    assert read(enveloped(b"ok", "status"), parse) is None
    assert read(b'{"type": "status"}', parse) is None


@pytest.mark.parametrize(("price", "decimals"), [(307.2, 2), (24.535, 2), (407.4805, 2), (0.00002512, 2), (1.08345, 4), (67_123.46, 2), (189.42, 0), (1e10, 2)])
def test_the_decimal_number_behind_a_float32(price: float, decimals: int) -> None:
    assert rounded(struct.unpack("<f", struct.pack("<f", price))[0], decimals) == price


def test_a_price_beyond_the_precision_of_float32_stays_within_its_quantum() -> None:
    sent = struct.unpack("<f", struct.pack("<f", 750_123.45))[0]
    assert sent == 750_123.4375
    assert rounded(sent, 2) == 750_123.44


@given(st.floats(min_value=2.0**-100, max_value=2.0**127, width=32), st.integers(-5, 20))
def test_rounding_never_leaves_the_float32(price: float, decimals: int) -> None:
    near = rounded(price, decimals)
    assert struct.unpack("<f", struct.pack("<f", near))[0] == price


def frame(exchange: str, event_time: int, market_hours: int = 1, quote_type: int = 8) -> Frame:
    return Frame("X", event_time, 1.0, 5, exchange, "", quote_type, market_hours, 0.0, 0.0, 0, 0)


@pytest.mark.parametrize(("exchange", "time", "hours", "session"), [
    ("NMS", "2026-11-30T20:59:59", 1, "regular 2026-11-30"),
    ("NMS", "2026-12-01T00:59:59", 2, "post 2026-11-30"),               # 19:59 in New York
    ("NYQ", "2026-12-01T01:00:00", 4, "overnight 2026-12-01"),          # 20:00 in New York: the next day's
    ("NYQ", "2026-07-01T00:00:00", 4, "overnight 2026-07-01"),          # in summer that is midnight in UTC
    ("NMS", "2026-12-01T09:00:00", 0, "pre 2026-12-01"),
    ("ASX", "2026-11-30T23:30:00", 1, "regular 2026-12-01"),            # the morning in Sydney
    ("ASX", "2026-12-01T04:30:00", 1, "regular 2026-12-01"),            # and its afternoon
    ("CME", "2026-11-30T23:30:00", 1, "regular 2026-12-01"),            # the evening's session is the next day's
    ("JPX", "2026-12-01T05:00:00", 1, "regular 2026-12-01"),
])  # fmt: skip
def test_the_session_of_a_day_volume(exchange: str, time: str, hours: int, session: str) -> None:
    from datetime import datetime

    assert session_of(frame(exchange, int(datetime.fromisoformat(f"{time}+00:00").timestamp() * 1000), hours)) == session


def test_a_market_that_never_closes_has_no_day() -> None:
    assert session_of(frame("CCC", 1_785_937_395_000, quote_type=41)) is None
    assert session_of(frame("CCY", 1_785_937_395_000, quote_type=14)) is None


def test_a_time_that_nobody_can_read_is_left_to_clean() -> None:
    wrong = frame("NMS", 1 << 62)
    assert session_of(wrong) is None
    assert json.loads(tick_of(wrong, "X", "yahoo", 0))["event_time"] == 1 << 62


def test_delayed_exchanges_have_a_source_of_their_own() -> None:
    assert [source_of(exchange) for exchange in ("NMS", "NYQ", "CCC", "LSE", "JPX", "", "l s e", "X" * 40)] == [
        "yahoo", "yahoo", "yahoo", "yahoo.LSE", "yahoo.JPX", "yahoo", "yahoo", "yahoo",
    ]  # fmt: skip


def test_a_state_that_is_sent_again_is_a_duplicate_and_counts_no_share() -> None:
    """As a new worker gets it in answer to its subscription, with or without a gap before it."""
    cleaner = Cleaner(0, 1, lateness_ms=2_500, revise_s=30, log="x")
    begin = 1_785_937_395_000
    frames = [frame("NMS", begin + 1_000 * at)._replace(day_volume=5_000 + 10 * at, price=10.0 + at) for at in range(4)]
    ticks = [tick_of(one, "X", "yahoo", begin + number) for number, one in enumerate([*frames[:3], frames[2], frames[2], frames[3]])]
    ticks[4] = ticks[4][:-1] + b',"gap_from":%d}' % begin
    rejections = cleaner.chunk([RawRecord(offset, begin + 5_000, tick) for offset, tick in enumerate(ticks)])
    assert [(rejection.reason, rejection.offset) for rejection in rejections] == [("duplicate", 3), ("duplicate", 4)]
    clean = cleaner.make_frame()
    assert clean is not None
    assert clean.rows["size"].to_pylist() == [0, 10, 10, 10]


def test_yfinance_is_imported_only_when_a_source_runs() -> None:
    """It costs 0.7 s of CPU and 38 MB."""
    program = "import sys, stockstream.sources.opening; sys.exit('yfinance' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0

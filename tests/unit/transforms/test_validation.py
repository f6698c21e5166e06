"""What `clean` decides: every kind of bad input, the order of judgement, the clock, and that nothing depends on how the log is cut."""

from __future__ import annotations

import base64
import json
import random
from typing import Any

import msgspec
import pytest

from stockstream.broker import MAX_BATCH_BYTES
from stockstream.errors import StateError
from stockstream.transforms import validation
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.validation import Cleaner
from tests.logs import cuts, records_of, shared_model

NOW = 1_700_000_000_000
GOOD = {"symbol": "AAA", "event_time": NOW, "price": 10.5, "size": 3}


def cleaner(**changes: Any) -> Cleaner:
    options: dict[str, Any] = {"lateness_ms": 200, "revise_s": 30, "log": "x"} | changes
    return Cleaner(home_partition("AAA", 8), 8, **options)


def judge(*values: bytes, of: Cleaner | None = None, timestamp: int = NOW) -> tuple[list[tuple[int, int, str]], list[tuple[int, int]]]:
    """(offset, index, reason) of the rejected and (offset, index) of the accepted."""
    core = of or cleaner()
    begin = max(core.expect, 0)
    rejections = core.chunk([RawRecord(begin + i, timestamp, value) for i, value in enumerate(values)])
    frame = core.frame()
    assert frame is not None
    rows = frame.rows.to_pydict()
    return [(r.offset, r.index, r.reason) for r in rejections], list(zip(rows["offset"], rows["index"], strict=True))


def tick(**changes: Any) -> bytes:
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v != "absent"}).encode()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"hello", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"symbol":"AAA"', "invalid_json"),
        (b'{"symbol":"AAA","event_time":1700000000000,"price":1,"size":1} x', "invalid_json"),
        (b'{"symbol":"AAA","event_time":1700000000000,"price":NaN,"size":1}', "invalid_json"),
        (b'{"symbol":"AAA","event_time":1700000000000,"price":Infinity,"size":1}', "invalid_json"),
        (b'{"symbol":"AAA","event_time":1700000000000,"price":1e999,"size":1}', "out_of_range"),
        (b"[" * 100_000, "invalid_shape"),
        (b"5", "invalid_shape"),
        (b'"text"', "invalid_shape"),
        (b"null", "invalid_shape"),
        (b"[]", "invalid_shape"),
        (b"[[]]", "invalid_shape"),
        (b"", "empty_message"),
        (b"{}", "missing_field"),
        (tick(symbol="absent"), "missing_field"),
        (tick(condition="x" * 1_025), "out_of_range"),
        (tick(exchange="x" * 1_000_000), "out_of_range"),
        (tick(currency="x" * 1_025), "out_of_range"),
        (tick(session="x" * 1_025), "out_of_range"),
        (tick(symbol=None), "missing_field"),
        (tick(event_time="absent"), "missing_field"),
        (tick(event_time=None), "missing_field"),
        (tick(price="absent"), "missing_field"),
        (tick(size="absent"), "missing_field"),
        (tick(size=None), "missing_field"),
        (tick(price="10.5"), "invalid_type"),
        (tick(size="3"), "invalid_type"),
        (tick(size=1.5), "invalid_type"),
        (tick(price=True), "invalid_type"),
        (tick(event_time=1.5), "invalid_type"),
        (tick(symbol=7), "invalid_type"),
        (tick(price=0), "out_of_range"),
        (tick(price=-1), "out_of_range"),
        (tick(price=1e300), "out_of_range"),
        (tick(price=1e-300), "out_of_range"),
        (tick(size=-1), "out_of_range"),
        (tick(size=10**30), "out_of_range"),
        (tick(bid=0), "out_of_range"),
        (tick(ask_size=-1), "out_of_range"),
        (tick(seq=10**30), "out_of_range"),
        (tick(day_volume=-1), "out_of_range"),
        (tick(symbol=""), "out_of_range"),
        (tick(symbol="A" * 33), "out_of_range"),
        (tick(symbol="A\nB"), "out_of_range"),
        (tick(source=""), "out_of_range"),
        (tick(event_time=-5), "out_of_range"),
        (tick(event_time=NOW * 1000), "out_of_range"),
        (tick(price=None, size=5), "size_without_price"),
        (tick(event_time=NOW + 2001), "future"),
        (tick(symbol="AAC"), "wrong_partition"),
        (json.dumps({"punctuate": NOW}).encode(), "out_of_range"),
        (json.dumps({"punctuate": NOW // 1000 + 3}).encode(), "future"),
        (json.dumps({"punctuate": "x"}).encode(), "invalid_type"),
        (json.dumps({"punctuate": None}).encode(), "missing_field"),
    ],
)
def test_bad_input_is_rejected_with_its_reason_and_its_neighbours_go_on(value: bytes, reason: str) -> None:
    assert home_partition("AAC", 8) != home_partition("AAA", 8)
    rejected, accepted = judge(tick(), value, tick(price=11))
    assert rejected == [(1, 0, reason)]
    assert accepted == [(0, 0), (2, 0)]


def test_a_null_message_is_rejected() -> None:
    core = cleaner()
    rejections = core.chunk([RawRecord(0, NOW, None)])
    assert [(r.reason, r.value, r.value_base64) for r in rejections] == [("empty_message", None, None)]


def test_the_original_comes_along_also_where_it_is_no_text() -> None:
    core = cleaner()
    rejections = core.chunk([RawRecord(0, NOW, b"\xff"), RawRecord(1, NOW, b"no")])
    assert [(r.value, r.value_base64) for r in rejections] == [(None, "/w=="), ("no", None)]


@pytest.mark.parametrize(
    "poison", [b"\x01" * 1_000_000, b"\xff" * 1_000_000, b'["' + b'"' * 1_000_000, "é".encode() * 500_000, tick(condition="x" * 1_000_000)]
)
def test_the_rejection_of_a_record_as_large_as_kafka_takes_fits_into_a_message(poison: bytes) -> None:
    """Else it could never be told, and the worker would leave at it again and again."""
    [rejection] = cleaner().chunk([RawRecord(0, NOW, poison)])
    assert len(msgspec.json.encode(rejection)) < MAX_BATCH_BYTES
    assert rejection.detail.endswith(f"(the first {validation.MAX_REJECTED_BYTES} of {len(poison)} bytes follow)")
    kept = base64.b64decode(rejection.value_base64) if rejection.value_base64 is not None else (rejection.value or "").encode()
    assert poison.startswith(kept) and len(kept) >= validation.MAX_REJECTED_BYTES - 3


def test_the_snapshot_of_thousands_of_symbols_fits_into_a_message_and_is_restored() -> None:
    core = cleaner()
    symbols = [symbol for symbol in (f"SYM{number:06d}.LSE" for number in range(64_000)) if home_partition(symbol, 8) == core.partition][:6_000]
    changes = {"snapshot": True, "exchange": "XLON", "currency": "GBP", "session": "regular", "bid": 1.0, "ask": 1.1}
    core.chunk([RawRecord(offset, NOW, tick(symbol=symbol, day_volume=1_000 + offset, **changes)) for offset, symbol in enumerate(symbols)])
    core.frame()
    data = core.snapshot()
    assert core.accepted == len(symbols) > 5_000 and len(data) < MAX_BATCH_BYTES
    again = Cleaner.restore(core.partition, 8, data, lateness_ms=200, revise_s=30)
    assert (again.expect, again.snapshot()) == (core.expect, data)


def test_long_texts_are_judged_alike_whether_the_symbol_is_known_or_not() -> None:
    core = cleaner()
    fits, too_long = tick(condition="x" * 1_024), tick(condition="x" * 1_025)
    for at in (0, 3):
        rejected, accepted = judge(fits, too_long, tick(), of=core)
        assert (rejected, accepted) == ([(at + 1, 0, "out_of_range")], [(at, 0), (at + 2, 0)])


@pytest.mark.parametrize("bad", [b'{"symbol":1}', b"5", b'"x"', tick(price=-2), tick(price="1"), tick(size=5, price=None)])
def test_a_frame_with_one_bad_tick_loses_only_that(bad: bytes) -> None:
    core = cleaner()
    rejections = core.chunk([RawRecord(0, NOW, b"[" + b",".join([tick(), bad, tick(price=12)]) + b"]")])
    frame = core.frame()
    assert frame is not None
    assert [(r.offset, r.index, r.value) for r in rejections] == [(0, 1, bad.decode())]
    assert frame.rows["index"].to_pylist() == [0, 2]


def test_two_broken_records_never_make_a_good_one() -> None:
    rejected, accepted = judge(b'{"x":[{}', b'{}]},{"symbol":"AAA","event_time":1700000000000,"price":1,"size":1}')
    assert [offset for offset, _, _ in rejected] == [0, 1]
    assert accepted == []


def test_duplicates_are_told_by_seq_and_snapshots_by_content_nothing_else() -> None:
    snapshots = tick(snapshot=True), tick(snapshot=True, received_at=9), tick(snapshot=True, price=9)
    rejected, _ = judge(tick(), tick(), tick(seq=5), tick(seq=5), tick(seq=4), tick(seq=6), *snapshots)
    assert rejected == [(3, 0, "duplicate"), (4, 0, "duplicate"), (7, 0, "duplicate")]


def test_a_symbol_belongs_to_one_source_while_that_is_heard() -> None:
    later = NOW + 301_000
    core = cleaner()
    assert judge(tick(source="a"), tick(source="b"), tick(source="b", price=None, size=0), of=core)[0] == [(1, 0, "other_source"), (2, 0, "other_source")]
    assert judge(tick(source="b", event_time=later - 1000), tick(source="b", event_time=later), of=core, timestamp=later)[0] == [(3, 0, "other_source")]


def test_late_ticks_revise_up_to_revise_s_back_and_are_rejected_beyond() -> None:
    at = (NOW // 1000 + 100) * 1000 + 1200                              # closes the second before
    rejected, accepted = judge(tick(event_time=at), tick(event_time=at - 1200 - 29_000), tick(event_time=at - 1200 - 31_000), timestamp=at)
    assert rejected == [(2, 0, "late")]
    assert accepted == [(0, 0), (1, 0)]


@pytest.mark.parametrize(("session", "volume", "expected"), [("regular", 700, [0, 100, 600]), ("regular", 50, [0, 100, 0]), ("post", 50, [0, 100, 50])])
def test_size_follows_from_the_days_volume(session: str, volume: int, expected: list[int]) -> None:
    core = cleaner()
    for day_volume, at, kind in ((0, 0, "regular"), (100, 1, "regular"), (volume, 2, session)):
        core.chunk([RawRecord(at, NOW, tick(size="absent", day_volume=day_volume, session=kind, event_time=NOW + at))])
    frame = core.frame()
    assert frame is not None
    assert frame.rows["size"].to_pylist() == expected


def test_state_of_other_settings_is_refused_in_words() -> None:
    core = cleaner()
    core.chunk([RawRecord(0, NOW, tick())])
    core.frame()
    with pytest.raises(StateError, match=r"STOCKSTREAM_LATENESS_MS is 300 .* another STOCKSTREAM_TOPIC_PREFIX"):
        Cleaner.restore(core.partition, 8, core.snapshot(), lateness_ms=300, revise_s=30)


def test_a_snapshot_with_a_frame_waiting_is_refused() -> None:
    core = cleaner()
    core.chunk([RawRecord(0, NOW, tick())])
    with pytest.raises(StateError):
        core.snapshot()


@pytest.mark.parametrize("seed", range(60))
def test_verdicts_and_closings_are_the_models_however_the_log_is_cut(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    recovery, windows = shared_model("recovery_model"), shared_model("windows_model")
    monkeypatch.setattr(validation, "home_partition", lambda symbol, partitions: 0)
    rng = random.Random(seed)
    log = recovery.random_log(rng, rng.randrange(20, 160))
    expected = list(windows.closings(log))
    core = Cleaner(0, 8, lateness_ms=200, revise_s=30, log="x")
    closings, rejections = [], []
    for some in cuts(rng, records_of(log)):
        rejections += core.chunk(some)
        frame = core.frame()
        assert frame is not None
        closings += [(c.offset, c.source, c.after, c.second) for c in frame.closings]
        if rng.random() < 0.3:
            core = Cleaner.restore(0, 8, core.snapshot(), lateness_ms=200, revise_s=30)
    assert closings == [(c["offset"], c["source"], c["after"], c["second"]) for c in expected]
    assert [(r.offset, r.index, r.reason) for r in rejections] == [place for c in expected for place in c["rejected"]]


@pytest.mark.parametrize("seed", range(20))
def test_a_tick_and_a_frame_of_that_one_tick_are_judged_alike(seed: int) -> None:
    """Single ticks take a shorter way through the code than ticks of frames."""
    rng = random.Random(seed)
    values = []
    now = NOW
    for number in range(400):
        now += rng.choice((0, 50, 400, 1_500, 400_000 if rng.random() < 0.02 else 90))
        changes: dict[str, Any] = {
            "symbol": rng.choice(("AAA", "AAA", "AAB")), "event_time": now - rng.choice((0, 0, 0, 5_000, 40_000, -1_000, -3_000)),
            "source": rng.choice(("a", "a", "a", "b")), "price": rng.choice((1.0, 2.5, 2.5, None, 0, 1e12)), "size": rng.choice((1, 5, 0, 0.0, 1.5, 10**12)),
            "bid": rng.choice((None, None, 1.0, 0)), "ask_size": rng.choice((None, None, 3, -1)), "seq": rng.choice((None, number, number, number - 3)),
            "snapshot": rng.random() < 0.1, "day_volume": rng.choice((None, None, None, number * 10)),
        }  # fmt: skip
        values.append((now, tick(**{k: v for k, v in changes.items() if rng.random() < 0.9 or k in ("symbol", "event_time")})))
    alone, framed = cleaner(), cleaner()
    single = alone.chunk([RawRecord(i, at, value) for i, (at, value) in enumerate(values)])
    in_frames = framed.chunk([RawRecord(i, at, b"[" + value + b"]") for i, (at, value) in enumerate(values)])
    assert [(r.offset, r.reason) for r in single] == [(r.offset, r.reason) for r in in_frames]
    one, other = alone.frame(), framed.frame()
    assert one is not None and other is not None
    assert one.rows == other.rows and one.closings == other.closings
    alone.last_record = framed.last_record                              # the bytes differ by the brackets
    assert alone.snapshot() == framed.snapshot()


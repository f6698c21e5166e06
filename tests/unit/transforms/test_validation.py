"""What `clean` decides: every kind of bad input, the order of judgement, the clock, and that nothing depends on how the log is cut."""

from __future__ import annotations

import base64
import json
import random
from typing import Any
from unicodedata import normalize

import msgspec
import pytest

from stockstream.errors import StateError
from stockstream.kafka.client import MAX_BATCH_BYTES
from stockstream.records import TEXTS, TICKS_SCHEMA, Tick
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import cleaner as validation
from stockstream.transforms.cleaning import columns, judging, many
from stockstream.transforms.cleaning.cleaner import MANY, Cleaner
from stockstream.transforms.cleaning.lags import SourceLags
from stockstream.transforms.cleaning.limits import MAX_ARRAY, MAX_INT, MAX_TIME, MIN_TIME
from stockstream.transforms.cleaning.rejections import MAX_REJECTED_BYTES
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.timing import FORGET_MS
from tests.logs import cuts, records_of
from tests.model import recovery_model, windows_model

NOW = 1_700_000_000_000
GOOD = {"symbol": "AAA", "event_time": NOW, "price": 10.5, "size": 3}
COMPOSED = next(f"{number}\u00e9" for number in range(100) if home_partition(f"{number}\u00e9", 8) == home_partition("AAA", 8))
DECOMPOSED = normalize("NFD", COMPOSED)
HOME = ["AAA", *(symbol for symbol in (f"B{number}" for number in range(40)) if home_partition(symbol, 8) == home_partition("AAA", 8))][:4]


def cleaner(**changes: Any) -> Cleaner:
    options: dict[str, Any] = {"lateness_ms": 200, "revise_s": 30, "log": "x"} | changes
    return Cleaner(home_partition("AAA", 8), 8, **options)


def restored(records: list[tuple[bytes, bytes]] | dict[bytes, bytes], *, lateness_ms: int = 200) -> Cleaner:
    return Cleaner.restore(home_partition("AAA", 8), 8, dict(records), lateness_ms=lateness_ms, revise_s=30)


def judge(*values: bytes, of: Cleaner | None = None, timestamp: int = NOW) -> tuple[list[tuple[int, int, str]], list[tuple[int, int]]]:
    """(offset, index, reason) of the rejected and (offset, index) of the accepted."""
    core = of or cleaner()
    begin = max(core.expect, 0)
    rejections = core.chunk([RawRecord(begin + i, timestamp, value) for i, value in enumerate(values)])
    frame = core.make_frame()
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
        (tick(condition="x" * 65), "out_of_range"),
        (tick(exchange="x" * 1_000_000), "out_of_range"),
        (tick(currency="x" * 65), "out_of_range"),
        (tick(session="x" * 65), "out_of_range"),
        (tick(symbol=None), "missing_field"),
        (tick(event_time="absent"), "missing_field"),
        (tick(event_time=None), "missing_field"),
        (tick(price="absent"), "missing_field"),
        (tick(size="absent"), "missing_field"),
        (tick(size=None), "missing_field"),
        (tick(price="10.5"), "invalid_type"),
        (tick(size="3"), "invalid_type"),
        (tick(price=True), "invalid_type"),
        (tick(event_time=1.5), "invalid_type"),
        (tick(symbol=7), "invalid_type"),
        (tick(price=0), "out_of_range"),
        (tick(price=-1), "out_of_range"),
        (tick(price=1e300), "out_of_range"),
        (tick(price=1e-300), "out_of_range"),
        (tick(size=-2), "out_of_range"),
        (tick(size=10**30), "out_of_range"),
        (tick(bid=-2), "out_of_range"),
        (tick(ask=1e-11), "out_of_range"),
        (tick(ask_size=-2), "out_of_range"),
        (tick(seq=10**30), "out_of_range"),
        (tick(day_volume=-2), "out_of_range"),
        (tick(epoch=-1), "out_of_range"),
        (tick(gap_from=NOW // 1000), "out_of_range"),
        (tick(gap_from=MAX_TIME), "out_of_range"),
        (tick(gap_from=NOW + 0.5), "invalid_type"),
        (tick(interval_s=-1), "out_of_range"),
        (tick(interval_s=367 * 86_400), "out_of_range"),
        (tick(interval_s="60"), "invalid_type"),
        (tick(epoch=1.5), "invalid_type"),
        (tick(symbol=""), "out_of_range"),
        (tick(symbol="A" * 33), "out_of_range"),
        (tick(symbol="A\nB"), "out_of_range"),
        (tick(source=""), "out_of_range"),
        (tick(event_time=-5), "out_of_range"),
        (tick(event_time=NOW // 1000), "out_of_range"),
        (tick(event_time=NOW * 1000), "out_of_range"),
        (tick(event_time=MIN_TIME - 1), "out_of_range"),
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
    assert rejection.detail.endswith(f"(the first {MAX_REJECTED_BYTES} of {len(poison)} bytes follow)")
    kept = base64.b64decode(rejection.value_base64) if rejection.value_base64 is not None else (rejection.value or "").encode()
    assert poison.startswith(kept) and len(kept) >= MAX_REJECTED_BYTES - 3


def test_the_snapshot_of_thousands_of_symbols_fits_into_a_message_and_is_restored() -> None:
    core = cleaner()
    symbols = [symbol for symbol in (f"SYM{number:06d}.LSE" for number in range(64_000)) if home_partition(symbol, 8) == core.partition][:6_000]
    changes = {"snapshot": True, "exchange": "XLON", "currency": "GBP", "session": "regular", "bid": 1.0, "ask": 1.1}
    core.chunk([RawRecord(offset, NOW, tick(symbol=symbol, day_volume=1_000 + offset, **changes)) for offset, symbol in enumerate(symbols)])
    core.make_frame()
    data = core.snapshot()
    assert core.accepted == len(symbols) > 5_000 and len(data) < MAX_BATCH_BYTES
    again = restored(core.records(3))
    assert (again.expect, again.snapshot()) == (core.expect, data)


def test_long_texts_are_judged_alike_whether_the_symbol_is_known_or_not() -> None:
    core = cleaner()
    fits, too_long = tick(condition="x" * 64), tick(condition="x" * 65)
    for at in (0, 3):
        rejected, accepted = judge(fits, too_long, tick(), of=core)
        assert (rejected, accepted) == ([(at + 1, 0, "out_of_range")], [(at, 0), (at + 2, 0)])


NO_UTF8 = [
    tick(exchange="B?rse").replace(b"?", b"\xf6"), tick(symbol="A?").replace(b"?", b"\xf6"), tick(source="?").replace(b"?", b"\xf0\x9f\x98"),
    tick(condition="?").replace(b"?", b"\xff"), tick(session="?").replace(b"?", b"\xc3"),
]  # fmt: skip


@pytest.mark.parametrize("several", [1, 2, 60])
@pytest.mark.parametrize("bad", [*NO_UTF8, b'{"punctuate":%d,"source":"B\xf6rse"}' % (NOW // 1000 - 9)])
def test_a_text_that_is_not_utf8_is_rejected_and_its_neighbours_go_on(bad: bytes, several: int) -> None:
    """msgspec raises no error of its own for it: the worker would leave, and at the same record again and again."""
    core = cleaner()
    judge(tick(), b'{"punctuate":%d}' % (NOW // 1000 - 9), of=core)
    rejected, accepted = judge(*[tick()] * several, bad, tick(), of=core)
    assert rejected == [(several + 2, 0, "invalid_json")] and len(accepted) == several + 1
    assert [(r.value, r.value_base64) for r in core.chunk([RawRecord(core.expect, NOW, bad)])] == [(None, base64.b64encode(bad).decode())]


@pytest.mark.parametrize("bad", NO_UTF8)
def test_a_frame_with_a_text_that_is_not_utf8_loses_only_that_tick(bad: bytes) -> None:
    core = cleaner()
    frame = b"[" + b",".join([tick(), bad, tick(price=12)]) + b"]"
    assert judge(tick(), frame, of=core) == ([(1, 1, "invalid_json")], [(0, 0), (1, 0), (1, 2)])


def test_a_field_that_nobody_reads_may_hold_anything() -> None:
    assert judge(tick(), tick(note="?").replace(b"?", b"\xf6")) == ([], [(0, 0), (1, 0)])


@pytest.mark.parametrize("bad", [b'{"symbol":1}', b"5", b'"x"', tick(price=-2), tick(price="1"), tick(size=5, price=None)])
def test_a_frame_with_one_bad_tick_loses_only_that(bad: bytes) -> None:
    core = cleaner()
    rejections = core.chunk([RawRecord(0, NOW, b"[" + b",".join([tick(), bad, tick(price=12)]) + b"]")])
    frame = core.make_frame()
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


def test_state_of_other_settings_is_refused_in_words() -> None:
    core = cleaner()
    core.chunk([RawRecord(0, NOW, tick())])
    core.make_frame()
    with pytest.raises(StateError, match=r"STOCKSTREAM_REVISE_S is 31 .* another STOCKSTREAM_TOPIC_PREFIX"):
        Cleaner.restore(home_partition("AAA", 8), 8, dict(core.records(0)), lateness_ms=200, revise_s=31)


def test_a_snapshot_with_a_frame_waiting_is_refused() -> None:
    core = cleaner()
    core.chunk([RawRecord(0, NOW, tick())])
    with pytest.raises(StateError):
        core.snapshot()


@pytest.mark.parametrize("seed", range(60))
def test_verdicts_and_closings_are_the_models_however_the_log_is_cut(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)
    rng = random.Random(seed)
    log = recovery_model.random_log(rng, rng.randrange(20, 160))
    expected = list(windows_model.closings(log))
    core = Cleaner(0, 8, lateness_ms=200, revise_s=30, log="x")
    closings, rejections = [], []
    for some in cuts(rng, records_of(log)):
        rejections += core.chunk(some)
        frame = core.make_frame()
        assert frame is not None
        closings += [(c.offset, c.source, c.after, c.second) for c in frame.closings]
        if rng.random() < 0.3:
            core = Cleaner.restore(0, 8, dict(core.records(0)), lateness_ms=200, revise_s=30)
    assert closings == [(c["offset"], c["source"], c["after"], c["second"]) for c in expected]
    assert [(r.offset, r.index, r.reason) for r in rejections] == [place for c in expected for place in c["rejected"]]


def random_ticks(rng: random.Random, count: int) -> list[tuple[int, bytes]]:
    """(Kafka's time, tick): most of them plain, the others wrong, late, derived or told again in every way. Source `a` numbers its ticks, `b` does not."""
    values = []
    now = NOW
    for number in range(count):
        now += rng.choice((0, 50, 400, 1_500))
        if rng.random() < 0.02:
            now += rng.choice((60_000, 61_000, 400_000, 9 * 3_600_000, FORGET_MS + 1))
        odd: dict[str, tuple[Any, ...]] = {
            "symbol": ("AAB", HOME[0]), "source": ("a", "b"), "event_time": (now - 5_000, now - 40_000, now + 1_000, now + 3_000),
            "price": (2.5, None, 0, 1e12), "size": (5, 0, 0.0, 1.5, 0.123456789, 1e-9, 10**12, -1, 2**31 - 1, 2.0**32 - 1),
            "bid": (1.0, 0, -1, 2147483647, 1e12),
            "ask": (1.0, 0, -1, 1e300, 1e12), "bid_size": (5.5, -1, 4294967295, 1e13), "ask_size": (5.5, -1, 0, 1e13),
            "seq": (number, number - 3, number - 1, -1), "snapshot": (True,),
            "day_volume": (number * 10, number * 10.125, number * 5, 10**9, 12, 0, -1, 2**32 - 1, -2), "epoch": (0, 1, number // 100, -1),
            **dict.fromkeys(TEXTS, ("N", "x" * 65)), "trade_id": (f"T{number}", f"T{number // 9}", "x" * 65),
            "currency": ("GBp", "GBp", "GBP", "", "x" * 65),
            "gap_from": (now - 9_000, now, now + 1, MIN_TIME, MIN_TIME - 1, MAX_TIME, now // 1000),
            "interval_s": (0, 1, 2, 2.0005, 60, 367 * 86_400, -1),
        }  # fmt: skip
        symbol = rng.choice(HOME)
        source = "a" if symbol < HOME[-1] else "b"
        changes: dict[str, Any] = {"symbol": symbol, "source": source, "event_time": now} | ({"seq": number} if source == "a" else {})
        odd["event_time"] += (now // 1000, now * 1000, MIN_TIME)
        odd["symbol"] += (DECOMPOSED,)
        names = rng.sample(list(odd), rng.choice((0, 0, 0, 1, 2)))
        numbering = ("seq", "snapshot", "day_volume", "epoch")
        changes |= {name: rng.choice(odd[name]) for name in names if source == "a" or name not in numbering or rng.random() < 0.05}
        values.append((rng.choice((-1, 0)) if rng.random() < 0.02 else now, tick(**changes)))
    return values


@pytest.mark.parametrize("seed", range(20))
def test_a_tick_and_a_frame_of_that_one_tick_are_judged_alike(seed: int) -> None:
    values = random_ticks(random.Random(seed), 400)
    alone, framed = cleaner(), cleaner()
    single = alone.chunk([RawRecord(i, at, value) for i, (at, value) in enumerate(values)])
    in_frames = framed.chunk([RawRecord(i, at, b"[" + value + b"]") for i, (at, value) in enumerate(values)])
    assert [(r.offset, r.reason) for r in single] == [(r.offset, r.reason) for r in in_frames]
    one, other = alone.make_frame(), framed.make_frame()
    assert one is not None and other is not None
    assert one.rows == other.rows and one.closings == other.closings
    alone.last_record = framed.last_record                              # the bytes differ by the brackets
    assert alone.snapshot() == framed.snapshot()



class Thorough(Cleaner):
    """Takes the long way with every tick."""

    def _accept_plain(self, tick: Tick, ts: int) -> None:
        return None

    def _accept_many(self, records: Any) -> int:
        return 0


class AtOnce(Cleaner):
    """Counts the records that were accepted as columns."""

    at_once = 0

    depth = 0

    def _accept_many(self, records: Any) -> int:
        before = self.snapshot() if self.expect == self.frame_from else b""
        self.depth += 1
        taken = super()._accept_many(records)
        self.depth -= 1
        assert taken or not before or self.snapshot() == before, "what is left to the other way is left unchanged"
        self.at_once += taken if not self.depth else 0
        return taken


def judged_alike(chunks: list[list[RawRecord]], kind: type[Cleaner] = Cleaner) -> int:
    """Sends the log along both ways; returns how many ticks were accepted."""
    short, long = judged(chunks, kind)
    assert short.accepted == long.accepted
    return short.accepted


def counted(lags: SourceLags) -> tuple[Any, ...]:
    """All but a symbol's ticks, which count from about the first that is late."""
    late = {symbol: found[0] for symbol, found in lags.symbols.items()}
    return lags.ticks, lags.late, lags.rejected, lags.lateness_ms, lags.lag.tolist(), lags.needed.tolist(), late


def judged(chunks: list[list[RawRecord]], kind: type[Cleaner]) -> list[Cleaner]:
    short, long = found = [kind(home_partition("AAA", 8), 8, lateness_ms=200, revise_s=30, log="x") for kind in (kind, Thorough)]
    for records in chunks:
        assert short.chunk(records) == long.chunk(records)
        assert short.idle() == long.idle()
        mine, theirs = (core.memory.take_lags() for core in (short, long))
        assert {name: counted(lags) for name, lags in mine.items()} == {name: counted(lags) for name, lags in theirs.items()}
        if len(records) % 2:
            one, other = short.make_frame(), long.make_frame()
            assert one is not None and one == other
            one.rows.validate(full=True)
            assert short.snapshot() == long.snapshot()
    return found


@pytest.mark.parametrize(
    ("log", "accepted"),
    [
        ([(NOW, tick()), (NOW, b'{"punctuate":%d}' % (NOW // 1000)), (NOW, tick())], 2),
        ([(NOW, tick()), (NOW, b'{"punctuate":%d}' % (NOW // 1000)), (NOW + FORGET_MS, tick(event_time=NOW + FORGET_MS))], 2),
        ([(NOW, tick()), (NOW, b'{"punctuate":%d}' % (NOW // 1000)), (NOW + FORGET_MS + 1, tick(event_time=NOW + FORGET_MS))], 2),
        ([(NOW, tick(event_time=MIN_TIME + step)) for step in (5, -1, 0, -MIN_TIME)], 2),
        ([(ts, tick(event_time=NOW + 5_000)) for ts in (-1, 0, 1, NOW, NOW + 3_000)], 3),
        ([(ts, tick(event_time=NOW + number)) for number, ts in enumerate((-1, 0, -1, NOW, 0))], 5),
        ([(NOW, tick(symbol=COMPOSED)), (NOW, tick(symbol=DECOMPOSED))], 2),
        ([(NOW, tick(bid=0, ask=-1)), (NOW, tick(bid=-1, ask=2147483647)), (NOW, tick(bid=-0.5))], 2),
        ([(MAX_TIME, tick(event_time=MAX_TIME - 1)), (MAX_TIME, tick(event_time=MAX_TIME))], 1),
        ([(NOW, tick(seq=MAX_INT)), (NOW, tick(seq=MAX_INT + 1))], 1),
    ],
    ids=[
        "revision", "heard within a day", "forgotten", "before 1990", "times of records", "no times of records", "composed", "placeholders", "in 2109",
        "last number",
    ],
)
def test_the_short_way_judges_the_edges_as_the_long_one(log: list[tuple[int, bytes]], accepted: int) -> None:
    assert judged_alike([[RawRecord(offset, ts, value)] for offset, (ts, value) in enumerate(log)]) == accepted


@pytest.mark.parametrize("seed", range(60))
def test_the_short_way_judges_as_the_long_one(seed: int) -> None:
    """Random mixtures of ticks, frames, punctuations and what is none of them, cut at random."""
    rng = random.Random(seed)
    ticks = random_ticks(rng, 500)
    records: list[RawRecord] = []
    while ticks:
        some, ticks = ticks[: (count := rng.choice((1, 1, 1, 2, 9)))], ticks[count:]
        now = max(at for at, _ in some)
        others = [b'{"symbol":1}', b"[]", b"no", json.dumps({"punctuate": now // 1000 - 2, "source": rng.choice("ab")}).encode()]
        values = [value for _, value in some]
        if rng.random() < 0.03:
            values.append(b'{"symbol":1}')
        value = rng.choice(others) if rng.random() < 0.05 else values[0] if len(values) == 1 else b"[" + b",".join(values) + b"]"
        records.append(RawRecord(len(records) * 2, now, value))
    assert judged_alike(cuts(rng, records, 40)) > 200


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "MANY", 2)


def mostly_plain(rng: random.Random, count: int) -> list[tuple[int, bytes]]:
    """(Kafka's time, tick): several sources, numbered or not, quotes, ticks out of order, now and then late, ahead, told again or of another source."""
    quotes, ids, epochs, about_the_feed = (rng.random() < share for share in (0.5, 0.3, 0.2, 0.3))
    currencies, currency = rng.random() < 0.5, "GBp"
    values, now, numbers, stamped = [], NOW, rng.random() < 0.5, rng.random() < 0.3
    untimed = rng.choice((0, 100))
    for number in range(count):
        now += rng.choice((0, 3, 40, 400)) if rng.random() < 0.99 else rng.choice((60_000, 61_000, 120_000, 400_000))
        symbol = rng.choice((*HOME, COMPOSED, DECOMPOSED)[: rng.choice((2, 6))])
        tick_: dict[str, Any] = {"symbol": symbol, "source": "a" if symbol < HOME[-1] else "b", "event_time": now - rng.choice((0, 0, 5, 300))}
        tick_ |= {"seq": number * 2} if numbers else {}
        tick_ |= {"trade_id": f"T{number if rng.random() < 0.99 else number - 9}"} if ids else {}
        tick_ |= {"epoch": number // 300} if epochs and numbers else {}
        if quotes and rng.random() < 0.5:
            tick_ |= {"bid": rng.choice((10.0, 0, -1)), "ask": rng.choice((10.5, 2147483647, 1.7976931348623157e308)), "bid_size": rng.choice((2, -1))}
            tick_ |= {"exchange": "N", "price": rng.choice((None, 10.2)), "received_at": now, "unknown": [1]}
            tick_["size"] = 0 if tick_["price"] is None else rng.choice((4, 0.0387, 1.123456785))
        if about_the_feed and rng.random() < 0.1:
            tick_ |= rng.choice(({"gap_from": now - rng.choice((0, 30_000))}, {"interval_s": rng.choice((1, 2, 60))}, {"gap_from": NOW, "interval_s": 60.5}))
        if currencies and rng.random() < 0.7:
            currency = rng.choice(("GBp", "GBP", "EUR")) if rng.random() < 0.01 else currency
            tick_["currency"] = rng.choice((currency, currency, ""))
        if rng.random() < 0.01:
            odd = [("event_time", now - 60_000), ("event_time", now + 5_000), ("source", "b"), ("price", -1), ("size", 2.0), ("size", 1e-12), ("day_volume", 9)]
            odd += [("bid", -2), ("ask_size", 1e13), ("event_time", now // 1000)]
            odd += [("gap_from", 5), ("interval_s", -1), ("size", -1), ("size", 2**31 - 1), ("seq", number * 2 - 2), ("epoch", 0), ("trade_id", "T1")]
            odd += [("snapshot", True), ("seq", number * 2 - 6), ("condition", "x" * 65), ("symbol", "AAB"), ("price", None)]
            tick_ |= dict([rng.choice(odd)])
        values.append((now if not stamped or (number > untimed and number % 50) else rng.choice((-1, 0)), tick(**tick_)))
    return values


@pytest.mark.slow
@pytest.mark.usefixtures("at_once")
def test_many_at_once_are_judged_as_one_after_the_other() -> None:
    """Random mixtures, cut at random: as single ticks, as frames, and with what is neither among them."""
    taken: list[float] = []
    for seed in range(80):
        _judge_a_mixture(random.Random(seed), taken)
    assert sum(taken) / len(taken) > 0.3 and min(taken) < 0.1, "both ways are gone"


class OneByOne(Cleaner):
    """Counts the records that were judged by themselves."""

    one_by_one = 0

    def _judge_one_by_one(self, records: Any, rejections: Any) -> None:
        self.one_by_one += len(records)
        super()._judge_one_by_one(records, rejections)


ODD = {
    "no tick": b'{"punctuate":%d}' % (NOW // 1000 - 40),
    "not JSON": b"no",
    "with a quote": tick(event_time=NOW + 1_300, bid=1.0),
    "late": tick(event_time=NOW - 60_000),
    "ahead": tick(event_time=NOW + 60_000),
    "new symbol": tick(symbol=HOME[-1]),
    "new source": tick(symbol=HOME[-1], source="new"),
    "other source": tick(source="b"),
    "number": tick(seq=1),
    "first currency": tick(event_time=NOW + 1_300, currency="GBp"),
}
"""What cannot be taken with many plain ticks."""


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
@pytest.mark.parametrize("places", [[0], [80], [199], [50, 51], [60, 130]], ids=str)
def test_odd_records_among_many_are_judged_by_themselves(odd: bytes, places: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Those before and behind them are still judged as columns."""
    monkeypatch.setattr(validation, "MANY", 50)
    core, other = OneByOne(home_partition("AAA", 8), 8, lateness_ms=200, revise_s=30, log="x"), cleaner()
    plain = [tick(event_time=NOW + 1_300 + number) for number in range(200)]
    values = [*plain[:50], *plain, *(odd if number in places else value for number, value in enumerate(plain))]
    records = [RawRecord(number, NOW + 2_000, value) for number, value in enumerate(values)]
    for some in (records[:50], records[50:-200], records[-200:]):
        core.one_by_one = 0
        assert core.chunk(some) == [rejection for record in some for rejection in other.chunk([record])]
    assert core.make_frame() == other.make_frame() and core.snapshot() == other.snapshot()
    if 80 in places:
        assert core.one_by_one == {"number": 120, "with a quote": 0}.get(next(name for name in ODD if ODD[name] == odd), 1), (
            "where some are numbered, those that are not are judged by themselves"
        )


@pytest.mark.usefixtures("at_once")
def test_many_with_unknown_fields_go_at_once() -> None:
    core = AtOnce(home_partition("AAA", 8), 8, lateness_ms=200, revise_s=30, log="x")
    for begin in range(0, 300, 100):
        core.chunk([RawRecord(begin + number, NOW + 2_000, tick(event_time=NOW + 1_300 + number, unknown=1)) for number in range(100)])
    assert core.accepted == 300 and core.at_once >= 200


def _judge_a_mixture(rng: random.Random, taken: list[float]) -> None:
    ticks = mostly_plain(rng, 700)
    framed = rng.random()
    records: list[RawRecord] = []
    while ticks:
        count = 1 if rng.random() > framed else rng.choice((2, 9))
        some, ticks = ticks[:count], ticks[count:]
        value = some[0][1] if count == 1 else b"[" + b",".join(value for _, value in some) + b"]"
        if rng.random() < 0.01:
            value = rng.choice([b"", b"no", b"[]", value + b"\n", value.replace(b",", b",\n"), b'{"punctuate":%d,"source":"a"}' % (some[-1][0] // 1000 - 1)])
        records.append(RawRecord(len(records) * 2, some[-1][0], value))
    short, long = judged(cuts(rng, records, 60), AtOnce)
    assert short.accepted == long.accepted > 300
    taken.append(short.at_once / len(records))  # type: ignore[attr-defined]


@pytest.mark.usefixtures("at_once")
def test_many_at_once_keep_the_edges_of_what_is_numbered_late_and_heard_within_a_day() -> None:
    later = NOW + FORGET_MS
    chunks = [
        [(NOW, tick(source="a", seq=1)), (NOW, tick(source="a", seq=2)), (NOW, b'{"punctuate":%d,"source":"a"}' % (NOW // 1000))],
        [(NOW, tick(source="a", seq=3)), (NOW, tick(source="a", seq=4))],
        [(NOW, tick(source="a", seq=5)), (NOW, tick(source="a", seq=5))],
        [(NOW, tick(source="a", seq=6)), (NOW, tick(source="a"))],
        [(NOW, tick(source="a")), (NOW, tick(source="a"))],
        [(NOW + 900, tick(source="a", seq=7, event_time=NOW + 2_900)), (NOW, tick(source="a", seq=8, event_time=NOW + 2_001))],
        [(NOW + 1_500, tick(source="a", seq=9, event_time=NOW + 1_500)), (NOW + 1_500, tick(source="a", seq=10, event_time=NOW - 29_900))],
        [(later, tick(source="a", seq=11, event_time=later)), (later, tick(source="a", seq=MAX_INT, event_time=later))],
        [(later, tick(source="a", seq=MAX_INT + 1, event_time=later)), (later, tick(source="a", seq=MAX_INT, event_time=later))],
        [(later + FORGET_MS + 1_501, tick(source="a", seq=1, event_time=later + FORGET_MS)) for _ in range(2)],
    ]
    offsets = iter(range(100))
    judged_alike([[RawRecord(next(offsets), ts, value) for ts, value in chunk] for chunk in chunks], AtOnce)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    "broken",
    [
        (b'{"symbol":"AAA","event_time":1700000000000', b'"price":1,"size":1}'),
        (b'{"symbol":"AAA","event_time":1700000000000,', b'"price":1,"size":1}', tick() + b"\n" + tick()),
        (tick() + b"\n" + tick(), b"", tick()),
        (tick() + tick(), b" ", tick()),
        (tick() + tick(), b"", tick()),
        (tick() + b" ", tick()),
        (b'{"symbol":"AAA","x":{}', b',"event_time":1700000000000,"price":1,"size":1}', tick() + tick()),
        (b'{"symbol":"AAA","event_time":1700000000000,"price":1,"size":1,"x":"}', b'{"}', tick() + tick()),
        (b"[" + tick(), b"," + tick() + b"]", tick() + b"\n" + tick()),
        (tick(), None, tick()),
    ],
    ids=[
        "an object in halves", "and two in one", "two in one and none", "two without a line feed", "two and nothing", "a blank behind",
        "halves behind a nested value", "halves of a text", "a frame in halves", "no value",
    ],
)
def test_broken_records_in_a_row_stay_broken(broken: tuple[bytes | None, ...]) -> None:
    values = [tick(), b'{"punctuate":%d}' % (NOW // 1000 - 2), tick(), *broken, tick()]
    records = [RawRecord(offset, NOW, value) for offset, value in enumerate(values)]
    judged_alike([records[:3], records[3:]], AtOnce)


def test_rows_are_the_accepted_ticks_in_the_order_of_the_log() -> None:
    def row(**changes: Any) -> dict[str, Any]:
        return dict.fromkeys(TICKS_SCHEMA.names) | GOOD | {"source": "default", "index": 0, "flags": 0} | changes

    core = cleaner()
    frame = b"[" + b",".join([tick(price=1), tick(price=-1), tick(price=2)]) + b"]"
    core.chunk([RawRecord(offset, NOW, value) for offset, value in enumerate([tick(), frame, tick(size=4), frame, tick(price=None, size=0)])])
    several = [row(), *(row(price=price, offset=offset, index=index) for offset in (1, 3) for price, index in ((1, 0), (2, 2)))]
    several.insert(3, row(size=4, offset=2))
    first = core.make_frame()
    assert first is not None
    assert first.rows.schema.equals(TICKS_SCHEMA)
    assert first.rows.to_pylist() == [several[0] | {"offset": 0}, *several[1:], row(price=None, size=0, offset=4)]
    core.chunk([RawRecord(5, NOW, tick()), RawRecord(6, NOW, tick(size=7.0))])
    second = core.make_frame()
    assert second is not None
    assert second.rows.to_pylist() == [row(offset=5), row(size=7, offset=6)]
    quote = {"bid": 1.0, "ask": 2.0, "bid_size": 3.0, "ask_size": 4.0, "exchange": "N", "condition": "@"}
    core.chunk([RawRecord(7, NOW, tick(**quote)), RawRecord(8, NOW, tick())])
    third = core.make_frame()
    assert third is not None
    assert third.rows.to_pylist() == [row(offset=7, **quote), row(offset=8)]


def test_a_frame_of_several_sources_names_each() -> None:
    core = cleaner()
    for offset, values in enumerate([("AAA", "a"), ("AAA", "a"), (HOME[1], "b"), ("AAA", "a")]):
        core.chunk([RawRecord(offset, NOW, tick(symbol=values[0], source=values[1]))])
        if offset == 0:
            core.make_frame()
    frame = core.make_frame()
    assert frame is not None
    assert frame.rows["source"].to_pylist() == ["a", "b", "a"]


def test_a_frame_may_cover_offsets_and_have_no_rows() -> None:
    core = cleaner()
    core.chunk([RawRecord(0, NOW, b"no")])
    frame = core.make_frame()
    assert frame is not None
    assert (frame.rows.num_rows, frame.rows.schema) == (0, TICKS_SCHEMA)


# -- bounds of what is told, and what nobody foresaw ------------------------------


LONG = "\x01" * 1_000_000
"""Each of its bytes becomes six characters of JSON."""


@pytest.mark.parametrize(
    "poison",
    [
        b'{"punctuate":1,"%s":2}' % (b"f" * 640_000), json.dumps({"punctuate": 1, LONG[:150_000]: 2}).encode(), b'{"punctuate":"%s"}' % (b"9" * 900_000),
        tick(price="x" * 900_000), json.dumps([{LONG[:150_000]: [1]}]).encode(), tick(symbol=LONG[:100_000]), tick(size=LONG[:100_000]),
    ],
    ids=["an unknown field", "of control characters", "a long number", "a long text", "in an array", "a long symbol", "a long size"],
)  # fmt: skip
def test_every_rejection_is_bounded_in_bytes_of_json(poison: bytes) -> None:
    """Findings, H4: the detail repeated a field's name of 640 kB, and the rejection could not be sent, for ever."""
    for rejection in cleaner().chunk([RawRecord(0, NOW, poison)]):
        assert len(msgspec.json.encode(rejection)) < 610_000 < MAX_BATCH_BYTES
        assert len(msgspec.json.encode(rejection.detail)) < 4_000


@pytest.mark.slow
def test_an_array_of_more_items_than_may_be_is_rejected_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each item may become a message of its own; a compressed record of some kB may hold millions."""
    core = cleaner()
    [rejection] = core.chunk([RawRecord(0, NOW, b"[" + b"1," * 1_000_000 + b"1]")])
    assert (rejection.reason, rejection.index) == ("invalid_shape", 0)
    assert rejection.detail.startswith(f"an array of 1000001 items: write several records of at most {MAX_ARRAY}")
    monkeypatch.setattr(validation, "MAX_ARRAY", 3)
    monkeypatch.setattr(columns, "MAX_ARRAY", 3)
    for of in (cleaner(), cleaner()):
        judge(tick(), b'{"punctuate":%d}' % (NOW // 1000 - 9), of=of)
        for count in (3, 4):
            values = [b"[" + b",".join([tick()] * count) + b"]", *[tick()] * MANY]
            at = of.expect
            assert judge(*values, of=of)[0] == ([(at, 0, "invalid_shape")] if count > 3 else [])


def unforeseen(text: str) -> Any:
    def raises(*_: Any, **__: Any) -> Any:
        raise RuntimeError(text)

    return raises


def test_a_record_that_raises_what_nobody_foresaw_is_rejected_and_its_neighbours_go_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    judged = Cleaner._judge

    def fails(self: Cleaner, tick_: Tick, *at: int) -> Any:
        if tick_.price == 666:
            raise RuntimeError("odd")
        return judged(self, tick_, *at)

    monkeypatch.setattr(Cleaner, "_judge", fails)
    odd = tick(price=666, day_volume=5)
    core = cleaner()
    values = [tick(), odd, tick(), b"[" + tick(price=-1) + b"," + tick() + b"," + odd + b"]", tick()]
    rejections = core.chunk([RawRecord(offset, NOW, value) for offset, value in enumerate(values)])
    frame = core.make_frame()
    assert frame is not None
    assert [(r.offset, r.index, r.reason, r.value) for r in rejections] == [(n, 0, "internal_error", values[n].decode()) for n in (1, 3)]
    assert rejections[0].detail == "RuntimeError: odd: a fault of stockstream, not of the record; please report it with this message"
    assert frame.rows["offset"].to_pylist() == [0, 2, 4]
    assert [f"offset {offset}: a record could not be judged" in message for offset, message in zip((1, 3), caplog.messages, strict=True)] == [True, True]


@pytest.mark.parametrize("where", ["holders", "numbered", "move"])
def test_many_that_raise_what_nobody_foresaw_are_judged_one_by_one(where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    core, other = cleaner(), Thorough(home_partition("AAA", 8), 8, lateness_ms=200, revise_s=30, log="x")
    monkeypatch.setattr(many, where, unforeseen("odd"))
    records = [RawRecord(number, NOW + 2_000, tick(event_time=NOW + 1_300 + number)) for number in range(4 * MANY)]
    for some in (records[:MANY], records[MANY:]):
        assert core.chunk(some) == other.chunk(some) == []
    assert core.make_frame() == other.make_frame() and core.snapshot() == other.snapshot()
    assert "judging them one by one" in caplog.text


def test_what_cannot_be_put_into_columns_leaves_everything_unchanged(monkeypatch: pytest.MonkeyPatch) -> None:
    core = cleaner()
    judge(tick(), b'{"punctuate":%d}' % (NOW // 1000 - 9), of=core)
    before = core.snapshot()
    monkeypatch.setattr(columns.Columns, "batch", unforeseen("odd"))
    records = [RawRecord(core.expect + number, NOW + 2_000, tick(event_time=NOW + 1_300 + number)) for number in range(2 * MANY)]
    assert core._try_accept_many(records) == 0 and core.snapshot() == before

"""Reading many records at once, as columns: it gives the ticks that the decoder for single records gives, or names a record that is not plain."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.records import TEXTS as NAMES_OF_TEXTS
from stockstream.records import TICKS_SCHEMA, Tick
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import columns
from stockstream.transforms.cleaning.columns import OddRecord, read
from stockstream.transforms.cleaning.decoding import decode_tick
from stockstream.transforms.cleaning.judging import flags_of
from stockstream.transforms.cleaning.rejections import normalise, range_fault
from stockstream.transforms.shares import rounded

NUMBERS = ["1", "0", "100", "1.5", "0.1", "99.99", "123456.789012", "1e3", "1.5E-2", "2.5e+2", "0.30000000000000004", "1e400", "-1", "-0.0", "01", "1.", ".5",
           "9007199254740993", "12345678901234567890", "1e-10", "9e-11", "100000000000", "100000000000.1", "2147483647", "5e-324", "null",
           "true", '"1"']  # fmt: skip
WHOLE = ["0", "1", "1700000000000", "4398046511104", "4398046511103", "100000000000", "100000000001", "999999999999999999", "9223372036854775807",
         "9223372036854775808", "-1", "1.0", "1e2", "00", "null"]  # fmt: skip
TEXTS = ['"A"', '"BRK.B"', '""', f'"{"x" * 32}"', f'"{"x" * 33}"', '"\\u0041"', '"\u00e9"', '"e\u0301"', '"a\\"b"', '"\t"', '"\x7f"', '" A"',
         "null", "1", '"default"']  # fmt: skip
FIELDS = {
    "symbol": TEXTS, "event_time": WHOLE, "price": NUMBERS, "size": NUMBERS, "source": TEXTS, "seq": WHOLE, "received_at": WHOLE, "bid": NUMBERS,
    "ask": NUMBERS, "bid_size": NUMBERS, "ask_size": NUMBERS, **dict.fromkeys(NAMES_OF_TEXTS, TEXTS), "snapshot": ["false", "true", "null"],
    "gap_from": WHOLE, "interval_s": NUMBERS, "day_volume": ["null", "5"], "name": ["1", "{}"], "symbols": ['"A"'],
}  # fmt: skip
PLAIN = {"symbol": '"A"', "event_time": "1700000000000", "price": "1.25", "size": "7"}


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A tick or a frame of some, mostly plain, in any layout, at times with a byte changed."""

    def tick() -> str:
        odd = draw(st.lists(st.sampled_from(sorted(FIELDS)), max_size=3))
        items = [*PLAIN.items(), *((name, draw(st.sampled_from(FIELDS[name]))) for name in odd)]
        if draw(st.integers(0, 9)):
            items = list(dict(items).items())                            # no name twice
        if not draw(st.integers(0, 9)):
            items.pop()
        comma, colon = draw(st.sampled_from([(",", ":"), (", ", ": "), (" ,\t", "\n:\r ")]))
        return "{" + comma.join(f'"{name}"{colon}{value}' for name, value in draw(st.permutations(items))) + "}"

    count = draw(st.sampled_from([1, 1, 1, 0, 2, 3]))
    text = (tick() if count == 1 else "[" + ",".join(tick() for _ in range(count)) + "]").encode()
    if not draw(st.integers(0, 5)):
        at = draw(st.integers(0, len(text) - 1))
        before, behind, other = text[:at], text[at + 1 :], bytes([draw(st.integers(0, 255))])
        text = draw(st.sampled_from([before, before + behind, before + other + behind, text + b" ", text * 2]))
    return text


def records_of(values: list[bytes]) -> list[RawRecord]:
    return [RawRecord(5 + 2 * number, 1_700_000_000_000 + number, value) for number, value in enumerate(values)]


def ticks_of(value: bytes | None) -> list[Tick]:
    assert value is not None
    found = decode_tick(value)
    return found if isinstance(found, list) else [found]


@given(st.lists(texts(), min_size=1, max_size=4))
def test_what_is_read_is_what_the_decoder_gives(values: list[bytes]) -> None:
    records = records_of(values)
    try:
        found = read(records)
    except OddRecord:
        return
    batch = found.batch()
    batch.validate(full=True)
    rows, seen = iter(batch.to_pylist()), 0
    for number, record in enumerate(records):
        for index, tick in enumerate(ticks_of(record.value)):
            normalise(tick)
            assert range_fault(tick) is None or tick.symbol != tick.symbol.strip() or not tick.symbol.isprintable(), "an unknown symbol, judged by itself"
            assert not tick.snapshot and tick.day_volume is None
            row = next(rows)
            assert row.pop("offset") == record.offset and row.pop("index") == index
            assert (row.pop("gap_s"), row.pop("price_before_gap")) == (None, None)
            tick.size = rounded(float(tick.size))  # type: ignore[arg-type]
            assert row.pop("flags") == flags_of(tick)
            assert row == {name: getattr(tick, name) for name in row}
            assert (found.symbols[found.symbol[seen]], found.sources[found.source[seen]]) == (tick.symbol, tick.source)
            assert (found.event_time[seen], found.size[seen], found.record[seen]) == (tick.event_time, tick.size, number)
            assert tick.seq == (None if found.seq is None else found.seq[seen])
            seen += 1
    assert next(rows, None) is None and seen == len(found.record)
    assert (found.offset.tolist(), found.timestamp.tolist()) == ([record.offset for record in records], [record.timestamp for record in records])


def test_most_ticks_are_plain_in_any_layout() -> None:
    plain = {"symbol": "A", "event_time": 1_700_000_000_000, "price": 1, "size": 0}
    more = {"bid": 1.5, "exchange": "\u00e9", "trade_id": "x" * 64, "received_at": 1, "unknown": {"a": [1]}, "snapshot": False, "day_volume": None}
    values = [msgspec.json.encode(plain), b" [" + msgspec.json.encode(plain | more) + b" ,\r\n" + msgspec.json.encode(plain) + b"]\n"]
    batch = read(records_of(values)).batch()
    assert batch.schema == TICKS_SCHEMA and batch.column("index").to_pylist() == [0, 0, 1]
    assert batch.column("trade_id").to_pylist() == [None, "x" * 64, None]


@pytest.mark.parametrize("odd", [
    None, b"", b"[]", b"no", b'{"punctuate":5}', b'[{"symbol":"A","event_time":1700000000000,"price":1,"size":0},1]', b"\xff", b"[" * 100_000,
    b'{"symbol":"A","event_time":1700000000000,"price":1}', b'{"symbol":"A","event_time":1700000000000,"price":1,"size":0,"snapshot":true}',
    b'{"symbol":"A","event_time":1700000000000,"price":1,"size":0,"day_volume":5}', b'{"symbol":"A","event_time":1700000000000,"price":null,"size":1}',
    b'{"symbol":"A","event_time":1700000000000,"price":1,"size":0,"seq":1}', b'{"symbol":"A","event_time":1700000000000,"price":1,"size":0} 1',
])  # fmt: skip
def test_an_odd_record_is_named(odd: bytes | None) -> None:
    plain = b'{"symbol":"A","event_time":1700000000000,"price":1,"size":0}'
    records = records_of([plain, plain, b"[" + plain + b"]", plain])
    records[2] = records[2]._replace(value=odd)
    with pytest.raises(OddRecord) as error:
        read(records)
    assert error.value.number == 2


def test_an_array_of_too_many_ticks_is_odd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "MAX_ARRAY", 2)
    plain = b'{"symbol":"A","event_time":1700000000000,"price":1,"size":0}'
    assert len(read(records_of([b"[" + b",".join([plain] * 2) + b"]"])).record) == 2
    with pytest.raises(OddRecord):
        read(records_of([b"[" + b",".join([plain] * 3) + b"]"]))

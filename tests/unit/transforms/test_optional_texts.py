"""An optional text of a tick reaches `ticks.clean` by every way of reading, and frames and snapshots from before it was there are read as before."""

from __future__ import annotations

from typing import Any

import msgspec
import pyarrow as pa
import pytest

from stockstream.records import CARRIED_TEXTS, TEXTS, TICKS_SCHEMA, Tick
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import MANY, Cleaner
from stockstream.transforms.cleaning.judging import digest_of
from stockstream.transforms.cleaning.limits import MAX_TEXT
from stockstream.transforms.cleaning.state import DIGESTED
from stockstream.transforms.frames import decode, encode

NOW = 1_700_000_000_000
COUNT = 3 * MANY


class OneByOne(Cleaner):
    """Judges each record by itself."""

    def _accept_many(self, records: Any) -> int:
        return 0


def record(number: int, **more: Any) -> RawRecord:
    at = NOW + number
    return RawRecord(number, at, msgspec.json.encode({"symbol": "A", "source": "s", "event_time": at, "price": 1.0, "size": 1} | more))


def cleaned(kind: type[Cleaner], records: list[RawRecord]) -> pa.RecordBatch:
    """The rows of a log that closes its seconds at the end."""
    cleaner = kind(0, 1, lateness_ms=200, revise_s=30, log="x")
    assert cleaner.chunk(records[:1]) == []                              # the symbol is known from here on
    end = RawRecord(len(records), NOW + 10_000, b'{"punctuate":%d,"source":"s"}' % (NOW // 1000 + 5))
    assert cleaner.chunk([*records[1:], end]) == []
    frame = cleaner.make_frame()
    assert frame is not None
    return decode(encode(frame), TICKS_SCHEMA).rows


@pytest.mark.parametrize("kind", [Cleaner, OneByOne])
@pytest.mark.parametrize("name", CARRIED_TEXTS)
def test_it_reaches_ticks_clean(name: str, kind: type[Cleaner]) -> None:
    values = [None if number % 3 == 0 else f"{number:0{MAX_TEXT}d}" if number % 3 == 1 else f"T{number}" for number in range(COUNT)]
    records = [record(number, **({} if value is None else {name: value})) for number, value in enumerate(values)]
    rows = cleaned(kind, records)
    assert rows.column(name).to_pylist() == values
    assert all(rows.column(other).null_count == COUNT for other in CARRIED_TEXTS if other != name)


@pytest.mark.parametrize("kind", [Cleaner, OneByOne])
@pytest.mark.parametrize("name", TEXTS)
def test_one_that_is_too_long_is_rejected(name: str, kind: type[Cleaner]) -> None:
    cleaner = kind(0, 1, lateness_ms=200, revise_s=30, log="x")
    (rejection,) = cleaner.chunk([record(number, **{name: f"{number:0{MAX_TEXT + (number == MANY)}d}"}) for number in range(2 * MANY)])
    assert (rejection.offset, rejection.reason) == (MANY, "out_of_range")
    assert rejection.detail.startswith(f"{name} must have at most {MAX_TEXT} characters")


@pytest.mark.parametrize("name", CARRIED_TEXTS)
def test_a_frame_from_before_it_was_there_has_nulls(name: str) -> None:
    cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    cleaner.chunk([record(0), RawRecord(1, NOW + 10_000, b'{"punctuate":%d,"source":"s"}' % (NOW // 1000 + 5))])
    frame = cleaner.make_frame()
    assert frame is not None
    older = frame.rows.drop_columns([name])
    with_metadata = pa.ipc.open_stream(encode(frame)).schema.metadata
    data = b"".join((older.schema.with_metadata(with_metadata).serialize(), older.serialize()))
    assert decode(data, TICKS_SCHEMA).rows.column(name).to_pylist() == [None]


def test_digests_of_snapshots_from_before_later_fields_are_known_again() -> None:
    """The digest of a snapshot tick is in the state of earlier releases."""
    first = [name for name in Tick.__struct_fields__ if name in DIGESTED]
    assert len(first) == len(DIGESTED)
    value = {"symbol": "A", "source": "s", "event_time": NOW, "price": 1.0, "size": 1, "snapshot": True}
    cleaner = Cleaner(0, 1, lateness_ms=200, revise_s=30, log="x")
    assert cleaner.chunk([RawRecord(0, NOW, msgspec.json.encode(value))]) == []
    assert digest_of(msgspec.convert(value, Tick)).hex() == "f31c53e79451f8b316df14508a0e741a"
    later = RawRecord(1, NOW, msgspec.json.encode(value | {"trade_id": "7"}))
    again = RawRecord(2, NOW, msgspec.json.encode(value | {"trade_id": "7"}))
    assert [rejection.reason for rejection in cleaner.chunk([later, again])] == ["duplicate"]

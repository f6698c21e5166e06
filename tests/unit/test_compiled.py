"""What is compiled does what its counterparts in Python, numpy and aiokafka do."""

from __future__ import annotations

import random
from typing import Any

import aiokafka.codec as codec
import pyarrow as pa
import pytest
from aiokafka.consumer import fetcher
from aiokafka.errors import CorruptRecordException, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder

from stockstream import accelerated
from stockstream.transport.fetching import UnparsedBatches
from stockstream.transport.messages import joined
from tests.compilation import need_compiled

@pytest.fixture(autouse=True)
def _built() -> None:
    need_compiled()


# -- record batches ---------------------------------------------------------


def told(records: Any) -> list[tuple[Any, ...]]:
    return [(r.offset, r.timestamp, r.timestamp_type, r.key, r.value, list(r.headers)) for r in records]


def batches() -> Any:
    assert accelerated.batches is not None
    return accelerated.batches


def built(count: int, kind: int = 0, **record: Any) -> bytes:
    """A batch of so many records, with the codec of that number."""
    builder = DefaultRecordBatchBuilder(2, kind, is_transactional=0, producer_id=7, producer_epoch=3, base_sequence=11, batch_size=1 << 24)
    for number in range(count):
        given = {"timestamp": 1_000 + number, "key": b"k%d" % number, "value": b"v" * number, "headers": [("hops", b"[1]")]} | record
        builder.append(number, **given)
    return bytes(builder.build())


@pytest.mark.parametrize("kind", range(5))
def test_records_are_those_that_aiokafka_reads(kind: int) -> None:
    rng = random.Random(kind)
    for _ in range(60):
        data = built(
            rng.choice((1, 5, 300)), kind, key=rng.choice((None, b"", rng.randbytes(rng.randrange(300)))),
            value=rng.choice((b"", b"a" * rng.choice((1, 63, 64, 5_000, 8_191, 8_192)), None)),
            headers=rng.choice(([], [("a", b"")], [("schema_version", b"1"), ("h\u00e9", None)])),
            timestamp=1_700_000_000_000 + rng.randrange(-(10**6), 10**6),
        )  # fmt: skip
        at = rng.randrange(21, len(data))
        assert batches().is_whole(data) and batches().is_whole(memoryview(data))
        assert not batches().is_whole(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        assert told(batches().records(data, 0)) == told(DefaultRecordBatch(data))
        assert told(batches().records(memoryview(data), 2)) == told(DefaultRecordBatch(data))[2:]


def test_a_batch_that_compaction_has_emptied_is_whole_and_what_is_shorter_is_none() -> None:
    built = DefaultRecordBatchBuilder(2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=100).build()
    assert len(built) == 61 and batches().is_whole(built) and not batches().is_whole(built[:60]) and not batches().is_whole(b"")


def test_the_time_may_be_the_brokers() -> None:
    data = bytearray(built(20))
    data[21:23] = (0x08).to_bytes(2, "big")
    assert told(batches().records(bytes(data), 0)) == told(DefaultRecordBatch(bytes(data)))
    assert {record.timestamp for record in batches().records(bytes(data), 0)} == {1_019}


def test_a_damaged_batch_is_an_error_and_never_read_beyond_its_end() -> None:
    data, rng, errors = built(20), random.Random(1), 0
    for _ in range(5_000):
        broken = bytearray(data)
        for _ in range(rng.choice((1, 1, 5))):
            broken[rng.randrange(57, len(broken))] = rng.randrange(256)
        try:
            found = batches().records(bytes(broken[: rng.randrange(61, len(broken) + 1)] if rng.random() < 0.3 else broken), 0)
            for record in found:
                assert len(record.value or b"") + len(record.key or b"") < len(data)
                record.headers  # noqa: B018  read when it is asked for
        except (CorruptRecordException, UnicodeDecodeError):
            errors += 1
    assert errors > 2_000
    for count in (-1, 21, 1 << 30):
        broken = bytearray(data)
        broken[57:61] = count.to_bytes(4, "big", signed=True)
        with pytest.raises(CorruptRecordException):
            batches().records(bytes(broken), 0)


def test_an_unknown_codec_is_told() -> None:
    data = bytearray(built(20))
    data[21:23] = (7).to_bytes(2, "big")
    with pytest.raises(UnsupportedCodecError):
        batches().records(bytes(data), 0)


@pytest.mark.parametrize("size", [0, 1, 255, 256, 257, 65_791, 65_792, 300_000])
def test_zstd_in_one_go_and_in_pieces_is_the_same(size: int) -> None:
    data = random.Random(size).randbytes(size // 2) + b"a" * (size - size // 2)
    for packed in (pa.Codec("zstd", -1).compress(data, asbytes=True), codec.zstd_encode(data)):
        assert batches().size_of_zstd(packed) in (-1, size)
        assert bytes(batches().decompressed(4, packed)) == data
        assert bytes(batches().decompressed(4, packed + packed)) == data + data
    assert batches().size_of_zstd(b"\x28\xb5\x2f\xfd\xc0" + b"\xff" * 20) == -1, "so much is not made room for on anybody's word"


@pytest.mark.parametrize("size", [0, 1, 14, 15, 16, 269, 270, 65_536, 300_000])
def test_lz4_in_one_go_and_in_pieces_is_the_same(size: int) -> None:
    """Also where the frame does not say how much it holds, and with the checksums that a producer may add."""
    rng = random.Random(size)
    for data in (b"a" * size, rng.randbytes(size), rng.randbytes(size // 2) + b"ab" * (size // 2), b"".join(b'{"n":%d}' % n for n in range(size // 50))):
        for packed in (pa.Codec("lz4").compress(data, asbytes=True), codec.lz4_encode(data)):
            assert batches().size_of_lz4(packed) == len(data)
            assert bytes(batches().decompressed(3, packed)) == data
            assert batches().size_of_lz4(packed + packed) == batches().size_of_lz4(packed[:-1]) == -1
            assert bytes(batches().decompressed(3, packed + packed)) == bytes(codec.lz4_decode(packed + packed))


def test_a_damaged_lz4_frame_is_an_error_or_what_aiokafka_reads() -> None:
    rng = random.Random(3)
    plain = [pa.Codec("lz4").compress(bytes(rng.choices(b"abcd", k=rng.randrange(1, 3_000))), asbytes=True) for _ in range(20)]

    def tried(decode: Callable[[Any], Any], data: bytes) -> bytes | None:
        try:
            return bytes(decode(data))
        except Exception:                                                # whatever the codec says
            return None

    errors = 0
    for _ in range(4_000):
        broken = bytearray(rng.choice(plain))
        for _ in range(rng.choice((1, 1, 4))):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        data = bytes(broken[: rng.randrange(len(broken) + 1)] if rng.random() < 0.3 else broken)
        size, found = batches().size_of_lz4(data), tried(lambda data: batches().decompressed(3, data), data)
        assert -1 <= size <= 1 << 26
        assert found == tried(codec.lz4_decode, data)
        errors += found is None
    assert errors > 1_000


def test_records_are_a_sequence_that_keeps_its_batches() -> None:
    def batch(base: int, count: int) -> bytes:
        builder = DefaultRecordBatchBuilder(2, 4, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=-1, batch_size=1 << 20)
        for number in range(count):
            builder.append(number, timestamp=1_000 + number, key=b"%d" % number, value=b"v%d" % (base + number), headers=[("h", None)])
        return base.to_bytes(8, "big") + bytes(builder.build())[8:]

    first, second = batches().records(batch(0, 7), 0), batches().records(batch(7, 5), 9)
    both = batches().joined([first, second, batches().records(batch(20, 1), 21)])
    known = [record for part in (first, second) for record in part]
    del first, second
    assert len(both) == 10 and [record.offset for record in both] == [*range(7), 9, 10, 11]
    assert told(both) == told(known)
    assert both[:] is both and both[-1].value == b"v11" and both[7].offset == 9
    for begin, end in ((0, 3), (5, 9), (8, 99), (-2, None), (4, 4), (9, 2)):
        part = both[begin:end]
        assert told(part) == told(known[begin:end])
        assert told(batches().joined([part, part])) == told(known[begin:end] * 2)
    assert not both[3:3] and told(joined([both[:2], [], both[2:]])) == told(known)
    assert joined([[], both]) is both and list(joined([])) == []
    assert told(joined([known[:1], both[1:]])) == told(known), "records of both kinds"
    for wrong in (10, -11):
        with pytest.raises(IndexError):
            both[wrong]
    with pytest.raises(ValueError, match="step"):
        both[::2]


def test_the_workers_consumer_uses_them() -> None:
    assert fetcher.MemoryRecords is UnparsedBatches

"""Record batches as brokers keep them: transactional, control batches, and batches that compaction has thinned."""

from __future__ import annotations

from collections.abc import Sequence

from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c

TRANSACTIONAL, CONTROL = 0x10, 0x20
COMMIT, ABORT = b"\0\0\0\1", b"\0\0\0\0"


def forged(first: int, count: int, kept: Sequence[int] | None = None, *, producer: int = -1, attributes: int = 0, key: bytes = b"k", kind: int = 0) -> bytes:
    """A batch that covers `count` offsets from `first` on and holds records at those of `kept` (all if None); `kind` is the codec."""
    builder = DefaultRecordBatchBuilder(2, kind, is_transactional=0, producer_id=producer, producer_epoch=0, base_sequence=0, batch_size=1 << 20)
    for number in range(count) if kept is None else (offset - first for offset in kept):
        builder.append(number, timestamp=1_000 + first + number, key=key, value=b"%d" % (first + number), headers=[])
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8, "big")
    data[21:23] = (int.from_bytes(data[21:23], "big") | attributes).to_bytes(2, "big")
    data[23:27] = (count - 1).to_bytes(4, "big")
    data[17:21] = calc_crc32c(bytes(data[21:])).to_bytes(4, "big")
    return bytes(data)


def marker(at: int, producer: int, how: bytes = COMMIT) -> bytes:
    """A control batch: the end of a transaction."""
    return forged(at, 1, producer=producer, attributes=TRANSACTIONAL | CONTROL, key=how)

"""Raw objects: JSON lines in zstd. The last line also has a trailer, `object`, which describes the offsets that the object accounts for.

An object is one zstd frame. Its last block is stored, not compressed, and holds the trailer, so that it can be read from the object's end alone. In objects of
earlier releases the trailer is a frame of its own that zstd readers skip (docs/decisions/0019).
"""

from __future__ import annotations

import base64
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol

import cramjam
import msgspec
import numpy as np
from msgspec import UNSET, UnsetType

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.layout import HOUR_MS
from stockstream.sinks.archive.sealing import changed
from stockstream.sinks.stores import Store

VERSION = 2
ZSTD_LEVEL = 1
"""Level 3 costs 1.4 times the time for 4 % less on ticks in JSON."""
TAIL_BYTES = 8_192
STORED_BYTES = 8_000
"""At most so much of a trailer is stored; what comes before it (holes, if they are many) is compressed."""
_TRAILER = b',"object":'
_BEGIN = _TRAILER + b'{"log":'
"""Where the trailer begins. No value contains it: quotes in a string are escaped."""
_CHECKSUM = re.compile(rb',"checksum":"([0-9a-f]{8})"\}\}\n$')
_FRAME_MAGIC = 0x184D2A5C
"""Earlier releases: one of zstd's sixteen numbers for a frame that readers skip."""
_FRAME_MARK = b"stockstream-1"


class RawRecord(Protocol):
    """The part of a consumed record that the archive uses: Kafka's offset and time (epoch ms), and the bytes."""

    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...


class Line(msgspec.Struct, gc=False, omit_defaults=True):
    """One line of a raw object."""

    partition: int
    offset: int
    timestamp: int
    key: str | UnsetType | None = UNSET
    value: str | UnsetType | None = UNSET
    key_base64: str | UnsetType = UNSET
    value_base64: str | UnsetType = UNSET


class Tail(msgspec.Struct, frozen=True):
    """The last record of a chain. It shows later whether Kafka still has the same log."""

    offset: int
    crc32: int


class CleanSettings(msgspec.Struct, frozen=True):
    """The settings of the worker that wrote an object, as far as the verdicts of `clean` depend on them. `raw_format` is the formats' identity."""

    lateness_ms: str
    revise_s: int
    partitions: int
    raw_format: str = ""


class Extent(msgspec.Struct, frozen=True):
    """The trailer of a raw object: it accounts for offsets `first` to `last`, of which `holes` (ranges, both ends included) have no record.

    `bytes` and `crc32` are of the lines without this trailer; `checksum`, always the last field, is the CRC-32 of all bytes of the object before it. Objects
    of version 1 have no `checksum`, but `object_crc32`: of the lines' zstd frame and of the trailer without it. The oldest lack it, and `settings`.
    """

    log: str
    partition: int
    first: int
    last: int
    count: int
    previous: str
    holes: tuple[tuple[int, int], ...]
    bytes: int
    crc32: int
    tail: Tail | None
    version: int = 1
    settings: CleanSettings | UnsetType = UNSET
    object_crc32: int | UnsetType = UNSET
    checksum: str | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class Piece:
    """Encoded records of one hour of Kafka time. Offsets from `start` to `last` without a record are holes.

    `expired`: retention deleted the offsets before the first record.
    """

    start: int
    offsets: Sequence[int]
    hour: int
    data: bytes
    expired: bool = False

    @property
    def last(self) -> int:
        return self.offsets[-1]

    @property
    def nbytes(self) -> int:
        return len(self.data) + (256 if isinstance(self.offsets, range) else 64 * len(self.offsets))


_encode_lines = msgspec.json.Encoder().encode_lines
_decode_lines = msgspec.json.Decoder(Line).decode_lines
encode_json = msgspec.json.Encoder().encode
_decode_extent = msgspec.json.Decoder(Extent).decode


def encode(partition: int, records: Sequence[RawRecord], start: int | None = None) -> list[Piece]:
    """Encodes records (ascending by offset, not empty) as pieces, one for each stretch of records in the same hour of Kafka time.

    `start`: from this offset through the last record, Kafka has only these records, so a gap is a hole. Without it a gap is unproven, and a new piece
    begins after it. Raises `ArchiveError` if the offsets do not ascend.
    """
    offsets: Sequence[int] = [record.offset for record in records]
    times = [record.timestamp for record in records]
    whole = range(offsets[0], offsets[0] + len(offsets))
    if offsets == list(whole):
        offsets = whole
    elif any(a >= b for a, b in pairwise(offsets)):
        raise ArchiveError(f"partition {partition}: offsets do not ascend")
    known = offsets[0] if start is None else start
    if known > offsets[0]:
        raise ArchiveError(f"partition {partition}: offset {offsets[0]} comes before the expected offset {known}")
    hour = min(times) // HOUR_MS
    if hour == max(times) // HOUR_MS and (start is not None or offsets is whole):
        return [Piece(known, offsets, hour, lines(partition, records))]
    hours = [time // HOUR_MS for time in times]
    pieces = []
    begin = 0
    for i in range(1, len(records) + 1):
        gap = start is None and i < len(records) and offsets[i] != offsets[i - 1] + 1
        if i == len(records) or hours[i] != hours[begin] or gap:
            pieces.append(Piece(known, offsets[begin:i], hours[begin], lines(partition, records[begin:i])))
            known = offsets[i] if gap else offsets[i - 1] + 1
            begin = i
    return pieces


def lines(partition: int, records: Sequence[RawRecord]) -> bytes:
    """The records as JSON lines, each value exactly as received: as a string where it is UTF-8, else in base64."""
    try:
        return _encode_lines([Line(partition, r.offset, r.timestamp, r.key.decode(), r.value.decode()) for r in records])  # type: ignore[union-attr]
    except (AttributeError, UnicodeDecodeError):        # a null, or bytes that are not UTF-8
        return _encode_lines([_any_line(partition, r) for r in records])


def _any_line(partition: int, record: RawRecord) -> Line:
    line = Line(partition, record.offset, record.timestamp)
    try:
        line.key = None if record.key is None else record.key.decode()
    except UnicodeDecodeError:
        line.key_base64 = base64.b64encode(record.key or b"").decode()
    try:
        line.value = None if record.value is None else record.value.decode()
    except UnicodeDecodeError:
        line.value_base64 = base64.b64encode(record.value or b"").decode()
    return line


def key_and_value(line: Line) -> tuple[bytes | None, bytes | None]:
    """The key and value of a line, as Kafka had them."""
    return _bytes(line.key, line.key_base64), _bytes(line.value, line.value_base64)


def _bytes(text: str | UnsetType | None, encoded: str | UnsetType) -> bytes | None:
    if isinstance(encoded, str):
        return base64.b64decode(encoded)
    return text.encode() if isinstance(text, str) else None


def after(piece: Piece, offset: int) -> Piece | None:
    """The part of a piece after `offset`; None if it is empty."""
    if piece.start > offset:
        return piece
    if piece.last <= offset:
        return None
    cut = bisect_right(piece.offsets, offset)
    data = piece.data if not cut else piece.data.split(b"\n", cut)[-1]
    return replace(piece, start=offset + 1, offsets=piece.offsets[cut:], data=data)


def through(piece: Piece, offset: int) -> Piece | None:
    """The part of a piece through `offset`; None if it has no record."""
    cut = bisect_right(piece.offsets, offset)
    if not cut or cut == len(piece.offsets):
        return piece if cut else None
    return replace(piece, offsets=piece.offsets[:cut], data=b"\n".join([*piece.data.split(b"\n", cut)[:cut], b""]))


def raw_object(log: str, partition: int, previous: str, pieces: Sequence[Piece], settings: CleanSettings | None = None) -> tuple[Extent, bytes]:
    """Encodes a raw object. The pieces are contiguous."""
    data = b"".join(piece.data for piece in pieces)
    offsets = np.concatenate([np.asarray(piece.offsets, np.int64) for piece in pieces])
    first, last = pieces[0].start, int(offsets[-1])
    before = np.concatenate([[first - 1], offsets[:-1]])
    at = np.flatnonzero(offsets - before > 1)
    holes = tuple((int(before[i]) + 1, int(offsets[i]) - 1) for i in at)
    end = data.rfind(b"\n", 0, -1) + 1
    extent = Extent(log, partition, first, last, len(offsets), previous, holes, len(data), zlib.crc32(data), Tail(last, zlib.crc32(data[end:])), VERSION)
    if settings is not None:
        extent = msgspec.structs.replace(extent, settings=settings)
    return _packed(extent, data)


def hole_object(log: str, partition: int, previous: str, first: int, last: int, tail: Tail | None) -> tuple[Extent, bytes]:
    """Encodes an object without records: Kafka had none from `first` to `last`. Its one line has no offset."""
    extent = Extent(log, partition, first, last, 0, previous, ((first, last),), 0, 0, tail, VERSION)
    return _packed(extent, b"")


def _packed(extent: Extent, data: bytes) -> tuple[Extent, bytes]:
    extent = msgspec.structs.replace(extent, checksum="00000000")
    trailer = _TRAILER + encode_json(extent) + b"}\n"
    cut = max(0, len(trailer) - STORED_BYTES)
    stored = trailer[cut:]
    frame = cramjam.zstd.Compressor(level=ZSTD_LEVEL)
    frame.compress((data[:-2] or b'{"partition":%d' % extent.partition) + trailer[:cut])
    last_block = struct.pack("<I", len(stored) << 3 | 1)[:3]             # RFC 8878, 3.1.1.2: the size, the type 0 of what is stored, and that it is the last
    packed = bytes(frame.flush()) + last_block + stored
    end = _CHECKSUM.search(stored)
    assert end is not None
    checksum = f"{zlib.crc32(packed[: end.start() - len(stored)]):08x}"
    return msgspec.structs.replace(extent, checksum=checksum), packed[: end.start() - len(stored)] + b',"checksum":"%b"}}\n' % checksum.encode()


class NoTrailer(ArchiveError):
    """An object does not end as a raw object does."""


def read_extent(store: Store, name: str) -> Extent:
    """Reads an object's trailer. Raises `NoTrailer` if it has none, `ArchiveError` if it is broken, and what the store raises."""
    data = store.read(name, TAIL_BYTES)
    if data.endswith(_FRAME_MARK):
        size = _frame_size(data)
        return _decoded(name, _of_frame(data if size <= len(data) else store.read(name, size)))
    if _CHECKSUM.search(data) is None:
        raise NoTrailer(f"{name} is not a raw object of stockstream: it has no trailer")
    at = data.rfind(_BEGIN)
    if at < 0:                                                           # it has many holes, which are compressed
        return _divided(name, _decompressed(name, store.read(name)))[0]
    return _decoded(name, data[at + len(_TRAILER) : -2])


def _decoded(name: str, trailer: bytes) -> Extent:
    try:
        return _decode_extent(trailer)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} has a broken trailer: {error}") from error


def _decompressed(name: str, packed: bytes) -> bytes:
    try:
        return bytes(cramjam.zstd.decompress(packed))
    except cramjam.DecompressionError as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error


def _divided(name: str, text: bytes) -> tuple[Extent, bytes]:
    """The trailer, and the lines without it."""
    at = text.rfind(_BEGIN)
    if at < 0:
        raise NoTrailer(f"{name} is not a raw object of stockstream: it has no trailer")
    extent = _decoded(name, text[at + len(_TRAILER) : -2])
    return extent, text[:at] + b"}\n" if extent.count else b""


# Trailers in a frame of their own: JSON, its size and a mark


def _frame_size(data: bytes) -> int:
    """The size of the frame's content."""
    mark = len(_FRAME_MARK)
    return int(struct.unpack("<I", data[-mark - 4 : -mark])[0]) + 4 + mark if len(data) >= mark + 4 else 0


def _of_frame(data: bytes) -> bytes:
    """The JSON in the frame that ends here."""
    return data[max(0, len(data) - _frame_size(data)) : len(data) - 4 - len(_FRAME_MARK)]


def _read_version_1(name: str, packed: bytes) -> tuple[Extent, bytes]:
    extent = _decoded(name, _of_frame(packed))
    payload = encode_json(extent)
    payload += struct.pack("<I", len(payload)) + _FRAME_MARK
    trailer = struct.pack("<II", _FRAME_MAGIC, len(payload)) + payload
    frame = packed[: -len(trailer)]
    checksum = zlib.crc32(encode_json(msgspec.structs.replace(extent, object_crc32=UNSET)), zlib.crc32(frame))
    if frame + trailer != packed or extent.object_crc32 not in (UNSET, checksum):
        raise changed(name)
    return extent, _decompressed(name, frame)


# Objects


def read_raw_object(store: Store, name: str) -> tuple[Extent, list[Line]]:
    """Reads an object's trailer and lines. Raises `ArchiveError` if they do not agree, or a byte has changed."""
    extent, parts = read_raw_parts(store, name)
    return extent, [line for part in parts for line in part]


def read_raw_parts(store: Store, name: str, part_bytes: int = 0) -> tuple[Extent, Iterator[list[Line]]]:
    """Reads an object's trailer, and its lines in parts of about `part_bytes` (0: all in one), which are decoded one after the other.

    Raises `ArchiveError` if they do not agree, or a byte has changed: here, or at a line that is another one than it should be.
    """
    packed = store.read(name)
    if packed.endswith(_FRAME_MARK):
        extent, data = _read_version_1(name, packed)
    else:
        end = _CHECKSUM.search(packed, max(0, len(packed) - TAIL_BYTES))
        if end is None:
            raise NoTrailer(f"{name} is not a raw object of stockstream: it has no trailer")
        if int(end[1], 16) != zlib.crc32(packed[: end.start()]):
            raise changed(name)
        extent, data = _divided(name, _decompressed(name, packed))
    if (len(data), zlib.crc32(data), data.count(b"\n")) != (extent.bytes, extent.crc32, extent.count):
        raise ArchiveError(f"{name}: its lines do not match its trailer (bytes, checksum or count differ)")
    return extent, _parts(name, extent, data, part_bytes or len(data))


def _parts(name: str, extent: Extent, data: bytes, part_bytes: int) -> Iterator[list[Line]]:
    expect = extent.first
    holes = dict(extent.holes)
    start = 0
    while start < len(data):
        end = data.find(b"\n", min(start + part_bytes, len(data)) - 1) + 1 or len(data)
        try:
            found = _decode_lines(data[start:end])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ArchiveError(f"{name} cannot be read: {error}") from error
        for line in found:
            expect = holes.pop(expect, expect - 1) + 1
            if line.offset != expect or line.partition != extent.partition:
                place = f"offset {line.offset} of partition {line.partition}"
                raise ArchiveError(f"{name}: found {place}, expected offset {expect} of partition {extent.partition}")
            expect += 1
        if end == len(data) and extent.tail != Tail(expect - 1, zlib.crc32(data[data.rfind(b"\n", 0, -1) + 1 :])):
            raise ArchiveError(f"{name}: its last line is not the record that its trailer names")
        yield found
        start = end
    if holes.pop(expect, expect - 1) != extent.last or holes:
        raise ArchiveError(f"{name}: its lines and holes do not account for all of {extent.first} to {extent.last}")

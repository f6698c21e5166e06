"""How state records are written: msgpack maps that carry their format's version, split where one message cannot hold them.

A record is a `msgspec.Struct` derived from `Stored`. Readers give a missing field its default and ignore a field that
they do not know, so a new optional field needs no new version. A change that an older reader would misunderstand raises
the table's version; the older reader then refuses the record instead of guessing. Records of version 1 (before this
module) are msgpack arrays; each table has one `upgrade` step that reads them.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import Any, TypeVar

import msgspec

from stockstream.errors import StateError

TERMS = 8
"""A record's key names the generation of its writer modulo this: a worker that wakes after a rebalance replaces only its own records."""
MAX_VALUE_BYTES = 500_000
"""Of one state record: a message holds 1 MiB, and records of one batch share a request."""


class Stored(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of all state records. `v` is the format's version; every table numbers its own."""

    v: int


class Part(Stored):
    """One piece of a value that is too large for a message. `crc` is the CRC-32 of the whole value."""

    part: int
    parts: int
    crc: int
    data: bytes


class _Version(msgspec.Struct):
    v: int = 1


Kind = TypeVar("Kind", bound=Stored)
_pack = msgspec.msgpack.Encoder().encode
_version = msgspec.msgpack.Decoder(_Version).decode
_part = msgspec.msgpack.Decoder(Part).decode


def pack(record: Stored) -> bytes:
    """The record as a msgpack map."""
    return _pack(record)


def version_of(data: bytes) -> int:
    """The version that a record carries; 1 for anything that is not a map. Raises `msgspec.MsgspecError` on a broken map."""
    is_map = data[:1] and (0x80 <= data[0] <= 0x8F or data[0] in (0xDE, 0xDF))
    return _version(data).v if is_map else 1


def unpack(kind: type[Kind], data: bytes, newest: int) -> Kind:
    """The record in a value of version 2 or later.

    Raises `StateError` where a newer stockstream wrote it (versions above `newest`), `msgspec.MsgspecError` where it is no such record.
    """
    require_known(version_of(data), newest)
    return msgspec.msgpack.decode(data, type=kind)


def require_known(version: int, newest: int) -> None:
    """Raises `StateError` where `version` is above `newest`."""
    if version > newest:
        raise StateError(
            f"its state was written by a newer stockstream (format {version}, this one reads up to {newest}): upgrade this worker, "
            "or start it with another STOCKSTREAM_TOPIC_PREFIX"
        )


def split(value: bytes, version: int, limit: int = MAX_VALUE_BYTES) -> list[bytes]:
    """The value in pieces of at most about `limit` bytes; the value itself where it fits."""
    if len(value) <= limit:
        return [value]
    crc, parts = zlib.crc32(value), -(-len(value) // limit)
    return [_pack(Part(v=version, part=number, parts=parts, crc=crc, data=value[number * limit : (number + 1) * limit])) for number in range(parts)]


def joined(values: Iterable[bytes]) -> bytes | None:
    """The value whose pieces these are, in any order; None where a piece is missing or belongs to another value."""
    pieces: dict[int, Part] = {}
    for value in values:
        try:
            piece = _part(value)
        except msgspec.MsgspecError:
            return value                                                 # not split
        pieces[piece.part] = piece
    first: Any = pieces.get(0)
    if first is None or len(pieces) < first.parts:
        return None
    whole = b"".join(pieces[number].data for number in range(first.parts) if number in pieces)
    return whole if zlib.crc32(whole) == first.crc else None

"""How state records are written: msgpack maps that carry their format's version, split where one message cannot hold them.

A record is a `msgspec.Struct` derived from `Stored`. Readers give a missing field its default and ignore a field that
they do not know, so a new optional field needs no new version. A change that an older reader would misunderstand raises
the table's version; the older reader then refuses the record instead of guessing. Records of version 1 (before this
module) are msgpack arrays; each table has one `upgrade` step that reads them.

Where successive values may be split, their pieces alternate between two slots of keys (`next_slot`, `pieces_in_slot`, `by_slot`).
So a writer that dies between two pieces leaves the value before whole.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

import msgspec

from stockstream.errors import StateError

TERMS = 8
"""A record's key names the generation of its writer modulo this: a worker that wakes after a rebalance replaces only its own records."""
SPLIT_SLOTS = 2
"""Places that successive split values alternate between."""
MAX_VALUE_BYTES = 500_000
"""Of one state record: a message holds 1 MiB, and records of one batch share a request."""


class Stored(msgspec.Struct, kw_only=True, omit_defaults=True):
    """Base of all state records. `v` is the format's version; every table numbers its own."""

    v: int


class Piece(Stored):
    """One piece of a value that is too large for a message. `crc` is the CRC-32 of the whole value."""

    number: int = msgspec.field(name="part")
    pieces: int = msgspec.field(name="parts")
    crc: int
    data: bytes


class _Version(msgspec.Struct):
    v: int = 1


Kind = TypeVar("Kind", bound=Stored)
Place = TypeVar("Place", bound=Hashable)
_pack = msgspec.msgpack.Encoder().encode
_version = msgspec.msgpack.Decoder(_Version).decode
_piece = msgspec.msgpack.Decoder(Piece).decode


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
    crc, pieces = zlib.crc32(value), -(-len(value) // limit)
    return [_pack(Piece(v=version, number=number, pieces=pieces, crc=crc, data=value[number * limit : (number + 1) * limit])) for number in range(pieces)]


def joined(values: Iterable[bytes]) -> bytes | None:
    """The value whose pieces these are, in any order; None where a piece is missing or belongs to another value."""
    pieces: dict[int, Piece] = {}
    for value in values:
        try:
            piece = _piece(value)
        except msgspec.MsgspecError:
            return value                                                 # not split
        pieces[piece.number] = piece
    first: Any = pieces.get(0)
    if first is None or len(pieces) < first.pieces:
        return None
    whole = b"".join(pieces[number].data for number in range(first.pieces) if number in pieces)
    return whole if zlib.crc32(whole) == first.crc else None


def next_slot(slot: int) -> int:
    """The slot for the value after one that is in `slot`; the first slot after a value that has none (-1)."""
    return (slot + 1) % SPLIT_SLOTS


def pieces_in_slot(value: bytes, version: int, key_of: Callable[[int], bytes]) -> list[tuple[bytes, bytes]]:
    """The records, key and value, that hold a value; `key_of` gives the key of each piece by its number, within the value's slot."""
    return [(key_of(number), piece) for number, piece in enumerate(split(value, version))]


def by_slot(records: Iterable[tuple[bytes, bytes]], slot_of: Callable[[bytes], Place]) -> dict[Place, dict[bytes, bytes]]:
    """Records of pieces by the slot that `slot_of` finds in their keys; `joined` gives the value of each slot."""
    slots: dict[Place, dict[bytes, bytes]] = {}
    for key, value in records:
        slots.setdefault(slot_of(key), {})[key] = value
    return slots

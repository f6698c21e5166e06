"""Checksums inside objects: each is the CRC-32 of the object's other bytes, so that a changed byte is found wherever it is.

The checksum of a Parquet object stands in its footer, beside `stockstream`, and is counted as zeros. That of a small JSON object is its last field.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

from stockstream.errors import ArchiveError

MARK = b"stockstream-crc32:"
_ZEROS = b"00000000"
KEY = b"checksum"
METADATA = {KEY: MARK + _ZEROS}
"""What a table's metadata must have when it is written, for `seal_parquet`."""
_KEYS = {b"ARROW:schema", b"stockstream", KEY}
_LAST_FIELD = re.compile(rb',"crc32":"([0-9a-f]{8})"\}$')


def seal_parquet(data: bytes) -> bytes:
    """The Parquet object, written with METADATA, with its checksum. Raises `ArchiveError` if it has no place for one."""
    at = _place(data)
    if at is None:
        raise ArchiveError("a Parquet object was written without a place for its checksum")
    view = memoryview(data)
    return b"".join((view[:at], _digits(view, at), view[at + len(_ZEROS) :]))


def require_parquet(name: str, data: bytes) -> None:
    """Compares an object with its checksum, if it has one. Raises `ArchiveError` if they do not agree."""
    at = _place(data)
    if at is not None and data[at : at + len(_ZEROS)] != _digits(memoryview(data), at):
        raise changed(name)


def require_keys(name: str, data: bytes, keys: Iterable[bytes]) -> None:
    """An object has its checksum, or it is of an earlier release and has no sign of one. `keys` are those of its metadata. Raises `ArchiveError`."""
    has = set(keys)
    if (KEY in has) != (_place(data) is not None) or not has <= _KEYS:
        raise changed(name)


def changed(name: str) -> ArchiveError:
    """The error of an object whose bytes are not those that were written."""
    return ArchiveError(f"{name} does not match its checksum: bytes of it have changed")


def _place(data: bytes) -> int | None:
    """Where the digits are. Nothing after them can hold the mark: log ids have no colon."""
    at = data.rfind(MARK)
    return None if at < 0 or at + len(MARK) + len(_ZEROS) > len(data) else at + len(MARK)


def _digits(data: memoryview, at: int) -> bytes:
    crc = zlib.crc32(data[at + len(_ZEROS) :], zlib.crc32(_ZEROS, zlib.crc32(data[:at])))
    return b"%08x" % crc


def seal_json(name: str, data: bytes) -> bytes:
    """A JSON object with its checksum as its last field, which counts the object's name too."""
    return data[:-1] + b',"crc32":"%08x"}' % zlib.crc32(data, zlib.crc32(name.encode()))


def unseal_json(name: str, data: bytes) -> bytes:
    """The JSON object without its checksum, which one of an earlier release does not have. Raises `ArchiveError` if they do not agree."""
    found = _LAST_FIELD.search(data)
    if found is None:
        return data
    plain = data[: found.start()] + b"}"
    if zlib.crc32(plain, zlib.crc32(name.encode())) != int(found[1], 16):
        raise changed(name)
    return plain

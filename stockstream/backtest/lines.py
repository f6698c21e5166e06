"""Raw records as JSON lines, plain, gzip or zstd: `{"timestamp": Kafka's time in ms, "value": the message}` and optionally `key partition offset`."""

from __future__ import annotations

import base64
import binascii
import contextlib
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any

import msgspec
import pyarrow as pa

from stockstream.errors import SourceError
from stockstream.transforms.cleaning.limits import MAX_INT, MAX_OFFSET

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
REPORT_BYTES = 1_000_000
"""Progress is reported after so many bytes of the file."""


class _Line(msgspec.Struct, gc=False):
    """`value` is the message as JSON, or as a text; `value_base64` replaces it where it is not UTF-8, as in an archive."""

    timestamp: Annotated[int, msgspec.Meta(ge=-1, le=MAX_INT)]
    value: msgspec.Raw = msgspec.Raw()
    key: str | None = None
    partition: Annotated[int, msgspec.Meta(ge=0, le=1023)] | None = None
    offset: Annotated[int, msgspec.Meta(ge=0, le=MAX_OFFSET - 1)] | None = None
    key_base64: str | None = None
    value_base64: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """One record: Kafka's time in epoch ms, -1 where it is unknown; partition and offset None where the line has none."""

    timestamp: int
    key: bytes | None
    value: bytes | None
    partition: int | None
    offset: int | None


_decode = msgspec.json.Decoder(_Line).decode
_decode_text = msgspec.json.Decoder(str).decode


def line_of(text: bytes) -> Line:
    """The record in a line. Raises `ValueError` where it holds none; msgspec's errors and Unicode's are such."""
    line = _decode(text)
    value: bytes | None
    if line.value_base64 is not None:
        value = base64.b64decode(line.value_base64, validate=True)
    else:
        raw = bytes(line.value)
        if not raw:
            raise ValueError("it has no value")
        value = None if raw == b"null" else _decode_text(raw).encode() if raw[:1] == b'"' else raw
    key = base64.b64decode(line.key_base64, validate=True) if line.key_base64 is not None else None if line.key is None else line.key.encode()
    return Line(line.timestamp, key, value, line.partition, line.offset)


class JsonLines:
    """A file of such lines. `partitioned`: whether its first record names a partition. Raises `SourceError` where it cannot be read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        first = next(self.read(), None)
        self.partitioned = first is not None and first[1].partition is not None

    def read(self, advance: Callable[[int], None] = lambda done: None) -> Iterator[tuple[int, Line]]:
        """Each line's number, from 1, and its record; blank lines are left out. `advance` is called with the bytes of the file that were read since."""
        number, done = 0, 0
        try:
            with self.path.open("rb") as file, decompressed(file) as lines:
                for number, text in enumerate(lines, 1):
                    if not text.strip():
                        continue
                    try:
                        line = line_of(text)
                    except (msgspec.MsgspecError, ValueError, binascii.Error, RecursionError) as error:
                        raise SourceError(f"{self.path}: line {number}: {_why(error)}") from error
                    yield number, line
                    if (at := file.tell()) - done >= REPORT_BYTES:
                        advance(at - done)
                        done = at
                advance(file.tell() - done)
        except (OSError, EOFError, zlib.error, pa.ArrowException) as error:
            raise SourceError(f"{self.path}: cannot be read after line {number}: {error}") from error


def decompressed(file: IO[bytes]) -> Any:
    """The file's lines: plain, gzip or zstd, by its first bytes. A context, whose value is iterated."""
    begin = file.read(4)
    file.seek(0)
    if begin.startswith(GZIP):
        return gzip.GzipFile(fileobj=file)
    if begin == ZSTD:
        return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(file, mode="r"), "zstd"))
    return contextlib.nullcontext(file)


def _why(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else str(error)

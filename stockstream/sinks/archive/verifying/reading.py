"""Which objects a verification reads: all, those of some dates, a sample, or those that an interrupted run has not verified yet."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import IO

import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.raw_objects import Extent
from stockstream.sinks.archive.retention import date_of
from stockstream.wording import one_line

VERSION = 1
Stamps = dict[str, tuple[int, str]]
"""By name of an object: its size, and when it was written."""


class Verified(msgspec.Struct, frozen=True, omit_defaults=True):
    """An object in which no fault was found, or a raw object with all that is made of it: `stamps` of these objects as they were read, and what was counted."""

    name: str
    stamps: Stamps
    extent: Extent | None = None
    ticks: int = 0
    missing: int = 0
    compared: int = 0
    not_compared: int = 0
    reason: str = ""
    rows: int = 0


class _Head(msgspec.Struct, frozen=True):
    """The first line of a state file: what must be the same in the run that continues."""

    stockstream_verify: int
    archive: str
    recompute: bool


_decode_head = msgspec.json.Decoder(_Head).decode
_decode_verified = msgspec.json.Decoder(Verified).decode
_encode = msgspec.json.Encoder().encode


class StateFile:
    """What was verified, one JSON line for each raw object with what is made of it, and for each other object. A kill costs the last line at the most.

    Raises `ArchiveError` if the file is damaged, or of another archive.
    """

    def __init__(self, path: Path, archive: str, *, recompute: bool) -> None:
        self.path = path
        self._head = _Head(VERSION, archive, recompute)
        self._known: dict[str, Verified] = {}
        try:
            data = path.read_bytes() if path.exists() else b""
            whole = data[: data.rfind(b"\n") + 1]
            self._read(whole)
            self._file: IO[bytes] = path.open("r+b" if data else "wb")
            self._file.truncate(len(whole))
            self._file.seek(len(whole))
        except OSError as error:
            raise ArchiveError(f"{path}: cannot be used as a state file: {error.strerror or error}") from error
        if not whole:
            self._write(_encode(self._head))

    def _read(self, data: bytes) -> None:
        for number, line in enumerate(data.splitlines(), 1):
            try:
                if number > 1:
                    one = _decode_verified(line)
                    self._known[one.name] = one
                    continue
                head = _decode_head(line)
            except (msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise ArchiveError(f"{self.path}: line {number} is not of a state file: {one_line(error)}; delete the file to begin again") from error
            if head.stockstream_verify != VERSION:
                raise ArchiveError(f"{self.path} has version {head.stockstream_verify}, and this release reads {VERSION}; delete the file to begin again")
            if head != self._head:
                how = "with" if head.recompute else "without"
                raise ArchiveError(f"{self.path} is of a verification of {head.archive} {how} --recompute; name another file")

    def find(self, name: str, stamps: Stamps) -> Verified | None:
        """What was found when the object was verified, if it and what is made of it are as they were."""
        one = self._known.get(name)
        return one if one is not None and one.stamps == stamps else None

    def add(self, one: Verified) -> None:
        self._write(_encode(one))

    def _write(self, line: bytes) -> None:
        try:
            self._file.write(line + b"\n")
            self._file.flush()
        except OSError as error:
            raise ArchiveError(f"{self.path}: cannot be written: {error.strerror or error}") from error

    def __enter__(self) -> StateFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


@dataclass(slots=True)
class Reading:
    """Which objects are read. Dates: `begin` to `end`, None: no limit. `sample`: the share of objects, chosen by `seed` and name. `state`: of `--resume`.

    `there`, `read` and `before` count objects of these dates: all, those that were read, and those that were verified in an earlier run.
    """

    begin: date | None = None
    end: date | None = None
    sample: float = 1.0
    seed: int = 0
    state: StateFile | None = None
    stamps: Mapping[str, tuple[int, str]] = field(default_factory=dict)
    """Of all objects that were listed."""
    there: int = 0
    read: int = 0
    before: int = 0

    @property
    def partial(self) -> bool:
        """Whether there are dates or a sample."""
        return self.sample < 1 or self.dates

    @property
    def dates(self) -> bool:
        """Whether there are dates."""
        return self.begin is not None or self.end is not None

    def dated(self, name: str) -> bool:
        """Whether an object is in a folder of the dates. One without a date is."""
        day = date_of(name)
        return day is None or ((self.begin is None or day >= self.begin) and (self.end is None or day <= self.end))

    def chosen(self, name: str) -> bool:
        """Whether an object is in the sample."""
        return self.sample >= 1 or zlib.crc32(f"{self.seed} {name}".encode()) < self.sample * (1 << 32)

    def stamps_of(self, *names: str) -> Stamps:
        """Of the objects that were listed; 0 bytes for one that was not."""
        return {name: self.stamps.get(name, (0, "")) for name in names}

    def known(self, name: str, stamps: Stamps) -> Verified | None:
        """What an earlier run found, if nothing has changed since."""
        return self.state.find(name, stamps) if self.state is not None else None

    def verified(self, one: Verified) -> None:
        """Nothing is wrong with an object. It is recorded, unless it came after the listing."""
        if self.state is not None and all(size for size, _ in one.stamps.values()):
            self.state.add(one)

"""Names and records of compactions. A compaction replaces small objects of one folder by one object with the same rows.

Number n (0, 1, ...) of a folder consists of the data object `compacted-{n}.parquet` in that folder, whose footer lists its sources, and of the manifest in
`compactions/`, which is a function of that footer. The data object is created first. From the creation of the manifest on, the data object counts and its
sources do not; then the sources are deleted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.layout import Name
from stockstream.sinks.entries import Entry
from stockstream.sinks.stores import Store

MANIFESTS = "compactions/"
_DATA = re.compile(r"processed/(?P<area>[a-z0-9_]+)/(?P<folder>date=\d{4}-\d\d-\d\d(?:/hour=\d\d)?)/compacted-(?P<number>\d{5})\.parquet")
_MANIFEST = re.compile(r"compactions/date=(?P<date>\d{4}-\d\d-\d\d)/(?P<area>[a-z0-9_]+?)(?:-(?P<hour>\d\d))?-(?P<number>\d{5})\.json")


class Replaced(msgspec.Struct, frozen=True):
    """One line of a manifest: the small objects of this folder whose first offset is in `first` to `last` are replaced. `hour` is -1 in a folder of a day."""

    area: str
    date: str
    hour: int
    log: str
    partition: int
    first: int
    last: int
    compaction: int


class Range(msgspec.Struct, frozen=True):
    """The part that the footers of all small objects have in common: the offsets that an object accounts for, and its rows."""

    log: str
    partition: int
    first: int
    last: int
    rows: int


@dataclass(frozen=True, slots=True, order=True)
class Compaction:
    """Area (`ticks`), folder (`date=2025-10-09/hour=08`) and number of a compaction."""

    area: str
    folder: str
    number: int

    @property
    def data(self) -> str:
        """The name of its data object."""
        return f"processed/{self.area}/{self.folder}/compacted-{self.number:05d}.parquet"

    @property
    def manifest(self) -> str:
        """The name of its manifest."""
        return f"{manifest_prefix(self.area, self.folder)}{self.number:05d}.json"


_encode_lines = msgspec.json.Encoder().encode_lines
_decode_lines = msgspec.json.Decoder(Replaced).decode_lines


def manifest_prefix(area: str, folder: str) -> str:
    """How the names of all manifests of a folder begin."""
    return f"{MANIFESTS}{folder.replace('/hour=', f'/{area}-') if '/' in folder else f'{folder}/{area}'}-"


def compaction_of_data(name: str) -> Compaction | None:
    """The compaction with this data object; None if the name is another object's."""
    match = _DATA.fullmatch(name)
    return Compaction(match["area"], match["folder"], int(match["number"])) if match else None


def compaction_of_manifest(name: str) -> Compaction | None:
    """The compaction with this manifest; None if the name is another object's."""
    match = _MANIFEST.fullmatch(name)
    if match is None:
        return None
    hour = f"/hour={match['hour']}" if match["hour"] else ""
    return Compaction(match["area"], f"date={match['date']}{hour}", int(match["number"]))


def manifest_of(compaction: Compaction, sources: Iterable[Range]) -> bytes:
    """The manifest of a compaction with these sources: JSON lines, one for each stretch of offsets without a gap."""
    date, _, hour = compaction.folder.removeprefix("date=").partition("/hour=")
    found: list[Replaced] = []
    for one in sorted(sources, key=lambda source: (source.log, source.partition, source.first)):
        before = found[-1] if found else None
        if before and (before.log, before.partition, before.last + 1) == (one.log, one.partition, one.first):
            found[-1] = msgspec.structs.replace(before, last=one.last)
        else:
            found.append(Replaced(compaction.area, date, int(hour or -1), one.log, one.partition, one.first, one.last, compaction.number))
    return _encode_lines(found)


def read_manifest(store: Store, compaction: Compaction) -> list[Replaced]:
    """Reads a manifest. Raises `ArchiveError` if it is broken or does not exist."""
    try:
        return _decode_lines(store.read(compaction.manifest))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{compaction.manifest} cannot be read: {error}") from error


def dated(store: Store, prefix: str, begin: date | None = None, end: date | None = None) -> list[Entry]:
    """The objects under `prefix` (`raw/`) in the folders of dates `begin` to `end`."""
    found = []
    for entry in store.entries(prefix, f"{prefix}date={begin}" if begin else ""):
        if end and entry.name[len(prefix) :] > f"date={end}0":           # behind the folder of `end`, before that of the next day
            break
        found.append(entry)
    return found


def list_compactions(store: Store, begin: date | None = None, end: date | None = None) -> list[Compaction]:
    """The compactions that have a manifest, in the folders of dates `begin` to `end`."""
    return [found for entry in dated(store, MANIFESTS, begin, end) if (found := compaction_of_manifest(entry.name))]


def compactions_of(store: Store, area: str, folder: str) -> list[Compaction]:
    """The compactions of one folder that have a manifest, in the order of their numbers."""
    return [found for name in store.list(manifest_prefix(area, folder)) if (found := compaction_of_manifest(name))]


def replaced_by(store: Store, name: Name) -> Compaction | None:
    """The compaction that replaced this small object of `processed/`; None if it counts itself, or does not exist.

    What a compaction deletes has its manifest before. So if an object could not be found, and then this answers None, it has never existed; and if it could
    be created, and this answers a compaction, it had existed and does not count.
    """
    for compaction in compactions_of(store, name.area.removeprefix("processed/"), name.folder):
        if covers(read_manifest(store, compaction), name):
            return compaction
    return None


def covers(lines: Iterable[Replaced], name: Name) -> bool:
    """Whether a manifest with these lines replaces this small object of its folder."""
    return any(line.log == name.log and line.partition == name.partition and line.first <= name.first <= line.last for line in lines)

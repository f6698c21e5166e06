"""The chain of raw objects of one partition of one log."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.layout import CHAIN_FOLDER, LOG_ID, FolderChange, Lost, folder_of_hour, parse_name, raw_name
from stockstream.sinks.archive.raw_objects import CleanSettings, Extent, Piece, Tail, encode_json, hole_object, raw_object, read_extent
from stockstream.sinks.archive.retention import raw_ended_through
from stockstream.sinks.archive.sealing import seal_json
from stockstream.sinks.stores import Store

_decode_entry: Callable[[bytes], FolderChange | Lost] = msgspec.json.Decoder(FolderChange | Lost).decode


def chains(store: Store) -> list[tuple[str, int]]:
    """Log id and partition of every chain, sorted."""
    found = {name.split("/")[1] for name in store.list("chains/")}
    return sorted((text[:-6], int(text[-5:])) for text in found if CHAIN_FOLDER.fullmatch(text))


def chain_begins(store: Store, log: str, partition: int) -> int:
    """First offset that the chain accounts for: 0, or the first that retention had left in Kafka when the first object was written, or that it leaves here."""
    begin = 0
    for name in store.list(f"chains/{log}-{partition:05d}/"):
        entry = _read_entry(store, name)
        if isinstance(entry, FolderChange) or entry.first != begin:
            break
        begin = entry.through + 1
    return max(begin, raw_ended_through(store, log, partition) + 1)


def entry_name(log: str, partition: int, first: int) -> str:
    """The name of the entry in `chains/` for what happens at offset `first`."""
    return f"chains/{log}-{partition:05d}/{first:020d}.json"


def decode_entry(name: str, data: bytes) -> FolderChange | Lost:
    """The entry in an object of `chains/`. Raises `ArchiveError` if it cannot be read; its checksum is not looked at."""
    try:
        return _decode_entry(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error


def chain_entries(store: Store, log: str, partition: int) -> list[int]:
    """The offsets of a chain's entries, ascending."""
    return [int(name.rpartition("/")[2][:20]) for name in store.list(f"chains/{log}-{partition:05d}/")]


def read_entry(store: Store, log: str, partition: int, offset: int) -> FolderChange | Lost:
    """The entry of a chain at this offset. Raises `ArchiveError`."""
    return _read_entry(store, entry_name(log, partition, offset))


def _read_entry(store: Store, name: str) -> FolderChange | Lost:
    return decode_entry(name, store.read(name))


class Chain:
    """The raw objects of one partition of one log, in order; blocking, for one thread at a time.

    `end` is the last offset accounted for (-1 before the first), `folder` the folder of the newest object, `tail` the newest record. A call that fails
    with `ArchiveUnavailable` may have taken effect: repeat it, or continue with other pieces that begin at `end` + 1. New objects record `settings`.
    """

    def __init__(self, store: Store, log: str, partition: int, settings: CleanSettings | None = None) -> None:
        if not LOG_ID.fullmatch(log):
            raise ArchiveError(f"log id {log!r} cannot be part of a name")
        self.store, self.log, self.partition, self.settings = store, log, partition, settings
        self.end = -1
        self.folder: str | None = None
        self.tail: Tail | None = None
        self.newest = ""

    def open(self) -> None:
        """Finds the end of the chain: the newest change of folder, and the newest object in that folder."""
        for change in self._folder_changes():
            if self.folder is None:
                self.folder, self.end = change.folder, change.first - 1
            names = self.names(change.folder, change.first)
            if names:
                self._advance(names[-1], read_extent(self.store, names[-1]))
                return
        if self.folder is None:
            self.end = chain_begins(self.store, self.log, self.partition) - 1

    def _entries(self) -> list[str]:
        return list(self.store.list(f"chains/{self.log}-{self.partition:05d}/"))

    def _folder_changes(self) -> Iterator[FolderChange]:
        for name in reversed(self._entries()):
            entry = _read_entry(self.store, name)
            if isinstance(entry, FolderChange):
                yield entry

    def names(self, folder: str, first: int = 0) -> list[str]:
        """Raw objects of this chain in one folder, from the one that begins at `first` on."""
        prefix = f"raw/{folder}/{self.log}-{self.partition:05d}-"
        found = self.store.list(prefix, raw_name(folder, self.log, self.partition, first)[:-1])
        return [name for name in found if len(name) == len(prefix) + 20 + len(".jsonl.zst")]

    def backwards(self) -> Iterator[str]:
        """Names of the chain's raw objects, the newest first."""
        before: int | None = None
        for change in self._folder_changes():
            for name in reversed(self.names(change.folder, change.first)):
                parsed = parse_name(name)
                if parsed and (before is None or parsed.first < before):
                    yield name
            before = change.first

    def append(self, pieces: Sequence[Piece]) -> None:
        """Adds one object with these pieces, unless another writer was first. In both cases `end` is then the last offset accounted for.

        The pieces are contiguous from `end` + 1 on. An object goes to the folder of its first record's hour. If that folder is another than before, an entry
        in `chains/` is created first, so that readers can follow the chain. If retention deleted offsets at the object's beginning, another writer may still
        buffer them. In the same folder its object would have the same name as this one. In another folder it needs an entry, whose name this writer takes
        by an entry of its own.
        """
        first = pieces[0].start
        if first != self.end + 1:
            raise ArchiveError(f"partition {self.partition}: an object that begins at offset {first} cannot follow offset {self.end}")
        wanted = folder_of_hour(pieces[0].hour)
        lost = pieces[0].offsets[0] - 1
        if pieces[0].expired and lost >= first:
            if not self._record_loss(first, lost):
                return
            if self.folder != wanted:
                self._create(*hole_object(self.log, self.partition, self.newest, first, lost, self.tail))
                return
        elif self.folder != wanted and not self._change_folder(first, wanted):
            return
        extent, data = raw_object(self.log, self.partition, self.newest, pieces, self.settings)
        self._create(extent, data)

    def append_hole(self, last: int) -> None:
        """Records that retention deleted the offsets `end` + 1 to `last`, if no later record is available."""
        first = self.end + 1
        if self._record_loss(first, last) and self.end < first:
            self._create(*hole_object(self.log, self.partition, self.newest, first, last, self.tail))

    def _record_loss(self, first: int, last: int) -> bool:
        """Creates the entry of a loss. Returns False if the chain's end has moved; otherwise an object in `folder` follows."""
        entry = self._create_entry(Lost(first, last))
        if isinstance(entry, FolderChange):
            self.folder = entry.folder
        elif self.folder is None:
            self.end = entry.through
            return False
        return True

    def _change_folder(self, first: int, folder: str) -> bool:
        entry = self._create_entry(FolderChange(first, folder))
        if isinstance(entry, FolderChange):
            self.folder = entry.folder
            return True
        if self.folder is None:
            self.end = entry.through
        else:
            self._create(*hole_object(self.log, self.partition, self.newest, entry.first, entry.through, self.tail))
        return False

    def _create_entry(self, entry: FolderChange | Lost) -> FolderChange | Lost:
        name = entry_name(self.log, self.partition, entry.first)
        if self.store.create(name, seal_json(name, encode_json(entry))):
            return entry
        return _read_entry(self.store, name)

    def _create(self, extent: Extent, data: bytes) -> None:
        name = raw_name(self.folder or "", self.log, self.partition, extent.first)
        if not self.store.create(name, data):
            extent = read_extent(self.store, name)
        self._advance(name, extent)

    def _advance(self, name: str, extent: Extent) -> None:
        self.newest, self.end, self.tail = name, extent.last, extent.tail

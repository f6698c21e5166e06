"""Checks the entries of one chain in `chains/`: each by itself, and against the objects of the chain."""

from __future__ import annotations

from collections.abc import Sequence

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.chain import decode_entry, entry_name
from stockstream.sinks.archive.layout import FolderChange, Lost, Name
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.sealing import unseal_json
from stockstream.sinks.archive.verifying.parquet_objects import canonical
from stockstream.sinks.stores import Store


class ChainEntries:
    """The entries of a chain, read once; `faults` gets what is wrong with them. `begin` is the first offset that the chain accounts for."""

    def __init__(self, store: Store, log: str, partition: int, names: Sequence[str], faults: list[str]) -> None:
        self.log, self.partition, self._faults = log, partition, faults
        self.folders: dict[int, str] = {}
        """By first offset."""
        self.lost: dict[int, int] = {}
        """By first offset: the last one that was lost."""
        self._broken = False
        """Whether an entry could not be read: what it has is then not known."""
        for name in names:
            entry = self._read(store, name)
            if isinstance(entry, FolderChange):
                self.folders[entry.first] = entry.folder
            elif entry is not None:
                self.lost[entry.first] = entry.through
        self.begin = 0
        while self.begin in self.lost:
            self.begin = self.lost[self.begin] + 1
        self._unused = set(self.folders) | {first for first in self.lost if first >= self.begin}
        self._folder = ""

    def _read(self, store: Store, name: str) -> FolderChange | Lost | None:
        try:
            data = store.read(name)
            entry = decode_entry(name, data)
            canonical(name, unseal_json(name, data), encode_json(entry))
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            self._faults.append(str(error))
            self._broken = True
            return None
        if name != entry_name(self.log, self.partition, entry.first):
            self._faults.append(f"{name}: it is about offset {entry.first} of the chain, which is not its name's")
            return None
        return entry

    def folder_at(self, offset: int) -> str:
        """The folder in which the chain's objects were at this offset; empty if the entries do not show it."""
        return self.folders[max(known)] if (known := [first for first in self.folders if first <= offset]) else ""

    def end_through(self, offset: int) -> None:
        """Retention has ended the objects through this offset, so nothing is expected of the entries of earlier ones."""
        self._folder = self.folder_at(offset)
        self._unused = {first for first in self._unused if first > offset}
        self.begin = max(self.begin, offset + 1)

    def take(self, name: str, parsed: Name, count: int) -> None:
        """Takes the chain's next raw object, with `count` records: its folder must be the one that the entries name."""
        self._unused.discard(parsed.first)
        folder = self.folders.get(parsed.first)
        if folder is not None:
            self._folder = folder
        if parsed.folder != self._folder and not self._broken:
            if self._folder and folder == self._folder:
                self._faults.append(f"{name}: chains/ has its offset {parsed.first} in {self._folder}")
            else:
                entry = entry_name(self.log, self.partition, parsed.first)
                self._faults.append(f"{name}: chains/ does not name its folder: {entry} is missing, or the object is a copy")
        if not count and parsed.first not in self.lost and not self._broken:
            self._faults.append(f"{entry_name(self.log, self.partition, parsed.first)} is missing: {name} has no records because they were lost")

    def end(self, last: int) -> None:
        """All raw objects were taken; `last` is the last offset that they account for. What the entries have of later ones is not written yet."""
        for first in sorted(self._unused):
            if first <= last:
                name = entry_name(self.log, self.partition, first)
                self._faults.append(f"{name}: no raw object of the chain begins at offset {first}")

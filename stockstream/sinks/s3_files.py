"""An archive's objects in a bucket as files that DuckDB opens, by fsspec. They can only be read."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from fsspec.spec import AbstractBufferedFile, AbstractFileSystem

from stockstream.locations import S3_URL
from stockstream.sinks.entries import Entry
from stockstream.sinks.s3 import S3Store

BLOCK = 4_000_000
"""A request reads at least this much, if the object has it: most objects are smaller, and a request costs more than the bytes."""


class S3Files(AbstractFileSystem):
    """The objects that `add` made known, as `s3://bucket/prefix/name`."""

    protocol = "s3"
    cachable = False

    def __init__(self, store: S3Store) -> None:
        super().__init__()
        self._store = store
        self._base = f"{store.url}/".removeprefix(S3_URL)
        self._objects: dict[str, Entry] = {}

    def add(self, entries: Iterable[Entry]) -> list[str]:
        """Makes these objects known. Returns the URL of each."""
        urls = []
        for one in entries:
            self._objects[self._base + one.name] = one
            urls.append(f"{self._store.url}/{one.name}")
        return urls

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        one = self._known(path)
        return {"name": self._strip_protocol(path), "size": one.size, "type": "file", "LastModified": one.modified}

    def modified(self, path: str) -> datetime:
        return self._known(path).modified

    def exists(self, path: str, **_: Any) -> bool:
        return self._strip_protocol(path) in self._objects

    def glob(self, path: str, **_: Any) -> list[str]:
        """DuckDB asks for each file that it is given. No name of an archive has a wildcard."""
        return [str(self._strip_protocol(path))] if self.exists(path) else []

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        return [self.info(path) if detail else self._strip_protocol(path)]

    def read_bytes_of(self, path: str, first: int, end: int) -> bytes:
        """The bytes `first` to `end` - 1. Raises `ArchiveError`."""
        return self._store.read_range(self._known(path).name, first, end)

    def _known(self, path: str) -> Entry:
        one = self._objects.get(str(self._strip_protocol(path)))
        if one is None:
            raise FileNotFoundError(path)
        return one

    def _open(self, path: str, mode: str = "rb", **_: Any) -> _File:
        if mode != "rb":
            raise PermissionError(f"{path}: the archive can only be read")
        size = self._known(path).size
        return _File(self, path, mode, block_size=min(BLOCK, max(size, 1)), cache_type="readahead", size=size)


class _File(AbstractBufferedFile):
    def _fetch_range(self, start: int, end: int) -> bytes:
        files: S3Files = self.fs
        return files.read_bytes_of(self.path, start, end)

"""Object stores for the archive. A name is relative, with slashes. An object never changes once it exists."""

from __future__ import annotations

import errno
import os
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO, Protocol

from stockstream.errors import ArchiveError, ArchiveUnavailable, SettingsError
from stockstream.locations import S3_URL, archive_folder, require_writable
from stockstream.settings import Settings, load_settings
from stockstream.sinks.entries import Entry
from stockstream.sinks.s3 import S3Access, S3Store

SCHEMES = ("file", "s3")
TEMPORARY = ".tmp"
PARTS = {"raw": "date=", "processed": "ticks/"}
"""Folders of an archive that are easily taken for the archive itself, and what lies in them."""
CALLS_AT_ONCE = 8
"""Calls to a store that are made side by side, where many objects are read or deleted."""
STALE_S = 3_600
"""A temporary file older than this has no living writer. (A writer that was suspended for longer finds it gone, and retries.)"""


class Store(Protocol):
    """The contract of a store. Every call may block. A store does not wait for one that is down: whoever calls it tries again.

    `url` names the place. All methods raise `ArchiveUnavailable` if a retry may succeed, and `ArchiveError` if it cannot.
    """

    url: str

    def create(self, name: str, data: bytes) -> bool:
        """Creates the object `name` with all of `data`, or nothing. Returns False if an object of that name exists already.

        After an error the object may or may not exist. A store that repeats a request whose answer was lost returns True if the object holds `data`.
        """

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        """Names that begin with `prefix` and sort after `start_after`, in ascending order of their bytes."""

    def entries(self, prefix: str, start_after: str = "") -> Iterator[Entry]:
        """Like `list`, with each object's size and time. An object that is deleted meanwhile may be missing."""

    def delete(self, name: str) -> None:
        """Deletes the object, if it exists. Only for what compaction has replaced and what retention ends: an object's bytes never change otherwise."""

    def read(self, name: str, tail: int = 0) -> bytes:
        """The object's bytes, or its last `tail` bytes. Raises `ArchiveError` if there is no such object."""

    def read_range(self, name: str, first: int, end: int) -> bytes:
        """The bytes `first` to `end` - 1, fewer at the object's end. Raises `ArchiveError` if there is no such object."""

    def size(self, name: str) -> int | None:
        """Size in bytes; None if there is no such object."""


def open_store(url: str, settings: Settings | None = None) -> FileStore | S3Store:
    """The store that `url` names by its scheme; a plain path is a folder. `settings` (by default those of the environment) have the way to a bucket.

    Raises `SettingsError`.
    """
    scheme = url.partition("://")[0] if "://" in url else "file"
    if scheme not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise SettingsError(f"archive {url!r} has the scheme {scheme}://, which is not supported; use a plain path or one of: {known}")
    if scheme == "file":
        return FileStore(archive_folder(url))
    try:
        return S3Store(url, S3Access.of(settings or load_settings()))
    except SettingsError as error:
        raise SettingsError(f"archive {error}") from error


def archive_place(given: str | None, settings: Settings | None = None) -> str:
    """The URL or path of the archive that a command's `--archive` names, else the settings. Raises `SettingsError` if neither names one."""
    chosen = given or (settings or load_settings()).archive
    if chosen == "none":
        raise SettingsError("there is no archive: STOCKSTREAM_ARCHIVE is none; name the archive's folder with --archive")
    return chosen


def open_root(place: str, folder: str, settings: Settings | None = None) -> FileStore | S3Store:
    """The store in which `place` is this folder (`raw`), or which has such a folder. Raises `SettingsError` as `open_store`."""
    root, slash, name = place.rstrip("/").rpartition("/")
    if name != folder:
        return open_store(place, settings)
    return open_store((root or "/") if slash else ".", settings)


def open_archive(url: str, settings: Settings | None = None) -> FileStore | S3Store:
    """The store of an archive, for what only reads; `settings` as for `open_store`.

    Raises `ArchiveError` if it does not exist, cannot be read or is only a part of an archive, `SettingsError` as `open_store`."""
    store = require_archive(open_store(url, settings), "; --archive or STOCKSTREAM_ARCHIVE names another place")
    whole, _, folder = store.url.rpartition("/")
    if folder in PARTS and next(store.list(PARTS[folder]), None) is not None and next(store.list(f"{folder}/"), None) is None:
        raise ArchiveError(f"{place_of(store)} is the folder {folder} of an archive: name the archive itself, {whole.removeprefix('file://')}")
    return store


def place_of(store: FileStore | S3Store) -> str:
    """The store's place for messages: of a folder its path, of a bucket its URL."""
    return store.url.removeprefix("file://")


def require_archive(store: FileStore | S3Store, advice: str = "") -> FileStore | S3Store:
    """The store, if it can be read. Raises `ArchiveError`, which ends with `advice`, or `SettingsError` if it does not exist or cannot be read."""
    if isinstance(store, S3Store):
        store.require_readable("archive")
    elif not store.root.is_dir():
        raise ArchiveError(f"there is no archive: {store.root} {'is not a folder' if store.root.exists() else 'does not exist'}{advice}")
    return store


def require_writable_archive(settings: Settings) -> str:
    """Tries to write to the archive, whose folder is created if it is missing. `settings.archive` is not none.

    Returns why it cannot be written for now; empty if it can. Raises `SettingsError` if waiting cannot help.
    """
    name = "STOCKSTREAM_ARCHIVE"
    if settings.archive.startswith(S3_URL):
        return S3Store(settings.archive, S3Access.of(settings)).require_writable(name)
    return require_writable(Path(settings.archive), name)


class FileStore:
    """A store in a folder. It writes an object to a temporary file on the same file system, syncs it, then links it to its name.

    So an object is complete or absent, even if the process is killed.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.url = f"file://{self.root}"
        self._swept = False

    def create(self, name: str, data: bytes) -> bool:
        target = self.root / name
        temporary = self.root / TEMPORARY / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            if target.exists():
                return False
            temporary.parent.mkdir(parents=True, exist_ok=True)
            if not self._swept:
                self._sweep(temporary.parent)
            try:
                self._write(temporary, data)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(temporary, target)
            finally:
                with suppress(OSError):         # a leftover file is harmless: the next start removes it
                    temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)
        except FileExistsError:
            return False
        except OSError as error:
            raise _failure(f"{self.root}: cannot write {name}", error) from error
        return True

    def _write(self, path: Path, data: bytes) -> None:
        with path.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        folder = prefix.rpartition("/")[0]
        try:
            yield from self._walk(folder + "/" if folder else "", prefix, start_after)
        except OSError as error:
            raise _failure(f"{self.root}: cannot list {prefix!r}", error) from error

    def _walk(self, folder: str, prefix: str, start_after: str) -> Iterator[str]:
        try:
            with os.scandir(self.root / folder) as entries:
                names = sorted(folder + entry.name + ("/" if entry.is_dir() else "") for entry in entries)
        except FileNotFoundError:
            return
        for name in names:
            if name.startswith(TEMPORARY) or not (name.startswith(prefix) or prefix.startswith(name)):
                continue
            if name.endswith("/"):
                if name > start_after or start_after.startswith(name):
                    yield from self._walk(name, prefix, start_after)
            elif name > start_after:
                yield name

    def entries(self, prefix: str, start_after: str = "") -> Iterator[Entry]:
        for name in self.list(prefix, start_after):
            try:
                found = (self.root / name).stat()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise _failure(f"{self.root}: cannot look at {name}", error) from error
            yield Entry(name, found.st_size, datetime.fromtimestamp(found.st_mtime, UTC))

    def delete(self, name: str) -> None:
        try:
            (self.root / name).unlink(missing_ok=True)
        except OSError as error:
            raise _failure(f"{self.root}: cannot delete {name}", error) from error

    def read(self, name: str, tail: int = 0) -> bytes:
        def whole(file: BinaryIO) -> bytes:
            if tail:
                file.seek(max(0, os.fstat(file.fileno()).st_size - tail))
            return file.read()

        return self._read(name, whole)

    def read_range(self, name: str, first: int, end: int) -> bytes:
        def part(file: BinaryIO) -> bytes:
            file.seek(first)
            return file.read(max(0, end - first))

        return self._read(name, part)

    def _read(self, name: str, take: Callable[[BinaryIO], bytes]) -> bytes:
        try:
            with (self.root / name).open("rb") as file:
                return take(file)
        except FileNotFoundError:
            raise ArchiveError(f"{self.root}: there is no {name}") from None
        except OSError as error:
            raise _failure(f"{self.root}: cannot read {name}", error) from error

    def size(self, name: str) -> int | None:
        try:
            return (self.root / name).stat().st_size
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _failure(f"{self.root}: cannot look at {name}", error) from error

    def _sweep(self, folder: Path) -> None:
        for path in folder.iterdir():
            with suppress(FileNotFoundError):   # another worker may remove it first
                if time.time() - path.stat().st_mtime > STALE_S:
                    path.unlink()
        self._swept = True


def _failure(doing: str, error: OSError) -> ArchiveError:
    reason = error.strerror or str(error)
    if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
        return ArchiveError(f"{doing}: {reason} (the archive needs a file system with hard links)")
    return ArchiveUnavailable(f"{doing}: {reason}")


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":                         # Windows cannot open folders
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

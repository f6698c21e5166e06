"""Where a registry keeps its files: a folder, or whatever else has these few operations."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol


class Place(Protocol):
    """Files by relative path. All methods raise `OSError`, and `FileNotFoundError` if what they name does not exist."""

    where: str
    """The place as people write it."""

    def read(self, path: str) -> bytes:
        """The file's bytes."""

    def folders(self, below: str) -> list[str]:
        """Names of the folders in the folder `below` ("": the root), in any order."""

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Adds a folder with these files. It appears whole, or not at all: `folders` and the last of `files` show it only when it is complete."""

    def replace(self, path: str, data: bytes) -> None:
        """Writes a file, in one step, in place of the one of its name."""

    def prepare(self, folder: str) -> None:
        """Does nothing but fail where `add` below this folder would fail."""

    def marks(self, path: str) -> list[str]:
        """A text for the file, or for each file of the folder, in the order of their names. It changes whenever the file is written."""


class Folder:
    """A place in a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.where = str(self.root)

    def read(self, path: str) -> bytes:
        return (self.root / path).read_bytes()

    def folders(self, below: str) -> list[str]:
        return [path.name for path in (self.root / below).iterdir() if path.is_dir()]

    def add(self, folder: str, files: Mapping[str, bytes]) -> None:
        target = self.root / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
        try:
            for file, data in files.items():
                _write(beside / file, data)
            beside.chmod(0o755)
            beside.rename(target)
        except OSError:
            shutil.rmtree(beside, ignore_errors=True)
            raise
        _sync(target.parent)

    def replace(self, path: str, data: bytes) -> None:
        target = self.root / path
        handle, name = tempfile.mkstemp(prefix=".new-", dir=target.parent)
        os.close(handle)
        beside = Path(name)
        try:
            _write(beside, data)
            beside.replace(target)
            _sync(target.parent)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise

    def prepare(self, folder: str) -> None:
        path = self.root / folder
        path.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".new-", dir=path)).rmdir()

    def marks(self, path: str) -> list[str]:
        target = self.root / path
        found = sorted(target.iterdir()) if target.is_dir() else [target]
        return [f"{each.name}\0{at.st_size}\0{at.st_mtime_ns}\0{at.st_ino}\0" for each in found for at in [each.stat()]]


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    """Makes a rename in `folder` survive a power failure, if the system can (not on Windows)."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

"""Locks a folder for one process at a time, and names its holder."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from stockstream.errors import StockstreamError

LOCK_FILE = ".lock"
NO_LOCKS_HERE = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)
"""Errors of a file system without locks, such as some network shares."""
_LOCKED_BYTE = 1 << 20
"""The locked byte is far behind the text, because on Windows other processes cannot read a locked byte."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Process `pid` of `host` uses the folder since `since` (epoch s); `command` is its command line."""

    pid: int
    host: str
    since: float
    command: str

    @property
    def alive(self) -> bool:
        """Whether the process runs; assumed of a process on another machine."""
        return self.host != socket.gethostname() or _runs(self.pid)

    def __str__(self) -> str:
        where = "" if self.host == socket.gethostname() else f" on {self.host}"
        return f"process {self.pid}{where} since {time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(self.since))} ({self.command})"


class FolderLock:
    """A context manager that holds `folder`, and creates it if it is missing.

    The operating system holds the lock, so it ends with the process, also after SIGKILL. On a file system without locks, the folder of a
    holder that no longer runs is taken over. Raises `StockstreamError`, which names the holder, if another process has the folder.
    """

    def __init__(self, folder: Path, command: str) -> None:
        self.path = folder / LOCK_FILE
        self._command = command
        self._handle: int | None = None

    def __enter__(self) -> Self:
        folder = self.path.parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise StockstreamError(f"{folder} cannot be written: {error.strerror}") from error
        if not self._take(self._handle):
            os.close(self._handle)
            self._handle = None
            raise StockstreamError(f"{folder} is in use by {holder_of(folder) or 'another process'}")
        self._write(json.dumps(asdict(Holder(os.getpid(), socket.gethostname(), time.time(), self._command))).encode())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._handle is not None:
            self._write(b"")
            os.close(self._handle)
            self._handle = None

    def _take(self, handle: int) -> bool:
        try:
            _lock(handle)
        except OSError as error:
            if error.errno not in NO_LOCKS_HERE:
                return False
            holder = holder_of(self.path.parent)
            return holder is None or not holder.alive or holder.pid == os.getpid()
        return True

    def _write(self, text: bytes) -> None:
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, text)


def holder_of(folder: Path) -> Holder | None:
    """The last process that took the folder and did not release it; None if there is none."""
    try:
        return Holder(**json.loads((folder / LOCK_FILE).read_bytes()))
    except (OSError, ValueError, TypeError):
        return None


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        os.lseek(handle, _LOCKED_BYTE, os.SEEK_SET)
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

    def _runs(pid: int) -> bool:
        return True                                     # the system's lock decides

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _runs(pid: int) -> bool:
        with suppress(PermissionError):                 # a process of another user exists
            try:
                os.kill(pid, 0)
            except ProcessLookupError:
                return False
        return True

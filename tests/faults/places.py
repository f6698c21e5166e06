"""Where a pipeline under test archives: a folder, or a bucket of an S3 server on this machine."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream.sinks.s3 import MissingObject, S3Access, S3Store
from stockstream.sinks.stores import FileStore
from tests.standins.ministack import ministack
from tests.standins.s3 import S3Server, Server, environment_of, s3_server

STORES = ("file", "s3", "ministack")


class Place:
    """An archive in a folder, or in the bucket of a server under a prefix. `folder` then has a copy of it, which the checks read without our code."""

    def __init__(self, folder: Path, server: Server | None = None, prefix: str = "") -> None:
        self.folder = folder
        self.server = server
        self.url = f"s3://bucket/{prefix}" if server else f"file://{folder}"
        self.environment = server.environment(prefix) if server else {}
        """What workers need besides the settings of the line."""
        self.outages: list[tuple[float, float]] = []
        """When nobody could reach the store (begin and end, epoch s)."""

    def read(self) -> FileStore | S3Store | None:
        """The store as it is now, and the folder with the same content; None if there is none yet."""
        folder = FileStore(self.folder)
        if self.server is None:
            return folder if self.folder.exists() else None
        store = S3Store(self.url, S3Access(self.server.endpoint))
        names = set(store.list(""))
        known = set(folder.list("")) if self.folder.exists() else set()
        for name in known - names:
            folder.delete(name)
        for name in sorted(names - known):
            with contextlib.suppress(MissingObject):                     # a compaction has deleted it
                folder.create(name, store.read(name))
        return store if names else None

    @contextlib.contextmanager
    def fails(self, how: str, switch: Path) -> Iterator[None]:
        """The store fails in a way that `tests.faults.sabotage` knows; a bucket's server that can be stopped is down indeed."""
        stopped = self.server if how == "down" and isinstance(self.server, S3Server) else None
        if stopped is None:
            switch.write_text(how)
        else:
            begun = time.time()
            stopped.stop()
        try:
            yield
        finally:
            if stopped is not None:
                stopped.start()
                self.outages.append((begun, time.time()))
            else:
                switch.unlink()


@contextlib.contextmanager
def server_of(store: str) -> Iterator[Server | None]:
    """The server of one of STORES, with its credentials in this process's environment; None for files."""
    if store == "file":
        yield None
        return
    with pytest.MonkeyPatch.context() as environment:
        if store == "s3":
            with s3_server(environment) as moto:
                yield moto
        else:
            with ministack() as stack, environment_of(stack, environment):
                yield stack

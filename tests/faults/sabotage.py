"""A worker that commits one fault against itself: `python -m tests.faults.sabotage FAULT -A stockstream worker ...`. For tests only.

A fault is a patch of a name that the worker uses, made before the app is loaded; nothing in the product knows of it.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

SWITCH = "STOCKSTREAM_TEST_SWITCH"
"""Path of a file of the test's: the fault is on while it is there."""


def on() -> bool:
    """Whether the test has switched the fault on."""
    return Path(os.environ[SWITCH]).exists()


def skip_offsets() -> None:
    """Once for each partition of `ticks.raw`, and for each of our topics, drops one record out of a fetch, before the transport sees it."""
    from stockstream import transport

    inner = transport.Consumer._admit
    dropped: set[Any] = set()
    seen: dict[Any, int] = {}

    async def admit(self: Any, tp: Any, records: list[Any]) -> list[Any]:
        seen[tp] = seen.get(tp, 0) + 1
        if on() and tp not in dropped and seen[tp] > 3 and len(records) > 2:
            dropped.add(tp)
            at = len(records) // 2
            print(f"SABOTAGE: {tp.topic}[{tp.partition}] offset {records[at].offset} dropped", flush=True)
            records = [*records[:at], *records[at + 1 :]]
        elif on() and tp not in dropped and seen[tp] > 6 and records:
            dropped.add(tp)
            print(f"SABOTAGE: {tp.topic}[{tp.partition}] offset {records[0].offset} dropped", flush=True)
            records = records[1:]
            if not records:
                return []
        return await inner(self, tp, records)

    transport.Consumer._admit = admit  # type: ignore[method-assign]


def _store(create: Callable[[Any, Callable[[], bool], str], bool], others: Callable[[], None]) -> None:
    from stockstream.sinks import stores

    real = stores.FileStore

    class Store(real):  # type: ignore[misc, valid-type]
        def create(self, name: str, data: bytes) -> bool:
            return create(self, lambda: real.create(self, name, data), name)

        def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
            others()
            return real.list(self, prefix, start_after)

        def read(self, name: str, tail: int = 0) -> bytes:
            others()
            return real.read(self, name, tail)

        def size(self, name: str) -> int | None:
            others()
            return real.size(self, name)

    stores.FileStore = Store  # type: ignore[misc]


def store_fails() -> None:
    """The archive's store is down while the switch is on; then slow and failing at random for as many calls again."""
    from stockstream.errors import ArchiveUnavailable

    rng = random.Random(1)
    left = [60]

    def fail() -> None:
        if on():
            raise ArchiveUnavailable("SABOTAGE: the store is down")
        if left[0] > 0:
            left[0] -= 1
            time.sleep(0.02)
            if rng.random() < 0.3:
                raise ArchiveUnavailable("SABOTAGE: the store fails at random")

    def create(_: Any, go: Callable[[], bool], name: str) -> bool:
        fail()
        made = go()
        if left[0] > 0 and rng.random() < 0.2:
            raise ArchiveUnavailable(f"SABOTAGE: {name} may or may not be there")
        return made

    _store(create, fail)


def disk_full() -> None:
    """Writes of the archive fail with ENOSPC while the switch is on, half of them after a part of the data."""
    from stockstream.sinks import stores

    inner = stores.FileStore._write

    def write(self: Any, path: Path, data: bytes) -> None:
        if on():
            if random.random() < 0.5:
                path.write_bytes(data[: len(data) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        inner(self, path, data)

    stores.FileStore._write = write  # type: ignore[method-assign]


def crash_after_upload() -> None:
    """Dies, as by kill -9, right after an object was created and before anything is made of that; for the first creations after each start, while on."""
    count = [0]

    def create(_: Any, go: Callable[[], bool], name: str) -> bool:
        made = go()
        count[0] += 1
        if on() and count[0] >= 3 and made:
            print(f"SABOTAGE: {name} is there, now dying", flush=True)
            os._exit(137)
        return made

    _store(create, lambda: None)


FAULTS: dict[str, Callable[[], None]] = {
    "skip": skip_offsets,
    "store": store_fails,
    "full": disk_full,
    "crash": crash_after_upload,
}


if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    sys.argv[0] = "faust"
    from faust.cli.faust import cli

    cli()

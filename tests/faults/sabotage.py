"""A worker that commits one fault against itself: `python -m tests.faults.sabotage FAULT -A stockstream worker ...`. For tests only.

A fault is a patch of a name that the worker uses, made before the app is loaded; nothing in the product knows of it.
"""

from __future__ import annotations

import errno
import os
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

SWITCH = "STOCKSTREAM_TEST_SWITCH"
"""Path of a file of the test's: the fault is on while it is there."""


def mode() -> str:
    """Which fault the test has switched on; empty where none."""
    try:
        return Path(os.environ[SWITCH]).read_text() or "on"
    except FileNotFoundError:
        return ""


def skip_offsets() -> None:
    """Once for each partition of `ticks.raw`, and for each of our topics, drops one record, before the transport sees it."""
    from stockstream.transport.consumer import Consumer

    inner = Consumer._admit
    dropped: set[Any] = set()
    seen: dict[Any, int] = {}

    async def admit(self: Any, tp: Any, records: Sequence[Any], empty: Sequence[Any], before: int) -> Sequence[Any]:
        seen[tp] = seen.get(tp, 0) + 1
        if mode() and tp not in dropped and seen[tp] > 3 and len(records) > 2:
            dropped.add(tp)
            at = len(records) // 2
            print(f"SABOTAGE: {tp.topic}[{tp.partition}] offset {records[at].offset} dropped", flush=True)
            records = [*records[:at], *records[at + 1 :]]
        elif mode() and tp not in dropped and seen[tp] > 6 and records:
            dropped.add(tp)
            print(f"SABOTAGE: {tp.topic}[{tp.partition}] offset {records[0].offset} dropped", flush=True)
            records = records[1:]
            if not records and not empty:
                return []
        return await inner(self, tp, records, empty, before)

    Consumer._admit = admit  # type: ignore[method-assign]


def archive_faults() -> None:
    """The archive's store is down, slow and failing at random, or full, or the process dies right after an object was created: as the switch says."""
    from stockstream.sinks import s3, stores

    stores.FileStore = _failing(stores.FileStore)  # type: ignore[misc]
    stores.S3Store = _failing(s3.S3Store)  # type: ignore[attr-defined]


def _failing(real: Any) -> Any:
    from stockstream.errors import ArchiveUnavailable

    rng = random.Random(os.getpid())
    write: Callable[[Any, Path, bytes], None] | None = getattr(real, "_write", None)
    made = [0]

    def fail() -> None:
        if mode() == "down":
            raise ArchiveUnavailable("SABOTAGE: the store is down")
        if mode() == "random":
            time.sleep(0.05)
            if rng.random() < 0.3:
                raise ArchiveUnavailable("SABOTAGE: the store fails at random")

    class Store(real):
        def create(self, name: str, data: bytes) -> bool:
            fail()
            if mode() == "full" and write is None:
                raise ArchiveUnavailable("SABOTAGE: the service accepts no write")
            created: bool = super().create(name, data)
            made[0] += 1
            if mode() == "random" and rng.random() < 0.2:
                raise ArchiveUnavailable(f"SABOTAGE: {name} may or may not be there")
            if mode() == "crash" and made[0] >= 3 and created:
                print(f"SABOTAGE: {name} is there, now dying", flush=True)
                os._exit(137)
            return created

        def _write(self, path: Path, data: bytes) -> None:
            if mode() == "full":
                if rng.random() < 0.5:
                    path.write_bytes(data[: len(data) // 2])
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            assert write is not None
            write(self, path, data)

        def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
            fail()
            return super().list(prefix, start_after)  # type: ignore[no-any-return]

        def read(self, name: str, tail: int = 0) -> bytes:
            fail()
            return super().read(name, tail)  # type: ignore[no-any-return]

        def size(self, name: str) -> int | None:
            fail()
            return super().size(name)  # type: ignore[no-any-return]

    return Store


def poisoned() -> None:
    """`aggregate` cannot take a frame with a tick of POISON: it fails half changed, each time."""
    from stockstream.transforms.windows.windows import Windows

    inner = Windows.take_frame

    def frame(self: Any, frame: Any, input_offset: int = 0) -> Any:
        if "POISON" in frame.rows.column("symbol").to_pylist():
            self.expect += 1
            self._rings.clear()
            raise KeyError("SABOTAGE: POISON")
        return inner(self, frame, input_offset)

    Windows.take_frame = frame  # type: ignore[method-assign]


def source_faults() -> None:
    """The stream of the simulated market raises, between two batches, what nobody has foreseen, as long as the switch is on."""
    from stockstream.sources import simulated

    stream = simulated.SimulatedSource.stream

    async def failing(self: Any) -> AsyncIterator[Any]:
        async for batch in stream(self):
            if mode():
                raise ZeroDivisionError("SABOTAGE: the key is wrong")
            yield batch

    simulated.SimulatedSource.stream = failing  # type: ignore[method-assign]


FAULTS: dict[str, Callable[[], None]] = {
    "skip": skip_offsets, "archive": archive_faults, "poisoned": poisoned, "source": source_faults,
}  # fmt: skip


if __name__ == "__main__":
    FAULTS[sys.argv.pop(1)]()
    sys.argv[0] = "faust"
    from faust.cli.faust import cli

    cli()

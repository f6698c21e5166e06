"""What the archive's agent hands over, and when, with a fake archive: no Kafka, no store."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pyarrow as pa
import pytest

import agents.archive
from agents.archive import TOGETHER, stage
from stockstream.instance import app
from stockstream.locks import FolderLock
from stockstream.records import TICKS_SCHEMA
from stockstream.transforms.frames import Assembler, Frame, empty, encode
from stockstream.transport.messages import Chunk

RAW = app.settings.topic("ticks.raw")


class Record(NamedTuple):
    offset: int


class Taken:
    """Stands for `Archive`: notes what it is given, and when it loses or ends."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    async def add_raw(self, partition: int, records: list[Record], start: int | None) -> None:
        self.calls.append((partition, [record.offset for record in records], start))

    def assign(self, partition: int) -> None: ...

    def revoke(self, partition: int) -> None:
        self.calls.append(("revoked", partition))

    async def close(self) -> None:
        self.calls.append("closed")


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> Taken:
    """A fake in place of the archive, with partitions 3 and 4 of this worker."""
    taken = Taken()
    monkeypatch.setattr(agents.archive, "settings", app.settings.model_copy(update={"archive": "file:///nowhere"}))
    monkeypatch.setattr(type(app), "chunk_consumer", SimpleNamespace(assignment_number=1))
    for name, value in {"archive": taken, "owned": {3, 4}, "received": {3, 4}, "buffered": {}}.items():
        monkeypatch.setattr(stage, name, value)
    return taken


def chunk(partition: int, begin: int, *offsets: int, assignment_number: int = 1) -> Chunk:
    return Chunk(RAW, partition, [Record(offset) for offset in offsets], assignment_number, begin)


async def test_small_chunks_wait_to_be_more(archive: Taken) -> None:
    await stage.raw(chunk(3, 10, 10, 11))
    await stage.raw(chunk(4, 5, 6))
    await stage.raw(chunk(3, 12, 12, 14))
    assert archive.calls == []
    await stage.hand_over()
    assert sorted(archive.calls) == [(3, [10, 11, 12, 14], 10), (4, [6], 5)]
    await stage.hand_over()
    assert len(archive.calls) == 2


async def test_a_large_chunk_goes_at_once_with_what_waits(archive: Taken) -> None:
    await stage.raw(chunk(3, 10, 10))
    await stage.raw(chunk(3, 11, *range(11, 10 + TOGETHER)))
    assert archive.calls == [(3, list(range(10, 10 + TOGETHER)), 10)] and stage.buffered == {}


async def test_what_does_not_follow_is_not_vouched_for_together(archive: Taken) -> None:
    await stage.raw(chunk(3, 10, 10))
    await stage.raw(chunk(3, -1, 20))
    await stage.raw(chunk(3, 30, 30))
    await stage.hand_over()
    assert archive.calls == [(3, [10], 10), (3, [20], None), (3, [30], 30)]


async def test_nobody_vouches_for_what_was_before_the_first_chunk_of_an_assignment(archive: Taken) -> None:
    await stage.assign({RAW: [3]})
    await stage.raw(chunk(3, 10, 10))
    await stage.raw(chunk(3, 11, 11))
    await stage.hand_over()
    assert archive.calls == [("revoked", 4), (3, [10, 11], None)]


async def test_what_waits_is_handed_over_before_partitions_go_or_the_worker_ends(archive: Taken, monkeypatch: pytest.MonkeyPatch) -> None:
    await stage.raw(chunk(3, 10, 10))
    await stage.raw(chunk(4, 5, 5))
    await stage.raw(chunk(4, 6, 6, assignment_number=0))
    assert await stage.assign({RAW: [3]}) == {}
    await stage.raw(chunk(4, 6, 6))
    await stage.raw(chunk(3, 11, 11))
    monkeypatch.setattr(type(app), "should_stop", True)
    await stage.release(0.0)
    assert archive.calls == [(3, [10], 10), (4, [5], 5), ("revoked", 4), (3, [11], None), "closed"]


async def test_frames_that_cannot_be_read_and_parts_that_do_not_match_cost_nobody_else(archive: Taken) -> None:
    rows = [
        pa.RecordBatch.from_pylist([{"symbol": "A", "source": "a", "event_time": 1, "size": 3, "offset": offset, "index": 0}], schema=TICKS_SCHEMA)
        for offset in (9, 8)
    ]  # fmt: skip
    parts = [encode(Frame("00000000001-00000001", 1, 9, (), some, part=number, parts=2)) for number, some in enumerate(rows)]
    values = [b"no", *parts, encode(Frame("00000000001-00000001", 10, 19, (), empty(TICKS_SCHEMA)))]
    assembler = Assembler()

    async def add_clean(partition: int, frame: Frame) -> None:
        whole = assembler.feed(frame)
        archive.calls += [(partition, whole.start)] if whole is not None else []

    archive.add_clean = add_clean  # type: ignore[attr-defined]
    await stage.clean(Chunk("ticks.clean", 3, [SimpleNamespace(offset=at, timestamp=0, value=value) for at, value in enumerate(values)], 1, 0))
    assert archive.calls == [(3, 10)]


def test_a_folder_that_another_demo_holds_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    with FolderLock(tmp_path, "stockstream demo"):
        agents.archive.warn_of_others(f"file://{tmp_path}")
        assert f"{tmp_path} is also in use by process {os.getpid()} since " in caplog.text and "STOCKSTREAM_ARCHIVE" in caplog.text
        caplog.clear()
        monkeypatch.setattr(os, "getppid", os.getpid)       # the demo's own worker
        agents.archive.warn_of_others(f"file://{tmp_path}")
    agents.archive.warn_of_others(f"file://{tmp_path}")
    assert caplog.text == ""

"""Assembles the frames of one topic from its chunks, and feeds them to cores."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from stockstream.errors import FrameError
from stockstream.instance import app
from stockstream.status import metrics, newer_messages
from stockstream.transforms.frames import Assembler, Frame, decode_trusted, received
from stockstream.transport.loopback import LoopbackRecord
from stockstream.transport.messages import Chunk
from stockstream.transport.sending import LOST_RECORDS

logger = logging.getLogger(__name__)


Taken = TypeVar("Taken")


class FrameCore(Protocol):
    """A core that takes frames: the log it belongs to, the offsets it expects, and how it skips frames that are lost for good."""

    log: str
    expect: int
    resume_input: int

    def skip_to(self, start: int) -> None: ...


def input_position(core: FrameCore) -> int | None:
    """The reading position of a core in its input topic after a restart; None for the beginning."""
    return core.resume_input if core.expect >= 0 else None


def frame_of(chunk: Chunk, number: int, schema: pa.Schema) -> Frame:
    """The frame in record `number` of a chunk. It is decoded once for all agents, and validated unless this worker wrote it. Raises `FrameError`."""
    frame: Frame | None = chunk.read.get(number)
    if frame is None:
        record = chunk.records[number]
        trusted = isinstance(record, LoopbackRecord)
        frame = chunk.read[number] = decode_trusted(record.value, schema) if trusted else received(record.value or b"", schema, record.timestamp)
    return frame


class FrameReader:
    """Assembles the frames of one topic, by partition.

    Args:
        agent: name of the reading agent, for metrics and the log.
        schema: of the topic's rows, TICKS_SCHEMA or WINDOWS_SCHEMA.
    """

    def __init__(self, agent: str, schema: pa.Schema) -> None:
        self._agent, self.schema = agent, schema
        self._parts: dict[int, Assembler] = {}
        self._missed: dict[int, int] = {}
        """By partition: the raw offset last logged as missing."""
        self.current: dict[int, tuple[int, int]] = {}
        """By partition: offsets of the first and last part of the frame being processed."""
        self.confirmed: dict[int, tuple[int, int]] = {}
        """By partition: where the topic ended at the assignment, and the raw offset before which all frames had been confirmed by then."""
        self.set_aside: dict[int, set[int]] = {}
        """By partition: offsets of frames that were set aside."""

    def frames(self, chunk: Chunk) -> Iterator[tuple[Frame, int, Any]]:
        """Yields (frame, offset of its first part, record of its last part). A record that is no frame is counted and set aside."""
        for number, record in enumerate(chunk.records):
            newer_messages.look(chunk.topic.removeprefix(app.settings.topic_prefix), record)
            assembler = self._parts.setdefault(chunk.partition, Assembler())
            try:
                whole = assembler.feed(frame_of(chunk, number, self.schema), record.offset)
            except FrameError as error:
                metrics.frame_dropped(self._agent, "unreadable")
                app.set_aside.add(chunk.topic, chunk.partition, record.offset, self._agent, "unreadable", str(error))
                continue
            if whole is not None:
                first = assembler.first
                self.current[chunk.partition] = first, record.offset
                yield whole, first, record
                self.current.pop(chunk.partition, None)

    def parts(self, chunk: Chunk) -> Iterator[Frame]:
        """Yields the decodable frames of a chunk, without assembling those sent in parts."""
        for number in range(len(chunk.records)):
            with contextlib.suppress(FrameError):                        # `frames` sets it aside
                yield frame_of(chunk, number, self.schema)

    def feed(self, core: FrameCore, take: Callable[[Frame, int], Taken | None], chunk: Chunk, frame: Frame, offset: int) -> Taken | None:
        """Feeds a frame to the core's method `take` and returns its result; None if the core dropped the frame or it was set aside, which is counted."""
        if offset in self.set_aside.get(chunk.partition, ()):
            metrics.frame_dropped(self._agent, "set_aside")
            if frame.log == core.log and 0 <= core.expect <= frame.through:
                core.skip_to(frame.through + 1)
            return None
        taken = take(frame, offset)
        if taken is None and frame.log >= core.log and _truncated(chunk, offset):
            core.skip_to(frame.start)
            taken = take(frame, offset)
        if taken is None and frame.log < core.log:
            metrics.frame_dropped(self._agent, "older_log")
        elif taken is None:
            metrics.frame_dropped(self._agent, "beyond")
            end, sent = self.confirmed.get(chunk.partition, (0, -1))
            if core.expect < sent and offset >= end and frame.log == core.log:
                app.fence.leave(f"{chunk.topic}[{chunk.partition}] has no frame for raw offset {core.expect}, which was confirmed: {LOST_RECORDS}")
            if self._missed.get(chunk.partition) != core.expect:
                self._missed[chunk.partition] = core.expect
                logger.warning("%s[%d]: no frame has raw offsets %d to %d yet: waiting for it", chunk.topic, chunk.partition, core.expect, frame.start - 1)
        return taken

    def reset(self, partition: int) -> None:
        """Prepares for reading the partition again from an earlier offset. Frames set aside stay so."""
        for of in (self._parts, self._missed, self.current):
            of.pop(partition, None)

    def forget(self) -> None:
        for of in (self._parts, self._missed, self.current, self.set_aside, self.confirmed):
            of.clear()


def _truncated(chunk: Chunk, offset: int) -> bool:
    """Whether the input topic has lost the records before `offset`, so that the frames missing before it will never come."""
    return any(hole.topic == chunk.topic and hole.partition == chunk.partition and hole.last + 1 == offset for hole in app.chunk_consumer.guard.holes)

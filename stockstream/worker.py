"""What the agents of one worker share besides the app: its counters, and what it tells of itself."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Protocol, TypeVar

import msgspec
import pyarrow as pa
from faust.types import TP

from stockstream.app import App, app
from stockstream.errors import FrameError
from stockstream.metrics import Metrics
from stockstream.transforms.frames import Assembler, Frame, decode_own, received
from stockstream.transforms.ranges import MAX_TIME
from stockstream.transport import Chunk, OwnRecord
from stockstream.versions import NewerMessages
from stockstream.wording import counted

logger = logging.getLogger(__name__)

HOPS_HEADER = "hops"
MAX_HOPS = 3
Taken = TypeVar("Taken")

_decode_hops = msgspec.json.Decoder(
    Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)]], msgspec.Meta(max_length=MAX_HOPS)]
).decode  # fmt: skip

metrics = Metrics()
app.set_aside.count = metrics.record_set_aside
newer_messages = NewerMessages(metrics.newer_message)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def hops_header(*times_ms: int) -> tuple[tuple[str, bytes], ...]:
    """Header that tells when the raw record arrived and each agent sent (epoch ms): not content, so a resent frame stays the same."""
    return ((HOPS_HEADER, json.dumps(times_ms).encode()),)


def hops_of(record: Any) -> list[int]:
    """The times in a record's header (epoch ms, at most `MAX_HOPS`); empty where there are none, or somebody else's."""
    for name, value in record.headers:
        if name == HOPS_HEADER:
            try:
                return list(_decode_hops(value or b""))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return []
    return []


class FrameCore(Protocol):
    """A machine that takes frames: of which log, and how it goes on where frames are missing for good."""

    log: str
    expect: int
    resume_input: int

    def skip_to(self, start: int) -> None: ...


def resume_of(core: FrameCore) -> int | None:
    """The offset in its input at which a machine goes on after a restart; None for the beginning."""
    return core.resume_input if core.expect >= 0 else None


def frame_of(chunk: Chunk, number: int, schema: pa.Schema) -> Frame:
    """The frame in a record of a chunk, decoded once for all agents, and validated unless this worker has written it. Raises `FrameError`."""
    frame: Frame | None = chunk.read.get(number)
    if frame is None:
        record = chunk.records[number]
        own = isinstance(record, OwnRecord)
        frame = chunk.read[number] = decode_own(record.value, schema) if own else received(record.value or b"", schema, record.timestamp)
    return frame


class FrameReader:
    """Whole frames of the chunks of one topic, by partition, each with the input offset to go on from and its record.

    Args:
        agent: who reads, for metrics and the log.
        schema: of the topic's rows, TICKS_SCHEMA or WINDOWS_SCHEMA.
    """

    def __init__(self, agent: str, schema: pa.Schema) -> None:
        self._agent, self._schema = agent, schema
        self._parts: dict[int, Assembler] = {}
        self._missed: dict[int, int] = {}
        """By partition: the raw offset that was last said to be missing."""
        self.current: dict[int, tuple[int, int]] = {}
        """By partition: offsets of the first and last part of the frame that is being worked on."""
        self.aside: dict[int, set[int]] = {}
        """By partition: offsets of frames that were set aside."""

    def frames(self, chunk: Chunk) -> Iterator[tuple[Frame, int, Any]]:
        """(frame, offset of its first part, record of its last part). What is not a frame is counted, told and passed."""
        for number, record in enumerate(chunk.records):
            newer_messages.look(chunk.topic.removeprefix(app.settings.topic_prefix), record)
            assembler = self._parts.setdefault(chunk.partition, Assembler())
            try:
                whole = assembler.feed(frame_of(chunk, number, self._schema), record.offset)
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
        """What can be decoded of a chunk, without putting parts together."""
        for number in range(len(chunk.records)):
            with contextlib.suppress(FrameError):                        # `frames` says so
                yield frame_of(chunk, number, self._schema)

    def feed(self, core: FrameCore, take: Callable[[Frame, int], Taken | None], chunk: Chunk, frame: Frame, offset: int) -> Taken | None:
        """What `core` makes of a frame by its method `take`; None, counted, where it has no use for it or the frame was set aside."""
        if offset in self.aside.get(chunk.partition, ()):
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
            if self._missed.get(chunk.partition) != core.expect:
                self._missed[chunk.partition] = core.expect
                logger.warning("%s[%d]: raw offsets %d to %d are missing: waiting for them", chunk.topic, chunk.partition, core.expect, frame.start - 1)
        return taken

    def reset(self, partition: int) -> None:
        """The partition is read again from an earlier place."""
        for of in (self._parts, self._missed, self.current):
            of.pop(partition, None)

    def forget(self) -> None:
        for of in (self._parts, self._missed, self.current, self.aside):
            of.clear()


def _truncated(chunk: Chunk, offset: int) -> bool:
    """Whether the input's own log has lost what was before `offset`: then a frame that starts too late is all there will be."""
    return any(hole.topic == chunk.topic and hole.partition == chunk.partition and hole.last + 1 == offset for hole in app.reader.guard.holes)


class Status:
    """What the worker tells of itself; see `stockstream.web.views.Status`."""

    def __init__(self, worker: App) -> None:
        self._app = worker
        self.archive_positions: Any = None
        self.model_list: Any = None
        self.model_note: Callable[[], str] = lambda: ""
        """Why rows are not predicted, or not by the registry's champion; empty where they are."""
        self.sources: Callable[[], list[dict[str, Any]]] = list
        self._exported: set[tuple[str, int]] = set()
        """Topic and partition of each series of the gauge `lag`."""

    def _assigned(self) -> list[TP]:
        tables = self._app.tables.changelog_topics
        return sorted(tp for tp in (self._app.reader.assignment() if self._app.consumer is not None else ()) if tp.topic not in tables)

    def ready(self) -> tuple[bool, str]:
        """Ready once the group has settled and recovery is done."""
        if self._app.fence.left:
            return False, "fenced"
        if self._app.waiting_for:
            return False, self._app.waiting_for
        if self._app.rebalancing or not self._app.tables.recovery.completed.is_set():  # type: ignore[attr-defined]
            return False, "waiting for the group, or recovering state"
        assigned = self._assigned()
        raw = sum(tp.topic.endswith("ticks.raw") for tp in assigned)
        words, note = f"{counted(raw, 'partition')} of ticks.raw" if assigned else "no partition: others have them all", self.model_note()
        return True, f"{words}; {note}" if note else words

    def started(self) -> str:
        """Where everything is, in one line."""
        settings, conf = self._app.settings, self._app.conf
        raw = sum(tp.topic == settings.topic("ticks.raw") for tp in self._assigned())
        champions = [f"{model.get('name')} {model.get('version')}" for model in self.models() if model.get("state", model.get("role")) == "champion"]
        parts = {
            "web": f"http://{conf.web_host}:{conf.web_port}/" if conf.web_enabled else "off",
            "broker": settings.broker,
            "topics": f"{settings.topic_prefix}*, {raw} of {counted(settings.partitions, 'partition')}",
            "model": ", ".join(champions) or f"none in {settings.models} yet",
            "archive": settings.archive,
        }
        return "ready: " + "; ".join(f"{name} {value}" for name, value in parts.items())

    def healthy(self) -> tuple[bool, str]:
        return (False, "fenced") if self._app.fence.left else (True, "alive")

    def pipeline(self) -> dict[str, Any]:
        if self._app.waiting_for:                                        # Faust has no consumer before
            return {"app_id": self._app.settings.group}
        reader, lags = self._app.reader, []
        exported: set[tuple[str, int]] = set()
        for tp in self._assigned():
            lag = reader.lag(tp)
            lags.append({"topic": tp.topic, "partition": tp.partition, "lag": lag})
            name = tp.topic.removeprefix(self._app.settings.topic_prefix)
            metrics.lag(name, tp.partition, lag)
            exported.add((name, tp.partition))
        for topic, partition in self._exported - exported:
            metrics.forget_lag(topic, partition)
        self._exported = exported
        guard = reader.guard
        return {
            "app_id": self._app.settings.group,
            "generation": self._app.term,
            "lag": lags,
            "holes": [hole._asdict() for hole in list(guard.holes)[-100:]],
            "rereads": guard.rereads,
            "set_aside": [aside._asdict() for aside in self._app.set_aside.newest],
            "archive": self.archive_positions() if self.archive_positions else [],
            "models_note": self.model_note(),
            "sources": self.sources(),
        }

    def models(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.model_list() if self.model_list else []
        return found


status = Status(app)


def _count_hole(kind: str, offsets: int) -> None:
    metrics.hole(kind, offsets)


app.on_hole = _count_hole

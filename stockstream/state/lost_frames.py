"""Finds, at an assignment, frames that the broker had confirmed and then lost, and makes their writers send them again.

A broker loses confirmed records in an unclean leader election: a replica that was not in sync becomes leader, and other records get the offsets of those that
it lacks. A writer's stored state counts only frames that were confirmed, so the frames of its topic must account for all raw offsets before it. If they do
not, the writer starts from the beginning of its own input, and sends what is missing. Readers then read from before the loss. They skip what they counted.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from stockstream.application import App
from stockstream.errors import BrokerError, FrameError
from stockstream.kafka.client import MAX_BATCH_BYTES, client_options
from stockstream.state.frame_stage import FrameStage
from stockstream.state.stage import FrameWriter
from stockstream.transforms.frames import Frame, received
from stockstream.transport.fetching import FETCH_MAX_WAIT_MS
from stockstream.transport.sending import LOST_RECORDS

logger = logging.getLogger(__name__)

AHEAD = 256
"""How many frames after a reading position are checked. A gap behind them ends the worker when it is read, and the next start finds it here."""
BACK = 64
"""How many frames before a suspicious position are checked. A worker ends at the first confirmation after a loss, so few frames follow one."""
STALL_S = 10.0


@dataclass(slots=True)
class _Input:
    """What the readers and the writer of one partition of frames expect of it."""

    tp: TopicPartition
    writer: FrameWriter
    log: str
    sent: int
    """The raw offset before which all frames had been confirmed."""
    readers: list[tuple[FrameStage[Any], Any]]
    begin: int = 0
    end: int = 0

    @property
    def position(self) -> int:
        """The lowest reading position."""
        return min(int(core.resume_input) for _, core in self.readers)

    @property
    def expect(self) -> int:
        """The lowest raw offset that a reader expects."""
        return min(int(core.expect) for _, core in self.readers)


async def check(app: App) -> dict[TP, int | None]:
    """Checks the frame topics of the current assignment against the restored state. Returns the reading positions that change (None: the beginning).

    The embedded broker loses nothing and is not checked: its end offsets are not exact.
    Raises `BrokerError` if the broker does not return frames that it holds, and `KafkaError`.
    """
    number = app.chunk_consumer.assignment_number
    found: dict[TP, int | None] = {}
    inputs = _inputs(app)
    if not inputs:
        return found
    consumer = AIOKafkaConsumer(
        **client_options(app.settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed",
        fetch_max_wait_ms=FETCH_MAX_WAIT_MS, max_partition_fetch_bytes=4 * MAX_BATCH_BYTES,
    )  # fmt: skip
    try:
        await consumer.start()
        await _measure(app, consumer, inputs)
        records = await _read(consumer, {item.tp: (max(item.begin, item.position), min(item.end, item.position + AHEAD)) for item in inputs})
        doubtful = [item for item in inputs if item.end < item.position or not _continues(item, records.get(item.tp, []))]
        starts = {item.tp: max(item.begin, min(item.end, item.position) - BACK) for item in doubtful}
        records = await _read(consumer, {item.tp: (starts[item.tp], item.end) for item in doubtful})
    finally:
        await consumer.stop()
    if number != app.chunk_consumer.assignment_number:
        return {}
    for item in doubtful:
        tp = TP(item.tp.topic, item.tp.partition)
        found[tp] = starts[item.tp]
        through = covered(_frames(item, records.get(item.tp, [])), item.log, -1)
        if item.end < item.position:
            logger.error("%s[%d] ends at offset %d, but was read up to %d: %s", *tp, item.end, item.position, LOST_RECORDS)
        elif through < 0:
            del found[tp]                                                # retention has deleted all frames
            continue
        if through + 1 < item.sent:
            text = "%s[%d] has no frames for raw offsets %d to %d, which were confirmed: %s. They are computed and sent again"
            logger.error(text, *tp, through + 1, item.sent - 1, LOST_RECORDS)
            found |= item.writer.send_again(tp.partition, through + 1)
    return found


def covered(frames: Iterable[Frame], log: str, through: int) -> int:
    """The last raw offset for which the frames of a log account without a gap after `through`; -1 as `through` begins with the first frame."""
    for frame in frames:
        if frame.log == log and frame.part + 1 == frame.parts and (through < 0 or frame.start <= through + 1):
            through = max(through, frame.through)
    return through


def _inputs(app: App) -> list[_Input]:
    """The partitions of frames of which the writer and at least one reader have state."""
    writers = {part.output: part for part in app.parts if isinstance(part, FrameWriter)}
    inputs: dict[TopicPartition, _Input] = {}
    for part in app.parts:
        writer = writers.get(part.topic) if isinstance(part, FrameStage) else None
        if isinstance(part, FrameStage) and writer is not None:
            for partition, core in part.cores.items():
                sent, tp = writer.sent_before(partition), TopicPartition(part.topic, partition)
                if core.expect >= 0 and sent >= 0:
                    inputs.setdefault(tp, _Input(tp, writer, writer.log_of(partition), sent, [])).readers.append((part, core))
    return list(inputs.values())


async def _measure(app: App, consumer: AIOKafkaConsumer, inputs: Sequence[_Input]) -> None:
    """Sets where the partitions begin and end. The ends are noted for later checks."""
    places = [item.tp for item in inputs]
    begins, ends = await asyncio.gather(consumer.beginning_offsets(places), consumer.end_offsets(places))
    for item in inputs:
        item.begin, item.end = begins[item.tp], ends[item.tp]
        app.sender.note_end(item.tp.topic, item.tp.partition, item.end)
        for stage, _ in item.readers:
            stage.reader.confirmed[item.tp.partition] = item.end, item.sent


def _continues(item: _Input, records: Sequence[Any]) -> bool:
    """Whether the records from the reading position on hold what the readers expect next, as far as they were read."""
    through = covered(_frames(item, records), item.log, item.expect - 1)
    whole = not records or records[-1].offset + 1 >= item.end
    return through + 1 >= item.sent if whole else through >= item.expect


def _frames(item: _Input, records: Sequence[Any]) -> list[Frame]:
    schema: pa.Schema = item.readers[0][0].reader.schema
    frames = []
    for record in records:
        try:
            frames.append(received(record.value or b"", schema, record.timestamp))
        except FrameError:
            continue                                                     # its reader sets it aside
    return frames


async def _read(consumer: AIOKafkaConsumer, spans: Mapping[TopicPartition, tuple[int, int]]) -> dict[TopicPartition, list[Any]]:
    """The records of each partition from the first offset to before the second. Raises `BrokerError` after STALL_S without a record."""
    spans = {tp: span for tp, span in spans.items() if span[0] < span[1]}
    found: dict[TopicPartition, list[Any]] = {tp: [] for tp in spans}
    if not spans:
        return found
    consumer.assign(list(spans))
    for tp, (first, _) in spans.items():
        consumer.seek(tp, first)
    left, moved = set(spans), time.monotonic()
    while left:
        for tp, records in (await consumer.getmany(*left, timeout_ms=FETCH_MAX_WAIT_MS)).items():
            found[tp] += [record for record in records if record.offset < spans[tp][1]]
            moved = time.monotonic()
        left = {tp for tp in left if await consumer.position(tp) < spans[tp][1]}
        if time.monotonic() - moved > STALL_S:
            raise BrokerError(f"{', '.join(f'{tp.topic}[{tp.partition}]' for tp in left)}: no record arrived for {STALL_S:.0f} s")
    return found

"""Accepts or rejects every tick: `ticks.raw` -> `ticks.clean`, `ticks.rejected`."""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import time
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from faust.types import TP

from stockstream import topics
from stockstream.errors import StateError
from stockstream.instance import app
from stockstream.kafka.client import client_options, end_offsets
from stockstream.records import Punctuation, Rejection
from stockstream.state.stage import WritingStage
from stockstream.status import metrics, watermark_lags
from stockstream.transforms.changelog_index import Range
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import encode_within
from stockstream.transport.hops import hops_header, now_ms
from stockstream.transport.messages import Chunk, Message, Outgoing
from tables.clean import table

logger = logging.getLogger(__name__)

SNAPSHOT_S = 1.0
SNAPSHOT_SHARE = 0.05
"""The largest share of its time that the agent spends on snapshots. With tens of thousands of symbols it makes fewer of them."""
FLUSH_S = 1.0
TIMER_S = 0.2
IDENTIFY_TIMEOUT_S = 5.0

settings = app.settings
raw_format = settings.foreign_messages
_encode = msgspec.json.Encoder().encode


def new_log_id(now: float | None = None) -> str:
    """A new log id. Ids sort by time of issue: 11 hex digits of epoch ms, then 8 random ones.

    Args:
        now: epoch seconds; the current time if not given.
    """
    return f"{int((now or time.time()) * 1000):011x}-{secrets.token_hex(4)}"


def _needs(records: Mapping[bytes, bytes]) -> list[Range] | None:
    """No further ranges where the records hold a complete snapshot, which is the whole state; else None, and the whole changelog is read."""
    return [] if Cleaner.complete(records) else None


class Cleaning(WritingStage[Cleaner]):
    """The cores of `clean`. A core is restored if its snapshot belongs to the present log; otherwise it starts empty with a new log id."""

    output = settings.topic("ticks.clean")

    def __init__(self) -> None:
        super().__init__(
            app, table, settings.topic("ticks.raw"), self._from_records, lambda core: core.expect if core.expect >= 0 else None, _needs, Cleaner.readable
        )
        self.snapshot_due: dict[int, float] = {}
        self.snapshot_offset: dict[int, int] = {}
        """By partition: the raw offset from which the last snapshot resumes."""
        self.flushed_at: dict[int, float] = {}
        self.newest_arrival_ms: dict[int, int] = {}
        self.assigned_at = 0.0
        """Monotonic s: when a source was heard before that is not known."""
        self.punctuated: dict[tuple[int, str], tuple[int, float]] = {}
        """By partition and source: the second of the last punctuation, and when it was sent (monotonic s)."""

    def send_again(self, partition: int, first: int) -> Mapping[TP, int | None]:
        self.snapshot_offset[partition] = -1
        return super().send_again(partition, first)

    def _new(self, partition: int) -> Cleaner:
        return Cleaner(
            partition, settings.partitions, lateness_ms=settings.lateness, revise_s=settings.revise_s, log=new_log_id(), raw_format=raw_format
        )  # fmt: skip

    def _from_records(self, partition: int, records: Mapping[bytes, bytes], _: Mapping[bytes, int]) -> Cleaner:
        if not records:
            return self._new(partition)
        return Cleaner.restore(
            partition, settings.partitions, records, lateness_ms=settings.lateness, revise_s=settings.revise_s, raw_format=raw_format
        )  # fmt: skip

    async def assign(self, partitions: Mapping[str, list[int]]) -> Mapping[TP, int | None]:
        assignment_number = app.chunk_consumer.assignment_number
        found = dict(await super().assign(partitions))
        others = await self._other_logs()
        if assignment_number != app.chunk_consumer.assignment_number:
            return found                                                 # a newer assignment replaces this one
        for partition, core in list(self.cores.items()):
            if partition in others:
                last = core.expect - 1
                logger.warning("%s[%d] was deleted and created again (its state counts through offset %d): clean starts a new log", self.topic, partition, last)
                metrics.restart("log")
                self.cores[partition] = core = self._new(partition)
                found[TP(self.topic, partition)] = None
            if core.expect < 0:
                # the log id must be stored before anything is sent under it: a successor goes on with the same id
                await self.submit(core, partition, records=core.records(app.term))
        await asyncio.gather(*(self.pipes[p].drain() for p, core in self.cores.items() if core.expect < 0))
        self.assigned_at = now = time.monotonic()
        self.snapshot_due = dict.fromkeys(self.cores, now + SNAPSHOT_S)
        self.flushed_at = dict.fromkeys(self.cores, now)
        self.snapshot_offset = {partition: core.expect for partition, core in self.cores.items()}
        self.punctuated.clear()
        return found

    async def _other_logs(self) -> set[int]:
        """Partitions whose log is not the one of their state: it ends before the state's last offset, or holds another record there."""
        known = {p: core for p, core in self.cores.items() if core.expect > 0}
        if not known:
            return set()
        consumer = AIOKafkaConsumer(**client_options(settings), isolation_level="read_committed", auto_offset_reset="none", fetch_max_wait_ms=200)
        try:
            await consumer.start()
            ends = await end_offsets(consumer, [TopicPartition(self.topic, p) for p in known], embedded=app.embedded)
            begins = await consumer.beginning_offsets(list(ends))
            others = {tp.partition for tp, end in ends.items() if end < known[tp.partition].expect}
            ask = {p for p, core in known.items() if p not in others and begins[TopicPartition(self.topic, p)] <= core.expect - 1}
            deadline = time.monotonic() + IDENTIFY_TIMEOUT_S
            for partition in ask:
                tp, core = TopicPartition(self.topic, partition), known[partition]
                consumer.assign([tp])
                consumer.seek(tp, core.expect - 1)
                records: list[Any] = []
                while not records and time.monotonic() < deadline:
                    records = (await consumer.getmany(tp, timeout_ms=300, max_records=1)).get(tp, [])
                    if not records and ends[tp] <= core.expect:
                        break
                first = records[0] if records else None
                if first and first.offset == core.expect - 1 and (first.timestamp, zlib.crc32(first.value or b"")) != core.last_record:
                    others.add(partition)
            return others
        finally:
            await consumer.stop()

    async def process(self, chunk: Chunk) -> None:
        """Feeds a chunk to its core and sends the results that are due. Raises `StateError` if offsets were skipped."""
        partition, records = chunk.partition, chunk.records
        core = self.core_of(chunk)
        if core is None:
            return
        if 0 <= core.expect < chunk.begin:
            raise StateError(f"offsets {core.expect} to {chunk.begin - 1} were fetched but not delivered: the worker must resume from its state")
        records = records[next((i for i, r in enumerate(records) if r.offset >= core.expect), len(records)) :] if records[0].offset < core.expect else records
        if not records:
            return
        before = core.accepted
        rejections = core.chunk(records, time.monotonic())
        metrics.ticks_accepted(core.accepted - before)
        watermark_lags.add(core.memory.take_lags())
        for (subject, reason), count in core.noted.items():
            metrics.noted(subject, reason, count)
        core.noted.clear()
        self.newest_arrival_ms[partition] = records[-1].timestamp
        await self.send(partition, core, rejections, force=False)

    async def send(self, partition: int, core: Cleaner, rejections: list[Rejection], *, force: bool) -> None:
        sends: list[Outgoing] = []
        again_from = self._again_from.get(partition, 0)
        rejections = [rejection for rejection in rejections if rejection.offset >= again_from] if again_from else rejections
        if rejections:
            for rejection in rejections:
                metrics.ticks_rejected(rejection.reason)
            sends.append(Outgoing(topics.ticks_rejected, partition, [Message(_symbol_of(r), _encode(r)) for r in rejections]))
        records: list[tuple[bytes, bytes]] = []
        now = time.monotonic()
        if core.due or force:
            frame = core.make_frame()
            if frame is not None and frame.through >= again_from:
                raw_ms = self.newest_arrival_ms.get(partition, 0)
                header = hops_header(raw_ms, now_ms())
                sends.append(Outgoing(settings.topic("ticks.clean"), partition, [Message(None, data, header) for data in encode_within(frame)]))
                self.flushed_at[partition] = now
                metrics.rows("ticks.clean", frame.rows.num_rows)
                metrics.observe("raw_to_clean", max(0, now_ms() - raw_ms) / 1000)
                # what a source's lateness is must be stored before another worker, with another setting, can go on from there
                if now >= self.snapshot_due.get(partition, 0.0) or core.new_source:
                    records = self._snapshot(partition, core, now)
        await self.submit(core, partition, sends, records)

    def _snapshot(self, partition: int, core: Cleaner, now: float) -> list[tuple[bytes, bytes]]:
        records = core.records(app.term)
        self.snapshot_due[partition] = now + max(SNAPSHOT_S, (time.monotonic() - now) / SNAPSHOT_SHARE)
        self.snapshot_offset[partition] = core.expect
        return records

    async def timer(self) -> None:
        """Sends results that have waited for FLUSH_S, and publishes punctuations that close the seconds of idle sources."""
        now, wall = time.monotonic(), now_ms()
        for partition, core in list(self.cores.items()):
            if partition not in self.pipes:
                return                                                   # the partitions were revoked during the last await
            if core.pending_offsets and now - self.flushed_at[partition] >= FLUSH_S:
                await self.send(partition, core, [], force=True)
            elif not core.pending_offsets and core.expect > self.snapshot_offset.get(partition, -1) and now >= self.snapshot_due.get(partition, math.inf):
                # checkpoint an idle log through its end: retention may then delete its records while no worker runs
                await self.submit(core, partition, records=self._snapshot(partition, core, now))
            tp = TP(self.topic, partition)
            if core.expect != (app.chunk_consumer.delivered(tp) or -1) or not app.chunk_consumer.at_end(tp):
                continue
            # up to this time the log had no newer record; quiet is what has not arrived: Kafka's times may be a producer's
            empty_until = now - max(0, wall - app.chunk_consumer.polled(tp)) / 1000
            for idle in core.idle():
                second, at = self.punctuated.get((partition, idle.source), (-1, 0.0))
                quiet_s = empty_until - max(idle.heard, self.assigned_at)
                if quiet_s * 1000 < settings.idle_ms or (second == idle.second and now - at < 2.0):
                    continue
                self.punctuated[partition, idle.source] = idle.second, now
                value = _encode(Punctuation(punctuate=idle.second, source=idle.source))
                await self.submit(core, partition, [Outgoing(self.topic, partition, [Message(None, value)])])


def _symbol_of(rejection: Rejection) -> bytes | None:
    """The message key: the symbol of the rejected original; None where it cannot be read."""
    if rejection.value is None or rejection.reason == "invalid_json":
        return None
    try:
        symbol = msgspec.json.decode(rejection.value)["symbol"]
    except (msgspec.MsgspecError, KeyError, TypeError, IndexError, RecursionError):
        return None
    return symbol.encode() if isinstance(symbol, str) and 0 < len(symbol) <= 32 else None


stage = Cleaning()


@app.agent(topics.ticks_raw)
async def clean(stream: Any) -> None:
    """Processes one chunk at a time. An error that `Stage.work` does not handle ends the worker."""
    await stage.work(stream)


@app.task
async def clean_timer() -> None:
    while not app.should_stop:
        await asyncio.sleep(TIMER_S)
        if not app.rebalancing:
            await stage.timer()

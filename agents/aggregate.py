"""Computes bars and rolling windows: `ticks.clean` -> `windows`, `latest`."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Mapping
from typing import Any

import msgspec
import pyarrow as pa

from stockstream import topics
from stockstream.instance import app
from stockstream.records import TICKS_SCHEMA
from stockstream.state.frame_reader import FrameReader
from stockstream.state.frame_stage import FrameStage
from stockstream.state.stage import WritingStage
from stockstream.status import metrics, watermark_lags
from stockstream.transforms.frames import Frame, encode_within
from stockstream.transforms.windows.rows import WindowRows
from stockstream.transforms.windows.windows import Windows
from stockstream.transport.hops import hops_header, hops_of, now_ms
from stockstream.transport.messages import Chunk, Message, Outgoing
from tables.aggregate import table

LATEST_S = 60
LATEST_SENT_KEPT = 500_000
"""How many symbols a worker remembers. Beyond that it forgets the oldest, and may then send a row of `latest` before LATEST_S have passed."""
settings = app.settings
_encode = msgspec.json.Encoder().encode


def _restore(partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int]) -> Windows:
    return Windows.restore(partition, records, offsets, revise_s=settings.revise_s)


class Aggregation(WritingStage[Windows], FrameStage[Windows]):
    """The cores of `aggregate`, and the source and second of the last row of `latest` sent for each symbol."""

    output = settings.topic("windows")

    def __init__(self) -> None:
        super().__init__(
            app, table, settings.topic("ticks.clean"), _restore, Windows.needs, FrameReader("aggregate", TICKS_SCHEMA), Windows.readable, Windows.takes_long
        )
        self.latest_sent: dict[str, tuple[str, int]] = {}
        self._latest_sent_before: dict[str, tuple[str, int]] = {}

    async def release(self, timeout_s: float) -> None:
        await super().release(timeout_s)
        self._latest_sent_before.clear()
        self.latest_sent.clear()                                         # rows in flight may have been dropped

    async def process(self, chunk: Chunk) -> None:
        partition = chunk.partition
        core = self.core_of(chunk)
        if core is None:
            return
        messages: list[Message] = []
        latest: list[Message] = []
        for frame, offset, record in self.reader.frames(chunk):
            rows = await self.feed(core, core.take_frame, chunk, frame, offset)
            if rows is None or not rows.closings or rows.through < self._again_from.get(partition, 0):
                continue
            batch = rows.batch(partition)
            sent = now_ms()
            hops = hops_of(record)
            messages += [Message(None, data, hops_header(*hops, sent)) for data in encode_within(self._frame(core, rows, batch))]
            latest += self._latest(rows, partition)
            await asyncio.sleep(0)                                       # frames of a backlog take long: heartbeats and deliveries run between them
            metrics.rows("windows", batch.num_rows)
            for source, late in rows.late().items():
                watermark_lags.add_late_rows(source, late)
            if len(hops) == 2:
                metrics.observe("clean_to_windows", max(0, sent - hops[1]) / 1000)
        sends = [Outgoing(settings.topic("windows"), partition, messages)] if messages else []
        if latest:
            sends.append(Outgoing(topics.latest, partition, latest))
        await self.submit(core, partition, sends, core.records(app.term), core.index)

    @staticmethod
    def _frame(core: Windows, rows: WindowRows, batch: pa.RecordBatch) -> Frame:
        return Frame(core.log, rows.start, rows.through, tuple(rows.closings), batch, log_clock=rows.log_clock)

    def _latest(self, rows: WindowRows, partition: int) -> list[Message]:
        """The last priced row of each symbol for which no row was sent for LATEST_S seconds of event time."""
        messages: list[Message] = []
        for group, newest in rows.newest():
            source, due = group.source, []
            for symbol, row in newest.items():
                second = int(group.values["second"][row])
                before, last_second = self.latest_sent.get(symbol) or self._latest_sent_before.get(symbol, ("", 0))
                if source != before:
                    # send at once; the next row comes after a delay that depends on the symbol, so that symbols that began together do not stay in step
                    self.latest_sent[symbol] = source, second + zlib.crc32(symbol.encode()) % LATEST_S
                elif second - last_second >= LATEST_S:
                    self.latest_sent[symbol] = source, second
                else:
                    continue
                due.append(row)
            if len(self.latest_sent) > LATEST_SENT_KEPT:
                self.latest_sent, self._latest_sent_before = {}, self.latest_sent  # symbols without a new row are dropped the next time
            if due:
                messages += [Message(row.symbol.encode(), _encode(row)) for row in group.json_rows(due, partition)]
        return messages


stage = Aggregation()


@app.agent(topics.ticks_clean)
async def aggregate(stream: Any) -> None:
    """Processes one chunk of frames at a time."""
    await stage.work(stream)

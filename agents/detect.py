"""Raises alerts: `windows` -> `alerts`, `market`."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec

from stockstream import topics
from stockstream.instance import app
from stockstream.records import WINDOWS_SCHEMA
from stockstream.state.frame_reader import FrameReader
from stockstream.state.frame_stage import FrameStage
from stockstream.status import metrics
from stockstream.transforms.rules.detector import Detector
from stockstream.transport.messages import Chunk, Message, Outgoing
from stockstream.transport.pacing import SEND_ITERATIONS
from tables.detect import table

AT_ONCE = 500
"""How many alerts are encoded before other tasks run."""

settings = app.settings
_encode = msgspec.json.Encoder().encode


class Detection(FrameStage[Detector]):
    """The cores of `detect`."""

    iterations_before = SEND_ITERATIONS                                  # let `score` go first: it reads the same frames, and more work follows it

    def __init__(self) -> None:
        super().__init__(
            app, table, settings.topic("windows"), Detector.restore, Detector.needs, FrameReader("detect", WINDOWS_SCHEMA), Detector.readable,
            Detector.takes_long,
        )  # fmt: skip

    async def process(self, chunk: Chunk) -> None:
        partition = chunk.partition
        core = self.core_of(chunk)
        if core is None:
            return
        alerts: list[Message] = []
        market: list[Message] = []
        for frame, offset, _ in self.reader.frames(chunk):
            found = await self.feed(core, core.take_frame, chunk, frame, offset)
            if found is None:
                continue
            for first in range(0, len(found.alerts), AT_ONCE):
                for alert in found.alerts[first : first + AT_ONCE]:
                    alerts.append(Message(alert.symbol.encode(), _encode(alert)))
                    metrics.alert(alert.rule, alert.state)
                await asyncio.sleep(0)                                   # a market crash opens many alerts: let other partitions run between them
            market += [Message(None, _encode(summary)) for summary in found.markets]
        sends = [Outgoing(topics.alerts, partition, alerts)] if alerts else []
        if market:
            sends.append(Outgoing(topics.market, 0, market))
        await self.submit(core, partition, sends, core.records(app.term), core.index)


stage = Detection()


@app.agent(topics.windows)
async def detect(stream: Any) -> None:
    """Processes one chunk of frames at a time."""
    await stage.work(stream)

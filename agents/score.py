"""Scores the model inline: `windows` -> `predictions`, `outcomes`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from models import ScoringModel
from models.registry import Registry, RegistryError
from stockstream import topics
from stockstream.app import app
from stockstream.broker import topic_ends
from stockstream.errors import ModelError
from stockstream.records import WINDOWS_SCHEMA
from stockstream.transforms.scoring import Scored, Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.warmup import warm_up
from stockstream.transport import SEND_TURNS, Chunk, Message, Outgoing
from stockstream.worker import FrameReader, hops_of, metrics, now_ms, status
from tables import score as table
from tables.frame_stage import FrameStage
from tables.state import anything

logger = logging.getLogger(__name__)

RELOAD_S = 5.0
settings = app.settings


@dataclass(slots=True)
class _Told:
    """What is to be sent: messages, how many predictions, and when the newest raw record among them arrived (epoch ms)."""

    sends: list[Outgoing] = field(default_factory=list)
    count: int = 0
    raw_ms: int = 0


class Scoring(FrameStage[Scorer]):
    """The cores of `score`, and the champion model that new closings are scored with."""

    turns_after = SEND_TURNS

    def __init__(self) -> None:
        readable = getattr(Scorer, "readable", anything)
        super().__init__(app, table, settings.topic("windows"), self._from_records, Scorer.needs, FrameReader("score", WINDOWS_SCHEMA), readable)
        self.registry = Registry(settings.models)
        self.loaded: dict[tuple[str, str], ScoringModel] = {}
        self.champion: ScoringModel | None = None
        self.why = ""
        self.unsaid: dict[int, int] = {}
        """By partition: offsets of `windows` from here on were not there when the partition came."""
        status.model_list = self.models

    def load(self, name: str, version: str) -> ScoringModel:
        """A stored model, read once. Raises `ModelError`."""
        model = self.loaded.get((name, version))
        if model is None:
            try:
                model = self.loaded[name, version] = self.registry.load(name, version)
            except RegistryError as error:
                raise ModelError(str(error)) from error
        return model

    def refresh(self) -> None:
        """Looks which model is champion now; a change is told once."""
        try:
            version = self.registry.champion(settings.model)
            if version is None:
                why = f"no model {settings.model} in {settings.models}: nothing is predicted until `stockstream train` has made one"
            elif self.champion is None or self.champion.version != version:
                self.champion = self.load(settings.model, version)
                why = f"champion is {settings.model} {version}"
            else:
                return
        except (ModelError, RegistryError, OSError) as error:
            why = f"the champion cannot be loaded: {error}"
        if why != self.why:
            self.why = why
            logger.info("%s", why)

    def models(self) -> list[dict[str, Any]]:
        """The models in use, with what the registry knows of them."""
        if self.champion is None:
            return []
        entry = self.registry.entry(self.champion.name, self.champion.version)
        return [{"name": self.champion.name, "version": self.champion.version, "role": "champion", **dict(entry.metadata)}]

    def _from_records(self, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int]) -> Scorer:
        return Scorer.restore(partition, records, self.load, offsets)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Any:
        self.refresh()
        found = await super().assign(partitions)
        self.unsaid = await topic_ends(settings, self.topic, list(self.cores), embedded=app.embedded)
        return found

    def new_champion(self, partition: int, core: Scorer, offset: int) -> ScoringModel | None:
        """The model that is to be champion from a `windows` frame at `offset` on; None where it is already, or where the frame may have been told before.

        What was in the topic when the partition came may have been predicted by whoever had it, its record lost: it is told again by the same model.
        """
        model = self.champion
        if model is None or core.champion == (model.name, model.version) or (core.champion is not None and offset < self.unsaid.get(partition, 0)):
            return None
        return model

    async def chunk(self, chunk: Chunk) -> None:
        partition = chunk.partition
        core = self.core_of(chunk)
        if core is None:
            return
        told = _Told()
        for frame, offset, record in self.reader.frames(chunk):
            model = self.new_champion(partition, core, offset)
            if model is not None:
                await self.send(partition, core, told)
                told = _Told()
                core.set_champion(model, max(core.expect, 0))
                await self.send(partition, core, told)                 # who is champion from where on is written before it is used
                if (pipe := self.pipes.get(partition)) is None:
                    return
                await pipe.drain()
                if self.cores.get(partition) is not core:              # assigned anew meanwhile
                    return
            scored = self.reader.feed(core, core.frame, chunk, frame, offset)
            if scored is None:
                continue
            self.tell(told, scored, hops_of(record))
            await asyncio.sleep(0)                                       # a backlog's frames are long work: heartbeats and deliveries go between them
        await self.send(partition, core, told)

    @staticmethod
    def tell(told: _Told, scored: Scored, hops: list[int]) -> None:
        """Adds what a frame brought to what is to be sent."""
        partition, made_at = scored.partition, now_ms()
        latency = {}
        if len(hops) == 3:
            told.raw_ms = hops[0]
            latency = {"clean": hops[1] - hops[0], "windows": hops[2] - hops[1], "score": made_at - hops[2], "total": made_at - hops[0]}
        values = encode_predictions(scored, made_at, latency)
        if values:
            told.count += len(values)
            told.sends.append(Outgoing(topics.predictions, partition, [Message(s.encode(), v) for s, v in zip(scored.symbols, values, strict=True)]))
        outcomes = encode_outcomes(scored, made_at)
        if outcomes:
            told.sends.append(Outgoing(topics.outcomes, partition, [Message(None, value) for value in outcomes]))

    async def send(self, partition: int, core: Scorer, told: _Told) -> None:
        """Sends what is to be told, then the state that counts it."""

        def delivered() -> None:
            metrics.predictions(told.count)
            if told.count and told.raw_ms:
                metrics.observe_many("raw_to_prediction", max(0, now_ms() - told.raw_ms) / 1000, told.count)

        await self.submit(core, partition, told.sends, core.records(app.term), core.index, delivered)


stage = Scoring()
stage.refresh()
warm_up(stage.champion)


@app.agent(topics.windows)
async def score(stream: Any) -> None:
    """One chunk of frames at a time."""
    await stage.work(stream)


@app.task
async def reload_models() -> None:
    """Takes a newly trained champion into use without a restart."""
    while not app.should_stop:
        await asyncio.sleep(RELOAD_S)
        await asyncio.to_thread(stage.refresh)

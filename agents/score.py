"""Runs the models on every closed second: `windows` -> `predictions`, `outcomes`."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from models import ScoringModel
from stockstream import topics
from stockstream.champions import Champions, Loaded, in_one_line
from stockstream.errors import ModelError
from stockstream.instance import app
from stockstream.kafka.client import topic_ends
from stockstream.records import WINDOWS_SCHEMA
from stockstream.registries import open_registry
from stockstream.state.frame_reader import FrameReader
from stockstream.state.frame_stage import FrameStage
from stockstream.status import metrics, status
from stockstream.transforms.scoring.roster import Key, Member
from stockstream.transforms.scoring.scorer import Scored, Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.warmup import warm_up
from stockstream.transport.hops import hops_of, now_ms
from stockstream.transport.messages import Chunk, Message, Outgoing
from stockstream.transport.pacing import SEND_ITERATIONS
from tables.score import table

logger = logging.getLogger(__name__)

RELOAD_S = 5.0
REMIND_S = 300.0
"""Interval between warnings that rows are not predicted."""
settings = app.settings


@dataclass(slots=True)
class _Pending:
    """Results to send: the messages, the number of predictions in them, and when their newest raw record arrived (epoch ms)."""

    sends: list[Outgoing] = field(default_factory=list)
    count: int = 0
    raw_ms: int = 0


class Scoring(FrameStage[Scorer]):
    """The cores of `score`, and the models that score new closings.

    A partition follows the registry's champion. While that model is suspended, the previous champion scores, if it can be loaded.
    """

    iterations_after = SEND_ITERATIONS

    def __init__(self) -> None:
        super().__init__(app, table, settings.topic("windows"), self._from_records, Scorer.needs, FrameReader("score", WINDOWS_SCHEMA), Scorer.readable)
        self.champions = Champions(settings.models, settings.model, partial(open_registry, settings=settings))
        self.end_offset_at_assignment: dict[int, int] = {}
        """By partition: the end of `windows` when the partition was assigned. Another worker may have scored frames before it."""
        self._scored_end: dict[int, int] = {}
        """By partition: the offset of `windows` after the last frame scored since the assignment. A rebuilt core receives the frames before it again."""
        self.not_predicted: dict[Key, int] = {}
        """By model: rows that it should have predicted and did not, since this worker started."""
        self._searched: set[int] = set()
        """Partitions for which no former champion could be loaded since the last refresh of the registry."""
        self._unloadable: dict[Key, str] = {}
        """Former champions that cannot be loaded, with the reason as logged, so that each is logged once."""
        self._reminded: tuple[str, float] = "", 0.0
        status.model_list, status.model_note = self.models, self.note

    def load(self, name: str, version: str) -> ScoringModel:
        """Loads a stored model. Raises `ModelError` if it is missing or cannot be loaded."""
        return self.champions.load(name, version).model

    async def refresh(self) -> None:
        """Reads the registry again, and unloads models that no core uses."""
        await asyncio.to_thread(self.champions.refresh)
        self._searched.clear()
        self.champions.keep(key for core in self.cores.values() for key in core.models)
        self.remind()

    def remind(self) -> None:
        """Logs why rows are not predicted: when the reason changes, and every `REMIND_S`."""
        note, (logged, at) = self.note(), self._reminded
        if note == logged and (not note or time.monotonic() - at < REMIND_S):
            return
        self._reminded = note, time.monotonic()
        if note:
            logger.warning("%s", note)
        else:
            logger.info("the champion %s scores", " ".join(self.champions.champion.key) if self.champions.champion else "")

    # -- status of the models --------------------------------------------------

    def _suspended(self, core: Scorer) -> Member | None:
        """The registry's champion if this core has suspended it, else None."""
        return next((m for m in core.members if m.suspended and m.key == (settings.model, self.champions.version)), None)

    def note(self) -> str:
        """One line on why rows are not predicted, or not by the registry's champion; empty if they are."""
        cores = sorted(self.cores.items())
        silent = [partition for partition, core in cores if core.champion is None and (core.members or not self.champions.champion)]
        why = self.champions.problem
        if not why:
            out = next((member for _, core in cores if (member := self._suspended(core)) is not None), None)
            if out is not None:
                why = f"{_suspension(out)}; promote another version, or this one again once it is fixed"
            elif silent:
                listed = next((member for member in self.cores[silent[0]].members if member.suspended), None)
                why = _suspension(listed) if listed else "the champion takes over at the next frame"
        if not why:
            return ""
        if silent or not (cores or self.champions.champion):
            where = "" if len(silent) == len(cores) else f" in partitions {', '.join(map(str, silent))}"
            return f"no predictions{where}: {why}"
        return f"{why}; the last good model continues"

    def models(self) -> list[dict[str, Any]]:
        """The models in use or suspended, with their metadata from the registry. `partitions` and `not_predicted` cover this worker only."""
        places: dict[Key, list[tuple[int, Member, int]]] = {}
        for partition, core in sorted(self.cores.items()):
            for member in core.members:
                places.setdefault(member.key, []).append((partition, member, core.roster.since(member)))
        champion, wanted = self.champions.champion, (settings.model, self.champions.version)
        if champion is not None and not places:                          # no frame has come yet: the champion takes over at the first one
            places.setdefault(champion.key, [])
        if self.champions.problem:
            places.setdefault(wanted, [])
        out: list[dict[str, Any]] = []
        for key, listed in places.items():
            worst = next((member for _, member, _ in listed if member.suspended), None)
            state = _state(worst or listed[0][1]) if listed else "champion"
            reason = worst.detail if worst else ""
            if key == wanted and self.champions.problem:
                state, reason = (state if listed else "missing"), self.champions.problem
            out.append({
                **self.champions.metadata(key), "name": key[0], "version": key[1], "role": listed[0][1].role if listed else "champion", "state": state,
                "reason": reason, "not_predicted": self.not_predicted.get(key, 0),
                "partitions": [
                    {"partition": partition, "state": _state(member), "since_offset": since, "reason": member.detail} for partition, member, since in listed
                ],
            })  # fmt: skip
        return out

    # -- partitions ----------------------------------------------------------

    def _from_records(self, partition: int, records: Mapping[bytes, bytes], offsets: Mapping[bytes, int]) -> Scorer:
        return Scorer.restore(partition, records, self.load, offsets)

    async def assign(self, partitions: Mapping[str, list[int]]) -> Any:
        await asyncio.to_thread(self.champions.refresh)
        self._searched.clear()
        found = await super().assign(partitions)
        self._scored_end.clear()
        self.end_offset_at_assignment = await topic_ends(settings, self.topic, list(self.cores), embedded=app.embedded)
        return found

    def must_keep_models(self, partition: int, core: Scorer, offset: int) -> bool:
        """Whether the present roster must score the frame at this offset of `windows`, so that the champion may not change before it.

        The worker that had the partition before may have sent predictions of this frame and lost the state record. The same model must repeat them.
        """
        return bool(core.members) and offset < max(self.end_offset_at_assignment.get(partition, 0), self._scored_end.get(partition, 0))

    def new_champion(self, core: Scorer) -> Loaded | None:
        """The registry's champion if it should replace the core's; None if it is the core's already, or if the core has suspended this very artefact."""
        wanted = self.champions.champion
        if wanted is None or core.champion == wanted.key or any(m.key == wanted.key and tried(m, wanted.stamp) for m in core.members):
            return None
        return wanted

    def fallback(self, core: Scorer) -> Loaded | None:
        """The latest former champion that can be loaded and is not suspended: this partition's, else another partition's; None if there is none."""
        out = {member.key for member in core.members if member.suspended}
        others = [key for other in self.cores.values() for key in (*([other.champion] if other.champion else []), *other.roster.fallbacks)]
        for name, version in dict.fromkeys([*core.roster.fallbacks, *others]):
            if (name, version) not in out:
                try:
                    return self.champions.load(name, version)
                except ModelError as error:
                    if self._unloadable.get((name, version)) != str(error):
                        self._unloadable[name, version] = str(error)
                        logger.warning("the former champion %s %s cannot be loaded: %s", name, version, error)
        return None

    async def process(self, chunk: Chunk) -> None:
        partition = chunk.partition
        core = self.core_of(chunk)
        if core is None:
            return
        pending = _Pending()
        for frame, offset, record in self.reader.frames(chunk):
            if not self.must_keep_models(partition, core, offset):
                model = self.new_champion(core)
                if model is None and core.champion is None and partition not in self._searched:
                    model = await asyncio.to_thread(self.fallback, core)
                    if model is None:
                        self._searched.add(partition)
                if model is not None:
                    await self.send(partition, core, pending)
                    pending = _Pending()
                    core.set_champion(model.model, max(core.expect, 0), model.stamp)
                    await self.send(partition, core, pending)             # the change of champion is stored before it takes effect
                    if (pipe := self.pipes.get(partition)) is None:
                        return
                    await pipe.drain()
                if self.cores.get(partition) is not core:              # the partition was reassigned meanwhile
                    return
            self._scored_end[partition] = max(offset + 1, self._scored_end.get(partition, 0))
            scored = self.reader.feed(core, core.take_frame, chunk, frame, offset)
            if scored is None:
                continue
            self.note_faults(scored)
            self.add_results(pending, scored, hops_of(record))
            await asyncio.sleep(0)                                       # frames of a backlog take long: heartbeats and deliveries run between them
        await self.send(partition, core, pending)

    def note_faults(self, scored: Scored) -> None:
        """Counts rows without a prediction, and logs which models were suspended."""
        for missed in scored.missed:
            key = (missed.name, missed.version) if missed.name else (settings.model, "")
            self.not_predicted[key] = self.not_predicted.get(key, 0) + missed.rows
            metrics.rows_not_predicted(*key, missed.reason, missed.rows)
        for member in scored.suspended:
            self._searched.discard(scored.partition)
            metrics.restart("model_suspended")
            logger.error(
                "model %s %s is suspended in partition %d from raw offset %d on: %s", *member.key, scored.partition, scored.through + 1, member.suspended
            )

    @staticmethod
    def add_results(pending: _Pending, scored: Scored, hops: list[int]) -> None:
        """Adds the predictions and outcomes of a frame to the results to send."""
        partition, made_at = scored.partition, now_ms()
        latency = {}
        if len(hops) == 3:
            pending.raw_ms = hops[0]
            latency = {"clean": hops[1] - hops[0], "windows": hops[2] - hops[1], "score": made_at - hops[2], "total": made_at - hops[0]}
        values = encode_predictions(scored, made_at, latency)
        if values:
            pending.count += len(values)
            pending.sends.append(Outgoing(topics.predictions, partition, [Message(s.encode(), v) for s, v in zip(scored.symbols, values, strict=True)]))
        outcomes = encode_outcomes(scored, made_at)
        if outcomes:
            pending.sends.append(Outgoing(topics.outcomes, partition, [Message(None, value) for value in outcomes]))

    async def send(self, partition: int, core: Scorer, pending: _Pending) -> None:
        """Sends the results, then the state that accounts for them."""

        def delivered() -> None:
            metrics.predictions(pending.count)
            if pending.count and pending.raw_ms:
                metrics.observe_many("raw_to_prediction", max(0, now_ms() - pending.raw_ms) / 1000, pending.count)

        await self.submit(core, partition, pending.sends, core.records(app.term), core.index, delivered)


def _suspension(member: Member) -> str:
    return f"model {member.name} {member.version} is suspended ({member.suspended.replace('_', ' ')}: {member.detail})"


def _state(member: Member) -> str:
    if not member.suspended:
        return member.role
    return "missing" if member.suspended == "missing" else "suspended"


def tried(member: Member, stamp: str) -> bool:
    """Whether the artefact with this stamp has failed before. A model that was only missing has not: it is tried again once it can be loaded."""
    return bool(member.suspended) and member.suspended != "missing" and member.stamp == stamp


stage = Scoring()
stage.champions.refresh()
warm_up_problem = ""
try:
    warm_up(stage.champions.champion.model if stage.champions.champion else None)
except Exception as error:  # noqa: BLE001 (the warm-up only saves time: the worker starts without it)
    warm_up_problem = in_one_line(error)


@app.agent(topics.windows)
async def score(stream: Any) -> None:
    """Processes one chunk of frames at a time."""
    await stage.work(stream)


@app.task
async def reload_models() -> None:
    """Every RELOAD_S, reads the registry: a new champion takes over without a restart, and a missing one is logged."""
    if warm_up_problem:
        logger.warning("the state machines could not be warmed up, the first frames take longer: %s", warm_up_problem)
    stage.remind()
    while not app.should_stop:
        await asyncio.sleep(RELOAD_S)
        await stage.refresh()

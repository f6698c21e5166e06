"""Which model `score` uses as the registry changes under it: no Kafka, a real registry, the real state machine."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

import agents.score
from agents.score import REMIND_S, Scoring, _Pending
from models import features
from models.registry import Registry
from models.xgboost import XGBoostModel, train_horizon
from stockstream import topics
from stockstream.champions import Champions
from stockstream.instance import app
from stockstream.status import metrics, status
from stockstream.transforms.scoring.scorer import Scorer
from stockstream.transforms.warmup import warm_up
from tests.patience import PATIENCE_S
from tests.unit.transforms.test_scoring_state import frame_of

NOW = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    matrix = rng.normal(size=(300, len(features.FEATURES))).astype(np.float32)
    return XGBoostModel("", "", "", (train_horizon(10, matrix, rng.normal(size=300), rounds=2),)).files()


def faulty(files: dict[str, bytes]) -> dict[str, bytes]:
    """The artefact with a calibration that is not a number."""
    heads = json.loads(files["heads.json"])
    return files | {"heads.json": json.dumps([head | {"slope": float("nan")} for head in heads]).encode()}


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry(f"file://{tmp_path}/models")


class Agent:
    """The stage with one partition, fed frame by frame; notes what was sent."""

    def __init__(self, stage: Scoring, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stage = stage
        self.kept: dict[bytes, bytes] = {}
        self.versions: list[str] = []
        self.offset = 0
        self.drained = 0
        stage.cores[0] = Scorer(0)

        async def drain() -> None:
            self.drained += 1

        stage.pipes[0] = SimpleNamespace(drain=drain, close=drain_nothing)  # type: ignore[assignment]

        async def send(partition: int, core: Scorer, pending: _Pending) -> None:
            self.kept |= dict(core.records(0))
            for out in pending.sends:
                if out.topic is topics.predictions:
                    self.versions += [msgspec.json.decode(message.value)["version"] for message in out.messages if message.value]

        monkeypatch.setattr(stage, "send", send)
        monkeypatch.setattr(stage, "core_of", lambda chunk: stage.cores.get(chunk.partition))
        monkeypatch.setattr(stage.reader, "frames", lambda chunk: iter(chunk.frames))
        monkeypatch.setattr(stage.reader, "feed", lambda core, take, chunk, frame, offset: take(frame, offset))

    @property
    def core(self) -> Scorer:
        return self.stage.cores[0]

    async def feed(self) -> str:
        """One second of one symbol; returns the version that predicted it, "" where none did."""
        self.versions.clear()
        frame = frame_of(self.offset, 1_000 + self.offset, ["A"], ["s"])
        chunk: Any = SimpleNamespace(partition=0, frames=[(frame, self.offset, SimpleNamespace(headers=[]))])
        await self.stage.process(chunk)
        self.offset += 1
        assert len(self.versions) <= 1
        return self.versions[0] if self.versions else ""

    def restart(self) -> None:
        """A new process with the records that were written."""
        self.stage.champions = Champions(self.stage.champions.url, self.stage.champions.name)
        self.stage.champions.refresh()
        self.stage.cores[0] = Scorer.restore(0, self.kept, self.stage.load)
        self.stage._searched.clear()

    def states(self) -> dict[str, str]:
        return {item["version"]: item["state"] for item in self.stage.models()}


async def drain_nothing(timeout_s: float = 0) -> None: ...


@pytest.fixture
async def agent(registry: Registry, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Agent]:
    stage = agents.score.stage
    await stage.release(0)
    monkeypatch.setattr(stage, "champions", Champions(f"file://{registry.root}", "xgboost"))
    monkeypatch.setattr(stage, "end_offset_at_assignment", {})
    monkeypatch.setattr(stage, "_scored_end", {})
    monkeypatch.setattr(stage, "not_predicted", {})
    monkeypatch.setattr(stage, "_reminded", ("", 0.0))
    stage._searched.clear()
    yield Agent(stage, monkeypatch)
    await stage.release(0)


def store(registry: Registry, files: dict[str, bytes], days: int = 0) -> str:
    version = registry.store("xgboost", "xgboost", files, {"horizons_s": [10], "metrics": {}}, now=NOW + timedelta(days=days)).version
    registry.promote("xgboost", version)
    return version


async def test_without_a_model_nothing_is_predicted_and_everybody_says_why(
    agent: Agent, registry: Registry, files: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        await agent.stage.refresh()
        assert await agent.feed() == ""
        await agent.stage.refresh()
    (line,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert line.message == agent.stage.note()
    assert line.message.startswith(f"no predictions: there is no model xgboost in {registry.root}; train one with `stockstream train xgboost")
    (item,) = agent.stage.models()
    assert (item["name"], item["version"], item["state"], item["not_predicted"]) == ("xgboost", "", "missing", 1) and "stockstream train" in item["reason"]
    version = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == version
    await agent.stage.refresh()
    assert agent.stage.note() == "" and agent.states() == {version: "champion"} and caplog.records


async def test_it_reminds_every_few_minutes(agent: Agent, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    monkeypatch.setattr("agents.score.time.monotonic", lambda: now)
    for _ in range(120):
        await agent.stage.refresh()
        now += REMIND_S / 50
    assert len([record for record in caplog.records if "no predictions" in record.message]) == 3


async def test_a_loaded_champion_is_listed_before_the_first_frame(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    version = store(registry, files)
    await agent.stage.refresh()
    assert agent.stage.cores and agent.states() == {version: "champion"}


async def test_a_new_champion_is_taken_into_use_and_written_before_it_is_used(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    one = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == one and agent.drained == 1
    two = store(registry, files, days=1)
    await agent.stage.refresh()
    assert await agent.feed() == two and agent.drained == 2
    registry.promote("xgboost", one)
    await agent.stage.refresh()
    assert await agent.feed() == one
    agent.restart()
    assert await agent.feed() == one and agent.drained == 3
    assert set(agent.stage.champions._loaded) == {("xgboost", one)}


@pytest.mark.parametrize("healing", ["another", "the old one", "the same again", "mended", "none, but a restart"])
async def test_a_faulty_champion_is_suspended_the_last_good_one_goes_on_and_a_promotion_heals(
    agent: Agent, registry: Registry, files: dict[str, bytes], healing: str
) -> None:
    good = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == good
    before = metrics.totals().get("rows_not_predicted", 0)
    bad = store(registry, faulty(files), days=1)
    await agent.stage.refresh()
    assert [await agent.feed() for _ in range(3)] == ["", good, good]
    assert metrics.totals()["rows_not_predicted"] == before + 1
    assert f'rows_not_predicted_total{{model="xgboost",reason="not_finite",version="{bad}"}}' in metrics.exposition().decode()
    assert agent.states() == {good: "champion", bad: "suspended"}
    item = next(item for item in agent.stage.models() if item["version"] == bad)
    assert item["not_predicted"] == 1 and "not finite" in item["reason"] and item["kind"] == "xgboost"
    assert item["partitions"] == [{"partition": 0, "state": "suspended", "since_offset": 2, "reason": item["reason"]}]
    assert f"model xgboost {bad} is suspended" in agent.stage.note() and "continues" in agent.stage.note() and "no predictions" not in agent.stage.note()
    assert agent.stage.note() in status.model_note()
    for _ in range(2):
        await agent.stage.refresh()
        agent.restart()                                                  # the same artefact is not tried again
        assert await agent.feed() == good
    if healing == "another":
        third = store(registry, files, days=2)
        await agent.stage.refresh()
        assert await agent.feed() == third and agent.stage.note() == ""
    elif healing == "the old one":
        registry.promote("xgboost", good)
        await agent.stage.refresh()
        assert await agent.feed() == good and agent.stage.note() == ""
    elif healing == "the same again":
        registry.promote("xgboost", bad)
        await agent.stage.refresh()
        assert [await agent.feed() for _ in range(2)] == ["", good]
    elif healing == "mended":
        path = registry.root / "xgboost" / bad
        metadata = json.loads((path / "metadata.json").read_bytes())
        (path / "heads.json").write_bytes(files["heads.json"])
        await agent.stage.refresh()
        assert await agent.feed() == good and "heads.json is not what was stored" in agent.stage.note()
        metadata["files"]["heads.json"] = json.loads((registry.root / "xgboost" / good / "metadata.json").read_bytes())["files"]["heads.json"]
        (path / "metadata.json").write_text(json.dumps(metadata))
        await agent.stage.refresh()
        assert await agent.feed() == bad and agent.stage.note() == "" and agent.states() == {bad: "champion"}


async def test_a_first_champion_that_is_faulty_leaves_nothing_predicted_until_another_comes(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    bad = store(registry, faulty(files))
    await agent.stage.refresh()
    warm_up(agent.stage.champions.champion.model if agent.stage.champions.champion else None)
    assert [await agent.feed() for _ in range(3)] == ["", "", ""]
    assert agent.stage.note().startswith(f"no predictions: model xgboost {bad} is suspended (not finite: ")
    assert agent.stage.models()[0]["not_predicted"] == 3
    good = store(registry, files, days=1)
    await agent.stage.refresh()
    assert await agent.feed() == good


async def test_the_registry_goes_and_comes_back(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    version = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == version
    away = registry.root.with_name("away")
    registry.root.rename(away)
    await agent.stage.refresh()
    assert await agent.feed() == version                                 # what is loaded goes on
    assert agent.stage.note().endswith("the last good model continues") and str(registry.root) in agent.stage.note()
    assert agent.states() == {version: "champion", "": "missing"}
    agent.restart()
    assert [await agent.feed() for _ in range(2)] == ["", ""]
    assert agent.stage.note().startswith("no predictions: there is no model xgboost")
    assert agent.states() == {version: "missing", "": "missing"}
    away.rename(registry.root)
    await agent.stage.refresh()
    assert await agent.feed() == version and agent.stage.note() == "" and agent.states() == {version: "champion"}


async def test_a_corrupt_champion_at_the_start_leaves_the_one_before_in_use_and_is_taken_once_it_is_mended(
    agent: Agent, registry: Registry, files: dict[str, bytes]
) -> None:
    good = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == good
    bad = store(registry, files, days=1)
    path = registry.root / "xgboost" / bad / "up_10s.ubj"
    path.write_bytes(b"x")
    await agent.stage.refresh()
    assert await agent.feed() == good
    agent.restart()
    assert await agent.feed() == good
    assert "up_10s.ubj is not what was stored" in agent.stage.note() and agent.states() == {good: "champion", bad: "missing"}
    path.write_bytes(files["up_10s.ubj"])
    await agent.stage.refresh()
    assert await agent.feed() == bad and agent.stage.note() == ""


async def test_the_old_champion_of_the_roster_is_gone_and_the_new_one_takes_over(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    old = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == old
    new = store(registry, files, days=1)
    shutil.rmtree(registry.root / "xgboost" / old)
    agent.restart()
    assert await agent.feed() == new


async def test_what_may_have_been_told_by_another_is_told_by_the_same_model(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    one = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == one
    two = store(registry, files, days=1)
    await agent.stage.refresh()
    agent.stage.end_offset_at_assignment = {0: 2}
    assert [await agent.feed() for _ in range(2)] == [one, two]


async def test_a_core_that_is_built_anew_tells_the_same_by_the_same_model(agent: Agent, registry: Registry, files: dict[str, bytes]) -> None:
    one = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == one
    kept = dict(agent.kept)
    assert await agent.feed() == one
    two = store(registry, files, days=1)
    await agent.stage.refresh()
    agent.stage.cores[0] = Scorer.restore(0, kept, agent.stage.load)
    agent.offset = 1
    assert [await agent.feed() for _ in range(2)] == [one, two]


@pytest.mark.parametrize(("url", "name", "word"), [
    ("s3://bucket", "xgboost", "file://path"), ("file://", "xgboost", "file://path"), ("none", "xgboost", "file://path"),
    ("file:///dev/null", "xgboost", "/dev/null"), ("file:///nowhere/at/all", "xgboost", "/nowhere/at/all"), ("file:///tmp", "../x", "no model name"),
    ("file://./relative", "xgboost", str(Path.cwd())),
])  # fmt: skip
async def test_a_registry_or_a_name_that_cannot_be_used_is_said_and_stops_nobody(agent: Agent, url: str, name: str, word: str) -> None:
    agent.stage.champions = Champions(url, name)
    await agent.stage.refresh()
    assert await agent.feed() == ""
    assert agent.stage.note().startswith("no predictions: ") and word in agent.stage.note()
    assert [item["state"] for item in agent.stage.models()] == ["missing"]


@pytest.mark.parametrize("content", [b"[]", b"5", b"null", b"{}", b'{"files": 5}', b"\xff", b"[" * 100_000])
@pytest.mark.parametrize("where", ["metadata.json", "heads.json"])
async def test_whatever_lies_in_the_registry_stops_nobody(agent: Agent, registry: Registry, files: dict[str, bytes], where: str, content: bytes) -> None:
    good = store(registry, files)
    await agent.stage.refresh()
    assert await agent.feed() == good
    bad = store(registry, files | ({} if where == "metadata.json" else {where: content}), days=1)
    if where == "metadata.json":
        (registry.root / "xgboost" / bad / where).write_bytes(content)
    await agent.stage.refresh()
    assert await agent.feed() == good and "cannot be loaded" in agent.stage.note()


class Reloading:
    """`reload_models` in a task. It sleeps until `turn` lets it look at the registry once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asleep, self._wake, self.pauses = asyncio.Event(), asyncio.Event(), list[float]()
        self._sleep = asyncio.sleep
        self._stop = False
        monkeypatch.setattr(asyncio, "sleep", self._until_woken)
        monkeypatch.setattr(type(app), "should_stop", property(lambda _: self._stop))
        self.task = asyncio.create_task(agents.score.reload_models())

    async def _until_woken(self, seconds: float) -> None:
        if asyncio.current_task() is not self.task:
            return await self._sleep(seconds)
        self.pauses.append(seconds)
        self._asleep.set()
        await self._wake.wait()
        self._wake.clear()
        return None

    async def turn(self) -> None:
        """Lets it go on until it sleeps again."""
        async with asyncio.timeout(PATIENCE_S):
            await self._asleep.wait()
            self._asleep.clear()
            self._wake.set()
            await self._asleep.wait()

    async def stop(self) -> None:
        """Ends the worker: the task ends by itself after its next turn."""
        self._stop = True
        self._wake.set()
        await asyncio.wait_for(self.task, PATIENCE_S)


@pytest.fixture
async def reloading(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Reloading]:
    running = Reloading(monkeypatch)
    yield running
    if not running.task.done():
        await running.stop()


async def test_a_model_that_is_promoted_is_taken_into_use_without_a_restart(
    agent: Agent, reloading: Reloading, registry: Registry, files: dict[str, bytes]
) -> None:
    one = store(registry, files)
    assert await agent.feed() == ""
    await reloading.turn()
    assert await agent.feed() == one
    two = store(registry, files, days=1)
    assert await agent.feed() == one, "not before the next look at the registry"
    await reloading.turn()
    assert await agent.feed() == two and agent.stage.note() == ""
    registry.promote("xgboost", one)
    await reloading.turn()
    assert await agent.feed() == one
    assert set(reloading.pauses) == {agents.score.RELOAD_S}


async def test_a_registry_that_fails_leaves_the_model_in_use_and_the_task_running(
    agent: Agent, reloading: Reloading, registry: Registry, files: dict[str, bytes]
) -> None:
    one = store(registry, files)
    await reloading.turn()
    assert await agent.feed() == one
    two = store(registry, files, days=1)
    heads = registry.root / "xgboost" / two / "heads.json"
    good = heads.read_bytes()
    heads.write_bytes(b"x")
    await reloading.turn()
    assert await agent.feed() == one and "heads.json is not what was stored" in agent.stage.note()
    heads.write_bytes(good)
    await reloading.turn()
    assert await agent.feed() == two and agent.stage.note() == ""


async def test_models_that_nobody_scores_with_any_more_are_let_go(
    agent: Agent, reloading: Reloading, registry: Registry, files: dict[str, bytes]
) -> None:
    versions = []
    for days in range(3):
        versions.append(store(registry, files, days=days))
        await reloading.turn()
        assert await agent.feed() == versions[-1]
    await reloading.turn()
    assert {version for _, version in agent.stage.champions._loaded} == {version for _, version in agent.core.models}


async def test_the_reloading_task_ends_with_the_worker(agent: Agent, reloading: Reloading) -> None:
    await reloading.turn()
    await reloading.stop()
    assert reloading.task.done() and reloading.task.exception() is None


async def test_a_warm_up_that_failed_is_logged_once_reloading_begins(
    agent: Agent, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agents.score, "warm_up_problem", "odd")
    with caplog.at_level(logging.WARNING):
        running = Reloading(monkeypatch)
        await running.turn()
        await running.stop()
    assert [record.getMessage() for record in caplog.records if "warmed up" in record.getMessage()] == [
        "the state machines could not be warmed up, the first frames take longer: odd"
    ]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The log of the agent is heard at every level."""
    level, logging.getLogger("agents.score").level = logging.getLogger("agents.score").level, logging.INFO
    yield
    logging.getLogger("agents.score").level = level

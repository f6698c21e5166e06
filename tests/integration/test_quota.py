"""The budget of requests on real Kafka: exact over restarts, over two workers, and over a worker that was killed between reservation and request."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from stockstream.budgets import PERIOD_MS, Limits
from stockstream.errors import BrokerError
from stockstream.kafka import request_log
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.request_log import KafkaRequestLog
from stockstream.settings import Settings, load_settings
from stockstream.sources.base import SystemClock
from stockstream.sources.quota import BudgetSpent, Grant, Scheduler
from tests.kafka import Cluster
from tests.patience import PATIENCE_S

SOURCE = "alpha_vantage"


def scheduler(settings: Settings, worker: str, budget: str = "200/s,25/d") -> Scheduler:
    return Scheduler(SOURCE, Limits.parse(budget), KafkaRequestLog(settings), clock=SystemClock(), worker=worker)


async def spend_all(workers: list[Scheduler], most: int = 100) -> list[Grant]:
    return [grant for grants in await asyncio.gather(*(spend(worker, most) for worker in workers)) for grant in grants]


async def spend(scheduler: Scheduler, most: int = 100) -> list[Grant]:
    found: list[Grant] = []
    try:
        while len(found) < most:
            found.append(await scheduler.acquire(["IBM"]))
    except BudgetSpent:
        pass
    return found


async def test_exactly_25_a_day_over_restarts_and_two_workers(kafka: Cluster, tmp_path: Path, prefix: str) -> None:
    settings = load_settings(broker=kafka.bootstrap, topic_prefix=prefix, archive="none", models=f"file://{tmp_path}", state_dir=tmp_path, partitions=2)
    await ensure_topics(settings)
    granted: list[Grant] = []
    for restart in range(3):
        workers = [scheduler(settings, f"{name}{restart}") for name in "ab"]
        granted += await spend_all(workers, 3)
        for worker in workers:
            await worker.stop()
    assert len(granted) == 18
    workers = [scheduler(settings, name) for name in "cd"]
    granted += await spend_all(workers)
    assert len(granted) == 25 == len({grant.id for grant in granted})
    await workers[0].give_back(granted[-1])
    await workers[1].refresh(0)
    assert [worker.left_today for worker in workers] == [1, 1]
    assert len(await spend_all(workers)) == 1
    assert workers[0].asked().keys() == {"IBM"}
    other = Scheduler("yahoo", Limits.parse("3/d"), KafkaRequestLog(settings), clock=SystemClock(), worker="e")
    assert len(await spend(other)) == 3                                  # its budget is its own
    for worker in (*workers, other):
        await worker.stop()


async def test_the_rate_is_kept_by_both_workers_together(kafka: Cluster, tmp_path: Path, prefix: str) -> None:
    settings = load_settings(broker=kafka.bootstrap, topic_prefix=prefix, archive="none", models=f"file://{tmp_path}", state_dir=tmp_path, partitions=2)
    await ensure_topics(settings)
    workers = [scheduler(settings, name, "5/s,100/d") for name in "ab"]
    slots = sorted(grant.slot for grant in await spend_all(workers, 6))
    assert len(slots) == 12 and all(later - earlier >= PERIOD_MS["second"] for earlier, later in zip(slots, slots[5:], strict=False))
    for worker in workers:
        await worker.stop()


async def test_a_broker_that_was_away_costs_nothing_but_an_error(kafka: Cluster, tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_log, "TIMEOUT_S", 4.0)
    settings = load_settings(broker=kafka.bootstrap, topic_prefix=prefix, archive="none", models=f"file://{tmp_path}", state_dir=tmp_path, partitions=2)
    await ensure_topics(settings)
    worker = scheduler(settings, "a")
    first = await worker.acquire(["IBM"])
    kafka.freeze(0)
    try:
        with pytest.raises(BrokerError, match="cannot be written"):
            await worker.acquire(["IBM"])
    finally:
        kafka.thaw(0)
    monkeypatch.setattr(request_log, "TIMEOUT_S", PATIENCE_S)
    then = await worker.acquire(["IBM"])
    assert then.id != first.id and worker.left_today in (23, 22)         # an unconfirmed reservation counts, if the broker took it after all
    await worker.stop()

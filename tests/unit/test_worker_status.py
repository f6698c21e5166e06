"""What the worker tells of itself, and the metrics that say the same."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from mode import Service

from stockstream.instance import app
from stockstream.status import Status, _count_hole, metrics
from stockstream.transport.consumer import Consumer


def lags() -> dict[tuple[str, str], float]:
    (family,) = (family for family in metrics.registry.collect() if family.name == "stockstream_lag")
    return {(sample.labels["topic"], sample.labels["partition"]): sample.value for sample in family.samples}


def status_of(assigned: set[TP]) -> Status:
    consumer = SimpleNamespace(assignment=lambda: assigned, lag=lambda tp: tp.partition, guard=SimpleNamespace(holes=[], rereads=0))
    fake: Any = SimpleNamespace(
        chunk_consumer=consumer, consumer=consumer, settings=app.settings, term=1, tables=SimpleNamespace(changelog_topics=set()),
        set_aside=app.set_aside, waiting_for="",
    )
    return Status(fake)


def test_the_lag_of_a_partition_that_went_to_another_worker_is_exported_no_more() -> None:
    raw = app.settings.topic("ticks.raw")
    assigned = {TP(raw, number) for number in range(4)}
    status = status_of(assigned)
    status.pipeline()
    assert lags() == {("ticks.raw", str(number)): number for number in range(4)}
    assigned.difference_update({TP(raw, 0), TP(raw, 3)})
    assert [of["partition"] for of in status.pipeline()["lag"]] == [1, 2]
    assert lags() == {("ticks.raw", "1"): 1, ("ticks.raw", "2"): 2}
    assigned.clear()
    status.pipeline()
    assert lags() == {}


async def test_the_workers_consumer_counts_its_holes(monkeypatch: pytest.MonkeyPatch) -> None:
    def holes() -> float:
        return metrics.registry.get_sample_value("stockstream_holes_total", {"kind": "passed"}) or 0.0

    assert app.on_hole is _count_hole

    async def nothing(*_: Any) -> None: ...

    monkeypatch.setattr(Consumer, "_new_consumer_thread", lambda _: Service())
    transport: Any = SimpleNamespace(app=app, loop=asyncio.get_running_loop(), create_transaction_manager=lambda *_, **__: None)
    consumer = Consumer(transport, callback=nothing, on_partitions_revoked=nothing, on_partitions_assigned=nothing)
    tp, before = TP(app.settings.topic("ticks.raw"), 0), holes()
    consumer.guard.expected[tp] = 10
    for _ in range(2):
        consumer.guard.admit(tp, [SimpleNamespace(offset=13)])
    assert holes() == before + 3

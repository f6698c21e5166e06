"""One route over a log in memory: order, failures, restarts, limits."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import pytest

from stockstream.alerts_file import FollowedAlertsFile
from stockstream.notifying import delivery as module
from stockstream.notifying.deliveries import Deliveries
from stockstream.notifying.delivery import Delivery
from stockstream.notifying.limits import MINUTE_S
from stockstream.notifying.positions import Opened, Position
from stockstream.records import Alert, DeadAlert
from stockstream.sinks.notify.log import LogSettings
from stockstream.sinks.notify.notices import Notice
from stockstream.sinks.notify.route import Refused, Retry, RouteSettings
from tests.contracts.route import alert
from tests.patience import PATIENCE_S


class Record(NamedTuple):
    offset: int
    timestamp: int
    value: bytes


class Topic:
    """`alerts` in memory, two partitions."""

    def __init__(self) -> None:
        self.records: dict[int, list[Record]] = {0: [], 1: []}
        self.begin = {0: 0, 1: 0}
        self.now_ms = 1_760_000_000_000
        self.polled = 0

    def add(self, change: Alert | bytes, partition: int = 0) -> None:
        log = self.records[partition]
        log.append(Record(len(log), self.now_ms, change if isinstance(change, bytes) else msgspec.json.encode(change)))

    async def poll(self, cursors: Mapping[int, int | None], wait_ms: int = 0) -> dict[int, Sequence[Record]]:
        await asyncio.sleep(0.001)
        self.polled += 1
        found = {number: self.records[number][max(self.begin[number], cursor or 0) :][:5] for number, cursor in cursors.items()}
        return {number: records for number, records in found.items() if records}

    async def ends(self, partitions: Collection[int]) -> dict[int, int]:
        return {number: len(self.records[number]) for number in partitions}

    async def stop(self) -> None:
        pass


class MemoryLedger:
    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.positions: dict[tuple[str, int], Position] = {}
        self.dead: list[DeadAlert] = []
        self.owned = {0, 1}

    async def open(self, route: str, partitions: Collection[int]) -> Mapping[int, Opened]:
        return {number: Opened(self.positions.get((route, number)), self.topic.begin[number], len(self.topic.records[number])) for number in partitions}

    async def write(self, route: str, partition: int, position: Position, dead: DeadAlert | None = None) -> bool:
        await asyncio.sleep(0)
        if partition not in self.owned:
            return False
        if dead is not None:
            self.dead.append(dead)
        self.positions[route, partition] = position
        return True

    async def forget(self, route: str) -> None:
        self.positions = {key: position for key, position in self.positions.items() if key[0] != route}


class Place:
    """A route with switches."""

    def __init__(self) -> None:
        self.got: list[Notice] = []
        self.fault: Exception | None = None
        self.hang = False
        self.attempts = 0
        self.closed = False

    async def send(self, notice: Notice) -> str:
        self.attempts += 1
        while self.hang:
            await asyncio.sleep(0.001)
        if self.fault is not None:
            raise self.fault
        self.got.append(notice)
        return "ok"

    async def close(self) -> None:
        self.closed = True


class Counted:
    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def notice(self, route: str, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1


class Bench:
    def __init__(self, **settings: Any) -> None:
        self.topic, self.place, self.counted = Topic(), Place(), Counted()
        self.ledger = MemoryLedger(self.topic)
        self.settings = LogSettings(kind="log", **settings)
        self.now_s = 0.0
        self.skipped: list[tuple[int, int]] = []
        self.share = 1.0
        self.task: asyncio.Task[None] | None = None

    def make(self, name: str = "ops", settings: RouteSettings | None = None) -> Delivery:
        return Delivery(
            name, settings or self.settings, self.place, self.topic, self.ledger, lambda: self.share, self.counted.notice, lambda route, records: None,
            lambda partition, offset, reason: self.skipped.append((partition, offset)), lambda: self.now_s, lambda: self.topic.now_ms,
        )  # fmt: skip

    async def start(self, *partitions: int) -> Delivery:
        delivery = self.make()
        delivery.own(partitions or (0, 1))
        self.task = asyncio.create_task(delivery.run())
        await until(lambda: all(("ops", number) in self.ledger.positions for number in partitions or (0, 1)))
        return delivery

    async def stop(self, delivery: Delivery) -> None:
        await delivery.pause(1.0)
        await self.kill()
        await delivery.close()

    async def kill(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    @property
    def keys(self) -> list[str]:
        return [notice.key for notice in self.place.got]


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not true():
            await asyncio.sleep(0.002)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(module, "LAST_RETRY_S", 0.0)
    monkeypatch.setattr(module, "IDLE_S", 0.005)


def numbered(number: int, **fields: Any) -> Alert:
    return alert(symbol=f"S{number}", **fields)


async def test_a_new_route_starts_at_the_end() -> None:
    bench = Bench()
    bench.topic.add(numbered(0))
    delivery = await bench.start()
    bench.topic.add(numbered(1))
    bench.topic.add(numbered(2), 1)
    await until(lambda: len(bench.place.got) == 2)
    assert {notice.symbol for notice in bench.place.got} == {"S1", "S2"}
    await bench.stop(delivery)
    assert bench.place.closed


async def test_a_restart_goes_on_where_it_was() -> None:
    bench = Bench()
    delivery = await bench.start()
    for number in range(12):
        bench.topic.add(numbered(number))
    await until(lambda: len(bench.place.got) == 12)
    await bench.stop(delivery)
    for number in range(12, 20):
        bench.topic.add(numbered(number))
    delivery = await bench.start()
    await until(lambda: len(bench.place.got) == 20)
    assert [notice.symbol for notice in bench.place.got] == [f"S{number}" for number in range(20)]
    assert bench.ledger.positions["ops", 0].sent == 20
    await bench.stop(delivery)


async def test_kills_at_any_time_lose_nothing_and_repeat_at_most_one() -> None:
    bench = Bench()
    await bench.start(0)
    for number in range(60):
        bench.topic.add(numbered(number))
        if number % 3 == 0:
            await asyncio.sleep(0.003)
            await bench.kill()
            await bench.start(0)
    await until(lambda: len(set(bench.keys)) == 60)
    first = [key for number, key in enumerate(bench.keys) if key not in bench.keys[:number]]
    assert first == [f"S{number}-price_drop-1760000000/opened/1760000001000" for number in range(60)]
    assert len(bench.keys) <= 60 + 20
    await bench.kill()


async def test_a_crashed_detect_repeats_its_changes() -> None:
    bench = Bench(states=["opened", "updated", "closed"])
    delivery = await bench.start()
    changes = [alert(), alert(state="updated", as_of=2), alert(state="updated", as_of=3), alert(state="closed", as_of=4)]
    for change in [*changes[:3], *changes[1:]]:
        bench.topic.add(change)
    await until(lambda: len(bench.place.got) == 4)
    await bench.stop(delivery)
    for change in changes[2:]:                                           # also those from before a restart
        bench.topic.add(change)
    bench.topic.add(alert(symbol="MSFT"))
    delivery = await bench.start()
    await until(lambda: len(bench.place.got) == 5)
    assert [notice.at for notice in bench.place.got[:4]] == [1_760_000_001_000, 2, 3, 4]
    await bench.stop(delivery)


async def test_a_place_that_is_down_gets_everything_afterwards_in_order() -> None:
    bench = Bench()
    delivery = await bench.start()
    bench.place.fault = Retry("down")
    for number in range(50):
        bench.topic.add(numbered(number))
    await until(lambda: bench.place.attempts > 20)
    bench.topic.now_ms += 300_000
    report = delivery.report()
    assert (report["state"], report["fault"]) == ("failing", "down") and report["failures"] > 10
    assert sum(len(one.records) for one in delivery._partitions.values()) <= 10       # what is behind stays in Kafka
    bench.place.fault = None
    await until(lambda: len(bench.place.got) == 50)
    assert [notice.symbol for notice in bench.place.got] == [f"S{number}" for number in range(50)]
    assert not bench.ledger.dead and delivery.report()["state"] == "running"
    await bench.stop(delivery)


async def test_the_last_try() -> None:
    bench = Bench(retry_s=600)
    delivery = await bench.start()
    bench.topic.add(numbered(0))
    bench.topic.add(numbered(1))
    bench.place.fault = Retry("still down")
    await until(lambda: bench.place.attempts > 10)
    assert not bench.ledger.dead
    bench.topic.now_ms += 601_000
    await until(lambda: len(bench.ledger.dead) == 2)
    assert [(dead.route, dead.reason, dead.alert.symbol) for dead in bench.ledger.dead] == [("ops", "still down", "S0"), ("ops", "still down", "S1")]
    assert bench.ledger.dead[1].attempts == module.LEAST_ATTEMPTS
    bench.place.fault = None
    bench.topic.add(numbered(2))
    await until(lambda: len(bench.place.got) == 1)
    assert bench.ledger.positions["ops", 0].dead == 2 and bench.ledger.positions["ops", 0].next == 3
    await bench.stop(delivery)


async def test_a_refusal_is_dead_at_once_and_the_next_goes_on() -> None:
    bench = Bench()
    delivery = await bench.start()
    bench.place.fault = Refused("no such format")
    bench.topic.add(numbered(0))
    await until(lambda: len(bench.ledger.dead) == 1)
    bench.place.fault = None
    bench.topic.add(numbered(1))
    await until(lambda: len(bench.place.got) == 1)
    assert bench.ledger.dead[0].attempts == 1 and bench.counted.counts == {"failed": 1, "dead": 1, "sent": 1}
    await bench.stop(delivery)


async def test_a_fault_of_the_route_is_tried_again() -> None:
    bench = Bench()
    delivery = await bench.start()
    bench.place.fault = RuntimeError("a bug")
    bench.topic.add(numbered(0))
    await until(lambda: bench.place.attempts > 3)
    bench.place.fault = None
    await until(lambda: len(bench.place.got) == 1)
    await bench.stop(delivery)


async def test_records_that_are_no_alerts() -> None:
    bench = Bench()
    delivery = await bench.start()
    bench.topic.add(b"nonsense")
    bench.topic.add(numbered(0))
    await until(lambda: len(bench.place.got) == 1)
    assert bench.skipped == [(0, 0)]
    await bench.stop(delivery)


async def test_a_flood_becomes_one_summary() -> None:
    bench = Bench(max_per_minute=5)
    delivery = await bench.start()
    for number in range(200):
        bench.topic.add(numbered(number), number % 2)
    await until(lambda: sum(bench.ledger.positions["ops", number].next for number in (0, 1)) == 200)
    assert len(bench.place.got) == 5
    held = [bench.ledger.positions["ops", number].held for number in (0, 1)]
    assert sum(each.count for each in held if each is not None) == 195
    await bench.stop(delivery)
    delivery = await bench.start()                                       # the summary outlives a restart
    bench.now_s += MINUTE_S
    await until(lambda: len(bench.place.got) == 6)
    assert "195 more alerts" in bench.place.got[5].text and bench.place.got[5].state == "summary"
    await until(lambda: all(bench.ledger.positions["ops", number].held is None for number in (0, 1)))
    bench.topic.add(numbered(300))
    await until(lambda: len(bench.place.got) == 7)
    assert not bench.ledger.dead
    await bench.stop(delivery)


async def test_a_worker_has_its_share_of_the_limit() -> None:
    bench = Bench(max_per_minute=10)
    bench.share = 0.5
    delivery = await bench.start(0)
    for number in range(30):
        bench.topic.add(numbered(number))
    await until(lambda: bench.ledger.positions["ops", 0].next == 30)
    assert len(bench.place.got) == 5
    await bench.stop(delivery)


async def test_partitions_move_while_it_sends() -> None:
    bench = Bench()
    delivery = await bench.start()
    bench.place.hang = True
    bench.topic.add(numbered(0))
    await until(lambda: bench.place.attempts == 1)
    await delivery.pause(0.01)                                           # a place that hangs holds up no rebalance
    delivery.own([1])
    bench.ledger.owned = {1}
    bench.place.hang = False
    bench.topic.add(numbered(1), 1)
    await until(lambda: "S1" in [notice.symbol for notice in bench.place.got])
    assert bench.ledger.positions["ops", 0].next == 0                    # the next owner sends it again
    await bench.stop(delivery)


async def test_what_is_sent_in_a_rebalance_is_stored() -> None:
    bench = Bench()
    delivery = await bench.start()
    bench.place.hang = True
    bench.topic.add(numbered(0))
    await until(lambda: bench.place.attempts == 1)
    pausing = asyncio.create_task(delivery.pause(PATIENCE_S))
    await asyncio.sleep(0.01)
    bench.place.hang = False
    await pausing
    assert bench.ledger.positions["ops", 0].next == 1
    delivery.own([0, 1])
    await bench.stop(delivery)
    assert bench.place.attempts == 1


async def test_retention_and_new_topics() -> None:
    bench = Bench()
    delivery = await bench.start()
    for number in range(10):
        bench.topic.add(numbered(number))
    await until(lambda: len(bench.place.got) == 10)
    await bench.stop(delivery)
    for number in range(10, 20):
        bench.topic.add(numbered(number))
    bench.topic.begin[0] = 15
    delivery = await bench.start()
    await until(lambda: len(bench.place.got) == 15)
    assert bench.place.got[10].symbol == "S15"
    await bench.stop(delivery)
    bench.topic.records[0], bench.topic.begin[0] = [], 0
    bench.topic.now_ms += 1
    bench.topic.add(numbered(99))
    delivery = await bench.start()
    await until(lambda: len(bench.place.got) == 16)
    assert bench.place.got[15].symbol == "S99"
    await bench.stop(delivery)


async def test_the_file_is_followed(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.notifying.deliveries.FOLLOW_S", 0.005)
    bench, path = Bench(), tmp_path / "alerts.toml"
    path.write_text('[routes.a]\nkind = "log"\n[routes.b]\nkind = "log"\n')
    all_of = Deliveries(FollowedAlertsFile(str(path)), bench.make, bench.ledger.forget)
    all_of.own([0, 1])
    task = asyncio.create_task(all_of.run())
    await until(lambda: len(bench.ledger.positions) == 4)
    bench.topic.add(numbered(0))
    await until(lambda: len(bench.place.got) == 2)
    path.write_text('[routes.a]\nkind = "lgo"\n')
    await until(lambda: bool(all_of.file.fault))
    assert sorted(each["route"] for each in all_of.report()) == ["a", "b"]
    path.write_text('[routes.a]\nkind = "log"\nseverity = "critical"\n[routes.c]\nkind = "log"\n')
    await until(lambda: sorted(each["route"] for each in all_of.report()) == ["a", "c"] and ("c", 1) in bench.ledger.positions)
    assert not any(route == "b" for route, _ in bench.ledger.positions)
    bench.topic.add(numbered(1, severity="warning"))
    await until(lambda: len(bench.place.got) == 3)                       # c's: a wants critical ones, and c has no history
    await all_of.close()
    await asyncio.wait_for(task, PATIENCE_S)

"""Routes of alerts in a worker on real Kafka: kills, an outage of the place, the file while the worker runs, `alerts.dead`."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer

from stockstream.kafka.admin import producer_options
from stockstream.settings import Settings, load_settings
from tests.contracts.route import alert
from tests.faults.workers import Worker
from tests.kafka import Cluster
from tests.patience import PATIENCE_S
from tests.standins.receivers import HttpReceiver, http_receiver
from tests.standins.sns import OverSns

PARTITIONS = 2


class Setup:
    """A worker with a file of routes, and the topic `alerts`, to which the test writes as `detect` does."""

    def __init__(self, bootstrap: str, folder: Path, prefix: str, receiver: HttpReceiver) -> None:
        self.receiver, self.file = receiver, folder / "alerts.toml"
        own = {
            "STOCKSTREAM_BROKER": bootstrap, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_ARCHIVE": "none", "STOCKSTREAM_MODELS": f"file://{folder}/models",
            "STOCKSTREAM_STATE_DIR": str(folder / "state"), "STOCKSTREAM_PARTITIONS": str(PARTITIONS), "STOCKSTREAM_ALERTS": str(self.file),
        }  # fmt: skip
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("STOCKSTREAM_")} | own | {"HOOK": receiver.url}
        self.settings: Settings = load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in own.items()})
        self.worker = Worker("worker", self.environment, folder)
        self.sent = 0

    def routes(self, text: str = "") -> None:
        self.file.write_text('[routes.hook]\nkind = "webhook"\nurl = "env:HOOK"\ntimeout_s = 1.0\nmax_per_minute = 0\n' + text)

    async def send(self, count: int) -> None:
        producer = AIOKafkaProducer(**await producer_options(self.settings))
        await producer.start()
        try:
            for number in range(self.sent, self.sent + count):
                value = msgspec.json.encode(alert(symbol=f"S{number}"))
                await producer.send_and_wait(self.settings.topic("alerts"), value, key=f"S{number}".encode(), partition=number % PARTITIONS)
        finally:
            await producer.stop()
        self.sent += count

    @property
    def symbols(self) -> list[str]:
        return [json.loads(body)["symbol"] for body in self.receiver.bodies]

    async def pipeline(self) -> dict[str, Any]:
        return dict(await asyncio.to_thread(self.worker.get, "/api/pipeline"))

    async def has_all(self) -> bool:
        return len(set(self.symbols)) == self.sent

    def in_order(self) -> bool:
        """Of each partition, what came first, leaving out repeats."""
        first = list(dict.fromkeys(self.symbols))
        return all([each for each in first if int(each[1:]) % PARTITIONS == number] == [f"S{at}" for at in range(number, self.sent, PARTITIONS)]
                   for number in range(PARTITIONS))  # fmt: skip


@pytest.fixture
async def setup(kafka: Cluster, tmp_path: Path, prefix: str) -> AsyncIterator[Setup]:
    async with http_receiver() as receiver:
        found = Setup(kafka.bootstrap, tmp_path, prefix, receiver)
        found.routes()
        await asyncio.to_thread(found.worker.start)
        await asyncio.to_thread(found.worker.wait_ready, PATIENCE_S)
        try:
            yield found
        finally:
            await asyncio.to_thread(found.worker.close)


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                if found := await condition():
                    return found
            except OSError:                                              # the worker is being started
                pass
            await asyncio.sleep(0.1)


async def begun(setup: Setup, *routes: str) -> None:
    """The positions of these routes are stored: what comes from now on is theirs."""

    async def all_run() -> bool:
        found = {route["route"]: route for route in (await setup.pipeline())["routes"]}
        return set(routes) == set(found) and all(route["state"] == "running" and route["lag"] >= 0 for route in found.values())

    await until(all_run)
    await asyncio.sleep(3)


async def test_kills_lose_nothing(setup: Setup) -> None:
    await begun(setup, "hook")
    for _ in range(3):
        await setup.send(10)
        await asyncio.sleep(0.3)
        await asyncio.to_thread(setup.worker.kill)
        await asyncio.sleep(0.5)
        await setup.send(10)
    await until(setup.has_all)
    assert setup.in_order()
    keys = [headers["Idempotency-Key"] for headers in setup.receiver.headers]
    assert len(keys) - len(set(keys)) <= 3                               # at most the notice that was on its way at each kill


async def test_an_outage_and_edits_of_the_file(setup: Setup) -> None:
    await begun(setup, "hook")
    await setup.send(4)
    await until(setup.has_all)
    setup.routes('[routes.dead]\nkind = "webhook"\nurl = "env:HOOK"\nretry_s = 0\nbroken\n')
    fault = await until(lambda: _fault(setup))
    assert fault.startswith(f"{setup.file}:10: no TOML")
    setup.routes('[routes.log]\nkind = "log"\n')
    await begun(setup, "hook", "log")
    setup.receiver.status = 503
    await setup.send(30)

    async def failing() -> bool:
        routes = {route["route"]: route for route in (await setup.pipeline())["routes"]}
        return routes["hook"]["state"] == "failing" and "503" in routes["hook"]["fault"] and routes["log"]["sent"] == 30

    await until(failing)
    assert len(setup.symbols) == 4 and "T0SECRET" not in json.dumps(await setup.pipeline())
    setup.receiver.status = 200
    await until(setup.has_all)
    assert setup.in_order() and "T0SECRET" not in setup.worker.text()

    setup.receiver.status = 400
    await setup.send(1)

    async def dead() -> list[dict[str, Any]]:
        return list(json.loads(await run(setup, "alerts", "dead", "--json"))["items"])

    (item,) = await until(dead)
    assert (item["route"], item["attempts"], item["alert"]["symbol"]) == ("hook", 1, "S34")
    setup.receiver.status = 200
    assert (await run(setup, "alerts", "dead", "--retry")).startswith("1 alert delivered, 0 left")
    assert setup.symbols[-1] == "S34"
    assert await dead() == []


async def _fault(setup: Setup) -> str:
    return str((await setup.pipeline())["alerts_file_fault"])


async def run(setup: Setup, *arguments: str) -> str:
    done = await asyncio.to_thread(
        lambda: subprocess.run([sys.executable, "-m", "stockstream.cli", *arguments], env=setup.environment, capture_output=True, text=True, check=False)
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_kills_on_the_way_to_a_queue(setup: Setup, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(name, value)
        setup.environment[name] = value
    queue = await asyncio.to_thread(OverSns)
    setup.environment["STOCKSTREAM_AWS_ENDPOINT"] = f"http://127.0.0.1:{queue.port}"
    await asyncio.to_thread(setup.worker.close)
    setup.routes(f'[routes.queue]\nkind = "sns"\ntopic = "{queue.topic}"\nmax_per_minute = 0\n')
    worker = Worker("second", setup.environment, tmp_path)
    await asyncio.to_thread(worker.start)
    try:
        await asyncio.to_thread(worker.wait_ready, PATIENCE_S)
        setup.worker = worker
        await begun(setup, "hook", "queue")
        for _ in range(3):
            await setup.send(8)
            await asyncio.sleep(0.2)
            await asyncio.to_thread(worker.kill)

        async def has_all() -> bool:
            return len({json.loads(text)["id"] for text in await queue.received()}) == setup.sent

        await until(has_all)
        repeats = len(await queue.received()) - setup.sent
    finally:
        await asyncio.to_thread(queue.stop)
        await asyncio.to_thread(worker.close)
    assert repeats <= 3


async def test_partitions_move_between_workers(setup: Setup, tmp_path: Path) -> None:
    await begun(setup, "hook")
    await setup.send(6)
    await until(setup.has_all)
    second = Worker("second", setup.environment, tmp_path)
    await asyncio.to_thread(second.start)
    try:
        await setup.send(10)
        await asyncio.to_thread(second.wait_ready, PATIENCE_S)
        await setup.send(10)
        await until(setup.has_all)
        await asyncio.to_thread(setup.worker.close)                      # killed: the second takes its partition over
        await setup.send(10)
        await until(setup.has_all)
    finally:
        await asyncio.to_thread(second.close)
    assert setup.in_order()
    keys = [headers["Idempotency-Key"] for headers in setup.receiver.headers]
    assert len(keys) - len(set(keys)) <= 3

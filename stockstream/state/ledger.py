"""The ledger of `notify` in Kafka: the positions of routes in the changelog of its table, and `alerts.dead`."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping

import msgspec
from aiokafka.errors import KafkaError

from stockstream.application import App
from stockstream.errors import BrokerError
from stockstream.kafka.client import topic_bounds
from stockstream.notifying.positions import Opened, Position, dead_key, encode, key_of, newest, readable
from stockstream.records import DeadAlert
from stockstream.state.changelog_table import StateTable
from stockstream.transport.messages import Message, Outgoing
from stockstream.transport.sending import Pipe

READ_S = 20.0


class KafkaLedger:
    """`Ledger` of the partitions of a worker. The pipes write in the order of the calls, and never after a partition was released."""

    def __init__(self, app: App, table: StateTable) -> None:
        self._app, self._table = app, table
        self._pipes: dict[int, Pipe] = {}
        self._positions: dict[int, dict[str, Position]] = {}
        """By partition, once it is read: the positions of its routes, as they were written last."""
        self._lock = asyncio.Lock()

    def own(self, partitions: Collection[int]) -> None:
        """Takes partitions over, after `release`."""
        self._positions = {}
        self._pipes = {number: Pipe(self._app.sender, self._app.fence, f"notify[{number}]") for number in partitions}

    async def release(self, timeout_s: float) -> None:
        """Completes what is being written, and releases all partitions."""
        pipes, self._pipes, self._positions = self._pipes, {}, {}
        await asyncio.gather(*(pipe.close(timeout_s) for pipe in pipes.values()))

    async def open(self, route: str, partitions: Collection[int]) -> Mapping[int, Opened]:
        """See `Ledger`."""
        pipes = self._pipes
        topic, settings = self._app.settings.topic("alerts"), self._app.settings
        try:
            async with asyncio.timeout(READ_S), self._lock:
                if missing := [number for number in partitions if number in self._pipes and number not in self._positions]:
                    stored = await self._table.read(missing, lambda records: [] if records else None, readable)
                    if pipes is not self._pipes:
                        return {}
                    for number, found in stored.items():
                        self._positions[number] = newest((found.offsets[key], value) for key, value in found.records.items())
                bounds = await topic_bounds(settings, topic, sorted(partitions), embedded=self._app.embedded)
        except (KafkaError, OSError, TimeoutError) as error:
            raise BrokerError(f"the positions of routes cannot be read: {type(error).__name__}: {error}") from error
        if pipes is not self._pipes:
            return {}
        return {number: Opened(self._positions[number].get(route), *bounds[number]) for number in partitions if number in self._positions}

    async def write(self, route: str, partition: int, position: Position, dead: DeadAlert | None = None) -> bool:
        """See `Ledger`."""
        pipe, positions = self._pipes.get(partition), self._positions.get(partition)
        if pipe is None or positions is None:
            return False
        positions[route] = position
        sends = []
        if dead is not None:
            sends.append(Outgoing(self._app.settings.topic("alerts.dead"), partition, [Message(dead_key(dead), msgspec.json.encode(dead))]))
        await pipe.submit(sends, self._record(partition, positions))
        await pipe.drain()
        return self._pipes.get(partition) is pipe

    async def forget(self, route: str) -> None:
        """Removes what is stored of a route."""
        for partition, positions in list(self._positions.items()):
            if positions.pop(route, None) is not None and (pipe := self._pipes.get(partition)) is not None:
                await pipe.submit((), self._record(partition, positions))

    def _record(self, partition: int, positions: Mapping[str, Position]) -> Outgoing:
        return Outgoing(self._table.changelog_topic.get_topic_name(), partition, [Message(key_of(self._app.term), encode(positions))])

"""Sends what sources bring to the home partitions of their symbols."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

from stockstream.errors import FencedError
from stockstream.settings import Settings
from stockstream.transforms.partitioning import home_partition

Messages = Sequence[tuple[bytes | None, bytes | None]]
Send = Callable[[str, int, Messages], Awaitable[Sequence[Awaitable[Any]]]]
"""Sends (key, value) pairs in order to a topic (its full name) and partition. Returns awaitables that are done once the broker has confirmed them.
A value of None deletes its key; either all values are None or none is."""


class Publisher:
    """Sends messages and waits for their confirmation."""

    def __init__(self, settings: Settings, send: Send) -> None:
        self._settings, self._send = settings, send

    def home(self, symbol: str) -> int:
        """The partition of the symbol, in every topic that is keyed by symbol."""
        return home_partition(symbol, self._settings.partitions)

    async def by_symbol(self, topic: str, messages: Iterable[tuple[str, bytes | None]]) -> None:
        """Sends (symbol, value) pairs, each to the symbol's home partition of the topic (without prefix) and with the symbol as key."""
        by: dict[int, list[tuple[bytes | None, bytes | None]]] = {}
        for symbol, value in messages:
            by.setdefault(self.home(symbol), []).append((symbol.encode(), value))
        await self.by_partition(topic, by)

    async def by_partition(self, topic: str, by: Mapping[int, Messages]) -> None:
        """Sends all messages and waits for their confirmation. Raises the first error, `FencedError` before others."""
        name = self._settings.topic(topic)
        deliveries: list[Awaitable[Any]] = []
        errors: list[BaseException] = []
        for partition in sorted(by):
            try:
                deliveries += await self._send(name, partition, by[partition])
            except Exception as error:  # noqa: BLE001  raised below, once the messages sent are confirmed or failed
                errors.append(error)
                break
        errors += [answer for answer in await asyncio.gather(*deliveries, return_exceptions=True) if isinstance(answer, BaseException)]
        if errors:
            raise next((error for error in errors if isinstance(error, FencedError)), errors[0])

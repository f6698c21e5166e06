"""All routes of a worker: those of the alerts file, which is read again when it changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from typing import Any

from stockstream.alerts_file import FollowedAlertsFile
from stockstream.notifying.delivery import Delivery
from stockstream.sinks.notify.route import RouteSettings
from stockstream.wording import counted

logger = logging.getLogger(__name__)

FOLLOW_S = 1.0
CLOSE_S = 1.0


class Deliveries:
    """The routes of a file.

    Args:
        file: the alerts file.
        make: makes the delivery of a route, given its name and settings.
        forget: removes what is stored of a route.
    """

    def __init__(
        self, file: FollowedAlertsFile, make: Callable[[str, RouteSettings], Delivery], forget: Callable[[str], Awaitable[None]]
    ) -> None:  # fmt: skip
        self.file = file
        self._make, self._forget = make, forget
        self._running: dict[str, tuple[Delivery, asyncio.Task[None]]] = {}
        self._owned: tuple[int, ...] = ()
        self._closing = False

    def own(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions."""
        self._owned = tuple(sorted(partitions))
        for delivery, _ in self._running.values():
            delivery.own(self._owned)

    async def pause(self, timeout_s: float) -> None:
        """Begins nothing more until `own`."""
        await asyncio.gather(*(delivery.pause(timeout_s) for delivery, _ in self._running.values()))

    async def run(self) -> None:
        """Starts the routes, and follows the file, until it is closed."""
        await self._apply()
        while not self._closing:
            await asyncio.sleep(FOLLOW_S)
            if not self._closing and self.file.changed():
                await self._follow()

    async def _follow(self) -> None:
        if self.file.fault:
            logger.error("%s; what the file held before stays valid", self.file.fault)
            return
        try:
            await self._apply()
            logger.info("%s is read again: %s", self.file.path, counted(len(self.file.current.routes), "route"))
        except Exception:                                                # the worker must go on, with the routes that it has
            logger.exception("%s could not be applied", self.file.path)

    async def _apply(self) -> None:
        wanted = self.file.current.routes
        for name, (delivery, _) in list(self._running.items()):
            if wanted.get(name) != delivery.settings:
                await self._end(name)
                if name not in wanted:
                    await self._forget(name)
                    logger.info("route %s is removed", name)
        for name, settings in wanted.items():
            if name not in self._running:
                delivery = self._make(name, settings)
                delivery.own(self._owned)
                self._running[name] = delivery, asyncio.create_task(delivery.run(), name=f"route {name}")

    async def _end(self, name: str) -> None:
        delivery, task = self._running.pop(name)
        await delivery.pause(CLOSE_S)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await delivery.close()

    async def close(self) -> None:
        """Ends all routes, each after what it is sending, for at most CLOSE_S."""
        self._closing = True
        await asyncio.gather(*(self._end(name) for name in list(self._running)))

    def report(self) -> list[dict[str, Any]]:
        """The state of each route on this worker."""
        return [delivery.report() for delivery, _ in self._running.values()]

"""Publishes what a worker knows of its sources: gaps at once, the state of each symbol's feed, and a report of each source. No error of it affects ticks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

import msgspec

from stockstream.clock import now_s
from stockstream.errors import FencedError
from stockstream.limited_log import LimitedLog
from stockstream.metrics import Metrics
from stockstream.records import Connection, SourceReport
from stockstream.skipped import shortened
from stockstream.sources.base import Clock, Health
from stockstream.sources.driver import Driver
from stockstream.sources.health import reason_of
from stockstream.sources.publishing import Publisher

logger = logging.getLogger(__name__)

FEEDS_S, SOURCES_S = 2.0, 5.0
"""How often the states of feeds are looked at, and how often each source is reported."""
STEP_S = 1.0
GAPS_AT_ONCE = 1_000
ConnectionState = Literal["connecting", "open", "silent", "closed"]
CONNECTION_STATES: tuple[ConnectionState, ...] = ("connecting", "open", "silent", "closed")
MOST_CONNECTIONS = 50
"""A report lists so many; of the others it has one entry for each state, so that a report always fits into a message of 64 KiB."""
MOST_NAME, MOST_REASON = 40, 80
"""Characters of a connection's name and reason, each of which has up to 6 bytes in JSON."""

_encode = msgspec.json.Encoder().encode


class Reporter:
    """Publishes `gaps`, `feeds` and `sources` for the drivers of a worker. `run` does so until it is cancelled.

    Args:
        drivers: by name in the watchlist.
        publisher: sends the messages.
        metrics: of the worker.
        clock: gives the times in the messages.
        worker: returns the worker's name, unique among those of its group.
    """

    def __init__(self, drivers: Mapping[str, Driver], publisher: Publisher, metrics: Metrics, clock: Clock, worker: Callable[[], str]) -> None:
        self._drivers, self._publisher, self._metrics, self._clock, self._worker = drivers, publisher, metrics, clock, worker
        self._limited = LimitedLog(now_s)
        self._forgotten: set[str] = set()
        self._shown: set[tuple[str, str]] = set()
        """Source and state of each exported series of feeds."""
        self._ended = False
        self._publishing = asyncio.Lock()

    def forget(self, symbol: str) -> None:
        """The symbol is no longer watched: its feed is deleted from `feeds`."""
        self._forgotten.add(symbol)

    async def run(self) -> None:
        """Raises `FencedError`; any other error is logged, and the work is repeated a second later."""
        await asyncio.gather(self._repeat("gaps", self._gaps_when_found), self._repeat("feeds and sources", self._in_turn))

    async def end(self) -> None:
        """Deletes the reports of this worker's sources, which end with it. Raises the delivery's error."""
        self._ended = True
        await self._publisher.by_partition("sources", {0: [(self._key(kind), None) for kind in self._drivers]})

    async def _repeat(self, what: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        while True:
            try:
                await work()
            except FencedError:
                raise
            except Exception as error:  # noqa: BLE001  what is shown about ticks must not stop them
                if (suffix := self._limited.due(what, type(error).__name__)) is not None:
                    logger.warning("%s of this worker's sources could not be published and will be again: %s%s", what, reason_of(error), suffix)
                await asyncio.sleep(STEP_S)

    # ---- gaps

    async def _gaps_when_found(self) -> None:
        waiting = [asyncio.ensure_future(driver.gap_found.wait()) for driver in self._drivers.values()]
        if not waiting:
            await asyncio.Event().wait()
        try:
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in waiting:
                task.cancel()
        await self.publish_gaps()

    async def publish_gaps(self) -> None:
        """Publishes all gaps that were found. Those that the broker does not confirm stay for the next time."""
        async with self._publishing:
            for driver in self._drivers.values():
                while driver.gaps:
                    some = list(islice(driver.gaps, GAPS_AT_ONCE))
                    await self._publisher.by_symbol("gaps", ((gap.symbol, _encode(gap)) for gap in some))
                    for gap in some:
                        if driver.gaps and driver.gaps[0] is gap:        # else it was displaced meanwhile
                            driver.gaps.popleft()
                driver.gap_found.clear()

    # ---- feeds and sources

    async def _in_turn(self) -> None:
        """One task for both, so that a tombstone of `end` is not followed by a report."""
        step = 0
        while not self._ended:
            if step % FEEDS_S == 0:
                await self.publish_feeds()
            if step % SOURCES_S == 0:
                await self.publish_sources()
            await asyncio.sleep(STEP_S)
            step += 1
        await asyncio.Event().wait()

    async def publish_feeds(self) -> None:
        """Publishes the states of feeds that are due."""
        now, worker = self._clock.now_ms(), self._worker()
        watched: set[str] = set()
        for driver in self._drivers.values():
            driver.judge_feeds(driver.report(), now)
            watched |= driver.live
        gone = self._forgotten - watched
        await self._publisher.by_symbol("feeds", ((symbol, None) for symbol in gone))
        self._forgotten -= gone
        for driver in self._drivers.values():
            due = [feed for feed in driver.board.due(worker, now) if feed.symbol in driver.live]
            await self._publisher.by_symbol("feeds", ((feed.symbol, _encode(feed)) for feed in due))
            driver.board.written(due)
        self._export_feeds()

    def _export_feeds(self) -> None:
        counts: dict[tuple[str, str], int] = {(kind, state): count for kind, driver in self._drivers.items() for state, count in driver.board.counts().items()}
        for kind, state in self._shown | counts.keys():
            self._metrics.source_feeds(kind, state, counts.get((kind, state), 0))
        self._shown |= counts.keys()

    async def publish_sources(self) -> None:
        """Publishes a report of each source."""
        reports = []
        for kind, driver in self._drivers.items():
            health = driver.report()
            self._export_health(kind, health)
            reports.append((self._key(kind), _encode(self.report_of(driver, health))))
        if reports and not self._ended:
            await self._publisher.by_partition("sources", {0: reports})

    def report_of(self, driver: Driver, health: Health) -> SourceReport:
        """What the topic `sources` gets of a source."""
        state = driver.health.state(health.trouble)
        return SourceReport(
            source=state.source, worker=self._worker(), name=state.name, state=state.state, reason=state.reason, since=state.since,
            next_attempt=state.next_attempt, failures=state.failures, symbols=state.symbols, connections=summarised(health.connections), budgets=health.budgets,
            last_error=driver.health.last_error, last_tick_at=driver.health.last_tick_at, at=self._clock.now_ms(),
        )  # fmt: skip

    def _export_health(self, kind: str, health: Health) -> None:
        if health.connections:
            for state in CONNECTION_STATES:
                self._metrics.source_connections(kind, state, sum(connection.state == state for connection in health.connections))
        for budget in health.budgets:
            self._metrics.source_budget(kind, budget.per, budget.left)

    def _key(self, kind: str) -> bytes:
        return f"{kind}@{self._worker()}".encode()


def summarised(connections: Sequence[Connection]) -> tuple[Connection, ...]:
    """The connections in bounded size: beyond MOST_CONNECTIONS, those that are not open are listed first, and the others as one entry for each state."""
    listed, others = list(connections), list[Connection]()
    if len(listed) > MOST_CONNECTIONS:
        listed.sort(key=lambda connection: connection.state == "open")
        listed, others = listed[:MOST_CONNECTIONS], listed[MOST_CONNECTIONS:]
    for state in CONNECTION_STATES:
        if of := [connection for connection in others if connection.state == state]:
            count = sum(connection.count for connection in of)
            listed.append(Connection(
                name=f"{count} more", state=state, symbols=sum(one.symbols for one in of), since=min(one.since for one in of),
                last_message_at=max((one.last_message_at for one in of if one.last_message_at is not None), default=None),
                reason=next((one.reason for one in of if one.reason), ""), count=count,
            ))  # fmt: skip
    return tuple(
        msgspec.structs.replace(one, name=shortened(one.name, MOST_NAME), reason=shortened(one.reason, MOST_REASON)) for one in listed
    )  # fmt: skip

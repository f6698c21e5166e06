"""One route: it reads `alerts` for itself, from the positions in the ledger on, so a route that is down holds back nothing but itself."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import msgspec

from stockstream.errors import StockstreamError
from stockstream.limited_log import LimitedLog
from stockstream.notifying.choosing import REMEMBERED, Choice, Memory
from stockstream.notifying.limits import Allowance, held_with, summary_of
from stockstream.notifying.positions import Ledger, Opened, Position
from stockstream.records import Alert, DeadAlert
from stockstream.sinks.notify.notices import Notice, notice_of
from stockstream.sinks.notify.route import Refused, Retry, Route, RouteSettings, plain, secrets_of

logger = logging.getLogger(__name__)

FIRST_RETRY_S, LAST_RETRY_S = 1.0, 60.0
LEAST_ATTEMPTS = 5
"""A notice is given up after as many attempts at least, however old it is: a worker that starts after a weekend tries them all."""
AT_ONCE = 500
"""Records in memory at most, beside those that the consumer has fetched."""
WAIT_MS = 1_000
IDLE_S = 1.0
GRACE_S = 5.0
"""A route has so much longer than its timeout before it is cancelled."""
LAG_S = 5.0
WRITE_EVERY = 200
"""The position is stored after as many records that are not sent."""


class AlertRecords(Protocol):
    """Reads `alerts`. `stockstream.kafka.topic_reader.TopicReader` is one."""

    async def poll(self, cursors: Mapping[int, int | None], wait_ms: int = ...) -> dict[int, Sequence[Any]]: ...
    async def ends(self, partitions: Collection[int]) -> dict[int, int]: ...
    async def stop(self) -> None: ...


@dataclass(slots=True)
class _Partition:
    """One partition while this worker owns it. `position` is None until it is read from the ledger; `cursor` is the next offset to read."""

    number: int
    position: Position | None = None
    cursor: int = 0
    records: deque[Any] = field(default_factory=deque)
    memory: Memory = field(default_factory=Memory)
    end: int = 0
    unwritten: int = 0


class Delivery:
    """Sends what a route wants of the worker's partitions, one notice after the other, in the order of each partition.

    Args:
        name: of the route.
        settings: of the route.
        route: where to send.
        reader: of `alerts`.
        ledger: stores the positions.
        share: gives the part of all partitions that this worker has; its part of `max_per_minute`.
        count: called with route and outcome: sent, held, dead or failed.
        lag: called with route and the records that it has not dealt with.
        skipped: called with partition, offset and reason for a record that is no alert.
        clock: monotonic, in seconds.
        wall_ms: epoch ms.
    """

    def __init__(
        self, name: str, settings: RouteSettings, route: Route, reader: AlertRecords, ledger: Ledger, share: Callable[[], float],
        count: Callable[[str, str], None], lag: Callable[[str, int], None], skipped: Callable[[int, int, str], None],
        clock: Callable[[], float] = time.monotonic,
        wall_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:  # fmt: skip
        self.name, self.settings = name, settings
        self._route, self._reader, self._ledger, self._share, self._skipped = route, reader, ledger, share, skipped
        self._count, self._report_lag = count, lag
        self._clock, self._wall_ms = clock, wall_ms
        self._choice = Choice(settings)
        self._allowance = Allowance(settings.limit)
        self._partitions: dict[int, _Partition] = {}
        self._log = LimitedLog(clock)
        self._secrets = secrets_of(settings)
        self._wake = asyncio.Event()
        self._paused = self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._lag_at = float("-inf")
        self._fault, self._failures, self._since_ms = "", 0, 0
        self._next_attempt_ms: int | None = None
        self._sent = self._dead = self._held = 0

    # ---- ownership

    def own(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions. What is stored of each is read again, because another worker may have sent meanwhile."""
        self._partitions = {number: _Partition(number) for number in sorted(partitions)}
        self._paused = False
        self._wake.set()

    async def pause(self, timeout_s: float) -> None:
        """Begins nothing more until `own`, and waits for what is being sent, for at most `timeout_s` seconds."""
        self._paused = True
        self._wake.set()
        with contextlib.suppress(TimeoutError):                          # then it is sent again, with the same key
            async with asyncio.timeout(timeout_s):
                while not self._idle.is_set():                           # it is set for a moment between the sending and the storing
                    await self._idle.wait()

    def _owns(self, one: _Partition) -> bool:
        return self._partitions.get(one.number) is one and not self._paused and not self._closing

    # ---- running

    async def run(self) -> None:
        """Reads and sends until it is closed or cancelled."""
        wait = FIRST_RETRY_S
        while not self._closing:
            try:
                await self.step()
                wait = FIRST_RETRY_S
            except Exception as error:                                   # other routes, and the pipeline, must go on
                text = str(error) if isinstance(error, StockstreamError) else f"{type(error).__name__}: {plain(error, self._secrets)}"
                self._failing(text)
                if (end := self._log.due(text)) is not None:
                    logger.warning("route %s waits: %s%s", self.name, text, end, exc_info=not isinstance(error, StockstreamError))
                await self._sleep(wait)
                wait = min(2 * wait, LAST_RETRY_S)

    async def step(self) -> None:
        """Reads what has come, and sends it. Raises what the broker and the ledger raise."""
        mine = list(self._partitions.values())
        if not mine or self._paused:
            await self._sleep(IDLE_S)
            return
        if new := [one for one in mine if one.position is None]:
            await self._open(new)
        ready = [one for one in mine if one.position is not None and self._owns(one)]
        if not ready:
            await self._sleep(IDLE_S)
            return
        if not any(one.records for one in ready):
            found = await self._reader.poll({one.number: one.cursor for one in ready}, WAIT_MS)
            for one in ready:
                if records := found.get(one.number):
                    one.records.extend(records)
                    one.cursor = records[-1].offset + 1
            await self._measure_lag()
        await self._summarise(ready)
        for one in ready:
            while one.records and self._owns(one):
                if not await self._take(one, one.records[0]):
                    break
                one.records.popleft()
            if one.unwritten and self._owns(one):
                await self._write(one, one.position)

    async def close(self) -> None:
        """Ends after what is being sent. The positions of all that was sent are stored."""
        self._closing = True
        self._wake.set()
        await self._reader.stop()
        await self._route.close()

    async def _open(self, new: Sequence[_Partition]) -> None:
        opened = await self._ledger.open(self.name, [one.number for one in new])
        for one in new:
            at = opened.get(one.number)
            if at is None or not self._owns(one):
                continue
            position = self._begin(one, at)
            one.cursor = max(at.begin, position.next - REMEMBERED)       # what was done before is read for the memory alone
            one.end = at.end
            if position is at.stored or await self._ledger.write(self.name, one.number, position):
                one.position = position

    def _begin(self, one: _Partition, at: Opened) -> Position:
        """Where the route goes on: a new one at the end of the topic."""
        stored, now_ms = at.stored, self._wall_ms()
        if stored is None:
            return Position(since=now_ms, next=at.end)
        if stored.next > at.end:
            logger.warning("route %s: alerts[%d] ends at %d, before %d: the topic was created again, and is read from its beginning", self.name, one.number,
                           at.end, stored.next)  # fmt: skip
            return Position(since=now_ms, next=at.begin)
        if stored.next < at.begin:
            self._lost(one.number, stored.next, at.begin - 1)
            return msgspec.structs.replace(stored, next=at.begin)
        return stored

    def _lost(self, partition: int, first: int, last: int) -> None:
        logger.error("route %s: retention deleted alerts[%d] %d to %d before they were sent", self.name, partition, first, last)

    # ---- one record

    async def _take(self, one: _Partition, record: Any) -> bool:
        """Sends a record of `alerts` if the route wants it, and accounts for it. Returns False if it must be taken again later, or by another worker."""
        position = one.position
        assert position is not None
        offset = record.offset
        try:
            alert = msgspec.json.decode(record.value or b"", type=Alert)
        except msgspec.DecodeError as error:
            if offset >= position.next:
                self._skipped(one.number, offset, str(error))
            return self._account(one, offset)
        repeated, raised = one.memory.take(alert)
        if offset < position.next or repeated or not self._choice.wants(alert, raised=raised):
            return self._account(one, offset)
        if not self._take_allowance():
            self._held += 1
            self._count(self.name, "held")
            return await self._write(one, msgspec.structs.replace(position, next=offset + 1, held=held_with(position.held, offset, alert)))
        outcome = await self._deliver(notice_of(alert, record.value), record.timestamp, lambda: self._owns(one))
        if outcome is None:
            return False
        reason, attempts = outcome
        dead = DeadAlert(route=self.name, reason=reason, attempts=attempts, at=self._wall_ms(), alert=alert) if reason else None
        counted = {"dead": position.dead + 1} if dead else {"sent": position.sent + 1}
        return await self._write(one, msgspec.structs.replace(position, next=offset + 1, **counted), dead)

    def _take_allowance(self) -> bool:
        limit = self.settings.limit
        self._allowance.limit = max(1, round(limit * self._share())) if limit else 0
        return self._allowance.take(self._clock())

    def _account(self, one: _Partition, offset: int) -> bool:
        """Counts a record that is not sent. Its position is stored with the next one that is, or after the batch."""
        position = one.position
        assert position is not None
        if offset >= position.next:
            one.position = msgspec.structs.replace(position, next=offset + 1)
            one.unwritten += 1
        return True

    async def _write(self, one: _Partition, position: Position | None, dead: DeadAlert | None = None) -> bool:
        assert position is not None
        self._idle.clear()
        try:
            if not await self._ledger.write(self.name, one.number, position, dead):
                return False
        finally:
            self._idle.set()
        one.position, one.unwritten = position, 0
        return True

    async def _summarise(self, mine: Sequence[_Partition]) -> None:
        """Sends the summary of what is held once the minute is over."""
        holding = [(one, one.position.held) for one in mine if one.position is not None and one.position.held is not None]
        if not holding or not self._allowance.is_over(self._clock()):
            return
        notice = summary_of(self.name, [(one.number, held) for one, held in holding])
        self._take_allowance()
        outcome = await self._deliver(notice, self._wall_ms(), lambda: any(self._owns(one) for one, _ in holding))
        if outcome is None:
            return
        if outcome[0]:
            logger.error("route %s: the summary %s is given up: %s", self.name, notice.key, outcome[0])
        for one, _ in holding:
            if one.position is not None and self._owns(one):
                await self._write(one, msgspec.structs.replace(one.position, held=None))

    # ---- one notice

    async def _deliver(self, notice: Notice, since_ms: int, owned: Callable[[], bool]) -> tuple[str, int] | None:
        """Sends until it is delivered or given up. Returns why it was given up (empty: delivered) and the attempts; None once it is not ours to send."""
        attempts, pause = 0, FIRST_RETRY_S
        while owned():
            attempts += 1
            after_s, refused = 0.0, False
            self._idle.clear()
            try:
                async with asyncio.timeout(self.settings.timeout_s + GRACE_S):       # `wait_for` of Python 3.11 can lose a cancellation
                    await self._route.send(notice)
                self._works()
                return "", attempts
            except Refused as error:
                reason, refused = str(error), True
            except Retry as error:
                reason, after_s = str(error), error.after_s
            except Exception as error:                                   # a fault of the route's code must not end it
                reason = plain(f"{type(error).__name__}: {error}", self._secrets)
                if (end := self._log.due("fault", type(error).__name__)) is not None:
                    logger.exception("route %s failed%s", self.name, end)
            finally:
                self._idle.set()
            self._count(self.name, "failed")
            age_s = (self._wall_ms() - since_ms) / 1000
            if refused or (attempts >= LEAST_ATTEMPTS and age_s > self.settings.retry_s):
                self._gives_up(notice, reason, attempts)
                return reason, attempts
            wait_s = max(after_s, pause * random.uniform(0.5, 1.0))      # jitter: workers that failed together try at different times
            pause = min(2 * pause, LAST_RETRY_S)
            self._failing(reason, wait_s)
            if (end := self._log.due("failing", reason)) is not None:
                logger.warning("route %s fails, and is tried again: %s%s", self.name, reason, end)
            await self._wait(wait_s, owned)
        return None

    async def _wait(self, seconds: float, owned: Callable[[], bool]) -> None:
        until = self._clock() + seconds
        await asyncio.sleep(0)
        while owned() and (rest := until - self._clock()) > 0:
            await self._sleep(min(rest, LAG_S))
            if owned() and self._clock() < until:
                await self._measure_lag()

    async def _sleep(self, seconds: float) -> None:
        """Waits, but not across a change of partitions or the end."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # ---- reporting

    def _works(self) -> None:
        if self._failures:
            logger.info("route %s works again, after %d failures", self.name, self._failures)
        self._fault, self._failures, self._next_attempt_ms = "", 0, None
        self._sent += 1
        self._count(self.name, "sent")

    def _failing(self, reason: str, wait_s: float = 0.0) -> None:
        if not self._fault:
            self._since_ms = self._wall_ms()
        self._fault = reason
        self._failures += 1
        self._next_attempt_ms = self._wall_ms() + round(wait_s * 1000)

    def _gives_up(self, notice: Notice, reason: str, attempts: int) -> None:
        self._fault = reason
        self._dead += 1
        self._count(self.name, "dead")
        if (end := self._log.due("dead")) is not None:
            logger.error("route %s gives %s up after %d attempts: %s%s", self.name, notice.key, attempts, reason, end)

    async def _measure_lag(self) -> None:
        if self._clock() < self._lag_at + LAG_S:
            return
        self._lag_at = self._clock()
        for number, end in (await self._reader.ends(list(self._partitions))).items():
            if number in self._partitions:
                self._partitions[number].end = end
        self._report_lag(self.name, self.lag)

    @property
    def lag(self) -> int:
        """Records of this worker's partitions that the route has not dealt with."""
        return sum(max(0, one.end - one.position.next) for one in self._partitions.values() if one.position is not None)

    def report(self) -> dict[str, Any]:
        """The route's state on this worker, without secrets. Counts are since the worker started."""
        held = sum(one.position.held.count for one in self._partitions.values() if one.position is not None and one.position.held is not None)
        return {
            "route": self.name, "kind": self.settings.kind, "place": self.settings.place, "state": "failing" if self._failures else "running",
            "fault": self._fault, "failures": self._failures, "since": self._since_ms if self._failures else None,
            "next_attempt": self._next_attempt_ms if self._failures else None, "sent": self._sent, "dead": self._dead, "summarised": self._held, "held": held,
            "lag": self.lag,
        }  # fmt: skip

"""Requests within a provider's budget, for all workers together: per second, per minute and per day.

A worker that wants to make a request appends a reservation to one log, and reads the log through it. What precedes it in the log decides whether it is
granted, and when: `Ledger` is a pure function of the log. So every worker computes the same, a day's count survives restarts, and no two workers get the
same place. A reservation counts even if its worker is killed before the request; one that was not sent is given back by another record.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Literal
from zoneinfo import ZoneInfo

import msgspec

from stockstream.budgets import PERIOD_MS, Limits, LogEntry, RequestLog
from stockstream.errors import StockstreamError
from stockstream.records import Budget, Reservation
from stockstream.sources.base import Clock, SourceUnavailable
from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.wording import utc_time

logger = logging.getLogger(__name__)

PROVIDERS_ZONE = "America/New_York"
"""In which a day of Alpha Vantage's and Yahoo's budgets begins at midnight. Neither documents it; both follow the US market."""
LONGEST_WAIT_MS = 60_000
"""A reservation that could be used only later than this is not granted: another symbol may matter more by then."""
DAILY_PAUSE_MS = 2 * 3_600_000
"""After the provider reports that the day is spent, though requests are left by our count: its day may begin at another time than ours, or the key may be
used elsewhere too. So one request is tried again after this long."""
NEWEST_KEPT = 100
"""A request is given back at once, if at all."""
GIVE_BACK_S = 5.0
REFRESH_MS = 5_000

Refusal = Literal["daily", "burst", "minute", "rate", "unanswered", "premium"]
"""Why a request brought nothing, as far as it matters for the next one.

daily: the day's requests are spent. burst: too many per second. minute: too many per minute. rate: HTTP 429. unanswered: no answer, or none that can be
read. premium: the plan does not include it.
"""
PAUSES_S: dict[Refusal, tuple[float, float]] = {
    "burst": (2.0, 60.0), "minute": (60.0, 600.0), "rate": (60.0, 3600.0), "unanswered": (15.0, 1800.0), "premium": (3600.0, 3600.0),
}  # fmt: skip
"""The circuit breaker: the pause after a first refusal of a class, and the longest. It doubles with each further one in a row; a success closes it."""
SHARED: frozenset[Refusal] = frozenset(("daily", "burst", "minute", "rate"))
"""Refusals that concern all workers, so that their pause goes into the log."""


def shared_refusal(name: str) -> Refusal | None:
    """The refusal of SHARED that has this name; None if none has."""
    return next((refusal for refusal in SHARED if refusal == name), None)


_decode = msgspec.json.Decoder(Reservation).decode
_encode = msgspec.json.Encoder().encode


class BudgetSpent(SourceUnavailable):
    """No request may be made before `until` (epoch ms): the day's are spent, or a refusal has opened the circuit breaker."""

    def __init__(self, text: str, until: int, refusal: Refusal = "daily") -> None:
        super().__init__(text)
        self.until, self.refusal = until, refusal


@dataclass(frozen=True, slots=True)
class Grant:
    """A request that may be made now. It counts for `day` of the provider."""

    id: str
    slot: int
    """When it may be made at the earliest, by the log's clock, epoch ms."""
    day: str
    symbols: tuple[str, ...] = ()


@dataclass(slots=True)
class Ledger:
    """What follows from the log of requests for one source: a pure function of its records in offset order.

    Records of other sources and records that cannot be read change nothing. Each reservation carries the limits by which it is judged, so that all workers
    agree while a changed setting is being rolled out.
    """

    source: str
    zone: str = PROVIDERS_ZONE
    paused_until: int = 0
    pause_reason: str = ""
    pause_refusal: Refusal = "burst"
    newest: int = 0
    """Slot of the newest granted request, epoch ms."""
    _slots: deque[int] = field(default_factory=deque)
    _days: dict[str, set[str]] = field(default_factory=dict)
    """By day: the ids of what was granted, where the day has a limit."""
    _asked: dict[str, int] = field(default_factory=dict)
    _newest: OrderedDict[str, tuple[int, dict[str, int]]] = field(default_factory=OrderedDict)
    """Of the newest grants, for those that are given back: by id the slot, and when their symbols were requested before, 0 if never."""
    _kept: str = ""
    """The first day that is not forgotten."""

    def apply(self, entry: LogEntry) -> Grant | None:
        """Applies a record. Returns the grant, if the record is a reservation and is granted."""
        try:
            record = _decode(entry.value)
            limits = Limits.parse(record.budget)
        except (*UNREADABLE, ValueError) as error:
            logger.warning("requests[0] offset %d skipped: %s", entry.offset, str(error)[:200])
            return None
        if record.source != self.source:
            return None
        if record.step == "returned":
            self._take_back(record.id)
            return None
        if record.step == "pause":
            if record.until > self.paused_until:
                self.paused_until, self.pause_reason = record.until, record.reason
                self.pause_refusal = shared_refusal(record.reason) or "burst"
            return None
        if any(record.id in granted for granted in self._days.values()):
            return None                                                  # sent again by a producer without idempotence
        return self._judge(record, limits, entry.timestamp)

    def earliest(self, limits: Limits, now: int) -> int:
        """The slot that a reservation of this time would get, epoch ms, if the day has one left."""
        slot = max(now, self.newest, self.paused_until)
        for per, limit in limits.items():
            if per != "day" and len(self._slots) >= limit:
                slot = max(slot, self._slots[-limit] + PERIOD_MS[per])
        return slot

    def _judge(self, record: Reservation, limits: Limits, now: int) -> Grant | None:
        slot = self.earliest(limits, now)
        day = day_of(slot, self.zone)
        if slot - now > LONGEST_WAIT_MS or (limits.day is not None and self.used(day) >= limits.day):
            return None
        most = max((limit for per, limit in limits.items() if per != "day"), default=0)
        self._slots.append(slot)
        while len(self._slots) > most:
            self._slots.popleft()
        self.newest = slot
        if limits.day is not None:
            self._days.setdefault(day, set()).add(record.id)
        self._newest[record.id] = slot, {symbol: self._asked.get(symbol, 0) for symbol in record.symbols}
        if len(self._newest) > NEWEST_KEPT:
            self._newest.popitem(last=False)
        self._asked |= dict.fromkeys(record.symbols, slot)
        return Grant(record.id, slot, day, record.symbols)

    def used(self, day: str) -> int:
        """Requests that count for a day."""
        return len(self._days.get(day, ()))

    def _take_back(self, name: str) -> None:
        for granted in self._days.values():
            granted.discard(name)
        slot, before = self._newest.pop(name, (0, {}))
        for symbol, at in before.items():
            if self._asked.get(symbol) == slot:
                del self._asked[symbol]
                if at:
                    self._asked[symbol] = at

    def asked(self) -> dict[str, int]:
        """By symbol: when it was last requested, epoch ms, as far back as the log goes."""
        return dict(self._asked)

    def budgets(self, limits: Limits, now: int) -> tuple[Budget, ...]:
        """What is left of each limit."""
        found = []
        for per, limit in limits.items():
            if per == "day":
                left, resets = limit - self.used(day_of(now, self.zone)), day_end(now, self.zone)
                if self.pause_refusal == "daily" and self.paused_until > now:
                    left = 0
            else:
                recent = [slot for slot in self._slots if slot > now - PERIOD_MS[per]]
                left, resets = limit - len(recent), min(recent, default=now) + PERIOD_MS[per]
            found.append(Budget(per=per, limit=limit, left=max(0, left), resets_at=resets))
        return tuple(found)

    def forget(self, before: int) -> None:
        """Drops days that ended before this time, epoch ms, and symbols that were last requested before it."""
        kept = day_of(before, self.zone)
        if kept != self._kept:
            self._kept = kept
            self._days = {day: granted for day, granted in self._days.items() if day >= kept}
            self._asked = {symbol: at for symbol, at in self._asked.items() if at >= before}


class MemoryRequestLog:
    """A log in memory, for limits that need no other worker, and for tests. Objects over the same list are workers of one group; without a list, nothing is
    kept once it was returned."""

    def __init__(self, clock: Clock, entries: list[LogEntry] | None = None) -> None:
        self._clock, self._entries = clock, entries
        self._next = 0

    async def append(self, value: bytes) -> Sequence[LogEntry]:
        if self._entries is None:
            self._next += 1
            return [LogEntry(self._next - 1, self._clock.now_ms(), value)]
        self._entries.append(LogEntry(len(self._entries), self._clock.now_ms(), value))
        return await self.read()

    async def read(self) -> Sequence[LogEntry]:
        if self._entries is None:
            return []
        found = self._entries[self._next :]
        self._next = len(self._entries)
        return found

    async def stop(self) -> None:
        pass


class Scheduler:
    """Grants requests to one provider within its budget.

    Use: `grant = await scheduler.acquire(symbols)`, make the request, then `await scheduler.report(None)`, or `report` with the class of its refusal. If
    the request was never sent, `await scheduler.give_back(grant)`.

    Args:
        source: whose budget it is; a name in STOCKSTREAM_SOURCE.
        limits: of the provider's plan.
        log: of all workers. Without a limit per day it is not used, and each worker keeps the other limits by itself.
        clock: the machine's, or a test's.
        worker: name of this worker, for readers of the log; or a function that returns it once it is known.
        zone: in which the provider's day begins at midnight.
    """

    def __init__(
        self, source: str, limits: Limits, log: RequestLog, *, clock: Clock, worker: str | Callable[[], str] = "", zone: str = PROVIDERS_ZONE,
    ) -> None:  # fmt: skip
        self.source, self.limits = source, limits
        self._log = log if limits.day is not None else MemoryRequestLog(clock)
        self._clock = clock
        self._worker = worker if callable(worker) else lambda: worker
        self._ledger = Ledger(source, zone)
        self._lock = asyncio.Lock()
        self._read_at = 0
        self._paused_until, self._pause_reason = 0, ""
        self._pause_refusal: Refusal = "unanswered"
        self._in_a_row: dict[Refusal, int] = {}

    async def stop(self) -> None:
        """Closes the log's connections."""
        await self._log.stop()

    async def refresh(self, older_than_ms: int = REFRESH_MS) -> None:
        """Reads what other workers have written, if the last time was longer ago. Raises `BrokerError`."""
        async with self._lock:
            if not self._read_at or self._clock.now_ms() - self._read_at >= older_than_ms:
                self._apply(await self._log.read())

    async def acquire(self, symbols: Collection[str] = ()) -> Grant:
        """Reserves a request about these symbols, and waits until it may be made.

        Raises `BudgetSpent` if that is more than LONGEST_WAIT_MS away, and `BrokerError`. A cancelled wait gives the request back.
        """
        await self._until_allowed()
        record = Reservation(
            source=self.source, step="request", id=uuid.uuid4().hex, worker=self._worker(), budget=str(self.limits), symbols=tuple(symbols),
            at=self._clock.now_ms(),
        )  # fmt: skip
        reserving = asyncio.ensure_future(self._reserve(record))
        try:
            grant, logged = await asyncio.shield(reserving)
            if grant is not None and grant.slot > logged:
                await self._clock.sleep((grant.slot - logged) / 1000)
        except asyncio.CancelledError:
            await self._undo(reserving)
            raise
        if grant is None:
            self._require_allowed(soon=False)
            raise BudgetSpent(f"{self.source}: other workers have taken the next requests", logged + LONGEST_WAIT_MS, "burst")
        return grant

    async def give_back(self, grant: Grant) -> None:
        """Returns a request that was not sent. Raises `BrokerError`; then it counts as made."""
        await self._write(Reservation(
            source=self.source, step="returned", id=grant.id, worker=self._worker(), budget=str(self.limits), at=self._clock.now_ms(),
        ))  # fmt: skip

    async def report(self, refusal: Refusal | None, *, retry_after_s: float = 0.0, reason: str = "") -> None:
        """Takes the outcome of a request: None for an answer. A refusal pauses the next requests, those of all workers if it concerns them (SHARED)."""
        if refusal is None:
            self._in_a_row.clear()
            return
        now = self._clock.now_ms()
        if refusal == "daily":
            until = min(day_end(now, self._ledger.zone), now + DAILY_PAUSE_MS)
        else:
            first, last = PAUSES_S[refusal]
            count = self._in_a_row[refusal] = self._in_a_row.get(refusal, 0) + 1
            until = now + round(1000 * max(min(first * 2 ** min(count - 1, 30), last), min(retry_after_s, last)))
        if refusal in SHARED:
            await self._write(Reservation(
                source=self.source, step="pause", id=uuid.uuid4().hex, worker=self._worker(), budget=str(self.limits), until=until, reason=refusal, at=now,
            ))  # fmt: skip
        elif until > self._paused_until:
            self._paused_until, self._pause_refusal, self._pause_reason = until, refusal, reason or refusal

    def budgets(self) -> tuple[Budget, ...]:
        """What is left of each limit, as of the last reading of the log."""
        return self._ledger.budgets(self.limits, self._clock.now_ms())

    @property
    def today(self) -> Budget | None:
        """What is left of the day; None without a limit per day."""
        return next((budget for budget in self.budgets() if budget.per == "day"), None)

    @property
    def left_today(self) -> int | None:
        """Requests left of the day; None without a limit per day."""
        today = self.today
        return None if today is None else today.left

    @property
    def newest(self) -> int:
        """When a worker of the group last got a request granted, epoch ms; 0 if never."""
        return self._ledger.newest

    def asked(self) -> dict[str, int]:
        """By symbol: when a worker of the group last requested it, epoch ms."""
        return self._ledger.asked()

    def blocked(self) -> BudgetSpent | None:
        """Why no request may be made now, as far as is known; None if one may."""
        now, ledger = self._clock.now_ms(), self._ledger
        if ledger.paused_until > now:
            if ledger.pause_refusal == "daily":
                reason = f"{self.source} reports that the day's requests are spent; the next one at {utc_time(ledger.paused_until)}"
                return BudgetSpent(reason, ledger.paused_until)
            reason = f"{self.source} asks for fewer requests ({ledger.pause_reason}): the next one at {utc_time(ledger.paused_until)}"
            return BudgetSpent(reason, ledger.paused_until, ledger.pause_refusal)
        if self._paused_until > now:
            reason = f"{self.source}: {self._pause_reason}: the next request at {utc_time(self._paused_until)}"
            return BudgetSpent(reason, self._paused_until, self._pause_refusal)
        if self.left_today == 0:
            until = day_end(now, ledger.zone)
            return BudgetSpent(f"all {self.limits.day} requests of the day to {self.source} are spent, until {utc_time(until)}", until)
        return None

    # ---- the log

    async def _until_allowed(self) -> None:
        """Waits before the reservation as long as it can, since a worker that ends between reservation and request wastes one."""
        while (found := self.blocked()) is not None:
            await self.refresh()                                         # a worker may have given a request back
            self._require_allowed(soon=True)
            await self._clock.sleep(max(1, found.until - self._clock.now_ms()) / 1000)
        now = self._clock.now_ms()
        if (wait := self._ledger.earliest(self.limits, now) - now) > 0:
            await self._clock.sleep(min(wait, LONGEST_WAIT_MS) / 1000)

    def _require_allowed(self, *, soon: bool) -> None:
        """Raises if nothing is allowed now, or, with `soon`, within LONGEST_WAIT_MS."""
        found = self.blocked()
        if found is not None and (not soon or found.until - self._clock.now_ms() > LONGEST_WAIT_MS):
            raise found

    async def _write(self, record: Reservation) -> None:
        async with self._lock:
            self._apply(await self._log.append(_encode(record)))

    def _apply(self, entries: Sequence[LogEntry]) -> Grant | None:
        """Applies records; returns the grant of the last one."""
        self._read_at = now = self._clock.now_ms()
        grant = None
        for entry in entries:
            grant = self._ledger.apply(entry)
        self._ledger.forget(now - 7 * 86_400_000)
        return grant

    async def _reserve(self, record: Reservation) -> tuple[Grant | None, int]:
        """The grant, and when the log took the reservation."""
        async with self._lock:
            entries = await self._log.append(_encode(record))
            return self._apply(entries), entries[-1].timestamp

    async def _undo(self, reserving: asyncio.Future[tuple[Grant | None, int]]) -> None:
        """Gives back what was reserved for a task that is cancelled."""
        try:
            async with asyncio.timeout(GIVE_BACK_S):
                grant, _ = await reserving
                if grant is not None:
                    await self.give_back(grant)
        except (StockstreamError, TimeoutError) as error:
            logger.warning("a request to %s was reserved and not made; it counts: %s", self.source, str(error) or "timed out")


@lru_cache(maxsize=8)
def _zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def day_of(ms: int, zone: str = PROVIDERS_ZONE) -> str:
    """The calendar day of a time (epoch ms) in a zone, such as 2026-11-30."""
    return datetime.fromtimestamp(ms / 1000, _zone(zone)).date().isoformat()


def day_end(ms: int, zone: str = PROVIDERS_ZONE) -> int:
    """When the day of a time ends, epoch ms: the next midnight of the zone."""
    tomorrow = datetime.fromtimestamp(ms / 1000, _zone(zone)).date() + timedelta(days=1)
    return round(datetime(tomorrow.year, tomorrow.month, tomorrow.day, tzinfo=_zone(zone)).timestamp() * 1000)

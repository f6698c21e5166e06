"""Repairs gaps: fetches the one-minute bars of a gap on record from Yahoo, and publishes them to `repairs`. They go to the archive, never into windows."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from stockstream.errors import FencedError, SourceError, StockstreamError
from stockstream.limited_log import LimitedLog
from stockstream.records import Gap, Repair
from stockstream.sources.base import Clock, SourceUnavailable
from stockstream.sources.gaps import MOST_AHEAD_MS
from stockstream.sources.quota import BudgetSpent
from stockstream.sources.symbols import to_provider
from stockstream.sources.yahoo.query import MAX_BARS_S, MINUTE_MS, YahooQuery
from stockstream.transforms.cleaning.decoding import UNREADABLE

logger = logging.getLogger(__name__)

SOURCES = ("yahoo", "yahoo_polling")
"""Gaps of these sources, and of their parts such as `yahoo.LSE`, are repaired."""
COMPLETE_MS = 120_000
"""A gap is repaired this long after its end: by then Yahoo has its last bar."""
KEPT_MS = 29 * 86_400_000
"""Yahoo keeps one-minute bars for 30 days."""
RESERVE = 4
"""Repairs leave this part of the day's requests, one in RESERVE, to quotes."""
FIRST_RETRY_S, LAST_RETRY_S = 5.0, 300.0
POLL_S = 1.0
REPAIRS_A_STEP = 20
"""After so many repairs, at the latest, new gaps are read and those that are dealt with are committed."""

_decode = msgspec.json.Decoder(Gap).decode


class GapRecord(Protocol):
    """A consumed record of `gaps`."""

    @property
    def offset(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


class GapReader(Protocol):
    """Reads `gaps`, and keeps in Kafka through which offset they are dealt with. Both methods raise `BrokerError`."""

    async def poll(self, cursors: Mapping[int, int | None]) -> Mapping[int, Sequence[GapRecord]]:
        """Records of these partitions from the given offsets on (None: from the committed one). Waits about a second for the first."""
        ...

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """By partition: the offset before which all gaps are dealt with."""
        ...


Publish = Callable[[Sequence[Repair]], Awaitable[None]]
"""Sends bars to `repairs` and waits for the confirmation. Raises the delivery's error."""


@dataclass(slots=True)
class _Pending:
    partition: int
    offset: int
    gap: Gap
    due: int
    """Epoch ms."""


class Repairer:
    """Repairs the gaps of the partitions that this worker owns, one after the other, within Yahoo's budget.

    A gap that was repaired just before a crash is repaired again: the archive's view shows one bar for a minute however often it was published.

    Args:
        query: Yahoo's REST service.
        reader: reads the topic `gaps`.
        publish: sends bars.
        skipped: called with partition, offset and reason for a record that cannot be used, or a gap that cannot be repaired.
        clock: the machine's, or a test's.
    """

    def __init__(self, query: YahooQuery, reader: GapReader, publish: Publish, skipped: Callable[[int, int, str], None], clock: Clock) -> None:
        self._query, self._reader, self._publish, self._skipped, self._clock = query, reader, publish, skipped, clock
        self._partitions: frozenset[int] = frozenset()
        self._next: dict[int, int] = {}
        """By partition: the offset after the last record read."""
        self._committed: dict[int, int] = {}
        self._pending: list[_Pending] = []
        self._retry_s = FIRST_RETRY_S
        self._paused_until = 0
        self._log = LimitedLog(lambda: clock.now_ms() / 1000)

    def own(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions. Gaps of others are left to their owner."""
        self._partitions = frozenset(partitions)
        self._pending = [one for one in self._pending if one.partition in self._partitions]
        for positions in (self._next, self._committed):
            for partition in positions.keys() - self._partitions:
                del positions[partition]

    async def run(self) -> None:
        """Works until it is cancelled. Raises `FencedError`; other errors are logged and retried."""
        while True:
            try:
                await self.step()
            except FencedError:
                raise
            except StockstreamError as error:
                self._warn(error)
            except Exception as error:  # noqa: BLE001  no error of a repair may affect the ticks
                self._pause(SourceUnavailable(f"{type(error).__name__}: {error}"))
            await self._clock.sleep(POLL_S)

    async def step(self) -> None:
        """Reads new gaps, and repairs what is due. A gap whose repair fails stays pending unless it can never be repaired. Raises `BrokerError`."""
        if self._partitions:
            cursors = {partition: self._next.get(partition) for partition in self._partitions}
            for partition, records in (await self._reader.poll(cursors)).items():
                if partition in self._partitions and self._next.get(partition) == cursors[partition]:
                    self._take(partition, records)
        for _ in range(REPAIRS_A_STEP):
            if not await self._repair_next():
                break
        await self._commit()

    async def _repair_next(self) -> bool:
        """Repairs the gap that is due longest. Returns whether there was one and it is dealt with."""
        now = self._clock.now_ms()
        due = min((one for one in self._pending if one.due <= now), key=lambda one: one.due, default=None)
        if due is None or now < self._paused_until or not self._allowed():
            return False
        try:
            await self._repair(due.gap)
        except FencedError:
            raise
        except StockstreamError as error:
            if not isinstance(error, SourceError) or isinstance(error, SourceUnavailable):
                self._pause(error)
                due.due = max(due.due, self._paused_until)               # the others first: what fails may be of this one
                return False
            self._skipped(due.partition, due.offset, str(error))
        self._retry_s = FIRST_RETRY_S
        self._pending = [one for one in self._pending if one is not due]
        return True

    def _take(self, partition: int, records: Sequence[GapRecord]) -> None:
        for record in records:
            self._next[partition] = record.offset + 1
            try:
                gap = _decode(record.value or b"")
            except UNREADABLE as error:
                self._skipped(partition, record.offset, f"no gap: {error}")
                continue
            now = self._clock.now_ms()
            if gap.to > now + MOST_AHEAD_MS:                             # it would keep its offset, and all that follow, from being committed
                self._skipped(partition, record.offset, f"the gap ends in the future, at {gap.to}")
            elif of_yahoo(gap.source) and minutes_of(gap, now) is not None:
                self._pending.append(_Pending(partition, record.offset, gap, gap.to + COMPLETE_MS))

    def _allowed(self) -> bool:
        today = self._query.quota.today
        return today is None or today.left * RESERVE > today.limit

    async def _repair(self, gap: Gap) -> None:
        minutes = minutes_of(gap, self._clock.now_ms())
        if minutes is None:
            return
        first, end = minutes
        name = to_provider(gap.symbol, "yahoo")
        repairs: list[Repair] = []
        for begin in range(first, end, MAX_BARS_S * 1000):
            repairs += [
                Repair(symbol=gap.symbol, source=gap.source, minute=minute, open=open_, high=high, low=low, close=close, volume=volume)
                for minute, open_, high, low, close, volume in await self._query.bars(name, begin, min(end, begin + MAX_BARS_S * 1000))
            ]
        if repairs:
            await self._publish(repairs)
        logger.info("yahoo: %d of %d minutes of a gap of %s repaired", len(repairs), (end - first) // MINUTE_MS, gap.symbol)

    async def _commit(self) -> None:
        through = dict(self._next)
        for one in self._pending:
            through[one.partition] = min(through[one.partition], one.offset)
        if changed := {partition: offset for partition, offset in through.items() if self._committed.get(partition) != offset}:
            await self._reader.commit(changed)
            self._committed |= changed

    def _pause(self, error: StockstreamError) -> None:
        now = self._clock.now_ms()
        self._paused_until = error.until if isinstance(error, BudgetSpent) else now + round(1000 * self._retry_s)
        self._retry_s = min(2 * self._retry_s, LAST_RETRY_S)
        self._warn(error)

    def _warn(self, error: StockstreamError) -> None:
        if (end := self._log.due(str(error))) is not None:
            logger.warning("yahoo: repairs wait: %s%s", error, end)


def of_yahoo(source: str) -> bool:
    """Whether a tick's source, or a name in the watchlist, is one of SOURCES."""
    return source.partition(".")[0] in SOURCES


def minutes_of(gap: Gap, now: int) -> tuple[int, int] | None:
    """The whole minutes inside a gap, epoch ms: the start of the first, and the end of the last. None if there are none, or Yahoo no longer has them.

    The minutes in which the gap begins and ends have ticks.
    """
    first = max(gap.from_ // MINUTE_MS + 1, -(-(now - KEPT_MS) // MINUTE_MS)) * MINUTE_MS
    end = gap.to // MINUTE_MS * MINUTE_MS
    return (first, end) if first < end else None

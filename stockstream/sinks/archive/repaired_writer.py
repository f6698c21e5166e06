"""Writes the repaired bars of a worker's partitions to the archive. It holds no state but what the names of the objects say."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial

from stockstream.errors import StockstreamError
from stockstream.limited_log import LimitedLog
from stockstream.settings import Settings
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.sinks.archive.readers import RepairReader
from stockstream.sinks.archive.repaired import MAX_BARS, Bar, bar_of, write, written_through
from stockstream.sinks.archive.store_failures import CLOSE_S, FIRST_RETRY_S, LAST_RETRY_S
from stockstream.sinks.stores import Store
from stockstream.threads import in_thread

logger = logging.getLogger(__name__)

IDLE_S = 1.0


@dataclass(slots=True)
class _Partition:
    """One partition while this worker owns it. `cursor`: the next offset to read, None before the first reading."""

    number: int
    cursor: int | None = None
    bars: list[Bar] = field(default_factory=list)
    since: float = 0.0
    placed: bool = False
    """Whether it is known that the next object begins with the next bar."""


class RepairedBars:
    """Reads `repairs`, and writes the bars of each partition in objects, `archive_flush_s` after the first of them was read.

    A failure of Kafka or of the store is logged and tried again; nothing waits for it.

    Args:
        settings: of the worker.
        store: the archive's.
        reader: reads the topic.
        skipped: called with partition, offset and reason for a record that is no bar.
        clock: monotonic, in seconds.
    """

    def __init__(
        self, settings: Settings, store: Store, reader: RepairReader, skipped: Callable[[int, int, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings, self._store, self._reader, self._skipped, self._clock = settings, store, reader, skipped, clock
        self._partitions: dict[int, _Partition] = {}
        self._log = LimitedLog(clock)
        self._step = asyncio.Lock()
        self._closed = False

    def own(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions. Bars of others, read and not written yet, are left to their owner."""
        self._partitions = {number: self._partitions.get(number) or _Partition(number) for number in sorted(partitions)}

    async def run(self) -> None:
        """Reads and writes until it is cancelled or closed."""
        wait = FIRST_RETRY_S
        while not self._closed:
            try:
                await self.step()
                wait = FIRST_RETRY_S
            except Exception as error:  # noqa: BLE001  the archive's other work, and the pipeline, must go on
                text = str(error) if isinstance(error, StockstreamError) else f"{type(error).__name__}: {error}"
                if (end := self._log.due(text)) is not None:
                    logger.warning("archive: repaired bars wait: %s%s", text, end)
                await asyncio.sleep(wait)
                wait = min(2 * wait, LAST_RETRY_S)

    async def step(self, final: bool = False) -> None:
        """Reads what has come, and writes what is due. If `final`, reads nothing more, and writes all."""
        async with self._step:
            reading = {number: one for number, one in self._partitions.items() if len(one.bars) < MAX_BARS}
            if reading and not final:
                for number, records in (await self._reader.poll({number: one.cursor for number, one in reading.items()})).items():
                    self._take(reading[number], records)
            elif not final:
                await asyncio.sleep(IDLE_S)
            for one in list(self._partitions.values()):
                if one.bars and (final or len(one.bars) >= MAX_BARS or self._clock() >= one.since + self._settings.archive_flush_s):
                    await self._write(one)

    def _take(self, one: _Partition, records: Sequence[RawRecord]) -> None:
        for record in records:
            bar = bar_of(record)
            if isinstance(bar, str):
                self._skipped(one.number, record.offset, bar)
                continue
            if not one.bars:
                one.since = self._clock()
            one.bars.append(bar)
        one.cursor = records[-1].offset + 1

    async def _write(self, one: _Partition) -> None:
        while one.bars:
            if not one.placed:
                last = await in_thread(partial(written_through, self._store, one.number, one.bars[0]), "archive-repairs")
                one.placed = True
                if last is not None:
                    self._pass(one, last)
                    continue
            self._pass(one, await in_thread(partial(write, self._store, one.number, one.bars), "archive-repairs"))

    def _pass(self, one: _Partition, last: int) -> None:
        """Forgets the bars through an offset: they are in the archive."""
        one.bars = [bar for bar in one.bars if bar.offset > last]
        one.cursor = max(one.cursor or 0, last + 1)

    async def close(self) -> None:
        """Writes what was read, for at most CLOSE_S. The next start reads the rest again."""
        self._closed = True
        try:
            async with asyncio.timeout(CLOSE_S):
                await self.step(final=True)
        except (StockstreamError, TimeoutError) as error:
            logger.warning("archive: repaired bars are left to the next start: %s", str(error) or "timed out")
        finally:
            await self._reader.stop()

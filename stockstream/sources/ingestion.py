"""Who brings which symbol where: the watchlist, the partitions that are ours, and the sources, put together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from stockstream.errors import SourceError
from stockstream.settings import Settings
from stockstream.sources.base import Batch, Clock, Source, SystemClock
from stockstream.sources.simulated import SimulatedSource
from stockstream.transforms.partitioning import home_partition

logger = logging.getLogger(__name__)

Messages = Sequence[tuple[bytes | None, bytes]]
Send = Callable[[str, int, Messages], Awaitable[Sequence[Awaitable[Any]]]]
"""Takes a topic's full name, a partition and (key, value) pairs; hands them over in order and answers what is done once the broker has confirmed them."""

SETTLE_S = 0.05
"""The watchlist comes message by message: so much of it is gathered into one change of subscription."""
FIRST_RETRY_S, LAST_RETRY_S = 1.0, 30.0


class Watch(msgspec.Struct, kw_only=True):
    """One message of `watchlist`: the source that brings a symbol; not `active` is as good as deleted."""

    symbol: str
    source: str
    active: bool = True


_decode = msgspec.json.Decoder(Watch).decode
_encode = msgspec.json.Encoder().encode


def open_sources(settings: Settings, clock: Clock) -> dict[str, Source]:
    """The sources of the settings by the name that the watchlist uses."""
    sources: dict[str, Source] = {}
    if "simulated" in settings.source:
        sources["simulated"] = SimulatedSource(settings.seed, clock=clock, events_file=settings.state_dir / f"simulated.{settings.seed}.events.jsonl")
    return sources


class Ingest:
    """Runs the settings' sources for the watched symbols whose home is a partition of ours, and publishes what they bring to `ticks.raw`.

    `watch` and `assign` take effect within a moment; `run` does the work until it is cancelled.
    """

    def __init__(self, settings: Settings, send: Send, *, clock: Clock | None = None, sources: Mapping[str, Source] | None = None) -> None:
        self._settings, self._send = settings, send
        self._clock = clock or SystemClock()
        self._sources = dict(open_sources(settings, self._clock) if sources is None else sources)
        self._watched: dict[str, str] = {}
        self._partitions: frozenset[int] = frozenset()
        self._live: dict[str, frozenset[str]] = {kind: frozenset() for kind in self._sources}
        self._described: set[tuple[str, str]] = set()
        self._told: set[str] = set()
        self._changed = asyncio.Event()

    @property
    def live(self) -> Mapping[str, frozenset[str]]:
        """By source: the symbols that it brings here."""
        return self._live

    def watch(self, key: bytes | None, value: bytes | None) -> None:
        """Take a message of `watchlist`. One that cannot be read is told and passed over."""
        try:
            symbol = (key or b"").decode()
            watch = _decode(value) if value is not None else Watch(symbol=symbol, source="", active=False)
        except (UnicodeDecodeError, msgspec.MsgspecError) as error:
            logger.warning("the watchlist's message of key %r cannot be read: %s", key, error)
            return
        if not symbol or watch.symbol != symbol:
            logger.warning("the watchlist's message of key %r is of symbol %r: passed over", key, watch.symbol)
            return
        if watch.active:
            self._watched[symbol] = watch.source
            if watch.source not in self._sources and watch.source not in self._told:
                self._told.add(watch.source)
                logger.warning("the watchlist wants %r from source %r, which this worker does not run (STOCKSTREAM_SOURCE)", symbol, watch.source)
        else:
            self._watched.pop(symbol, None)
        self._changed.set()

    def assign(self, partitions: Collection[int]) -> None:
        """These partitions are ours from now on and no others: nothing more is sent to those that are gone."""
        self._partitions = frozenset(partitions)
        for kind, symbols in self._live.items():
            self._live[kind] = frozenset(symbol for symbol in symbols if self._home(symbol) in self._partitions)
        self._changed.set()

    async def announce(self) -> None:
        """Put the settings' symbols on the watchlist, with the settings' first source."""
        source = self._settings.source[0] if self._settings.source else "none"
        if source == "none":
            return
        topic = self._settings.topic("watchlist")
        by: dict[int, list[tuple[bytes | None, bytes]]] = {}
        for symbol in self._settings.symbols:
            by.setdefault(self._home(symbol), []).append((symbol.encode(), _encode(Watch(symbol=symbol, source=source))))
        await self._send_all(topic, by)

    async def run(self) -> None:
        """Until cancelled. Raises what a source raises that is not retriable, and what the broker does not confirm."""
        tasks = [asyncio.create_task(self._follow(), name="ingest watchlist")]
        tasks += [asyncio.create_task(self._feed(kind, source), name=f"ingest {kind}") for kind, source in self._sources.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await self._clock.sleep(SETTLE_S)
            self._changed.clear()
            for kind, source in self._sources.items():
                wanted = frozenset(symbol for symbol, by in self._watched.items() if by == kind and self._home(symbol) in self._partitions)
                if wanted != self._live[kind]:
                    logger.info("%s brings %d symbols here", kind, len(wanted))
                    self._live[kind] = wanted
                source.subscribe(wanted)
                await self._describe(kind, source, [symbol for symbol in wanted if (kind, symbol) not in self._described])

    async def _describe(self, kind: str, source: Source, symbols: Sequence[str]) -> None:
        by: dict[int, list[tuple[bytes | None, bytes]]] = {}
        for info in source.describe(symbols) if symbols else ():
            by.setdefault(self._home(info.symbol), []).append((info.symbol.encode(), _encode(info)))
        await self._send_all(self._settings.topic("symbols"), by)
        self._described.update((kind, symbol) for symbol in symbols)

    async def _feed(self, kind: str, source: Source) -> None:
        wait = FIRST_RETRY_S
        while True:
            try:
                async for batch in source.stream():
                    await self._publish(kind, batch)
                    wait = FIRST_RETRY_S
                return
            except SourceError as error:
                if not error.retriable:
                    raise
                logger.warning("%s: %s; tried again in %.0f s", kind, error, wait)
                await self._clock.sleep(wait)
                wait = min(2 * wait, LAST_RETRY_S)

    async def _publish(self, kind: str, batch: Batch) -> None:
        live = self._live[kind]
        by: dict[int, list[tuple[bytes | None, bytes]]] = {}
        for symbol, _, value in batch:
            if symbol in live:
                by.setdefault(self._home(symbol), []).append((symbol.encode(), value))
        await self._send_all(self._settings.topic("ticks.raw"), by)

    async def _send_all(self, topic: str, by: Mapping[int, Messages]) -> None:
        under_way: list[Awaitable[Any]] = []
        for partition in sorted(by):
            under_way += await self._send(topic, partition, by[partition])
        for delivery in under_way:
            await delivery

    def _home(self, symbol: str) -> int:
        return home_partition(symbol, self._settings.partitions)

"""Runs the sources for the symbols that the watchlist assigns to them, as far as their home partitions belong to this worker.

A source that fails for any reason is retried with back-off and does not affect the others. Only the fence (`FencedError`) ends the ingestion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any

import msgspec

from stockstream.errors import SourceError
from stockstream.metrics import Metrics
from stockstream.settings import Settings
from stockstream.skipped import Fault, shortened
from stockstream.sources.attempts import end_all, with_retries
from stockstream.sources.base import Clock, MarketDataSource, SystemClock
from stockstream.sources.driver import Driver
from stockstream.sources.opening import OpenRequestLog, open_sources
from stockstream.sources.publishing import Publisher, Send
from stockstream.sources.reporter import Reporter
from stockstream.sources.sessions import Sessions
from stockstream.sources.simulated import default_symbols
from stockstream.sources.symbols import canonical
from stockstream.sources.takeover import ReadNewest, Takeovers
from stockstream.transforms.cleaning.decoding import UNREADABLE
from stockstream.transforms.cleaning.limits import composed, symbol_fault

logger = logging.getLogger(__name__)

ReadWatchlist = Callable[[], Awaitable[Mapping[bytes, bytes]]]
"""Returns the present content of the topic `watchlist`, of all partitions, by key."""

WATCHLIST_DELAY_S = 0.05
"""Watchlist messages within this time become one change of subscription."""
CHECK_S = 1.0
MAX_WATCHED = 50_000
"""The most symbols per worker. Further entries of the watchlist are skipped. The views show as many."""
DEFAULT_SYMBOLS = 20
"""How many made-up tickers the simulated source gets if none are named. With real tickers, ticks of them from other sources would be rejected."""


class Watch(msgspec.Struct, kw_only=True):
    """One message of `watchlist`: the source of a symbol. If not `active`, it counts as deleted."""

    symbol: str
    source: str
    active: bool = True


_decode = msgspec.json.Decoder(Watch).decode
_encode = msgspec.json.Encoder().encode


class Ingest:
    """Runs the sources for the watched symbols whose home partition belongs to this worker, and publishes their ticks to `ticks.raw`.

    `watch` and `assign` take effect after WATCHLIST_DELAY_S; `run` does the work until it is cancelled.

    Args:
        settings: of the worker.
        send: publishes messages.
        clock: the machine's if None.
        sources: by name in the watchlist; those of the settings if None.
        metrics: of the worker.
        read_watchlist: called once if a source may have no symbols; without it the watchlist counts as not empty.
        read_newest: reads the newest rows of partitions that are taken over; without it a takeover leaves no gap on record.
        sessions: of the exchanges; new ones if None.
        request_log: opens the log of requests, for sources with a budget; without it they count their own requests only.
        worker: returns the worker's name in what is published, unique in its group.
        chance: returns random numbers from 0 to 1, for the pauses between attempts.
    """

    def __init__(
        self, settings: Settings, send: Send, *, clock: Clock | None = None, sources: Mapping[str, MarketDataSource] | None = None,
        metrics: Metrics | None = None, read_watchlist: ReadWatchlist | None = None, read_newest: ReadNewest | None = None,
        sessions: Sessions | None = None, request_log: OpenRequestLog | None = None, worker: Callable[[], str] = lambda: "worker",
        chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._settings, self._read_watchlist, self._chance = settings, read_watchlist, chance
        self._clock = clock or SystemClock()
        metrics = metrics or Metrics()
        self._publisher = Publisher(settings, send)
        sessions = sessions or Sessions()
        if sources is None:
            sources = open_sources(settings, self._clock, sessions=sessions, request_log=request_log, worker=worker)
        self._drivers = {
            kind: Driver(kind, source, self._publisher, self._clock, metrics, chance, sessions.at) for kind, source in sources.items()
        }
        self._reporter = Reporter(self._drivers, self._publisher, metrics, self._clock, worker)
        self._takeovers = Takeovers(read_newest if sources else None, self._clock.now_ms)
        self._watched: dict[str, tuple[str, int]] = {}
        """By symbol: its source, and its home partition."""
        self._partitions: frozenset[int] = frozenset()
        self._changed = asyncio.Event()
        self._taken_over = asyncio.Event()

    @property
    def live(self) -> Mapping[str, frozenset[str]]:
        """By source: the symbols that it reads on this worker."""
        return {kind: driver.live for kind, driver in self._drivers.items()}

    def states(self) -> list[dict[str, Any]]:
        """Each source as `/api/pipeline` shows it: the fields of `SourceState`."""
        return [msgspec.to_builtins(driver.health.state(driver.report().trouble)) for driver in self._drivers.values()]

    # ---- watchlist and assignment

    def watch(self, key: bytes | None, value: bytes | None) -> Fault | None:
        """Applies a message of `watchlist`. Returns why it cannot be used, None if it can. An unreadable message changes nothing."""
        try:
            symbol = composed((key or b"").decode())
        except UnicodeDecodeError as error:
            return Fault("invalid_key", f"key {key!r:.100} is not UTF-8: {error.reason}")
        if value is None:
            self._unwatch(symbol)
            return None
        if (fault := symbol_fault(symbol)) is not None:
            return Fault("invalid_symbol", f"key {symbol[:40]!r}: {fault}")
        try:
            watch = _decode(value)
        except UNREADABLE as error:
            return Fault("invalid_json", f"key {symbol!r}: {shortened(str(error))}")
        if composed(watch.symbol) != symbol:
            return Fault("other_key", f"key {symbol!r} is not the symbol {watch.symbol[:40]!r}")
        if not watch.active:
            self._unwatch(symbol)
            return None
        if watch.source not in self._drivers:
            self._unwatch(symbol)
            return Fault("unknown_source", f"{symbol!r} belongs to source {watch.source[:40]!r}, which this worker does not run (STOCKSTREAM_SOURCE)")
        if symbol not in self._watched and len(self._watched) >= MAX_WATCHED:
            return Fault("too_many_symbols", f"{symbol!r} is one symbol too many: a worker watches at most {MAX_WATCHED:,}")
        self._watched[symbol] = watch.source, self._publisher.home(symbol)
        self._changed.set()
        return None

    def _unwatch(self, symbol: str) -> None:
        if self._watched.pop(symbol, None) is not None:
            self._reporter.forget(symbol)
            self._changed.set()

    def assign(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions. Watchlist entries of other partitions are forgotten, and read again when those come back."""
        self._restrict(partitions)
        self._watched = {symbol: of for symbol, of in self._watched.items() if of[1] in self._partitions}
        self._takeovers.assign(partitions)
        self._taken_over.set()
        self._changed.set()

    def release(self) -> None:
        """Stops sending until partitions are assigned. Sources keep their subscriptions, because most partitions come back."""
        self._restrict(())

    def _restrict(self, partitions: Collection[int]) -> None:
        self._partitions = frozenset(partitions)
        for driver in self._drivers.values():
            driver.restrict(lambda symbol: self._watched.get(symbol, ("", -1))[1] in self._partitions)

    # ---- the work

    async def run(self) -> None:
        """Runs until cancelled. Raises `FencedError`; other errors are retried, and shown by `states`."""
        announcing = with_retries("the symbols of the settings", self.announce, self._clock, self._chance)
        work = {
            "watchlist": self._follow(), "takeovers": self._take_over(), "check": self._check(), "announce": announcing, "reports": self._reporter.run(),
        } | {kind: driver.run() for kind, driver in self._drivers.items()}  # fmt: skip
        tasks = [asyncio.create_task(part, name=f"ingest {name}") for name, part in work.items()]
        try:
            await asyncio.gather(*tasks)
        finally:
            await end_all(tasks)

    async def end(self) -> None:
        """Deletes this worker's reports, when the worker ends. Raises the delivery's error."""
        await self._reporter.end()

    async def announce(self) -> None:
        """Puts the settings' symbols on the watchlist, with the settings' first source, and warns of sources that have no symbols there.

        Symbols of a real market are put there in their canonical form.
        If the settings name none, the first source is the simulated one and the watchlist is empty, it puts made-up symbols there.
        """
        sources = [name for name in self._settings.source if name != "none"]
        symbols: Collection[str] = self._settings.symbols
        if not sources:
            if symbols:
                logger.warning("STOCKSTREAM_SYMBOLS has no effect without a source: set STOCKSTREAM_SOURCE, or leave the symbols to your own producer")
            return
        if symbols:
            if len(sources) > 1:
                text = "the symbols of STOCKSTREAM_SYMBOLS belong to the first source, %s; use `stockstream watch add --source` for those of %s"
                logger.info(text, sources[0], ", ".join(sources[1:]))
            await self._watch_all(sources[0], symbols)
        if self._read_watchlist is None or (symbols and len(sources) == 1):
            return
        held = await self._read_watchlist()
        if not symbols and sources[0] == "simulated" and not held:
            symbols = default_symbols(DEFAULT_SYMBOLS)
            logger.warning("the watchlist is empty and STOCKSTREAM_SYMBOLS not set: %d made-up symbols are simulated, %s ...", len(symbols), symbols[0])
            await self._watch_all("simulated", symbols)
        filled = {watch.source for watch in map(_entry, held.values()) if watch is not None and watch.active} | ({sources[0]} if symbols else set())
        for source in sources:
            if source not in filled:
                text = "the watchlist has no symbol for source %s: add some, for example with `stockstream watch add AAPL MSFT --source %s`"
                logger.warning(text, source, source)

    async def _watch_all(self, source: str, symbols: Collection[str]) -> None:
        messages = []
        for text in symbols:
            try:
                symbol = text if source == "simulated" else canonical(text)
            except SourceError as error:
                logger.error("STOCKSTREAM_SYMBOLS: %r is left out: %s", text[:40], error)
                continue
            if (fault := symbol_fault(symbol)) is not None:
                logger.error("STOCKSTREAM_SYMBOLS: %r is left out: %s", symbol[:40], fault)
            else:
                messages.append((symbol, _encode(Watch(symbol=symbol, source=source))))
        await self._publisher.by_symbol("watchlist", messages)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await self._clock.sleep(WATCHLIST_DELAY_S)
            self._changed.clear()
            ready = self._partitions - self._takeovers.waiting
            if self._partitions and not ready:
                continue                                                 # it is called again once the takeover is complete
            for kind, driver in self._drivers.items():
                watched = {symbol: home for symbol, (by, home) in self._watched.items() if by == kind}
                live = frozenset(symbol for symbol, home in watched.items() if home in ready)
                driver.assign(live, watched.keys(), len(self._partitions), self._settings.partitions)
                for symbol in live:
                    if driver.tracker.seen(symbol) is None and (newest := self._takeovers.newest(watched[symbol], symbol)) is not None:
                        driver.take_over(symbol, newest)

    async def _take_over(self) -> None:
        while True:
            await self._taken_over.wait()
            self._taken_over.clear()
            if await self._takeovers.look_up():
                self._changed.set()

    async def _check(self) -> None:
        """Checks the sources every CHECK_S by the machine's clock. Only log lines and states depend on it, no result."""
        while True:
            await asyncio.sleep(CHECK_S)
            for driver in self._drivers.values():
                driver.health.check()


def _entry(value: bytes) -> Watch | None:
    with contextlib.suppress(*UNREADABLE):
        return _decode(value)
    return None

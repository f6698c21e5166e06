"""Runs the sources for the symbols that the watchlist assigns to them, as far as their home partitions belong to this worker.

A source that fails for any reason is retried with back-off and does not affect the others. Only the fence (`FencedError`) ends the ingestion.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import msgspec
from aiokafka.errors import KafkaError, KafkaTimeoutError

from stockstream.errors import FencedError
from stockstream.metrics import Metrics
from stockstream.settings import Settings
from stockstream.skipped import Fault, shortened
from stockstream.sources.base import Batch, Clock, MarketDataSource, SourceUnavailable, SymbolInfo, SystemClock
from stockstream.sources.health import FIRST_RETRY_S, LAST_RETRY_S, STEADY_MS, SourceHealth, SourceState, reason_of
from stockstream.sources.simulated import SimulatedSource, default_symbols
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TEXT, composed, symbol_fault
from stockstream.transforms.partitioning import home_partition

logger = logging.getLogger(__name__)

Messages = Sequence[tuple[bytes | None, bytes]]
Send = Callable[[str, int, Messages], Awaitable[Sequence[Awaitable[Any]]]]
"""Sends (key, value) pairs in order to a topic (its full name) and partition. Returns awaitables that are done once the broker has confirmed them."""
ReadWatchlist = Callable[[], Awaitable[Mapping[bytes, bytes]]]
"""Returns the present content of the topic `watchlist`, of all partitions, by key."""

WATCHLIST_DELAY_S = 0.05
"""Watchlist messages within this time become one change of subscription."""
CHECK_S = 1.0
MAX_WATCHED = 50_000
"""The most symbols per worker. Further entries of the watchlist are skipped. The views show as many."""
MAX_TICK_BYTES = 100_000
"""A tick with all texts at their limits has a quarter of this size. A longer tick is skipped, since it could never be delivered."""
DESCRIBED_AT_ONCE = 500
"""How many symbols' metadata is sent together: half a megabyte if every text is at its limit."""
DEFAULT_SYMBOLS = 20
"""How many made-up tickers the simulated source gets if none are named. With real tickers, ticks of them from other sources would be rejected."""


class Watch(msgspec.Struct, kw_only=True):
    """One message of `watchlist`: the source of a symbol. If not `active`, it counts as deleted."""

    symbol: str
    source: str
    active: bool = True


_decode = msgspec.json.Decoder(Watch).decode
_encode = msgspec.json.Encoder().encode


def open_sources(settings: Settings, clock: Clock) -> dict[str, MarketDataSource]:
    """Creates the sources of the settings, by their names in the watchlist."""
    sources: dict[str, MarketDataSource] = {}
    if "simulated" in settings.source:
        sources["simulated"] = SimulatedSource(settings.seed, clock=clock, events_file=settings.state_dir / f"simulated.{settings.seed}.events.jsonl")
    return sources


class _Run:
    """One running source: the symbols it reads on this worker, and the ticks not confirmed yet."""

    def __init__(self, source: MarketDataSource, health: SourceHealth) -> None:
        self.source, self.health = source, health
        self.live: frozenset[str] = frozenset()
        self.resubscribe = asyncio.Event()
        """Set when the symbols may have changed."""
        self.describe = asyncio.Event()
        """Set when there may be symbols whose metadata has not been sent."""
        self.described: set[str] = set()
        self.unconfirmed: Batch | None = None
        """The batch that was sent and not confirmed. The next attempt sends it first, so the log may hold parts of it twice."""


class Ingest:
    """Runs the sources for the watched symbols whose home partition belongs to this worker, and publishes their ticks to `ticks.raw`.

    `watch` and `assign` take effect after WATCHLIST_DELAY_S; `run` does the work until it is cancelled.

    Args:
        settings: of the worker.
        send: publishes messages.
        clock: the machine's if None.
        sources: by name in the watchlist; those of the settings if None.
        metrics: of the worker.
        read_watchlist: called once if the settings name no symbols; without it the watchlist counts as not empty.
        chance: returns random numbers from 0 to 1, for the pauses between attempts.
    """

    def __init__(
        self, settings: Settings, send: Send, *, clock: Clock | None = None, sources: Mapping[str, MarketDataSource] | None = None,
        metrics: Metrics | None = None, read_watchlist: ReadWatchlist | None = None, chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self._settings, self._send, self._read_watchlist, self._chance = settings, send, read_watchlist, chance
        self._clock = clock or SystemClock()
        self._metrics = metrics or Metrics()
        self._runs: dict[str, _Run] = {}
        for kind, source in (open_sources(settings, self._clock) if sources is None else sources).items():
            self._runs[kind] = _Run(source, SourceHealth(kind, source.name, self._metrics, self._clock.now_ms, _trouble_of(source), chance))
        self._watched: dict[str, tuple[str, int]] = {}
        """By symbol: its source, and its home partition."""
        self._partitions: frozenset[int] = frozenset()
        self._changed = asyncio.Event()

    @property
    def live(self) -> Mapping[str, frozenset[str]]:
        """By source: the symbols that it reads on this worker."""
        return {kind: run.live for kind, run in self._runs.items()}

    def states(self) -> list[dict[str, Any]]:
        """Each source as `/api/pipeline` shows it: the fields of `SourceState`."""
        return [msgspec.to_builtins(state) for state in self._states()]

    def _states(self) -> list[SourceState]:
        return [run.health.state for run in self._runs.values()]

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
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Fault("invalid_json", f"key {symbol!r}: {shortened(str(error))}")
        if composed(watch.symbol) != symbol:
            return Fault("other_key", f"key {symbol!r} is not the symbol {watch.symbol[:40]!r}")
        if not watch.active:
            self._unwatch(symbol)
            return None
        if watch.source not in self._runs:
            self._unwatch(symbol)
            return Fault("unknown_source", f"{symbol!r} belongs to source {watch.source[:40]!r}, which this worker does not run (STOCKSTREAM_SOURCE)")
        if symbol not in self._watched and len(self._watched) >= MAX_WATCHED:
            return Fault("too_many_symbols", f"{symbol!r} is one symbol too many: a worker watches at most {MAX_WATCHED:,}")
        self._watched[symbol] = watch.source, self._home(symbol)
        self._changed.set()
        return None

    def _unwatch(self, symbol: str) -> None:
        if self._watched.pop(symbol, None) is not None:
            self._changed.set()

    def assign(self, partitions: Collection[int]) -> None:
        """Replaces the worker's partitions. Watchlist entries of other partitions are forgotten, and read again when those come back."""
        self._restrict(partitions)
        self._watched = {symbol: of for symbol, of in self._watched.items() if of[1] in self._partitions}
        self._changed.set()

    def release(self) -> None:
        """Stops sending until partitions are assigned. Sources keep their subscriptions, because most partitions come back."""
        self._restrict(())

    def _restrict(self, partitions: Collection[int]) -> None:
        self._partitions = frozenset(partitions)
        for run in self._runs.values():
            run.live = frozenset(symbol for symbol in run.live if self._watched.get(symbol, ("", -1))[1] in self._partitions)

    # ---- the work

    async def run(self) -> None:
        """Runs until cancelled. Raises `FencedError`; other errors are retried, and shown by `states`."""
        tasks = [asyncio.create_task(self._follow(), name="ingest watchlist"), asyncio.create_task(self._check(), name="ingest check")]
        tasks.append(asyncio.create_task(self._with_retries("the symbols of the settings", self.announce), name="ingest announce"))
        for kind, run in self._runs.items():
            tasks.append(asyncio.create_task(self._feed(run), name=f"ingest {kind}"))
            tasks.append(asyncio.create_task(self._with_retries(f"metadata of {kind}", partial(self._describe, run)), name=f"ingest {kind} metadata"))
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def announce(self) -> None:
        """Puts the settings' symbols on the watchlist, with the settings' first source.

        If the settings name none, the source is the simulated one and the watchlist is empty, it puts made-up symbols there.
        """
        source = self._settings.source[0] if self._settings.source else "none"
        if source == "none":
            if self._settings.symbols:
                logger.warning("STOCKSTREAM_SYMBOLS has no effect without a source: set STOCKSTREAM_SOURCE, or leave the symbols to your own producer")
            return
        symbols: Iterable[str] = self._settings.symbols
        if not symbols and source == "simulated" and self._read_watchlist is not None and not await self._read_watchlist():
            symbols = default_symbols(DEFAULT_SYMBOLS)
            logger.warning("the watchlist is empty and STOCKSTREAM_SYMBOLS not set: %d made-up symbols are simulated, %s ...", DEFAULT_SYMBOLS, symbols[0])
        by: dict[int, list[tuple[bytes | None, bytes]]] = {}
        for symbol in symbols:
            if (fault := symbol_fault(symbol)) is not None:
                logger.error("STOCKSTREAM_SYMBOLS: %r is left out: %s", symbol[:40], fault)
                continue
            by.setdefault(self._home(symbol), []).append((symbol.encode(), _encode(Watch(symbol=symbol, source=source))))
        await self._send_all(self._settings.topic("watchlist"), by)

    async def _follow(self) -> None:
        while True:
            await self._changed.wait()
            await self._clock.sleep(WATCHLIST_DELAY_S)
            self._changed.clear()
            of = self._settings.partitions
            for kind, run in self._runs.items():
                run.live = frozenset(symbol for symbol, (by, home) in self._watched.items() if by == kind and home in self._partitions)
                run.health.assigned(len(run.live), len(self._partitions), of)
                run.resubscribe.set()
                run.describe.set()

    async def _check(self) -> None:
        """Checks the sources every CHECK_S by the machine's clock. Only log lines and states depend on it, no result."""
        while True:
            await asyncio.sleep(CHECK_S)
            for run in self._runs.values():
                run.health.check()

    async def _feed(self, run: _Run) -> None:
        """Runs attempts until the source ends, with growing pauses between them."""
        started = False
        while True:
            run.health.begin()
            try:
                if not started:
                    await run.source.start()
                    started = True
                await self._attempt(run)
                run.health.end()
                return
            except FencedError:
                raise
            except Exception as error:  # noqa: BLE001  any error of a source fails that source alone
                await self._clock.sleep(run.health.fail(error))

    async def _attempt(self, run: _Run) -> None:
        """Runs until the source's stream ends. Raises the errors of the stream, its subscription and the delivery."""
        run.resubscribe.clear()
        run.source.subscribe(run.live)
        parts = [asyncio.create_task(self._read_stream(run)), asyncio.create_task(self._subscribe(run))]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                if part.cancelled():
                    raise SourceUnavailable("its stream was cancelled from within")
                part.result()
        finally:
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)

    async def _subscribe(self, run: _Run) -> None:
        while True:
            await run.resubscribe.wait()
            run.resubscribe.clear()
            run.source.subscribe(run.live)

    async def _read_stream(self, run: _Run) -> None:
        if run.unconfirmed is not None:
            await self._publish(run, run.unconfirmed)
        stream = run.source.stream()
        try:
            async for batch in stream:
                await self._publish(run, batch)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                with contextlib.suppress(RuntimeError):                  # it is closed already, or is closing
                    await close()

    async def _publish(self, run: _Run, batch: Batch) -> None:
        """Publishes a batch. Raises the delivery's error; a batch that may be deliverable later is kept for the next attempt."""
        by: dict[int, list[tuple[bytes | None, bytes]]] = {}
        for symbol, _, value in batch:
            if symbol not in run.live:
                continue
            if len(value) > MAX_TICK_BYTES:
                self._metrics.record_skipped("ticks.raw", "too_large")
                continue
            by.setdefault(self._home(symbol), []).append((symbol.encode(), value))
        run.unconfirmed = batch
        try:
            await self._send_all(self._settings.topic("ticks.raw"), by)
        except Exception as error:
            if not _worth_repeating(error):
                run.unconfirmed = None
                self._metrics.record_skipped("ticks.raw", "undeliverable", sum(map(len, by.values())))
            raise
        run.unconfirmed = None
        if by:
            run.health.delivered()

    async def _describe(self, run: _Run) -> None:
        while True:
            await run.describe.wait()
            run.describe.clear()
            live = run.live
            if len(run.described) + len(live) > 2 * MAX_WATCHED:
                run.described &= live
            new = sorted(live - run.described)
            try:
                for some in (new[at : at + DESCRIBED_AT_ONCE] for at in range(0, len(new), DESCRIBED_AT_ONCE)):
                    infos = await run.source.describe(some)
                    by: dict[int, list[tuple[bytes | None, bytes]]] = {}
                    for info in self._usable(infos, some):
                        by.setdefault(self._home(info.symbol), []).append((info.symbol.encode(), _encode(info)))
                    await self._send_all(self._settings.topic("symbols"), by)
                    run.described.update(some)
            except BaseException:
                run.describe.set()
                raise

    def _usable(self, infos: Iterable[SymbolInfo], requested: Collection[str]) -> list[SymbolInfo]:
        """At most one entry for each requested symbol, with texts cut to their limits."""
        wanted, usable = set(requested), []
        for info in infos:
            if info.symbol not in wanted:
                self._metrics.record_skipped("symbols", "not_asked_for")
                continue
            wanted.discard(info.symbol)
            texts = {name: text[:MAX_TEXT] for name in ("name", "currency", "exchange") if (text := getattr(info, name)) is not None}
            usable.append(msgspec.structs.replace(info, source=info.source[:MAX_SOURCE], **texts))
        return usable

    async def _with_retries(self, what: str, work: Callable[[], Awaitable[None]]) -> None:
        """Retries the work until it succeeds, with growing pauses. Each new reason is logged in one line."""
        wait, logged = FIRST_RETRY_S, ""
        while True:
            started = self._clock.now_ms()
            try:
                return await work()
            except FencedError:
                raise
            except Exception as error:  # noqa: BLE001  no error of this work may affect the ticks
                if self._clock.now_ms() - started >= STEADY_MS:
                    wait, logged = FIRST_RETRY_S, ""
                pause = wait * (0.5 + self._chance() / 2)
                wait = min(2 * wait, LAST_RETRY_S)
                if (reason := reason_of(error)) != logged:
                    logged = reason
                    logger.warning("%s could not be published: %s; next attempt in %.1f s", what, reason, pause)
                await self._clock.sleep(pause)

    async def _send_all(self, topic: str, by: Mapping[int, Messages]) -> None:
        """Sends all messages and waits for their confirmation. Raises the first error, `FencedError` before others."""
        deliveries: list[Awaitable[Any]] = []
        errors: list[BaseException] = []
        for partition in sorted(by):
            try:
                deliveries += await self._send(topic, partition, by[partition])
            except Exception as error:  # noqa: BLE001  raised below, once the messages sent are confirmed or failed
                errors.append(error)
                break
        errors += [answer for answer in await asyncio.gather(*deliveries, return_exceptions=True) if isinstance(answer, BaseException)]
        if errors:
            raise next((error for error in errors if isinstance(error, FencedError)), errors[0])

    def _home(self, symbol: str) -> int:
        return home_partition(symbol, self._settings.partitions)


def _worth_repeating(error: Exception) -> bool:
    """Whether the same messages can be delivered later. Messages that are too large or refused cannot, and would block the source forever."""
    if isinstance(error, KafkaError):
        return bool(error.retriable) or isinstance(error, KafkaTimeoutError)
    return bool(getattr(error, "retriable", False)) or isinstance(error, OSError)


def _trouble_of(source: MarketDataSource) -> Callable[[], str]:
    return lambda: source.health().trouble

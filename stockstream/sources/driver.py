"""Runs one source on a worker: its attempts, the delivery of its ticks, its metadata and its gaps. Whatever it raises or does not answer fails it alone."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable

import msgspec

from stockstream.errors import FencedError, SourceError
from stockstream.metrics import Metrics
from stockstream.records import Gap
from stockstream.skipped import shortened
from stockstream.sources.attempts import end_all, with_retries, within, worth_repeating
from stockstream.sources.base import Batch, Clock, FeedNote, Health, MarketDataSource, SourceUnavailable, SymbolInfo
from stockstream.sources.feeds import FeedBoard, feed_state
from stockstream.sources.gaps import GapTracker, SessionAt, SessionLike
from stockstream.sources.health import SourceHealth, reason_of
from stockstream.sources.publishing import Publisher
from stockstream.sources.takeover import Newest
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TEXT

logger = logging.getLogger(__name__)

START_S, DESCRIBE_S, STOP_S = 30.0, 300.0, 1.5
"""How long a source may take to start, to describe up to DESCRIBED_AT_ONCE symbols, and to stop."""
MAX_TICK_BYTES = 100_000
"""A tick with all texts at their limits has a quarter of this size. A longer tick is skipped, since it could never be delivered."""
DESCRIBED_AT_ONCE = 500
"""How many symbols' metadata is sent together: half a megabyte if every text is at its limit."""
MAX_DESCRIBED = 100_000
"""How many symbols are remembered as described: two times what a worker may watch."""
MAX_GAPS = 100_000
"""How many gaps may wait for the broker: two for each symbol that a worker may watch. Further ones displace the oldest."""

_encode = msgspec.json.Encoder().encode


class _Named(msgspec.Struct):
    source: str


_decode_source = msgspec.json.Decoder(_Named).decode


class Driver:
    """One source with the symbols that it reads on this worker. `run` does the work until it is cancelled.

    Args:
        kind: the source's name in the watchlist.
        source: not started.
        publisher: sends to the home partitions.
        clock: for pauses and times.
        metrics: of the worker.
        chance: returns random numbers from 0 to 1, for the pauses between attempts.
        session_at: knows the sessions of exchanges; None if nothing does.
    """

    def __init__(
        self, kind: str, source: MarketDataSource, publisher: Publisher, clock: Clock, metrics: Metrics, chance: Callable[[], float],
        session_at: SessionAt | None = None,
    ) -> None:  # fmt: skip
        self.kind, self.source = kind, source
        self._publisher, self._clock, self._metrics, self._chance, self._session_at = publisher, clock, metrics, chance, session_at
        self.health = SourceHealth(kind, source.name, metrics, clock.now_ms, chance)
        self.tracker = GapTracker(source.continuous, self.session_of)
        self.board = FeedBoard(kind)
        self.gaps: deque[Gap] = deque(maxlen=MAX_GAPS)
        """Gaps that were found and not published yet."""
        self.gap_found = asyncio.Event()
        self.live: frozenset[str] = frozenset()
        """The symbols that it reads on this worker."""
        self._exchanges: dict[str, str] = {}
        self._notes: dict[str, FeedNote] = {}
        self._resubscribe = asyncio.Event()
        self._describe = asyncio.Event()
        self._described: set[str] = set()
        self._started = asyncio.Event()
        self._streamed = False
        """Whether a stream was opened before, so that the next one comes after a time without ticks."""
        self._lost_at: int | None = None
        """When the last stream failed, epoch ms; None while one is open."""
        self._unconfirmed: Batch | None = None
        """The batch that was sent and not confirmed. The next attempt sends it first, so the log may hold parts of it twice."""

    # ---- symbols

    def assign(self, live: frozenset[str], watched: Collection[str], partitions: int, of: int) -> None:
        """Replaces the symbols that it reads. Those that are watched and not live return later; all others are forgotten."""
        self.tracker.keep(watched)
        self.tracker.interrupt("worker_away", live - self.live, self._clock.now_ms())
        self.board.keep(watched)
        self.live = live
        self.health.assigned(len(live), partitions, of)
        self._resubscribe.set()
        self._describe.set()

    def restrict(self, allowed: Callable[[str], bool]) -> None:
        """Stops sending symbols that are not allowed. The subscription stays."""
        self.live = frozenset(symbol for symbol in self.live if allowed(symbol))

    def take_over(self, symbol: str, newest: Newest) -> None:
        """Takes a symbol over from another worker: the time since its newest row is a gap, if the row is of this source."""
        if newest.source == self.source.name or newest.source.startswith(f"{self.source.name}."):
            self.tracker.restore(symbol, newest.last, newest.usual_ms, self._clock.now_ms())

    def session_of(self, symbol: str, ms: int) -> SessionLike | None:
        """The session of a symbol's exchange at a time in epoch ms; None if it is not known."""
        note = self._notes.get(symbol)
        exchange = (note.exchange if note is not None else None) or self._exchanges.get(symbol)
        return None if exchange is None or self._session_at is None else self._session_at(exchange, ms)

    # ---- state

    def report(self) -> Health:
        """The source's health. One that raises has this as its trouble."""
        try:
            return self.source.health()
        except Exception as error:  # noqa: BLE001  reading a source's health must not end what reads it
            return Health(trouble=f"its health cannot be read: {reason_of(error)}")

    def judge_feeds(self, health: Health, now: int) -> None:
        """Brings the states of the symbols' feeds up to date."""
        self._notes = dict(health.feeds)
        self.tracker.interrupt("halted", [symbol for symbol, note in self._notes.items() if note.state == "halted"], now)
        failure, stopped = self.health.failure, self.health.is_stopped
        for symbol in self.live:
            seen = self.tracker.seen(symbol)
            note = self._notes.get(symbol) if not stopped else None
            feed, reason = feed_state(now, seen, self.session_of(symbol, now), note, failure)
            self.board.set(symbol, feed, shortened(reason), seen.last if seen is not None else None, now)

    # ---- the work

    async def run(self) -> None:
        """Runs the source until cancelled; after it has ended, its metadata. Raises `FencedError`; other errors are retried, and shown by `health`."""
        tasks = [
            asyncio.create_task(self._feed(), name=f"ingest {self.kind}"),
            asyncio.create_task(
                with_retries(f"metadata of {self.kind}", self._publish_metadata, self._clock, self._chance), name=f"ingest {self.kind} metadata"
            ),
        ]
        try:
            await asyncio.gather(*tasks)
        except SourceError as error:                                     # nothing but one with `stops` comes this far
            self.health.stop(error)
        finally:
            await end_all(tasks)
            await self._stop()

    async def _stop(self) -> None:
        self._started.clear()
        try:
            await within(STOP_S, self.source.stop(), "stopping it")
        except Exception as error:  # noqa: BLE001  the source ends anyway
            logger.warning("source %s did not stop cleanly: %s", self.kind, reason_of(error))

    async def _feed(self) -> None:
        """Runs attempts until the source ends, with growing pauses between them. Raises a `SourceError` that stops the source."""
        while True:
            self.health.begin()
            try:
                if not self._started.is_set():
                    await within(START_S, self.source.start(), "starting it")
                    self._started.set()
                await self._attempt()
                self.health.end()
                return
            except FencedError:
                raise
            except Exception as error:
                if isinstance(error, SourceError) and error.stops:
                    raise
                self._lost_at = self._lost_at or self._clock.now_ms()
                await self._clock.sleep(self.health.fail(error))

    async def _attempt(self) -> None:
        """Runs until the source's stream ends. Raises the errors of the stream, its subscription and the delivery."""
        self._resubscribe.clear()
        self.source.subscribe(self.live)
        parts = [asyncio.create_task(self._read_stream()), asyncio.create_task(self._subscribe())]
        try:
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                if part.cancelled():
                    raise SourceUnavailable("its stream was cancelled from within")
                part.result()
        finally:
            await end_all(parts)

    async def _subscribe(self) -> None:
        while True:
            await self._resubscribe.wait()
            self._resubscribe.clear()
            self.source.subscribe(self.live)

    async def _read_stream(self) -> None:
        if self._unconfirmed is not None:
            await self._deliver(self._unconfirmed)
        if self._streamed:
            self.tracker.interrupt("source_away", since=self._lost_at or self._clock.now_ms())
        self._streamed, self._lost_at = True, None
        stream = self.source.stream()
        try:
            async for batch in stream:
                await self._deliver(self._mark_gaps(batch))
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                with contextlib.suppress(RuntimeError):                  # it is closed already, or is closing
                    await close()

    def _mark_gaps(self, batch: Batch) -> Batch:
        """The batch's live ticks; the first one after each gap has `gap_from`. The gaps are kept for `gaps`."""
        live = [place for place, symbol in enumerate(batch.symbols) if symbol in self.live]
        symbols, times, values = [batch.symbols[n] for n in live], [batch.event_times[n] for n in live], [batch.values[n] for n in live]
        gaps: dict[int, Gap] = {}
        places: dict[str, list[int]] = {}
        for place, symbol in enumerate(symbols if batch.gaps else ()):
            places.setdefault(symbol, []).append(place)
        for gap in batch.gaps:
            if gap.symbol in self.live:
                ends = (n for n in places.get(gap.symbol, ()) if times[n] >= gap.to)
                gaps[next(ends, -1 - len(gaps))] = gap                   # without a tick that ends it, it is published all the same
        for place, missed in self.tracker.find(symbols, times, self._clock.now_ms()).items():
            if place not in gaps:
                end = times[place] if missed.end is None else missed.end
                gaps[place] = Gap(symbol=symbols[place], source=self._source_of(values[place]), from_=missed.start, to=end, reason=missed.reason)
        for place, gap in gaps.items():
            if place >= 0 and not self._is_over(gap, times[place]):
                values[place] = _with_gap(values[place], gap.from_)
            self._metrics.gap(self.kind, gap.reason)
        if gaps:
            self.gaps.extend(gaps.values())
            self.gap_found.set()
        return Batch(symbols, times, values)

    def _is_over(self, gap: Gap, time: int) -> bool:
        """Whether the session in which ticks are missing was over before that of the tick: then nothing is missing just before it."""
        session = self.session_of(gap.symbol, time)
        return gap.to < time and session is not None and session.since is not None and gap.to <= session.since

    def _source_of(self, value: bytes) -> str:
        try:
            return _decode_source(value).source
        except msgspec.MsgspecError:
            return self.source.name

    async def _deliver(self, batch: Batch) -> None:
        """Publishes a batch. Raises the delivery's error; a batch that may be deliverable later is kept for the next attempt."""
        sent: list[tuple[str, int, bytes]] = []
        for symbol, time, value in batch:
            if symbol not in self.live:
                continue
            if len(value) > MAX_TICK_BYTES:
                self._metrics.record_skipped("ticks.raw", "too_large")
                continue
            sent.append((symbol, time, value))
        self._unconfirmed = batch
        try:
            await self._publisher.by_symbol("ticks.raw", ((symbol, value) for symbol, _, value in sent))
        except Exception as error:
            if not worth_repeating(error):
                self._unconfirmed = None
                self._metrics.record_skipped("ticks.raw", "undeliverable", len(sent))
            raise
        self._unconfirmed = None
        if sent:
            self.tracker.confirm([symbol for symbol, _, _ in sent], [time for _, time, _ in sent], self._clock.now_ms())
            self.health.delivered()

    # ---- metadata

    async def _publish_metadata(self) -> None:
        while True:
            await self._describe.wait()
            await self._started.wait()
            self._describe.clear()
            live = self.live
            if len(self._described) > MAX_DESCRIBED:
                self._described &= live
            new = sorted(live - self._described)
            try:
                for some in (new[at : at + DESCRIBED_AT_ONCE] for at in range(0, len(new), DESCRIBED_AT_ONCE)):
                    infos = self._usable(await within(DESCRIBE_S, self.source.describe(some), "describing symbols"), some)
                    self._exchanges |= {info.symbol: info.exchange for info in infos if info.exchange}
                    await self._publisher.by_symbol("symbols", ((info.symbol, _encode(info)) for info in infos))
                    self._described.update(some)
            except BaseException:
                self._describe.set()
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


def _with_gap(value: bytes, start: int) -> bytes:
    """The tick with the field `gap_from`. A value that is no JSON object with a field stays as it is: `clean` rejects it."""
    return b'%b,"gap_from":%d}' % (value[:-1], start) if value[-1:] == b"}" and len(value) > 2 else value

"""Yahoo's stream as a source: connections of at most 200 symbols each, whose prices become batches of ticks.

The connections outlive the attempts of whoever reads the stream: while the broker is away, prices wait here, and then in the sockets. A connection that is
lost is no failure of the source: it is opened again on its own, `health` shows it, and its symbols have a gap on record once prices of them come again.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

import aiohttp

from stockstream.limited_log import LimitedLog
from stockstream.records import FeedState, Gap
from stockstream.sources.base import Batch, Budget, Clock, FeedNote, Health, SourceUnavailable, SymbolInfo, SystemClock
from stockstream.sources.gaps import LEAST_AWAY_MS, SessionAt, absence
from stockstream.sources.symbols import exchange_of
from stockstream.sources.yahoo.connection import Connection, Market, Timing
from stockstream.sources.yahoo.frames import NAME, REAL_TIME, Frame, FrameFault, Parse, load_protobuf, read, source_of, tick_of
from stockstream.wording import counted

logger = logging.getLogger(__name__)

SYMBOLS_A_CONNECTION = 200
"""Yahoo publishes no limit of a connection."""
USUAL = Timing()
US = "NMS"
"""The exchange of a symbol that shows none, until its first price: US exchanges have the same sessions."""
SLICE_S = 0.1
"""Prices of this time become one batch."""
MOST_WAITING = 100_000
"""Prices that wait for the reader, 100 s of 1,000 symbols; then the sockets are no longer read, so that the server waits."""
DELAY_MS = 20 * 60_000
"""How far delayed exchanges lag behind: a market that opened within this time is not expected to send prices yet."""
SHOWN_MS = 60_000
"""How long `health` shows that messages could not be read."""
DEAD_S = 60.0
"""A symbol of an open market without a price for so long after a subscription, while others have some: its feed is dead."""

Describe = Callable[[Collection[str]], Awaitable[list[SymbolInfo]]]
Close = Callable[[], Awaitable[None]]


class _Price(NamedTuple):
    symbol: str
    event_time: int
    value: bytes
    gap: Gap | None


class _Feed:
    """What is known of a symbol: its newest price, and whether its connection was lost since then."""

    __slots__ = ("exchange", "key", "losses")

    def __init__(self, exchange: str, losses: int) -> None:
        self.key: tuple[int, float, int] | None = None
        self.exchange = exchange
        self.losses = losses
        """Of its connection, when the newest price came."""


class YahooStream:
    """Yahoo Finance's streaming prices.

    Args:
        url: of the stream, as `STOCKSTREAM_YAHOO_STREAM_URL`.
        clock: for `received_at` and the times in `health`.
        timing: of the connections.
        session_at: the session of an exchange, by its code, at a time in epoch ms; must not wait. An exchange whose session is not known counts as open.
        describe: metadata of symbols, which the stream does not give.
        exchange_of: the exchange of a symbol as far as its name shows it.
        unknown: why Yahoo does not know a symbol, as far as its metadata were requested; empty otherwise.
        budgets: what may still be requested of the service that has the metadata.
        close: closes that service's connections, at the end.
        chance: random numbers from 0 to 1, for the pauses between attempts.
    """

    name = NAME
    continuous = True

    def __init__(
        self, url: str, *, clock: Clock | None = None, timing: Timing = USUAL, session_at: SessionAt | None = None, describe: Describe | None = None,
        exchange_of: Callable[[str], str | None] = exchange_of, unknown: Callable[[str], str] = lambda symbol: "",
        budgets: Callable[[], tuple[Budget, ...]] = tuple, close: Close | None = None,
        chance: Callable[[], float] = random.random, symbols_a_connection: int = SYMBOLS_A_CONNECTION,
    ) -> None:  # fmt: skip
        self._exchange_by_name, self._unknown, self._budgets, self._close = exchange_of, unknown, budgets, close
        self._url, self._clock, self._timing, self._session_at, self._describe, self._chance = url, clock or SystemClock(), timing, session_at, describe, chance
        self._most = symbols_a_connection
        self._wanted: frozenset[str] = frozenset()
        self._feeds: dict[str, _Feed] = {}
        self._of: dict[str, Connection] = {}
        """By symbol: the connection that it is subscribed on."""
        self._tasks: dict[Connection, asyncio.Task[None]] = {}
        self._numbers = 0
        self._session: aiohttp.ClientSession | None = None
        self._parse: Parse | None = None
        self._waiting: deque[_Price] = deque()
        self._arrived, self._room = asyncio.Event(), asyncio.Event()
        self._watching: asyncio.Task[None] | None = None
        self._unreadable: Counter[str] = Counter()
        """Messages that were left out, by reason."""
        self._unreadable_at = 0
        self._log = LimitedLog(lambda: self._clock.now_ms() / 1000)
        self._notes: dict[str, FeedNote] = {}
        """By exchange: the note of a symbol with a price."""

    # ---- the contract of a source

    async def start(self) -> None:
        """Loads the protobuf and opens the connections of the symbols."""
        if self._parse is None:
            try:
                self._parse = await asyncio.to_thread(load_protobuf)
            except ImportError as error:
                raise SourceUnavailable(f"the package yfinance cannot be imported: {error}") from error
        self._room.set()
        if self._session is None:
            self._session = aiohttp.ClientSession()
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch(), name="yahoo outages")
        self._share_out()

    async def stop(self) -> None:
        """Closes all connections, those of the metadata too. Prices that nobody has read are dropped."""
        tasks = [*self._tasks.values(), *([self._watching] if self._watching is not None else [])]
        self._tasks, self._of, self._watching = {}, {}, None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        session, self._session = self._session, None
        if session is not None:
            await session.close()
        self._waiting.clear()
        self._arrived.clear()
        if self._close is not None:
            await self._close()

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the symbols. Those that stay keep their connection."""
        self._wanted = frozenset(symbols)
        for symbol in self._feeds.keys() - self._wanted:
            del self._feeds[symbol]
        if self._session is not None:
            self._share_out()

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """Metadata as `describe` has it; without that, the exchange as far as it is known."""
        if self._describe is not None:
            return await self._describe(symbols)
        known = ((symbol, feed.exchange if (feed := self._feeds.get(symbol)) is not None else self._exchange_by_name(symbol)) for symbol in sorted(symbols))
        return [SymbolInfo(symbol=symbol, source=self.name, exchange=exchange or None) for symbol, exchange in known]

    async def stream(self) -> AsyncIterator[Batch]:
        """Yields the prices of each SLICE_S. Lost connections do not end it: they show in `health`."""
        if self._session is None:
            raise SourceUnavailable("it was not started")
        while True:
            await self._arrived.wait()
            await asyncio.sleep(SLICE_S)
            while self._waiting:
                yield self._take_batch()
            self._arrived.clear()

    def health(self) -> Health:
        """The connections, and the exchange of each symbol with a price; for the others a state, with the reason."""
        trouble = self._trouble()
        if not trouble and self._unreadable and self._clock.now_ms() - self._unreadable_at < SHOWN_MS:
            trouble = "messages that cannot be read are left out: " + ", ".join(f"{count:,} {reason}" for reason, count in self._unreadable.items())
        connections = tuple(connection.health() for connection in self._connections)
        return Health(trouble=trouble, connections=connections, budgets=self._budgets(), feeds=self._feed_notes())

    # ---- connections

    @property
    def _connections(self) -> list[Connection]:
        return list(self._tasks)

    def _share_out(self) -> None:
        """Gives each symbol a connection: new ones go where there is room. A connection without symbols is closed."""
        assert self._session is not None
        shares: dict[Connection, set[str]] = {connection: set() for connection in self._tasks}
        for symbol in self._wanted & self._of.keys():
            shares[self._of[symbol]].add(symbol)
        for symbol in sorted(self._wanted - self._of.keys()):
            at = min(shares, key=lambda connection: len(shares[connection]), default=None)
            if at is None or len(shares[at]) >= self._most:
                self._numbers += 1
                at = Connection(str(self._numbers), self._url, self._take, self._market, self._clock.now_ms, self._timing, self._chance)
                shares[at] = set()
            shares[at].add(symbol)
        self._of = {symbol: connection for connection, symbols in shares.items() for symbol in symbols}
        for connection, symbols in shares.items():
            if symbols:
                connection.subscribe(symbols)
                if connection not in self._tasks:
                    self._tasks[connection] = asyncio.create_task(connection.run(self._session), name=f"yahoo connection {connection.name}")
            else:
                self._tasks.pop(connection).cancel()

    def _market(self, symbols: Collection[str]) -> Market:
        """Whether frames of any of these symbols are expected now."""
        found = {self._state_of(exchange) for exchange in {self._exchange_of(symbol) for symbol in symbols}}
        if found & {"regular", "always", "unknown"}:
            return "open"
        return "thin" if found & {"pre", "post"} else "closed"

    def _state_of(self, exchange: str) -> str:
        """The state of an exchange's session as far as the stream shows it: prices of a delayed one come later than it opens."""
        if self._session_at is None:
            return "unknown"
        now = self._clock.now_ms()
        before = self._session_at(exchange, now - DELAY_MS).state if exchange not in REAL_TIME else ""
        return before if before in ("closed", "holiday") else self._session_at(exchange, now).state

    async def _watch(self) -> None:
        """Logs once that connections are away, and once that all are back."""
        since: float | None = None
        logged = ""
        while True:
            await asyncio.sleep(1.0)
            trouble = self._trouble()
            if trouble and (since is None or (trouble != logged and self._log.due("trouble") is not None)):
                since = since or time.monotonic()
                logged = trouble
                logger.warning("yahoo: %s; it is tried again every few seconds", trouble)
            elif not trouble and since is not None:
                priced = sum(len(connection.symbols) - len(connection.without_price) for connection in self._connections)
                logger.info("yahoo: all connections are back after %.0f s; %d of %d symbols have a price", time.monotonic() - since, priced, len(self._wanted))
                since, logged = None, ""

    def _trouble(self) -> str:
        connections = self._connections
        away = [reason for connection in connections if (reason := connection.away)]
        if not away or (len(away) == len(connections) and all(reason == "not opened yet" for reason in away)):
            return ""
        return f"{len(away)} of {counted(len(connections), 'connection')} to {urlsplit(self._url).hostname} {'is' if len(away) == 1 else 'are'} away: {away[0]}"

    # ---- prices

    async def _take(self, connection: Connection, message: bytes) -> str | None:
        """Takes a text frame of a connection. Returns the symbol whose price it was. Waits while too many prices wait for the reader."""
        assert self._parse is not None
        try:
            frame = read(message, self._parse)
        except FrameFault as fault:
            self._unreadable[fault.reason] += 1
            self._unreadable_at = self._clock.now_ms()
            if (end := self._log.due(fault.reason)) is not None:
                logger.warning("yahoo: a message of the stream is left out, %s%s", fault, end)
            return None
        if frame is None or frame.symbol not in self._wanted:
            return None
        symbol = frame.symbol
        feed = self._feeds.get(symbol)
        if feed is None:
            feed = self._feeds[symbol] = _Feed(self._exchange_by_name(symbol) or "", connection.losses)
        if connection.asked(symbol) and feed.key is not None and (frame.key == feed.key or frame.event_time < feed.key[0]):
            return symbol                                                # the state as it was before, in answer to a subscription
        feed.exchange = frame.exchange or feed.exchange
        if not frame.exchange:
            frame = frame._replace(exchange=feed.exchange)
        source = source_of(feed.exchange)
        gap = None
        if connection.losses != feed.losses and feed.key is not None and frame.event_time > feed.key[0]:
            gap = self._gap(frame, feed, source, connection.lost_at(feed.losses))
        feed.key, feed.losses = frame.key, connection.losses
        self._waiting.append(_Price(symbol, frame.event_time, tick_of(frame, symbol, source, self._clock.now_ms()), gap))
        self._arrived.set()
        if len(self._waiting) >= MOST_WAITING:
            self._room.clear()
            await self._room.wait()
        return symbol

    def _gap(self, frame: Frame, feed: _Feed, source: str, lost_at: int) -> Gap | None:
        """The gap of a symbol whose connection was lost; None if no session was open meanwhile."""
        assert feed.key is not None
        since = lost_at - (0 if feed.exchange in REAL_TIME else DELAY_MS)
        session_at = self._session_at
        found = absence(feed.key[0], frame.event_time, LEAST_AWAY_MS, since, lambda ms: session_at(feed.exchange, ms) if session_at is not None else None)
        if found is None:
            return None
        start, end = found
        return Gap(symbol=frame.symbol, source=source, from_=start, to=frame.event_time if end is None else end, reason="source_away")

    def _take_batch(self) -> Batch:
        """The waiting prices up to the second one of a symbol.

        A batch that the broker did not confirm is sent again. With one price a symbol, each of them then equals the one before it, which makes it a duplicate.
        """
        taken: dict[str, _Price] = {}
        while self._waiting and self._waiting[0].symbol not in taken:
            price = self._waiting.popleft()
            taken[price.symbol] = price
        self._room.set()
        prices = taken.values()
        gaps = [price.gap for price in prices if price.gap is not None]
        return Batch([price.symbol for price in prices], [price.event_time for price in prices], [price.value for price in prices], gaps)

    # ---- what is known of symbols

    def _exchange_of(self, symbol: str) -> str:
        """As the newest price has it; before the first one, as far as the symbol shows it."""
        feed = self._feeds.get(symbol)
        return (feed.exchange if feed is not None else self._exchange_by_name(symbol)) or US

    def _feed_notes(self) -> Mapping[str, FeedNote]:
        now = time.monotonic()
        notes = {}
        away = {connection.name: connection.away for connection in self._connections}
        for symbol, connection in self._of.items():
            exchange = self._exchange_of(symbol)
            if connection.state in ("open", "silent") and symbol not in connection.without_price:
                note = self._notes.get(exchange)
                if note is None:
                    note = self._notes[exchange] = FeedNote(exchange=exchange)
                notes[symbol] = note
            elif reason := self._unknown(symbol):
                notes[symbol] = FeedNote(state="unknown_symbol", reason=reason, exchange=exchange)
            elif connection.state not in ("open", "silent"):
                state: FeedState = "failed" if connection.losses else "waiting"
                notes[symbol] = FeedNote(state=state, reason=f"connection {connection.name}: {connection.reason}", exchange=exchange)
            elif self._market((symbol,)) == "closed":
                notes[symbol] = FeedNote(exchange=exchange)
            elif reason := away.get(connection.name, ""):
                notes[symbol] = FeedNote(state="failed", reason=f"connection {connection.name}: {reason}", exchange=exchange)
            else:
                for_s = now - connection.without_price[symbol]
                dead = for_s > DEAD_S and len(connection.without_price) < len(connection.symbols)
                reason = f"no price in {for_s:.0f} s, though subscribed again and again" if dead else "subscribed, no price yet"
                notes[symbol] = FeedNote(state="feed_dead" if dead else "waiting", reason=reason, exchange=exchange)
        return notes

"""Yahoo polling: the quotes of a small list of symbols, again and again; and the metadata of the symbols of both Yahoo sources."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

import msgspec

from stockstream.errors import SourceError
from stockstream.sources.base import Batch, Clock, FeedNote, Health, SourceUnavailable, SymbolInfo, SystemClock
from stockstream.sources.quota import BudgetSpent
from stockstream.sources.symbols import to_provider
from stockstream.sources.yahoo.query import MAX_SYMBOLS, YahooLimited, YahooQuery
from stockstream.sources.yahoo.quotes import CLOSED, info_of, note_of, tick_of

logger = logging.getLogger(__name__)

NAME = "yahoo_polling"
POLL_S = 15.0
"""The least time between two quotes of a symbol: Yahoo's quotes change every 15 s (`sourceInterval`)."""
CLOSED_S = 300.0
"""The time between two quotes of a symbol whose market is closed."""
UNKNOWN_S = 3_600.0
"""A symbol that Yahoo does not know is requested again after this long."""
IDLE_S = 1.0

_encode = msgspec.json.Encoder().encode


class YahooMetadata:
    """Describes symbols by Yahoo's quotes, and remembers which ones Yahoo does not know."""

    def __init__(self, query: YahooQuery) -> None:
        self._query = query
        self.notes: dict[str, FeedNote] = {}
        """By symbol: its exchange, and whether its market is closed or Yahoo does not know it."""

    async def describe(self, symbols: Collection[str], source: str) -> list[SymbolInfo]:
        """Metadata of the symbols that Yahoo knows, sorted by symbol. Raises `SourceUnavailable`."""
        infos: list[SymbolInfo] = []
        wanted = sorted(symbols)
        for some in (wanted[at : at + MAX_SYMBOLS] for at in range(0, len(wanted), MAX_SYMBOLS)):
            infos += [info_of(quote, symbol, source) for symbol, quote in (await self.quotes(some)).items()]
        return infos

    async def quotes(self, symbols: Sequence[str]) -> dict[str, Mapping[str, Any]]:
        """The quotes of at most MAX_SYMBOLS symbols, by symbol, in their order. Those that Yahoo does not know are left out, and noted."""
        asked: dict[str, str] = {}
        for symbol in symbols:
            try:
                asked[symbol] = to_provider(symbol, "yahoo")
            except SourceError as error:
                self._unknown(symbol, str(error))
        found = await self._query.quotes(list(asked.values()))
        quotes: dict[str, Mapping[str, Any]] = {}
        for symbol, name in asked.items():
            quote = found.get(name) or found.get(name.upper())
            if quote is None:
                self._unknown(symbol, f"Yahoo does not know {name}")
            else:
                quotes[symbol] = quote
                self.notes[symbol] = note_of(quote)
        return quotes

    def unknown(self, symbol: str) -> str:
        """Why Yahoo does not know a symbol; empty if it does, or was not asked."""
        note = self.notes.get(symbol)
        return note.reason if note is not None and note.state == "unknown_symbol" else ""

    def forget(self, wanted: Collection[str]) -> None:
        """Drops the notes of all other symbols."""
        self.notes = {symbol: note for symbol, note in self.notes.items() if symbol in wanted}

    def _unknown(self, symbol: str, reason: str) -> None:
        if self.notes.get(symbol, FeedNote()).state != "unknown_symbol":
            logger.warning("yahoo: %s", reason)
        self.notes[symbol] = FeedNote(state="unknown_symbol", reason=reason)


class YahooPolling:
    """The quotes of the subscribed symbols as snapshots, each symbol at most every POLL_S, and seldom enough that the day's requests last.

    A quote has the time of its symbol's last trade, which for a thinly traded one is long ago. So each symbol has a clock of its own: its ticks have the
    source `yahoo_polling.<symbol>`.
    """

    continuous = False

    def __init__(self, query: YahooQuery, *, clock: Clock | None = None) -> None:
        self._query, self._clock = query, clock or SystemClock()
        self._metadata = YahooMetadata(query)
        self._wanted: frozenset[str] = frozenset()
        self._due: dict[str, int] = {}
        """By symbol: when it is requested next, epoch ms. A symbol that is missing is requested at once."""
        self._sent: dict[str, tuple[int, bytes]] = {}
        """By symbol: event time and content of the last tick."""
        self._limited = ""

    @property
    def name(self) -> str:
        return NAME

    async def start(self) -> None:
        """Nothing to open: a session is created with the first request."""

    async def stop(self) -> None:
        await self._query.stop()

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the symbols. A new one is requested at once."""
        self._wanted = frozenset(symbols)
        self._due = {symbol: due for symbol, due in self._due.items() if symbol in self._wanted}
        self._sent = {symbol: sent for symbol, sent in self._sent.items() if symbol in self._wanted}
        self._metadata.forget(self._wanted)

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        return await self._metadata.describe(symbols, NAME)

    def health(self) -> Health:
        notes = {symbol: note for symbol, note in self._metadata.notes.items() if symbol in self._wanted}
        if self._limited:
            limited = FeedNote(state="rate_limited", reason=self._limited)
            notes = {symbol: note if (note := notes.get(symbol)) and note.state == "unknown_symbol" else limited for symbol in self._wanted}
        return Health(budgets=self._query.quota.budgets(), feeds=notes)

    async def stream(self) -> AsyncIterator[Batch]:
        """Yields the quotes of each request that are new. Raises `SourceUnavailable`."""
        while True:
            some = self._next()
            if not some:
                await self._clock.sleep(IDLE_S)
                continue
            try:
                quotes = await self._metadata.quotes(some)
            except SourceUnavailable as error:
                self._limited = str(error) if isinstance(error, YahooLimited | BudgetSpent) else ""
                raise
            self._limited = ""
            ticks = self._ticks(quotes)
            self._plan(some, quotes)
            if ticks:
                yield Batch(*zip(*ticks, strict=True))

    def _next(self) -> list[str]:
        """The symbols to request now: those that are due longest first."""
        now = self._clock.now_ms()
        due = sorted((self._due.get(symbol, 0), symbol) for symbol in self._wanted if self._due.get(symbol, 0) <= now)
        return [symbol for _, symbol in due[:MAX_SYMBOLS]]

    def _plan(self, asked: Sequence[str], quotes: Mapping[str, Mapping[str, Any]]) -> None:
        now = self._clock.now_ms()
        calls = -(-len(self._wanted) // MAX_SYMBOLS)
        open_s = max(POLL_S, calls * self._seconds_per_request(now))
        for symbol in asked:
            quote = quotes.get(symbol)
            wait = UNKNOWN_S if quote is None else max(open_s, CLOSED_S) if quote.get("marketState") in CLOSED else open_s
            self._due[symbol] = now + round(1000 * wait)

    def _seconds_per_request(self, now: int) -> float:
        """The time between requests with which what is left of the day lasts to its end."""
        today = self._query.quota.today
        return max(0, today.resets_at - now) / 1000 / max(1, today.left) if today is not None else 0.0

    def _ticks(self, quotes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, bytes]]:
        ticks: list[tuple[str, int, bytes]] = []
        for symbol, quote in quotes.items():
            tick = tick_of(quote, symbol, f"{NAME}.{symbol}")
            if tick is None:
                continue
            event_time, content = tick["event_time"], _encode(tick)
            before = self._sent.get(symbol)
            if before is not None and (event_time < before[0] or content == before[1]):
                continue
            self._sent[symbol] = event_time, content
            ticks.append((symbol, event_time, _encode(tick | {"received_at": self._clock.now_ms()})))
        return ticks

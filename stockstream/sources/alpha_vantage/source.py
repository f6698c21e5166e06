"""Quotes of Alpha Vantage as ticks, requested one symbol after the other within the budget of the user's plan.

A plan with a limit per day (the free one) gets one symbol per request (GLOBAL_QUOTE); one without gets up to 100 (REALTIME_BULK_QUOTES), or one if it does
not include those. `rotation` decides which symbol a request is spent on, `quota` whether one may be made.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Collection
from datetime import date, datetime

import msgspec

from stockstream.errors import SourceError
from stockstream.sources.alpha_vantage.answers import ZONE, AnswerError, Quote, bulk_quotes_of, quote_of, us_market_is_open
from stockstream.sources.alpha_vantage.client import Client
from stockstream.sources.alpha_vantage.rotation import CLOSING_LOOK_MS, Choice, Hours, choose
from stockstream.sources.base import Batch, Clock, FeedNote, FeedState, Health, SourceUnavailable, SymbolInfo
from stockstream.sources.quota import SHARED, BudgetSpent, Grant, Scheduler, shared_refusal
from stockstream.sources.sessions import Sessions
from stockstream.sources.symbols import exchange_of, to_provider
from stockstream.wording import clock_time

logger = logging.getLogger(__name__)

NAME = "alpha_vantage"
US = "XNYS"
"""The calendar of a symbol without a suffix."""
AT_ONCE = 100
"""The most symbols of a request for bulk quotes. The provider ignores further ones."""
UNKNOWN_MS = 24 * 3_600_000
"""A symbol that the provider does not know is requested again after this long, or if it is put on the watchlist again."""
OF_THE_ANSWER = frozenset(("html", "status", "invalid", "refused", "timeout", "broken"))
"""Errors that may be of one symbol."""
STATUS_MS = 15 * 60_000
CHECK_S = 30.0
"""The longest wait before the symbols and the log of requests are looked at again."""
FRESH_MS = 3_600_000
"""After a quote, its symbol counts as fresh for so long."""
DAY_MS = 86_400_000

_encode = msgspec.json.Encoder().encode


class AlphaVantageSource:
    """Alpha Vantage as a polled source.

    The ticks are snapshots. `day_volume` is the trading day's volume so far, `session` the trading day. Symbols of exchanges outside the US have a clock of
    their own: their ticks have the source `alpha_vantage.<exchange>`.

    Args:
        client: makes the requests.
        scheduler: of the plan's budget.
        clock: the machine's, or a test's.
        sessions: of the exchanges.
        has_key: whether the user has set a key. Without one the stream ends with an error that stops the source.
    """

    continuous = False

    def __init__(self, client: Client, scheduler: Scheduler, *, clock: Clock, sessions: Sessions, has_key: bool = True) -> None:
        self.name = NAME
        self._client, self._scheduler, self._clock, self._sessions, self._has_key = client, scheduler, clock, sessions, has_key
        self._symbols: frozenset[str] = frozenset()
        self._names: dict[str, str] = {}
        """The provider's names of the symbols that it can have."""
        self._changed = asyncio.Event()
        self._bulk = scheduler.limits.day is None
        self._again: set[str] = set()
        """Symbols whose last request failed for a reason that is not theirs: they are requested at once."""
        self._failed: set[str] = set()
        """Symbols whose last answer could not be used. After a second one in a row a symbol waits for its turn: it takes no requests of the others."""
        self._unknown: dict[str, int] = {}
        """When the provider reported that it does not have the symbol, or not in the plan, epoch ms."""
        self._notes: dict[str, FeedNote] = {}
        """Of symbols that cannot be quoted."""
        self._quoted: dict[str, tuple[str, int, int]] = {}
        """Of the last quote: its trading day, the delay that the provider states, ms, and when it came, epoch ms."""
        self._previous_closes: dict[str, float] = {}
        self._sent: dict[str, tuple[int, float, float | None]] = {}
        self._us_closed = False
        self._status_at = 0

    async def start(self) -> None:
        """Nothing to open: the connections are opened by the first request."""

    async def stop(self) -> None:
        """Closes the connections to the provider and to the log of requests."""
        await self._client.stop()
        await self._scheduler.stop()

    def subscribe(self, symbols: Collection[str]) -> None:
        """See `MarketDataSource`."""
        wanted = frozenset(symbols)
        if wanted == self._symbols:
            return
        for symbol in self._symbols - wanted:
            for table in (self._unknown, self._notes, self._quoted, self._sent, self._previous_closes):
                table.pop(symbol, None)
            self._again.discard(symbol)
            self._failed.discard(symbol)
            self._names.pop(symbol, None)
        for symbol in wanted - self._symbols:
            try:
                self._names[symbol] = _name_of(symbol)
            except SourceError as error:
                self._notes[symbol] = FeedNote(state="unknown_symbol", reason=str(error), exchange=exchange_of(symbol) or US)
                logger.warning("%s is not requested: %s", symbol, error)
        self._symbols = wanted
        self._changed.set()

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """What is known without a request: exchange and currency as far as the symbol shows them, and the previous close once it was quoted."""
        known = sorted(set(symbols) & self._names.keys())
        return [
            SymbolInfo(
                symbol=symbol, source=self.name, exchange=exchange_of(symbol), currency=None if exchange_of(symbol) else "USD",
                previous_close=self._previous_closes.get(symbol),
            )
            for symbol in known
        ]  # fmt: skip

    def health(self) -> Health:
        """See `MarketDataSource`."""
        blocked = self._scheduler.blocked()
        hours = {exchange: self._hours_of(exchange) for exchange in {exchange_of(symbol) or US for symbol in self._symbols}}
        today = self._day_of(self._clock.now_ms())
        asked = self._scheduler.asked()
        feeds = {symbol: self._note(symbol, hours[exchange_of(symbol) or US], blocked, today, asked.get(symbol)) for symbol in self._symbols}
        return Health(trouble=str(blocked or ""), budgets=self._scheduler.budgets(), feeds=feeds)

    def _note(self, symbol: str, hours: Hours | None, blocked: BudgetSpent | None, today: str, asked: int | None) -> FeedNote:
        exchange, quoted = exchange_of(symbol) or US, self._quoted.get(symbol)
        if symbol in self._notes:
            return self._notes[symbol]
        if quoted is not None and hours is None:
            return FeedNote(exchange=exchange)                           # there is nothing newer to get
        if blocked is not None:
            return FeedNote(state="rate_limited" if blocked.refusal in SHARED else "failed", reason=str(blocked), exchange=exchange)
        if quoted is None:
            if hours is None or asked is None or symbol in self._again:
                return FeedNote(exchange=exchange)
            return FeedNote(state="waiting", reason=f"requested before this worker, at {clock_time(asked)}; again when its turn comes", exchange=exchange)
        day, delay_ms, at = quoted
        if day < today:
            return FeedNote(state="quiet", reason=f"Alpha Vantage's last price is of {day}", exchange=exchange)
        if self._clock.now_ms() - at > FRESH_MS:
            return FeedNote(state="quiet", reason=f"last requested at {clock_time(at)}", exchange=exchange)
        return FeedNote(state="fresh", reason=f"delayed by {delay_ms // 60_000} min" if delay_ms else "", exchange=exchange)

    async def stream(self) -> AsyncIterator[Batch]:
        """See `MarketDataSource`. A wrong key raises an error that stops the source; a refusal for lack of budget raises none, `health` has it."""
        if not self._has_key:
            raise AnswerError("key")
        while True:
            self._changed.clear()
            if not self._names:
                await self._wait(CHECK_S)
                continue
            await self._scheduler.refresh()
            await self._ask_market_status()
            await self._load_hours()
            choice, now = self._choose(), self._clock.now_ms()
            if not choice.symbols or choice.due > now:
                await self._wait((choice.due - now) / 1000 if choice.symbols else CHECK_S)
                continue
            try:
                grant = await self._scheduler.acquire(choice.symbols)
            except BudgetSpent as spent:
                await self._wait((spent.until - now) / 1000)
                continue
            batch = await self._request(grant)
            if len(batch):
                yield batch

    # ---- which symbols, and when

    def _choose(self) -> Choice:
        now = self._clock.now_ms()
        self._unknown = {symbol: since for symbol, since in self._unknown.items() if now - since < UNKNOWN_MS}
        symbols = self._names.keys() - self._unknown.keys()
        asked = {symbol: at for symbol, at in self._scheduler.asked().items() if symbol not in self._again}
        return choose(
            symbols, asked, now, self._hours, left=self._scheduler.left_today, newest=self._scheduler.newest, at_once=AT_ONCE if self._bulk else 1,
        )  # fmt: skip

    def _hours(self, symbol: str) -> Hours | None:
        return self._hours_of(exchange_of(symbol) or US)

    def _hours_of(self, exchange: str) -> Hours | None:
        now = self._clock.now_ms()
        for moment in (now, now - CLOSING_LOOK_MS):
            session = self._sessions.at(exchange, moment)
            if exchange == US and self._us_closed and moment == now and session.state == "regular":
                return None
            if session.state in ("regular", "always", "unknown"):
                day = now - now % DAY_MS
                return Hours(session.since or day, session.until or day + DAY_MS)
        return None

    async def _load_hours(self) -> None:
        for exchange in {exchange_of(symbol) or US for symbol in self._names}:
            if self._sessions.at(exchange, self._clock.now_ms()).state == "unknown":
                await asyncio.to_thread(self._sessions.wait_at, exchange, self._clock.now_ms())

    async def _ask_market_status(self) -> None:
        """Without a limit per day: whether the US market is open, which may differ from its calendar."""
        if self._scheduler.limits.day is not None or self._clock.now_ms() - self._status_at < STATUS_MS:
            return
        try:
            grant = await self._scheduler.acquire()
        except BudgetSpent:
            return
        self._status_at = self._clock.now_ms()
        try:
            self._us_closed = us_market_is_open(await self._client.ask("MARKET_STATUS")) is False
        except AnswerError as error:
            self._us_closed = False
            if error.kind not in ("premium", "symbol", "refused", "invalid"):            # without it, the calendar has to do
                await self._refused(error, grant)

    async def _wait(self, seconds: float) -> None:
        """Waits, at most CHECK_S and only until the symbols change."""
        sleeping = asyncio.ensure_future(self._clock.sleep(min(max(seconds, 0.05), CHECK_S)))
        changing = asyncio.ensure_future(self._changed.wait())
        try:
            await asyncio.wait((sleeping, changing), return_when=asyncio.FIRST_COMPLETED)
        finally:
            sleeping.cancel()
            changing.cancel()

    # ---- a request

    async def _request(self, grant: Grant) -> Batch:
        """The ticks of one request; none if it was refused. Raises the refusals that end an attempt."""
        theirs = {self._names[symbol]: symbol for symbol in grant.symbols if symbol in self._names}
        if not theirs:                                                   # removed from the watchlist while the request waited for its turn
            await self._scheduler.give_back(grant)
            return Batch((), (), ())
        self._again.difference_update(grant.symbols)
        try:
            if self._bulk:
                quotes, missing = bulk_quotes_of(await self._client.ask("REALTIME_BULK_QUOTES", symbol=",".join(theirs)), list(theirs))
            else:
                (asked,) = theirs
                quotes, missing = [quote_of(await self._client.ask("GLOBAL_QUOTE", symbol=asked), asked)], []
        except AnswerError as error:
            await self._refused(error, grant)
            return Batch((), (), ())
        await self._scheduler.report(None)
        self._failed.difference_update(grant.symbols)
        for name in missing:
            self._set_unknown(theirs[name], AnswerError("symbol", name))
        return await self._ticks([(theirs[quote.symbol], quote) for quote in quotes])

    async def _refused(self, error: AnswerError, grant: Grant) -> None:
        if error.kind == "symbol" and len(grant.symbols) == 1:
            self._set_unknown(grant.symbols[0], error)
            await self._scheduler.report(None)
            return
        if error.kind == "premium" and self._bulk and grant.symbols:
            self._bulk = False
            logger.warning("the plan of the Alpha Vantage key has no bulk quotes: symbols are requested one by one")
            self._again.update(grant.symbols)
            return
        if error.kind == "premium" and grant.symbols:
            for symbol in grant.symbols:
                self._set_unknown(symbol, error, "not_permitted")
            await self._scheduler.report(None)
            return
        if error.kind in OF_THE_ANSWER:
            self._again.update(set(grant.symbols) - self._failed)
            self._failed.update(grant.symbols)
        else:
            self._again.update(grant.symbols)
        if error.kind == "unsent":
            await self._scheduler.give_back(grant)
            raise SourceUnavailable(str(error)) from None
        if error.kind == "key":
            await self._scheduler.give_back(grant)                       # else its symbols would wait for their turn once the key is right
            raise error
        refusal = shared_refusal(error.kind) or "unanswered"
        await self._scheduler.report(refusal, retry_after_s=error.retry_after_s, reason=str(error))
        if refusal == "unanswered":
            raise SourceUnavailable(str(error)) from None
        logger.warning("%s", self._scheduler.blocked() or error)

    def _set_unknown(self, symbol: str, error: AnswerError, state: FeedState = "unknown_symbol") -> None:
        self._unknown[symbol] = self._clock.now_ms()
        self._notes[symbol] = FeedNote(state=state, reason=str(error), exchange=exchange_of(symbol) or US)
        logger.warning("%s is requested again tomorrow, or if it is added to the watchlist again: %s", symbol, error)

    # ---- ticks

    async def _ticks(self, quotes: list[tuple[str, Quote]]) -> Batch:
        """In the order of time. A quote that equals the last one of its symbol gives no tick."""
        now = self._clock.now_ms()
        found: list[tuple[int, str, bytes]] = []
        for symbol, quote in quotes:
            exchange = exchange_of(symbol)
            moment = quote.at if quote.at is not None else await self._time_of(quote, exchange or US, now)
            moment = min(moment, now)
            if quote.previous_close is not None:
                self._previous_closes[symbol] = quote.previous_close
            day = quote.day or self._day_of(moment)
            self._notes.pop(symbol, None)
            self._quoted[symbol] = day, quote.delay_ms, now
            content = moment, quote.price, quote.volume
            if self._sent.get(symbol) == content or symbol not in self._symbols:
                continue
            self._sent[symbol] = content
            volume = {"size": 0} if quote.volume is None else {"day_volume": quote.volume}
            found.append((moment, symbol, _encode({
                "symbol": symbol, "event_time": moment, "price": quote.price, **volume, "source": f"{NAME}.{exchange}" if exchange else NAME,
                "session": f"regular {day}", "snapshot": True, "received_at": now,
            })))  # fmt: skip
        found.sort(key=lambda tick: tick[:2])
        return Batch([symbol for _, symbol, _ in found], [moment for moment, _, _ in found], [value for _, _, value in found])

    @staticmethod
    def _day_of(ms: int) -> str:
        return datetime.fromtimestamp(ms / 1000, ZONE).date().isoformat()

    async def _time_of(self, quote: Quote, exchange: str, now: int) -> int:
        """The event time of a quote that names only its day: as late as its price can be, never later.

        That is the close of its day, or the present less the delay that the provider states, if the day has not closed by then.
        """
        close = await asyncio.to_thread(self._close, date.fromisoformat(quote.day), exchange)
        return min(close - 1, now - quote.delay_ms)

    def _close(self, day: date, exchange: str) -> int:
        """When the exchange closed on a day, epoch ms; 16:00 in New York if its calendar does not have it."""
        begin = round(datetime(day.year, day.month, day.day, tzinfo=ZONE).timestamp() * 1000) // DAY_MS * DAY_MS
        ends = [
            session.until for hour in range(24)
            if (session := self._sessions.wait_at(exchange, begin + hour * 3_600_000)).state == "regular" and session.until is not None
        ]  # fmt: skip
        known = [end for end in ends if end <= begin + DAY_MS]
        return max(known) if known else round(datetime(day.year, day.month, day.day, 16, tzinfo=ZONE).timestamp() * 1000)


def _name_of(symbol: str) -> str:
    """The symbol as Alpha Vantage writes it. Raises `SourceError` for what its quotes do not include, so that no request is spent on it."""
    if symbol.startswith("^") or "=" in symbol or exchange_of(symbol) == "CCC":
        raise SourceError("Alpha Vantage has quotes of shares and funds, not of indices, currencies, futures and coins")
    return to_provider(symbol, NAME)

"""One WebSocket to Yahoo's stream: subscribed, watched, and opened again for ever.

yfinance's own client cannot run unattended: it does not reconnect after a lost socket, and spins after a clean close. Here

- a subscription counts for a symbol once a price of it comes: the others are subscribed again after `proof_s`, then with every client message;
- a client message goes out every `message_s` (the server falls silent after 20 to 25 minutes without one): the whole list of symbols;
- a socket that falls silent is subscribed again, and closed after a patience that knows how often frames usually come, and whether a market is open;
- pauses between attempts grow, with jitter, and start over only after a price has come.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Literal

import aiohttp
import msgspec

from stockstream.records import Connection as ConnectionState

logger = logging.getLogger(__name__)

Market = Literal["open", "thin", "closed"]
"""Whether frames are expected: all the time, now and then (before and after the regular session), or not at all."""
Take = Callable[["Connection", bytes], Awaitable[str | None]]


@dataclass(frozen=True, slots=True)
class Timing:
    """All times of a connection, in seconds. Tests use shorter ones."""

    connect_s: float = 3.0
    """For an attempt, until the socket is open. What it has taken counts as pause."""
    message_s: float = 15.0
    proof_s: tuple[float, ...] = (2.0, 4.0, 8.0)
    """After a subscription, when the symbols without a price are subscribed again."""
    patience_s: float = 3.0
    """The least silence of an open market that ends a connection. It takes a longer one if the usual and the longest times between frames ask for it."""
    thin_patience_s: float = 60.0
    most_patience_s: float = 120.0
    """The least silence doubles with each connection that ended so, up to this, until one has lasted for `steady_s`: no slow feed is cut off for ever."""
    steady_s: float = 60.0
    first_pause_s: float = 0.25
    last_pause_s: float = 3.0
    """Short, so that all symbols are back within 5 s of the server."""
    refused_pause_s: float = 60.0
    """The longest pause once the server has refused `short_refusals` attempts in a row by status 401, 403 or 429."""
    short_refusals: int = 10
    """A shorter refusal, of about 20 s, delays the symbols no more than other faults."""
    ping_s: float = 20.0
    """Without data for so long, a ping; without its answer for half as long, the socket is dead. Finds half-open sockets while no market is open."""
    check_s: float = 0.25


LOSSES_KEPT = 1_000
USUAL_TIMES, LONGEST_TIMES = 20, 3
"""Patience in usual times between frames, and in the longest of about the last minute."""
REFUSED = (401, 403, 429)
MAX_FRAME_BYTES = 1 << 20

_encode = msgspec.json.Encoder().encode


class _Lost(Exception):
    """The connection ended, or could not be opened. The text is the reason in one line."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class Connection:
    """Keeps a socket open for up to some hundred symbols.

    Args:
        name: a number, for log lines and health.
        url: of the stream.
        take: called with each text frame; returns the symbol whose price it was, None if it was none. Awaited, so that it may hold the reader back.
        market: whether frames of these symbols are expected now.
        now_ms: epoch ms.
    """

    def __init__(
        self, name: str, url: str, take: Take, market: Callable[[Collection[str]], Market], now_ms: Callable[[], int], timing: Timing,
        chance: Callable[[], float] = random.random,
    ) -> None:  # fmt: skip
        self.name, self._url, self._take, self._market, self._now_ms, self._timing, self._chance = name, url, take, market, now_ms, timing, chance
        self.symbols: frozenset[str] = frozenset()
        """As Yahoo names them."""
        self.without_price: dict[str, float] = {}
        """Symbols that were subscribed on this socket and have had no price since, with the time of the first subscription (monotonic)."""
        self.state: Literal["connecting", "open", "silent", "closed"] = "closed"
        self.reason = "not opened yet"
        self.since = now_ms()
        self.losses = 0
        """How often the socket was lost, or could not be opened."""
        self._lost_at: deque[int] = deque(maxlen=LOSSES_KEPT)
        """When, epoch ms; the newest ones."""
        self._changed = asyncio.Event()
        self._held = False
        """Whether `take` holds the reader back."""
        self._last_message: float | None = None
        self._last_message_at: int | None = None
        self._away_since: float | None = None
        """Since when no price has come because the socket was lost; None while prices come."""
        self._lost_in_session = False
        self._lost_reason = ""
        self._usual_s = 0.0
        """The usual time between frames, as a moving average."""
        self._longest_s = 0.0
        self._opened = self._watched = 0.0
        self._silences = 0
        """Connections that ended by silence since one was steady."""
        self._failures = 0
        """Attempts in a row that brought no price."""
        self._sent: frozenset[str] = frozenset()
        self._asked: set[str] = set()

    def health(self) -> ConnectionState:
        reason = self.reason
        if self.state in ("open", "silent") and self.without_price:
            reason = f"{len(self.without_price)} of {len(self.symbols)} symbols without a price yet"
        return ConnectionState(
            name=self.name, state=self.state, symbols=len(self.symbols), since=self.since, last_message_at=self._last_message_at, reason=reason,
        )  # fmt: skip

    @property
    def away(self) -> str:
        """Why no prices come: the socket is not open, or was opened again in an open session without a price since. Empty if they do."""
        if self.state not in ("open", "silent"):
            return self._lost_reason or self.reason
        back = self._away_since is None or not self._lost_in_session or self._market(self.symbols) != "open"
        return "" if back else self._lost_reason

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the symbols. Takes effect at once if the socket is open."""
        self.symbols = frozenset(symbols)
        self.without_price = {symbol: since for symbol, since in self.without_price.items() if symbol in self.symbols}
        self._changed.set()

    def asked(self, symbol: str) -> bool:
        """Whether a frame of the symbol may be the answer to a subscription: the state as it was, sent again. True once for each subscription."""
        if symbol in self._asked:
            self._asked.discard(symbol)
            return True
        return False

    def lost_at(self, losses: int) -> int:
        """When the socket was lost after so many losses, epoch ms; the oldest time known if that is longer ago. There must be a later loss."""
        return self._lost_at[max(losses - self.losses, -len(self._lost_at))]

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Opens the socket, again and again, until cancelled."""
        pause_s = self._timing.first_pause_s
        while True:
            begun, refused = time.monotonic(), False
            try:
                await self._attempt(session)
            except _Lost as lost:
                reason, refused = str(lost), lost.refused
            except Exception as error:  # noqa: BLE001  whatever it was, this connection alone tries again
                reason = f"{type(error).__name__}: {error}"
            if self._failures == 0:
                pause_s = self._timing.first_pause_s
            self._failures += 1
            if self._away_since is None:
                self._away_since = time.monotonic()
                self._lost_in_session = self._market(self.symbols) == "open"
            self.losses += 1
            self._lost_at.append(self._now_ms())
            self._lost_reason = reason
            self._change("closed", reason)
            pause = pause_s * (0.5 + self._chance() / 2)
            patient = refused and self._failures > self._timing.short_refusals
            pause_s = min(2 * pause_s, self._timing.refused_pause_s if patient else self._timing.last_pause_s)
            await asyncio.sleep(max(pause - (time.monotonic() - begun if self._failures > 1 else 0.0), 0.0))

    # ---- one attempt

    async def _attempt(self, session: aiohttp.ClientSession) -> None:
        """Until the socket is lost: always ends with `_Lost`, or another error."""
        self._change("connecting", self.reason)
        socket = await self._open(session)
        try:
            self._change("open", "")
            self._opened = self._last_message = self._watched = time.monotonic()
            self._held = False
            self._sent, self._asked, self.without_price = frozenset(), set(), {}
            parts = [asyncio.create_task(self._read(socket)), asyncio.create_task(self._keep(socket))]
            try:
                done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                for part in done:
                    part.result()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.gather(*parts, return_exceptions=True)
        finally:
            await socket.close()
        raise _Lost("the connection ended")

    async def _open(self, session: aiohttp.ClientSession) -> aiohttp.ClientWebSocketResponse[bool]:
        try:
            async with asyncio.timeout(self._timing.connect_s):
                return await session.ws_connect(
                    self._url, heartbeat=self._timing.ping_s, max_msg_size=MAX_FRAME_BYTES, decode_text=False, timeout=aiohttp.ClientWSTimeout(ws_close=0.5),
                )  # fmt: skip
        except TimeoutError as error:
            raise _Lost(f"no answer within {self._timing.connect_s:g} s") from error
        except aiohttp.WSServerHandshakeError as error:
            raise _Lost(f"the server answers with status {error.status} instead of a WebSocket", refused=error.status in REFUSED) from error
        except aiohttp.ClientConnectorError as error:
            raise _Lost(f"cannot connect: {error.strerror or error.os_error}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Lost(f"cannot connect: {error}") from error

    async def _read(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        while True:
            message = await socket.receive()
            if message.type is aiohttp.WSMsgType.TEXT:
                before, self._last_message = self._last_message, time.monotonic()
                self._last_message_at = self._now_ms()
                self._held = True
                symbol = await self._take(self, message.data)
                self._held = False
                if symbol is not None:
                    self._price_came(symbol, self._last_message - (before or self._last_message))
            elif message.type in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED):
                raise _Lost(f"closed by the server (code {socket.close_code})" if message.type is aiohttp.WSMsgType.CLOSE else "the connection broke")
            elif message.type is aiohttp.WSMsgType.ERROR:
                raise _Lost(f"the connection broke: {message.data or socket.exception()}")

    def _price_came(self, symbol: str, over_s: float) -> None:
        self._usual_s += (over_s - self._usual_s) / 50
        self._longest_s = max(over_s, self._longest_s * (1 - min(over_s / self._timing.steady_s, 1)))
        if self._silences and time.monotonic() - self._opened > self._timing.steady_s:
            self._silences = 0
        self.without_price.pop(symbol, None)
        if self._away_since is not None:
            logger.info("yahoo: connection %s is back after %.1f s, which began with: %s", self.name, time.monotonic() - self._away_since, self._lost_reason)
            self._away_since = None
        self._failures = 0
        if self.state == "silent":
            self._change("open", "")

    async def _keep(self, socket: aiohttp.ClientWebSocketResponse[bool]) -> None:
        """Subscribes, verifies the subscriptions, sends the client message, and watches for silence. Raises `_Lost` for a silence that is too long."""
        timing = self._timing
        proofs: list[float] = []
        next_message = time.monotonic()
        while True:
            now = time.monotonic()
            if self._changed.is_set() or self._sent != self.symbols:
                self._changed.clear()
                if gone := self._sent - self.symbols:
                    await self._send(socket, "unsubscribe", gone)
                if new := self.symbols - self._sent:
                    await self._send(socket, "subscribe", new)
                    self.without_price |= dict.fromkeys(new, now)
                    proofs = [now + after for after in timing.proof_s]
                    next_message = now + timing.message_s
                self._sent = self.symbols
            elif proofs and now >= proofs[0]:
                proofs.pop(0)
                if self.without_price:
                    await self._send(socket, "subscribe", self.without_price)
            elif now >= next_message:
                next_message = now + timing.message_s
                if self.without_price:
                    await self._send(socket, "unsubscribe", self.without_price)
                await self._send(socket, "subscribe", self.symbols)
            if self._watch(now):
                await self._send(socket, "subscribe", self.symbols)
            wake = min(now + timing.check_s, next_message, *proofs[:1])
            try:
                async with asyncio.timeout(max(wake - time.monotonic(), 0.001)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _watch(self, now: float) -> bool:
        """Whether the socket has just fallen silent, so that its subscription may be forgotten. Raises `_Lost` for a silence that is too long."""
        stalled, self._watched = now - self._watched > 2 * self._timing.check_s + 0.1, now
        if self._held or stalled:
            self._last_message = now                                     # nobody has read: no silence of the server
        silence = now - (self._last_message or now)
        if silence < self._timing.patience_s / 2 or (market := self._market(self.symbols)) == "closed":
            return False
        least = self._timing.patience_s if market == "open" else self._timing.thin_patience_s
        patience = min(least * 2 ** min(self._silences, 10), max(self._timing.most_patience_s, least))
        patience = max(patience, min(max(USUAL_TIMES * self._usual_s, LONGEST_TIMES * self._longest_s), self._timing.most_patience_s))
        if silence > patience:
            self._silences += 1
            raise _Lost("it is silent while a market is open")
        fell_silent = silence > patience / 2 and self.state == "open"
        if silence > patience / 2:
            self._change("silent", f"no frame for {silence:.0f} s")
        return fell_silent

    async def _send(self, socket: aiohttp.ClientWebSocketResponse[bool], what: str, symbols: Collection[str]) -> None:
        if what == "subscribe":
            self._asked.update(symbols)
        try:
            async with asyncio.timeout(self._timing.connect_s):
                await socket.send_str(_encode({what: sorted(symbols)}).decode())
        except (TimeoutError, OSError, aiohttp.ClientError) as error:
            raise _Lost(f"cannot write to the connection: {error or type(error).__name__}") from error

    def _change(self, state: Literal["connecting", "open", "silent", "closed"], reason: str) -> None:
        if state != self.state:
            self.since = self._now_ms()
        self.state, self.reason = state, reason

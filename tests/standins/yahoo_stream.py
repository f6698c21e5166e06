"""A stand-in for Yahoo's stream of prices: WebSocket, subscriptions and frames as the real one has them, with its quirks, and faults on demand.

    python -m tests.standins.yahoo_stream --port 8765
    STOCKSTREAM_YAHOO_STREAM_URL=ws://127.0.0.1:8765/?version=2 STOCKSTREAM_SOURCE=yahoo STOCKSTREAM_SYMBOLS=AAPL,VOD.L,BTC-USD stockstream worker
    curl -X POST '127.0.0.1:8765/fault?kind=half_open&seconds=10'
    curl 127.0.0.1:8765/state

It accepts any symbol but those of `unknown`, on which it is silent. Its market goes on while nobody listens: a random walk of prices, and a day volume that
rises by what is traded. As at Yahoo, times are whole seconds, prices float32, zero values absent, and a frame without `?version=2` is the bare base64.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import json
import random
import time
from collections.abc import AsyncIterator, Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from aiohttp import WSMsgType, web
from yfinance.pricing_pb2 import PricingData

Fault = Literal[
    "silence", "close", "abort", "half_open", "refuse", "forget", "partial", "slow", "bad_base64", "bad_json", "bad_protobuf", "other_types", "heartbeats",
    "binary", "no_price",
]  # fmt: skip
MEANING: dict[str, str] = {
    "silence": "all sockets stay open and get nothing",
    "close": "all sockets are closed with code 1000, new ones refused with 503",
    "abort": "all sockets are reset, new ones too",
    "half_open": "no socket is read or written any more, not even closed; new ones get no answer. The old ones stay dead when it is over",
    "refuse": "new sockets are refused with 429",
    "forget": "all subscriptions are forgotten once, without a word",
    "partial": "of a subscription only every second symbol counts",
    "slow": "frames come in bursts, one every SLOW_S",
    "bad_base64": "a message that is no base64 after each frame", "bad_json": "likewise, no JSON", "bad_protobuf": "likewise, no PricingData",
    "other_types": "likewise, of types that are not pricing", "heartbeats": "likewise, with quote_type 7", "binary": "likewise, binary",
    "no_price": "likewise, a PricingData without a price",
}  # fmt: skip

SLICES_A_SECOND = 20
SLOW_S = 2.0
SUFFIXES = {"L": ("LSE", "GBp"), "T": ("JPX", "JPY"), "HK": ("HKG", "HKD"), "DE": ("GER", "EUR"), "TO": ("TOR", "CAD"), "PA": ("PAR", "EUR")}
HOURS = {"pre": 0, "regular": 1, "post": 2, "extended": 3, "overnight": 4}
EQUITY, INDEX, CURRENCY, CRYPTO = 8, 9, 14, 41


@dataclass(slots=True)
class Stock:
    """What the market knows of a symbol. The price is in hundredths."""

    symbol: str
    exchange: str
    currency: str
    quote_type: int
    cents: int
    day_volume: int
    last_size: int = 0
    at: int = 0
    """Epoch ms of its newest frame."""
    first_volume: int = -1
    """The day volume of its first frame that was sent to anybody."""
    last_volume: int = -1
    """Likewise of its newest."""
    sent: int = 0
    """Frames of it that were sent, once for each socket."""


@dataclass(eq=False)
class Client:
    """One socket."""

    socket: web.WebSocketResponse
    enveloped: bool
    symbols: set[str] = field(default_factory=set)
    dead: bool = False
    heard_at: float = 0.0
    queue: list[str] = field(default_factory=list)


class YahooStream:
    """The server: use as an asynchronous context. `url` is what STOCKSTREAM_YAHOO_STREAM_URL takes.

    Args:
        rate: frames of each symbol a second.
        hours: which session the market is in; only the regular one has a day volume.
        unknown: symbols of which there is nothing.
        answers: whether a subscription is answered with the newest frame of each symbol that has one.
        equal: the part of frames that are sent twice.
        idle_s: without a message of the client for so long, a socket gets nothing more.
        journal: a file that gets a line for each frame sent: symbol, event time, day volume, epoch ms.
        seed: of the market.
    """

    def __init__(
        self, *, port: int = 0, rate: float = 1.0, hours: str = "regular", unknown: Collection[str] = (), answers: bool = True, equal: float = 0.0,
        idle_s: float = 1_200.0, journal: Path | None = None, seed: int = 1,
    ) -> None:  # fmt: skip
        self.port, self.rate, self.hours, self.unknown, self.answers, self.equal, self.idle_s = port, rate, hours, set(unknown), answers, equal, idle_s
        self.stocks: dict[str, Stock] = {}
        self.clients: set[Client] = set()
        self.faults: dict[str, float] = {}
        """Faults that are on, and until when (monotonic)."""
        self.history: list[tuple[str, float, float]] = []
        """Faults so far: kind, beginning and end, epoch s."""
        self.accepted = 0
        """Sockets so far."""
        self.messages: list[dict[str, Any]] = []
        """The newest 10,000 messages of clients."""
        self._random = random.Random(seed)
        self._seed = seed
        self._journal = journal.open("w") if journal is not None else None
        self._runner: web.AppRunner | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/?version=2"

    async def __aenter__(self) -> YahooStream:
        app = web.Application()
        app.router.add_get("/", self._serve)
        app.router.add_get("/state", self._state)
        app.router.add_post("/fault", self._fault)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None and self._task is not None
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for client in list(self.clients):
            _abort(client)
        await self._runner.cleanup()
        if self._journal is not None:
            self._journal.close()

    # ---- faults

    def fault(self, kind: Fault, seconds: float = 0.0) -> None:
        """Switches a fault on for so long."""
        now = time.monotonic()
        self.faults[kind] = now + seconds
        self.history.append((kind, time.time(), time.time() + seconds))
        for client in list(self.clients):
            if kind == "close":
                asyncio.get_running_loop().create_task(client.socket.close(code=1000))
            elif kind == "abort":
                _abort(client)
            elif kind == "half_open":
                client.dead = True
                _transport(client).pause_reading()
            elif kind == "forget":
                client.symbols.clear()
        if kind in ("close", "abort"):
            self.clients.clear()

    def on(self, kind: Fault) -> bool:
        return time.monotonic() < self.faults.get(kind, 0.0)

    def end_faults(self) -> None:
        self.faults.clear()

    async def _fault(self, request: web.Request) -> web.Response:
        kind, seconds = request.query.get("kind", ""), float(request.query.get("seconds", "0"))
        if kind not in get_args(Fault):
            return web.Response(status=400, text=f"kind is one of {', '.join(get_args(Fault))}\n")
        self.fault(kind, seconds)  # type: ignore[arg-type]
        return web.Response(text=f"{kind} for {seconds:g} s\n")

    async def _state(self, _: web.Request) -> web.Response:
        return web.json_response({
            "connections": len(self.clients), "accepted": self.accepted, "faults": self.history,
            "symbols": {
                stock.symbol: {"sent": stock.sent, "first_volume": stock.first_volume, "last_volume": stock.last_volume, "event_time": stock.at}
                for stock in self.stocks.values()
            },
        })  # fmt: skip

    # ---- sockets

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        if self.on("close"):
            return web.Response(status=503)
        if self.on("refuse"):
            return web.Response(status=429, text="Too Many Requests")
        if self.on("abort") and request.transport is not None:
            request.transport.abort()
            return web.Response()
        while self.on("half_open"):
            await asyncio.sleep(0.05)
        socket = web.WebSocketResponse(timeout=0.5)
        await socket.prepare(request)
        client = Client(socket, request.query.get("version") == "2", heard_at=time.monotonic())
        self.clients.add(client)
        self.accepted += 1
        try:
            async for message in socket:
                client.heard_at = time.monotonic()
                if message.type is WSMsgType.TEXT:
                    with contextlib.suppress(ConnectionError):
                        await self._take(client, json.loads(message.data))
        finally:
            self.clients.discard(client)
        return socket

    async def _take(self, client: Client, message: dict[str, Any]) -> None:
        self.messages = [*self.messages[-9_999:], message]
        client.symbols -= set(message.get("unsubscribe", ()))
        names = message.get("subscribe", ())
        taken = names[::2] if self.on("partial") else names
        for name in taken:
            if name in self.unknown:
                continue
            stock = self.stocks.get(name)
            if stock is None:
                stock = self.stocks[name] = _listed(name, self._seed)
            if self.answers and stock.at and name not in client.symbols and not self.on("silence"):
                await self._send(client, stock, self._frame(stock))
            client.symbols.add(name)

    async def _send(self, client: Client, stock: Stock, frame: bytes) -> None:
        if client.dead or client.socket.closed or time.monotonic() - client.heard_at > self.idle_s:
            return
        text = base64.b64encode(frame).decode()
        message = json.dumps({"type": "pricing", "message": text}) if client.enveloped else text
        if stock.first_volume < 0:
            stock.first_volume = stock.day_volume
        stock.last_volume = stock.day_volume
        stock.sent += 1
        if self._journal is not None:
            self._journal.write(f"{stock.symbol} {stock.at} {stock.day_volume} {time.time_ns() // 1_000_000}\n")
        if self.on("slow"):
            client.queue.append(message)
            return
        with contextlib.suppress(ConnectionError):
            await client.socket.send_str(message)
            for kind, noise in NOISE.items():
                if self.on(kind):  # type: ignore[arg-type]
                    sent = noise(stock.symbol)
                    await (client.socket.send_bytes(sent) if isinstance(sent, bytes) else client.socket.send_str(sent))

    # ---- the market

    async def _run(self) -> None:
        """Moves each symbol `rate` times a second, spread over it."""
        begun = time.monotonic()
        credit: dict[str, float] = {}
        last_burst = begun
        slices = 0
        while True:
            slices += 1
            await asyncio.sleep(max(begun + slices / SLICES_A_SECOND - time.monotonic(), 0))
            moved = []
            for number, stock in enumerate(list(self.stocks.values())):
                due = credit.get(stock.symbol, (number % SLICES_A_SECOND) / SLICES_A_SECOND) + self.rate / SLICES_A_SECOND
                while due >= 1:
                    due -= 1
                    moved.append(stock)
                credit[stock.symbol] = due
            for stock in moved:
                self._move(stock)
                if self.on("silence"):
                    continue
                frame = self._frame(stock)
                for client in list(self.clients):
                    if stock.symbol in client.symbols:
                        await self._send(client, stock, frame)
                        if self.equal and self._random.random() < self.equal:
                            await self._send(client, stock, frame)
            if time.monotonic() - last_burst >= SLOW_S or not self.on("slow"):
                last_burst = time.monotonic()
                for client in list(self.clients):
                    queue, client.queue = client.queue, []
                    with contextlib.suppress(ConnectionError):
                        for message in queue:
                            await client.socket.send_str(message)
            if self._journal is not None:
                self._journal.flush()

    def _move(self, stock: Stock) -> None:
        stock.cents = max(100, stock.cents + self._random.randint(-3, 3))
        stock.last_size = self._random.randint(1, 400)
        stock.day_volume += stock.last_size
        stock.at = int(time.time()) * 1000

    def new_day(self) -> None:
        """The day volumes begin again."""
        for stock in self.stocks.values():
            stock.day_volume = 0

    def _frame(self, stock: Stock) -> bytes:
        return frame_of(stock, self.hours)


def frame_of(stock: Stock, hours: str) -> bytes:
    """The PricingData of a symbol."""
    pricing = PricingData(
        id=stock.symbol, price=stock.cents / 100, time=stock.at, exchange=stock.exchange, quote_type=stock.quote_type, market_hours=HOURS[hours], price_hint=2,
        change_percent=0.5, change=0.3,
    )  # fmt: skip
    if hours == "regular" or stock.quote_type == CRYPTO:
        pricing.day_volume, pricing.last_size = stock.day_volume, stock.last_size
    if stock.quote_type != EQUITY:
        pricing.currency = stock.currency
    return bytes(pricing.SerializeToString())


def _listed(name: str, seed: int) -> Stock:
    """A new symbol: its exchange as far as the name shows it, the rest by chance."""
    rng = random.Random(f"{seed}/{name}")
    cents, volume = rng.randint(2_000, 40_000), rng.randint(10_000, 9_000_000)
    if name.endswith("-USD"):
        return Stock(name, "CCC", "USD", CRYPTO, cents, volume)
    if name.endswith("=X"):
        return Stock(name, "CCY", name[3:6], CURRENCY, cents, 0)
    if name.startswith("^"):
        return Stock(name, "SNP", "USD", INDEX, cents, volume)
    exchange, currency = SUFFIXES.get(name.rpartition(".")[2], ("NMS", "USD"))
    return Stock(name, exchange, currency, EQUITY, cents, volume)


def _pricing(**fields: Any) -> str:
    return json.dumps({"type": "pricing", "message": base64.b64encode(PricingData(**fields).SerializeToString()).decode()})


NOISE: dict[str, Callable[[str], str | bytes]] = {
    "bad_base64": lambda _: json.dumps({"type": "pricing", "message": "§§ no base64"}),
    "bad_json": lambda _: '{"type": "pricing", "message": ',
    "bad_protobuf": lambda _: json.dumps({"type": "pricing", "message": base64.b64encode(b"\x0a\xff\xff\xff\xff").decode()}),
    "other_types": lambda _: json.dumps({"type": "status", "message": "ok", "more": {"a": [1, 2]}}),
    "heartbeats": lambda _: _pricing(quote_type=7, time=int(time.time()) * 1000),
    "binary": lambda _: b"\x00\x01binary",
    "no_price": lambda symbol: _pricing(id=symbol, time=int(time.time()) * 1000),
}
"""By fault: the message that follows each frame."""


def _transport(client: Client) -> asyncio.Transport:
    transport = client.socket._req.transport if client.socket._req is not None else None
    assert isinstance(transport, asyncio.Transport)
    return transport


def _abort(client: Client) -> None:
    with contextlib.suppress(AssertionError):
        _transport(client).abort()


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[YahooStream]:
    """A server for a test."""
    async with YahooStream(**options) as server:
        yield server


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.standins.yahoo_stream", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.epilog = "faults (POST /fault?kind=KIND&seconds=S):\n" + "\n".join(f"  {kind:13} {meaning}" for kind, meaning in MEANING.items())
    parser.add_argument("--port", type=int, default=8765)
    parser.add_argument("--rate", type=float, default=1.0, help="frames of each symbol a second")
    parser.add_argument("--hours", choices=list(HOURS), default="regular", help="the session that the market is in")
    parser.add_argument("--unknown", default="", help="symbols that are not there, by comma")
    parser.add_argument("--equal", type=float, default=0.0, help="the part of frames that are sent twice, 0 to 1")
    parser.add_argument("--no-answers", action="store_true", help="no frame in answer to a subscription")
    parser.add_argument("--idle-s", type=float, default=1_200.0, help="silent after so long without a client's message")
    parser.add_argument("--journal", type=Path, help="a file that gets a line for each frame: symbol, event time, day volume, epoch ms")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()

    async def serve() -> None:
        options = {"port": chosen.port, "rate": chosen.rate, "hours": chosen.hours, "equal": chosen.equal, "idle_s": chosen.idle_s, "seed": chosen.seed}
        unknown = [name for name in chosen.unknown.split(",") if name]
        async with YahooStream(**options, unknown=unknown, answers=not chosen.no_answers, journal=chosen.journal) as server:
            print(f"{server.url} ; faults: curl -X POST 'http://127.0.0.1:{server.port}/fault?kind=silence&seconds=10'", flush=True)
            await asyncio.Event().wait()

    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(serve())


if __name__ == "__main__":
    main()

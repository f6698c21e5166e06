"""A seeded market with every quirk, as messages for `ticks.raw`, and the idempotent producer that sends them at a steady rate."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stockstream.kafka.client import client_options
from stockstream.settings import Settings
from stockstream.transforms.partitioning import home_partition
from tests.faults.workers import Failed

STEP_S = 0.1
SLOW_MS = 900_000
"""How far behind the second source is."""
_encode = msgspec.json.Encoder().encode

Poison = Callable[[dict[str, Any]], bytes | None]


def _with(**changes: Any) -> Poison:
    return lambda tick: _encode(tick | changes)


def _without(name: str) -> Poison:
    return lambda tick: _encode({key: value for key, value in tick.items() if key != name})


POISON: dict[str, tuple[str, Poison]] = {
    "not JSON": ("invalid_json", lambda tick: b"{not json"),
    "not UTF-8": ("invalid_json", lambda tick: b"\xff\xfe\x00{"),
    "another shape": ("invalid_shape", lambda tick: b'"a text"'),
    "a number": ("invalid_shape", lambda tick: b"17"),
    "missing field": ("missing_field", _without("price")),
    "null field": ("missing_field", _with(event_time=None)),
    "text for a number": ("invalid_type", _with(price="12.5")),
    "NaN": ("invalid_json", lambda tick: _encode(tick | {"price": 0.125}).replace(b"0.125", b"NaN")),
    "infinity": ("invalid_json", lambda tick: _encode(tick | {"price": 0.125}).replace(b"0.125", b"-Infinity")),
    "price zero": ("out_of_range", _with(price=0)),
    "price negative": ("out_of_range", _with(price=-1.5)),
    "size negative": ("out_of_range", _with(size=-1)),
    "size without price": ("size_without_price", _with(price=None, size=5)),
    "overflow": ("out_of_range", _with(size=10**18)),
    "overflowing price": ("out_of_range", lambda tick: _encode(tick | {"price": 0.125}).replace(b"0.125", b"1e400")),
    "empty symbol": ("out_of_range", _with(symbol="")),
    "long symbol": ("out_of_range", _with(symbol="X" * 33)),
    "future": ("future", lambda tick: _encode(tick | {"event_time": tick["event_time"] + 3_600_000 + SLOW_MS})),
    "late": ("late", lambda tick: _encode(tick | {"event_time": tick["event_time"] - 120_000, "seq": None})),
    "punctuation in ms": ("out_of_range", lambda tick: _encode({"punctuate": tick["event_time"] * 1000, "source": tick["source"]})),
    "empty message": ("empty_message", lambda tick: b""),
    "no value": ("empty_message", lambda tick: None),
    "frame with one bad": ("invalid_type", lambda tick: _encode([tick | {"symbol": tick["symbol"]}, tick | {"size": "many"}])),
    "empty frame": ("invalid_shape", lambda tick: b"[]"),
    "deep": ("invalid_shape", lambda tick: b"[" * 5_000),
}  # fmt: skip
"""Bad messages by kind: the reason that `clean` must give, and how one is made of a good tick. `wrong_partition` is made by `Market.poison` itself."""


@dataclass(slots=True)
class _Symbol:
    name: str
    partition: int
    source: str
    delay_ms: int
    price: float
    numbered: bool
    cumulative: bool
    seq: int = 0
    day_volume: int = 1_000
    last: dict[str, Any] = field(default_factory=dict)


class Market:
    """Ticks of `symbols` symbols by a seed: two sources of different delay, quotes, late ticks, duplicates by seq, spikes, drops, cumulative volumes and
    impossible ones, gaps of the feed and bars of a minute."""

    about_the_feed = True
    """Whether ticks have `gap_from` and `interval_s`, which earlier releases do not know."""

    def __init__(self, seed: int, symbols: int, partitions: int) -> None:
        self._rng, self._figures = random.Random(seed), random.Random(seed)
        self.partitions = partitions
        self.symbols = []
        for number in range(symbols):
            name = f"F{seed % 1000}X{number:03d}"
            slow = number % 4 == 3
            self.symbols.append(
                _Symbol(
                    name,
                    home_partition(name, partitions),
                    "slow" if slow else "fast",
                    SLOW_MS if slow else 0,
                    20 + number * 1.5,
                    number % 2 == 0,
                    number % 10 == 9,
                )
            )

    def tick(self, symbol: _Symbol, now_ms: int) -> dict[str, Any]:
        """One tick at about `now_ms`, less the source's delay."""
        rng = self._rng
        draw = rng.random()
        symbol.price = max(1.0, round(symbol.price * (1 + rng.gauss(0, 3e-4) - (0.02 if draw < 0.0004 else 0)), 2))
        size = rng.randrange(1, 500) * (200 if rng.random() < 0.001 else 1)
        at = now_ms - symbol.delay_ms
        if rng.random() < 0.015:
            at -= rng.choice((300, 1_500, 4_000, 12_000, 28_000, 45_000))
        tick: dict[str, Any] = {"symbol": symbol.name, "source": symbol.source, "event_time": at, "price": symbol.price, "size": size}
        if symbol.numbered and not symbol.cumulative:
            tick["size"] = size + round(rng.random(), rng.randrange(5))     # parts of shares
        if rng.random() < 0.08:
            tick |= {"price": None, "size": 0}
        if rng.random() < 0.3:
            tick |= {"bid": round(symbol.price - 0.01, 2), "ask": round(symbol.price + 0.01, 2), "bid_size": 3, "ask_size": rng.randrange(9)}
        if symbol.cumulative and tick["price"] is not None:
            symbol.day_volume += size
            del tick["size"]
            tick["day_volume"] = self._figure(symbol.day_volume)
        if symbol.numbered:
            symbol.seq += 1
            tick["seq"] = symbol.seq
        if self.about_the_feed and (draw := self._figures.random()) < 0.002:
            tick |= {"gap_from": at - self._figures.choice((900, 3_000, 20_000, 90_000))} if draw < 0.0007 else {"interval_s": 60}
        symbol.last = tick
        return tick

    def _figure(self, day_volume: int) -> float:
        """The cumulative volume as the feed sends it: now and then impossible, or a placeholder."""
        draw = self._figures.random()
        return day_volume * 1_000 if draw < 0.02 else 4_294_967_295 if draw < 0.03 else day_volume / 100 if draw < 0.04 else day_volume

    def messages(self, ticks: list[tuple[int, dict[str, Any]]]) -> Iterator[tuple[int, bytes]]:
        """(partition, value) of ticks with their partitions: single ones, and frames of a partition's neighbours."""
        rng = self._rng
        by_partition: dict[int, list[dict[str, Any]]] = {}
        for partition, tick in ticks:
            by_partition.setdefault(partition, []).append(tick)
        for partition, some in by_partition.items():
            while some:
                count = rng.choice((1, 1, 2, 5, 12))
                taken, some = some[:count], some[count:]
                yield partition, _encode(taken[0] if len(taken) == 1 and rng.random() < 0.8 else taken)

    def step(self, now_ms: int, count: int, poison: float = 0.0) -> Iterator[tuple[int, bytes | None]]:
        """What is sent at `now_ms`: about `count` ticks, some repeated, some of a symbol's other source, and (chance `poison` each) bad ones."""
        rng = self._rng
        ticks: list[tuple[int, dict[str, Any]]] = []
        bad: list[tuple[int, bytes | None]] = []
        for _ in range(count):
            symbol = rng.choice(self.symbols)
            if symbol.last and rng.random() < 0.01:
                ticks.append((symbol.partition, symbol.last))
            ticks.append((symbol.partition, self.tick(symbol, now_ms - rng.randrange(0, 80))))
            if rng.random() < 0.002:
                ticks.append((symbol.partition, ticks[-1][1] | {"source": "other", "event_time": now_ms}))
            if poison and rng.random() < poison:
                bad.append(self.poison(rng.choice(list(POISON)), now_ms))
        messages: list[tuple[int, bytes | None]] = [*self.messages(ticks), *bad]
        yield from messages

    def poison(self, kind: str, now_ms: int) -> tuple[int, bytes | None]:
        """(partition, value) of one bad message."""
        symbol = self._rng.choice(self.symbols)
        tick = {"symbol": symbol.name, "source": symbol.source, "event_time": now_ms - symbol.delay_ms, "price": symbol.price, "size": 1}
        if kind == "wrong partition":
            strays = (f"W{self._rng.randrange(10**6)}" for _ in range(1_000))
            stray = next(name for name in strays if home_partition(name, self.partitions) != symbol.partition)
            return symbol.partition, _encode(tick | {"symbol": stray})
        return symbol.partition, POISON[kind][1](tick)

    def history(self, end_ms: int, seconds: int) -> Iterator[tuple[int, bytes | None]]:
        """The `seconds` before `end_ms`, a tick of each symbol a second: the five minutes that windows look back on."""
        for second in range(seconds):
            at = end_ms - (seconds - second) * 1000
            yield from self.messages([(symbol.partition, self.tick(symbol, at + self._rng.randrange(0, 900))) for symbol in self.symbols])


class Producer:
    """Sends a market's messages from a thread of its own, idempotently; `sent` holds partition, offset and value of what the broker confirmed."""

    def __init__(self, settings: Settings, market: Market, rate: int, poison: float = 0.0) -> None:
        self._settings, self.market, self._rate, self._poison = settings, market, rate, poison
        self.sent: list[tuple[int, int, bytes | None]] = []
        self.failed: list[str] = []
        self._stop = threading.Event()
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._fault: BaseException | None = None
        self._extra: list[tuple[int, bytes | None]] = []
        self._lock = threading.Lock()

    def start(self, history_s: int = 0, live: bool = True) -> Producer:
        """Sends `history_s` seconds of the past at once, then goes on at the rate; returns when the history is confirmed."""
        self._stop.clear()
        self._begun.clear()
        self._thread = threading.Thread(target=self._run, args=(history_s, live), name="producer", daemon=True)
        self._thread.start()
        while not self._begun.wait(0.1):
            if not self._thread.is_alive():
                break
        if self._fault:
            raise Failed(f"the producer: {self._fault!r}")
        return self

    def add(self, messages: list[tuple[int, bytes | None]]) -> None:
        """Sends these too, with the next step."""
        with self._lock:
            self._extra += messages

    def stop(self) -> None:
        """Ends when all that was sent is confirmed."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(120)
            if self._thread.is_alive():
                raise Failed("the producer does not end")
            self._thread = None
        if self._fault:
            raise Failed(f"the producer: {self._fault!r}")

    def _run(self, history_s: int, live: bool) -> None:
        try:
            asyncio.run(self._produce(history_s, live))
        except BaseException as fault:
            self._fault = fault
        finally:
            self._begun.set()

    async def _produce(self, history_s: int, live: bool) -> None:
        producer = AIOKafkaProducer(
            **client_options(self._settings), acks="all", enable_idempotence=True, linger_ms=5, max_batch_size=262_144, request_timeout_ms=90_000,
            compression_type="lz4",
        )  # fmt: skip
        await producer.start()
        topic = self._settings.topic("ticks.raw")
        waiting: list[tuple[int, bytes | None, Any]] = []

        async def send(messages: Iterator[tuple[int, bytes | None]]) -> None:
            for partition, value in messages:
                waiting.append((partition, value, await producer.send(topic, value, key=b"none" if value is None else None, partition=partition)))

        async def confirm(which: list[tuple[int, bytes | None, Any]]) -> None:
            for partition, value, future in which:
                try:
                    self.sent.append((partition, (await future).offset, value))
                except KafkaError as error:
                    self.failed.append(repr(error))

        try:
            if history_s:
                await send(self.market.history(int(time.time() * 1000) - 200, history_s))
                await confirm(waiting)
                waiting = []
            self._begun.set()
            at = time.monotonic()
            while live and not self._stop.is_set():
                await send(self.market.step(int(time.time() * 1000), max(1, int(self._rate * STEP_S)), self._poison))
                with self._lock:
                    extra, self._extra = self._extra, []
                await send(iter(extra))
                at = max(at + STEP_S, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, at - time.monotonic()))
            with self._lock:
                extra, self._extra = self._extra, []
            await send(iter(extra))
            await confirm(waiting)
        finally:
            await producer.stop()

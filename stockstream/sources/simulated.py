"""A simulated market: prices, quotes and volumes that behave like a market's, as a pure function of seed, symbol and second.

Nothing is drawn in sequence. Every random number is a hash of (seed, symbol, what it is for, when), so any process that begins at any second gives the
ticks that every other gives, and a symbol's path does not depend on which other symbols there are. Log prices are Brownian bridges within bridges:

    day       an anchor at each UTC midnight: a moving average of daily shocks (so prices stay in their region for years)
    block     300 s: steps with slow volatility clusters, tied to the day's anchors; jumps and injected moves are steps too
    second    steps with fast volatility clusters, tied to the block's ends

If the ends of a bridge have the variance of its steps, the path is a Brownian motion, so no direction can be learned from it. A symbol's path is beta times
the market's path plus a path of its own. Each trade is at the bid or the ask with equal probability; sizes in the book are independent of later prices.
Volume follows a U through the UTC day (the market never closes), the volatility clusters, and chance. One tick a second for each symbol; `seq` is the second.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.errors import SourceError
from stockstream.sources.base import Batch, Clock, Health, SymbolInfo, SystemClock
from stockstream.sources.event_log import EventLog
from stockstream.transforms.cleaning.limits import symbol_fault

logger = logging.getLogger(__name__)

Floats = NDArray[np.float64]
Words = NDArray[np.uint64]

BLOCK_S = 300
DAY_S = 86_400
BLOCKS_A_DAY = DAY_S // BLOCK_S
CATCH_UP_S = 5
"""After a stall of at most this many seconds, the missed seconds are sent at once. A longer stall leaves a gap, which is logged."""
SLICES_A_SECOND = 10

DAY_MEMORY, DAY_PULL = 60, 0.95
SPIKES_A_BLOCK = 0.06
"""Share of a symbol's blocks with an injected volume spike: one every 5 s in 1,000 symbols."""
DROPS_A_BLOCK = 0.01
"""Share with an injected price drop: one every 30 s in 1,000 symbols. As many have a rise of the same size. Each happens within one second: one that took
longer would be a trend to learn."""
JUMPS_A_BLOCK = 0.02

EventKind = Literal["volume_spike", "price_drop", "price_rise", "jump"]


@dataclass(frozen=True, slots=True)
class MarketEvent:
    """An event injected into the market in this second. `size`: the second's shares for a spike, the signed fraction of the price for a move."""

    second: int
    symbol: str
    kind: EventKind
    size: float


@dataclass(frozen=True, slots=True)
class _Paths:
    """The symbols' constants, one row each."""

    keys: Words
    base: Floats
    daily: Floats
    step: Floats


@dataclass(frozen=True, slots=True)
class _Day:
    """Of one UTC day, by symbol and block: log level at the block's start (one column more: the day's end), and what happens within."""

    levels: Floats
    slow: Floats
    variance: Floats
    moves: Floats
    when: NDArray[np.int64]
    kinds: NDArray[np.int8]


@dataclass(frozen=True, slots=True)
class _Block:
    """Ticks by symbol and second of one block; prices in cents."""

    price: NDArray[np.int64]
    size: NDArray[np.int64]
    bid: NDArray[np.int64]
    ask: NDArray[np.int64]
    bid_size: NDArray[np.int64]
    ask_size: NDArray[np.int64]
    events: dict[int, list[MarketEvent]]


class SimulatedMarket:
    """The market of a seed, for these symbols. Raises `SourceError` if a symbol is invalid or listed twice."""

    def __init__(self, seed: int, symbols: Sequence[str]) -> None:
        if len(set(symbols)) != len(symbols):
            raise SourceError("a symbol is listed twice")
        for symbol in symbols:
            if (fault := symbol_fault(symbol)) is not None:
                raise SourceError(f"symbol {symbol[:40]!r}: {fault}")
        self.seed = seed
        self.name = f"simulated.{seed}"
        keys = [_key(seed, symbol) for symbol in symbols]
        millis = [10 + key % 975 for key in keys]
        order = sorted(range(len(symbols)), key=lambda i: (millis[i], symbols[i]))
        self.symbols = tuple(symbols[i] for i in order)
        """In the order of their ticks within a second."""
        self.millis = np.array([millis[i] for i in order], dtype=np.int64)
        """When in its second each symbol's tick happens."""
        self._json = [msgspec.json.encode(symbol).decode() for symbol in self.symbols]
        ordered = np.array([keys[i] for i in order], dtype=np.uint64)

        def drawn(what: int) -> Floats:
            return _uniforms(ordered, np.array([0]), what)[:, 0]

        self._beta = 0.5 + drawn(1)
        base = np.exp(np.log(15.0) + drawn(2) * np.log(400.0 / 15.0))
        step = (0.5 + 0.6 * drawn(3)) * 1e-4
        self._symbol_paths = _Paths(ordered, np.log(base), step * np.sqrt(DAY_S), step)
        market = np.array([0.6e-4])
        self._market_paths = _Paths(np.array([_key(seed, "")], dtype=np.uint64), np.zeros(1), market * np.sqrt(DAY_S), market)
        self._usual_volume = np.exp(np.log(60.0) + drawn(4) * np.log(4000.0 / 60.0))
        self._spread = (1.0 + 4.0 * drawn(5) ** 2) * 1e-4
        self._shares = np.rint(np.exp(np.log(2e7) + drawn(6) * np.log(150.0)))
        self._days: OrderedDict[tuple[bool, int], _Day] = OrderedDict()
        self._blocks: OrderedDict[int, _Block] = OrderedDict()

    def ticks(self, second: int) -> Batch:
        """The symbols' ticks of one second (epoch s), in the order of their event times, one each."""
        block = self._block(second // BLOCK_S)
        at = second % BLOCK_S
        times = (second * 1000 + self.millis).tolist()
        columns = [column[:, at].tolist() for column in (block.price, block.size, block.bid, block.ask, block.bid_size, block.ask_size)]
        tail = f',"source":"{self.name}","seq":{second}}}'
        values = [
            (f'{{"symbol":{symbol},"event_time":{time},"price":{price / 100},"size":{size},"bid":{bid / 100},"ask":{ask / 100}'
             f',"bid_size":{bid_size},"ask_size":{ask_size}{tail}').encode()
            for symbol, time, price, size, bid, ask, bid_size, ask_size in zip(self._json, times, *columns, strict=True)
        ]  # fmt: skip
        return Batch(self.symbols, times, values)

    def history(self, first_second: int, last_second: int) -> pa.Table:
        """All ticks of the seconds first to last (epoch s, both included), ordered by event time.

        Columns: symbol, source (strings), event_time (int64, epoch ms), price, bid, ask (float64), size (int64), bid_size, ask_size (float64).
        """
        names = ("price", "size", "bid", "ask", "bid_size", "ask_size")
        parts: dict[str, list[NDArray[np.int64]]] = {name: [] for name in names}
        for number in range(first_second // BLOCK_S, last_second // BLOCK_S + 1):
            block = self._block(number, keep=False)
            span = slice(max(first_second - number * BLOCK_S, 0), min(last_second + 1 - number * BLOCK_S, BLOCK_S))
            for name in names:
                parts[name].append(getattr(block, name)[:, span].T.ravel())
        flat = {name: np.concatenate(parts[name]) if parts[name] else np.empty(0, dtype=np.int64) for name in names}
        seconds = np.arange(first_second, last_second + 1, dtype=np.int64)
        count = len(self.symbols)
        symbols = pa.DictionaryArray.from_arrays(pa.array(np.tile(np.arange(count, dtype=np.int32), len(seconds))), pa.array(self.symbols, pa.string()))
        return pa.table({
            "symbol": symbols.cast(pa.string()), "source": pa.repeat(pa.scalar(self.name), len(seconds) * count),
            "event_time": (seconds[:, None] * 1000 + self.millis[None, :]).ravel(), "price": flat["price"] / 100, "size": flat["size"],
            "bid": flat["bid"] / 100, "ask": flat["ask"] / 100, "bid_size": flat["bid_size"].astype(np.float64),
            "ask_size": flat["ask_size"].astype(np.float64),
        })  # fmt: skip

    def events(self, first_second: int, last_second: int) -> list[MarketEvent]:
        """The events injected in the seconds first to last (both included), by second and symbol."""
        found = []
        for number in range(first_second // BLOCK_S, last_second // BLOCK_S + 1):
            events = self._block(number).events
            found += [event for second in sorted(events) if first_second <= second <= last_second for event in events[second]]
        return found

    def prepare(self, second: int) -> None:
        """Computes in advance what `ticks(second)` needs, so that the call itself is fast."""
        self._block(second // BLOCK_S)

    def describe(self, second: int) -> list[SymbolInfo]:
        """Metadata by symbol; the previous close is the price at the last UTC midnight."""
        day = second // DAY_S
        levels = self._symbol_paths.base + _anchors(self._symbol_paths, day)[:, 0] + self._beta * _anchors(self._market_paths, day)[:, 0]
        closes = np.rint(np.exp(levels) * 100) / 100
        return sorted((
            SymbolInfo(
                symbol=symbol, source=self.name, name=f"{symbol.capitalize()} {_TRADES[int(key) % len(_TRADES)]}", currency="USD", exchange="SIM",
                previous_close=float(close), market_cap=float(np.rint(close * shares)),
            )
            for symbol, key, close, shares in zip(self.symbols, self._symbol_paths.keys, closes, self._shares, strict=True)
        ), key=lambda info: info.symbol)  # fmt: skip

    def _block(self, number: int, keep: bool = True) -> _Block:
        block = self._blocks.get(number)
        if block is None:
            block = self._simulate(number)
            if keep:
                self._blocks[number] = block
                while len(self._blocks) > 3:
                    self._blocks.popitem(last=False)
        return block

    def _day(self, paths: _Paths, number: int) -> _Day:
        key = (paths is self._market_paths, number)
        day = self._days.get(key)
        if day is None:
            day = self._days[key] = _simulate_day(paths, number, with_moves=paths is self._symbol_paths)
            while len(self._days) > 4:
                self._days.popitem(last=False)
        return day

    def _simulate(self, number: int) -> _Block:
        day, at = divmod(number, BLOCKS_A_DAY)
        seconds = number * BLOCK_S + np.arange(BLOCK_S)
        own, market = self._day(self._symbol_paths, day), self._day(self._market_paths, day)
        market_levels, _, market_cluster = _walk(self._market_paths, market, at, seconds)
        levels, second_normals, cluster = _walk(self._symbol_paths, own, at, seconds)
        middle = 100 * np.exp(self._symbol_paths.base[:, None] + levels + self._beta[:, None] * market_levels)

        chance = _hash(self._symbol_paths.keys, seconds, _CHANCE)
        spread = np.maximum(np.rint(middle * (self._spread[:, None] * np.exp(0.5 * cluster))), 1.0)
        bid = np.maximum(np.rint(middle - spread / 2), 1.0).astype(np.int64)
        ask = bid + spread.astype(np.int64)
        price = np.where(chance >> np.uint64(63), bid, ask)
        bid_size = _LOTS[(chance & np.uint64(1023)).astype(np.int64)]
        ask_size = _LOTS[((chance >> np.uint64(10)) & np.uint64(1023)).astype(np.int64)]

        through_day = 2 * ((seconds % DAY_S) / DAY_S) - 1
        expected = self._usual_volume[:, None] * (0.65 + 1.1 * through_day**2)[None, :] * np.exp(0.6 * cluster + 0.3 * market_cluster)
        size = np.maximum(np.rint(expected * np.exp(0.4 * second_normals - 0.08)), 1.0).astype(np.int64)

        events: dict[int, list[MarketEvent]] = {}
        spiked = _uniforms(self._symbol_paths.keys, np.array([number]), _SPIKE)[:, 0]
        where = _uniforms(self._symbol_paths.keys, np.array([number]), _SPIKE_WHEN)[:, 0]
        factor = 15.0 + 25.0 * _uniforms(self._symbol_paths.keys, np.array([number]), _SPIKE_SIZE)[:, 0]
        for i in np.flatnonzero(spiked < SPIKES_A_BLOCK).tolist():
            offset = int(where[i] * BLOCK_S)
            size[i, offset] = int(np.ceil(factor[i] * expected[i, offset]))
            self._note(events, i, int(seconds[offset]), "volume_spike", float(size[i, offset]))
        for i in np.flatnonzero(own.kinds[:, at]).tolist():
            kind = _KINDS[int(own.kinds[i, at])]
            self._note(events, i, int(seconds[own.when[i, at]]), kind, round(float(np.expm1(own.moves[i, at])), 6))
        for of_second in events.values():
            of_second.sort(key=lambda event: event.symbol)
        return _Block(price, size, bid, ask, bid_size, ask_size, events)

    def _note(self, events: dict[int, list[MarketEvent]], index: int, second: int, kind: EventKind, size: float) -> None:
        events.setdefault(second, []).append(MarketEvent(second, self.symbols[index], kind, size))


class SimulatedSource:
    """The simulated market as a source. Each tick has its own time within the second; ticks come in slices of 100 ms.

    Injected events are appended to `events_file` as JSON lines (`time` in epoch ms, `symbol`, `kind`, `size`) as they happen. If the file cannot be
    written, the market continues, and its health gives the reason.
    """

    continuous = True

    def __init__(self, seed: int, *, clock: Clock | None = None, events_file: Path | None = None) -> None:
        self.seed = seed
        self._clock = clock or SystemClock()
        self._event_log = EventLog(events_file) if events_file is not None else None
        self._wanted: frozenset[str] = frozenset()
        self._sent: int | None = None
        """Epoch ms before which all ticks have been yielded, by this stream or an earlier one."""

    @property
    def name(self) -> str:
        return f"simulated.{self.seed}"

    async def start(self) -> None:
        """Opens nothing."""

    async def stop(self) -> None:
        """Closes nothing."""

    def health(self) -> Health:
        return Health(trouble=self._event_log.trouble if self._event_log is not None else "")

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the symbols. A new symbol starts with the next second; a removed one ends at once."""
        self._wanted = frozenset(symbols)

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        market = await asyncio.to_thread(SimulatedMarket, self.seed, sorted(symbols))
        return await asyncio.to_thread(market.describe, self._clock.now_ms() // 1000)

    async def stream(self) -> AsyncIterator[Batch]:
        """Yields each slice's ticks once the slice is over. A second stream continues where the first ended, as after a stall."""
        step = 1000 // SLICES_A_SECOND
        sent = self._clock.now_ms() // step * step if self._sent is None else self._sent    # ticks before this moment are done
        market = await asyncio.to_thread(SimulatedMarket, self.seed, sorted(self._wanted))
        second, ticks, preparing = -1, Batch((), (), ()), None
        while True:
            while (now := self._clock.now_ms()) < sent + step:
                await self._clock.sleep((sent + step - now) / 1000)
            if now - sent > CATCH_UP_S * 1000 + step:
                left = (now - CATCH_UP_S * 1000) // step * step
                logger.warning("%s stalled for %.1f s: the ticks of %.1f s are skipped", self.name, (now - sent) / 1000, (left - sent) / 1000)
                sent = left
            if sent // 1000 != second:
                second = sent // 1000
                if self._wanted != set(market.symbols):
                    market = await asyncio.to_thread(SimulatedMarket, self.seed, sorted(self._wanted))
                if preparing is not None:
                    await preparing
                    preparing = None
                await asyncio.to_thread(market.prepare, second)
                ticks = market.ticks(second)
                if second % BLOCK_S == BLOCK_S // 2:
                    preparing = asyncio.ensure_future(asyncio.to_thread(market.prepare, second + BLOCK_S))
            batch = self._between(ticks, sent, sent + step)
            self._sent = sent = sent + step
            if self._event_log is not None:
                self._event_log.flush()
            if len(batch):
                self._log_events(market.events(second, second), frozenset(batch.symbols))
                yield batch

    def _between(self, ticks: Batch, first: int, end: int) -> Batch:
        chosen = [tick for tick in ticks if first <= tick[1] < end and tick[0] in self._wanted]
        return Batch(*zip(*chosen, strict=True)) if chosen else Batch((), (), ())

    def _log_events(self, events: Sequence[MarketEvent], symbols: frozenset[str]) -> None:
        lines = [
            msgspec.json.encode({"time": event.second * 1000, "symbol": event.symbol, "kind": event.kind, "size": event.size}) + b"\n"
            for event in events if event.symbol in symbols
        ]  # fmt: skip
        if lines and self._event_log is not None:
            self._event_log.append(lines)


def default_symbols(count: int) -> list[str]:
    """Made-up tickers, upper case, all different; those of a smaller count are the first of a larger one. Raises `SourceError` above 100,000."""
    letters, vowels, ends = "BCDFGHJKLMNPRSTVWZ", "AEIOU", "BCDGHKLMNPRSTVWZ"
    total = len(letters) * len(vowels) * len(letters) * len(vowels) * len(ends)
    if not 0 <= count <= 100_000:
        raise SourceError(f"{count} symbols: 0 to 100,000 can be simulated")
    out = []
    for i in range(count):
        number = (i * 48_271 + 11_213) % total                   # 48,271 is prime and does not divide the total, so no name comes twice
        name = ""
        for alphabet in (letters, vowels, letters, vowels, ends):
            number, digit = divmod(number, len(alphabet))
            name += alphabet[digit]
        out.append(name)
    return out


_TRADES = ("Industries", "Holdings", "Systems", "Energy", "Pharma", "Logistics", "Foods", "Materials", "Networks", "Capital", "Motors", "Software")
_KINDS: dict[int, EventKind] = {1: "price_drop", 2: "price_rise", 3: "jump"}
_LOTS = 100 * np.ceil(-4.0 * np.log((np.arange(1024) + 0.5) / 1024)).astype(np.int64)
_DAILY, _HOURLY, _MINUTELY, _BLOCKLY, _STEP, _CHANCE, _MOVE, _MOVE_WHEN, _MOVE_SIZE, _SPIKE, _SPIKE_WHEN, _SPIKE_SIZE = range(10, 22)


def _key(seed: int, symbol: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{symbol}".encode(), digest_size=8).digest(), "little")


def _mix(words: Words) -> Words:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014): every bit of the input changes about half of the output's."""
    words = words + np.uint64(0x9E3779B97F4A7C15)
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return words ^ (words >> np.uint64(31))


def _hash(keys: Words, counters: NDArray[Any], what: int) -> Words:
    """64 random bits for each key (row) and counter (column)."""
    when = _mix(counters.astype(np.int64).view(np.uint64) ^ (np.uint64(what) << np.uint64(56)))
    return _mix(keys[:, None] ^ when[None, :])


def _uniforms(keys: Words, counters: NDArray[Any], what: int) -> Floats:
    return ((_hash(keys, counters, what) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _two_normals(keys: Words, counters: NDArray[Any], what: int) -> tuple[Floats, Floats]:
    """Box and Muller's pair from the halves of one hash."""
    words = _hash(keys, counters, what)
    radius = np.sqrt(-2.0 * np.log(((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32))
    angle = (words & np.uint64(0xFFFFFFFF)).astype(np.float64) * (2.0 * np.pi * 2.0**-32)
    return radius * np.cos(angle), radius * np.sin(angle)


def _noise(keys: Words, first: int, count: int, what: int, memory: int, pull: float) -> Floats:
    """A stationary series of unit variance at `count` points from `first` on: the moving average, with weights pull^k, of `memory` shocks."""
    shocks, _ = _two_normals(keys, np.arange(first - memory + 1, first + count), what)
    weights: Floats = pull ** np.arange(memory, dtype=np.float64)
    out: Floats = np.zeros((len(keys), count))
    for back, weight in enumerate(weights):
        out += weight * shocks[:, memory - 1 - back : memory - 1 - back + count]
    return out / float(np.sqrt((weights**2).sum()))


def _anchors(paths: _Paths, day: int) -> Floats:
    """Log level at the day's start and end, around the base. A day's change has about the variance of the day's steps."""
    spread: Floats = paths.daily / (1.0 - DAY_PULL**2) ** 0.5
    return spread[:, None] * _noise(paths.keys, day, 2, _DAILY, DAY_MEMORY, DAY_PULL)


def _bounded(values: Floats, limit: float) -> Floats:
    bounded: Floats = limit * np.tanh(values / limit)
    return bounded


def _simulate_day(paths: _Paths, day: int, *, with_moves: bool) -> _Day:
    blocks = day * BLOCKS_A_DAY + np.arange(BLOCKS_A_DAY)
    hours = _noise(paths.keys, day * 24, 25, _HOURLY, 12, 0.8)
    position = (np.arange(BLOCKS_A_DAY) + 0.5) * BLOCK_S / 3600
    whole = position.astype(np.int64)
    part = position - whole
    slow = _bounded(0.35 * (hours[:, whole] * (1 - part) + hours[:, whole + 1] * part), 0.5)
    through_day = 2 * (position / 24) - 1
    shape = 0.85 + 0.45 * through_day**2
    variance = BLOCK_S * (paths.step[:, None] * shape[None, :] * np.exp(slow)) ** 2

    steps = np.sqrt(variance) * _two_normals(paths.keys, blocks, _BLOCKLY)[0]
    kinds = np.zeros(steps.shape, dtype=np.int8)
    moves = np.zeros(steps.shape)
    when = np.zeros(steps.shape, dtype=np.int64)
    if with_moves:
        drawn = _uniforms(paths.keys, blocks, _MOVE)
        extent = _uniforms(paths.keys, blocks, _MOVE_SIZE)
        kinds[drawn < 2 * DROPS_A_BLOCK + JUMPS_A_BLOCK] = 3
        kinds[drawn < 2 * DROPS_A_BLOCK] = 2
        kinds[drawn < DROPS_A_BLOCK] = 1
        side = np.where(drawn < 2 * DROPS_A_BLOCK + JUMPS_A_BLOCK / 2, -1.0, 1.0)
        fall = np.log1p(-0.02 - 0.02 * extent)
        moves = np.select([kinds == 1, kinds == 2, kinds == 3], [fall, -fall, side * (0.002 + 0.004 * extent)])
        when = (_uniforms(paths.keys, blocks, _MOVE_WHEN) * BLOCK_S).astype(np.int64)
    anchors = _anchors(paths, day)
    steps += moves
    missing = anchors[:, 1] - anchors[:, 0] - steps.sum(axis=1)
    steps += missing[:, None] * variance / variance.sum(axis=1, keepdims=True)
    levels = np.empty((len(paths.keys), BLOCKS_A_DAY + 1))
    levels[:, 0] = anchors[:, 0]
    levels[:, 1:] = anchors[:, :1] + np.cumsum(steps, axis=1)
    return _Day(levels, slow, variance, moves, when, kinds)


def _walk(paths: _Paths, day: _Day, at: int, seconds: NDArray[np.int64]) -> tuple[Floats, Floats, Floats]:
    """Log levels at the ends of a block's seconds, normals not used for them, and the log of the volatility's cluster."""
    minutes = int(seconds[0]) // 60
    points = _noise(paths.keys, minutes, BLOCK_S // 60 + 1, _MINUTELY, 6, 0.6)
    whole = np.arange(BLOCK_S) // 60
    part = (np.arange(BLOCK_S) % 60) / 60
    fast = _bounded(0.35 * (points[:, whole] * (1 - part) + points[:, whole + 1] * part), 0.5)
    weights = np.exp(2 * fast)
    variance = day.variance[:, at, None] * weights / weights.sum(axis=1, keepdims=True)
    normals, spare = _two_normals(paths.keys, seconds, _STEP)
    steps = np.sqrt(variance) * normals
    change = day.levels[:, at + 1] - day.levels[:, at] - day.moves[:, at]
    steps += (change - steps.sum(axis=1))[:, None] * variance / day.variance[:, at, None]
    levels = day.levels[:, at, None] + np.cumsum(steps, axis=1)
    for i in np.flatnonzero(day.kinds[:, at]):
        levels[i, day.when[i, at] :] += day.moves[i, at]
    return levels, spare, day.slow[:, at, None] + fast

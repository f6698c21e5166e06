"""The contract of a market-data source: it yields batches of ticks of its subscribed symbols, ready for `ticks.raw`, and describes its health."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

import msgspec

from stockstream.errors import SourceError
from stockstream.records import Budget, Connection, FeedState, Gap

__all__ = [
    "Batch", "Budget", "Clock", "Connection", "FeedNote", "FeedState", "Gap", "Health", "MarketDataSource", "SourceError", "SourceUnavailable", "SymbolInfo",
    "SystemClock",
]  # fmt: skip


class SourceUnavailable(SourceError):
    """The source does not answer, or limits requests, for now. A later attempt can succeed."""

    retriable = True


class SymbolInfo(msgspec.Struct, kw_only=True, frozen=True):
    """One message of the topic `symbols`. Prices are in `currency`, `previous_close` is the last price of the session before; null where unknown."""

    symbol: str
    source: str
    name: str | None = None
    currency: str | None = None
    exchange: str | None = None
    previous_close: float | None = None
    market_cap: float | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Ticks in the order of sending, as three columns of one length: symbol, event time (epoch ms) and the tick as a JSON object.

    `gaps` are times in which the source knows that ticks are missing, each given with the tick that ends it: a tick of the batch with the gap's symbol and
    an event time of at least `to`. Gaps that follow from failed attempts, takeovers and silence are found by whoever runs the source.
    """

    symbols: Sequence[str]
    event_times: Sequence[int]
    values: Sequence[bytes]
    gaps: Sequence[Gap] = ()

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[str, int, bytes]]:
        return zip(self.symbols, self.event_times, self.values, strict=True)


class FeedNote(msgspec.Struct, kw_only=True, frozen=True):
    """What a source knows about one symbol. Without a state, only its exchange is known."""

    state: FeedState | None = None
    reason: str = ""
    exchange: str | None = None
    """The code by which the symbol's session is found; that of its metadata if null."""


class Health(msgspec.Struct, kw_only=True, frozen=True):
    """The present state of a source, as it knows it."""

    trouble: str = ""
    """Why a part of its work fails while the rest continues; empty if nothing fails."""
    connections: tuple[Connection, ...] = ()
    budgets: tuple[Budget, ...] = ()
    feeds: Mapping[str, FeedNote] = MappingProxyType({})
    """By symbol; only symbols about which it knows more than that their ticks come or do not."""


class Clock(Protocol):
    """A clock, injected so that tests need not wait."""

    def now_ms(self) -> int:
        """Epoch ms UTC."""
        ...

    async def sleep(self, seconds: float) -> None: ...


class SystemClock:
    """The machine's clock."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


class MarketDataSource(Protocol):
    """One feed with its numbering, and with one event-time clock or several.

    `name` is the `source` of its ticks: the same on every worker and after a restart. A source with several event-time clocks gives the ticks of the others
    the source `name.<part>`, such as `yahoo.LSE`. A symbol's ticks come in the order of their event times; their `seq`, if they have one, rises.

    A source raises errors in its methods, not when it is created. After an error it is `failed`, and its stream is opened again later; the same happens if
    the broker does not confirm its ticks. A `SourceError` with `stops` ends it until the worker starts again.
    """

    @property
    def name(self) -> str: ...

    @property
    def continuous(self) -> bool:
        """Whether its ticks come by themselves, so that silence in an open session is a gap. False for a polled source."""
        ...

    async def start(self) -> None:
        """Opens what outlives an attempt. Called before the first stream, and again if it has raised or if `stop` was called."""
        ...

    async def stop(self) -> None:
        """Closes everything. Called once at the end, after the last stream is closed; also if `start` has raised."""
        ...

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the subscribed symbols. May be called at any time, also while streaming."""
        ...

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """Metadata of those symbols for which the source has any. May be called while streaming; not before `start`."""
        ...

    def stream(self) -> AsyncIterator[Batch]:
        """Yields batches as they come, until the source itself ends or the reading task is cancelled.

        Raises `SourceUnavailable` if a retry can help, else `SourceError`.
        """
        ...

    def health(self) -> Health:
        """Its present state. Cheap, and may be called at any time; does not raise."""
        ...

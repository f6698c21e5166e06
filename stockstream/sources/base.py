"""The contract of a market-data source: it yields batches of ticks of its subscribed symbols, ready for `ticks.raw`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from stockstream.errors import SourceError


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
    """Ticks in the order of sending, as three columns of one length: symbol, event time (epoch ms) and the tick as JSON."""

    symbols: Sequence[str]
    event_times: Sequence[int]
    values: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[tuple[str, int, bytes]]:
        return zip(self.symbols, self.event_times, self.values, strict=True)


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
    """One feed with one event-time clock and one numbering.

    `name` is the ticks' `source`: the same on every worker and after a restart. A symbol's ticks come in the order of their event times; their `seq`, if
    they have one, rises. A source raises errors in its methods, not when it is created. After any error it is `failed`, and its stream is opened again
    later; the same happens if the broker does not confirm its ticks. A source that runs while a part of its work fails may give the reason in a property
    `trouble`, as text; empty if nothing fails.
    """

    @property
    def name(self) -> str: ...

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the subscribed symbols. May be called at any time, also while streaming."""
        ...

    def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """Metadata of those symbols for which the source has any. Called in another thread than the other methods."""
        ...

    def stream(self) -> AsyncIterator[Batch]:
        """Yields batches as they come, until the source itself ends or the reading task is cancelled.

        Raises `SourceUnavailable` if a retry can help, else `SourceError`.
        """
        ...

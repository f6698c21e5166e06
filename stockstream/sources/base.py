"""What a market-data source is: it brings batches of ticks of the symbols it is told, ready for `ticks.raw`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from stockstream.errors import SourceError


class SourceUnavailable(SourceError):
    """The source does not answer, or limits us, for now: streaming anew later can succeed."""

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
    """The time, injected so that tests need not wait."""

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


class Source(Protocol):
    """One feed with one clock and one numbering.

    `name` is the ticks' `source`: the same on every worker and after a restart. A symbol's ticks come in the order of their event times and, where they
    have a `seq`, with rising ones. What it cannot do is raised by its methods, not when it is made: a source that raises, whatever it is, is `failed` and its
    stream is opened again later, and so is one whose ticks the broker does not confirm. A source that goes on while a part of its work fails may say why in
    a property `trouble`, in words; empty where all is well.
    """

    @property
    def name(self) -> str: ...

    def subscribe(self, symbols: Collection[str]) -> None:
        """Bring these symbols from now on and no others. May be called at any time, also while streaming."""
        ...

    def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """Metadata of the symbols that the source knows, by symbol. Called in another thread than the rest."""
        ...

    def stream(self) -> AsyncIterator[Batch]:
        """Batches as they come, without end unless the source itself ends. Cancelling the task that reads it ends it.

        Raises `SourceUnavailable` where trying again can help, else `SourceError`.
        """
        ...

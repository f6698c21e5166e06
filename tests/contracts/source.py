"""What every source must do, written once.

Each source's tests inherit `SourceContract`; those of a source whose ticks do not depend on who asks, `DeterministicSourceContract`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

import msgspec
import pytest

from stockstream.records import Tick
from stockstream.sources.base import Batch, Health, MarketDataSource, SymbolInfo
from tests.patience import PATIENCE_S

T = TypeVar("T")
decode = msgspec.json.Decoder(Tick, strict=True).decode


class FakeClock:
    """Time that passes only while somebody sleeps."""

    def __init__(self, now_ms: int = 1_750_000_000_000) -> None:
        self.ms = now_ms

    def now_ms(self) -> int:
        return self.ms

    async def sleep(self, seconds: float) -> None:
        self.ms += max(1, round(seconds * 1000))
        await asyncio.sleep(0)


async def gather(source: MarketDataSource, ticks: int) -> list[Batch]:
    """Batches until there are this many ticks, or the source's end."""
    found: list[Batch] = []
    stream = source.stream()
    async for batch in stream:
        found.append(batch)
        if sum(map(len, found)) >= ticks:
            break
    await stream.aclose()  # type: ignore[attr-defined]
    return found


class SourceContract(ABC):
    @abstractmethod
    def source(self, clock: FakeClock) -> MarketDataSource:
        """A new source, nothing subscribed to. Called on the loop on which it is used, inside `surroundings`."""

    @property
    @abstractmethod
    def symbols(self) -> list[str]:
        """Two or more symbols that it has, by name."""

    def surroundings(self) -> AbstractAsyncContextManager[Any]:
        """What must run while the source is used, such as a stand-in server. Nothing by default."""
        return nullcontext()

    def clock(self) -> FakeClock:
        return FakeClock()

    def with_source(self, use: Callable[[MarketDataSource], Awaitable[T]]) -> T:
        """What `use` returns of a started source, which is stopped afterwards."""

        async def main() -> T:
            async with self.surroundings():
                source = self.source(self.clock())
                await source.start()
                try:
                    return await use(source)
                finally:
                    await source.stop()

        return asyncio.run(main())

    def stream(self, symbols: list[str], ticks: int = 20) -> list[Batch]:
        async def read(source: MarketDataSource) -> list[Batch]:
            source.subscribe(symbols)
            return await asyncio.wait_for(gather(source, ticks), PATIENCE_S)

        return self.with_source(read)

    def test_ticks_are_ticks_of_the_source_and_say_what_the_batch_says(self) -> None:
        name = self.source(FakeClock()).name
        for batch in self.stream(self.symbols):
            assert len(batch.symbols) == len(batch.event_times) == len(batch.values) == len(batch)
            for symbol, event_time, value in batch:
                tick = decode(value)
                assert (tick.symbol, tick.event_time) == (symbol, event_time)
                assert tick.source == name or tick.source.startswith(f"{name}.")
                assert tick.price is None or tick.price > 0

    def test_a_value_is_one_json_object(self) -> None:
        """Whoever runs the source adds a field at its end."""
        for batch in self.stream(self.symbols):
            assert all(value.startswith(b"{") and value.endswith(b"}") for value in batch.values)

    def test_only_what_is_subscribed_to_comes(self) -> None:
        wanted = self.symbols[:1]
        assert {symbol for batch in self.stream(wanted, 5) for symbol in batch.symbols} == set(wanted)

    def test_a_symbol_comes_in_the_order_of_time_and_of_seq(self) -> None:
        by: dict[str, list[Tick]] = defaultdict(list)
        for batch in self.stream(self.symbols, 50):
            for value in batch.values:
                by[decode(value).symbol].append(decode(value))
        for ticks in by.values():
            assert [tick.event_time for tick in ticks] == sorted(tick.event_time for tick in ticks)
            seqs = [tick.seq for tick in ticks]
            assert set(seqs) == {None} or seqs == sorted(set(seqs))  # type: ignore[type-var]

    def test_the_name_is_the_same_for_another_instance(self) -> None:
        assert self.source(FakeClock()).name == self.source(FakeClock()).name

    def test_it_describes_its_symbols(self) -> None:
        async def describe(source: MarketDataSource) -> tuple[str, list[SymbolInfo]]:
            source.subscribe(self.symbols)
            return source.name, await source.describe(list(reversed(self.symbols)))

        name, described = self.with_source(describe)
        assert [info.symbol for info in described] == sorted(self.symbols)
        assert {info.source for info in described} == {name}

    def test_it_can_be_asked_for_its_health_at_any_time(self) -> None:
        async def main() -> list[Health]:
            async with self.surroundings():
                source = self.source(self.clock())
                found = [source.health()]
                await source.start()
                found.append(source.health())
                source.subscribe(self.symbols)
                await asyncio.wait_for(gather(source, 5), PATIENCE_S)
                found.append(source.health())
                await source.stop()
                return [*found, source.health()]

        for health in asyncio.run(main()):
            assert isinstance(health, Health)
            assert all(connection.symbols >= 0 and connection.since >= 0 for connection in health.connections)
            assert all(0 <= budget.left <= budget.limit for budget in health.budgets)
            assert not set(health.feeds) - set(self.symbols)

    def test_it_says_whether_its_ticks_come_by_themselves(self) -> None:
        assert isinstance(self.source(FakeClock()).continuous, bool)

    def test_one_that_was_never_started_can_be_stopped(self) -> None:
        async def main() -> None:
            async with self.surroundings():
                await asyncio.wait_for(self.source(self.clock()).stop(), PATIENCE_S)

        asyncio.run(main())

    def test_reading_it_can_be_cancelled(self) -> None:
        async def use(source: MarketDataSource) -> None:
            source.subscribe(self.symbols)

            async def read() -> None:
                while True:
                    async for _ in source.stream():
                        await asyncio.sleep(0)

            task = asyncio.create_task(read())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, PATIENCE_S)

        self.with_source(use)


class DeterministicSourceContract(SourceContract):
    """For a source that brings the same ticks again after a restart, or on another worker."""

    def test_another_instance_brings_the_same_ticks(self) -> None:
        first, second = ([value for batch in self.stream(self.symbols) for value in batch.values] for _ in range(2))
        assert first == second

    def test_the_ticks_of_a_symbol_do_not_depend_on_the_other_symbols(self) -> None:
        symbol = self.symbols[0]
        alone = [value for batch in self.stream([symbol], 10) for value in batch.values]
        among = [value for batch in self.stream(self.symbols, 10 * len(self.symbols)) for name, _, value in batch if name == symbol]
        both = min(len(alone), len(among))
        assert both >= 5 and alone[:both] == among[:both]

"""What every source must do, written once.

Each source's tests inherit `SourceContract`; those of a source whose ticks do not depend on who asks, `DeterministicSourceContract`.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import defaultdict

import msgspec
import pytest

from stockstream.records import Tick
from stockstream.sources.base import Batch, MarketDataSource
from tests.patience import PATIENCE_S

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
        """A new source, nothing subscribed to."""

    @property
    @abstractmethod
    def symbols(self) -> list[str]:
        """Two or more symbols that it has, by name."""

    def stream(self, symbols: list[str], ticks: int = 20) -> list[Batch]:
        source = self.source(FakeClock())
        source.subscribe(symbols)
        return asyncio.run(gather(source, ticks))

    def test_ticks_are_ticks_of_the_source_and_say_what_the_batch_says(self) -> None:
        name = self.source(FakeClock()).name
        for batch in self.stream(self.symbols):
            assert len(batch.symbols) == len(batch.event_times) == len(batch.values) == len(batch)
            for symbol, event_time, value in batch:
                tick = decode(value)
                assert (tick.symbol, tick.event_time, tick.source) == (symbol, event_time, name)
                assert tick.price is None or tick.price > 0

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
        source = self.source(FakeClock())
        described = source.describe(list(reversed(self.symbols)))
        assert [info.symbol for info in described] == sorted(self.symbols)
        assert {info.source for info in described} == {source.name}

    def test_reading_it_can_be_cancelled(self) -> None:
        async def main() -> None:
            source = self.source(FakeClock())
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

        asyncio.run(main())


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

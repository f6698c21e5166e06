from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stockstream.errors import SourceError
from stockstream.records import Tick
from stockstream.sources.base import MarketDataSource
from stockstream.sources.simulated import BLOCK_S, CATCH_UP_S, DAY_S, SimulatedMarket, SimulatedSource, default_symbols
from tests.contracts.source import DeterministicSourceContract, FakeClock, decode, gather

DAY = 1_750_000_000 // DAY_S * DAY_S
NAMES = default_symbols(40)


class TestSimulatedSource(DeterministicSourceContract):
    def source(self, clock: FakeClock) -> MarketDataSource:
        return SimulatedSource(7, clock=clock)

    @property
    def symbols(self) -> list[str]:
        return sorted(NAMES[:12])


@given(st.integers(0, 4_000_000_000), st.sets(st.sampled_from(NAMES), min_size=1, max_size=4), st.sampled_from(NAMES))
@settings(max_examples=25, deadline=None)
def test_a_tick_is_a_function_of_seed_symbol_and_second(second: int, others: set[str], symbol: str) -> None:
    alone = SimulatedMarket(3, [symbol]).ticks(second)
    warm = SimulatedMarket(3, sorted(others | {symbol}))
    warm.ticks(second - 1)
    among = {name: value for name, _, value in warm.ticks(second)}
    assert among[symbol] == alone.values[0]
    tick = decode(alone.values[0])
    assert tick.event_time // 1000 == tick.seq == second
    assert tick.bid is not None and tick.ask is not None and tick.price in (tick.bid, tick.ask) and tick.bid < tick.ask
    assert tick.price == round(tick.price, 2) and isinstance(tick.size, int) and tick.size >= 1 and (tick.bid_size or 0) >= 100


def test_another_seed_is_another_market() -> None:
    assert SimulatedMarket(1, NAMES).ticks(DAY).values != SimulatedMarket(2, NAMES).ticks(DAY).values


def test_history_holds_the_very_ticks_in_order() -> None:
    market = SimulatedMarket(1, NAMES)
    first, last = DAY + BLOCK_S - 3, DAY + BLOCK_S + 2
    rows = market.history(first, last).to_pylist()
    ticks = [msgspec.structs.asdict(decode(value)) for second in range(first, last + 1) for value in market.ticks(second).values]
    assert [{name: tick[name] for name in rows[0]} for tick in ticks] == rows
    assert [row["event_time"] for row in rows] == sorted(row["event_time"] for row in rows)
    assert market.history(first, first - 1).num_rows == 0


def mids(market: SimulatedMarket, first: int, seconds: int) -> Any:
    """By second and symbol."""
    table = market.history(first, first + seconds - 1)
    middle = (table["bid"].to_numpy() + table["ask"].to_numpy()) / 2
    return middle.reshape(seconds, len(market.symbols))


def test_prices_do_not_break_between_blocks_nor_days() -> None:
    market = SimulatedMarket(1, default_symbols(100))
    first = DAY + DAY_S - 3 * BLOCK_S
    returns = np.abs(np.diff(np.log(mids(market, first, 6 * BLOCK_S)), axis=0))
    edges = np.arange(1, 6) * BLOCK_S - 1
    usual = np.median(returns[returns > 0])
    assert np.quantile(returns[edges], 0.95) < 6 * usual
    assert np.median(returns[edges][returns[edges] > 0]) < 2 * usual


def test_volatility_clusters_and_directions_do_not() -> None:
    market = SimulatedMarket(1, default_symbols(120))
    returns = np.diff(np.log(mids(market, DAY + 40_000, 3600)[::10]), axis=0)
    returns = np.clip(returns, -0.003, 0.003)                    # the injected moves aside
    size = np.abs(returns)
    assert np.mean([np.corrcoef(column[:-1], column[1:])[0, 1] for column in size.T]) > 0.02
    assert abs(np.corrcoef(returns[:-1].ravel(), returns[1:].ravel())[0, 1]) < 0.04    # what rounding to cents alone brings


def test_symbols_move_with_the_market() -> None:
    returns = np.diff(np.log(mids(SimulatedMarket(1, NAMES), DAY + 40_000, 3600)[::60]), axis=0)
    together = np.corrcoef(np.clip(returns, -0.004, 0.004).T)
    assert together[np.triu_indices(len(together), 1)].mean() > 0.1


def test_volume_has_a_u_shape_and_prices_stay_in_their_region() -> None:
    market = SimulatedMarket(1, NAMES)
    open_, noon, close = (np.median(market.history(DAY + at, DAY + at + 599)["size"].to_numpy()) for at in (0, DAY_S // 2, DAY_S - 600))
    assert open_ > 1.5 * noon < close
    now = mids(market, DAY, 1)[0]
    year = mids(market, DAY + 366 * DAY_S, 1)[0]
    assert np.all((year / now > 0.5) & (year / now < 2))


def test_injected_events_are_what_the_rules_look_for() -> None:
    market = SimulatedMarket(1, default_symbols(60))
    first, seconds = DAY + 50_000, 2400
    events = market.events(first + 400, first + seconds - 70)
    assert {event.kind for event in events} == {"volume_spike", "price_drop", "price_rise", "jump"}
    assert events == sorted(events, key=lambda event: (event.second, event.symbol))
    table = market.history(first, first + seconds - 1)
    columns = {name: table[name].to_numpy().reshape(seconds, -1) for name in ("size", "price")}
    for event in events:
        column, at = market.symbols.index(event.symbol), event.second - first
        if event.kind == "volume_spike":
            sizes = columns["size"][:, column]
            assert sizes[at] == event.size and sizes[at] >= 8 * sizes[at - 299 : at + 1].mean()
        elif event.kind == "price_drop":
            prices = columns["price"][:, column]
            assert -0.0401 <= event.size <= -0.02
            assert (prices[at : at + 60] / prices[at - 60 : at]).min() <= 0.985


def test_metadata_says_where_the_price_comes_from() -> None:
    market = SimulatedMarket(1, NAMES)
    closes = dict(zip(market.symbols, mids(market, DAY - 1, 1)[0], strict=True))
    for info in market.describe(DAY + 1000):
        assert info.previous_close == pytest.approx(closes[info.symbol], rel=2e-3, abs=0.02)
        assert info.market_cap and info.name and (info.currency, info.exchange) == ("USD", "SIM")


def test_default_symbols_are_tickers_all_different_and_a_prefix_of_more() -> None:
    many = default_symbols(20_000)
    assert len(set(many)) == 20_000 and all(name.isalpha() and name.isupper() and len(name) == 5 for name in many)
    assert default_symbols(10) == many[:10]
    with pytest.raises(SourceError, match="100,000"):
        default_symbols(100_001)


def test_bad_symbols_are_refused() -> None:
    for symbols in (["A", "A"], [""], ["X" * 33]):
        with pytest.raises(SourceError):
            SimulatedMarket(1, symbols)


def ticks_by_second(clock: FakeClock, source: SimulatedSource, ticks: int) -> list[Tick]:
    return [decode(value) for batch in asyncio.run(gather(source, ticks)) for value in batch.values]


def test_ticks_come_after_their_moment_and_none_is_left_out() -> None:
    clock = FakeClock(DAY * 1000 + 640)
    source = SimulatedSource(1, clock=clock)
    source.subscribe(NAMES)

    async def main() -> list[tuple[int, int, str]]:
        found = []
        stream = source.stream()
        async for batch in stream:
            found += [(clock.ms, time, symbol) for symbol, time, _ in batch]
            if clock.ms >= DAY * 1000 + 5000:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return found

    found = asyncio.run(main())
    assert all(0 <= now - time <= 200 for now, time, _ in found)
    whole = range(DAY + 1, DAY + 4)
    assert {(time // 1000, symbol) for _, time, symbol in found if time // 1000 in whole} == {(second, symbol) for second in whole for symbol in NAMES}
    assert len({(time, symbol) for _, time, symbol in found}) == len(found)


@pytest.mark.parametrize(("stall_s", "left_out"), [(CATCH_UP_S - 1, False), (60, True)])
def test_a_stall_is_caught_up_or_reported(stall_s: int, left_out: bool, caplog: pytest.LogCaptureFixture) -> None:
    clock = FakeClock(DAY * 1000)
    source = SimulatedSource(1, clock=clock)
    source.subscribe(NAMES[:1])

    async def main() -> list[int]:
        found: list[int] = []
        stream = source.stream()
        async for batch in stream:
            found += [time // 1000 - DAY for time in batch.event_times]
            if len(found) == 3:
                clock.ms += stall_s * 1000
            if clock.ms > (DAY + stall_s + 10) * 1000:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return found

    with caplog.at_level(logging.WARNING):
        seconds = asyncio.run(main())
    gaps = set(range(seconds[0], seconds[-1])) - set(seconds)
    assert bool(gaps) is left_out
    assert ("stalled for" in caplog.text) is left_out
    assert len(set(seconds)) == len(seconds) and len(gaps) <= max(0, stall_s - CATCH_UP_S + 1)


def test_a_change_of_symbols_takes_effect_and_repeats_nothing() -> None:
    clock = FakeClock(DAY * 1000)
    source = SimulatedSource(1, clock=clock)
    source.subscribe(NAMES[:3])

    async def main() -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        stream = source.stream()
        async for batch in stream:
            found += [(time // 1000 - DAY, symbol) for symbol, time, _ in batch]
            if clock.ms >= (DAY + 3) * 1000:
                source.subscribe(NAMES[2:5])
            if clock.ms >= (DAY + 7) * 1000:
                break
        await stream.aclose()  # type: ignore[attr-defined]
        return found

    found = asyncio.run(main())
    assert len(set(found)) == len(found)
    assert {symbol for second, symbol in found if second < 3} == set(NAMES[:3])
    assert {symbol for second, symbol in found if second >= 4} == set(NAMES[2:5])
    assert {second for second, symbol in found if symbol == NAMES[2]} >= set(range(7))


def test_events_are_logged_as_they_happen(tmp_path: Path) -> None:
    market = SimulatedMarket(1, NAMES)
    event = market.events(DAY, DAY + BLOCK_S)[0]
    log = tmp_path / "state" / "events.jsonl"
    clock = FakeClock((event.second - 1) * 1000)
    source = SimulatedSource(1, clock=clock, events_file=log)
    source.subscribe(NAMES)
    ticks_by_second(clock, source, 3 * len(NAMES))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"time": event.second * 1000, "symbol": event.symbol, "kind": event.kind, "size": event.size} in lines
    assert len(lines) == len(market.events(event.second - 1, event.second + 1))


def test_a_log_of_events_that_cannot_be_written_does_not_stop_the_market(tmp_path: Path) -> None:
    event = SimulatedMarket(1, NAMES).events(DAY, DAY + BLOCK_S)[0]
    blocked = tmp_path / "file"
    blocked.write_text("")
    source = SimulatedSource(1, clock=FakeClock((event.second - 1) * 1000), events_file=blocked / "events.jsonl")
    source.subscribe(NAMES)
    assert source.health().trouble == ""
    assert sum(map(len, asyncio.run(gather(source, 3 * len(NAMES))))) >= 3 * len(NAMES)
    assert "cannot be written" in source.health().trouble


def test_a_second_stream_goes_on_where_the_first_ended() -> None:
    clock = FakeClock(DAY * 1000)
    source = SimulatedSource(1, clock=clock)
    source.subscribe(NAMES)
    found = [tick for _ in range(2) for batch in asyncio.run(gather(source, 3 * len(NAMES))) for tick in batch]
    seconds = sorted({time // 1000 for _, time, _ in found})
    assert len({(symbol, time) for symbol, time, _ in found}) == len(found)
    assert seconds == list(range(seconds[0], seconds[-1] + 1))
    whole = [second for second in seconds[1:-1] if sum(time // 1000 == second for _, time, _ in found) != len(NAMES)]
    assert whole == []


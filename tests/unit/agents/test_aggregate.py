"""When `aggregate` tells of a symbol in `latest`."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from agents.aggregate import LATEST_S, Aggregation, stage
from stockstream.records import WINDOWS_SCHEMA
from stockstream.transforms.windows.windows import Part, Rows


@pytest.fixture
async def aggregation() -> AsyncIterator[Aggregation]:
    await stage.release(0)
    yield stage
    await stage.release(0)


def told(aggregation: Aggregation, *rows: tuple[str, int, float | None], source: str = "simulated.1") -> list[tuple[str, int]]:
    symbols, seconds, prices = zip(*rows, strict=True)
    known = sorted(set(symbols))
    values = {column.name: np.zeros(len(rows), column.type.to_pandas_dtype()) for column in WINDOWS_SCHEMA if column.type != pa.string()}
    values |= {"second": np.array(seconds), "price": np.array(prices, float)}
    part = Part(source, known, np.array([known.index(symbol) for symbol in symbols]), values)
    messages = aggregation._latest(Rows(0, 1, parts=[part]), 0)
    return [(str(message.key, "utf-8"), msgspec.json.decode(message.value)["second"]) for message in messages if message.key]


async def test_the_last_priced_row_of_a_symbol_is_told_once_a_minute(aggregation: Aggregation) -> None:
    assert told(aggregation, ("A", 100, 1.0), ("B", 100, None), ("A", 101, 2.0)) == [("A", 101)]
    assert told(aggregation, ("A", 101 + LATEST_S - 1, 3.0), ("B", 102, 5.0)) == [("B", 102)]
    again = next(second for second in range(101, 101 + 2 * LATEST_S) if told(aggregation, ("A", second, 4.0)))
    assert again >= 101 + LATEST_S
    assert told(aggregation, ("A", again + LATEST_S - 1, 5.0)) == []
    assert told(aggregation, ("A", again + LATEST_S, 6.0)) == [("A", again + LATEST_S)]


async def test_symbols_heard_first_in_one_second_are_not_all_told_in_one_later(aggregation: Aggregation) -> None:
    symbols = [f"S{number}" for number in range(300)]
    assert len(told(aggregation, *((symbol, 100, 1.0) for symbol in symbols))) == 300
    counts = [len(told(aggregation, *((symbol, second, 1.0) for symbol in symbols))) for second in range(101, 101 + 2 * LATEST_S)]
    assert sum(counts) >= 300 and max(counts) < 30


async def test_another_source_of_a_symbol_is_told_at_once(aggregation: Aggregation) -> None:
    told(aggregation, ("A", 100, 1.0))
    assert told(aggregation, ("A", 101, 2.0), source="yahoo") == [("A", 101)]


async def test_what_a_rebalance_may_have_dropped_is_told_again(aggregation: Aggregation) -> None:
    """Else a symbol that has gone quiet would keep an old face, or none."""
    assert told(aggregation, ("A", 100, 1.0)) == [("A", 100)]
    await aggregation.release(0)
    assert told(aggregation, ("A", 100, 1.0)) == [("A", 100)]

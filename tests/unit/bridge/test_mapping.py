"""What a bridge makes of foreign messages."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import pytest

from stockstream.bridge.mapping import EXAMPLES, Counts, Mapper
from stockstream.errors import SourceError
from stockstream.transforms.cleaning.raw_format import RawFormat, preset

NOW = 1_700_000_000_000


class Foreign(NamedTuple):
    partition: int
    offset: int
    timestamp: int
    value: bytes | None


def canonical(text: str) -> str:
    if " " in text:
        raise SourceError(f"{text!r} is no symbol")
    return text.replace(".", "-").upper()


def read(message: Any, **options: Any) -> tuple[list[dict[str, Any]], Counts]:
    mapper, counts = Mapper(RawFormat.of(preset("polygon")), canonical, **options), Counts()
    value = message if isinstance(message, bytes) or message is None else json.dumps(message).encode()
    ticks = mapper.read(Foreign(3, 7, NOW, value), counts)
    assert all(json.loads(tick.value)["symbol"] == tick.symbol for tick in ticks)
    return [json.loads(tick.value) for tick in ticks], counts


def trade(symbol: str = "BRK.B", **more: Any) -> dict[str, Any]:
    return {"ev": "T", "sym": symbol, "x": 4, "i": "1", "p": 10.5, "s": 100, "t": NOW} | more


def test_a_foreign_message_becomes_ticks_with_canonical_symbols() -> None:
    ticks, counts = read([trade(), {"ev": "Q", "sym": "aapl", "bp": 1, "ap": 2, "t": NOW + 5}, {"ev": "status"}])
    assert ticks == [
        {"symbol": "BRK-B", "event_time": NOW, "price": 10.5, "size": 100, "source": "polygon", "exchange": "4", "trade_id": "4:1"},
        {"symbol": "AAPL", "event_time": NOW + 5, "price": None, "size": 0, "source": "polygon", "bid": 1, "ask": 2},
    ]
    assert (counts.messages, counts.ticks, counts.ignored, counts.first, counts.last) == (1, 2, {"status": 1}, NOW, NOW + 5)


def test_a_tick_of_our_own_passes_as_it_is() -> None:
    own = {"symbol": "brk.b", "event_time": NOW, "price": 10.5, "size": 0.5, "source": "mine", "seq": 7, "snapshot": True}
    assert read([own])[0] == [own]
    assert read(own, source="other")[0] == [own | {"source": "other"}]
    assert read({"punctuate": NOW // 1000})[1].ignored == {"punctuation": 1}


def test_only_the_symbols_that_are_wanted() -> None:
    ticks, counts = read([trade(), trade("MSFT")], symbols=["MSFT"], source="us")
    assert [(tick["symbol"], tick["source"]) for tick in ticks] == [("MSFT", "us")]
    assert (counts.ticks, counts.filtered) == (1, 1)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"{", "invalid_json"),
        (None, "empty_message"),
        ({"hello": 1}, "missing_field"),
        ([trade(p="x")], "invalid_type"),
        ([trade(p=0)], "out_of_range"),
        ([trade(t=NOW * 1000)], "out_of_range"),
        ([trade("A B")], "invalid_symbol"),
        ([trade(), {"ev": "?"}], "invalid_shape"),
    ],
)
def test_what_cannot_be_used_is_counted_with_an_example(message: Any, reason: str) -> None:
    _, counts = read(message)
    assert counts.rejected == {reason: 1}
    [example] = counts.examples
    assert (example.partition, example.offset, example.reason) == (3, 7, reason) and example.detail


def test_examples_are_few_and_short() -> None:
    total = Counts()
    for _ in range(3):
        _, counts = read([trade(), {"ev": "?", "x": "y" * 1000}, {"ev": "?"}])
        total.add(counts)
    assert total.rejected == {"invalid_shape": 6} and len(total.examples) == EXAMPLES
    assert all(len(example.value) < 210 for example in total.examples)

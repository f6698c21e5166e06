"""Foreign JSON: the documented messages of each vendor, format files, and that `clean` gives the same for a log however it is cut."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream import cli
from stockstream.errors import SettingsError, StateError
from stockstream.records import Tick
from stockstream.settings import load_settings, read_format_file
from stockstream.transforms.batch import RawRecord, run
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.formats import Format, FormatError
from stockstream.transforms.cleaning.presets import PRESETS
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.partitioning import home_partition

VENDORS: dict[str, list[tuple[Any, list[dict[str, Any]]]]] = {
    "polygon": [
        ([{"ev": "status", "status": "connected", "message": "Connected Successfully"}], []),
        (
            [
                {"ev": "T", "sym": "MSFT", "x": 4, "i": "12345", "z": 3, "p": 114.125, "s": 100, "c": [0, 12], "t": 1536036818784, "q": 3681328},
                {"ev": "Q", "sym": "MSFT", "bx": 4, "bp": 114.125, "bs": 100, "ax": 7, "ap": 114.128, "as": 160, "c": 0, "i": [604], "t": 1536036818785},
                {"ev": "T", "sym": "AAPL", "x": 4, "i": "7", "p": 190, "s": 0, "ds": "0.25", "t": 1536036818786, "trfi": 202, "trft": 1536036818700},
            ],
            [
                {"symbol": "MSFT", "event_time": 1536036818784, "price": 114.125, "size": 100, "source": "polygon", "exchange": "4", "condition": "0,12",
                 "trade_id": "4:12345"},
                {"symbol": "MSFT", "event_time": 1536036818785, "price": None, "size": 0, "source": "polygon", "bid": 114.125, "ask": 114.128,
                 "bid_size": 100, "ask_size": 160},
                {"symbol": "AAPL", "event_time": 1536036818786, "price": 190, "size": 0.25, "source": "polygon", "exchange": "4", "trade_id": "4:202:7"},
            ],
        ),
        (
            [{"ev": "XT", "pair": "BTC-USD", "p": 33021.9, "t": 1610462007425, "s": 0.01616617, "c": [2], "i": 14272084, "x": 3, "r": 1610462007576}],
            [{"symbol": "BTC-USD", "event_time": 1610462007425, "price": 33021.9, "size": 0.01616617, "source": "polygon", "exchange": "3", "condition": "2",
              "trade_id": "3:14272084"}],
        ),
        ([{"ev": "AM", "sym": "GTE", "v": 4110, "c": 0.4498, "s": 1610144640000, "e": 1610144700000}], []),
    ],
    "alpaca": [
        ([{"T": "success", "msg": "authenticated"}], []),
        ([{"T": "subscription", "trades": ["AAPL"], "quotes": ["AMD"], "bars": ["*"]}], []),
        ([{"T": "error", "code": 400, "msg": "invalid syntax"}], []),
        (
            [
                {"T": "t", "i": 96921, "S": "AAPL", "x": "D", "p": 126.55, "s": 1, "t": "2021-02-22T15:51:44.208Z", "c": ["@", "I"], "z": "C"},
                {"T": "q", "S": "AMD", "bx": "U", "bp": 87.66, "bs": 1, "ax": "X", "ap": 87.67, "as": 5, "t": "2021-02-22T15:51:45.335689322Z", "z": "C"},
            ],
            [
                {"symbol": "AAPL", "event_time": 1614009104208, "price": 126.55, "size": 1, "source": "alpaca", "exchange": "D", "condition": "@,I",
                 "trade_id": "D:96921"},
                {"symbol": "AMD", "event_time": 1614009105335, "price": None, "size": 0, "source": "alpaca", "bid": 87.66, "ask": 87.67, "bid_size": 1,
                 "ask_size": 5},
            ],
        ),
    ],
    "finnhub": [
        ({"type": "ping"}, []),
        ({"type": "error", "msg": "Subscribing to too many symbols"}, []),
        ({"type": "trade", "data": []}, []),
        (
            {"data": [{"c": ["1", "8"], "p": 122.1, "s": "TSLA", "t": 1672348887195, "v": 1},
                      {"c": None, "p": 7296.89, "s": "BINANCE:BTCUSDT", "t": 1575526691134, "v": 0.011467}], "type": "trade"},
            [
                {"symbol": "TSLA", "event_time": 1672348887195, "price": 122.1, "size": 1, "source": "finnhub", "condition": "1,8"},
                {"symbol": "BINANCE:BTCUSDT", "event_time": 1575526691134, "price": 7296.89, "size": 0.011467, "source": "finnhub"},
            ],
        ),
    ],
    "binance": [
        ({"result": None, "id": 1}, []),
        ({"error": {"code": 2, "msg": "Invalid request: unknown variant"}, "id": 1}, []),
        (
            {"e": "trade", "E": 1672515782136, "s": "BNBBTC", "t": 12345, "p": "0.00100000", "q": "100", "T": 1672515782130, "m": True, "M": True},
            [{"symbol": "BNBBTC", "event_time": 1672515782130, "price": 0.001, "size": 100, "source": "binance", "trade_id": "12345"}],
        ),
        (
            {"stream": "bnbbtc@aggTrade", "data": {"e": "aggTrade", "E": 1672515782136, "s": "BNBBTC", "a": 12345, "p": "0.001", "q": "100.5", "f": 100,
                                                   "l": 105, "T": 1672515782130, "m": True, "M": True}},
            [{"symbol": "BNBBTC", "event_time": 1672515782130, "price": 0.001, "size": 100.5, "source": "binance", "trade_id": "aggTrade:12345"}],
        ),
        ({"u": 400900217, "s": "BNBUSDT", "b": "25.35190000", "B": "31.21000000", "a": "25.36520000", "A": "40.66000000"}, []),
        (
            {"e": "bookTicker", "u": 400900217, "E": 1568014460893, "T": 1568014460891, "s": "BNBUSDT", "b": "25.3519", "B": "31.21", "a": "25.3652",
             "A": "40.66"},
            [{"symbol": "BNBUSDT", "event_time": 1568014460891, "price": None, "size": 0, "source": "binance", "bid": 25.3519, "ask": 25.3652,
              "bid_size": 31.21, "ask_size": 40.66}],
        ),
    ],
    "coinbase": [
        ({"type": "subscriptions", "channels": [{"name": "matches", "product_ids": ["BTC-USD"]}]}, []),
        ({"type": "heartbeat", "sequence": 90, "last_trade_id": 20, "product_id": "BTC-USD", "time": "2014-11-07T08:19:28.464459Z"}, []),
        (
            {"type": "match", "trade_id": 10, "sequence": 50, "maker_order_id": "ac928c66", "taker_order_id": "132fb6ae", "time": "2014-11-07T08:19:27.028459Z",
             "product_id": "BTC-USD", "size": "5.23512", "price": "400.23", "side": "sell"},
            [{"symbol": "BTC-USD", "event_time": 1415348367028, "price": 400.23, "size": 5.23512, "source": "coinbase", "trade_id": "10"}],
        ),
        (
            {"type": "ticker", "sequence": 37475248783, "product_id": "ETH-USD", "price": "1285.22", "open_24h": "1310.79", "best_bid": "1285.04",
             "best_bid_size": "0.46688654", "best_ask": "1285.27", "best_ask_size": "1.56637040", "side": "buy", "time": "2022-10-19T23:28:22.061769Z",
             "trade_id": 370843401, "last_size": "11.4396987"},
            [{"symbol": "ETH-USD", "event_time": 1666222102061, "price": 1285.22, "size": 11.4396987, "source": "coinbase", "bid": 1285.04, "ask": 1285.27,
              "bid_size": 0.46688654, "ask_size": 1.5663704, "trade_id": "370843401"}],
        ),
        ({"channel": "subscriptions", "timestamp": "2023-02-09T20:33:57Z", "events": [{"subscriptions": {"market_trades": ["ETH-USD"]}}]}, []),
        ({"channel": "heartbeats", "timestamp": "2023-06-23T20:31:26Z", "events": [{"current_time": "2023-06-23 20:31:56", "heartbeat_counter": 3049}]}, []),
        (
            {"channel": "market_trades", "client_id": "", "timestamp": "2023-02-09T20:19:35.39625135Z", "sequence_num": 0, "events": [
                {"type": "snapshot", "trades": [
                    {"trade_id": "1", "product_id": "ETH-USD", "price": "9", "size": "9", "side": "BUY", "time": "2019-08-14T20:42:26Z"}]},
                {"type": "update", "trades": [
                    {"trade_id": "2", "product_id": "ETH-USD", "price": "1260.01", "size": "0.3", "side": "BUY", "time": "2019-08-14T20:42:27.265Z"}]}]},
            [{"symbol": "ETH-USD", "event_time": 1565815347265, "price": 1260.01, "size": 0.3, "source": "coinbase", "trade_id": "2"}],
        ),
        (
            {"channel": "ticker", "client_id": "", "timestamp": "2023-02-09T20:30:37.167359596Z", "sequence_num": 0, "events": [{"type": "update", "tickers": [
                {"type": "ticker", "product_id": "BTC-USD", "price": "21932.98", "volume_24_h": "16038", "best_bid": "21931.98", "best_bid_quantity": "8000.21",
                 "best_ask": "21933.98", "best_ask_quantity": "8038.07770938"}]}]},
            [{"symbol": "BTC-USD", "event_time": 1675974637167, "price": None, "size": 0, "source": "coinbase", "bid": 21931.98, "ask": 21933.98,
              "bid_size": 8000.21, "ask_size": 8038.07770938}],
        ),
    ],
}  # fmt: skip
"""By format, messages in the shapes that the vendors document, and the ticks that they bring."""

ACME = """
source = "acme"
unit = "ns"
events = ["payload/fills"]

[[ignore]]
name = "heartbeat"
when = { "/kind" = "hb" }

[[trade]]
when = { "/kind" = ["fill", "late_fill"], live = true }
symbol = "instrument/ticker"
event_time = ["executed", "/sent"]
price = "px"
size = "qty"
exchange = "../venue"
currency = "instrument/ccy"
seq = "no"
trade_id = "../venue+no"
"""


def fields(tick: Any) -> dict[str, Any]:
    """What a tick has, of those values that are not the defaults."""
    assert isinstance(tick, Tick), tick
    default = Tick(symbol="", event_time=0, price=None)
    named = {name: getattr(tick, name) for name in Tick.__struct_fields__}
    return {name: value for name, value in named.items() if name in ("price", "source") or value != getattr(default, name)}


def read(found: RawFormat | str, message: Any) -> tuple[Any, Counter[str]]:
    ignored: Counter[str] = Counter()
    raw_format = RawFormat.parse(found, read_format_file) if isinstance(found, str) else found
    assert raw_format is not None
    return raw_format.read(msgspec.json.encode(message), lambda kind: ignored.update((kind,))), ignored


def of(text: str, name: str = "acme") -> RawFormat:
    return RawFormat.of(Format(name, text))


@pytest.mark.parametrize("name", VENDORS)
def test_the_documented_messages_of_a_vendor(name: str) -> None:
    for message, ticks in VENDORS[name]:
        found, ignored = read(name, message)
        assert found is not None, message
        assert [fields(tick) for _, tick in found] == ticks
        assert ignored or ticks, "what brings no tick is counted"


def test_massive_is_polygon() -> None:
    found, _ = read("massive", VENDORS["polygon"][1][0])
    assert {tick.source for _, tick in found} == {"massive"}


def test_every_preset_has_messages_here() -> None:
    assert set(VENDORS) | {"massive"} == set(PRESETS)


def test_a_file_of_ones_own() -> None:
    fills = [
        {"instrument": {"ticker": "AAA", "ccy": "EUR"}, "executed": 1700000000123456789, "px": "10.50", "qty": 3, "live": True, "no": 7},
        {"instrument": {"ticker": "BBB"}, "px": 11, "qty": "0.5", "live": True, "no": "8"},
        {"instrument": {"ticker": "CCC"}, "px": 12, "qty": 1, "live": False},
        {"instrument": {"ticker": "DDD"}, "px": "12,5", "qty": 1, "live": True},
        {"instrument": {}, "px": 12, "qty": 1, "live": True},
    ]
    message = {"kind": "fill", "sent": "2023-11-14T22:13:21.5+00:00", "payload": {"venue": "XETR", "fills": fills}}
    found, ignored = read(of(ACME), message)
    assert [place for place, _ in found] == [0, 1, 2, 3, 4] and not ignored
    assert fields(found[0][1]) == {
        "symbol": "AAA", "event_time": 1700000000123, "price": 10.5, "size": 3, "source": "acme", "exchange": "XETR", "currency": "EUR", "seq": 7,
        "trade_id": "XETR:7",
    }  # fmt: skip
    assert fields(found[1][1])["event_time"] == 1700000001500
    assert [found[place][1] for place in (2, 3, 4)] == [
        ("invalid_shape", "as acme: no rule is for this event"),
        ("invalid_type", "as acme: px (price) must be a number, is '12,5'"),
        ("missing_field", "as acme: instrument/ticker (symbol) is missing"),
    ]
    assert read(of(ACME), {"kind": "hb", "payload": {"fills": []}}) == ([], {"empty": 1})
    assert read(of(ACME), {"kind": "other"}) == (None, {})


def test_the_example_of_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    section = text[text.index("## A format file") : text.index("- **Paths.**")]
    blocks = ["\n".join(line[4:] for line in block.splitlines()) for block in re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE)]
    sent, file = (block.strip() for block in blocks if block.strip())
    fill, heartbeat = sent.rsplit("\n", 1)
    [(_, tick)], _ = read(of(file, "other"), json.loads(fill))
    assert fields(tick) == {
        "symbol": "SAP", "event_time": 1796049000123, "price": 243.15, "size": 20, "source": "acme", "exchange": "XETR", "currency": "EUR",
        "trade_id": "XETR:4711",
    }  # fmt: skip
    assert read(of(file), json.loads(heartbeat)) == ([], {"heartbeat": 1})


@pytest.mark.parametrize(
    ("value", "unit", "want"),
    [
        (1700000000, "s", 1700000000000),
        (1700000000.123, "s", 1700000000123),
        ("1700000000.1239", "s", 1700000000123),
        (1700000000123, "ms", 1700000000123),
        (1700000000123.9, "ms", 1700000000123),
        (1700000000123456, "us", 1700000000123),
        (1700000000123456789, "ns", 1700000000123),
        ("1700000000123456789", "ns", 1700000000123),
        ("2023-11-14T22:13:20.123456789Z", "", 1700000000123),
        ("2023-11-14T23:13:20.123+01:00", "", 1700000000123),
        ("2023-11-14 22:13:20.123", "utc", 1700000000123),
        ("2023-11-14 22:13:20.123", "", "its zone"),
        (1700000000123, "", "the format has no unit"),
        ("yesterday", "ms", "ISO 8601"),
        (True, "ms", "must be a time"),
        ([], "ms", "must be a time"),
    ],
)
def test_times(value: Any, unit: str, want: Any) -> None:
    head = "utc = true" if unit == "utc" else f'unit = "{unit}"' if unit else ""
    text = f'{head}\n[[trade]]\nwhen = {{ k = 1 }}\nsymbol = "s"\nevent_time = "t"\nprice = "p"\nsize = "q"'
    [(_, found)], _ = read(of(text), {"k": 1, "s": "A", "t": value, "p": 1, "q": 1})
    if isinstance(want, int):
        assert found.event_time == want
    else:
        assert found[0] == "invalid_type" and want in found[1]


def test_several_formats_and_the_sources_of_their_ticks() -> None:
    both = "us=polygon,crypto=coinbase"
    trade, match = VENDORS["polygon"][1][0][0], VENDORS["coinbase"][2][0]
    assert [tick.source for _, tick in read(both, trade)[0]] == ["us"]
    assert [tick.source for _, tick in read(both, match)[0]] == ["crypto"]
    assert [tick.source for _, tick in read(both, [trade, match])[0]] == ["us", "crypto"]
    named = RawFormat.of(Format("mine", 'unit = "ms"\n[[trade]]\nsymbol = "s"\nevent_time = "t"\nprice = "p"\nsize = "q"\nsource = "source"'), "feed")
    for name, want in (("feed", "feed"), ("feed.a", "feed.a"), (None, "feed")):
        assert read(named, {"s": "A", "t": 1, "p": 1, "q": 1, "source": name})[0][0][1].source == want
    assert read(named, {"s": "A", "t": 1, "p": 1, "q": 1, "source": "other"})[0] is None, "a message that names another source is none of this one"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("polygn", "neither one of the formats polygon, massive, alpaca"),
        ("us=", "neither a format"),
        ("=polygon", "neither a format"),
        ("polygon,polygon", "given twice"),
        ("none.toml", "cannot be read: No such file"),
    ],
)
def test_a_setting_that_cannot_be_used(text: str, what: str) -> None:
    with pytest.raises(SettingsError, match=what) as found:
        load_settings(raw_format=text)
    assert "\n" not in str(found.value) and "STOCKSTREAM_RAW_FORMAT" in str(found.value)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "at least one"),
        ("x = 1", "unknown field `x`"),
        ("[[trade]]\nsymbol = 's'", "names no event_time"),
        ("[[trade]]\nsymbol = 's'\nevent_time = 't'\nprice = 'p'", "neither size nor day_volume"),
        ("[[trade]]\nsymbl = 's'", "unknown field `symbl`"),
        ("[[quote]]\nsymbol = 's'\nevent_time = 't'", "neither bid nor ask"),
        ("[[quote]]\nsymbol = 's'\nevent_time = 't'\nbid = 'b'\nprice = 'p'", "has a price"),
        ("[[ignore]]\n[[quote]]\nsymbol = 's'\nevent_time = 't'\nbid = 'b'", "would ignore everything"),
        ("unit = 'm'\n[[quote]]\nsymbol = 's'\nevent_time = 't'\nbid = 'b'", "none of s, ms, us, ns"),
        ("[[quote]]\nwhen = { a = { b = 1 } }\nsymbol = 's'\nevent_time = 't'\nbid = 'b'", "takes a text"),
        ("[[trade", "Expected"),
    ],
)
def test_a_file_that_cannot_be_used(text: str, what: str) -> None:
    with pytest.raises(FormatError, match=what):
        Format("acme", text)


# -- in clean -------------------------------------------------------------------

NOW = 1_700_000_000_000
HOME = [symbol for symbol in (f"S{number}" for number in range(60)) if home_partition(symbol, 8) == 0][:4]


def cleaner(text: str = "polygon", **changes: Any) -> Cleaner:
    options: dict[str, Any] = {"lateness_ms": 200, "revise_s": 30, "log": "x", "raw_format": RawFormat.parse(text, read_format_file)} | changes
    return Cleaner(0, 8, **options)


def trade(symbol: str, time: int, price: Any = 10.0, **more: Any) -> dict[str, Any]:
    return {"ev": "T", "sym": symbol, "x": 4, "i": str(time), "p": price, "s": 100, "t": time, **more}


def own(symbol: str, time: int) -> dict[str, Any]:
    return {"symbol": symbol, "event_time": time, "price": 10.0, "size": 100, "source": "mine"}


def judged(core: Cleaner, *messages: Any) -> tuple[list[tuple[int, int, str, str]], list[tuple[int, int, str, str]]]:
    begin = max(core.expect, 0)
    values = [message if isinstance(message, bytes) else msgspec.json.encode(message) for message in messages]
    rejections = core.chunk([RawRecord(begin + number, NOW, value) for number, value in enumerate(values)])
    frame = core.make_frame()
    assert frame is not None
    rows = frame.rows.to_pydict()
    accepted = list(zip(rows["offset"], rows["index"], rows["symbol"], rows["source"], strict=True))
    return [(one.offset, one.index, one.reason, one.value or "") for one in rejections], accepted


def test_foreign_messages_our_own_ticks_and_punctuations_side_by_side() -> None:
    core = cleaner()
    a, b = HOME[:2]
    status = {"ev": "status", "status": "connected"}
    rejected, accepted = judged(
        core, [status, trade(a, NOW), trade(b, NOW)], own(HOME[2], NOW), [own(HOME[2], NOW + 1)], {"punctuate": NOW // 1000, "source": "polygon"}, [status],
        [trade(a, NOW + 1500), own(HOME[2], NOW + 2)],
    )  # fmt: skip
    assert not rejected
    assert accepted == [
        (0, 1, a, "polygon"), (0, 2, b, "polygon"), (1, 0, HOME[2], "mine"), (2, 0, HOME[2], "mine"), (5, 0, a, "polygon"), (5, 1, HOME[2], "mine"),
    ]  # fmt: skip
    assert core.noted["ignored", "status"] == 2
    assert core.memory.sources["polygon"].closed == NOW // 1000


def test_what_is_rejected_names_the_event() -> None:
    core = cleaner("polygon,finnhub")
    away = next(symbol for symbol in ("T1", "T2", "T3") if home_partition(symbol, 8) != 0)
    wrong = trade(HOME[0], NOW, price="x")
    seconds = trade(HOME[0], NOW // 1000)
    envelope = {"type": "trade", "data": [{"s": HOME[1], "t": NOW, "p": 1, "v": 1}, {"s": away, "t": NOW, "p": 1, "v": 1}]}
    rejected, accepted = judged(core, [trade(HOME[0], NOW), wrong, seconds, {"ev": "?"}], envelope, {"what": 1}, b"{", b'{"symbol":"AAA"}')
    assert [(offset, index, reason) for offset, index, reason, _ in rejected] == [
        (0, 1, "invalid_type"), (0, 2, "out_of_range"), (0, 3, "invalid_shape"), (1, 1, "wrong_partition"), (2, 0, "missing_field"), (3, 0, "invalid_json"),
        (4, 0, "missing_field"),
    ]  # fmt: skip
    assert [json.loads(rejected[number][3]) for number in (0, 2, 3)] == [wrong, {"ev": "?"}, envelope["data"][1]]
    assert [row[:3] for row in accepted] == [(0, 0, HOME[0]), (1, 0, HOME[1])]


def test_a_trade_that_comes_again_counts_once() -> None:
    rejected, accepted = judged(cleaner(), [trade(HOME[0], NOW)], [trade(HOME[0], NOW)])
    assert [reason for _, _, reason, _ in rejected] == ["duplicate"] and len(accepted) == 1


messages = st.lists(
    st.one_of(
        st.builds(lambda s, t, p: [trade(HOME[s], NOW - t, p)], st.integers(0, 3), st.integers(0, 5000), st.floats(1, 20)),
        st.builds(lambda s, t: own(HOME[s], NOW - t), st.integers(0, 3), st.integers(0, 5000)),
        st.just([{"ev": "status"}]), st.just({"ev": "?"}), st.just([]),
        st.builds(lambda s, t: [trade(HOME[s], NOW - t), trade(HOME[0], NOW - t + 1), {"ev": "A"}], st.integers(0, 3), st.integers(0, 5000)),
    ),
    max_size=40,
)  # fmt: skip


@given(messages, st.integers(1, 9))
def test_no_cutting_of_the_log_changes_anything(found: list[Any], chunk: int) -> None:
    raw_format = RawFormat.parse("polygon", read_format_file)
    records = [RawRecord(number, NOW, msgspec.json.encode(message)) for number, message in enumerate(found)]
    whole, cut = (run(records, partition=0, partitions=8, raw_format=raw_format, chunk=size) for size in (1000, chunk))
    assert whole.rejections == cut.rejections
    assert whole.rows().drop_columns("offset").equals(cut.rows().drop_columns("offset")) or whole.rows().num_rows == cut.rows().num_rows


NAMES = ["ev", "T", "e", "type", "data", "channel", "events", "trades", "sym", "S", "s", "t", "p", "q", "k"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(json_values, st.sampled_from(sorted(PRESETS)))
def test_no_message_raises(message: Any, name: str) -> None:
    core = cleaner(name)
    rejected, _ = judged(core, message)
    assert all(reason != "internal_error" for _, _, reason, _ in rejected)


def test_the_format_belongs_to_the_log(tmp_path: Path) -> None:
    file = tmp_path / "acme.toml"
    file.write_text(ACME)
    core = cleaner(str(file))
    judged(core, own(HOME[0], NOW))
    stored = dict(core.records(0))

    def restore(text: str) -> Cleaner:
        return Cleaner.restore(0, 8, stored, lateness_ms=200, revise_s=30, raw_format=RawFormat.parse(text, read_format_file))

    moved = tmp_path / "acme2.toml"
    moved.write_text(ACME.replace('source = "acme"', 'source   =   "acme" # the same'))
    assert restore(str(moved)).expect == 1
    for other in ("", "polygon"):
        with pytest.raises(StateError, match=r"STOCKSTREAM_RAW_FORMAT .* this log was begun with acme="):
            restore(other)
    moved.write_text(ACME.replace('unit = "ns"', 'unit = "us"'))
    with pytest.raises(StateError, match="use another STOCKSTREAM_TOPIC_PREFIX"):
        restore(str(moved))


def test_a_log_without_a_record_takes_any_format() -> None:
    stored = dict(cleaner("").records(0))
    assert Cleaner.restore(0, 8, stored, lateness_ms=200, revise_s=30, raw_format=RawFormat.parse("polygon", read_format_file)).raw_format is not None


def test_a_log_of_an_earlier_release_has_no_format() -> None:
    core = cleaner("")
    judged(core, own(HOME[0], NOW))
    stored = dict(core.records(0))
    with pytest.raises(StateError, match=r"RAW_FORMAT means polygon=polygon.1 now but this log was begun without one"):
        Cleaner.restore(0, 8, stored, lateness_ms=200, revise_s=30, raw_format=RawFormat.parse("polygon", read_format_file))


def test_a_backtest_reads_foreign_messages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "log.jsonl"
    lines = [{"timestamp": NOW + at, "value": json.dumps([{"ev": "status"}, trade("BRK.B", NOW + at)])} for at in range(0, 5000, 500)]
    file.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("STOCKSTREAM_RAW_FORMAT", "us=polygon")
    assert cli.run(["backtest", str(file), "--out", "out", "--json"]) == 0
    capsys.readouterr()
    windows = pq.read_table(tmp_path / "out" / "windows.parquet")
    assert windows.num_rows == 5 and set(windows["source"].to_pylist()) == {"us"} and sum(windows["volume"].to_pylist()) == 1000

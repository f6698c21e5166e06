from __future__ import annotations

import json
from typing import Any

import pytest

from stockstream.sources.alpha_vantage.answers import AnswerError, bulk_quotes_of, decoded, minutes_of, quote_of, redacted, us_market_is_open
from tests.standins.alpha_vantage import BURST, KEY, MINUTE, PREMIUM, daily, invalid_call

SECRET = "QX7PLM2ZK9TREWQ1"
GLOBAL = {
    "01. symbol": "IBM", "02. open": "166.5000", "03. high": "168.6700", "04. low": "166.3800", "05. price": "168.6100", "06. volume": "4222266",
    "07. latest trading day": "2024-05-06", "08. previous close": "165.7100", "09. change": "2.9000", "10. change percent": "1.7500%",
}  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"Information": daily(SECRET)}, "daily"), ({"Information": BURST}, "burst"), ({"Note": MINUTE}, "minute"), ({"Information": PREMIUM}, "premium"),
        ({"Error Message": KEY}, "key"), ({"Error Message": invalid_call("GLOBAL_QUOTE")}, "symbol"),
        ({"Information": "The **demo** API key is for demo purposes only. Please claim your free API key at (...)"}, "key"),
        ({"Information": f"Something new about apikey={SECRET}."}, "refused"),
    ],
)  # fmt: skip
def test_every_error_body_has_its_class_and_no_text_has_the_key(body: dict[str, str], kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        decoded(200, json.dumps(body).encode(), SECRET)
    assert caught.value.kind == kind and SECRET not in str(caught.value) and "\n" not in str(caught.value)
    assert caught.value.stops is (kind == "key")


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (200, b"  <!DOCTYPE html><html>", "html"), (403, b"<html>", "html"), (429, b"Too Many Requests", "rate"), (503, b"upstream", "status"),
        (302, b"", "status"), (401, b"", "key"), (200, b"{", "invalid"), (200, b"", "invalid"), (200, b"[1]", "invalid"), (200, b"\xff", "invalid"),
        (200, b"[" * 100_000, "invalid"),
    ],
)  # fmt: skip
def test_what_is_no_answer_has_its_class(status: int, body: bytes, kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        decoded(status, body, SECRET, retry_after="90")
    assert caught.value.kind == kind and caught.value.retry_after_s == (90 if kind == "rate" else 0)


def test_a_quote() -> None:
    quote = quote_of({"Global Quote": GLOBAL}, "IBM")
    assert (quote.price, quote.volume, quote.day, quote.previous_close, quote.delay_ms, quote.at) == (168.61, 4222266, "2024-05-06", 165.71, 0, None)
    assert quote_of({"Global Quote - DATA DELAYED BY 15 MINUTES": GLOBAL}, "IBM").delay_ms == 900_000


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ({"Global Quote": {}}, "symbol"), ({"Global Quote": GLOBAL | {"05. price": "0.0000"}}, "symbol"), ({}, "invalid"), ({"Global Quote": [1]}, "invalid"),
        ({"Global Quote": GLOBAL | {"07. latest trading day": "yesterday"}}, "invalid"),
    ],
)  # fmt: skip
def test_what_is_no_quote_has_its_class(answer: dict[str, Any], kind: str) -> None:
    with pytest.raises(AnswerError) as caught:
        quote_of(answer, "IBM")
    assert caught.value.kind == kind


def test_bulk_quotes_have_times_of_new_york_and_the_missing_are_named() -> None:
    row = {"symbol": "AAPL", "timestamp": "2024-10-30 19:59:53.814", "close": "230.1", "volume": "47070807", "previous_close": "233.67"}
    rows = [row, row | {"symbol": "MSFT", "close": "None"}, row | {"symbol": "NOT-ASKED"}, row | {"symbol": "X", "timestamp": "soon"}, 7]
    quotes, missing = bulk_quotes_of({"data": rows}, ["AAPL", "MSFT", "X", "GONE"])
    assert [(quote.symbol, quote.at, quote.price, quote.volume) for quote in quotes] == [("AAPL", 1_730_332_793_814, 230.1, 47070807)]
    assert missing == ["GONE"]
    with pytest.raises(AnswerError):
        bulk_quotes_of({"endpoint": "Realtime Bulk Quotes"}, ["AAPL"])


def test_minutes_come_in_the_order_of_time() -> None:
    bar = {"1. open": "136.37", "2. high": "136.40", "3. low": "136.30", "4. close": "136.35", "5. volume": "248"}
    series = {"2023-01-30 20:00:00": bar, "2023-01-30 19:59:00": bar | {"5. volume": "7"}}
    assert [(minute.time, minute.volume) for minute in minutes_of({"Time Series (1min)": series}, "IBM")] == [
        ("2023-01-30 19:59:00", "7"), ("2023-01-30 20:00:00", "248"),
    ]  # fmt: skip
    wrong: list[dict[str, Any]] = [{}, {"Time Series (1min)": {"2023": bar}}, {"Time Series (1min)": {"2023-01-30 20:00:00": {}}}]
    for broken in wrong:
        with pytest.raises(AnswerError):
            minutes_of(broken, "IBM")


def test_the_status_of_the_us_market() -> None:
    market = {"market_type": "Equity", "region": "United States", "current_status": "closed"}
    assert us_market_is_open({"markets": [{"region": "Japan"}, market]}) is False
    assert us_market_is_open({"markets": [market | {"current_status": "open"}]}) is True
    assert us_market_is_open({}) is None


def test_the_key_is_taken_out_of_any_text() -> None:
    assert redacted(f"detected your API key as {SECRET} and ?apikey={SECRET}&x", SECRET) == "detected your API key as *** and ?apikey=***&x"
    assert redacted("your API key as SOMEBODYS and", SECRET) == "your API key as *** and"
    assert redacted("nothing", "") == "nothing"

from __future__ import annotations

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.errors import SourceError
from stockstream.sources.symbols import EXCHANGE_OF_SUFFIX, FIAT, PROVIDERS, QUOTES, canonical, exchange_of, from_provider, to_provider

WRITTEN = st.text(st.sampled_from("ABPRSUWKLTX019.-/ ^=&_éß币ŉ"), min_size=1, max_size=12) | st.text(max_size=8)
LETTERS = st.from_regex(r"[A-Z]{1,5}", fullmatch=True)
SHARES = LETTERS
CLASSES = st.builds("{}-{}".format, LETTERS, st.sampled_from("ABCDKLTV"))
SERIES = st.builds("{}-{}".format, LETTERS, st.sampled_from(["WT", "UN", "RI", "PA", "PL"]))
ABROAD = st.builds("{}.{}".format, st.from_regex(r"[A-Z]{2,6}", fullmatch=True), st.sampled_from(sorted(EXCHANGE_OF_SUFFIX)))
COINS = st.builds("{}-{}".format, st.from_regex(r"[A-Z]{2,6}", fullmatch=True), st.sampled_from(QUOTES)).filter(lambda pair: canonical(pair) == pair)
CURRENCIES = st.tuples(st.sampled_from(sorted(FIAT)), st.sampled_from(sorted(FIAT))).map(lambda pair: f"{pair[0]}{pair[1]}=X")
INDICES = st.sampled_from(["^GSPC", "^DJI", "^IXIC", "^VIX", "^N225"])
CANONICAL = SHARES | CLASSES | SERIES | ABROAD | COINS | CURRENCIES | INDICES


@pytest.mark.parametrize(
    ("written", "symbol"),
    [
        ("aapl", "AAPL"), (" AAPL ", "AAPL"), ("BRK.B", "BRK-B"), ("BRK-B", "BRK-B"), ("brk.b", "BRK-B"), ("BRK/B", "BRK-B"), ("BRK B", "BRK-B"),
        ("BF.B", "BF-B"), ("BAC.PRL", "BAC-PL"), ("BAC PRL", "BAC-PL"), ("BAC.PR.L", "BAC-PL"), ("F.WS", "F-WT"), ("PSTH.U", "PSTH-UN"),
        ("^gspc", "^GSPC"), ("BTC-USD", "BTC-USD"), ("btc/usd", "BTC-USD"), ("0700.HK", "0700.HK"), ("700.hk", "0700.HK"), ("00700.HK", "0700.HK"),
        ("EURUSD=X", "EURUSD=X"), ("EUR/USD", "EURUSD=X"), ("eur-usd", "EURUSD=X"), ("EURUSD", "EURUSD=X"), ("JPY=X", "JPY=X"), ("GC=F", "GC=F"),
        ("VOD.L", "VOD.L"), ("7203.T", "7203.T"), ("BT.A.L", "BT-A.L"), ("TSCO.LON", "TSCO.L"), ("REI.UN.TO", "REI-UN.TO"), ("HXS.U.TO", "HXS-U.TO"),
        ("M&M.NS", "M&M.NS"), ("bajaj-auto.ns", "BAJAJ-AUTO.NS"), ("DX-Y.NYB", "DX-Y.NYB"), ("ZIWEC", "ZIWEC"),
    ],
)  # fmt: skip
def test_what_people_write(written: str, symbol: str) -> None:
    assert canonical(written) == symbol


@pytest.mark.parametrize("written", ["", " ", "$AAPL", "q{x}", "A..B", "-A", "A-", ".", "NASDAQ:AAPL", "A\nB\x00", "X" * 33, "AAPL,MSFT", "<b>", "a" * 10**6])
def test_what_is_no_symbol_is_one_clear_line(written: str) -> None:
    with pytest.raises(SourceError, match="is no symbol: ") as raised:
        canonical(written)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 250


@given(WRITTEN)
def test_the_canonical_form_is_its_own(written: str) -> None:
    with contextlib.suppress(SourceError):
        symbol = canonical(written)
        assert canonical(symbol) == symbol
        assert canonical(symbol.lower()) == symbol or not symbol.isascii()


@given(CANONICAL, st.sampled_from(sorted(PROVIDERS)))
def test_a_symbol_comes_back_from_every_provider_that_has_a_form_for_it(symbol: str, provider: str) -> None:
    with contextlib.suppress(SourceError):
        theirs = to_provider(symbol, provider)
        assert from_provider(theirs, provider) == symbol, theirs


@given(SHARES, st.sampled_from(sorted(set(PROVIDERS) - {"binance", "coinbase"})))
def test_every_provider_of_shares_has_every_share(symbol: str, provider: str) -> None:
    assert to_provider(symbol, provider) == symbol
    assert from_provider(symbol.lower(), provider) == symbol


@given(CANONICAL)
def test_yahoo_has_the_canonical_form(symbol: str) -> None:
    assert canonical(symbol) == to_provider(symbol, "yahoo") == symbol


@given(WRITTEN, st.sampled_from(sorted(PROVIDERS)))
def test_what_a_provider_sends_is_a_symbol_or_refused(text: str, provider: str) -> None:
    with contextlib.suppress(SourceError):
        assert re.fullmatch(r"[\w.\-^=&]{1,32}", from_provider(text, provider))


@pytest.mark.parametrize(
    ("provider", "theirs", "symbol"),
    [
        ("alpha_vantage", "BRK-B", "BRK-B"), ("alpha_vantage", "BRK.B", "BRK-B"), ("alpha_vantage", "BAC-P-L", "BAC-PL"),
        ("alpha_vantage", "TSCO.LON", "TSCO.L"),
        ("alpha_vantage", "MBG.DEX", "MBG.DE"), ("polygon", "BRK.B", "BRK-B"), ("polygon", "BACpL", "BAC-PL"), ("polygon", "I:SPX", "^GSPC"),
        ("polygon", "GEVw", "GEV-WI"), ("polygon", "GEVW", "GEVW"),
        ("polygon", "X:BTCUSD", "BTC-USD"), ("polygon", "C:EURUSD", "EURUSD=X"), ("polygon", "PCG", "PCG"), ("alpaca", "BRK.B", "BRK-B"),
        ("alpaca", "BTC/USD", "BTC-USD"),
        ("finnhub", "BINANCE:BTCUSDT", "BTC-USDT"), ("finnhub", "OANDA:EUR_USD", "EURUSD=X"), ("finnhub", "0700.HK", "0700.HK"), ("finnhub", "BRK.B", "BRK-B"),
        ("binance", "BTCUSDT", "BTC-USDT"), ("binance", "ethbtc", "ETH-BTC"), ("binance", "1000SHIBUSDC", "1000SHIB-USDC"), ("coinbase", "BTC-USD", "BTC-USD"),
        ("databento", "BRK.B", "BRK-B"), ("databento", "BAC-L", "BAC-PL"), ("databento", "F+", "F-WT"),
        ("nyse_taq", "BRK B", "BRK-B"), ("nyse_taq", "BAC PRL", "BAC-PL"),
    ],
)  # fmt: skip
def test_what_providers_write(provider: str, theirs: str, symbol: str) -> None:
    assert from_provider(theirs, provider) == symbol


def test_a_provider_without_a_form_and_an_unknown_one_are_named() -> None:
    with pytest.raises(SourceError, match="'ABCr' is no symbol at polygon"):
        from_provider("ABCr", "polygon")                                 # not ABCR, which is another
    with pytest.raises(SourceError, match=r"VOD\.L has no form at polygon"):
        to_provider("VOD.L", "polygon")
    with pytest.raises(SourceError, match="AAPL has no form at binance"):
        to_provider("AAPL", "binance")
    with pytest.raises(SourceError, match="providers are yahoo, alpha_vantage"):
        to_provider("AAPL", "nobody")


def test_the_exchange_that_a_symbol_shows() -> None:
    assert [exchange_of(symbol) for symbol in ("AAPL", "BRK-B", "VOD.L", "0700.HK", "BTC-USD", "EURUSD=X", "^GSPC", "A.FOO")] == [
        None, None, "LSE", "HKG", "CCC", "CCY", None, None,
    ]  # fmt: skip

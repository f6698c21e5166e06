"""Symbols as people and providers write them, and the one form of the log: Yahoo's, in upper case.

    BRK.B, brk-b, BRK/B, "BRK B"  ->  BRK-B           BAC.PRL, BACpL  ->  BAC-PL          VOD.L, 0700.HK, ^GSPC, GC=F  stay
    EUR/USD, EURUSD               ->  EURUSD=X        BTC/USD         ->  BTC-USD

Pure. `canonical` is for what people type, `from_provider` for what a provider sends, `to_provider` for what it is asked for. `clean` uses none of them:
what a producer of its own writes stays as it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from stockstream.errors import SourceError
from stockstream.transforms.cleaning.limits import composed, symbol_fault

EXCHANGE_OF_SUFFIX: Mapping[str, str] = {
    "L": "LSE", "IL": "IOB", "IR": "ISE", "DE": "GER", "F": "FRA", "BE": "BER", "BM": "GER", "DU": "DUS", "HM": "HAM", "HA": "HAN", "MU": "MUN", "SG": "STU",
    "PA": "PAR", "AS": "AMS", "BR": "BRU", "LS": "LIS", "MI": "MIL", "MC": "MCE", "SW": "EBS", "VI": "VIE", "ST": "STO", "HE": "HEL", "CO": "CPH", "OL": "OSL",
    "IC": "ICE", "AT": "ATH", "WA": "WSE", "PR": "PRA", "BD": "BUD", "RO": "BVB", "IS": "IST", "TL": "TAL", "RG": "RIS", "VS": "LIT", "ME": "MCX",
    "TO": "TOR", "V": "VAN", "CN": "CNQ", "NE": "NEO", "MX": "MEX", "SA": "SAO", "BA": "BUE", "SN": "SGO", "CL": "BOG", "LM": "LIM",
    "T": "JPX", "HK": "HKG", "SS": "SHH", "SZ": "SHZ", "TW": "TAI", "TWO": "TWO", "KS": "KSC", "KQ": "KOE", "NS": "NSI", "BO": "BSE", "SI": "SES", "KL": "KLS",
    "JK": "JKT", "BK": "SET", "PS": "PHS", "VN": "VSE", "AX": "ASX", "NZ": "NZE", "JO": "JNB", "TA": "TLV", "SR": "SAU", "QA": "DOH", "CA": "CAI", "KA": "KAR",
    "CBT": "CBT", "CME": "CME", "CMX": "CMX", "NYM": "NYM", "NYB": "NYB",
}  # fmt: skip
"""Yahoo's suffixes of exchanges outside the US, with Yahoo's codes of these exchanges. A symbol without one is traded in the US."""

FIAT = frozenset({
    "USD", "EUR", "GBP", "JPY", "CHF", "AUD", "CAD", "NZD", "SEK", "NOK", "DKK", "ISK", "PLN", "CZK", "HUF", "RON", "BGN", "TRY", "ILS", "ZAR", "CNY",
    "CNH", "HKD", "TWD", "KRW", "SGD", "THB", "MYR", "IDR", "PHP", "INR", "PKR", "VND", "AED", "SAR", "QAR", "KWD", "BHD", "EGP", "NGN", "KES", "MAD",
    "BRL", "MXN", "ARS", "CLP", "COP", "PEN", "UAH", "RUB",
})  # fmt: skip
QUOTES = ("USDT", "USDC", "FDUSD", "TUSD", "BUSD", "DAI", "BTC", "ETH", "BNB", *sorted(FIAT))
"""What coins are priced in."""
_LONGEST_FIRST = sorted(QUOTES, key=len, reverse=True)

SERIES = {"WS": "WT", "U": "UN", "RT": "RI"}
"""Warrants, units and rights as US exchanges write them, and as Yahoo does."""
_OF_YAHOO = {yahoo: exchange for exchange, yahoo in SERIES.items()}
EXCHANGES_OF_ALPHA_VANTAGE = {"L": "LON", "TO": "TRT", "V": "TRV", "DE": "DEX", "BO": "BSE", "SS": "SHH", "SZ": "SHZ"}
_FROM_ALPHA_VANTAGE = {theirs: yahoo for yahoo, theirs in EXCHANGES_OF_ALPHA_VANTAGE.items()}
INDICES = {"GSPC": "SPX", "IXIC": "COMP"}
"""Indices whose name at Yahoo is not the index's own."""
_INDEX_OF = {own: yahoo for yahoo, own in INDICES.items()}

_SHAPE = re.compile(r"\^?[^\W_](?:[\w&]|[.\-=_](?=\w))*")
"""Letters and digits of any script; dots, dashes and the like only between them."""
_PREFERRED = re.compile(r"([A-Z]+)[. /]PR[. /]?([A-Z])")
_PREFERRED_OF_YAHOO = re.compile(r"P[A-Z]")


class Parts(NamedTuple):
    """A canonical symbol in parts: `series` is a class of shares (B), a preferred (PL), warrants (WT), units (UN) or rights (RI); `exchange` is a suffix of
    EXCHANGE_OF_SUFFIX. Indices, currencies, coins and futures are all `base`."""

    base: str
    series: str = ""
    exchange: str = ""


def canonical(text: str) -> str:
    """The canonical form of a symbol as a person writes it. Raises `SourceError` if the text cannot be a symbol."""
    symbol = " ".join(composed(text.upper()).split())
    if match := _PREFERRED.fullmatch(symbol):
        symbol = f"{match[1]}-P{match[2]}"
    symbol = re.sub(r" ?[/ ] ?", "-", symbol)
    if not symbol.startswith("^"):
        symbol = _pair(symbol) or _with_suffix(symbol)
    return _checked(symbol, text)


def exchange_of(symbol: str) -> str | None:
    """Yahoo's code of the exchange of a canonical symbol as far as the symbol shows it (coins CCC, currencies CCY); None for shares traded in the US."""
    if symbol.endswith("=X"):
        return "CCY"
    if _is_coin(symbol):
        return "CCC"
    return EXCHANGE_OF_SUFFIX.get(symbol.rpartition(".")[2]) if "." in symbol else None


def to_provider(symbol: str, provider: str) -> str:
    """A canonical symbol as the provider writes it.

    Raises `SourceError` if the provider has no form for it, or is none of PROVIDERS.
    """
    return _provider(provider).write(symbol)


def from_provider(text: str, provider: str) -> str:
    """The canonical form of a symbol of the provider. Raises `SourceError` if it cannot be one, or if the provider is none of PROVIDERS."""
    return _provider(provider).read(text)


# ---- the canonical form


def _checked(symbol: str, text: str) -> str:
    shown = repr(text[:40])
    if fault := symbol_fault(symbol):
        raise SourceError(f"{shown} is no symbol: {fault}")
    if not _SHAPE.fullmatch(symbol):
        raise SourceError(f"{shown} is no symbol: letters and digits are expected, with . - = & only between them (BRK-B, 0700.HK, ^GSPC, EURUSD=X)")
    return symbol


def _pair(symbol: str) -> str:
    """The pair of two currencies, in Yahoo's form; empty if it is none."""
    base, dash, quote = symbol.partition("-")
    if not dash and len(symbol) == 6:
        base, quote = symbol[:3], symbol[3:]
    return f"{base}{quote}=X" if base in FIAT and quote in FIAT else ""


def _with_suffix(symbol: str) -> str:
    base, dot, suffix = symbol.rpartition(".")
    if not dot:
        return symbol
    suffix = _FROM_ALPHA_VANTAGE.get(suffix, suffix)
    base = base.replace(".", "-")
    if suffix in EXCHANGE_OF_SUFFIX:
        return f"{_hong_kong(base) if suffix == 'HK' else base}.{suffix}"
    if suffix in SERIES or len(suffix) == 1 or suffix in _OF_YAHOO:
        return f"{base}-{SERIES.get(suffix, suffix)}"
    return f"{base}.{suffix}"


def _hong_kong(number: str) -> str:
    """Yahoo writes four digits: `0700`, where others write 700 or 00700."""
    return number.lstrip("0").zfill(4) if number.isascii() and number.isdigit() else number


def _is_coin(symbol: str) -> bool:
    base, dash, quote = symbol.rpartition("-")
    return bool(dash and base and quote in QUOTES and "." not in symbol)


def _parts(symbol: str) -> Parts:
    if symbol.startswith("^") or "=" in symbol or _is_coin(symbol):
        return Parts(symbol)
    base, dot, exchange = symbol.rpartition(".")
    if not dot or exchange not in EXCHANGE_OF_SUFFIX:
        base, exchange = symbol, ""
    if exchange:
        return Parts(base, "", exchange)
    stem, dash, series = base.rpartition("-")
    return Parts(stem, series) if dash else Parts(base)


# ---- the providers


class _Provider(NamedTuple):
    """How a provider writes symbols. `read` and `write` are each other's inverse for every symbol that `write` does not refuse."""

    read: Callable[[str], str]
    write: Callable[[str], str]


def _yahoo() -> _Provider:
    return _Provider(canonical, lambda symbol: symbol)


def _alpha_vantage() -> _Provider:
    """Classes BRK-B, preferreds BAC-P-L, warrants -WS, units -U; exchanges .LON .TRT .DEX; others as Yahoo."""

    def write(symbol: str) -> str:
        base, series, exchange = _parts(symbol)
        if exchange:
            return f"{base}.{EXCHANGES_OF_ALPHA_VANTAGE.get(exchange, exchange)}"
        if _PREFERRED_OF_YAHOO.fullmatch(series):
            return f"{base}-P-{series[1]}"
        return f"{base}-{_OF_YAHOO.get(series, series)}" if series else base

    def read(text: str) -> str:
        symbol = canonical(text)
        if match := re.fullmatch(r"(.+)-P-([A-Z])", symbol):
            return f"{match[1]}-P{match[2]}"
        base, series, exchange = _parts(symbol)
        return symbol if exchange or series not in SERIES else f"{base}-{SERIES[series]}"

    return _Provider(read, write)


def _us(
    name: str, *, dot: str = ".", preferred: str = ".PR", series: Mapping[str, str] | None = None,
    index: str | None = None, currencies: tuple[str, str] | None = None, coins: tuple[str, str] | None = None, abroad: bool = False,
) -> _Provider:  # fmt: skip
    """A provider of US shares, who writes a class after `dot` and a preferred after `preferred`.

    `series`: Yahoo's word for warrants, units and rights, and what the provider adds to the base. `index`: prefix of an index. `currencies`, `coins`:
    prefix, and what stands between the two currencies. `abroad`: it has the shares of other exchanges too, with Yahoo's suffixes.
    """
    added = {yahoo: dot + exchange for yahoo, exchange in _OF_YAHOO.items()} if series is None else series
    lower = preferred == "p"

    def write(symbol: str) -> str:
        base, kind, exchange = _parts(symbol)
        if symbol.startswith("^") and index is not None:
            return index + INDICES.get(symbol[1:], symbol[1:])
        if re.fullmatch(r"[A-Z]{6}=X", symbol) and currencies is not None:
            return f"{currencies[0]}{symbol[:3]}{currencies[1]}{symbol[3:6]}"
        if _is_coin(symbol) and coins is not None:
            return coins[0] + coins[1].join(symbol.rsplit("-", 1))
        if exchange and abroad:
            return symbol
        if exchange or not re.fullmatch(r"[A-Z]+[A-Z0-9]*", base):
            raise SourceError(f"{symbol} has no form at {name}: it has {'no index, coin or currency like it' if not exchange else 'US shares only'}")
        if not kind:
            return base
        if abroad and len(kind) == 1 and kind in EXCHANGE_OF_SUFFIX:
            raise SourceError(f"{symbol} has no form at {name}: {base}.{kind} is a share of the exchange {EXCHANGE_OF_SUFFIX[kind]} there")
        if kind in added:
            return base + added[kind]
        if lower and kind == "WI":
            return f"{base}w"
        return f"{base}{preferred}{kind[1]}" if _PREFERRED_OF_YAHOO.fullmatch(kind) else f"{base}{dot}{kind}"

    def read(text: str) -> str:
        plain = text.strip()
        if index is not None and plain.startswith(index):
            own = plain[len(index) :].upper()
            return _checked(f"^{_INDEX_OF.get(own, own)}", text)
        if currencies is not None and currencies[0] and plain.startswith(currencies[0]):
            return canonical(_split(plain[len(currencies[0]) :], currencies[1], text))
        if coins is not None and ((coins[0] and plain.startswith(coins[0])) or (not coins[0] and coins[1] and coins[1] in plain)):
            return _checked(_split(plain[len(coins[0]) :], coins[1], text), text)
        if match := re.fullmatch(rf"([A-Z0-9]+){re.escape(preferred)}([A-Z])", plain if lower else plain.upper()):
            return f"{match[1]}-P{match[2]}"
        if lower and plain not in (plain.upper(), plain.lower()):        # GEVw are shares of GEV when issued, GEVW is another symbol
            if match := re.fullmatch(r"([A-Z][A-Z0-9]*)w", plain):
                return f"{match[1]}-WI"
            raise SourceError(f"{text[:40]!r} is no symbol at {name}: its lower-case letters are neither a preferred (BACpL) nor when-issued shares (GEVw)")
        symbol = plain.upper()
        if abroad and symbol.rpartition(".")[2] in EXCHANGE_OF_SUFFIX and "." in symbol:
            return canonical(symbol)
        for yahoo, end in added.items():
            if symbol.endswith(end) and len(symbol) > len(end):
                return _checked(f"{symbol[: -len(end)]}-{yahoo}", text)
        return _checked(symbol.replace(dot, "-").replace(".", "-"), text)

    return _Provider(read, write)


def _coins(name: str, between: str) -> _Provider:
    def write(symbol: str) -> str:
        if not _is_coin(symbol):
            raise SourceError(f"{symbol} has no form at {name}, which has coins only (BTC-USDT)")
        return between.join(symbol.rsplit("-", 1))

    def read(text: str) -> str:
        return _checked(_split(text, between, text), text)

    return _Provider(read, write)


def _split(text: str, between: str, shown: str) -> str:
    """Base and quote currency of a provider's pair with a dash between, where the provider writes `between`, which may be nothing."""
    pair = composed(text.strip()).upper()
    if between:
        return pair.replace(between, "-")
    quote = next((quote for quote in _LONGEST_FIRST if pair.endswith(quote) and len(pair) > len(quote)), "")
    if not quote:
        raise SourceError(f"{shown[:40]!r} is no pair of currencies that ends with one of {', '.join(QUOTES[:9])}, USD, EUR ...")
    return f"{pair[: -len(quote)]}-{quote}"


PROVIDERS: Mapping[str, _Provider] = {
    "yahoo": _yahoo(),
    "alpha_vantage": _alpha_vantage(),
    "polygon": _us("polygon", preferred="p", index="I:", currencies=("C:", ""), coins=("X:", "")),
    "alpaca": _us("alpaca", coins=("", "/")),
    "finnhub": _us("finnhub", index="^", currencies=("OANDA:", "_"), coins=("BINANCE:", ""), abroad=True),
    "binance": _coins("binance", ""),
    "coinbase": _coins("coinbase", "-"),
    # the suffixes of Nasdaq's integrated platform, in which Databento has the US exchanges
    "databento": _us("databento", preferred="-", series={"WT": "+", "UN": "=", "RI": "^"}),
    "nyse_taq": _us("nyse_taq", dot=" ", preferred=" PR"),
}
"""The providers whose forms are known, by name."""


def _provider(name: str) -> _Provider:
    found = PROVIDERS.get(name)
    if found is None:
        raise SourceError(f"the forms of {name[:40]!r} are not known: providers are {', '.join(PROVIDERS)}")
    return found

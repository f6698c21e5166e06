"""The vendors' file formats that are recognised: by their columns, and where those are not enough by their first rows.

Each vendor's columns are those of its documentation: Yahoo and yfinance 1.x (`history`, `download`), Alpha Vantage (`datatype=csv`), Databento (schemas
trades, tbbo, mbp-1 and ohlcv as CSV or Parquet), Polygon/Massive flat files, Binance's public data (klines, trades, aggTrades), NYSE Daily TAQ (trades).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date

from stockstream.sources.recordings.layout import Keep, Layout, Shape
from stockstream.transforms.cleaning.limits import UNITS, unit_of

NEW_YORK = "America/New_York"
NOT_CANCELLED = frozenset({"0", "1", "00", "01", ""})
"""Correction indicators of a trade that stands: 0 for never corrected, 1 for one that holds the corrected values (CTA and UTP, as Polygon passes them on)."""
DATABENTO_DIVISOR = 1e9
DATABENTO_INTERVALS = {"32": 1, "33": 60, "34": 3600, "35": 86_400, "36": 86_400}
"""Seconds of a bar by `rtype`."""
_PX = ("price", "bid", "ask")
_BINANCE_HEADERS = {
    12: "open_time open high low close volume close_time quote_volume count taker_buy_volume taker_buy_quote_volume ignore",
    8: "agg_trade_id price quantity first_trade_id last_trade_id transact_time is_buyer_maker is_best_match",
    7: "id price qty quote_qty time is_buyer_maker is_best_match",
    6: "id price qty quote_qty time is_buyer_maker",
}
"""Columns of Binance's files without a header, by their number."""
_BINANCE_FUTURES_AGG = "agg_trade_id price quantity first_trade_id last_trade_id transact_time is_buyer_maker"
_BINANCE_NAME = re.compile(r"([A-Z0-9_]+)-(?:\d+(?:s|m|h|d|w|mo)|trades|aggTrades)-\d{4}-\d\d(?:-\d\d)?")
_BOOL = r"(?i:true|false)"
_ALPHA_VANTAGE_NAME = re.compile(r"(?:intraday_\d+min|daily|daily_adjusted|weekly|weekly_adjusted|monthly|monthly_adjusted)_(.+)", re.IGNORECASE)
_DAY = re.compile(r"(?<!\d)((?:19|20)\d\d)-?(\d\d)-?(\d\d)(?!\d)")
_OF_YAHOO = frozenset({
    "date", "datetime", "open", "high", "low", "close", "adj close", "volume", "dividends", "stock splits", "capital gains", "repaired?", "ticker", "symbol",
    "", "index",
})  # fmt: skip
_ISO_DATE = r"\d{4}-\d\d-\d\d"


@dataclass(frozen=True, slots=True)
class FileFormat:
    """A shape of file: columns that it needs (lower case), what else must hold, and how it is read. Several may have one name, which `--format` takes."""

    name: str
    needs: tuple[str, ...]
    read: Callable[[Shape], Layout]
    fits: Callable[[Shape], bool] = lambda shape: True


def _yahoo(shape: Shape) -> Layout:
    columns = shape.columns(symbol=("ticker", "symbol"), event_time=("date", "datetime"), price="close", size="volume")
    return Layout(format="yahoo", kind="bars", columns=columns, provider="yahoo")


def _yahoo_fits(shape: Shape) -> bool:
    return set(shape.names) <= _OF_YAHOO


def _alpha_vantage(shape: Shape) -> Layout:
    named = _ALPHA_VANTAGE_NAME.fullmatch(shape.file.stem)
    columns = shape.columns(event_time="timestamp", price="close", size="volume")
    days = shape.all_match("timestamp", _ISO_DATE)
    return Layout(
        format="alpha_vantage", kind="bars", columns=columns, zone="" if days else NEW_YORK, provider="alpha_vantage",
        symbol=named[1] if named else "", symbol_from="the file's name" if named else "",
    )  # fmt: skip


def _alpha_vantage_fits(shape: Shape) -> bool:
    extra = {"adjusted close", "adjusted_close", "dividend amount", "dividend_amount", "split coefficient", "split_coefficient"}
    return set(shape.names) - extra == {"timestamp", "open", "high", "low", "close", "volume"} and shape.all_match(
        "timestamp", rf"{_ISO_DATE}( \d\d:\d\d(:\d\d)?)?"
    )


def _databento(shape: Shape) -> Layout:
    """Prices are whole numbers of 1e-9 unless they were written as decimals. Of books only the trades are read."""
    columns = shape.columns(
        symbol="symbol", event_time="ts_event", price="price", size="size", bid="bid_px_00", ask="ask_px_00", bid_size="bid_sz_00", ask_size="ask_sz_00"
    )
    action = shape.at("action")
    keep = () if action is None else (Keep(action, frozenset({"T"}), "rows of the book that are no trades"),)
    divisors = dict.fromkeys(_PX, DATABENTO_DIVISOR) if shape.all_match("price", r"-?\d+") else {}
    return Layout(format="databento", kind="trades", columns=columns, divisors=divisors, keep=keep, provider="databento")


def _databento_bars(shape: Shape) -> Layout:
    columns = shape.columns(symbol="symbol", event_time="ts_event", price="close", size="volume")
    divisors = {"price": DATABENTO_DIVISOR} if shape.all_match("close", r"-?\d+") else {}
    interval = DATABENTO_INTERVALS.get(next(iter(shape.values("rtype")), ""), 0)
    return Layout(format="databento", kind="bars", columns=columns, divisors=divisors, interval_s=interval, provider="databento")


def _polygon(shape: Shape) -> Layout:
    columns = shape.columns(
        symbol="ticker", event_time=("sip_timestamp", "participant_timestamp"), price="price", size="size", exchange="exchange", condition="conditions"
    )
    correction = shape.at("correction")
    keep = () if correction is None else (Keep(correction, NOT_CANCELLED, "cancelled or corrected trades"),)
    return Layout(format="polygon", kind="trades", columns=columns, keep=keep, provider="polygon")


def _polygon_bars(shape: Shape) -> Layout:
    columns = shape.columns(symbol="ticker", event_time="window_start", price="close", size="volume")
    folders = "/".join(shape.file.path.parts)
    interval = 60 if "minute_aggs" in folders else 86_400 if "day_aggs" in folders else 0
    return Layout(format="polygon", kind="bars", columns=columns, interval_s=interval, provider="polygon")


def _binance_bars(shape: Shape) -> Layout:
    columns = shape.columns(event_time="open_time", price="close", size="volume")
    first, last = int(shape.values("open_time")[0]), int(shape.values("close_time")[0])
    per_s = {"milliseconds": 1000, "microseconds": 1_000_000}.get(unit_of(first), 1)
    interval = (last + 1 - first) // per_s
    return replace(_binance_symbol(shape), kind="bars", columns=columns, interval_s=interval)


def _binance_bars_fit(shape: Shape) -> bool:
    return shape.all_match("open_time", r"\d{13,16}") and shape.all_match("close_time", r"\d{13,16}")


def _binance(shape: Shape) -> Layout:
    columns = shape.columns(event_time=("time", "transact_time"), price="price", size=("qty", "quantity"), trade_id=("id", "agg_trade_id"))
    return replace(_binance_symbol(shape), columns=columns)


def _binance_symbol(shape: Shape) -> Layout:
    """A layout with the symbol of the file's name, which has no column."""
    named = _BINANCE_NAME.fullmatch(shape.file.stem)
    symbol, whence = (named[1], "the file's name") if named else ("", "")
    return Layout(format="binance", kind="trades", columns={}, symbol=symbol, symbol_from=whence, provider="binance")


def _taq(shape: Shape) -> Layout:
    columns = shape.columns(symbol="symbol", event_time="time", price="trade price", size="trade volume", exchange="exchange", condition="sale condition")
    correction = shape.at("trade correction indicator")
    keep = () if correction is None else (Keep(correction, NOT_CANCELLED, "cancelled or corrected trades"),)
    return Layout(
        format="nyse_taq", kind="trades", columns=columns, zone=NEW_YORK, day=day_in(shape.file.stem), keep=keep, end_mark="END", provider="nyse_taq"
    )


def day_in(name: str) -> date | None:
    """The day that a file's name holds (20161024 or 2016-10-24)."""
    for found in _DAY.finditer(name):
        try:
            return date(*map(int, found.groups()))
        except ValueError:
            continue
    return None


def headless(shape: Shape) -> Shape:
    """Binance's names for the columns of a file of its shape without a header; the shape itself if it is none."""
    width = len(shape.names)
    head = shape.file.head
    if width not in _BINANCE_HEADERS or not head[0]:
        return shape
    names = _BINANCE_HEADERS[width]
    if width == 7 and not re.fullmatch(_BOOL, head[5][0]):
        names = _BINANCE_FUTURES_AGG
    found = Shape(shape.file, tuple(names.split()))
    times = next(found.values(name) for name in ("open_time", "time", "transact_time") if name in found.names)
    moments = all(value.isdigit() and unit_of(int(value)) in UNITS for value in times)
    marks = width == 12 or found.all_match("is_buyer_maker", _BOOL)
    return found if moments and marks else shape


FILE_FORMATS: tuple[FileFormat, ...] = (
    FileFormat("databento", ("ts_event", "rtype", "instrument_id", "price", "size"), _databento),
    FileFormat("databento", ("ts_event", "rtype", "instrument_id", "open", "close", "volume"), _databento_bars),
    FileFormat("polygon", ("ticker", "price", "size", "sip_timestamp"), _polygon),
    FileFormat("polygon", ("ticker", "price", "size", "participant_timestamp"), _polygon),
    FileFormat("polygon", ("ticker", "open", "close", "window_start"), _polygon_bars),
    FileFormat("nyse_taq", ("time", "symbol", "trade volume", "trade price"), _taq),
    FileFormat("binance", ("open_time", "close", "volume", "close_time"), _binance_bars, _binance_bars_fit),
    FileFormat("binance", ("id", "price", "qty", "time", "is_buyer_maker"), _binance),
    FileFormat("binance", ("agg_trade_id", "price", "quantity", "transact_time"), _binance),
    FileFormat("alpha_vantage", ("timestamp", "open", "high", "low", "close", "volume"), _alpha_vantage, _alpha_vantage_fits),
    FileFormat("yahoo", ("date", "open", "high", "low", "close", "volume"), _yahoo, _yahoo_fits),
    FileFormat("yahoo", ("datetime", "open", "high", "low", "close", "volume"), _yahoo, _yahoo_fits),
)
"""The first that fits is taken."""
FORMATS = ("stockstream", *dict.fromkeys(known.name for known in FILE_FORMATS))
"""What `--format` takes."""

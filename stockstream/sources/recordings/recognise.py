"""Finds out how a file is read: by the options, by its vendor's format, else by the names of its columns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date

from stockstream.errors import SourceError
from stockstream.records import QUOTES, TEXTS
from stockstream.sources.recordings.file_formats import FILE_FORMATS, FORMATS, FileFormat, headless
from stockstream.sources.recordings.files import DataFile
from stockstream.sources.recordings.layout import OF_BARS, Frame, Layout, Places, Shape, shape_of
from stockstream.sources.recordings.options import ReadOptions
from stockstream.transforms.cleaning.limits import symbol_fault

FIELDS = ("symbol", "event_time", "price", "size", *QUOTES, *TEXTS)
OWN_TRADES, OWN_BARS = ("symbol", "event_time", "price", "size"), ("symbol", "event_time", "close", "volume")
ALIASES: Mapping[str, tuple[str, ...]] = {
    "symbol": ("symbol", "ticker", "sym", "code", "instrument", "isin"),
    "event_time": ("event_time", "timestamp", "ts_event", "datetime", "date_time", "time", "date", "ts", "open_time", "__index_level_0__"),
    "price": ("price", "last", "last_price", "trade_price", "trade price", "px"),
    "size": ("size", "quantity", "qty", "trade_size", "shares", "trade volume", "last_size"),
    "close": ("close", "last", "close/last", "closing price"),
    "volume": ("volume", "vol", "vol.", "tick_volume", "tickvol", "volume traded"),
}
"""What others call our columns; the first that a file has is taken."""
_SYMBOL_IN_NAME = re.compile(r"[\^A-Z0-9][A-Z0-9.\-=^]{0,15}")


def layout_of(file: DataFile, options: ReadOptions) -> Layout:
    """How the file is read. Raises `SourceError`, one line with what was found and which option corrects it."""
    if options.format and options.format not in FORMATS:
        raise SourceError(f"there is no format {options.format!r}: there are {', '.join(FORMATS)} (--format)")
    frame = Frame(file)
    if frame.symbols and options.format in ("", "yahoo"):
        found = _of_frame(file, frame)
    else:
        found = _recognised(file, options)
    found = _with_options(file, found, options)
    _check(file, found, options)
    return found


def _of_frame(file: DataFile, frame: Frame) -> Layout:
    wide = {}
    for symbol, fields in frame.symbols.items():
        if {"close", "volume"} <= set(fields):
            wide[symbol] = {"price": fields["close"], "size": fields["volume"]}
    columns: dict[str, Places] = {} if frame.time is None else {"event_time": (frame.time,)}
    return Layout(format="yahoo", kind="bars", columns=columns, wide=wide, provider="yahoo")


def _recognised(file: DataFile, options: ReadOptions) -> Layout:
    shape = shape_of(file)
    own = not file.headless and options.format in ("", "stockstream")
    if own and shape.has(*OWN_TRADES) and not options.bars:
        return Layout(format="stockstream", kind="trades", columns=_extended(shape, shape.columns(**{name: name for name in OWN_TRADES})), own=True)
    if own and shape.has(*OWN_BARS):
        columns = shape.columns(symbol="symbol", event_time="event_time", price="close", size="volume")
        return Layout(format="stockstream", kind="bars", columns=_extended(shape, columns, texts=False), own=True)
    if options.format == "stockstream":
        return _generic(shape, options)
    if file.headless:
        shape = headless(shape)
    candidates = [known for known in FILE_FORMATS if options.format in ("", known.name)]
    for candidate in candidates:
        if shape.has(*candidate.needs) and candidate.fits(shape):
            return candidate.read(shape)
    if options.format:
        raise SourceError(f"{file.path}: this is not {options.format}: {_lacks(shape, candidates)}; {_found(file)}; leave out --format, or use --columns")
    return _generic(shape, options)


def _lacks(shape: Shape, candidates: list[FileFormat]) -> str:
    closest = min(candidates, key=lambda candidate: sum(name not in shape.names for name in candidate.needs))
    missing = [name for name in closest.needs if name not in shape.names]
    return f"column {', '.join(missing)} is missing" if missing else "its values are of another shape"


def _generic(shape: Shape, options: ReadOptions) -> Layout:
    """By what the columns are called."""
    names = {ours for ours in ("price", "close") if shape.at(*ALIASES[ours]) is not None}
    looks_like_bars = "price" not in names and "price" not in options.columns and ("close" in names or shape.has("high", "low"))
    bars = options.bars or options.interval_s > 0 or "close" in options.columns or looks_like_bars
    price, size = ("close", "volume") if bars else ("price", "size")
    columns = shape.columns(symbol=ALIASES["symbol"], event_time=ALIASES["event_time"], price=ALIASES[price], size=(*ALIASES[size], *ALIASES["volume"]))
    day, clock = shape.at("date", "day", "trade_date"), shape.at("time")
    if day is not None and clock is not None and shape.at("event_time", "timestamp", "datetime", "date_time") is None:
        columns["event_time"] = (day, clock)
    return Layout(format="", kind="bars" if bars else "trades", columns=_extended(shape, columns, texts=not bars))


def _extended(shape: Shape, columns: dict[str, Places], *, texts: bool = True) -> dict[str, Places]:
    taken = {place for places in columns.values() for place in places}
    optional = shape.columns(**{name: name for name in (*QUOTES, *(TEXTS if texts else ())) if name not in columns})
    return columns | {name: places for name, places in optional.items() if not taken.intersection(places)}


def _with_options(file: DataFile, found: Layout, options: ReadOptions) -> Layout:
    columns = dict(found.columns)
    divisors = dict(found.divisors)
    for ours, theirs in options.columns.items():
        name = OF_BARS.get(ours, ours)
        if name not in FIELDS:
            raise SourceError(f"there is no field {ours!r}: --columns names columns for {', '.join((*FIELDS, *OF_BARS))}")
        columns[name] = tuple(_place(file, part, ours) for part in ([theirs] if theirs in file.columns else theirs.split("+")))
        divisors.pop(name, None)
    kind = "bars" if options.bars or options.interval_s else found.kind
    if options.bars and not options.interval_s:
        found = replace(found, interval_s=1)
    found = replace(found, columns=columns, divisors=divisors, kind=kind, zone=options.zone or found.zone, unit=options.unit or found.unit)
    if options.interval_s:
        found = replace(found, interval_s=options.interval_s)
    if options.date:
        found = replace(found, day=_day(options.date))
    if options.symbol:
        columns.pop("symbol", None)
        found = replace(found, columns=columns, symbol=options.symbol, symbol_from="--symbol", provider="")
    elif "symbol" not in columns and not found.wide and not found.symbol and (symbol := _symbol_in(file.stem)):
        found = replace(found, symbol=symbol, symbol_from="the file's name")
    return found


def _place(file: DataFile, name: str, ours: str) -> int:
    name = name.strip()
    if name in file.columns:
        if file.columns.count(name) > 1:
            raise SourceError(f"{file.path}: more than one column is called {name}: rename or remove the others")
        return file.columns.index(name)
    lower = [column.lower() for column in file.columns]
    if lower.count(name.lower()) == 1:
        return lower.index(name.lower())
    raise SourceError(f"{file.path}: there is no column {name!r} for --columns {ours}={name} ({_found(file)})")


def _day(text: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise SourceError(f"--date {text} is no day such as 2026-11-27") from None


def _symbol_in(stem: str) -> str:
    """The symbol that a file is named after: `AAPL`, `BRK-B`, `AAPL_1d`, `^GSPC (1)`. Lower case is no symbol but a word."""
    first = re.split(r"[_ ]", stem.strip(), maxsplit=1)[0]
    return first if _SYMBOL_IN_NAME.fullmatch(first) and any(letter.isalpha() for letter in first) and len(first) <= 12 else ""


def _check(file: DataFile, found: Layout, options: ReadOptions) -> None:
    if found.wide:
        missing = [] if "event_time" in found.columns else ["event_time"]
    else:
        needed = ["symbol", "event_time", "price", "size"]
        missing = [name for name in needed if name not in found.columns and not (name == "size" and found.kind == "bars")]      # an index has no volume
    if found.symbol:
        missing = [name for name in missing if name != "symbol"]
        if fault := symbol_fault(found.symbol):
            raise SourceError(f"{file.path}: --symbol: {fault}")
    if missing:
        words = [found.word(name) for name in missing]
        if words == ["symbol"]:
            raise SourceError(f"{file.path}: no column and no file name has a symbol: name it with --symbol ({_found(file)})")
        ways = " ".join(f"{word}=NAME" for word in words).replace(" ", ",")
        many = f"columns {', '.join(words)} are missing: name them" if len(words) > 1 else f"column {words[0]} is missing: name it"
        raise SourceError(f"{file.path}: {many} with --columns {ways} ({_found(file)})")
    used = {place for places in found.columns.values() for place in places}
    names = [file.columns[place] for place in used]
    if twice := [name for name in names if file.columns.count(name) > 1 and not found.wide and not options.columns]:
        raise SourceError(f"{file.path}: more than one column is called {twice[0]}: rename or remove the others")
    if found.end_mark and found.day is None:
        raise SourceError(f"{file.path}: it holds times of day only, and its name no day: name the day with --date YYYY-MM-DD")


def _found(file: DataFile) -> str:
    if file.headless:
        row = ",".join(column[0] for column in file.head)[:100]
        return f"it has no header, so that its columns are called 1 to {len(file.columns)}; its first row is {row}"
    shown = ", ".join(file.columns[:20]) + (f" and {len(file.columns) - 20} more" if len(file.columns) > 20 else "")
    return f"there are: {shown or 'none'}"

"""Why a tick cannot be used, in words, and the rejection that reports it: bounded, whatever the original was."""

from __future__ import annotations

import base64
from operator import attrgetter

import msgspec
from msgspec import UNSET

from stockstream.records import QUOTES, TEXTS, Rejection, Tick
from stockstream.transforms.cleaning.limits import (
    MAX_DAY_VOLUME,
    MAX_INT,
    MAX_INTERVAL_S,
    MAX_PRICE,
    MAX_SIZE,
    MAX_SOURCE,
    MAX_TEXT,
    MAX_TIME,
    MIN_PRICE,
    MIN_TIME,
    NO_DATA,
    PLACEHOLDERS,
    RANGES,
    composed,
    symbol_fault,
    unit_fault,
)  # fmt: skip

MAX_REJECTED_BYTES = 100_000
"""Of an original in its rejection: even where each byte becomes six characters of JSON, it fits into a message."""
MAX_DETAIL = 500
"""Characters of a detail: the decoder's repeats names of fields."""

Fault = tuple[str, str]
"""Reason and detail."""

_quotes_of, _texts_of = attrgetter(*QUOTES), attrgetter(*TEXTS)
_QUOTE_RANGES = [RANGES[name] for name in QUOTES]


_MISSING_PRICES, _MISSING_SIZES = PLACEHOLDERS["bid"], PLACEHOLDERS["bid_size"]


def drop_placeholders(tick: Tick) -> None:
    """Sets to null what stands for "no value" in the tick's quote. Each field is named here, because `clean` calls this for every quote."""
    if tick.bid in _MISSING_PRICES:
        tick.bid = None
    if tick.ask in _MISSING_PRICES:
        tick.ask = None
    if tick.bid_size in _MISSING_SIZES:
        tick.bid_size = None
    if tick.ask_size in _MISSING_SIZES:
        tick.ask_size = None


def normalise(tick: Tick) -> None:
    """Brings the tick into the one form in which it is judged: its symbol composed, its quote without placeholders."""
    tick.symbol = composed(tick.symbol)
    drop_placeholders(tick)


def range_fault(tick: Tick) -> Fault | None:
    """Why a well-formed tick, normalised, cannot be used."""
    price, size = tick.price, tick.size
    if (fault := symbol_fault(tick.symbol)) is not None:
        return "out_of_range", fault
    if not 0 < len(tick.source) <= MAX_SOURCE:
        return "out_of_range", f"source must have 1 to {MAX_SOURCE} characters, has {len(tick.source)}"
    for name in TEXTS:
        value = getattr(tick, name)
        if value is not None and len(value) > MAX_TEXT:
            return "out_of_range", f"{name} must have at most {MAX_TEXT} characters, has {len(value)}: shorten it or leave it out"
    if not MIN_TIME <= tick.event_time < MAX_TIME:
        return "out_of_range", f"event_time must be epoch milliseconds from 1990 on, is {tick.event_time}{unit_fault(tick.event_time)}"
    if price is not None and not MIN_PRICE <= price <= MAX_PRICE:
        return "out_of_range", f"price must be {MIN_PRICE:g} to {MAX_PRICE:g}, is {price}"
    if size is UNSET:
        if tick.day_volume is None:
            return "missing_field", "size may be missing only where day_volume is given"
    elif size not in NO_DATA:
        if not 0 <= size <= MAX_SIZE:
            return "out_of_range", f"size must be 0 to {MAX_SIZE}, is {size}"
        if price is None and size:
            return "size_without_price", f"a quote (price null) has size 0, this has {size}"
    for name in QUOTES:
        low, high = RANGES[name]
        value = getattr(tick, name)
        if value is not None and not low <= value <= high:
            return "out_of_range", f"{name} must be {low:g} to {high:g} (null where there is none), is {value}"
    if tick.day_volume is not None and tick.day_volume not in NO_DATA and not 0 <= tick.day_volume <= MAX_DAY_VOLUME:
        return "out_of_range", f"day_volume must be 0 to {MAX_DAY_VOLUME}, is {tick.day_volume}"
    if tick.seq is not None and not 0 <= tick.seq <= MAX_INT:
        return "out_of_range", f"seq must be 0 to {MAX_INT}, is {tick.seq}"
    if tick.epoch is not None and not 0 <= tick.epoch <= MAX_INT:
        return "out_of_range", f"epoch must be 0 to {MAX_INT}, is {tick.epoch}"
    if tick.gap_from is not None and not MIN_TIME <= tick.gap_from < MAX_TIME:
        return "out_of_range", f"gap_from must be epoch milliseconds from 1990 on, is {tick.gap_from}{unit_fault(tick.gap_from)}"
    if tick.interval_s is not None and not 0 <= tick.interval_s <= MAX_INTERVAL_S:
        return "out_of_range", f"interval_s must be 0 to {MAX_INTERVAL_S}, is {tick.interval_s}"
    return None


def extras_fit(tick: Tick) -> bool:
    """Whether `range_fault` finds nothing in the tick's quote, texts, gap and interval."""
    if tick.gap_from is not None and not MIN_TIME <= tick.gap_from < MAX_TIME:
        return False
    if tick.interval_s is not None and not 0 <= tick.interval_s <= MAX_INTERVAL_S:
        return False
    for value, (low, high) in zip(_quotes_of(tick), _QUOTE_RANGES, strict=True):
        if value is not None and not low <= value <= high:
            return False
    return all(text is None or len(text) <= MAX_TEXT for text in _texts_of(tick))


def decoding_fault(error: Exception) -> Fault:
    """Reason and detail of what the decoder reports."""
    text = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    if not isinstance(error, msgspec.ValidationError):
        return "invalid_json", text
    at = text.partition(" - at `$")[2].rstrip("`")
    if text.startswith("Expected `object") and "." not in at:
        return "invalid_shape", text
    if text.startswith("Object missing required field") or ", got `null`" in text:
        return "missing_field", text
    if "out of range" in text:
        return "out_of_range", text
    return "invalid_type", text


def rejection(fault: Fault, partition: int, offset: int, index: int, value: bytes | None) -> Rejection:
    """The rejection of an original, which is cut where it is long: as JSON it has less than 610,000 bytes."""
    text, coded = None, None
    reason, detail = fault
    if len(detail) > MAX_DETAIL:
        detail = f"{detail[:MAX_DETAIL]}... ({len(detail)} characters)"
    if value is not None:
        kept = value[:MAX_REJECTED_BYTES]
        if len(value) > len(kept):
            detail = f"{detail} (the first {MAX_REJECTED_BYTES} of {len(value)} bytes follow)"
        try:
            text = value.decode() if kept is value else kept.decode(errors="ignore" if _is_text(value) else "strict")
        except UnicodeDecodeError:
            coded = base64.b64encode(kept).decode()
    return Rejection(reason=reason, detail=detail, partition=partition, offset=offset, index=index, value=text, value_base64=coded)


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True

"""What is computed in each cell of a source's seconds, in numpy: prices carried forward, prefix sums, the statistics of a row.

Each function works in place on the source's two arrays, `current` and `past`, for some of its symbols (`indexes`).

Stretches of WINDOW_S seconds begin at multiples of it in epoch seconds; a window is the end of one and the beginning of the next. A prefix sum runs from
the stretch's beginning (prices: from the beginning of the series, where that is later) through the second. A suffix sum runs from the second through the
stretch's end.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stockstream.records import ACCRUED, CORRECTION
from stockstream.transforms import shares
from stockstream.transforms.splits import possible_split
from stockstream.transforms.timing import LAGS_S, WINDOW_S
from stockstream.transforms.windows.cells import (
    COUNT,
    CURRENT,
    INTS,
    NOT_YET,
    NOTHING,
    PAST,
    PREFIX,
    ROW_CURRENT,
    ROW_PAST,
    STORED_CURRENT,
    STORED_PAST,
    SUFFIX,
    SUFFIXES,
    SUM,
    TOTAL,
    WHOLE_COUNT,
    WHOLE_TOTAL,
    Cells,
    Floats,
    Ints,
)  # fmt: skip
from stockstream.transforms.windows.quality import quality_bits
from stockstream.transforms.windows.state import STORED
from stockstream.transforms.windows.ticks import Ticks

ACCRUED_PARTS = 1_000_000
"""Parts of a share that accrued volume is counted in."""
MANY_SYMBOLS = 150
"""Where one numpy call for each second begins to be cheaper than `accumulate`, which strides through memory (measured: 2.3 to 7 ns a cell against 1)."""
WIDEST = 0.1
"""Of the last trade's price: a spread beyond it is that of stub quotes, whose middle is nobody's price."""
SYMBOLS_AT_ONCE = 128
"""Symbols whose suffixes are summed at once: what that takes then stays near the processor (measured with 1,250: 45 ns a cell against 80)."""


def _running(operation: np.ufunc, carried: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Running results along the seconds (last axis but one), going on from `carried`: always one second after the other."""
    if values.shape[-2] == 1:
        one: NDArray[Any] = operation(carried[..., None, :], values)
        return one
    if values.shape[-1] < MANY_SYMBOLS:
        return operation.accumulate(np.concatenate([carried[..., None, :], values], axis=-2), axis=-2)[..., 1:, :]
    out = np.empty_like(values)
    for second in range(values.shape[-2]):
        carried = operation(carried, values[..., second, :], out=out[..., second, :])
    return out


def _groups_of_symbols(indexes: slice | Ints) -> list[slice | Ints]:
    if isinstance(indexes, slice):
        return [slice(at, min(at + SYMBOLS_AT_ONCE, indexes.stop)) for at in range(indexes.start, indexes.stop, SYMBOLS_AT_ONCE)]
    return [indexes[at : at + SYMBOLS_AT_ONCE] for at in range(0, len(indexes), SYMBOLS_AT_ONCE)]


def _squares_added(change: Floats, before: Floats, count: Ints) -> Floats:
    """What each return adds to the squares of deviations from the mean, with the sum and count of those before it (Welford, 1962)."""
    return np.square(change - before / np.maximum(count, 1)) * (count / (count + 1))


def add(current: Cells, past: Cells, ticks: Ticks) -> None:
    """Adds ticks to their seconds, one after the other in log order; a price of NaN is a quote's. A correction adds to volume and notional alone."""
    at, before = current.at(ticks.symbol, ticks.second), past.at(ticks.symbol, ticks.second)
    if ticks.away_s is not None and ticks.away_s.any():
        current.last_gap = max(current.last_gap, int(ticks.second[ticks.away_s > 0].max()))
        np.maximum.at(current.flat("away_s"), at, ticks.away_s)
    price, size, flags = ticks.price, ticks.size, ticks.flags
    priced = ~np.isnan(price)
    if not priced.all():
        quote = ~priced if flags is None else ~priced & ((flags & CORRECTION) == 0)
        np.add.at(current.flat("quotes"), at[quote], 1)
        at, before, price, size = at[priced], before[priced], price[priced], size[priced]
        flags = None if flags is None else flags[priced]
    whole, part = shares.split(size)
    np.add.at(current.flat("volume"), at, whole)
    if part.any():
        current.parts = True
        np.add.at(current.flat("volume_part"), at, part)
    np.add.at(past.flat("notional"), before, price * size)
    if flags is not None:
        accrued = (flags & ACCRUED) > 0
        parts = whole[accrued] * ACCRUED_PARTS + np.rint(part[accrued] / (shares.PARTS // ACCRUED_PARTS)).astype(np.int64)
        current.parts |= bool(parts.any())
        np.add.at(current.flat("accrued"), at[accrued], parts)
        real = (flags & CORRECTION) == 0
        at, before, price = at[real], before[real], price[real]
    np.add.at(current.flat("ticks"), at, 1)
    np.maximum.at(past.flat("high"), before, price)
    np.minimum.at(past.flat("low"), before, price)
    opened = current.flat("open")
    unopened = np.isnan(opened[at])
    opened[at[unopened][::-1]] = price[unopened][::-1]
    current.flat("close")[at] = price


def carry(current: Cells, past: Cells, indexes: slice | Ints, first: int, last: int) -> None:
    """Computes price, return, last traded second, beginning of the series and sums in the seconds `first` to `last` from the second before."""
    while first <= last:
        stretch = first // WINDOW_S * WINDOW_S
        end = min(last, stretch + WINDOW_S - 1, current.unbroken(first), past.unbroken(first))
        _carry_prices(current, past, indexes, first, end)
        _sum_prefixes(current, past, indexes, first, end, stretch)
        if end == stretch + WINDOW_S - 1:
            for some in _groups_of_symbols(indexes):
                _sum_suffixes(past, some, max(stretch, past.base), end)
        first = end + 1


def _carry_prices(current: Cells, past: Cells, indexes: slice | Ints, first: int, last: int) -> None:
    (here,), (there,) = current.columns(first, last), past.columns(first, last)
    before_current, before_past = here.start - 1, there.start - 1     # of column 0: the last, -1
    close = current.of("close")[here, indexes]
    second = np.arange(first, last + 1)[:, None]
    traded = ~np.isnan(close)
    newest = current.of("last")[before_current, indexes]
    seen = _running(np.maximum, newest, np.where(traded, second, NOT_YET))
    before = np.concatenate([newest[None], seen[:-1]])
    anew = traded & (second - before > WINDOW_S)
    series_start = _running(np.maximum, current.of("series_start")[before_current, indexes], np.where(anew, second, NOT_YET))
    known = np.concatenate([past.of("price")[before_past, indexes][None], close])
    at = np.maximum(seen - (first - 1), 0)                           # where in `known` the newest price stands
    price = known.take(at * known.shape[1] + np.arange(known.shape[1]))
    price[second - seen > WINDOW_S] = np.nan
    former = np.concatenate([known[:1], price[:-1]])
    moved = (price != former) & (second > series_start) & ~np.isnan(price)
    change = np.zeros(price.shape)
    change[moved] = np.log(price[moved] / former[moved])
    current.of("last")[here, indexes], current.of("series_start")[here, indexes] = seen, series_start
    if first <= current.last_gap + WINDOW_S:
        away = np.where(current.of("away_s")[here, indexes] > 0, second, NOT_YET)
        current.of("last_away")[here, indexes] = _running(np.maximum, current.of("last_away")[before_current, indexes], away)
    past.of("price")[there, indexes], past.of("log_return")[there, indexes] = price, change
    totals, counts = (TOTAL, COUNT) if current.parts else (WHOLE_TOTAL, WHOLE_COUNT)
    past.cells[totals, there, indexes] = _running(np.add, past.cells[totals, before_past, indexes], current.cells[counts, here, indexes])


def _sum_prefixes(current: Cells, past: Cells, indexes: slice | Ints, first: int, last: int, stretch: int) -> None:
    """Prefix sums in some seconds of the stretch that begins with second `stretch`."""
    (here,), (there,) = current.columns(first, last), past.columns(first, last)
    second = np.arange(first, last + 1)[:, None]
    series_start = current.of("series_start")[here, indexes]
    carried = current.floats[PREFIX, here.start - 1, indexes]
    if first == stretch:
        carried = np.broadcast_to(NOTHING[:, None], carried.shape)
    values = past.floats[SUM, there, indexes].copy()
    price = values[2]
    price[np.isnan(price)] = 0.0
    sums = _running(np.add, carried[:3], values)
    again = np.flatnonzero(series_start[-1] >= first)                       # a stretch is too short for two beginnings
    if len(again):
        inside = second >= series_start[-1, again]
        alone = np.add.accumulate(np.where(inside, price[:, again], 0.0), axis=0)
        sums[2][:, again] = np.where(inside, alone, sums[2][:, again])
    count = np.maximum(second - np.maximum(stretch, series_start + 1), 0)
    added = _squares_added(values[1], np.concatenate([carried[1:2], sums[1, :-1]]), count)
    current.floats[PREFIX, here, indexes] = np.concatenate([
        sums, _running(np.add, carried[3], added)[None],
        _running(np.maximum, carried[4], past.of("high")[there, indexes])[None],
        _running(np.minimum, carried[5], past.of("low")[there, indexes])[None],
    ])  # fmt: skip


def _sum_suffixes(past: Cells, indexes: slice | Ints, first: int, last: int) -> None:
    """Suffix sums of a stretch whose seconds are all closed. Before a series' beginning they mean nothing."""
    high, low, *_ = backwards = past.read(slice(0, SUM.stop), first, last, indexes).view(np.float64)[:, ::-1]
    values = backwards[SUM]
    sums = np.add.accumulate(values, axis=1)
    before = np.concatenate([np.zeros_like(sums[1, :1]), sums[1, :-1]])
    added = _squares_added(values[1], before, np.arange(last - first + 1)[:, None])
    suffixes = np.concatenate([
        sums, np.add.accumulate(added, axis=0)[None], np.maximum.accumulate(high, axis=0)[None], np.minimum.accumulate(low, axis=0)[None],
    ])[:, ::-1]  # fmt: skip
    at = 0
    for columns in past.columns(first, last):
        length = columns.stop - columns.start
        past.floats[SUFFIX, columns, indexes] = suffixes[:, at : at + length]
        at += length


def live(current: Cells, indexes: Ints, seconds: Ints) -> tuple[Ints, Ints]:
    """(indexes, seconds) of the cells that have ticks or quotes, by second, in the order of `indexes`."""
    cells = (seconds % current.width)[:, None], indexes
    at, which = (current.of("ticks")[cells] + current.of("quotes")[cells]).nonzero()
    return indexes[which], seconds[at]


def statistics(current: Cells, past: Cells, indexes: Ints, seconds: Ints) -> dict[str, NDArray[Any]]:
    """The row values of these cells, by column name of `windows`; `quality` as bits."""
    symbols = past.cells.shape[2]
    at = past.at(indexes, seconds)
    here = current.cells[ROW_CURRENT].reshape(-1, current.width * symbols).take(current.at(indexes, seconds), axis=1)
    there = past.cells[ROW_PAST].reshape(-1, past.width * symbols).take(at, axis=1)
    get = {name: values if name in INTS else values.view(np.float64)
           for name, values in zip((*CURRENT[ROW_CURRENT], *PAST[ROW_PAST]), (*here, *there), strict=True)}  # fmt: skip
    second, series_start, carried = seconds, get["series_start"], get["price"]
    traded, alive = get["ticks"] > 0, ~np.isnan(carried)
    length = np.where(alive, np.minimum(second - series_start + 1, WINDOW_S), 0)
    returns = length - (second - series_start < WINDOW_S)                   # the first second of a series has no return
    out = {name: get[name] for name in ("open", "close", "ticks", "quotes", "bid", "ask", "bid_size", "ask_size")}
    out["high"], out["low"] = np.where(traded, get["high"], np.nan), np.where(traded, get["low"], np.nan)
    out["second"], out["seconds_5m"] = second, length
    ago = at - np.array([[10], [60], [WINDOW_S]]) * symbols
    volumes = get["volume_total"] - past.flat("volume_total").take(ago)
    if current.parts:
        out["volume"] = shares.joined(get["volume"], get["volume_part"])
        volumes = shares.joined(volumes, get["volume_part_total"] - past.flat("volume_part_total").take(ago))
        out["accrued_5m"] = (get["accrued_total"] - past.flat("accrued_total").take(ago[2])) / ACCRUED_PARTS
    else:
        out["volume"], volumes, out["accrued_5m"] = get["volume"].astype(np.float64), volumes.astype(np.float64), np.zeros(len(second))
    ticks = get["ticks_total"] - past.flat("ticks_total").take(at - np.array([[10], [WINDOW_S]]) * symbols)
    out["volume_10s"], out["volume_60s"], out["volume_5m"] = volumes
    out["ticks_10s"], out["ticks_5m"] = ticks
    notional, price, squares, high, low = _windows(past, here[PREFIX].view(np.float64), at, second, series_start, returns)
    with np.errstate(divide="ignore", invalid="ignore"):
        out["mean_5m"] = np.where(length > 0, price / length, np.nan)
        out["vwap_5m"] = np.where(volumes[2] > 0, notional / volumes[2], np.nan)
        out["return_std_5m"] = np.where(returns > 1, np.sqrt(squares / (returns - 1)), np.nan)
        out["high_5m"], out["low_5m"] = np.where(ticks[1] > 0, high, np.nan), np.where(ticks[1] > 0, low, np.nan)
        mid, flags = _mid(get["bid"], get["ask"], carried)
        silent, former = get["gap_s"] > 0, past.flat("price").take(at - symbols)
        out["gap_s"], out["price_before_gap"] = np.where(silent, get["gap_s"], np.nan), np.where(silent, get["price_before_gap"], np.nan)
        flags["partial"] = length < WINDOW_S
        if current.parts:
            flags["accrued"] = get["accrued"] > 0
        if len(second) and second.min() <= current.last_gap + WINDOW_S:
            flags["gap"] = second - current.flat("last_away").take(current.at(indexes, seconds)) < WINDOW_S
        flags["after_gap"], flags["new_series"] = silent, get["new_series"] > 0
        flags["possible_split"] = possible_split(np.where(np.isnan(former), out["price_before_gap"], former), out["open"])
        out["mid"], out["quality"] = mid, quality_bits(flags)
        out["price"] = np.where(np.isnan(mid), np.where(np.isnan(get["close"]), carried, get["close"]), mid)
        lags = np.array(LAGS_S)[:, None]
        before = np.where(alive & (second - lags >= series_start), past.flat("price").take(at - lags * symbols), np.nan)
        for lag, change in zip(LAGS_S, np.log(carried / before), strict=True):
            out[f"return_{lag}s"] = change
        out["price_60s"] = before[-1]
    return out


def _mid(bid: Floats, ask: Floats, last: Floats) -> tuple[Floats, dict[str, NDArray[np.bool_]]]:
    """The middle of the quotes that are believable, else NaN, and which rows have which flag of a quote that is not. `last` is the last trade's price."""
    spread, middle = ask - bid, (bid + ask) / 2
    crossed, locked = bid > ask, bid == ask
    wide = spread > WIDEST * np.where(np.isnan(last), middle, last)
    return np.where(crossed | locked | wide, np.nan, middle), {"crossed": crossed, "locked": locked, "wide": wide}


def _windows(past: Cells, prefix: Floats, at: Ints, second: Ints, series_start: Ints, returns: Ints) -> tuple[Floats, ...]:
    """Over the windows that end in these cells: notional, prices, squares of the returns' deviations, greatest and least price."""
    symbols, stretch = past.cells.shape[2], second // WINDOW_S * WINDOW_S
    first = np.maximum(second - (WINDOW_S - 1), series_start)
    older = first < stretch
    there = np.where(older, at - (second - first) * symbols, at)
    suffix = np.where(older, past.floats[SUFFIX].reshape(len(SUFFIXES), -1).take(there, axis=1), NOTHING[:, None])
    # the suffix's returns begin one second later where the series begins there
    returning = np.maximum(stretch - np.maximum(first, series_start + 1), 0)
    here = returns - returning
    suffix_squares = np.where(returning > 0, past.flat("squares_suffix").take(there + ((returning > 0) & (first == series_start)) * symbols), 0.0)
    # squares of deviations, of two groups with means of their own (Chan, Golub, LeVeque: Updating formulae for sample variances, 1979)
    apart = suffix[1] / np.maximum(returning, 1) - prefix[1] / np.maximum(here, 1)
    squares = prefix[3] + (suffix_squares + np.square(apart) * (returning * here / np.maximum(returns, 1)))
    return prefix[0] + suffix[0], prefix[2] + suffix[2], squares, np.maximum(prefix[4], suffix[4]), np.minimum(prefix[5], suffix[5])


def stored_places(current: Cells, past: Cells) -> tuple[tuple[Cells, Ints], ...]:
    """Both arrays, each with the places that its first fields have in a bucket."""
    return (current, STORED_CURRENT), (past, STORED_PAST)


def stored(current: Cells, past: Cells, indexes: Ints, seconds: Ints) -> Ints:
    """What a bucket keeps of these cells: array (field of STORED, cell)."""
    kept = np.empty((len(STORED), len(indexes)), np.int64)
    for cells, places in stored_places(current, past):
        kept[places] = cells.cells[: len(places)].reshape(len(places), -1).take(cells.at(indexes, seconds), axis=1)
    return kept

"""What `windows` must hold, computed with pandas from the ticks alone, by a way of its own: no ring, no frames, no state.

For logs in which no tick is late: then every row is sent once, at the closing of its second. `tests/unit/transforms/test_windows.py` covers the rest.
"""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pandas as pd

WINDOW_S = 300
PARTS = 10**8
"""Sizes are summed as whole numbers of 1e-8 shares."""
FLOATS = ("open", "high", "low", "close", "bid", "ask", "bid_size", "ask_size", "mid", "mean_5m", "vwap_5m", "high_5m", "low_5m", "return_std_5m",
          "price", "price_60s", "return_1s", "return_5s", "return_10s", "return_30s", "return_60s", "gap_s", "price_before_gap")  # fmt: skip
EXACT = ("volume", "ticks", "quotes", "volume_5m", "ticks_5m", "seconds_5m", "volume_10s", "volume_60s", "ticks_10s", "accrued_5m", "quality")


def rows(ticks: pd.DataFrame) -> pd.DataFrame:
    """One row for each symbol and second with a tick, indexed by (symbol, second).

    `ticks` has symbol, event_time (epoch ms), price (NaN in a quote), size and optionally bid, ask, bid_size, ask_size, and gap_from (epoch ms or None), in the
    order of arrival.
    """
    parts = [int(Decimal(repr(size)) * PARTS) for size in ticks["size"].tolist()]
    ticks = ticks.assign(second=ticks.event_time // 1000, notional=ticks.price * ticks["size"], parts=np.array(parts, np.int64))
    for name in ("bid", "ask", "bid_size", "ask_size", "gap_from"):
        if name not in ticks:
            ticks[name] = np.nan
    return pd.concat([_symbol(symbol, of) for symbol, of in ticks.groupby("symbol", sort=True)])


def _symbol(symbol: str, ticks: pd.DataFrame) -> pd.DataFrame:
    by = ticks.groupby("second")
    bars = pd.DataFrame({
        "open": by.price.first(), "high": by.price.max(), "low": by.price.min(), "close": by.price.last(), "parts": by.parts.sum(),
        "ticks": by.price.count(),
        "quotes": by["size"].count() - by.price.count(), "bid": by.bid.last(), "ask": by.ask.last(), "bid_size": by.bid_size.last(),
        "ask_size": by.ask_size.last(),
        "notional": by.notional.sum(),
    })  # fmt: skip
    gaps = _gaps(ticks[ticks.price.notna()])
    bars["gap_s"], bars["price_before_gap"] = ([gaps.get(second, (np.nan, np.nan))[n] for second in bars.index] for n in (0, 1))
    away = [(min(int(g) // 1000 + 1, s), s) for g, s in zip(ticks.gap_from, ticks.second, strict=True) if g == g and g is not None]
    bars["away"] = [any(first <= second < last + WINDOW_S for first, last in away) for second in bars.index]
    priced = bars.index[bars.close.notna()].to_numpy()
    gap = np.diff(priced, prepend=priced[:1] - 10 * WINDOW_S) > WINDOW_S
    begins = pd.Series(np.where(gap, priced, np.nan), priced).ffill()
    # stretches with no gap of more than a window between seconds with anything: beyond one, nothing of the window is left
    stretch = (np.diff(bars.index.to_numpy(), prepend=bars.index[0]) > 2 * WINDOW_S).cumsum()
    return pd.concat([_stretch(symbol, part, begins) for _, part in bars.groupby(stretch)])


def _gaps(trades: pd.DataFrame) -> dict[int, tuple[float, float]]:
    """By second of a trade that came more than a minute, and at most 8 hours, after the newest before it: the gap, and the price of that one."""
    gaps: dict[int, tuple[float, float]] = {}
    newest, price = -10**6, np.nan
    for second, now in zip(trades.second, trades.price, strict=True):
        if 60 < second - newest <= 8 * 3600:
            gaps[second] = second - newest, price
        if second >= newest:
            newest, price = second, now
    return gaps


def _stretch(symbol: str, bars: pd.DataFrame, begins: pd.Series) -> pd.DataFrame:
    grid = bars.reindex(np.arange(bars.index[0], bars.index[-1] + 1))
    second = pd.Series(grid.index, grid.index)
    last = second.where(grid.close.notna()).ffill()
    alive = last.notna() & (second - last <= WINDOW_S)
    begun = begins.reindex(grid.index).ffill().where(alive)
    price = grid.close.ffill().where(alive)
    out = bars.copy()
    rolling = {name: _sums(grid[name], WINDOW_S) for name in ("parts", "ticks")}
    high, low = (getattr(grid[name].rolling(WINDOW_S, min_periods=1), how)() for name, how in (("high", "max"), ("low", "min")))
    prices, notional = price.to_numpy(), grid.notional.fillna(0).to_numpy()
    change = np.full(len(grid), np.nan)
    inside = (second.to_numpy() > begun.to_numpy())[1:]
    change[1:][inside] = np.log(prices[1:][inside] / prices[:-1][inside])
    first = int(grid.index[0])
    values: dict[str, list[float]] = {name: [] for name in ("mean_5m", "vwap_5m", "return_std_5m", "seconds_5m")}
    for s in bars.index:
        at = int(s) - first
        lo = max(0, at - WINDOW_S + 1)
        volume = rolling["parts"].iloc[at] / PARTS
        values["vwap_5m"].append(notional[lo : at + 1].sum() / volume if volume else np.nan)
        if not alive.iloc[at]:
            values["mean_5m"].append(np.nan)
            values["return_std_5m"].append(np.nan)
            values["seconds_5m"].append(0)
            continue
        lo = max(lo, int(begun.iloc[at]) - first)
        returns = change[lo : at + 1]
        if lo == int(begun.iloc[at]) - first:
            returns = returns[1:]
        values["mean_5m"].append(prices[lo : at + 1].mean())
        values["return_std_5m"].append(np.std(returns, ddof=1) if len(returns) > 1 else np.nan)
        values["seconds_5m"].append(at - lo + 1)
    for name, column in values.items():
        out[name] = column
    out["volume"], out["volume_5m"], out["ticks_5m"] = _shares(bars.parts), _shares(rolling["parts"].reindex(bars.index)), rolling["ticks"].reindex(bars.index)
    out["high_5m"], out["low_5m"] = high.reindex(bars.index), low.reindex(bars.index)
    # with only one price, or none, in a window that is alive the carried price is no tick's
    out.loc[out.ticks_5m == 0, ["high_5m", "low_5m"]] = np.nan
    last_trade = price.reindex(bars.index)
    middle = (bars.bid + bars.ask) / 2
    wide = (bars.ask - bars.bid > 0.1 * last_trade.fillna(middle))
    out["mid"] = middle.where((bars.bid < bars.ask) & ~wide)
    out["price"] = out.mid.fillna(bars.close).fillna(price.reindex(bars.index))
    for lag in (1, 5, 10, 30, 60):
        before = price.shift(lag).where(second - lag >= begun).reindex(bars.index)
        out[f"return_{lag}s"] = np.log(price.reindex(bars.index) / before)
        out[f"price_{lag}s"] = before
    for name, lag in (("volume_10s", 10), ("volume_60s", 60)):
        out[name] = _shares(_sums(grid.parts, lag).reindex(bars.index))
    out["ticks_10s"] = _sums(grid.ticks, 10).reindex(bars.index)
    out["accrued_5m"] = 0.0
    change = bars.open / price.shift(1).reindex(bars.index).fillna(bars.price_before_gap)
    ratios = np.array([1.5, 2, 3, 4, 5, 10, 15, 20, 25, 30, 40, 50, 100])
    split = [bool((np.abs(one - np.append(ratios, 1 / ratios)) <= 0.02 * np.append(ratios, 1 / ratios)).any()) for one in change]
    flags = {
        "partial": out.seconds_5m < WINDOW_S, "after_gap": bars.gap_s.notna(), "possible_split": pd.Series(split, bars.index),
        "crossed": bars.bid > bars.ask, "locked": bars.bid == bars.ask, "wide": wide, "gap": bars.away,
    }  # fmt: skip
    out["quality"] = [",".join(flag for flag, has in zip(flags, row, strict=True) if has) for row in zip(*flags.values(), strict=True)]
    out.index = pd.MultiIndex.from_product([[symbol], out.index], names=["symbol", "second"])
    return out


def _sums(counts: pd.Series, seconds: int) -> pd.Series:
    """Sums over the last seconds, as whole numbers."""
    total = counts.fillna(0).astype("int64").cumsum()
    return total - total.shift(seconds, fill_value=0)


def _shares(parts: pd.Series) -> list[float]:
    """The doubles nearest to these numbers of parts: Python divides whole numbers so."""
    return [count / PARTS for count in parts.tolist()]


def differences(got: pd.DataFrame, want: pd.DataFrame) -> list[str]:
    """What differs between rows of `windows` and the oracle's, in words; empty where all is equal: 1e-9 relative, 1e-12 absolute for returns."""
    got = got.set_index(["symbol", "second"]).sort_index()
    want = want.sort_index()
    if not got.index.equals(want.index):
        return [f"{len(want.index.difference(got.index))} rows missing, {len(got.index.difference(want.index))} too many of {len(want)}"]
    out = []
    for name in FLOATS:
        a, b = got[name].to_numpy(float), want[name].to_numpy(float)
        close = np.isclose(a, b, rtol=1e-9, atol=1e-12 if name.startswith("return_") else 0, equal_nan=True)
        if not close.all():
            at = int(np.flatnonzero(~close)[0])
            out.append(f"{name}: {(~close).sum()} differ, first at {want.index[at]}: {a[at]!r} for {b[at]!r}")
    for name in EXACT:
        equal = got[name].to_numpy() == want[name].to_numpy()
        if not equal.all():
            at = int(np.flatnonzero(~equal)[0])
            out.append(f"{name}: {(~equal).sum()} differ, first at {want.index[at]}: {got[name].iloc[at]!r} for {want[name].iloc[at]!r}")
    return out

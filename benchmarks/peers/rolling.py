"""The peers' job for one symbol in plain Python, for the peers that let their users keep objects as state."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

WINDOW_S = 300


class Rolling:
    """The open second's bar, the last 300 closed seconds, and their sums. Picklable."""

    __slots__ = ("bars", "begun", "close", "high", "last", "low", "notional", "open", "second", "sums", "volume")

    def __init__(self) -> None:
        self.second = self.begun = -1
        self.open = self.high = self.low = self.close = self.notional = 0.0
        self.last = 0.0
        self.volume = 0
        self.bars: deque[tuple[float, int, float, float]] = deque()
        self.sums = [0.0, 0, 0.0, 0.0, 0.0]

    def __getstate__(self) -> Any:
        return tuple(getattr(self, name) for name in self.__slots__)

    def __setstate__(self, state: Any) -> None:
        for name, value in zip(self.__slots__, state, strict=True):
            setattr(self, name, value)

    def tick(self, symbol: str, event_time: int, price: float, size: int) -> dict[str, Any] | None:
        """Adds a tick; the row of the second before, where this one opens another."""
        second, row = event_time // 1000, None
        if second > self.second:
            if self.second >= 0:
                row = self.row(symbol)
                for _ in range(self.second + 1, second):                # quiet seconds carry the price
                    self.push(self.last, 0, 0.0)
            else:
                self.begun = second
            self.second = second
            self.open = self.high = self.low = price
            self.volume, self.notional = 0, 0.0
        if price > self.high:
            self.high = price
        if price < self.low:
            self.low = price
        self.close = price
        self.volume += size
        self.notional += price * size
        return row

    def push(self, price: float, volume: int, notional: float) -> None:
        change = math.log(price / self.last) if self.last and price != self.last else 0.0
        self.last = price
        sums, bars = self.sums, self.bars
        bars.append((price, volume, notional, change))
        sums[0] += price
        sums[1] += volume
        sums[2] += notional
        sums[3] += change
        sums[4] += change * change
        if len(bars) > WINDOW_S:
            price, volume, notional, change = bars.popleft()
            sums[0] -= price
            sums[1] -= volume
            sums[2] -= notional
            sums[3] -= change
            sums[4] -= change * change

    def row(self, symbol: str) -> dict[str, Any]:
        self.push(self.close, self.volume, self.notional)
        price, volume, notional, change, squares = self.sums
        age = self.second - self.begun
        returns = min(age, WINDOW_S)
        return {
            "symbol": symbol, "second": self.second, "open": self.open, "high": self.high, "low": self.low, "close": self.close, "volume": self.volume,
            "mean_5m": price / min(age + 1, WINDOW_S), "vwap_5m": notional / volume if volume else None, "volume_5m": volume,
            "return_std_5m": math.sqrt(max(0.0, (squares - change * change / returns) / (returns - 1))) if returns > 1 else None,
        }  # fmt: skip


def ticks_of(item: Any) -> list[dict[str, Any]]:
    """The ticks of a decoded record: one, a frame of them, or none (a punctuation)."""
    if type(item) is list:
        return item
    return [item] if "symbol" in item else []

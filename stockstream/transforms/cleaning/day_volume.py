"""Shares traded in one tick, where its source sends the day's cumulative volume."""

from __future__ import annotations

from msgspec import UNSET

from stockstream.records import Tick
from stockstream.transforms.cleaning.limits import MAX_SIZE
from stockstream.transforms.cleaning.state import Feed
from stockstream.transforms.shares import rounded


def traded_size(tick: Tick, feed: Feed) -> float:
    """Shares traded in this tick: its `size`, or what the day's cumulative volume rose by since the symbol's last trade.

    The first cumulative figure gives no size for this tick (0). One below the last restarts the count where the session or the UTC day is another; otherwise
    it is out of order or a correction (0, and the highest figure stays).
    """
    volume = tick.day_volume
    if volume is None or tick.price is None:
        return 0 if tick.size is UNSET else rounded(float(tick.size))
    before, day = feed.day_volume, feed.day_time // 86_400_000
    restarted = before >= 0 and (tick.session != feed.session or tick.event_time // 86_400_000 > day) and volume < before
    derived = 0 if before < 0 else volume if restarted else max(0, volume - before)
    if volume >= before or restarted:
        feed.day_volume, feed.session = volume, tick.session
        feed.day_time = max(feed.day_time, tick.event_time)
    return min(derived, MAX_SIZE) if tick.size is UNSET else rounded(float(tick.size))

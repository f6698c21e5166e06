"""Shares traded in one tick, where its source sends the day's cumulative volume.

A figure counts from the figure before it, with these exceptions:

- The first figure, one of another session, one below half of the highest, and one after more than a window of silence begin a new count: size 0.
- A figure that takes back the last step goes on from before that step. A step is a rise, a fall that began a new count, or the figure after a silence. So
  one impossible figure, too high or too low, does not stay; a rise that was counted is corrected.
- Any other fall is a correction at the source: size 0, and the highest figure stays.
- A figure that is older than the last by event time, and below it or of another session, is out of order: size 0, and nothing changes.
- NO_DATA, and a 0 within a count, mean that the source has no figure: size 0, and nothing changes.
"""

from __future__ import annotations

from typing import NamedTuple

from msgspec import UNSET

from stockstream.records import Tick
from stockstream.transforms.cleaning.limits import MAX_SIZE, NO_DATA
from stockstream.transforms.cleaning.state import Feed, Step
from stockstream.transforms.shares import PARTS, parts_of
from stockstream.transforms.timing import ACCRUED_MS, WINDOW_S


class Counted(NamedTuple):
    """What a figure has brought."""

    size: float = 0.0
    """Shares traded in its tick; 0 where the tick has a size of its own."""
    reason: str = ""
    """Why that is not simply the rise, as a label of the metric; empty where it is."""
    accrued: bool = False
    """Whether the shares were traded over more than ACCRUED_MS."""
    taken_back: Step | None = None
    """The rise that the figure takes back, where its shares were counted."""


def count(tick: Tick, feed: Feed) -> Counted:
    """Takes the `day_volume` of a tick as the feed's newest figure. A quote's figure is left to the next trade."""
    figure = tick.day_volume
    if figure is None or tick.price is None:
        return Counted()
    last, since, step = feed.day_volume, feed.day_time, feed.step
    another = feed.session is not None and tick.session is not None and tick.session != feed.session
    if figure in NO_DATA or (figure == 0 < last and not another):
        return Counted(reason="no_figure")
    silence = tick.event_time - since
    if last >= 0 > silence and (figure < last or another):
        return Counted(reason="out_of_order")
    if last < 0 or another or silence > WINDOW_S * 1000:
        _take(tick, feed, figure, None if last < 0 or another else Step(last, since))
        return Counted(reason="first" if last < 0 else "new_session" if another else "silence")
    undone = step if step is not None and (step.before <= figure < last or last < step.before <= figure) else None
    if undone is not None:
        last, since, step = undone.before, undone.before_time, None
    elif 2 * figure < last:
        _take(tick, feed, figure, Step(last, since))
        return Counted(reason="new_count")
    elif figure < last:
        feed.day_time = tick.event_time
        return Counted(reason="correction")
    over = tick.event_time - since
    size = 0.0
    if (tick.size is UNSET or tick.size in NO_DATA) and over <= WINDOW_S * 1000:
        size = min(parts_of(figure) - parts_of(last), MAX_SIZE * PARTS) / PARTS
    accrued = size > 0 and (over > ACCRUED_MS or is_interval(tick))
    if figure > last:
        step = Step(last, since, tick.event_time, tick.price, size, accrued)
    _take(tick, feed, figure, step)
    reason = "taken_back" if undone is not None else "accrued" if accrued else ""
    return Counted(size, reason, accrued, undone if undone is not None and undone.size else None)


def is_interval(tick: Tick) -> bool:
    """Whether the tick's size was traded over more than ACCRUED_MS, by its own `interval_s`."""
    return tick.interval_s is not None and tick.interval_s * 1000 > ACCRUED_MS


def _take(tick: Tick, feed: Feed, figure: float, step: Step | None) -> None:
    feed.day_volume, feed.step = figure, step
    feed.day_time = max(feed.day_time, tick.event_time)
    feed.session = tick.session if tick.session is not None else feed.session

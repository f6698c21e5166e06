"""What is found out about a recording before it is published, in numbers and in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from stockstream.sources.recordings.chunks import BadRow, Chunk
from stockstream.sources.recordings.event_times import EventTimes
from stockstream.sources.recordings.intervals import DAY_S
from stockstream.sources.recordings.layout import Layout
from stockstream.sources.recordings.options import ReadOptions


@dataclass(slots=True)
class Survey:
    """What a recording holds: times in epoch ms, `first_seen` each symbol's first tick, `behind_ms` how far the latest of the `unordered` rows lies behind."""

    ticks: int = 0
    first: int = 0
    last: int = 0
    first_seen: dict[str, int] = field(default_factory=dict)
    unordered: int = 0
    behind_ms: int = 0
    bad: list[BadRow] = field(default_factory=list)
    bad_count: int = 0
    unit: str = ""
    """Of `event_time` in the file, where it is a number: a name of UNITS, or empty where it is none of them."""
    bad_times: str = ""
    """Why `clean` would reject the time of every tick; empty where it would not."""
    bad_values: str = ""
    """Why `clean` would reject the price or size of every tick; empty where it would not."""
    notes: list[str] = field(default_factory=list)
    """What was found out about the file and is not in it, one sentence each."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Rows that are no ticks and are not meant to be, by what they are (a plural)."""
    sorted: bool = False
    """Whether the ticks come in the order of time instead of the file's."""

    def see(self, chunk: Chunk) -> None:
        """Notes each symbol's first tick."""
        indices = chunk.symbols.indices.to_numpy()
        least = np.full(len(chunk.symbols.dictionary), np.iinfo(np.int64).max)
        np.minimum.at(least, indices, chunk.times)
        names = chunk.symbols.dictionary.to_pylist()
        for code in np.unique(indices).tolist():
            self.first_seen[names[code]] = min(int(least[code]), self.first_seen.get(names[code], int(least[code])))


def notes(
    layout: Layout, options: ReadOptions, times: EventTimes, columns: Sequence[str], *, symbol: str, interval_s: int, decimal: str, is_sorted: bool,
    newest_first: bool,
) -> Iterator[str]:  # fmt: skip
    """How a file was read, one sentence each; `symbol` is the one of all rows, `columns` are the file's."""
    bars = f"bars of {duration(interval_s)}"
    if not layout.format:
        named = (f"{layout.word(ours)}={'+'.join(columns[place] for place in places)}" for ours, places in layout.columns.items())
        yield f"read as {bars if layout.kind == 'bars' else 'trades'} by the names of its columns: {', '.join(named)}"
    elif not layout.own:
        yield f"read as {layout.format}, {bars if layout.kind == 'bars' else 'trades'}"
    elif layout.kind == "bars":
        yield f"it has the columns of bars: read as {bars}"
    if layout.symbol and layout.symbol_from != "--symbol":
        yield f"symbol {symbol}, by {layout.symbol_from} (--symbol names another)"
    if decimal == "," and not options.decimal:
        yield "numbers have a decimal comma (--decimal . if not)"
    if times.unit:
        yield f"event_time is read as {times.unit}"
    if layout.zone and not options.zone and not times.zone_unused:
        yield f"times are those of {layout.zone} (--zone names another)"
    if times.without_zone and not layout.own:
        yield "times without a zone are read as UTC (--zone names another, such as America/New_York)"
    if options.zone and times.zone_unused:
        yield "--zone is not needed: the times have a zone, or are numbers that count from 1970 in UTC"
    if times.skipped_by_clock:
        yield f"{times.skipped_by_clock:,} times were never shown by the clocks of {layout.zone} (--zone names another)"
    if is_sorted:
        way = "has its newest rows first" if newest_first else "is not in the order of time"
        yield f"the file {way}: it is read in the order of time (--order file leaves it)"


def duration(seconds: int) -> str:
    """Seconds in the largest unit that fits: `5 minutes`."""
    for length, unit in ((DAY_S, "day"), (3600, "hour"), (60, "minute")):
        if seconds % length == 0:
            return f"{seconds // length} {unit}{'s' if seconds > length else ''}"
    return f"{seconds} second{'s' if seconds > 1 else ''}"

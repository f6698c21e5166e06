"""The options with which commands read recordings: `replay` and `backtest` share them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from stockstream.sources.recordings.event_times import epoch_ms_of
from stockstream.sources.recordings.file_formats import FORMATS
from stockstream.sources.recordings.options import ReadOptions

MAX_BAR_S = 366 * 86_400


class Time(click.ParamType):
    """A moment in ISO 8601, in UTC where it names no zone, as epoch ms."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        moment = epoch_ms_of(value)
        if moment is None:
            self.fail(f"{value!r} is no time such as 2026-11-27 or 2026-11-27T14:30:00Z", param, ctx)
        return moment


class _Columns(click.ParamType):
    name = "field=column"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, str]:
        found: dict[str, str] = {}
        for part in filter(None, (part.strip() for part in value.split(","))):
            ours, equals, theirs = part.partition("=")
            if not equals or not ours.strip() or not theirs.strip():
                self.fail(f"{part!r} is not FIELD=COLUMN, such as price=Last", param, ctx)
            found[ours.strip()] = theirs.strip()
        return found


_OPTIONS = (
    click.option("--format", "format_", default="", metavar="NAME", help=f"Whose file it is: {', '.join(FORMATS)}.  [default: recognised by its columns]"),
    click.option("--columns", type=_Columns(), default="", help="The file's columns by ours, such as price=Last,event_time=Date+Time."),
    click.option("--unit", default="", help="Unit of the times: s, ms, us, ns, date, or a pattern such as '%d/%m/%Y %H:%M'.  [default: by their magnitude]"),
    click.option("--zone", default="", help="Time zone of times without one, such as America/New_York.  [default: the format's, else UTC]"),
    click.option("--symbol", default="", help="The symbol, where no column has it.  [default: from the file's name]"),
    click.option("--date", default="", metavar="DAY", help="The day, where the file has only times of day.  [default: from the file's name]"),
    click.option("--decimal", type=click.Choice([".", ","]), help="The decimal sign.  [default: by the numbers]"),
    click.option("--bars", is_flag=True, help="The file holds one-second bars.  [default: recognised by its columns and times]"),
    click.option("--interval", type=click.IntRange(1, MAX_BAR_S), help="Seconds of a bar.  [default: by the times]"),
    click.option("--order", type=click.Choice(["file", "time"]), help="Read the rows as in the file, or by time.  [default: by time if the file is not]"),
)


def recording_options(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options; the command gets them as `reading`, a `ReadOptions`."""

    @functools.wraps(command)
    def with_options(
        *args: Any, format_: str, columns: dict[str, str], unit: str, zone: str, symbol: str, date: str, decimal: Any, bars: bool, interval: int | None,
        order: Any, **others: Any,
    ) -> None:  # fmt: skip
        reading = ReadOptions(
            format=format_, columns=columns or {}, unit=unit, zone=zone, symbol=symbol.strip(), date=date, decimal=decimal or "", bars=bars,
            interval_s=interval or 0, order=order or "",
        )  # fmt: skip
        command(*args, reading=reading, **others)

    found: Callable[..., None] = with_options
    for option in reversed(_OPTIONS):
        found = option(found)
    return found

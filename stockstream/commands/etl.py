"""`stockstream etl`: the batch path from raw records to processed Parquet, by dates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import date, datetime

import click
import msgspec

from stockstream.console import progress, report
from stockstream.errors import ArchiveError
from stockstream.etl.inputs import RawFolder
from stockstream.etl.job import ALL, Job, Summary
from stockstream.etl.outputs import Target
from stockstream.settings import Settings, load_settings
from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.stores import open_archive, open_root
from stockstream.wording import counted

DATE = click.DateTime(["%Y-%m-%d"])
EXAMPLE = "stockstream etl --from s3://bucket/raw --to s3://bucket/processed --date 2023-10-10"


class _History(click.ParamType):
    name = "dates"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        if text == "all":
            return ALL
        if not text.isdigit():
            self.fail(f"{text!r} is neither a number of dates nor all", param, ctx)
        return int(text)


@click.command(epilog=f"Example: {EXAMPLE}")
@click.option("--from", "source", required=True, metavar="PLACE/raw", help="Where the raw records are: date=YYYY-MM-DD/hour=HH/ in a folder or s3://.")
@click.option("--to", "target", required=True, metavar="PLACE/processed", help="Where processed objects go, a folder or s3://; not a worker's archive.")
@click.option("--date", "begin", required=True, type=DATE, help="The date in UTC.")
@click.option("--to-date", "end", type=DATE, help="The last date, to process several.  [default: --date]")
@click.option("--history", type=_History(), default="1", help="Dates read before, for the state at the beginning: a number, or all.  [default: 1]")
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
def command(source: str, target: str, begin: datetime, end: datetime | None, history: int, as_json: bool) -> int:
    """Process the raw records of some dates: clean ticks, one-minute bars and rolling windows as Parquet, by the functions of a worker.

    Raw records are the objects of an archive, or JSON lines (plain, gzip or zstd) of another system, one tick or one raw record a line. Bad ticks are
    written to rejected/ with their reasons. A second run changes nothing, or replaces what has changed.
    """
    first, last = begin.date(), (end or begin).date()
    if last < first:
        raise click.UsageError("--to-date is before --date")
    settings = load_settings()
    summary = run(source, target, first, last, history, settings, shown=not as_json)
    click.echo(msgspec.json.encode(asdict(summary)).decode() if as_json else "\n".join(lines(summary)))
    return 0


def run(source: str, target: str, begin: date, end: date, history: int, settings: Settings, *, shown: bool) -> Summary:
    """Opens both places and runs the job. `shown`: whether progress is wanted. Raises `StockstreamError`."""
    folder = _open_source(source)
    if not folder.dates:
        raise ArchiveError(f"{source} holds no raw records: no object under date=YYYY-MM-DD/hour=HH/ that is a raw object or has JSON lines")
    if folder.ignored:
        report(f"ignored in {source}: {counted(folder.ignored, 'object')} with other names")
    job = Job(folder, Target(open_root(target, "processed")), KnownSettings(settings), begin, end, history=history)
    with progress(job.size, "etl", shown=shown) as advance:
        return job.run(advance)


def _open_source(place: str) -> RawFolder:
    if place.rstrip("/").rpartition("/")[2] == "raw":
        return RawFolder(open_archive(open_root(place, "raw").url), "raw/")
    store = open_archive(place)
    has_raw = next(iter(store.list("raw/date=")), None) is not None
    return RawFolder(store, "raw/" if has_raw else "")


def lines(of: Summary) -> Iterator[str]:
    """The summary in words."""
    days = of.begin if of.begin == of.end else f"{of.begin} to {of.end}"
    if not of.records:
        first, last = of.raw_dates[0], of.raw_dates[-1]
        yield f"no raw records of {days}: nothing was written; there are those of {first if first == last else f'{first} to {last}'}"
        return
    rejected = sum(of.rejected.values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in of.rejected.items())
    state = f", with the state from {of.history_from} on" if of.history_from else ""
    yield f"{counted(of.records, 'record')} of {days} in {of.elapsed_s:.1f} s{state}"
    yield f"  ticks    {of.accepted:,} accepted, {rejected:,} rejected" + (f" ({reasons}), the first by {of.first_rejection}" if rejected else "")
    yield "  rows     " + ", ".join(f"{area} {count:,}" for area, count in sorted(of.rows.items()))
    yield "  objects  " + ", ".join(f"{count:,} {what}" for what, count in sorted(of.objects.items()))



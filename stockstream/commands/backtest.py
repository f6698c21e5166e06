"""`stockstream backtest`: the whole pipeline over a recording, without a broker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import click
import msgspec

from models import ScoringModel
from models.registry import RegistryError
from stockstream.backtest.inputs import ALL_TIMES, Input, Range, Selection, Trades, is_of_raw_records, open_raw
from stockstream.backtest.result_files import ResultFiles
from stockstream.backtest.runner import NoRecords, Summary, backtest
from stockstream.champions import Champions
from stockstream.commands.replay import warn_of_rows
from stockstream.console import progress, report
from stockstream.errors import ModelError, SourceError
from stockstream.locations import folder
from stockstream.registries import open_registry
from stockstream.replaying.options import Time, recording_options
from stockstream.settings import Settings, load_settings
from stockstream.sources.recordings.options import ReadOptions
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.replay import source_name
from stockstream.transforms.cleaning.limits import MAX_SOURCE
from stockstream.wording import counted

EXAMPLE = "stockstream backtest trades.parquet --out results"


@click.command(epilog=f"Example: {EXAMPLE}")
@click.argument("source_path", metavar="INPUT")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Folder of the results.")
@click.option("--force", is_flag=True, help="Replace results that are there.")
@click.option("--close/--no-close", default=True, help="Close the seconds that are open at the end of the input, as a punctuation does.  [default: close]")
@click.option("--partitions", type=click.IntRange(1, 1024), help="Partitions of the log.  [default: 1; STOCKSTREAM_PARTITIONS where the input names them]")
@click.option("--from", "first", type=Time(), help="Only records from this Kafka time on, in UTC where it names no zone.")
@click.option("--to", "end", type=Time(), help="Only records before this Kafka time.")
@click.option("--log", default="", help="Only this log of an archive.  [default: all, one after the other]")
@click.option("--symbols", default="", help="Of trades or bars: only these symbols, by comma.")
@click.option("--limit", type=click.IntRange(1), help="Of trades or bars: only the first ticks, so many.")
@click.option("--source", default="", help="Of trades or bars: the ticks' source.  [default: as replay names it]")
@recording_options
@click.option("--json", "as_json", is_flag=True, help="The summary as JSON.")
def command(
    source_path: str, out: Path, force: bool, close: bool, partitions: int | None, first: int | None, end: int | None, log: str, symbols: str,
    limit: int | None, source: str, reading: ReadOptions, as_json: bool,
) -> None:  # fmt: skip
    """Run a recording through the whole pipeline without a broker, and write windows, alerts, predictions, outcomes and rejected as Parquet.

    INPUT is a file of raw records (JSON lines: timestamp and value, optionally key, partition and offset; also gzip or zstd), a file of trades or
    bars in any format that `replay` reads, or an archive: its folder, its raw/ or one object of it. The results are those that a worker publishes for
    the same log with the same settings. The exit code is 1 if no tick was accepted.
    """
    settings = load_settings()
    chosen = tuple(symbol.strip() for symbol in symbols.split(",") if symbol.strip())
    selection = Selection(Range(first, end), log, partitions, reading, chosen, limit, source)
    found = _open(folder(source_path), selection, settings)
    model, note = champion(settings)
    if note:
        report(note)
    with ResultFiles(out.absolute(), force=force) as files, progress(found.size, "backtest", shown=not as_json) as advance:
        try:
            summary = backtest(
                found, files, partitions=partitions or settings.partitions, lateness_ms=settings.lateness, revise_s=settings.revise_s, model=model,
                close=close, raw_format=settings.foreign_messages, advance=advance,
            )  # fmt: skip
        except NoRecords as error:
            raise SourceError(f"{source_path}: {error}{_in_range(selection)}") from None
    summary.input, summary.out = source_path, str(out)
    summary.model, summary.model_note = f"{model.name} {model.version}" if model is not None else "", note
    click.echo(msgspec.json.encode(asdict(summary)).decode() if as_json else "\n".join(_lines(summary)))
    if summary.ticks and not summary.accepted:
        what = "its only tick was rejected" if summary.ticks == 1 else f"all {summary.ticks:,} ticks were rejected, the first"
        raise SourceError(f"{source_path}: {what} by {summary.first_rejection}")


def _in_range(selection: Selection) -> str:
    return "" if selection.times == ALL_TIMES else " in the range of --from and --to"


def champion(settings: Settings) -> tuple[ScoringModel | None, str]:
    """The registry's champion, or None and why there is none. Raises `ModelError` where there is one that cannot be loaded."""
    known = Champions(settings.models, settings.model, partial(open_registry, settings=settings))
    known.refresh()
    if known.champion is not None:
        return known.champion.model, ""
    try:
        if open_registry(settings.models, settings).champion(settings.model) is None:
            return None, f"no predictions: {known.problem}"
    except RegistryError as error:
        raise ModelError(str(error)) from error
    raise ModelError(known.problem)


def _open(path: Path, selection: Selection, settings: Settings) -> Input:
    if is_of_raw_records(path):
        if selection.of_trades:
            raise click.UsageError("--symbols, --limit, --source and the options of a file's columns are for files of trades or bars")
        return open_raw(path, selection)
    if selection.log:
        raise click.UsageError("--log is for an archive")
    if len(selection.source) > MAX_SOURCE:
        raise click.UsageError(f"--source must have 1 to {MAX_SOURCE} characters")
    recording = Recording(path, selection.reading, symbols=selection.symbols, limit=selection.limit)
    survey = recording.survey()
    warn_of_rows(survey, settings)
    if why := survey.bad_values or survey.bad_times:
        report(f"every tick will be rejected: {why}")
    if absent := sorted(recording.symbols - set(survey.first_seen)):
        report(f"not in the file: {', '.join(absent)}")
    return Trades(recording, survey, selection.source or source_name(recording), selection.times, selection.partitions)


def _lines(of: Summary) -> Iterator[str]:
    place = f"{counted(of.partitions, 'partition')}" + (f" of {of.logs} logs" if of.logs > 1 else "")
    added = f", and {counted(of.punctuations, 'punctuation')} to close what was open" if of.punctuations else ""
    yield f"{counted(of.records, 'record')} of {place} in {of.elapsed_s:.1f} s ({of.records_per_s:,.0f} records/s){added}"
    if of.first_event_time is not None and of.last_event_time is not None:
        yield f"  time         {_utc(of.first_event_time)} to {_utc(of.last_event_time)} UTC"
    refused = ", ".join(f"{reason} {count:,}" for reason, count in of.rejected.items())
    yield f"  ticks        {of.ticks:,}: {of.accepted:,} accepted, {of.ticks - of.accepted:,} rejected" + (f" ({refused})" if refused else "")
    yield f"  rows         {of.rows:,} of {counted(of.symbols, 'symbol')} in {counted(of.seconds, 'second')}, {of.revised:,} revised, {of.late:,} late"
    alerts = "; ".join(f"{rule} {', '.join(f'{count:,} {state}' for state, count in states.items())}" for rule, states in of.alerts.items())
    yield f"  alerts       {alerts or 'none'}"
    missed = "".join(f", {counted(count, 'row')} without: {reason}" for reason, count in of.not_predicted.items())
    yield f"  predictions  {of.predictions:,} of {of.model}{missed}" if of.model else "  predictions  none, for there is no model"
    yield f"  outcomes     {of.outcomes:,}"
    yield f"  results in {of.out}: windows, alerts, predictions, outcomes and rejected, each .parquet"


def _utc(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")

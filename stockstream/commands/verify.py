"""`stockstream verify`: reads the whole archive and proves that it holds every raw offset exactly once."""

from __future__ import annotations

import json
import secrets
from contextlib import nullcontext
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import click

from stockstream.console import archive_option, date_options, dates, progress
from stockstream.endings import INTERRUPTED
from stockstream.settings import load_settings
from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.archive.verifying.listing import list_objects
from stockstream.sinks.archive.verifying.reading import Reading, StateFile
from stockstream.sinks.archive.verifying.report import Coverage, Report
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.stores import archive_place, open_archive
from stockstream.wording import counted


def _line(chain: Coverage) -> str:
    if chain.last < chain.first:
        covered = f"no offset yet ({counted(chain.holes, 'offset')} without a record)"
    else:
        parts = f"{counted(chain.records, 'record')}, {counted(chain.holes, 'offset')} without one"
        covered = f"offsets {chain.first} to {chain.last} once each ({parts}) in {counted(chain.objects, 'object')}"
    if chain.unprocessed:
        through = f"through {chain.processed} of {chain.last}" if chain.processed >= chain.first else f"nothing of {chain.last + 1 - chain.first:,}"
        done = f"processed {through}: {counted(chain.unprocessed, 'raw record')} not processed yet"
    else:
        done = "all processed"
    lost = f", {counted(chain.missing, 'offset')} without a result of clean" if chain.missing else ""
    lost += f", {counted(chain.compared, 'tick')} as computed again from raw" if chain.compared else ""
    lost += f", {counted(chain.not_compared, 'raw record')} not compared: {chain.reason}" if chain.not_compared else ""
    return f"log {chain.log} partition {chain.partition}: {covered}; {done}, {counted(chain.ticks, 'tick')}{lost}"


def _evidence(chain: Coverage) -> str:
    """What is known of records that are not processed, and of those behind the chain's end."""
    found = []
    if chain.unprocessed:
        part = f", {counted(chain.begun, 'raw object')} of them in part" if chain.begun else ""
        found.append(f"the first in {chain.unprocessed_since}{part}")
    if chain.windows_through > chain.last:
        found.append(f"there are windows through offset {chain.windows_through}")
    return f" ({'; '.join(found)})" if found else ""


def _unread(report: Report, reading: Reading) -> str:
    """How much was and was not read."""
    earlier = f", {report.before:,} by an earlier run" if report.before else ""
    how = [f"a sample of {100 * reading.sample:g} %, --seed {reading.seed}"] if reading.sample < 1 else []
    if reading.dates:
        how.append(f"dates {reading.begin or 'of the beginning'} to {reading.end or 'the end'}")
    return f"read {report.read:,} of {counted(report.objects, 'object')}{earlier} ({'; '.join(how)})"


def _conclusion(report: Report, reading: Reading) -> str:
    if report.faults:
        return counted(len(report.faults), "fault") + (f"; {_unread(report, reading)}" if report.partial else "")
    held = f"{counted(len(report.chains), 'chain')}, {counted(sum(chain.records for chain in report.chains), 'record')}"
    held += f", {counted(report.repaired, 'repaired bar')}" if report.repaired else ""
    held += "".join(f", {counted(topic.rows, 'row')} of {name}" for name, topic in report.topics.items())
    if report.partial:
        return f"no fault in what was checked: {_unread(report, reading)}; {held}"
    held += f"; {report.before:,} of {counted(report.objects, 'object')} were read by an earlier run" if report.before else ""
    behind = sum(chain.unprocessed for chain in report.chains)
    if not behind:
        return f"all is well: {held}"
    of = counted(sum(chain.unprocessed > 0 for chain in report.chains), "chain")
    return f"every raw record is archived once: {held}; {counted(behind, 'raw record')} of {of} not processed yet (a worker on the same log processes them)"


class _Share(click.ParamType):
    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value)
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share <= 1:
            self.fail(f"{text!r} is not a share of the objects, such as 0.05 or 5%", param, ctx)
        return share


@click.command(help="Check that the archive holds every raw offset exactly once.")
@archive_option
@date_options
@click.option("--sample", type=_Share(), default="1", metavar="SHARE", help="Read only this share of the objects, such as 0.05 or 5%; all names are checked.")
@click.option("--seed", type=int, help="Choose the same sample again.  [default: at random]")
@click.option("--recompute/--no-recompute", default=True, help="Compute ticks and bars again from raw and compare them.  [default: recompute]")
@click.option("--resume", "state", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Keep in FILE what is verified, and continue from it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(
    archive: str | None, day: datetime | None, begin: datetime | None, end: datetime | None, sample: float, seed: int | None, recompute: bool,
    state: Path | None, as_json: bool,
) -> int:  # fmt: skip
    first, last = dates(day, begin, end)
    if first and last and last < first:
        raise click.UsageError("--to is before --from")
    store = open_archive(archive_place(archive))
    reading = Reading(first, last, sample, secrets.randbelow(1_000_000) if seed is None else seed)
    known = KnownSettings(load_settings()) if recompute else None
    try:
        with StateFile(state, store.url, recompute=recompute) if state else nullcontext() as reading.state:
            listing = list_objects(store)
            with progress(listing.size, "verify", shown=not as_json) as advance:
                report = check(store, advance, known, reading, listing)
    except KeyboardInterrupt:
        how = f"the same command continues from {state}" if state else "with --resume FILE a run can be continued"
        click.echo(f"interrupted: {how}", err=True)
        return INTERRUPTED
    return _show(store.url, report, reading, as_json=as_json)


def _show(url: str, report: Report, reading: Reading, *, as_json: bool) -> int:
    where = url.removeprefix("file://")
    if not report.chains and not report.objects and not report.faults:
        empty = f"{where} holds no archive of these dates" if reading.dates else f"{where} holds no archive yet"
        report.faults.append(empty)
    if as_json:
        unprocessed = sum(chain.unprocessed for chain in report.chains)
        chains = [asdict(chain) for chain in report.chains]
        click.echo(json.dumps({
            "archive": url, "ok": not report.faults, "unprocessed": unprocessed, "repaired": report.repaired,
            "topics": {name: asdict(topic) for name, topic in report.topics.items()}, "chains": chains,
            "objects": report.objects, "read": report.read, "read_before": report.before, "sample": reading.sample,
            "seed": reading.seed if reading.sample < 1 else None, "faults": report.faults,
        }))  # fmt: skip
        return 1 if report.faults else 0
    if not report.chains and not report.objects and len(report.faults) == 1:
        click.echo(report.faults[0], err=True)
        return 1
    for chain in report.chains:
        click.echo(_line(chain) + _evidence(chain))
    for fault in report.faults:
        click.echo(f"FAULT {fault}")
    click.echo(_conclusion(report, reading))
    return 1 if report.faults else 0

"""`stockstream verify`: reads the whole archive and proves that it holds every raw offset exactly once."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

import click

from stockstream.console import archive_option
from stockstream.settings import load_settings
from stockstream.sinks.archive.clean_settings import KnownSettings
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


def _conclusion(report: Report) -> str:
    if report.faults:
        return counted(len(report.faults), "fault")
    held = f"{counted(len(report.chains), 'chain')}, {counted(sum(chain.records for chain in report.chains), 'record')}"
    held += f", {counted(report.repaired, 'repaired bar')}" if report.repaired else ""
    held += "".join(f", {counted(topic.rows, 'row')} of {name}" for name, topic in report.topics.items())
    behind = sum(chain.unprocessed for chain in report.chains)
    if not behind:
        return f"all is well: {held}"
    of = counted(sum(chain.unprocessed > 0 for chain in report.chains), "chain")
    return f"every raw record is archived once: {held}; {counted(behind, 'raw record')} of {of} not processed yet (a worker on the same log processes them)"


@click.command(help="Check that the archive holds every raw offset exactly once.")
@archive_option
@click.option("--recompute/--no-recompute", default=True, help="Compute ticks and bars again from raw and compare them.  [default: recompute]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(archive: str | None, recompute: bool, as_json: bool) -> int:
    store = open_archive(archive_place(archive))
    where = store.url.removeprefix("file://")
    done = 0

    def show() -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty() and done % 20 == 0:
            click.echo(f"\r{counted(done, 'object')}", err=True, nl=False)

    report = check(store, show, KnownSettings(load_settings()) if recompute else None)
    if sys.stderr.isatty() and done >= 20:
        click.echo("\r" + " " * 30 + "\r", err=True, nl=False)
    if not report.chains and not report.faults:
        report.faults.append(f"{where} holds no archive yet")
    if as_json:
        unprocessed = sum(chain.unprocessed for chain in report.chains)
        chains = [asdict(chain) for chain in report.chains]
        click.echo(json.dumps({
            "archive": store.url, "ok": not report.faults, "unprocessed": unprocessed, "repaired": report.repaired,
            "topics": {name: asdict(topic) for name, topic in report.topics.items()}, "chains": chains,
            "faults": report.faults,
        }))  # fmt: skip
        return 1 if report.faults else 0
    if not report.chains and len(report.faults) == 1:
        click.echo(report.faults[0], err=True)
        return 1
    for chain in report.chains:
        click.echo(_line(chain))
    for fault in report.faults:
        click.echo(f"FAULT {fault}")
    click.echo(_conclusion(report))
    return 1 if report.faults else 0

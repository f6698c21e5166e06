"""`stockstream compact`: replaces the archive's small objects by one sorted object for each folder."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from itertools import chain

import click

from stockstream.console import archive_option, date_options, dates
from stockstream.sinks.archive.compacting import Result, compact
from stockstream.sinks.archive.topics.packing import pack_positions
from stockstream.sinks.stores import archive_place, open_archive
from stockstream.wording import counted

BACKGROUND = 19
"""The lowest priority: the compaction of a worker takes what the pipeline leaves."""


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 100_000 or not size else f"{size / 1e3:,.1f} KB"


def _line(result: Result, dry: bool) -> str:
    where = f"{result.area} {result.folder.removeprefix('date=').replace('/hour=', ' hour ')}"
    if not result.made:
        return f"{where}: {counted(result.deleted, 'replaced object')} {'to delete' if dry else 'deleted'}"
    of = f"{counted(result.replaced, 'object')}, {_size(result.replaced_bytes)}"
    if dry:
        return f"{where}: {of} to compact"
    rows = f", {counted(result.rows, 'row')}" if result.rows else ""
    return f"{where}: {of} -> {counted(result.made, 'object')}, {_size(result.made_bytes)}{rows}"


def _summary(results: Sequence[Result], dry: bool, not_due: int) -> str:
    replaced, made, deleted = (sum(getattr(one, name) for one in results) for name in ("replaced", "made", "deleted"))
    before = f"{counted(replaced, 'object')} ({_size(sum(one.replaced_bytes for one in results))})"
    if not results:
        later = f": {counted(not_due, 'object')} of hours and days that are not over, or of the last 10 minutes (--all compacts them too)" if not_due else ""
        return f"nothing to compact{' yet' if not_due else ''}{later}"
    if dry:
        return f"{before} of {counted(len(results), 'folder')} would be compacted"
    return f"{before} became {made:,} ({_size(sum(one.made_bytes for one in results))}); {deleted:,} deleted"


@click.command(help="Compact the archive: one sorted object instead of many small ones, for each hour of each area.")
@archive_option
@date_options
@click.option("--all", "everything", is_flag=True, help="Also hours and days that are not over, and objects of the last 10 minutes.")
@click.option("--dry-run", "dry", is_flag=True, help="Show what would be compacted, and change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option("--background", is_flag=True, help="Run at the lowest priority, as a worker's compaction does.")
def command(
    archive: str | None, day: datetime | None, begin: datetime | None, end: datetime | None, everything: bool, dry: bool, as_json: bool, background: bool
) -> int:  # fmt: skip
    if background and hasattr(os, "nice"):
        os.nice(BACKGROUND)
    store = open_archive(archive_place(archive))
    results = []
    now, days = None if everything else datetime.now(UTC), dates(day, begin, end)
    for result in chain(compact(store, now, *days, dry=dry), () if any(days) else pack_positions(store, now, dry)):
        results.append(result)
        if not as_json and (result.made or result.deleted):
            click.echo(_line(result, dry))
        for fault in result.faults if not as_json else ():
            click.echo(f"FAULT {fault}", err=True)
    faults = [fault for result in results for fault in result.faults]
    if as_json:
        click.echo(json.dumps({"archive": store.url, "dry_run": dry, "folders": [asdict(one) for one in results], "faults": faults}))
    else:
        not_due = 0 if results or everything else sum(one.replaced for one in compact(store, None, *days, dry=True))
        click.echo(_summary(results, dry, not_due))
    return 1 if faults else 0

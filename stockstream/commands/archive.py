"""`stockstream archive`: what the archive consists of, and how long it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from stockstream.console import archive_option
from stockstream.errors import SettingsError
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.processed import unprocessed
from stockstream.sinks.archive.retention import Rules, plan, record_rules, retain, rules, today
from stockstream.sinks.archive.usage import usage
from stockstream.sinks.s3 import S3Store
from stockstream.sinks.stores import Store, archive_place, open_archive
from stockstream.wording import counted

_RAW_DAYS = click.option("--raw-days", type=click.IntRange(min=1), metavar="N", help="Keep raw objects of the last N days.  [default: all]")
_PROCESSED_DAYS = click.option("--processed-days", type=click.IntRange(min=1), metavar="N", help="Keep processed objects of the last N days.  [default: all]")
_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")


@click.group(help="Show what the archive consists of, and decide how long it is kept.")
def command() -> None:
    pass


@command.command(
    "report", short_help="Show objects and bytes by date and area.",
    help="Show how many objects each area has a day, before and after compaction, and how large they are.",
)  # fmt: skip
@archive_option
@_JSON
def report(archive: str | None, as_json: bool) -> None:
    store = open_archive(archive_place(archive))
    found, ticks = usage(store)
    if as_json:
        click.echo(json.dumps({"archive": store.url, "usage": [asdict(one) for one in found], "ticks": ticks}))
        return
    if not found:
        click.echo(f"{store.url.removeprefix('file://')} holds no archive yet")
        return
    click.echo(f"{'date':<10}  {'area':<12}  {'written':>9}  {'objects':>9}  {'MB':>12}  {'average KB':>11}  {'bytes a tick':>12}")
    for one in found:
        share = "" if one.per_tick is None else f"{one.per_tick:,.1f}"
        average = one.bytes / one.objects / 1e3
        click.echo(f"{one.date:<10}  {one.area:<12}  {one.written:>9,}  {one.objects:>9,}  {one.bytes / 1e6:>12,.1f}  {average:>11,.1f}  {share:>12}".rstrip())
    objects, size = sum(one.objects for one in found), sum(one.bytes for one in found)
    click.echo(f"{counted(objects, 'object')}, {size / 1e6:,.1f} MB, {counted(sum(ticks.values()), 'tick')}")


def _require_days(raw_days: int | None, processed_days: int | None) -> None:
    if raw_days is None and processed_days is None:
        raise click.UsageError("give --raw-days, --processed-days, or both")


@command.command(
    "retain", short_help="Delete old dates.",
    help="Delete the dates that are over for longer than these days. Verification accepts what this ends.",
)  # fmt: skip
@archive_option
@_RAW_DAYS
@_PROCESSED_DAYS
@click.option("--dry-run", "dry", is_flag=True, help="Show what would be deleted, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@_JSON
def retain_(archive: str | None, raw_days: int | None, processed_days: int | None, dry: bool, yes: bool, as_json: bool) -> None:
    _require_days(raw_days, processed_days)
    store = open_archive(archive_place(archive))
    raw_before, processed_before = (None if days is None else today() - timedelta(days=days) for days in (raw_days, processed_days))
    ending = plan(store, raw_before, processed_before, lambda log, partition: _processed_through(store, log, partition))
    raw = [entry for entry in ending.entries if entry.name.startswith("raw/")]
    size = sum(entry.size for entry in ending.entries)
    what = f"{counted(len(raw), 'raw object')} and {counted(len(ending.entries) - len(raw), 'processed object')}, {size / 1e6:,.1f} MB"
    if ending.entries and not dry:
        if not yes:
            click.confirm(f"delete {what}?", abort=True, err=True)
        retain(store, ending)
    if as_json:
        chains = [{"log": log, "partition": partition, "through": through} for (log, partition), through in ending.raw_through.items()]
        before = str(ending.processed_before) if ending.processed_before else None
        click.echo(json.dumps({
            "archive": store.url, "dry_run": dry, "raw_objects": len(raw), "objects": len(ending.entries), "bytes": size, "raw_through": chains,
            "processed_before": before,
        }))  # fmt: skip
        return
    for (log, partition), through in ending.raw_through.items():
        click.echo(f"log {log} partition {partition}: raw offsets through {through}")
    if ending.processed_before is not None:
        click.echo(f"processed dates before {ending.processed_before}")
    click.echo(f"{what} {'would be deleted' if dry else 'deleted'}" if ending.entries else "nothing to delete")


def _processed_through(store: Store, log: str, partition: int) -> int:
    chain = Chain(store, log, partition)
    chain.open()
    oldest = next((parsed for name in unprocessed(chain) if (parsed := parse_name(name))), None)
    return oldest.first - 1 if oldest else chain.end


def lifecycle_rules(store: S3Store, processed_days: int) -> list[dict[str, Any]]:
    """The bucket's rules for this archive. Manifests end a day before the objects that they name: without these they would stop readers."""
    return [
        {"ID": f"stockstream {store.prefix}{area}", "Status": "Enabled", "Filter": {"Prefix": f"{store.prefix}{area}/"}, "Expiration": {"Days": number}}
        for area, number in (("compactions", processed_days), ("processed", processed_days + 1))
    ]


NO_RAW_RULE = (
    "a bucket's rules delete by age alone: they would also delete the newest raw object of an idle partition, which shows where the archive continues, and "
    "raw records that are not processed yet. Run `stockstream archive retain --raw-days {} --yes` each day instead"
)


@command.command(
    "lifecycle", short_help="Let a bucket delete old processed objects.",
    help="Let the bucket delete processed objects that are older than these days, by its lifecycle rules. Its other rules stay.",
)  # fmt: skip
@archive_option
@click.option("--raw-days", type=click.IntRange(min=1), metavar="N", hidden=True)
@_PROCESSED_DAYS
@click.option("--print", "only_print", is_flag=True, help="Print the rules, and change nothing.")
def lifecycle(archive: str | None, raw_days: int | None, processed_days: int | None, only_print: bool) -> None:
    if raw_days is not None:
        raise click.UsageError(NO_RAW_RULE.format(raw_days))
    if processed_days is None:
        raise click.UsageError("give --processed-days")
    url = archive_place(archive)
    store = open_archive(url)
    if not isinstance(store, S3Store):
        raise SettingsError(f"{url} is a folder, which has no lifecycle rules: run `stockstream archive retain` there from time to time")
    made = lifecycle_rules(store, processed_days)
    if only_print:
        click.echo(json.dumps({"Rules": made}, indent=2))
        return
    found = store.lifecycle()
    earlier = f"stockstream {store.prefix}raw"                           # of a release that made one
    mine = {earlier, *(rule["ID"] for rule in made)}
    record_rules(store, Rules(rules(store).raw_days, processed_days), datetime.now(UTC))
    store.set_lifecycle([*(rule for rule in found if rule.get("ID") not in mine), *made])
    if any(rule.get("ID") == earlier for rule in found):
        click.echo(f"{store.prefix}raw/: the rule is removed; {NO_RAW_RULE.format('N')}")
    for rule in made:
        click.echo(f"{rule['Filter']['Prefix']}: objects are deleted {rule['Expiration']['Days']} days after they were written")
    click.echo("raw objects are kept: end them by `stockstream archive retain --raw-days N --yes`")

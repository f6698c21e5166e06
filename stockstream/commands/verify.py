"""`stockstream verify`: reads the whole archive and proves that it holds every raw offset exactly once."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise

import click

from stockstream.errors import ArchiveError, ArchiveUnavailable, SettingsError
from stockstream.settings import load_settings
from stockstream.sinks.archive.chain import chain_begins, chains
from stockstream.sinks.archive.layout import HOUR_MS, Name, folder_of_hour, parse_name, processed_name
from stockstream.sinks.archive.processed import Made, read_made
from stockstream.sinks.archive.raw_objects import Extent, read_extent, read_raw_object
from stockstream.sinks.archive.repaired import REPAIRS, MadeOfRepairs, read_repaired
from stockstream.sinks.stores import Store, open_archive
from stockstream.wording import counted


@dataclass(slots=True)
class Coverage:
    """One partition of one log: `objects` account for the offsets `first` to `last`, of which `holes` have no record and `records` are archived.

    `processed`: the last offset whose ticks are stored, -1 if there is none; `unprocessed`: number of records after it; `ticks`: number of stored ticks;
    `missing`: number of offsets whose result of `clean` was lost.
    """

    log: str
    partition: int
    first: int = 0
    last: int = -1
    objects: int = 0
    records: int = 0
    holes: int = 0
    processed: int = -1
    unprocessed: int = 0
    ticks: int = 0
    missing: int = 0


@dataclass(slots=True)
class Report:
    """The contents of the archive, and all faults, one line each."""

    chains: list[Coverage] = field(default_factory=list)
    repaired: int = 0
    """Repaired bars."""
    faults: list[str] = field(default_factory=list)


def check(store: Store, step: Callable[[], None] = lambda: None) -> Report:
    """Reads every object. A writer may be active; objects that it adds meanwhile are not checked. `step` is called for each raw object.

    Raises `ArchiveUnavailable` if the store fails. Faults of the archive itself are in the report.
    """
    report = Report()
    names = list(store.list("raw/"))            # list before the chains, because a writer creates a chain's beginning first
    raw: dict[tuple[str, int], list[tuple[str, Name]]] = {key: [] for key in chains(store)}
    for name in names:
        parsed = parse_name(name)
        if parsed is None:
            report.faults.append(f"{name}: this is not the name of an archive object")
        elif (parsed.log, parsed.partition) not in raw:
            report.faults.append(f"{name}: chains/ has no beginning for its chain")
        else:
            raw[parsed.log, parsed.partition].append((name, parsed))
    processed: dict[tuple[str, int], set[str]] = defaultdict(set)
    repaired: dict[int, list[str]] = defaultdict(list)
    for name in store.list("processed/"):
        parsed = parse_name(name)
        if parsed is None:
            report.faults.append(f"{name}: this is not the name of an archive object")
        elif parsed.log.startswith(REPAIRS):
            repaired[parsed.partition].append(name)
        else:
            processed[parsed.log, parsed.partition].add(name)
    for (log, partition), objects in sorted(raw.items()):
        coverage = Coverage(log, partition)
        report.chains.append(coverage)
        objects.sort(key=lambda item: item[1].first)
        _check_chain(store, coverage, objects, processed[log, partition], report.faults, step)
    for key in sorted(set(processed) - set(raw)):
        report.faults.append(f"{min(processed[key])}: there is no raw chain of log {key[0]}, partition {key[1]}")
    for _, of_partition in sorted(repaired.items()):
        _check_repaired(store, of_partition, report)
    return report


def _check_repaired(store: Store, names: list[str], report: Report) -> None:
    """Counts the repaired bars of one partition. No two objects of one life of the topic may account for the same offset."""
    found: list[tuple[MadeOfRepairs, str]] = []
    for name in names:
        try:
            made = read_repaired(store, name)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            report.faults.append(str(error))
            continue
        parsed = parse_name(name)
        if parsed is None or (made.log, made.partition, made.first) != (parsed.log, parsed.partition, parsed.first):
            report.faults.append(f"{name}: its footer names {made.log}, partition {made.partition}, offset {made.first}")
        report.repaired += made.rows
        found.append((made, name))
    found.sort(key=lambda item: (item[0].first, item[0].since))
    for (before, _), (made, name) in pairwise(found):
        if made.first <= before.last and made.since <= before.until and before.since <= made.until:
            report.faults.append(f"{name}: repairs {made.first} to {min(before.last, made.last)} are in the archive twice")


def _check_chain(store: Store, coverage: Coverage, names: list[tuple[str, Name]], processed: set[str], faults: list[str], step: Callable[[], None]) -> None:
    expect = chain_begins(store, coverage.log, coverage.partition)
    coverage.holes = expect
    coverage.processed = expect - 1
    previous, behind = "", False
    for name, parsed in names:
        step()
        try:
            extent, lines = read_raw_object(store, name)
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            faults.append(str(error))
            try:
                extent, lines = read_extent(store, name), []
            except ArchiveUnavailable:
                raise
            except ArchiveError:
                previous, expect = name, parsed.first
                continue
        if (extent.log, extent.partition, extent.first) != (parsed.log, parsed.partition, parsed.first):
            faults.append(f"{name}: its trailer names log {extent.log}, partition {extent.partition}, offset {extent.first}")
        if extent.first > expect:
            faults.append(f"{name}: offsets {expect} to {extent.first - 1} of log {coverage.log}, partition {coverage.partition} are missing before it")
        elif extent.first < expect:
            faults.append(f"{name}: offsets {extent.first} to {min(expect - 1, extent.last)} are in the archive twice")
        elif extent.previous != previous:
            faults.append(f"{name}: its trailer names {extent.previous or 'nothing'} as the object before it, but that is {previous or 'nothing'}")
        if lines and folder_of_hour(lines[0].timestamp // HOUR_MS) != parsed.folder:
            faults.append(f"{name}: its first record belongs to another hour than its folder")
        expect, previous = extent.last + 1, name
        coverage.objects += 1
        coverage.records += extent.count
        coverage.holes += extent.last - extent.first + 1 - extent.count
        behind = _check_processed(store, coverage, name, extent, processed, behind, faults)
    coverage.last = expect - 1
    for stray in sorted(processed):
        first = (parse_name(stray) or Name("", "", "", 0, 0)).first
        if first <= coverage.processed:
            faults.append(f"{stray}: the processed object of offset {first} does not list it")


def _check_processed(store: Store, coverage: Coverage, raw: str, extent: Extent, processed: set[str], behind: bool, faults: list[str]) -> bool:
    """Removes the raw object's processed objects from `processed`. Returns whether this object or an earlier one has none yet."""
    if not extent.count:
        coverage.processed = coverage.processed if behind else extent.last
        return behind
    main = processed_name(raw)
    if main not in processed:
        coverage.unprocessed += extent.count
        return True
    if behind:
        faults.append(f"{main}: objects before it have not been processed")
    made = _made(store, main, extent, faults)
    if made is None:
        processed.discard(main)
        return behind
    for name, rows in made.objects.items():
        if name not in processed:
            faults.append(f"{main}: {name} is missing")
            continue
        processed.discard(name)
        part = made if name == main else _made(store, name, extent, faults)
        if part and part.rows != rows:
            faults.append(f"{name}: it has {counted(part.rows, 'row')}, but {main} lists {rows}")
        coverage.ticks += rows if name.startswith("processed/ticks/") else 0
    coverage.missing += sum(last - first + 1 for first, last in made.missing)
    coverage.processed = coverage.processed if behind else extent.last
    return behind


def _made(store: Store, name: str, extent: Extent, faults: list[str]) -> Made | None:
    try:
        made = read_made(store, name)
    except ArchiveUnavailable:
        raise
    except ArchiveError as error:
        faults.append(str(error))
        return None
    if (made.log, made.partition, made.first, made.last) != (extent.log, extent.partition, extent.first, extent.last):
        faults.append(f"{name}: made from offsets {made.first} to {made.last} of log {made.log}, but its raw object has {extent.first} to {extent.last}")
    return made


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
    return f"log {chain.log} partition {chain.partition}: {covered}; {done}, {counted(chain.ticks, 'tick')}{lost}"


def _conclusion(report: Report) -> str:
    if report.faults:
        return counted(len(report.faults), "fault")
    held = f"{counted(len(report.chains), 'chain')}, {counted(sum(chain.records for chain in report.chains), 'record')}"
    held += f", {counted(report.repaired, 'repaired bar')}" if report.repaired else ""
    behind = sum(chain.unprocessed for chain in report.chains)
    if not behind:
        return f"all is well: {held}"
    of = counted(sum(chain.unprocessed > 0 for chain in report.chains), "chain")
    return f"every raw record is archived once: {held}; {counted(behind, 'raw record')} of {of} not processed yet (a worker on the same log processes them)"


@click.command(help="Check that the archive holds every raw offset exactly once.")
@click.option("--archive", help="The archive: a folder, path or file://path, or s3://bucket/prefix.  [default: STOCKSTREAM_ARCHIVE]")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def command(archive: str | None, as_json: bool) -> int:
    url = archive or load_settings().archive
    if url == "none":
        raise SettingsError("there is no archive: STOCKSTREAM_ARCHIVE is none; name the archive's folder with --archive")
    store = open_archive(url)
    where = store.url.removeprefix("file://")
    done = 0

    def show() -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty() and done % 20 == 0:
            click.echo(f"\r{counted(done, 'object')}", err=True, nl=False)

    report = check(store, show)
    if sys.stderr.isatty() and done >= 20:
        click.echo("\r" + " " * 30 + "\r", err=True, nl=False)
    if not report.chains and not report.faults:
        report.faults.append(f"{where} holds no archive yet")
    if as_json:
        unprocessed = sum(chain.unprocessed for chain in report.chains)
        chains = [asdict(chain) for chain in report.chains]
        click.echo(json.dumps({
            "archive": store.url, "ok": not report.faults, "unprocessed": unprocessed, "repaired": report.repaired, "chains": chains,
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

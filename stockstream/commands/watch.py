"""`stockstream watch`: the watchlist, which assigns each symbol to a source."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click
import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stockstream.console import report, table
from stockstream.errors import DeliveryError, SettingsError, SourceError
from stockstream.kafka.admin import ensure_topics, is_embedded, producer_options
from stockstream.kafka.compacted_topic import read_tables
from stockstream.kafka.quiet import quiet_clients
from stockstream.settings import SOURCES, Settings, load_settings
from stockstream.sources.ingestion import MAX_WATCHED, Watch
from stockstream.sources.reports import FEED_STATES, FeedEntry, SourceReports, in_words, read_all
from stockstream.sources.symbols import canonical
from stockstream.transforms.partitioning import home_partition
from stockstream.versions import HEADERS
from stockstream.wording import counted, span

BROKER_TIMEOUT_S = 10.0
TOPICS = ("watchlist", "feeds", "sources")
NAMED = tuple(name for name in SOURCES if name != "none")
LISTED = 20
"""How many symbols a line names."""
EMPTY = "the watchlist is empty: add symbols with `stockstream watch add AAPL MSFT --source yahoo`"

_encode = msgspec.json.Encoder().encode


@click.group()
def command() -> None:
    """Which symbols are ingested, and by which source."""


_symbols = click.argument("symbols", nargs=-1, metavar="[SYMBOL]...")
_file = click.option("--file", type=click.File("r", encoding="utf-8-sig"), help="Also the symbols of this file, one a line or by comma; - is stdin.")
_json = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


@command.command()
@_symbols
@click.option("--source", type=click.Choice(NAMED), help="The source that brings them.  [default: the first of STOCKSTREAM_SOURCE]")
@_file
@_json
def add(symbols: tuple[str, ...], source: str | None, file: TextIO | None, as_json: bool) -> int:
    """Put symbols on the watchlist.

    A symbol may be written as any provider writes it: BRK.B, brk-b and BRK/B are all BRK-B. A symbol has one source: with another one it moves there.
    """
    settings = load_settings()
    source = source or settings.source[0]
    if source == "none":
        raise SettingsError(f"no source is named: use --source ({', '.join(NAMED)}), or set STOCKSTREAM_SOURCE")
    written = _named(symbols, file)
    found, faults = _canonical(written)
    with quiet_clients():
        result, runs = asyncio.run(_add(settings, source, list(found)))
    for fault in faults:
        report(fault)
    renamed = {text: symbol for symbol, text in found.items() if text != symbol}
    if as_json:
        _print_json({"source": source, **result, "renamed": renamed, "invalid": faults})
        return 1 if faults else 0
    if result["added"]:
        click.echo(f"added to {source}: {_list(result['added'])}")
    for before, moved in sorted(result["moved"].items()):
        click.echo(f"moved from {before} to {source}: {_list(moved)}")
    if result["existing"]:
        click.echo(f"already on the watchlist of {source}: {_list(result['existing'])}")
    if renamed:
        click.echo(f"written as: {_list([f'{symbol} for {text}' for text, symbol in renamed.items()])}")
    if found and not runs:
        report(f"no worker runs {source} at present: start one with STOCKSTREAM_SOURCE={source}")
    return 1 if faults else 0


@command.command()
@_symbols
@_file
@_json
def remove(symbols: tuple[str, ...], file: TextIO | None, as_json: bool) -> int:
    """Take symbols off the watchlist. What was ingested of them stays."""
    settings = load_settings()
    written = _named(symbols, file)
    with quiet_clients():
        removed, faults = asyncio.run(_remove(settings, written))
    for fault in faults:
        report(fault)
    if as_json:
        _print_json({"removed": removed, "invalid": faults})
    elif removed:
        click.echo(f"removed: {_list(removed)}")
    if again := [symbol for symbol in removed if symbol in settings.symbols]:
        report(f"STOCKSTREAM_SYMBOLS names {_list(again)}: the next worker that starts with it adds them again")
    return 1 if faults else 0


@command.command("list")
@click.option("--source", help="Only symbols of this source.")
@click.option("--state", type=click.Choice(FEED_STATES), help="Only symbols in this state.")
@_json
def list_(source: str | None, state: str | None, as_json: bool) -> None:
    """List the watchlist: where each symbol is ingested, how fresh it is, and why it is not."""
    settings = load_settings()
    with quiet_clients():
        reports = asyncio.run(read_reports(settings))
    now_ms = time.time_ns() // 1_000_000
    entries = list(reports.entries(now_ms, source, state))
    if as_json:
        click.echo(msgspec.json.encode({"items": entries}).decode())
        return
    if not entries:
        which = " ".join(filter(None, [f"of source {source!r}" if source else "", f"in state {state}" if state else ""]))
        click.echo(f"no symbol {which} is on the watchlist" if which else EMPTY)
        return
    click.echo(table(("symbol", "source", "state", "newest tick", "worker", "reason"), [_row(entry) for entry in entries]))
    states = Counter(in_words(entry.state) for entry in entries)
    click.echo(f"{counted(len(entries), 'symbol')}: {', '.join(f'{number:,} {name}' for name, number in states.most_common())}")


def _row(entry: FeedEntry) -> Sequence[str]:
    age = "" if entry.age_s is None else f"{span(entry.age_s)} ago"
    return entry.symbol, entry.source, in_words(entry.state), age, entry.worker, entry.reason


async def read_reports(settings: Settings) -> SourceReports:
    """What the topics of the sources hold. Raises `BrokerError`."""
    await is_embedded(settings, timeout_s=BROKER_TIMEOUT_S)              # one clear line if no broker answers
    tables = await read_tables(settings, TOPICS)
    return read_all((topic, key, value) for topic, of in tables.items() for key, value in of.items())


def _named(symbols: Sequence[str], file: TextIO | None) -> list[str]:
    """The symbols of the arguments and the file as they are written, without repeats. Raises `SourceError` if there is none."""
    written = [part.strip() for text in symbols for part in text.split(",")]
    if file is not None:
        try:
            lines = file.read().splitlines()
        except (UnicodeDecodeError, OSError) as error:
            raise SourceError(f"{file.name} cannot be read as text: {error}") from error
        written += [part.strip() for line in lines for part in line.partition("#")[0].split(",")]
    written = list(dict.fromkeys(filter(None, written)))
    if not written:
        raise SourceError(f"no symbol in {file.name}" if file is not None and not symbols else "no symbol is named: give symbols, or --file")
    return written


def _canonical(written: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """By canonical symbol how it was written, and a line for each text that cannot be one."""
    found: dict[str, str] = {}
    faults: list[str] = []
    for text in written:
        try:
            found.setdefault(canonical(text), text)
        except SourceError as error:
            faults.append(str(error))
    return found, faults


async def _add(settings: Settings, source: str, symbols: list[str]) -> tuple[dict[str, Any], bool]:
    """Returns which symbols are `added`, `moved` (by their source before) and `existing`, and whether a worker runs the source."""
    await ensure_topics(settings, timeout_s=BROKER_TIMEOUT_S)
    reports = await read_reports(settings)
    before = {symbol: reports.watched(symbol) for symbol in symbols}
    new = [symbol for symbol, of in before.items() if of is None]
    moved: dict[str, list[str]] = {}
    for symbol, of in before.items():
        if of is not None and of != source:
            moved.setdefault(of, []).append(symbol)
    if reports.watched_count + len(new) > MAX_WATCHED:
        raise SourceError(f"the watchlist would have {counted(reports.watched_count + len(new), 'symbol')}: {MAX_WATCHED:,} are allowed")
    await write_watchlist(settings, {symbol: _encode(Watch(symbol=symbol, source=source)) for symbol, of in before.items() if of != source})
    result = {"added": new, "moved": moved, "existing": [symbol for symbol, of in before.items() if of == source]}
    return result, reports.is_run(source, time.time_ns() // 1_000_000)


async def _remove(settings: Settings, written: list[str]) -> tuple[list[str], list[str]]:
    """Returns the removed symbols, and a line for each text that is not on the watchlist."""
    reports = await read_reports(settings)
    removed: dict[str, None] = {}
    faults: list[str] = []
    for text in written:
        symbol = text if reports.watched(text) is not None else _canonical_or_none(text)         # as it stands there, whoever wrote it
        if symbol is None or reports.watched(symbol) is None:
            faults.append(f"{text[:40]!r} is not on the watchlist")
        else:
            removed[symbol] = None
    if removed:
        await ensure_topics(settings, timeout_s=BROKER_TIMEOUT_S)        # also checks that STOCKSTREAM_PARTITIONS is the topic's, or the key would be elsewhere
        await write_watchlist(settings, dict.fromkeys(removed))
    return list(removed), faults


def _canonical_or_none(text: str) -> str | None:
    try:
        return canonical(text)
    except SourceError:
        return None


async def write_watchlist(settings: Settings, values: Mapping[str, bytes | None]) -> None:
    """Writes messages of the watchlist, by symbol, to their home partitions. Raises `BrokerError`, `DeliveryError`."""
    if not values:
        return
    producer = AIOKafkaProducer(**await producer_options(settings, timeout_s=BROKER_TIMEOUT_S))
    await producer.start()
    topic = settings.topic("watchlist")
    try:
        sent = [
            await producer.send(topic, value, key=symbol.encode(), partition=home_partition(symbol, settings.partitions), headers=HEADERS)
            for symbol, value in values.items()
        ]
        await asyncio.gather(*sent)
    except KafkaError as error:
        raise DeliveryError(f"the broker did not confirm the watchlist: {error}") from error
    finally:
        await producer.stop()


def _list(names: Sequence[str]) -> str:
    more = f" and {len(names) - LISTED:,} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _print_json(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())

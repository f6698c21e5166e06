"""`stockstream bridge`: bring a foreign topic into `ticks.raw`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import msgspec
from aiokafka.errors import KafkaError

from stockstream.bridge.bridge import Bridge
from stockstream.bridge.mapping import Counts, Mapper
from stockstream.console import report
from stockstream.errors import SourceError
from stockstream.kafka.quiet import quiet_clients
from stockstream.replaying.topic import foreign_settings
from stockstream.settings import load_settings, read_format_file
from stockstream.sources.symbols import PROVIDERS, canonical, from_provider
from stockstream.transforms.cleaning.formats import Format, FormatError
from stockstream.transforms.cleaning.limits import MAX_SOURCE
from stockstream.transforms.cleaning.raw_format import RawFormat, open_format
from stockstream.wording import counted

OWN = "stockstream"
"""The format of a topic that has our own ticks only."""
LINE_S = 1.0
PLAIN_LINE_S = 30.0
"""Between two progress lines where stderr is no terminal."""


def canonical_by(format_name: str) -> Callable[[str], str]:
    """What makes the log's symbol of one of this format. It raises `SourceError`."""
    provider = "polygon" if format_name == "massive" else format_name
    return partial(from_provider, provider=provider) if provider in PROVIDERS else canonical


@click.command()
@click.option("--from", "where", metavar="kafka://host:port/topic", required=True, help="The foreign topic; more brokers after commas.")
@click.option("--format", "format_name", required=True, help="polygon, alpaca, finnhub, binance, coinbase, a TOML file, or stockstream for ticks of our own.")
@click.option("--symbols", default="", help="Bring only these symbols, separated by commas.")
@click.option("--source", default="", help="The ticks' source.  [default: the format's name]")
@click.option("--group", default="", help="Names the bridge: one of the same group resumes where the last one stopped.  [default: <STOCKSTREAM_APP_ID>-bridge]")
@click.option("--latest", is_flag=True, help="Begin at the topic's end, where this group has brought nothing yet.  [default: at its beginning]")
@click.option("--until-end", is_flag=True, help="Stop at the end that the topic has now.  [default: at Ctrl-C]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    where: str, format_name: str, symbols: str, source: str, group: str, latest: bool, until_end: bool, as_json: bool
) -> None:  # fmt: skip
    """Bring a topic of foreign JSON into ticks.raw, from this or another Kafka.

    Each tick goes to its symbol's partition, with the symbol in its canonical form. Ticks and offsets are written in one transaction: a bridge that is
    killed resumes where it stopped, and no tick is lost or comes twice.
    """
    if len(source) > MAX_SOURCE:
        raise click.UsageError(f"--source must have at most {MAX_SOURCE} characters")
    settings = load_settings()
    try:
        foreign, topic = foreign_settings(settings, where)
    except SourceError as error:
        raise click.UsageError(f"--from: {error}") from None
    try:
        known: Format | None = None if format_name == OWN else open_format(format_name, read_format_file)
    except FormatError as error:
        raise click.UsageError(f"--format: {error}") from None
    try:
        given = {symbol.strip() for symbol in symbols.split(",") if symbol.strip()}
        wanted = given | set(map(canonical, given))                          # ticks of our own form keep their symbols
    except SourceError as error:
        raise click.UsageError(f"--symbols: {error}") from None
    mapper = Mapper(RawFormat.of(known) if known else None, canonical_by(known.name if known else OWN), symbols=wanted, source=source)
    bridge = Bridge(settings, foreign, topic, mapper, group=group or f"{settings.group}-bridge", latest=latest, until_end=until_end, report=report)
    with quiet_clients():
        asyncio.run(_run(bridge, f"{topic} at {foreign.broker}", shown=not as_json))
    state = bridge.state
    seconds = round(time.monotonic() - state.started, 3) if state.started else 0.0
    if as_json:
        summary = {
            "from": f"{foreign.broker}/{topic}", "topic": settings.topic("ticks.raw"), "format": format_name, "group": group or f"{settings.group}-bridge",
            "transactional": state.transactional, "partitions": state.partitions, **msgspec.to_builtins(state.counts), "deleted": state.deleted,
            "lag": state.lag, "seconds": seconds,
        }  # fmt: skip
        click.echo(msgspec.json.encode(summary).decode())
        return
    for line in examples(topic, state.counts):
        report(line)
    click.echo(f"{_line(state.counts)} in {seconds:.1f} s, from {topic} to {settings.topic('ticks.raw')}")


def examples(topic: str, counts: Counts) -> list[str]:
    """A line for each example of a rejected message."""
    return [f"{topic}[{one.partition}] offset {one.offset}: {one.reason}: {one.detail}: {one.value}" for one in counts.examples]


def _line(counts: Counts) -> str:
    parts = [f"{counted(counts.messages, 'message')}, {counted(counts.ticks, 'tick')}"]
    if counts.filtered:
        parts.append(f"{counts.filtered:,} of other symbols")
    if counts.ignored:
        parts.append(f"{sum(counts.ignored.values()):,} ignored ({', '.join(f'{kind} {n:,}' for kind, n in counts.ignored.most_common(4))})")
    if counts.rejected:
        parts.append(f"{sum(counts.rejected.values()):,} rejected ({', '.join(f'{kind} {n:,}' for kind, n in counts.rejected.most_common(4))})")
    return ", ".join(parts)


async def _run(bridge: Bridge, what: str, *, shown: bool) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_log_unless_kafkas)
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError):                       # Windows
            loop.add_signal_handler(number, bridge.stopping.set)
    lines = asyncio.create_task(_show(bridge, what)) if shown else None
    try:
        await bridge.run()
    finally:
        if lines is not None:
            lines.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await lines


def _log_unless_kafkas(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A producer that fails leaves every message that it holds with the same error. The bridge reports the first one."""
    if not isinstance(context.get("exception"), KafkaError):
        loop.default_exception_handler(context)


async def _show(bridge: Bridge, what: str) -> None:
    """Keeps a progress line on stderr."""
    stderr = click.get_text_stream("stderr")
    live, width, before, at = stderr.isatty(), 0, 0, time.monotonic()
    try:
        while True:
            await asyncio.sleep(LINE_S if live else PLAIN_LINE_S)
            state, now = bridge.state, time.monotonic()
            rate = (state.counts.ticks - before) / (now - at)
            before, at = state.counts.ticks, now
            text = f"{time.strftime('%H:%M:%S')}  {rate:,.0f} ticks/s  {_line(state.counts)}  lag {state.lag:,}"
            if not state.started:
                text = f"waiting for {what}"
            if live:
                click.echo(f"\r{text:<{width}}", nl=False, err=True)
                width = len(text)
            else:
                report(text)
    finally:
        if live and width:
            click.echo("", err=True)

"""`stockstream sources`: the state of the group's sources, and what each may still request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

import click
import msgspec

from stockstream.commands.watch import EMPTY, read_reports
from stockstream.console import table
from stockstream.kafka.quiet import quiet_clients
from stockstream.records import Budget, Connection
from stockstream.settings import load_settings
from stockstream.sources.reports import TROUBLE, SourceSummary, in_words, trouble, with_name, without_name
from stockstream.wording import clock_time, counted, span


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON, as /api/sources answers it.")
def command(as_json: bool) -> None:
    """List the sources of all workers: state, symbols, connections, budgets, last error.

    It reads what the workers have published, so it needs a broker, but no worker.
    """
    settings = load_settings()
    with quiet_clients():
        reports = asyncio.run(read_reports(settings))
    now_ms = time.time_ns() // 1_000_000
    summaries = reports.summaries(now_ms)
    if as_json:
        click.echo(msgspec.json.encode({"items": summaries}).decode())
        return
    if not summaries:
        click.echo(f"no worker runs a source, and {EMPTY}")
        return
    click.echo(table(("source", "state", "symbols", "fresh", "newest tick", "workers"), [_row(summary, now_ms) for summary in summaries]))
    for summary in summaries:
        if text := trouble(summary):
            click.echo(text)
        for line in _details(summary, now_ms):
            click.echo(with_name(summary.source, line))


def _row(summary: SourceSummary, now_ms: int) -> Sequence[str]:
    last = "" if summary.last_tick_at is None else f"{span(max(0, now_ms - summary.last_tick_at) / 1000)} ago"
    workers = ", ".join(report.worker for report in summary.workers)
    return summary.source, summary.state, f"{summary.watched:,}", f"{summary.feeds.get('fresh', 0):,}", last, workers


def _details(summary: SourceSummary, now_ms: int) -> Iterator[str]:
    if summary.reason and not trouble(summary):
        yield summary.reason
    others = {state: number for state, number in summary.feeds.items() if state != "fresh" and state not in TROUBLE}
    if others:
        yield "symbols: " + ", ".join(f"{number:,} {in_words(state)}" for state, number in others.items())
    if connections := [connection for report in summary.workers for connection in report.connections]:
        yield _connections(connections)
    if summary.budgets:
        yield "requests left: " + ", ".join(map(_budget, summary.budgets))
    if summary.next_attempt is not None and summary.next_attempt > now_ms:
        yield f"next attempt in {span((summary.next_attempt - now_ms) / 1000)}"
    if summary.last_error and summary.last_error not in summary.reason:
        yield f"last error: {without_name(summary.source, summary.last_error)}"


def _connections(connections: Sequence[Connection]) -> str:
    states = {state: sum(connection.count for connection in connections if connection.state == state) for state in ("open", "connecting", "silent", "closed")}
    symbols = sum(connection.symbols for connection in connections)
    of_states = ", ".join(f"{number} {state}" for state, number in states.items() if number)
    return f"{counted(sum(states.values()), 'connection')} with {counted(symbols, 'symbol')}: {of_states}"


def _budget(budget: Budget) -> str:
    reset = f" until {clock_time(budget.resets_at)}" if budget.per == "day" else ""
    return f"{budget.left:,} of {budget.limit:,} this {budget.per}{reset}"

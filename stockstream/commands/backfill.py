"""`stockstream backfill`: fetch one-minute bars of the past from Alpha Vantage, as files that `stockstream replay` publishes."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from stockstream.budgets import Limits
from stockstream.console import report
from stockstream.errors import OutputError, SourceError
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.quiet import quiet_clients
from stockstream.kafka.request_log import KafkaRequestLog
from stockstream.settings import Settings, load_settings
from stockstream.sources.alpha_vantage.answers import AnswerError, Minute, minutes_of
from stockstream.sources.alpha_vantage.client import Client
from stockstream.sources.base import Clock, SourceUnavailable, SystemClock
from stockstream.sources.quota import Scheduler, shared_refusal
from stockstream.sources.symbols import canonical, to_provider
from stockstream.wording import counted

NAME = "alpha_vantage"
COLUMNS = ("timestamp", "open", "high", "low", "close", "volume")
"""As in the provider's own CSV files. Times are in US/Eastern."""
BROKER_TIMEOUT_S = 10.0
_MONTH = re.compile(r"(199\d|20\d\d)-(0[1-9]|1[0-2])")


class Fetched(msgspec.Struct, frozen=True):
    """A file that was written. `first` and `last` are its times in US/Eastern."""

    file: str
    symbol: str
    bars: int
    first: str
    last: str


def file_of(folder: Path, symbol: str, month: str) -> Path:
    """Named as the provider names its CSV files: `intraday_1min_IBM.csv`, in a folder for each month that is asked for. `replay` takes the symbol from it."""
    return folder / month / f"intraday_1min_{to_provider(symbol, NAME)}.csv"


def as_csv(minutes: Sequence[Minute]) -> str:
    """The bars with a header."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((bar.time, bar.open, bar.high, bar.low, bar.close, bar.volume) for bar in minutes)
    return text.getvalue()


async def fetch(client: Client, scheduler: Scheduler, symbol: str, month: str) -> list[Minute]:
    """The bars of a month, or of the newest 30 days if `month` is empty. Raises `SourceError`."""
    grant = await scheduler.acquire([symbol])
    parameters = {"interval": "1min", "outputsize": "full", **({"month": month} if month else {})}
    try:
        minutes = minutes_of(await client.ask("TIME_SERIES_INTRADAY", symbol=to_provider(symbol, NAME), **parameters), symbol)
    except AnswerError as error:
        if error.kind == "unsent":
            await scheduler.give_back(grant)
            raise SourceUnavailable(str(error)) from None
        if (refusal := shared_refusal(error.kind)) is not None:
            await scheduler.report(refusal, retry_after_s=error.retry_after_s)
        elif error.kind == "key":
            await scheduler.give_back(grant)
        raise
    await scheduler.report(None)
    return minutes


async def backfill(
    settings: Settings, symbols: Sequence[str], months: Sequence[str], folder: Path, *, clock: Clock, written: Callable[[Fetched], None],
) -> None:  # fmt: skip
    """Runs the command; `written` is called with each file. Raises `StockstreamError`; files that were written before stay."""
    await ensure_topics(settings, timeout_s=BROKER_TIMEOUT_S)
    key = settings.alpha_vantage_key.get_secret_value()
    client = Client(settings.alpha_vantage_url, key)
    scheduler = Scheduler(NAME, Limits.parse(settings.alpha_vantage_budget), KafkaRequestLog(settings), clock=clock, worker="backfill")
    try:
        for symbol in symbols:
            for month in months or ("",):
                try:
                    minutes = await fetch(client, scheduler, symbol, month)
                except AnswerError as error:
                    if error.kind != "symbol":
                        raise
                    report(f"{symbol}: {error}")
                    continue
                if not minutes:
                    report(f"{symbol}: no bars{f' in {month}' if month else ''}")
                    continue
                path = file_of(folder, symbol, month)
                write(path, as_csv(minutes))
                written(Fetched(str(path), symbol, len(minutes), minutes[0].time, minutes[-1].time))
    finally:
        await client.stop()
        await scheduler.stop()


def write(path: Path, text: str) -> None:
    """Writes a new file whole or not at all. Raises `OutputError`."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8")
        path.hardlink_to(part)
    except FileExistsError:
        raise OutputError(f"{path} exists already: remove it, or choose another folder with --out") from None
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


class _Month(click.ParamType):
    name = "YYYY-MM"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not _MONTH.fullmatch(str(value)):
            self.fail(f"{value!r} is no month, such as 2024-05", param, ctx)
        return str(value)


@click.command()
@click.argument("symbols", nargs=-1, required=True)
@click.option("--month", "months", type=_Month(), multiple=True, help="Month to fetch; may be repeated.  [default: the newest 30 days]")
@click.option("--out", "folder", type=click.Path(path_type=Path), default=Path(), help="Folder of the files.  [default: the present one]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(symbols: tuple[str, ...], months: tuple[str, ...], folder: Path, as_json: bool) -> None:
    """Fetch one-minute bars from Alpha Vantage into CSV files, which `stockstream replay` publishes.

    Each symbol and month is one request of the day's budget, which the workers of STOCKSTREAM_BROKER share. The key is
    STOCKSTREAM_ALPHA_VANTAGE_KEY.
    """
    settings = load_settings()
    if not settings.alpha_vantage_key.get_secret_value():
        raise AnswerError("key")
    wanted = list(dict.fromkeys(map(canonical, symbols)))
    for path in (file_of(folder, symbol, month) for symbol in wanted for month in months or ("",)):
        if path.exists():                                                # before a request is spent
            raise OutputError(f"{path} exists already: remove it, or choose another folder with --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be created: {error.strerror or error}") from error
    found: list[Fetched] = []

    def written(one: Fetched) -> None:
        found.append(one)
        if not as_json:
            click.echo(f"{one.file}: {counted(one.bars, 'bar')} from {one.first} to {one.last} (US/Eastern)")

    try:
        with quiet_clients():
            asyncio.run(backfill(settings, wanted, months, folder, clock=SystemClock(), written=written))
    finally:
        if as_json:
            click.echo(msgspec.json.encode(found).decode())
    if not found:
        raise SourceError("no bars were found")

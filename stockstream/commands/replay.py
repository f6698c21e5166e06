"""`stockstream replay`: publish a recording to `ticks.raw`."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from stockstream import versions
from stockstream.console import progress, report
from stockstream.errors import BrokerError, DeliveryError, SourceError
from stockstream.kafka.admin import ensure_topics, producer_options
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.quiet import quiet_clients
from stockstream.records import Punctuation
from stockstream.settings import Settings, load_settings
from stockstream.sources.base import Batch, Clock, SystemClock
from stockstream.sources.replay import LISTED_BAD_ROWS, Recording, ReplaySource, Survey, obstacle, refusal, source_name
from stockstream.transforms.cleaning.limits import MAX_SOURCE
from stockstream.transforms.partitioning import home_partition
from stockstream.wording import counted

HEADERS = [(versions.NAME, versions.VALUE)]
MOST_IN_A_FRAME = 4_000
OUTSTANDING_BATCHES = 64
BROKER_TIMEOUT_S = 10.0

encode = msgspec.json.Encoder().encode


class BatchBuilder(Protocol):
    """The used part of aiokafka's `BatchBuilder`. `append` returns None if the batch is full."""

    def append(self, *, timestamp: int | None, key: bytes | None, value: bytes, headers: Any) -> Any: ...
    def close(self) -> None: ...
    def record_count(self) -> int: ...


class Producer(Protocol):
    """The used part of aiokafka's producer."""

    def create_batch(self) -> BatchBuilder: ...
    async def send_batch(self, batch: BatchBuilder, topic: str, *, partition: int) -> Awaitable[Any]: ...


class Publisher:
    """Sends ticks to their home partitions, in order, as messages of one tick keyed by symbol or, with `frame` above 0, as arrays of so many ticks.

    Messages are gathered into whole batches; `flush` sends what is gathered. Raises `DeliveryError` if the broker does not confirm.
    """

    def __init__(self, producer: Producer, topic: str, partitions: int, frame: int = 0) -> None:
        self._producer, self._topic, self._partitions, self._frame = producer, topic, partitions, frame
        self._batches: dict[int, BatchBuilder] = {}
        self._frames: dict[int, list[bytes]] = {}
        self._homes: dict[str, tuple[int, bytes]] = {}
        self._outstanding: deque[Awaitable[Any]] = deque()
        self.newest: dict[int, int] = {}
        """By partition that got ticks: their newest event time, epoch ms."""

    async def publish(self, batch: Batch) -> None:
        """Publishes the ticks; waits if the broker is behind."""
        for symbol, event_time, value in batch:
            home = self._homes.get(symbol)
            if home is None:
                home = self._homes[symbol] = (home_partition(symbol, self._partitions), symbol.encode())
            partition, key = home
            if event_time > self.newest.get(partition, -1):
                self.newest[partition] = event_time
            if not self._frame:
                builder = self._batches.get(partition)
                if builder is None or builder.append(timestamp=None, key=key, value=value, headers=HEADERS) is None:
                    await self._append(partition, key, value)
                continue
            frame = self._frames.setdefault(partition, [])
            frame.append(value)
            if len(frame) == self._frame:
                await self._append(partition, None, _array(self._frames.pop(partition)))

    async def flush(self) -> None:
        """Sends all buffered ticks to the broker."""
        for partition, frame in list(self._frames.items()):
            del self._frames[partition]
            await self._append(partition, None, _array(frame))
        for partition in list(self._batches):
            await self._send(partition)

    async def finish(self, source: str) -> None:
        """Sends a punctuation for the newest second of each partition that got ticks, and waits until everything is confirmed."""
        await self.flush()
        for partition, newest in sorted(self.newest.items()):
            await self._append(partition, None, encode(Punctuation(punctuate=newest // 1000, source=source)))
        await self.flush()
        while self._outstanding:
            await self._confirm()

    async def _append(self, partition: int, key: bytes | None, value: bytes) -> None:
        builder = self._batches.get(partition)
        if builder is not None:
            if builder.append(timestamp=None, key=key, value=value, headers=HEADERS) is not None:
                return
            await self._send(partition)
        builder = self._batches[partition] = self._producer.create_batch()
        if builder.append(timestamp=None, key=key, value=value, headers=HEADERS) is None:
            raise DeliveryError(f"a message of {len(value):,} bytes does not fit into a batch; use a smaller --frames")

    async def _send(self, partition: int) -> None:
        builder = self._batches.pop(partition)
        if not builder.record_count():
            return
        builder.close()
        try:
            self._outstanding.append(await self._producer.send_batch(builder, self._topic, partition=partition))
        except KafkaError as error:
            raise DeliveryError(f"the broker accepts no more ticks: {error}") from error
        while len(self._outstanding) > OUTSTANDING_BATCHES:
            await self._confirm()

    async def _confirm(self) -> None:
        try:
            await self._outstanding.popleft()
        except KafkaError as error:
            raise DeliveryError(f"the broker did not confirm ticks: {error}") from error


@dataclass(frozen=True, slots=True)
class Summary:
    """The published ticks: times in epoch ms, and `seconds` of wall time from the first tick to the last confirmation.

    `time_unit` is the one of the file's `event_time`, empty where that is a timestamp.
    """

    file: str
    kind: str
    source: str
    topic: str
    ticks: int
    time_unit: str
    bad_rows: int
    first_bad_rows: list[dict[str, Any]]
    unordered_rows: int
    partitions: int
    first_event_time: int
    last_event_time: int
    seconds: float
    ticks_per_s: float


def _array(values: list[bytes]) -> bytes:
    return b"[" + b",".join(values) + b"]"


async def read_latest(settings: Settings) -> dict[str, dict[str, Any]]:
    """The last row of each symbol in the topic `latest`. Raises `BrokerError` if it cannot be read in time."""
    try:
        table = await read_compacted(settings, "latest")
    except BrokerError as error:
        raise BrokerError(f"{error}, so it is unknown whether the ticks would be accepted; use --yes to publish them anyway") from error
    return {key.decode(): msgspec.json.decode(value) for key, value in table.items()}


async def publish(settings: Settings, source: ReplaySource, publisher: Publisher, *, paced: bool, advance: Callable[[int], None]) -> int:
    """Publishes all of the source's ticks, waits until they are confirmed, and returns their number. `advance` is called with the size of each batch."""
    ticks = 0
    async for batch in source.stream():
        await publisher.publish(batch)
        if paced:
            await publisher.flush()
        ticks += len(batch)
        advance(len(batch))
    await publisher.finish(source.name)
    return ticks


async def replay(
    settings: Settings, recording: Recording, survey: Survey, *, name: str, speed: float | None, rebase: bool, frame: int, force: bool,
    advance: Callable[[int], None], clock: Clock,
) -> Summary:  # fmt: skip
    """Runs the command, without its output. Raises `StockstreamError`."""
    if not force and (why := refusal(survey, clock.now_ms(), rebased=rebase)) is not None:
        raise SourceError(f"{recording.path}: nothing would be accepted: {why}; use --yes to publish anyway")
    await ensure_topics(settings, timeout_s=BROKER_TIMEOUT_S)
    shift_ms = (clock.now_ms() // 1000 - survey.first // 1000 + 1) * 1000 if rebase else 0
    if not force:
        found = obstacle(survey, name, await read_latest(settings), settings.partitions, shift_ms=shift_ms)
        if found is not None:
            ways = "--prefix for another log" if rebase else "--rebase (times moved to now, at real speed), --prefix for another log"
            raise SourceError(f"{found}; use {ways}, or --yes to publish anyway")
    producer = AIOKafkaProducer(**await producer_options(settings, timeout_s=BROKER_TIMEOUT_S))
    await producer.start()
    try:
        source = ReplaySource(recording, name, speed=speed, shift_ms=shift_ms, clock=clock)
        publisher = Publisher(producer, settings.topic("ticks.raw"), settings.partitions, frame)
        if rebase:
            await clock.sleep(max(0, survey.first + shift_ms - clock.now_ms()) / 1000)
        started = time.monotonic()
        ticks = await publish(settings, source, publisher, paced=speed is not None, advance=advance)
        seconds = time.monotonic() - started
    finally:
        await producer.stop()
    return Summary(
        str(recording.path), recording.kind, name, settings.topic("ticks.raw"), ticks, survey.unit, survey.bad_count, [asdict(row) for row in survey.bad],
        survey.unordered, len(publisher.newest), survey.first + shift_ms, survey.last + shift_ms, round(seconds, 3), round(ticks / max(seconds, 1e-9), 1),
    )  # fmt: skip


class _Speed(click.ParamType):
    name = "max|N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        if value == "max":
            return None
        try:
            speed = float(value)
        except ValueError:
            speed = 0.0
        if not 0 < speed < 1e6:
            self.fail(f"{value!r} is neither 'max' nor a number above 0", param, ctx)
        return speed


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--speed", type=_Speed(), default=None, help="Multiple of real time, or max.  [default: max; 1 with --rebase]")
@click.option("--bars", is_flag=True, help="The file holds one-second bars.  [default: recognised by its columns]")
@click.option("--rebase", is_flag=True, help="Move the times so that the first tick is now, and play at real speed.")
@click.option("--prefix", help="Topic prefix, to publish to another log, which needs its own worker.  [default: STOCKSTREAM_TOPIC_PREFIX]")
@click.option("--source", "source", help="The ticks' source.  [default: replay.<file and options>]")
@click.option("--symbols", default="", help="Publish only these symbols, separated by commas.")
@click.option("--limit", type=click.IntRange(1), help="Publish only this many ticks, from the beginning.")
@click.option("--frames", type=click.IntRange(1, MOST_IN_A_FRAME), help="Publish arrays of so many ticks instead of single ticks.")
@click.option("--yes", is_flag=True, help="Publish even if the ticks would be rejected.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    file: Path, speed: float | None, bars: bool, rebase: bool, prefix: str | None, source: str | None, symbols: str, limit: int | None, frames: int | None,
    yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Publish recorded trades or one-second bars (Parquet or CSV) to ticks.raw.

    Each tick goes to its symbol's partition, in the file's order; at the end the last second is closed. A trade file has the columns symbol,
    event_time, price and size, a bar file symbol, event_time, close and volume.
    """
    if rebase and speed not in (None, 1.0):
        raise click.UsageError("--rebase plays at real speed: leave --speed out")
    if source is not None and not 1 <= len(source) <= MAX_SOURCE:
        raise click.UsageError(f"--source must have 1 to {MAX_SOURCE} characters")
    settings = load_settings(**({"topic_prefix": prefix} if prefix is not None else {}))
    chosen = [symbol.strip() for symbol in symbols.split(",") if symbol.strip()]
    recording = Recording(file, bars=bars, symbols=chosen, limit=limit)
    if recording.kind == "bars" and not bars:
        report(f"{file.name} has the columns of one-second bars and is replayed as bars")
    survey = recording.survey()
    warn_of_rows(survey, settings)
    if absent := sorted(recording.symbols - set(survey.first_seen)):
        report(f"not in the file: {', '.join(absent)}")
    name = source or source_name(recording, rebased=rebase)
    with quiet_clients(), progress(survey.ticks, "ticks", shown=not as_json) as advance:
        work = replay(
            settings, recording, survey, name=name, speed=1.0 if rebase else speed, rebase=rebase, frame=frames or 0, force=yes, advance=advance,
            clock=SystemClock(),
        )  # fmt: skip
        summary = asyncio.run(work)
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    bad = f", {counted(summary.bad_rows, 'row')} skipped as invalid" if summary.bad_rows else ""
    where = f"{counted(summary.partitions, 'partition')} of {summary.topic}"
    click.echo(f"{counted(summary.ticks, 'tick')} of {name} in {summary.seconds:.1f} s ({summary.ticks_per_s:,.0f} ticks/s) to {where}{bad}")


def warn_of_rows(survey: Survey, settings: Settings) -> None:
    """Prints the unit of the times, and which rows cannot be ticks or are out of order, on stderr."""
    if survey.unit:
        report(f"event_time is read as {survey.unit}")
    for row in survey.bad:
        report(f"row {row.row}: {row.reason}")
    if survey.bad_count > LISTED_BAD_ROWS:
        report(f"and {counted(survey.bad_count - LISTED_BAD_ROWS, 'more invalid row')}")
    if survey.unordered:
        behind = f"by up to {survey.behind_ms / 1000:g} s"
        rows = f"{counted(survey.unordered, 'row')} out of order, {behind}"
        report(f"{rows}; ticks that are more than {settings.revise_s} s late will be rejected")

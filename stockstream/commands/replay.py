"""`stockstream replay`: publish a recording to `ticks.raw`, or restore it from an archive."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import click
import msgspec
from aiokafka import AIOKafkaProducer

from stockstream.console import progress, report
from stockstream.errors import BrokerError, SourceError
from stockstream.kafka.admin import ensure_topics, producer_options
from stockstream.kafka.compacted_topic import read_compacted
from stockstream.kafka.quiet import quiet_clients
from stockstream.replaying.options import Time, recording_options
from stockstream.replaying.publisher import Publisher
from stockstream.replaying.raw_log import RawLog, Times, is_archive, open_raw
from stockstream.replaying.restore import Restored, restore
from stockstream.replaying.topic import TopicRecording, foreign_settings, is_topic
from stockstream.settings import Settings, load_settings
from stockstream.sinks.archive.layout import DAY_MS
from stockstream.sinks.stores import open_store, place_of
from stockstream.sources.base import Batch, Clock, SystemClock
from stockstream.sources.recordings.options import AS_FOUND, ReadOptions
from stockstream.sources.recordings.recording import Recording, Span
from stockstream.sources.recordings.survey import Survey
from stockstream.sources.replay import ReplaySource, obstacle, refusal, source_name
from stockstream.transforms.cleaning.limits import MAX_SOURCE
from stockstream.transforms.timing import FUTURE_MS
from stockstream.wording import counted

MOST_IN_A_FRAME = 4_000
BROKER_TIMEOUT_S = 10.0


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


async def read_latest(settings: Settings) -> dict[str, dict[str, Any]]:
    """The last row of each symbol in the topic `latest`. Raises `BrokerError` if it cannot be read in time."""
    try:
        table = await read_compacted(settings, "latest")
    except BrokerError as error:
        raise BrokerError(f"{error}, so it is unknown whether the ticks would be accepted; use --yes to publish them anyway") from error
    return {key.decode(): msgspec.json.decode(value) for key, value in table.items()}


class Replay(Protocol):
    """What is replayed, surveyed before."""

    name: str
    kind: str
    source: str
    survey: Survey

    def obstacle(self, latest: Mapping[str, Mapping[str, Any]], partitions: int, shift_ms: int) -> str | None:
        """Why the log would reject its ticks, given the last row of each symbol."""
        ...

    def stream(self, *, speed: float | None, shift_ms: int, loop: bool, clock: Clock) -> AsyncIterator[Batch]: ...

    def closings(self, publisher: Publisher, partitions: int) -> dict[tuple[int, str], int]:
        """The newest event time that was published, by partition and source."""
        ...


class FileReplay:
    """A file."""

    def __init__(self, recording: Recording, survey: Survey, source: str) -> None:
        self.name = str(recording.path)
        self.kind: str = recording.kind
        self.source, self.survey, self._recording = source, survey, recording

    def obstacle(self, latest: Mapping[str, Mapping[str, Any]], partitions: int, shift_ms: int) -> str | None:
        return obstacle(self.survey, self.source, latest, partitions, shift_ms=shift_ms)

    def stream(self, *, speed: float | None, shift_ms: int, loop: bool, clock: Clock) -> AsyncIterator[Batch]:
        return ReplaySource(self._recording, self.source, speed=speed, shift_ms=shift_ms, loop=loop, clock=clock).stream()

    def closings(self, publisher: Publisher, partitions: int) -> dict[tuple[int, str], int]:
        return {(partition, self.source): newest for partition, newest in publisher.newest.items()}


class TopicReplay:
    """A topic, whose ticks may be of several sources."""

    kind = "ticks"

    def __init__(self, recording: TopicRecording, survey: Survey) -> None:
        self.name = recording.name
        self.source, self.survey, self._recording = ", ".join(sorted(recording.first_by_source)), survey, recording

    def obstacle(self, latest: Mapping[str, Mapping[str, Any]], partitions: int, shift_ms: int) -> str | None:
        found = (
            obstacle(Survey(first_seen=firsts), source, latest, partitions, shift_ms=shift_ms) for source, firsts in self._recording.first_by_source.items()
        )
        return next((why for why in found if why is not None), None)

    def stream(self, *, speed: float | None, shift_ms: int, loop: bool, clock: Clock) -> AsyncIterator[Batch]:
        return self._recording.stream(speed=speed, shift_ms=shift_ms, loop=loop, clock=clock)

    def closings(self, publisher: Publisher, partitions: int) -> dict[tuple[int, str], int]:
        return self._recording.closings(partitions)


async def publish(
    batches: AsyncIterator[Batch], publisher: Publisher, closings: Callable[[], Mapping[tuple[int, str], int]], *, paced: bool, endless: bool = False,
    advance: Callable[[int], None],
) -> int:  # fmt: skip
    """Publishes all ticks, closes their last seconds, waits until all is confirmed, and returns their number. `advance` gets the size of each batch.

    What is `endless` is stopped by cancelling it (Ctrl-C): it then ends like any other.
    """
    ticks = 0
    try:
        async for batch in batches:
            await publisher.publish(batch)
            if paced:
                await publisher.flush()
            ticks += len(batch)
            advance(len(batch))
    except asyncio.CancelledError:
        if not endless:
            raise
    await publisher.finish(closings())
    return ticks


async def replay(
    settings: Settings, what: Replay, *, speed: float | None, rebase: bool, loop: bool, frame: int, force: bool, advance: Callable[[int], None], clock: Clock
) -> Summary:
    """Runs the command, without its output. Raises `StockstreamError`."""
    survey = what.survey
    if not force and (why := refusal(survey, clock.now_ms(), rebased=rebase)) is not None:
        raise SourceError(f"{what.name}: nothing would be accepted: {why} (--yes publishes them anyway)")
    await ensure_topics(settings, timeout_s=BROKER_TIMEOUT_S)
    shift_ms = (clock.now_ms() // 1000 - survey.first // 1000 + 1) * 1000 if rebase else 0
    if not force:
        found = what.obstacle(await read_latest(settings), settings.partitions, shift_ms)
        if found is not None:
            ways = "--prefix for another log" if rebase else "--rebase (times moved to now, at real speed), --prefix for another log"
            raise SourceError(f"{found}; use {ways}, or --yes to publish anyway")
    producer = AIOKafkaProducer(**await producer_options(settings, timeout_s=BROKER_TIMEOUT_S))
    await producer.start()
    try:
        publisher = Publisher(producer, settings.topic("ticks.raw"), settings.partitions, frame)
        if rebase:
            await clock.sleep(max(0, survey.first + shift_ms - clock.now_ms()) / 1000)
        started = time.monotonic()
        batches = what.stream(speed=speed, shift_ms=shift_ms, loop=loop, clock=clock)
        closings = lambda: what.closings(publisher, settings.partitions)  # noqa: E731
        ticks = await publish(batches, publisher, closings, paced=speed is not None, endless=loop, advance=advance)
        seconds = time.monotonic() - started
    finally:
        await producer.stop()
    return Summary(
        what.name, what.kind, what.source, settings.topic("ticks.raw"), ticks, survey.unit, survey.bad_count, [asdict(row) for row in survey.bad],
        survey.unordered, len(publisher.newest), survey.first + shift_ms, max(publisher.newest.values(), default=0),
        round(seconds, 3), round(ticks / max(seconds, 1e-9), 1),
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
@click.argument("source_path", metavar="FILE|TOPIC|ARCHIVE/raw")
@click.option("--speed", type=_Speed(), default=None, help="Multiple of real time, or max.  [default: max; 1 with --rebase]")
@click.option("--rebase", is_flag=True, help="Move the times so that the first tick is now, and play at real speed.")
@click.option("--loop", is_flag=True, help="Begin again at the end, until it is stopped; with --rebase, so that the times go on.")
@click.option("--from", "first", type=Time(), help="Only ticks from this event time on (of an archive: Kafka time), in UTC where it names no zone.")
@click.option("--to", "end", type=Time(), help="Only ticks before this time.")
@click.option("--symbols", default="", help="Publish only these symbols, separated by commas.")
@click.option("--limit", type=click.IntRange(1), help="Publish only this many ticks, from the beginning.")
@click.option("--source", "source", help="The ticks' source.  [default: replay.<file and options>; of a topic replay.<the tick's source>]")
@click.option("--prefix", help="Topic prefix, to publish to another log, which needs its own worker.  [default: STOCKSTREAM_TOPIC_PREFIX]")
@click.option("--frames", type=click.IntRange(1, MOST_IN_A_FRAME), help="Publish arrays of so many ticks instead of single ticks.")
@recording_options
@click.option("--log", "logs", multiple=True, help="Of an archive with several logs of a partition: the ones to restore, by id, or newest.")
@click.option("--resume", is_flag=True, help="Continue a restore from an archive that was interrupted.")
@click.option("--append", is_flag=True, help="Restore from an archive behind what ticks.raw holds.")
@click.option("--yes", is_flag=True, help="Publish even if the ticks would be rejected.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def command(
    source_path: str, speed: float | None, rebase: bool, loop: bool, first: int | None, end: int | None, symbols: str, limit: int | None, source: str | None,
    prefix: str | None, frames: int | None, reading: ReadOptions, logs: tuple[str, ...], resume: bool, append: bool, yes: bool, as_json: bool,
) -> None:  # fmt: skip
    """Publish recorded trades or bars to ticks.raw: a file (CSV or Parquet, compressed or not) or a topic of ticks, kafka://host:port/topic.
    From an archive (the folder raw of file://path, a path or s3://bucket/prefix) it restores ticks.raw record by record, with Kafka's original times.

    Files of Yahoo, yfinance, Alpha Vantage, Databento, Polygon, Binance and NYSE TAQ are recognised. A bar is one tick, at its end. Each tick goes to its
    symbol's partition, in the file's order; at the end the last second is closed.
    """
    rebase = rebase or loop
    if rebase and speed not in (None, 1.0):
        raise click.UsageError("--rebase plays at real speed: leave --speed out")
    if source is not None and not 1 <= len(source) <= MAX_SOURCE:
        raise click.UsageError(f"--source must have 1 to {MAX_SOURCE} characters")
    if first is not None and end is not None and first >= end:
        raise click.UsageError("--from must be before --to")
    settings = load_settings(**({"topic_prefix": prefix} if prefix is not None else {}))
    if is_archive(source_path):
        if rebase or symbols or limit is not None or source is not None or frames is not None or reading != replace(AS_FOUND, date=reading.date) or yes:
            raise click.UsageError("an archive is restored record by record: only --date, --from, --to, --log, --speed, --prefix, --resume and --append apply")
        if resume and append:
            raise click.UsageError("--resume and --append exclude each other: what an interrupted --append has written is not known")
        times = _times(reading.date, first, end)
        restored = asyncio.run(_restore(settings, source_path, logs, times, speed=speed, resume=resume, append=append, shown=not as_json))
        click.echo(msgspec.json.encode(restored).decode() if as_json else _sentence(restored))
        return
    if logs or resume or append:
        raise click.UsageError("--log, --resume and --append are for an archive")
    chosen = [symbol.strip() for symbol in symbols.split(",") if symbol.strip()]
    summary = asyncio.run(
        _run(
            settings, source_path, chosen, reading, Span(first, end), limit=limit, source=source or "", speed=1.0 if rebase else speed, rebase=rebase,
            loop=loop, frame=frames or 0, force=yes, shown=not as_json,
        )
    )  # fmt: skip
    if as_json:
        click.echo(msgspec.json.encode(summary).decode())
        return
    bad = f", {counted(summary.bad_rows, 'row')} skipped as invalid" if summary.bad_rows else ""
    where = f"{counted(summary.partitions, 'partition')} of {summary.topic}"
    click.echo(f"{counted(summary.ticks, 'tick')} of {summary.source} in {summary.seconds:.1f} s ({summary.ticks_per_s:,.0f} ticks/s) to {where}{bad}")


def _times(date: str, first: int | None, end: int | None) -> Times:
    if not date:
        return Times(first, end)
    try:
        day = int(datetime.strptime(date, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 1000
    except ValueError:
        raise click.UsageError(f"--date {date!r} is no day such as 2026-11-27") from None
    begin, stop = max(day, first or day), min(day + DAY_MS, end or day + DAY_MS)
    if begin >= stop:
        raise click.UsageError("--from and --to are not on the day of --date")
    return Times(begin, stop)


async def _restore(
    settings: Settings, place: str, logs: tuple[str, ...], times: Times, *, speed: float | None, resume: bool, append: bool, shown: bool
) -> Restored:
    store = open_raw(place, settings)
    with quiet_clients():
        raw = RawLog(store, logs, times)
        with progress(raw.size, "bytes of the archive", shown=shown) as advance:
            restored = await restore(settings, raw, store.url, speed=speed, append=append, resume=resume, advance=advance, clock=SystemClock())
    if settings.archive != "none" and open_store(settings.archive, settings).url == store.url:
        report(f"before you start a worker of the restored log, set another STOCKSTREAM_ARCHIVE: in {place_of(store)} its rows would count a second time")
    for note in restored.notes:
        report(note)
    return restored


def _sentence(restored: Restored) -> str:
    there = f" ({restored.there:,} were there)" if restored.there else ""
    took = f"in {restored.seconds:.1f} s ({restored.records_per_s:,.0f} records/s)"
    return f"{counted(restored.records, 'record')} of {restored.archive} {took} to {counted(restored.partitions, 'partition')} of {restored.topic}{there}"


async def _run(
    settings: Settings, path: str, symbols: list[str], reading: ReadOptions, span: Span, *, limit: int | None, source: str, speed: float | None, rebase: bool,
    loop: bool, frame: int, force: bool, shown: bool,
) -> Summary:  # fmt: skip
    what: Replay
    with quiet_clients():
        if is_topic(path):
            if reading != AS_FOUND:
                raise click.UsageError("--format, --columns and the like are for files: use `stockstream bridge` for a topic of other messages")
            foreign, topic = foreign_settings(settings, path)
            ticks = TopicRecording(foreign, topic, symbols=symbols, limit=limit, span=span, source=source)
            with progress(await ticks.records(), "reading", shown=shown) as advance:
                survey = await ticks.survey(advance)
            what, wanted, where = TopicReplay(ticks, survey), ticks.symbols, "the topic"
        else:
            recording = Recording(Path(path), reading, symbols=symbols, limit=limit, span=span)
            with progress(recording.size, "reading", shown=shown) as advance:
                survey = recording.survey(advance)
            what, wanted, where = FileReplay(recording, survey, source or source_name(recording, rebased=rebase)), recording.symbols, "the file"
        warn_of_rows(survey, settings)
        now_ms = SystemClock().now_ms()
        if not rebase and survey.first <= now_ms + FUTURE_MS < survey.last:
            report("the last times are in the future: such ticks will be rejected")
        if absent := sorted(wanted - set(survey.first_seen)):
            report(f"not in {where}: {', '.join(absent)}")
        with progress(None if loop else survey.ticks, "ticks", shown=shown) as advance:
            return await replay(
                settings, what, speed=speed, rebase=rebase, loop=loop, frame=frame, force=force, advance=advance, clock=SystemClock()
            )  # fmt: skip


def warn_of_rows(survey: Survey, settings: Settings) -> None:
    """Prints on stderr how the file was read, and which rows cannot be ticks or are out of order."""
    for note in survey.notes:
        report(note)
    for what, count in survey.left_out.items():
        report(f"left out: {counted(count, 'record' if what == 'punctuations' else 'row')} ({what})")
    for row in survey.bad:
        report(f"{row.place}: {row.reason}")
    if survey.bad_count > len(survey.bad):
        report(f"and {counted(survey.bad_count - len(survey.bad), 'more invalid row')}")
    if survey.unordered and not survey.sorted:
        behind = f"by up to {survey.behind_ms / 1000:g} s"
        rows = f"{counted(survey.unordered, 'row')} out of order, {behind}"
        report(f"{rows}; ticks that are more than {settings.revise_s} s late will be rejected")

"""A topic of ticks as a recording: what another log of ours, or a producer of our messages, has written to any Kafka topic."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import BrokerError, SettingsError, SourceError, TopicError
from stockstream.kafka.admin import connect, is_embedded
from stockstream.kafka.client import client_options, end_offsets
from stockstream.kafka.merging import Merge
from stockstream.settings import Settings
from stockstream.sources.base import Batch, Clock
from stockstream.sources.recordings.chunks import BadRow
from stockstream.sources.recordings.recording import ALL_TIMES, LISTED_BAD_ROWS, Span
from stockstream.sources.recordings.survey import Survey
from stockstream.sources.replay import Pace, lap_ms
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TIME, MIN_TIME, composed, symbol_fault
from stockstream.transforms.partitioning import home_partition

BATCH = 5_000
POLL_MS = 300
CONNECT_S = 10.0
NUMBERING = ("seq", "epoch", "trade_id")
MOMENTS = ("event_time", "gap_from", "received_at")
_URL = re.compile(r"(kafka://.+)/([A-Za-z0-9._-]{1,249})")
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def is_topic(text: str) -> bool:
    """Whether the input of a replay is a topic rather than a file."""
    return text.startswith("kafka://")


def foreign_settings(settings: Settings, url: str) -> tuple[Settings, str]:
    """The settings with the brokers of `kafka://host:port/topic`, more brokers after commas, and the topic. Raises `SourceError`."""
    match = _URL.fullmatch(url)
    if match is None:
        raise SourceError(f"{url} is not kafka://host:port/topic")
    try:
        return Settings.model_validate(settings.model_dump() | {"broker": match[1]}), match[2]
    except (ValueError, SettingsError):
        raise SourceError(f"{url} is not kafka://host:port/topic") from None


@dataclass(frozen=True, slots=True)
class _Found:
    """A tick of the topic."""

    symbol: str
    source: str
    event_time: int
    tick: dict[str, Any]


class TopicRecording:
    """The ticks of a topic up to its present end, in the order of Kafka's times, as those of `replay.<their source>`.

    Raises `SourceError`, `TopicError` or `BrokerError` while it is read.
    """

    def __init__(
        self, settings: Settings, topic: str, *, symbols: Collection[str] = (), limit: int | None = None, span: Span = ALL_TIMES, source: str = ""
    ) -> None:
        self._settings, self._topic = settings, topic
        self.symbols = frozenset(map(composed, symbols))
        self._limit, self._span, self._source = limit, span, source
        self._ends: dict[TopicPartition, int] = {}
        self._survey = Survey()
        self.first_by_source: dict[str, dict[str, int]] = {}
        """By source of the replay, each symbol's first event time."""

        self.newest: dict[tuple[str, str], int] = {}
        """By source and symbol of the replay, the newest event time that `stream` has brought."""

    def closings(self, partitions: int) -> dict[tuple[int, str], int]:
        """By home partition and source, the newest event time that `stream` has brought."""
        found: dict[tuple[int, str], int] = {}
        for (source, symbol), newest in self.newest.items():
            place = (home_partition(symbol, partitions), source)
            found[place] = max(found.get(place, 0), newest)
        return found

    @property
    def name(self) -> str:
        return f"{self._settings.broker}/{self._topic}"

    async def records(self) -> int:
        """How many records there are to read, about."""
        consumer = await self._consumer()
        try:
            begins = await consumer.beginning_offsets(list(self._ends))
            return sum(max(0, end - begins[place]) for place, end in self._ends.items())
        finally:
            await consumer.stop()

    async def survey(self, advance: Callable[[int], None] = lambda done: None) -> Survey:
        """Reads the topic once; `advance` gets the numbers of records that were read. Raises `SourceError` if it holds no tick."""
        found = self._survey = Survey()
        newest: dict[str, int] = {}
        async for ticks in self._ticks(advance, found):
            for tick in ticks:
                reached = max(newest.get(tick.source, 0), tick.event_time)
                newest[tick.source] = reached
                if reached > tick.event_time:
                    found.unordered += 1
                    found.behind_ms = max(found.behind_ms, reached - tick.event_time)
                found.first = min(found.first, tick.event_time) if found.ticks else tick.event_time
                found.last = max(found.last, tick.event_time)
                found.ticks += 1
                firsts = self.first_by_source.setdefault(tick.source, {})
                firsts[tick.symbol] = min(firsts.get(tick.symbol, tick.event_time), tick.event_time)
                found.first_seen[tick.symbol] = min(found.first_seen.get(tick.symbol, tick.event_time), tick.event_time)
        if not found.ticks:
            why = f": {found.bad[0].row}: {found.bad[0].reason}; for messages of another shape use `stockstream bridge`" if found.bad else ""
            raise SourceError(f"{self.name}: there is no tick{why or self._chosen()}")
        return found

    async def stream(self, *, speed: float | None, shift_ms: int, loop: bool, clock: Clock) -> AsyncIterator[Batch]:
        """The ticks, with `shift_ms` added to their times; with `loop` again and again. `survey` must have been made."""
        pace = Pace(speed, clock)
        while True:
            async for ticks in self._ticks(lambda done: None, Survey()):
                async for part in pace.slices(_batch(ticks, shift_ms)):
                    yield part
                for tick in ticks:
                    at = (tick.source, tick.symbol)
                    self.newest[at] = max(self.newest.get(at, 0), tick.event_time + shift_ms)
            if not loop:
                return
            shift_ms += lap_ms(self._survey)

    def _chosen(self) -> str:
        return " of these symbols" if self.symbols else " of these times" if self._span != ALL_TIMES else ""

    async def _ticks(self, advance: Callable[[int], None], survey: Survey) -> AsyncIterator[list[_Found]]:
        left = self._limit
        async for records in self._records():
            found = [tick for record in records for tick in self._of(record, survey)]
            advance(len(records))
            if left is not None:
                found = found[:left]
                left -= len(found)
            yield found
            if left == 0:
                return

    def _of(self, record: Any, survey: Survey) -> Iterator[_Found]:
        try:
            value = _decode(record.value or b"")
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self._pass_over(survey, record, "not JSON")
            return
        for item in value if isinstance(value, list) else (value,):
            if isinstance(item, dict) and "punctuate" in item:
                survey.left_out["punctuations"] = survey.left_out.get("punctuations", 0) + 1
                continue
            if (fault := _fault(item)) is not None:
                self._pass_over(survey, record, fault)
                continue
            symbol = composed(item["symbol"])
            if (self.symbols and symbol not in self.symbols) or not self._inside(item["event_time"]):
                continue
            source = self._source or f"replay.{item.get('source') or 'default'}"[:MAX_SOURCE]
            yield _Found(symbol, source, item["event_time"], item | {"source": source})

    def _inside(self, time: int) -> bool:
        return (self._span.first is None or time >= self._span.first) and (self._span.end is None or time < self._span.end)

    @staticmethod
    def _pass_over(survey: Survey, record: Any, reason: str) -> None:
        survey.bad_count += 1
        if len(survey.bad) < LISTED_BAD_ROWS:
            survey.bad.append(BadRow(f"partition {record.partition}, offset {record.offset}", reason))

    async def _consumer(self) -> Any:
        """A consumer at the beginning of all partitions, whose present ends it finds the first time."""
        places = list(self._ends) or await self._partitions()
        consumer = AIOKafkaConsumer(
            **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        try:
            await consumer.start()
            if not self._ends:
                self._ends = await end_offsets(consumer, places, embedded=await is_embedded(self._settings, timeout_s=CONNECT_S))
            consumer.assign(places)
            await consumer.seek_to_beginning(*places)
        except (KafkaError, OSError) as error:
            await consumer.stop()
            raise BrokerError(f"{self.name} cannot be read: {error}") from error
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _partitions(self) -> list[TopicPartition]:
        admin = await connect(self._settings, timeout_s=CONNECT_S)
        try:
            if self._topic not in await admin.list_topics():
                raise TopicError(f"there is no topic {self._topic} at {self._settings.broker}")
            (found,) = await admin.describe_topics([self._topic])
            return [TopicPartition(self._topic, number) for number in sorted(partition["partition"] for partition in found["partitions"])]
        finally:
            await admin.close()

    async def _records(self) -> AsyncIterator[list[Any]]:
        """All records in the order of Kafka's times, each partition in its own order."""
        consumer = await self._consumer()
        try:
            async for records in self._merged(consumer, list(self._ends)):
                yield records
        except (KafkaError, OSError) as error:
            raise BrokerError(f"{self.name} cannot be read: {error}") from error
        finally:
            await consumer.stop()

    async def _merged(self, consumer: Any, places: Collection[TopicPartition]) -> AsyncIterator[list[Any]]:
        merge: Merge[Any] = Merge(place.partition for place in places)
        unread = {place for place in places if self._ends[place] > 0}
        while True:
            for place in sorted(place for place in unread if merge.empty(place.partition)):
                for records in (await consumer.getmany(place, timeout_ms=POLL_MS, max_records=BATCH)).values():
                    merge.add(place.partition, (record for record in records if record.offset < self._ends[place]))
                if await consumer.position(place) >= self._ends[place]:
                    unread.discard(place)
            records = merge.take(BATCH, [place.partition for place in unread])
            if records:
                yield records
            elif not unread:
                return


def _fault(item: Any) -> str | None:
    if not isinstance(item, dict):
        return f"a {type(item).__name__} where a tick is expected"
    symbol, time = item.get("symbol"), item.get("event_time")
    if not isinstance(symbol, str) or symbol_fault(composed(symbol)):
        return "symbol is missing, or can be none"
    if type(time) is not int or not MIN_TIME <= time < MAX_TIME:
        return "event_time is missing, or no epoch milliseconds from 1990 on"
    return None


def _batch(ticks: list[_Found], shift_ms: int) -> Batch:
    return Batch([tick.symbol for tick in ticks], [tick.event_time + shift_ms for tick in ticks], [_value(tick.tick, shift_ms) for tick in ticks])


def _value(tick: dict[str, Any], shift_ms: int) -> bytes:
    if shift_ms:                                                 # at another time it is another tick: its number would make it a duplicate of the first
        tick = {name: value for name, value in tick.items() if name not in NUMBERING}
        tick |= {name: tick[name] + shift_ms for name in MOMENTS if type(tick.get(name)) is int}
    return _encode(tick)

"""A recording as a source: its ticks in order, at a multiple of real time or as fast as possible, once or for ever."""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from typing import Any

import msgspec
import numpy as np

from stockstream.errors import SourceError
from stockstream.sources.base import Batch, Clock, Health, SymbolInfo, SystemClock
from stockstream.sources.recordings.chunks import Chunk
from stockstream.sources.recordings.recording import Recording
from stockstream.sources.recordings.survey import Survey
from stockstream.transforms.cleaning.limits import MAX_SOURCE
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.timing import FUTURE_MS, WINDOW_S
from stockstream.wording import utc_time

SLICE_MS = 50
"""Paced ticks are sent in slices of this much wall time."""


class Pace:
    """Lets ticks pass when their time has come. `speed` is a multiple of real time, None for as fast as possible."""

    def __init__(self, speed: float | None, clock: Clock) -> None:
        self._speed, self._clock = speed, clock
        self._started = clock.now_ms()
        self._origin: int | None = None
        self._reached = 0

    async def slices(self, batch: Batch) -> AsyncIterator[Batch]:
        """The batch in slices, each when it is due. Times that go back are due at once."""
        if self._speed is None or not len(batch):
            yield batch
            return
        times = np.asarray(batch.event_times, dtype=np.int64)
        if self._origin is None:
            self._origin = self._reached = int(times[0])
        due = np.maximum(np.maximum.accumulate(times), self._reached) - self._origin
        self._reached = self._origin + int(due[-1])
        wall = np.ceil(due / self._speed / SLICE_MS).astype(np.int64) * SLICE_MS
        cuts = [0, *(np.flatnonzero(np.diff(wall)) + 1).tolist(), len(wall)]
        for start, stop in itertools.pairwise(cuts):
            while (early := self._started + int(wall[start]) - self._clock.now_ms()) > 0:
                await self._clock.sleep(early / 1000)
            yield Batch(batch.symbols[start:stop], batch.event_times[start:stop], batch.values[start:stop])


class ReplaySource:
    """A recording as a source. `speed` is a multiple of real time, None for as fast as possible; `shift_ms` is added to every time.

    With `loop` it begins again at its end, for ever, a second after its last time. Until `subscribe` is called, it yields all symbols.
    """

    continuous = False

    def __init__(
        self, recording: Recording, name: str, *, speed: float | None = None, shift_ms: int = 0, loop: bool = False, clock: Clock | None = None
    ) -> None:
        if not 1 <= len(name) <= MAX_SOURCE:
            raise SourceError(f"a source's name has 1 to {MAX_SOURCE} characters, {name[:20]!r}... has {len(name)}")
        self._recording = recording
        self._name = name
        self._speed = speed
        self._shift_ms = shift_ms
        self._loop = loop
        self._clock = clock or SystemClock()
        self._wanted: frozenset[str] | None = None

    @property
    def name(self) -> str:
        return self._name

    def subscribe(self, symbols: Collection[str]) -> None:
        """Replaces the symbols, from the next batch on."""
        self._wanted = frozenset(symbols)

    async def start(self) -> None:
        """Opens nothing: the file is read by the stream."""

    async def stop(self) -> None:
        """Closes nothing."""

    def health(self) -> Health:
        return Health()

    async def describe(self, symbols: Collection[str]) -> list[SymbolInfo]:
        """Names only: a recording has no other metadata."""
        return [SymbolInfo(symbol=symbol, source=self.name) for symbol in sorted(symbols)]

    def batches(self) -> Iterator[Batch]:
        """The recording's ticks as `stream` brings them, without pauses. Raises `SourceError`."""
        yield from self._batches(self._shift_ms)

    def _batches(self, shift_ms: int) -> Iterator[Batch]:
        for chunk in self._recording.chunks():
            if len(chunk):
                yield self._encode(chunk, shift_ms)

    async def stream(self) -> AsyncIterator[Batch]:
        """The recording's ticks in their order. Raises `SourceError`."""
        pace = Pace(self._speed, self._clock)
        shift_ms = self._shift_ms
        while True:
            for batch in self._batches(shift_ms):
                async for part in pace.slices(batch):
                    yield self._only_wanted(part)
            if not self._loop:
                return
            shift_ms += lap_ms(self._recording.survey(), self._recording.interval_s)

    def _only_wanted(self, batch: Batch) -> Batch:
        if self._wanted is None:
            return batch
        chosen = [tick for tick in batch if tick[0] in self._wanted]
        return Batch(*zip(*chosen, strict=True)) if chosen else Batch((), (), ())

    def _encode(self, chunk: Chunk, shift_ms: int) -> Batch:
        names = chunk.symbols.dictionary.to_pylist()
        codes = chunk.symbols.indices.to_pylist()
        prefixes = [f'{{"symbol":{_json(name)},"source":{_json(self.name)},"event_time":' for name in names]
        times = (chunk.times + shift_ms).tolist()
        prices = ["null" if price != price else repr(price) for price in chunk.price.tolist()]
        sizes = [str(int(size)) if size.is_integer() else repr(size) for size in chunk.size.tolist()]
        optional_parts = [[f',"{name}":{value!r}' if math.isfinite(value) else "" for value in column.tolist()] for name, column in chunk.quotes.items()]
        for name, column in chunk.texts.items():
            written = [f',"{name}":{_json(value)}' for value in column.dictionary.to_pylist()]
            optional_parts.append(["" if code is None else written[code] for code in column.indices.to_pylist()])
        if self._recording.interval_s > 1:
            optional_parts.append([f',"interval_s":{self._recording.interval_s}'] * len(times))
        suffixes = ["".join(of_row) for of_row in zip(*optional_parts, strict=True)] if optional_parts else [""] * len(times)
        values = [
            f'{prefixes[code]}{time},"price":{price},"size":{size}{suffix}}}'.encode()
            for code, time, price, size, suffix in zip(codes, times, prices, sizes, suffixes, strict=True)
        ]
        return Batch([names[code] for code in codes], times, values)


def lap_ms(survey: Survey, interval_s: int = 1) -> int:
    """By how much the times of a recording move when it begins again: its first tick then follows its last one by a second, or by a bar."""
    return (survey.last // 1000 - survey.first // 1000 + interval_s) * 1000


def source_name(recording: Recording, *, rebased: bool = False) -> str:
    """`replay.<file stem>` and the options that change the feed: the same for the same file and options, so that a second replay is recognised."""
    parts = [re.sub(r"[^A-Za-z0-9_-]+", "-", recording.stem)]
    parts += ["bars"] if recording.kind == "bars" else []
    parts += ["+".join(sorted(recording.symbols))] if recording.symbols else []
    parts += [f"from{recording.span.first // 1000}"] if recording.span.first is not None else []
    parts += [f"to{recording.span.end // 1000}"] if recording.span.end is not None else []
    parts += [f"first{recording.limit}"] if recording.limit is not None else []
    parts += ["rebased"] if rebased else []
    name = ".".join(["replay", *parts])
    return name if len(name) <= MAX_SOURCE else name[: MAX_SOURCE - 17] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]


def obstacle(survey: Survey, source: str, latest: Mapping[str, Mapping[str, Any]], partitions: int, *, shift_ms: int = 0) -> str | None:
    """Why a log would reject ticks of this source, given the last row of each symbol (`latest`); None if it would not.

    If the source's watermark has passed a tick's second, the tick would be rejected as `late`; within the last seconds it would count twice.
    """
    held: dict[int, int] = {}
    for symbol, row in latest.items():
        if row["source"] == source:
            partition = home_partition(symbol, partitions)
            held[partition] = max(held.get(partition, 0), int(row["second"]))
    firsts = {symbol: (first + shift_ms) // 1000 for symbol, first in survey.first_seen.items()}
    late = [symbol for symbol, first in firsts.items() if first <= held.get(home_partition(symbol, partitions), -1)]
    if late:
        reached = utc_time(max(held.values()) * 1000)
        return f"{source} has been replayed into this log before, up to {reached}: ticks of {_some(late)} would be rejected as late or count twice"
    other = [
        symbol for symbol, first in firsts.items()
        if symbol in latest and latest[symbol]["source"] != source and first <= int(latest[symbol]["second"]) + WINDOW_S
    ]  # fmt: skip
    if other:
        row = latest[min(other)]
        belongs = f"{min(other)} belongs to {row['source']}, whose last row is of {utc_time(int(row['second']) * 1000)}"
        return f"{belongs}: ticks of {_some(other)} would be rejected as other_source"
    return None


def refusal(survey: Survey, now_ms: int, *, rebased: bool = False) -> str | None:
    """Why `clean` would accept none of the ticks, published now (epoch ms) with their own times or `rebased` ones, and which option corrects it.

    None where it may accept some.
    """
    if survey.bad_values:
        return f"{survey.bad_values}; name the columns with --columns price=NAME,size=NAME"
    if rebased:
        return None
    if survey.bad_times:
        return f"{survey.bad_times}; name their unit with --unit, or the column with --columns event_time=NAME"
    if survey.first > now_ms + FUTURE_MS:
        first = utc_time(survey.first)
        return f"every event_time is in the future, the first is {first}: all ticks would be rejected as future; --rebase moves them to now"
    return None


def _some(symbols: Collection[str]) -> str:
    first = sorted(symbols)[:3]
    return ", ".join(first) + (f" and {len(symbols) - 3} more" if len(symbols) > 3 else "")


def _json(text: str) -> str:
    return msgspec.json.encode(text).decode()

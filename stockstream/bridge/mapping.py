"""Makes ticks for `ticks.raw` of a foreign topic's messages, and counts what they were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import msgspec
from msgspec import UNSET

from stockstream.errors import SourceError
from stockstream.records import Punctuation, Tick
from stockstream.transforms.cleaning.columns import Record
from stockstream.transforms.cleaning.decoding import UNREADABLE, decode_tick, salvage
from stockstream.transforms.cleaning.raw_format import RawFormat
from stockstream.transforms.cleaning.rejections import normalise, range_fault

EXAMPLES = 3
"""How many rejected messages are kept for each reason."""
SHOWN = 200
"""Characters of a rejected message in its example."""

_encode = msgspec.json.Encoder().encode
_FIELDS = tuple(name for name in Tick.__struct_fields__ if name not in ("symbol", "event_time", "price"))


class ForeignRecord(Record, Protocol):
    """A record of the foreign topic."""

    @property
    def partition(self) -> int: ...


class Mapped(NamedTuple):
    """A tick for `ticks.raw`: its symbol and its JSON."""

    symbol: str
    value: bytes


@dataclass(frozen=True, slots=True)
class Example:
    """A message that could not be used, or a part of one."""

    partition: int
    offset: int
    reason: str
    detail: str
    value: str


@dataclass(slots=True)
class Counts:
    """What the messages were: `ticks` are sent, `filtered` are ticks of symbols that were not asked for."""

    messages: int = 0
    ticks: int = 0
    filtered: int = 0
    ignored: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    examples: list[Example] = field(default_factory=list)
    first: int = 0
    """Event time of the first tick, epoch ms; 0 without one."""
    last: int = 0
    """The highest event time."""

    def add(self, more: Counts) -> None:
        """Adds what later messages were."""
        self.messages, self.ticks, self.filtered = self.messages + more.messages, self.ticks + more.ticks, self.filtered + more.filtered
        self.ignored.update(more.ignored)
        self.rejected.update(more.rejected)
        known = Counter(example.reason for example in self.examples)
        for example in more.examples:
            if known[example.reason] < EXAMPLES:
                known[example.reason] += 1
                self.examples.append(example)
        self.first, self.last = self.first or more.first, max(self.last, more.last)


class Mapper:
    """Maps messages of one format. Ticks of our own form pass as they are, and so do their symbols.

    Args:
        raw_format: of the foreign messages; None: there are only ticks of our own form.
        canonical: the symbol of the log for one of the format. Raises `SourceError`.
        symbols: those of the log that are wanted; empty: all.
        source: of all ticks; empty: the format's, or their own.
    """

    def __init__(self, raw_format: RawFormat | None, canonical: Callable[[str], str], *, symbols: Collection[str] = (), source: str = "") -> None:
        self._format, self._canonical = raw_format, canonical
        self._symbols, self._source = frozenset(symbols), source
        self._known: dict[str, str] = {}

    def read(self, record: ForeignRecord, counts: Counts) -> list[Mapped]:
        """The ticks of a record; what it was is added to `counts`."""
        counts.messages += 1
        foreign = False
        try:
            item: Any = decode_tick(record.value)  # type: ignore[arg-type]
        except (*UNREADABLE, TypeError):
            foreign = True
            item = salvage(record.value, self._format, lambda kind: counts.ignored.update((kind,)))
        if type(item) is Punctuation:
            counts.ignored["punctuation"] += 1                           # it is about the seconds of another log's partition
            return []
        if item is None:
            return []
        if type(item) is tuple:
            return self._reject(record, item, counts)
        out: list[Mapped] = []
        for one in [item] if type(item) is Tick else item:
            tick = one[1] if type(one) is tuple else one
            fault = tick if type(tick) is tuple else self._finish(tick, foreign=foreign)
            if fault is not None:
                self._reject(record, fault, counts)
            elif self._symbols and tick.symbol not in self._symbols:
                counts.filtered += 1
            else:
                counts.ticks += 1
                counts.first, counts.last = counts.first or tick.event_time, max(counts.last, tick.event_time)
                out.append(Mapped(tick.symbol, encoded(tick)))
        return out

    def _finish(self, tick: Tick, *, foreign: bool) -> tuple[str, str] | None:
        """Gives the tick its symbol and source; returns why `clean` would reject it whatever comes before it."""
        normalise(tick)
        if foreign:
            symbol = self._known.get(tick.symbol)
            if symbol is None:
                try:
                    symbol = self._known[tick.symbol] = self._canonical(tick.symbol)
                except SourceError as error:
                    return "invalid_symbol", str(error)
            tick.symbol = symbol
        if self._source:
            tick.source = self._source
        return range_fault(tick)

    def _reject(self, record: ForeignRecord, fault: tuple[str, str], counts: Counts) -> list[Mapped]:
        reason, detail = fault
        counts.rejected[reason] += 1
        if sum(example.reason == reason for example in counts.examples) < EXAMPLES:
            text = (record.value or b"").decode(errors="replace")
            counts.examples.append(Example(record.partition, record.offset, reason, detail, text if len(text) <= SHOWN else f"{text[:SHOWN]}..."))
        return []


def encoded(tick: Tick) -> bytes:
    """The tick as JSON, without fields that have no value."""
    fields = {"symbol": tick.symbol, "event_time": tick.event_time, "price": tick.price}
    for name in _FIELDS:
        value = getattr(tick, name)
        if value is not None and value is not UNSET and value is not False:
            fields[name] = value
    return _encode(fields)

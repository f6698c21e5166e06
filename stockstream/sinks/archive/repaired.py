"""Repaired bars in the archive: the one-minute bars of the topic `repairs`, each written once, beside those that are made of ticks.

An object holds the bars of consecutive records of one partition that belong to one UTC date. Its name consists of the Kafka time and the offset of its first
record. So from any state there is exactly one next object, whoever writes it, and a topic that was created again begins other names.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import pyarrow as pa

from stockstream.records import Repair
from stockstream.sinks.archive.compacted_object import read_compacted_object
from stockstream.sinks.archive.compactions import Compaction, compactions_of
from stockstream.sinks.archive.layout import DAY_MS, MINUTE_MS, REPAIRS, folder_of_day, parse_name
from stockstream.sinks.archive.processed import parquet, read_footer
from stockstream.sinks.archive.raw_objects import RawRecord, encode_json
from stockstream.sinks.archive.retention import processed_since
from stockstream.sinks.archive.schemas import STORED_BARS
from stockstream.sinks.stores import Store
from stockstream.transforms.cleaning.limits import MAX_PRICE, MAX_SIZE, MAX_SOURCE, MAX_TIME, MIN_PRICE, MIN_TIME, symbol_fault

MAX_BARS = 20_000
"""The most records of one object."""


class MadeOfRepairs(msgspec.Struct, frozen=True):
    """The footer of such an object, under `stockstream`: the offsets of `repairs` that it accounts for, and the lowest and highest Kafka time of them."""

    log: str
    partition: int
    first: int
    last: int
    rows: int
    since: int
    until: int
    version: int = 1


@dataclass(frozen=True, slots=True)
class Bar:
    """A record of `repairs`: its bar, and the place and Kafka time (epoch ms) of the record."""

    offset: int
    timestamp: int
    repair: Repair

    @property
    def day(self) -> int:
        """Days since 1970 in UTC."""
        return self.repair.minute // DAY_MS


_decode = msgspec.json.Decoder(Repair).decode
decode_made = msgspec.json.Decoder(MadeOfRepairs).decode


def bar_of(record: RawRecord) -> Bar | str:
    """The record's bar, or why it has none: anybody may write to the topic."""
    try:
        repair = _decode(record.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        return f"no bar: {error}"
    if (fault := symbol_fault(repair.symbol)) is not None:
        return f"symbol {repair.symbol[:40]!r}: {fault}"
    if not 0 < len(repair.source) <= MAX_SOURCE:
        return f"a source of {len(repair.source)} characters"
    if not MIN_TIME <= repair.minute < MAX_TIME or repair.minute % MINUTE_MS:
        return f"minute {repair.minute} is not the start of a minute in epoch ms"
    prices = (repair.open, repair.high, repair.low, repair.close)
    if not all(math.isfinite(price) and MIN_PRICE <= price <= MAX_PRICE for price in prices):
        return f"a price out of range: {prices}"
    if not repair.low <= min(repair.open, repair.close) <= max(repair.open, repair.close) <= repair.high:
        return f"low, open, close and high are not in order: {prices}"
    if not 0 <= repair.volume <= MAX_SIZE:
        return f"a volume out of range: {repair.volume}"
    return Bar(record.offset, record.timestamp, repair)


def next_object(bars: Sequence[Bar]) -> Sequence[Bar]:
    """Those of the bars, ascending by offset and not empty, that the next object holds: of the first one's date, at most MAX_BARS."""
    day = bars[0].day
    end = next((number for number, bar in enumerate(bars) if bar.day != day), len(bars))
    return bars[: min(end, MAX_BARS)]


def _prefix(bar: Bar) -> str:
    """How the names of all objects of the bar's date begin."""
    return f"processed/bars_1m/{folder_of_day(bar.day)}/{REPAIRS}"


def name_of(partition: int, first: Bar) -> str:
    """The name of the object that begins with this bar."""
    return f"{_prefix(first)}{first.timestamp:x}-{partition:05d}-{first.offset:020d}.parquet"


def repaired_object(partition: int, bars: Sequence[Bar]) -> bytes:
    """The object of these bars, which are those of `next_object`. The same bars give the same bytes on every worker."""
    log = f"{REPAIRS}{bars[0].timestamp:x}"
    rows = [
        {
            "symbol": repair.symbol, "source": repair.source, "minute": repair.minute,
            "open": repair.open, "high": repair.high, "low": repair.low, "close": repair.close, "volume": float(repair.volume), "ticks": 0,
            "first_second": repair.minute // 1000, "first_offset": bar.offset, "first_index": 0,
            "last_second": repair.minute // 1000, "last_offset": bar.offset, "last_index": 0,
            "partition": partition, "log": log, "record_offset": bar.offset, "gap": True, "repaired": True,
        }
        for bar in bars for repair in (bar.repair,)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=STORED_BARS).sort_by([("symbol", "ascending"), ("minute", "ascending"), ("first_offset", "ascending")])
    times = [bar.timestamp for bar in bars]
    return parquet(table, encode_json(MadeOfRepairs(log, partition, bars[0].offset, bars[-1].offset, len(rows), min(times), max(times))))


def read_repaired(store: Store, name: str) -> MadeOfRepairs:
    """Reads the footer. Raises `ArchiveError` if there is none, or if its number of rows is wrong."""
    return read_footer(store, name, decode_made, "an object of repaired bars")


def write(store: Store, partition: int, bars: Sequence[Bar]) -> int:
    """Writes the next object of these bars, unless it exists. Returns the last offset that it accounts for: of the existing one, whoever wrote it."""
    name = name_of(partition, bars[0])
    chosen = next_object(bars)
    if store.size(name) is not None:
        return read_repaired(store, name).last
    made = _compacted(store, bars[0].day).get(name)
    if made is None:
        if folder_of_day(bars[0].day) < f"date={processed_since(store)}":
            return chosen[-1].offset                                     # retention has ended the date
        if not store.create(name, repaired_object(partition, chosen)):
            return read_repaired(store, name).last
        made = _compacted(store, bars[0].day).get(name)                  # the name was free because a compaction had replaced and deleted it
    return made.last if made else chosen[-1].offset


def written_through(store: Store, partition: int, first: Bar) -> int | None:
    """The last offset of the object that holds this bar though it begins before it: retention may have deleted its beginning. None if there is none."""
    found = [(name, None) for name in store.list(_prefix(first))]
    compacted = _compacted(store, first.day)
    for name, made in [*found, *compacted.items()]:
        parsed = parse_name(name)
        if parsed is None or parsed.partition != partition or parsed.first > first.offset:
            continue
        made = made or read_repaired(store, name)
        if made.last >= first.offset and made.since <= first.timestamp <= made.until:
            return made.last
    return None


def _compacted(store: Store, day: int) -> dict[str, MadeOfRepairs]:
    """The footers of the objects of repaired bars that compactions of this day replaced, by name."""
    found: dict[str, MadeOfRepairs] = {}
    for compaction in compactions_of(store, "bars_1m", folder_of_day(day)):
        found |= _replaced(store, compaction)  # type: ignore[arg-type]  # a protocol does not show that a store is hashable, by its identity
    return found


@functools.lru_cache(maxsize=512)
def _replaced(store: Store, compaction: Compaction) -> dict[str, MadeOfRepairs]:
    """Read once for each compaction, which does not change: a writer that starts asks for each of its objects."""
    sources = read_compacted_object(store, compaction.data).list_sources()
    return {source.name: decode_made(source.footer) for source in sources if source.name.rpartition("/")[2].startswith(REPAIRS)}

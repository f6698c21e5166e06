"""Small archives for tests, made of a log of `ticks.raw` by the very functions of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count

import pyarrow as pa

from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.layout import HOUR_MS
from stockstream.sinks.archive.processed import processed_objects
from stockstream.sinks.archive.raw_objects import CleanSettings, encode, read_extent
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import Store
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.timing import Lateness
from tests.logs import day_records, generated_day

SETTINGS = CleanSettings("200", 30, 1)
LOG = "018bcfe5687-0a1b2c3d"


@dataclass(frozen=True)
class Record:
    """As Kafka has it."""

    offset: int
    timestamp: int
    value: bytes | None
    key: bytes | None = None


@dataclass
class Archived:
    """An archive that was made: the names of its raw objects, in the order of their offsets."""

    store: Store
    raw: list[str] = field(default_factory=list)


def archive(
    store: Store, records: Sequence[RawRecord], *, partition: int = 0, length: int = 1_000, log: str = LOG, settings: CleanSettings | None = SETTINGS,
    process: int | None = None,
) -> Archived:  # fmt: skip
    """Archives the records, at most `length` in an object, and what `clean` accepts of them; only of the first `process` objects if it is given."""
    chain = Chain(store, log, partition, settings)
    chain.open()
    of = settings or SETTINGS
    cleaner = Cleaner(partition, of.partitions, lateness_ms=Lateness.parse(of.lateness_ms), revise_s=of.revise_s, log=log)
    made = Archived(store)
    records = list(records)
    for number in count():
        if not records:
            return made
        hour = records[0].timestamp // HOUR_MS
        end = next((i for i, record in enumerate(records) if i >= length or record.timestamp // HOUR_MS > hour), len(records))
        some, records = records[:end], records[end:]
        pieces = encode(partition, [Record(*record) for record in some], chain.end + 1)
        chain.append(pieces)
        made.raw.append(chain.newest)
        cleaner.chunk(some)
        frame = cleaner.make_frame()
        if process is None or number < process:
            rows = pa.Table.from_batches([frame.rows] if frame else [], TICKS_SCHEMA)
            for name, data in processed_objects(read_extent(store, chain.newest), chain.newest, rows):
                store.create(name, data)
    return made


def day(seconds: int = 4_000, symbols: int = 3) -> list[RawRecord]:
    """A generated day's records, from 2023-11-14 22:13:20 UTC on."""
    return day_records(generated_day(seconds=seconds, symbols=symbols), "feed")


def copied(store: MemoryStore) -> MemoryStore:
    """A store with the same objects, which can be changed."""
    other = MemoryStore()
    other.objects, other.written = dict(store.objects), dict(store.written)
    return other

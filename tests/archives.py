"""Small archives for tests, made of a log of `ticks.raw` by the very functions of a worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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
    """A record as Kafka has it: offset, Kafka's time (epoch ms), value, key."""

    offset: int
    timestamp: int
    value: bytes | None
    key: bytes | None = None


def append(chain: Chain, records: Sequence[Record], ticks: pa.Table | None = None) -> None:
    """Appends a raw object of these records, and writes its processed objects if its ticks are given."""
    chain.append(encode(chain.partition, records, chain.end + 1))
    if ticks is None:
        return
    for name, data in processed_objects(read_extent(chain.store, chain.newest), chain.newest, ticks):
        chain.store.create(name, data)


def archive(
    store: Store, records: Sequence[RawRecord], *, partition: int = 0, length: int = 1_000, log: str = LOG, settings: CleanSettings | None = SETTINGS,
    process: int | None = None,
) -> list[str]:  # fmt: skip
    """Archives the records, at most `length` in an object, and what `clean` accepts of them; only of the first `process` objects if it is given.

    Returns the names of the raw objects in the order of their offsets.
    """
    chain = Chain(store, log, partition, settings)
    chain.open()
    of = settings or SETTINGS
    cleaner = Cleaner(partition, of.partitions, lateness_ms=Lateness.parse(of.lateness_ms), revise_s=of.revise_s, log=log)
    raw: list[str] = []
    records = list(records)
    while records:
        hour = records[0].timestamp // HOUR_MS
        end = next((i for i, record in enumerate(records) if i >= length or record.timestamp // HOUR_MS > hour), len(records))
        some, records = records[:end], records[end:]
        cleaner.chunk(some)
        frame = cleaner.make_frame()
        ticks = pa.Table.from_batches([frame.rows] if frame else [], TICKS_SCHEMA)
        append(chain, [Record(*record) for record in some], ticks if process is None or len(raw) < process else None)
        raw.append(chain.newest)
    return raw


def day(seconds: int = 4_000, symbols: int = 3) -> list[RawRecord]:
    """A generated day's records, from 2023-11-14 22:13:20 UTC on."""
    return day_records(generated_day(seconds=seconds, symbols=symbols), "feed")


def copied(store: MemoryStore) -> MemoryStore:
    """A store with the same objects, which can be changed."""
    other = MemoryStore()
    other.objects, other.written = dict(store.objects), dict(store.written)
    return other

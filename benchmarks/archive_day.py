"""An archive of one trading day, made from a seed by the code of a worker: the verdicts of `clean`, the chain of raw objects, and the processed objects.

The day has the hours of New York's exchanges on 2023-10-10, which are not equally busy. Some symbols trade a hundred times as often as others. Prices walk in
cents, and sizes are round and odd lots. One symbol is halted for 20 minutes, and the feed is away for a minute. Objects end every 30 s, as they do in a worker.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.load import PARTITIONS
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.processed import processed_objects
from stockstream.sinks.archive.raw_objects import CleanSettings, encode, read_extent
from stockstream.sinks.stores import FileStore
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.timing import LATENESS_MS, REVISE_S

LOG = "018b16f2a00-0a1b2c3d"
SOURCE = "bench"
EXCHANGES = ("XNAS", "XNYS", "ARCX", "BATS", "EDGX", "IEXG", "TRF")
DATE = datetime(2023, 10, 10, tzinfo=UTC)
BEGIN_S, END_S = 13 * 3_600 + 1_800, 20 * 3_600
"""Seconds of the day (UTC)."""
SHARES = {13: 0.115, 14: 0.155, 15: 0.145, 16: 0.14, 17: 0.135, 18: 0.145, 19: 0.165}
"""Of the day's ticks, by hour. Of 20 million, those of hour 15 are 2.9 million."""
AWAY_S = (16 * 3_600 + 600, 16 * 3_600 + 660)
"""The feed brings nothing."""
HALTED, HALTED_S = 40, (17 * 3_600, 17 * 3_600 + 1_200)
"""The number of a symbol, and when it does not trade."""
SMALL = 200_000

Ints = NDArray[np.int64]


class Record(NamedTuple):
    """A record as Kafka has it: offset, Kafka's time (epoch ms), value, key."""

    offset: int
    timestamp: int
    value: bytes
    key: bytes


class _Unsynced(FileStore):
    """A folder with one writer, which does not wait for the disk: three calls of fsync for each of 19,000 objects take longer than all the rest."""

    def create(self, name: str, data: bytes) -> bool:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return True


@dataclass(frozen=True, slots=True)
class Day:
    """So many ticks of so many symbols; those with the lowest numbers trade the most. An object ends after `flush_s`, which divides a minute or an hour."""

    ticks: int
    symbols: int
    flush_s: int = 30
    seed: int = 1

    @property
    def names(self) -> list[str]:
        return ["AAPL", "MSFT", *(f"S{number:05d}" for number in range(2, self.symbols))][: self.symbols]

    def activity(self) -> NDArray[np.float64]:
        """The share of each symbol in the ticks."""
        weights = 1 / (np.arange(self.symbols) + 20)
        return np.asarray(weights / weights.sum())


class Slot(NamedTuple):
    """The ticks of one object, in the order of their arrival: numbers of the symbols, event time and Kafka's time (epoch ms), price in cents,
    size, number of the exchange."""

    symbol: Ints
    event_time: Ints
    timestamp: Ints
    cents: Ints
    size: Ints
    exchange: Ints


def slots(day: Day, partition: int) -> Iterator[Slot]:
    """The ticks of one partition."""
    homes = np.array([home_partition(name, PARTITIONS) for name in day.names])
    mine = np.flatnonzero(homes == partition)
    if not len(mine):
        return
    rng = np.random.default_rng([day.seed, partition])
    activity = day.activity()[mine]
    ends = (np.bincount(homes, day.activity(), PARTITIONS).cumsum() * day.ticks).round()
    ticks = np.diff(ends, prepend=0)[partition]
    cents = rng.integers(2_000, 40_000, len(mine))
    midnight = int(DATE.timestamp())
    begins = [second for second in range(BEGIN_S, END_S, day.flush_s) if not AWAY_S[0] <= second < AWAY_S[1]]
    per_hour = {hour: sum(second // 3_600 == hour for second in begins) for hour in SHARES}
    through = np.cumsum([ticks * SHARES[second // 3_600] / per_hour[second // 3_600] for second in begins]).round().astype(int)
    chances = np.cumsum(activity / activity.sum())
    for second, count in zip(begins, np.diff(through, prepend=0).tolist(), strict=True):
        begin, end = (midnight + second) * 1_000, (midnight + second + day.flush_s) * 1_000
        event_time = np.sort(rng.integers(begin, end - 200, count))
        arrival = np.minimum(event_time + 2 + rng.exponential(8, count).astype(int), end - 1)
        order = arrival.argsort(kind="stable")
        which = np.minimum(np.searchsorted(chances, rng.random(count)), len(mine) - 1)
        if HALTED_S[0] <= second < HALTED_S[1]:
            which[mine[which] == HALTED] = 0
        steps = rng.integers(-2, 3, count)
        by_symbol = which.argsort(kind="stable")
        walked = np.cumsum(steps[by_symbol])
        first = np.searchsorted(which[by_symbol], np.arange(len(mine)))
        before = np.concatenate([[0], walked])[first]
        price = np.empty(count, np.int64)
        price[by_symbol] = np.maximum(walked + (cents - before)[which[by_symbol]], 100)
        np.put(cents, which[by_symbol], price[by_symbol])                       # of several the last stays
        size = np.where(rng.random(count) < 0.45, 100 * rng.geometric(0.6, count), rng.integers(1, 100, count))
        exchange = rng.choice(len(EXCHANGES), count, p=[0.3, 0.15, 0.12, 0.12, 0.08, 0.03, 0.2])
        yield Slot(*(column[order] for column in (mine[which], event_time, arrival, price, size, exchange)))


def value_of(symbol: str, event_time: int, cents: int, size: int, exchange: str) -> bytes:
    """A tick as a producer writes it."""
    return f'{{"symbol":"{symbol}","event_time":{event_time},"price":{cents / 100},"size":{size},"source":"{SOURCE}","exchange":"{exchange}"}}'.encode()


def write_partition(root: Path, day: Day, partition: int) -> int:
    """Writes the raw and the processed objects of one partition; returns the number of ticks, all of which are accepted."""
    chain = Chain(_Unsynced(root), LOG, partition, CleanSettings(str(LATENESS_MS), REVISE_S, PARTITIONS))
    chain.open()
    cleaner = Cleaner(partition, PARTITIONS, lateness_ms=LATENESS_MS, revise_s=REVISE_S, log=LOG)
    names, keys = day.names, [name.encode() for name in day.names]
    for slot in slots(day, partition):
        columns = zip(*(column.tolist() for column in slot), strict=True)
        records = [
            Record(offset, timestamp, value_of(names[symbol], event_time, cents, size, EXCHANGES[exchange]), keys[symbol])
            for offset, (symbol, event_time, timestamp, cents, size, exchange) in enumerate(columns, chain.end + 1)
        ]
        if not records:
            continue
        cleaner.chunk(records)
        frame = cleaner.make_frame()
        chain.append(encode(partition, records, chain.end + 1))
        ticks = pa.Table.from_batches([frame.rows] if frame else [], TICKS_SCHEMA)
        for name, data in processed_objects(read_extent(chain.store, chain.newest), chain.newest, ticks):
            chain.store.create(name, data)
    return cleaner.accepted


def workers(day: Day) -> Executor:
    """Where the archive is made: a process for each core, but for a small day a thread, which starts faster."""
    return ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) if day.ticks > SMALL else ThreadPoolExecutor(1)


def write_archive(pool: Executor, root: Path, day: Day) -> int:
    """Writes the archive; returns the number of ticks."""
    return sum(pool.map(write_partition, *zip(*((root, day, partition) for partition in range(PARTITIONS)), strict=True)))

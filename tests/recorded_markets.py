"""Small archives of a simulated market, written by the code of the archive, beside what the pipeline computes from the same log."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from models import ScoringModel
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.layout import folder_of_hour
from stockstream.sinks.archive.processed import of_schema, parquet
from stockstream.sinks.archive.raw_objects import CleanSettings
from stockstream.sinks.archive.schemas import STORED_WINDOWS
from stockstream.sinks.stores import FileStore, Store
from stockstream.sources.simulated import SimulatedMarket
from stockstream.transforms import batch
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.frames import Frame
from stockstream.transforms.partitioning import home_partition
from tests.archives import archive

BEGIN_S = 1_760_000_000 // 3_600 * 3_600 + 3_600 - 240
"""2025-10-09 08:56 UTC: an hour ends four minutes later."""
SYMBOLS = ("AAPL", "MSFT", "NVDA", "TSLA", "KO", "XOM")
LOG = "0199c3d2a10-0a1b2c3d"
LATE_S = 3
"""Every 49th tick arrives so much later than the others of its second."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """An archive in `root`, and by partition what the pipeline gives for its log."""

    root: Path
    results: dict[int, batch.Results]

    def windows(self) -> pa.Table:
        """All rows of `windows`, revisions included."""
        return pa.concat_tables([results.rows() for results in self.results.values()])

    def clean(self) -> pa.Table:
        """All accepted ticks."""
        return pa.concat_tables([clean_rows(results) for results in self.results.values()])


def market(seconds: int, *, symbols: Sequence[str] = SYMBOLS, partitions: int = 2, begin_s: int = BEGIN_S) -> dict[int, list[RawRecord]]:
    """The records of a market's ticks by partition, some of them late; the last ones close every second."""
    simulated = SimulatedMarket(7, symbols)
    sent: list[tuple[int, int, str, bytes]] = []
    for second in range(begin_s, begin_s + seconds):
        ticks = simulated.ticks(second)
        for symbol, time, value in zip(ticks.symbols, ticks.event_times, ticks.values, strict=True):
            arrives = time + 20 + (1000 * LATE_S if len(sent) % 49 == 48 else 0)
            sent.append((arrives, len(sent), symbol, value.replace(b',"seq":%d' % second, b"")))       # a late one would be a duplicate by it
    records: dict[int, list[RawRecord]] = {number: [] for number in range(partitions)}
    for arrives, _, symbol, value in sorted(sent):
        log = records[home_partition(symbol, partitions)]
        log.append(RawRecord(len(log), arrives, value))
    for log in records.values():
        end = b'{"punctuate":%d,"source":"%s"}' % (begin_s + seconds - 1, simulated.name.encode())
        log.append(RawRecord(len(log), (begin_s + seconds + 1) * 1000, end))
    return records


def record(root: Path, seconds: int = 960, *, model: ScoringModel | None = None, records_at_once: int = 700, partitions: int = 2) -> Recorded:
    """Writes the archive of a market, `records_at_once` in each object, as the worker of each partition would."""
    root.mkdir(parents=True, exist_ok=True)
    results = {}
    for partition, records in market(seconds, partitions=partitions).items():
        found = results[partition] = batch.run(records, partition=partition, partitions=partitions, log=LOG, model=model)
        archive(FileStore(root), records, partition=partition, length=records_at_once, log=LOG, settings=CleanSettings("200", 30, partitions))
        write_windows(FileStore(root), partition, found.windows)
    return Recorded(root, results)


def clean_rows(results: batch.Results) -> pa.Table:
    return pa.Table.from_batches([frame.rows for frame in results.clean], schema=TICKS_SCHEMA)


def write_windows(store: Store, partition: int, frames: Sequence[Frame]) -> None:
    """Objects of `windows`, one for each hour, whose records are these frames."""
    tables = []
    for number, frame in enumerate(frames):
        rows = pa.Table.from_batches([frame.rows]).drop_columns(["partition"])
        place = {"partition": pa.scalar(partition, pa.int32()), "log": pa.scalar("windows.0000"), "record_offset": pa.scalar(number, pa.int64())}
        for name, value in place.items():
            rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
        tables.append(rows.append_column("time", pa.array(rows.column("second").to_numpy() * 1000, pa.timestamp("ms"))))
    rows = pa.concat_tables(tables)
    hours = rows.column("second").to_numpy() // 3_600
    for hour in sorted(set(hours.tolist())):
        some = of_schema(rows.filter(pa.array(hours == hour)), STORED_WINDOWS).sort_by([("symbol", "ascending"), ("second", "ascending")])
        name = f"processed/windows/{folder_of_hour(hour)}/windows.0000-{partition:05d}-{hour:020d}.parquet"
        store.create(name, parquet(some, b"{}"))

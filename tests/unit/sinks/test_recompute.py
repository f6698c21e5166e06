"""Processed rows computed again from raw: what differs is found with its object, and what cannot be compared is counted with the reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from stockstream.settings import Settings
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.clean_settings import KnownSettings
from stockstream.sinks.archive.compacting import compact
from stockstream.sinks.archive.processed import parquet, processed_objects
from stockstream.sinks.archive.raw_objects import Piece, after, encode, read_extent
from stockstream.sinks.archive.verifying.report import Report
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.transforms.batch import RawRecord, run
from tests.archives import LOG, SETTINGS, Record, archive, copied, day


@pytest.fixture(scope="module")
def records() -> list[RawRecord]:
    return day(seconds=1_500, symbols=3)


@pytest.fixture(scope="module")
def whole(records: list[RawRecord]) -> MemoryStore:
    store = MemoryStore()
    archive(store, records, length=500)
    return store


def checked(store: MemoryStore, **settings: object) -> Report:
    return check(store, known=KnownSettings(Settings(**settings)))  # type: ignore[arg-type]


def rewritten(store: MemoryStore, name: str, change: Callable[[pa.Table], pa.Table]) -> MemoryStore:
    """The store with other rows in an object, which is whole otherwise: its checksum is right."""
    other = copied(store)
    table = pq.read_table(pa.BufferReader(store.objects[name]))
    footer = table.schema.metadata[b"stockstream"]
    other.objects[name] = parquet(change(table).replace_schema_metadata(None), footer)
    return other


def test_every_row_of_a_whole_archive_is_compared(whole: MemoryStore, records: list[RawRecord]) -> None:
    report = checked(whole)
    accepted = sum(frame.rows.num_rows for frame in run(records, partition=0, partitions=1).clean)
    assert not report.faults and report.chains[0].compared == report.chains[0].ticks == accepted > 1_000
    assert report.chains[0].not_compared == 0
    assert check(whole).chains[0].compared == 0


@pytest.mark.parametrize(("area", "column", "by"), [("ticks", "price", 0.01), ("ticks", "size", 1.0), ("bars_1m", "volume", 1.0), ("bars_1m", "high", 0.01)])
def test_a_changed_value_is_found_though_all_checksums_are_right(whole: MemoryStore, area: str, column: str, by: float) -> None:
    name = sorted(one for one in whole.objects if one.startswith(f"processed/{area}/"))[-1]

    def change(table: pa.Table) -> pa.Table:
        at = table.column_names.index(column)
        values = table.column(column).to_pylist()
        row = next(number for number in range(len(values) - 1, -1, -1) if values[number] is not None)
        values[row] += by
        return table.set_column(at, table.schema.field(column), pa.array(values, table.schema.field(column).type))

    changed = rewritten(whole, name, change)
    assert not check(changed).faults, "only raw shows it"
    (fault,) = checked(changed).faults
    assert fault.startswith(f"{name}: {column} of the row symbol G") and "and raw gives" in fault


def test_an_exchanged_row_is_found(whole: MemoryStore) -> None:
    name = sorted(one for one in whole.objects if one.startswith("processed/ticks/"))[-1]
    changed = rewritten(whole, name, lambda table: pa.concat_tables([table.slice(1), table.slice(1, 1)]))
    assert not check(changed).faults and name in checked(changed).faults[0]


def test_compacted_rows_are_compared_too(whole: MemoryStore) -> None:
    store = copied(whole)
    assert list(compact(store, None))
    names = [name for name in store.objects if "compacted-" in name]
    assert names and not any("processed/ticks/" in name and LOG in name for name in store.objects)
    report = checked(store)
    assert not report.faults and report.chains[0].compared == report.chains[0].ticks > 1_000
    for name in names:
        column = "price" if "/ticks/" in name else "high"

        def change(table: pa.Table, column: str = column) -> pa.Table:
            return table.set_column(table.column_names.index(column), table.schema.field(column), pc.add(table.column(column), 0.5))

        changed = rewritten(store, name, change)
        assert not check(changed).faults
        assert any(f"(in {name})" in fault for fault in checked(changed).faults)


def test_the_settings_of_the_raw_objects_count(records: list[RawRecord]) -> None:
    store = MemoryStore()
    archive(store, records, length=500, settings=msgspec.structs.replace(SETTINGS, lateness_ms="5000"))
    assert not checked(store, lateness_ms="0").faults
    foreign = MemoryStore()
    archive(foreign, records[:900], settings=msgspec.structs.replace(SETTINGS, raw_format="polygon=1"))
    (chain,) = checked(foreign).chains
    assert chain.compared == 0 and chain.not_compared == 900 and "STOCKSTREAM_RAW_FORMAT means polygon=1" in chain.reason


def test_after_lost_offsets_a_difference_proves_nothing(records: list[RawRecord]) -> None:
    """The archive begins with offset 500, which clean had read; its ticks are judged by what it knew."""
    store = MemoryStore()
    chain = Chain(store, LOG, 0, SETTINGS)
    clean = run(records, partition=0, partitions=1)
    rows = pa.Table.from_batches([frame.rows for frame in clean.clean])
    pieces: list[Piece] = [replace(piece, start=0, expired=True) for piece in encode(0, [Record(*record) for record in records[500:1_000]])]
    while chain.end < 999:
        chain.append([piece for piece in (after(piece, chain.end) for piece in pieces) if piece])
    offsets = rows.column("offset").to_numpy()
    mine = rows.filter(pa.array((offsets >= 500) & (offsets < 1_000)))
    odd = mine.set_column(mine.column_names.index("price"), mine.schema.field("price"), pc.add(mine.column("price"), 1.0))
    for name, data in processed_objects(read_extent(store, chain.newest), chain.newest, odd):
        store.create(name, data)
    report = checked(store)
    assert not report.faults and report.chains[0].compared == 0 and report.chains[0].not_compared == 500
    assert "lost before they were archived" in report.chains[0].reason

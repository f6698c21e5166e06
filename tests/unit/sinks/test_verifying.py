"""What a verification finds: every object of a small archive is damaged in every way, and named."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.compacted_object import decode_footer
from stockstream.sinks.archive.compacting import compact
from stockstream.sinks.archive.compactions import list_compactions
from stockstream.sinks.archive.layout import processed_name
from stockstream.sinks.archive.processed import parquet, unprocessed
from stockstream.sinks.archive.raw_objects import CleanSettings, encode_json
from stockstream.sinks.archive.verifying.compacted_objects import CompactedObjects
from stockstream.sinks.archive.verifying.listing import list_objects
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, open_store
from tests.archives import LOG, archive, copied, day
from tests.standins.s3 import s3_server


@pytest.fixture(scope="module")
def whole() -> MemoryStore:
    """Two hours of two partitions, in several objects."""
    store = MemoryStore()
    records = day(seconds=3_000, symbols=3)
    archive(store, records, length=800)
    archive(store, records[:900], partition=1, length=800, settings=CleanSettings("200", 30, 2))
    report = check(store)
    assert not report.faults and [chain.records for chain in report.chains] == [len(records), 900] and not any(chain.unprocessed for chain in report.chains)
    assert {name.split("/")[0] for name in store.objects} == {"raw", "processed", "chains"}
    return store


def names(store: MemoryStore, kind: str) -> list[str]:
    return sorted(name for name in store.objects if name.startswith(kind))


KINDS = ("raw/", "processed/ticks/", "processed/bars_1m/", "chains/")


@pytest.fixture(scope="module")
def tiny() -> MemoryStore:
    """One object of each kind."""
    store = MemoryStore()
    archive(store, day(seconds=1_000, symbols=4)[:40])
    assert not check(store).faults and len(store.objects) == 4
    return store


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_wherever_it_is(tiny: MemoryStore, kind: str) -> None:
    [name] = names(tiny, kind)
    data = tiny.objects[name]
    rng = random.Random(7)
    for place in range(0, len(data), 1 if len(data) < 2_000 else 3):
        tiny.objects[name] = data[:place] + bytes([data[place] ^ (1 << rng.randrange(8))]) + data[place + 1 :]
        assert any(name in fault for fault in check(tiny).faults), place
    tiny.objects[name] = data
    assert not check(tiny).faults


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_found_in_every_object(whole: MemoryStore, kind: str) -> None:
    rng = random.Random(7)
    for name in names(whole, kind):
        changed = copied(whole)
        place = rng.randrange(len(whole.objects[name]))
        changed.objects[name] = bytes(byte ^ (16 if at == place else 0) for at, byte in enumerate(whole.objects[name]))
        assert any(name in fault for fault in check(changed).faults), (name, place)


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_object_is_found(whole: MemoryStore, kind: str) -> None:
    for name in names(whole, kind):
        changed = copied(whole)
        del changed.objects[name]
        report = check(changed)
        newest = name in (processed_name(max(names(whole, "raw/"), key=lambda one: (one[-35:-31] == part, one[-30:]))) for part in ("0000", "0001"))
        if kind == "processed/ticks/" and not report.faults:
            assert sum(chain.unprocessed for chain in report.chains) > 0, "what a worker would process is no fault, and is counted"
            assert newest or name.endswith(".parquet")
            continue
        assert report.faults, name
        if kind != "raw/":
            assert any(name in fault for fault in report.faults), (name, report.faults)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.slow
def test_a_duplicated_object_is_found(whole: MemoryStore, kind: str) -> None:
    for name in names(whole, kind):
        for other in others(name):
            if other in whole.objects:
                continue
            changed = copied(whole)
            changed.objects[other] = whole.objects[name]
            assert any(other in fault for fault in check(changed).faults), (name, other)


def others(name: str) -> Iterator[str]:
    """Names that a copy may have: beside it, at another offset, of another partition, of another log, in another folder."""
    stem, dot, suffix = name.partition(".")
    yield f"{stem}-copy{dot}{suffix}"
    yield f"{stem[:-1]}{(int(stem[-1]) + 1) % 10}{dot}{suffix}"
    yield f"{stem[:-20]}{9_999_999:020d}{dot}{suffix}"
    yield name.replace("-00000", "-00007", 1)
    yield name.replace("0a1b2c3d", "0a1b2c3e", 1)
    yield name.replace("date=2023-11-14", "date=2023-11-13", 1)
    yield name.replace("hour=22", "hour=21", 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_object_is_found(whole: MemoryStore, kind: str) -> None:
    for name in names(whole, kind):
        for share in (0, 0.5, 0.99):
            changed = copied(whole)
            changed.objects[name] = whole.objects[name][: int(share * len(whole.objects[name]))]
            assert any(name in fault for fault in check(changed).faults), name


@pytest.mark.slow
def test_in_a_folder_and_in_a_bucket(whole: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server(monkeypatch):
        for store in (FileStore(tmp_path), open_store("s3://bucket/archive")):
            for name, data in whole.objects.items():
                store.create(name, data)
            assert not check(store).faults
            for kind in KINDS:
                name = names(whole, kind)[0]
                data = whole.objects[name]
                for changed in (None, data[:-1], data[:40] + bytes([data[40] ^ 4]) + data[41:]):
                    store.delete(name)
                    if changed is not None:
                        store.create(name, changed)
                    assert check(store).faults, (name, changed and len(changed))
                store.delete(name)
                store.create(name, data)
                copy = list(others(name))[1]
                store.create(copy, data)
                assert any(copy in fault for fault in check(store).faults)
                store.delete(copy)
            assert not check(store).faults


@pytest.fixture(scope="module")
def compacted(whole: MemoryStore) -> MemoryStore:
    """The same archive after its compaction, and some objects that were not deleted."""
    store = copied(whole)
    assert not [fault for result in compact(store, None) for fault in result.faults]
    before, after = check(whole), check(store)
    assert not after.faults and after.chains == before.chains
    assert len(names(store, "compactions/")) == len([name for name in names(store, "processed/") if "compacted-" in name]) == 2
    for name in names(whole, "processed/")[::5]:
        store.objects[name] = whole.objects[name]
    assert not (report := check(store)).faults and report.chains == before.chains
    return store


def test_what_is_wrong_with_a_compaction_is_found(compacted: MemoryStore) -> None:
    for kind in ("processed/", "compactions/"):
        for name in [name for name in names(compacted, kind) if "compacted-" in name or kind == "compactions/"]:
            data = compacted.objects[name]
            for changed in (data[:-1], data[: len(data) // 2], data[:20] + bytes([data[20] ^ 4]) + data[21:], b""):
                store = copied(compacted)
                store.objects[name] = changed
                assert any(name in fault for fault in check(store).faults), name
    for name in names(compacted, "processed/"):
        if "compacted-" in name:
            store = copied(compacted)
            del store.objects[name]
            assert any(f"{name} is missing, though" in fault for fault in check(store).faults)
            store = copied(compacted)
            copy = name.replace("00000", "00001")
            store.objects[copy] = compacted.objects[name]
            assert any(f"{copy}: its footer names compaction 0" in fault for fault in check(store).faults), "found, though it does not count"
            manifest = next(found.manifest for found in list_compactions(compacted) if found.data == name)
            store.objects[manifest.replace("00000", "00001")] = compacted.objects[manifest]
            assert any(f"{copy}: its footer names compaction 0" in fault for fault in check(store).faults)


def test_a_row_too_few_or_too_many_in_a_compacted_object_is_found(compacted: MemoryStore) -> None:
    [name, *_] = [name for name in names(compacted, "processed/ticks/") if "compacted-" in name]
    table = pq.read_table(pa.BufferReader(compacted.objects[name]))
    metadata = table.schema.metadata
    for rows in (table.slice(1), pa.concat_tables([table, table.slice(0, 1)])):
        footer = msgspec.structs.replace(decode_footer(metadata[b"stockstream"]), rows=rows.num_rows)
        store = copied(compacted)
        store.objects[name] = parquet(rows, encode_json(footer))
        assert any(fault.startswith(f"{name}: it has ") for fault in check(store).faults)


def test_objects_that_a_compaction_deletes_during_the_verification(whole: MemoryStore) -> None:
    store = copied(whole)
    faults: list[str] = []
    listed = list_objects(store)
    list(compact(store, None))
    seen = CompactedObjects(store, faults)
    assert listed.compactions == [] and all(seen.replaced(name) for name, _ in listed.small if name not in store.objects) and not faults
    assert seen.replaced("processed/ticks/date=2023-11-14/hour=22/other-00000-00000000000000000000.parquet") is None


def test_a_worker_that_starts_takes_compacted_objects_as_processed(compacted: MemoryStore) -> None:
    for partition in (0, 1):
        chain = Chain(compacted, LOG, partition)
        chain.open()
        assert unprocessed(chain) == []

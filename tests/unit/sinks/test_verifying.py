"""What a verification finds: every object of a small archive is damaged in every way, and named."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream.sinks.archive.layout import processed_name
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, open_store
from tests.archives import archive, copied, day
from tests.standins.s3 import s3_server


@pytest.fixture(scope="module")
def whole() -> MemoryStore:
    """Two hours of two partitions, in several objects."""
    store = MemoryStore()
    records = day(seconds=3_000, symbols=3)
    archive(store, records, length=800)
    archive(store, records[:900], partition=1, length=800)
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

"""Every kind of object of an archive is changed, cut, copied and deleted, on each kind of store: a verification names it, or counts what is not provable."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stockstream.sinks.archive.compacting import compact
from stockstream.sinks.archive.layout import REPAIRS
from stockstream.sinks.archive.topics.packing import pack_positions
from stockstream.sinks.archive.topics.positions import PACKED
from stockstream.sinks.archive.verifying.report import Report
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, Store, open_store
from tests.archives import archive, copied, day
from tests.standins.s3 import s3_server
from tests.unit.sinks.test_repaired import archive as archive_repaired
from tests.unit.sinks.test_repaired import days, writer
from tests.unit.sinks.topic_records import Topic, alert, frame, outcomes, prediction
from tests.unit.sinks.topic_records import archive as archive_topic

AREAS = ("ticks", "bars_1m", "windows", "alerts", "predictions", "outcomes")


def build(seconds: int, steps: int) -> MemoryStore:
    """All areas, repaired bars, and positions of some steps of each topic, none compacted."""
    store = MemoryStore()
    archive(store, day(seconds=seconds, symbols=3), length=300)
    repaired = Topic()
    repaired.records += days(3, 4)
    archive_repaired(writer(repaired, store))
    for name, message in (("alerts", alert), ("predictions", prediction), ("outcomes", outcomes)):
        topic = Topic()
        for step in range(steps):
            topic.add(*(message(number) for number in range(10 * step, 10 * step + 10)))
            archive_topic(topic, store, name)
    topic = Topic()
    for step in range(steps):
        topic.add(frame(10 * step, 10 * step + 9))
        archive_topic(topic, store, "windows")
    assert not check(store).faults and {name.split("/")[1] for name in store.objects if name.startswith("processed/")} == set(AREAS)
    return store


@pytest.fixture(scope="module")
def small() -> MemoryStore:
    return build(3_000, 3)


@pytest.fixture(scope="module")
def compacted(small: MemoryStore) -> MemoryStore:
    """The same, compacted, with a pack of positions."""
    store = copied(small)
    topic = Topic()
    for number in range(103):
        topic.add(alert(number), life=1)
        archive_topic(topic, store, "alerts")
    assert not [fault for result in compact(store, None) for fault in result.faults]
    assert [result.made for result in pack_positions(store, None)] == [1]
    assert not check(store).faults
    return store


def one_of_each_kind(store: MemoryStore) -> Iterator[str]:
    """The first object of each kind; of positions it is not the newest one."""
    kinds = ("raw/", *(f"processed/{area}/" for area in AREAS), f"processed/bars_1m/date=2025-10-10/{REPAIRS}", "chains/", "compactions/", PACKED)
    for kind in (*kinds, *(f"positions/{topic}-" for topic in ("windows", "alerts", "predictions", "outcomes"))):
        found = sorted(name for name in store.objects if name.startswith(kind))
        if found:
            yield found[0]


def replace(store: Store, name: str, data: bytes) -> None:
    store.delete(name)
    store.create(name, data)


def flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 4]) + data[place + 1 :]


def uncertain(report: Report) -> int:
    """What may be on its way, or is lost: it cannot be decided, and is counted."""
    return sum(chain.unprocessed for chain in report.chains) + sum(topic.unwritten for topic in report.topics.values())


def damage(store: Store, made: MemoryStore, *, compacted: bool) -> None:
    """Does everything to one object of each kind; of a compacted archive, to the kinds that only it has."""
    for name in one_of_each_kind(made):
        data = made.objects[name]
        if compacted and not ("compacted-" in name or name.startswith(("compactions/", PACKED))):
            continue
        for changed in (flipped(data, len(data) // 3), data[: len(data) // 2]):
            replace(store, name, changed)
            faults = check(store).faults
            assert any(name in fault for fault in faults), (name, len(changed), faults)
        store.delete(name)
        report = check(store)
        if REPAIRS in name:
            assert report.repaired < check(made).repaired, "repaired bars have no chain: that one is missing shows in their number alone"
        else:
            assert report.faults, name
        store.create(name, data)
        copy = f"{name[:-30]}7{name[-29:]}" if name.endswith(("parquet", "zst")) and "compacted-" not in name else name.replace(".json", "-copy.json")
        if copy != name:
            store.create(copy, data)
            assert any(copy in fault for fault in check(store).faults), (name, copy)
            store.delete(copy)
    assert not check(store).faults


@pytest.mark.parametrize("made", ["small", "compacted"])
@pytest.mark.slow
def test_in_memory(made: str, request: pytest.FixtureRequest) -> None:
    whole = request.getfixturevalue(made)
    damage(copied(whole), whole, compacted=made == "compacted")


@pytest.mark.slow
def test_in_a_folder_and_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = build(1_500, 2)
    with s3_server(monkeypatch):
        for store in (FileStore(tmp_path), open_store("s3://bucket/archive")):
            for name, data in whole.objects.items():
                store.create(name, data)
            damage(store, whole, compacted=False)


@pytest.mark.slow
def test_every_deleted_object_of_ticks_bars_and_topics_is_found_or_counted(small: MemoryStore, compacted: MemoryStore) -> None:
    for whole in (small, compacted):
        for name in whole.objects:
            if REPAIRS in name or name.startswith(("positions/", "raw/", "chains/")):
                continue
            store = copied(whole)
            del store.objects[name]
            report = check(store)
            assert report.faults or uncertain(report), name


def test_a_manifest_that_is_gone_with_what_it_replaced_is_found(compacted: MemoryStore) -> None:
    for name in [name for name in compacted.objects if name.startswith("compactions/")]:
        store = copied(compacted)
        del store.objects[name]
        assert any(fault.startswith(f"{name} is missing: ") for fault in check(store).faults)

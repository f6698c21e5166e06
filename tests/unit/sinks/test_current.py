"""Which objects of an archive count: each row once, whatever a compaction is doing."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from pathlib import Path

import pytest

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.compactions import Compaction, Range, compaction_of_data, compaction_of_manifest, manifest_of, replaced_by
from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, Store

LOG = "0199c3d2a10-0a1b2c3d"
HOUR = "date=2025-10-09/hour=08"
DAY = "date=2025-10-09"
FIRST = Compaction("ticks", HOUR, 0)


def small(first: int, area: str = "ticks", folder: str = HOUR, partition: int = 3, log: str = LOG) -> str:
    return f"processed/{area}/{folder}/{log}-{partition:05d}-{first:020d}.parquet"


def names(store: Store, area: str = "ticks", begin: date | None = None, end: date | None = None) -> list[str]:
    return [entry.name for entry in current(store, area, begin, end)]


def put(store: Store, *created: str) -> None:
    for name in created:
        store.create(name, b"x")


def compact(store: Store, compaction: Compaction, *ranges: tuple[int, int]) -> None:
    put(store, compaction.data)
    store.create(compaction.manifest, manifest_of(compaction, [Range(LOG, 3, first, last, 0) for first, last in ranges]))


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return MemoryStore() if request.param == "memory" else FileStore(tmp_path)


def test_without_compactions_all_objects_of_the_area_count(store: Store) -> None:
    put(store, small(0), small(10), small(0, "bars_1m", "date=2025-10-09"), "raw/x")
    assert names(store) == [small(0), small(10)]
    assert names(store, "bars_1m") == [small(0, "bars_1m", "date=2025-10-09")] and names(store, "windows") == []
    assert [entry.size for entry in current(store, "ticks")] == [1, 1]


def test_only_the_folders_of_the_dates_that_are_asked_for(store: Store) -> None:
    days = [f"date=2025-10-{day:02d}" for day in (8, 9, 10, 11)]
    for area, folders in (("bars_1m", days), ("ticks", [f"{day}/hour=23" for day in days])):
        objects = [small(0, area, folder) for folder in folders]
        put(store, *objects)
        assert names(store, area, date(2025, 10, 9), date(2025, 10, 10)) == objects[1:3]
        assert names(store, area, date(2025, 10, 10)) == objects[2:] and names(store, area, end=date(2025, 10, 8)) == objects[:1]
        assert names(store, area, date(2025, 10, 12)) == names(store, area, date(2025, 10, 11), date(2025, 10, 9)) == []


def test_raw_objects_count_as_they_are(store: Store) -> None:
    raw = [f"raw/{folder}/{LOG}-00003-{0:020d}.jsonl.zst" for folder in ("date=2025-10-09/hour=08", "date=2025-10-10/hour=00")]
    put(store, *raw)
    assert names(store, "raw") == raw and names(store, "raw", date(2025, 10, 10)) == raw[1:]


def test_the_manifest_decides(store: Store) -> None:
    put(store, small(0), small(10), small(20), small(10, partition=4), FIRST.data)
    before = [small(0), small(10), small(20), small(10, partition=4)]
    assert names(store) == sorted(before)
    compact(store, FIRST, (0, 9), (10, 19))
    assert names(store) == sorted([small(20), small(10, partition=4), FIRST.data])
    store.delete(small(0))
    assert names(store) == sorted([small(20), small(10, partition=4), FIRST.data])
    compact(store, Compaction("ticks", HOUR, 1), (20, 29))
    assert names(store) == sorted([small(10, partition=4), FIRST.data, Compaction("ticks", HOUR, 1).data])


def test_a_manifest_is_about_its_own_folder_and_area(store: Store) -> None:
    other = "date=2025-10-09/hour=09"
    put(store, small(0), small(0, folder=other), small(0, "windows"))
    compact(store, FIRST, (0, 9))
    assert names(store) == [FIRST.data, small(0, folder=other)] and names(store, "windows") == [small(0, "windows")]


def test_a_compaction_that_ends_between_the_two_listings(store: Store) -> None:
    class Late(MemoryStore):
        def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
            if prefix == "compactions/" and FIRST.manifest not in self.objects:
                compact(self, FIRST, (0, 9))
                self.delete(small(0))
            return super().list(prefix, start_after)

    late = Late()
    put(late, small(0), small(10))
    assert names(late) == sorted([FIRST.data, small(10)])


def test_a_data_object_that_is_lost_is_named(store: Store) -> None:
    compact(store, FIRST, (0, 9))
    store.delete(FIRST.data)
    with pytest.raises(ArchiveError, match=f"{FIRST.data} is missing, though {FIRST.manifest} exists"):
        names(store)


def test_a_broken_manifest_is_named(store: Store) -> None:
    put(store, small(0), FIRST.data)
    store.create(FIRST.manifest, b"{")
    with pytest.raises(ArchiveError, match="cannot be read"):
        names(store)


def test_adjacent_ranges_merge_and_others_do_not() -> None:
    ranges = [Range(LOG, 3, 10, 19, 5), Range(LOG, 3, 0, 9, 5), Range(LOG, 3, 21, 30, 1), Range(LOG, 4, 31, 40, 1), Range("other", 4, 41, 50, 1)]
    lines = manifest_of(FIRST, ranges).decode().splitlines()
    assert lines[0] == f'{{"area":"ticks","date":"2025-10-09","hour":8,"log":"{LOG}","partition":3,"first":0,"last":19,"compaction":0}}'
    assert len(lines) == 4
    assert '"hour":-1,' in manifest_of(Compaction("alerts", "date=2025-10-09", 7), ranges).decode()
    assert '"hour":0,' in manifest_of(Compaction("ticks", "date=2025-10-09/hour=00", 7), ranges).decode()


@pytest.mark.parametrize(("compaction", "data", "manifest"), [
    (FIRST, "processed/ticks/date=2025-10-09/hour=08/compacted-00000.parquet", "compactions/date=2025-10-09/ticks-08-00000.json"),
    (Compaction("bars_1m", DAY, 12), "processed/bars_1m/date=2025-10-09/compacted-00012.parquet", "compactions/date=2025-10-09/bars_1m-00012.json"),
])  # fmt: skip
def test_names(compaction: Compaction, data: str, manifest: str) -> None:
    assert (compaction.data, compaction.manifest) == (data, manifest)
    assert compaction_of_data(data) == compaction_of_manifest(manifest) == compaction
    assert compaction_of_data(manifest) is None and compaction_of_manifest(data) is None and parse_name(data) is None


def test_which_compaction_replaced_an_object(store: Store) -> None:
    compact(store, FIRST, (0, 9))
    compact(store, Compaction("ticks", HOUR, 1), (20, 29))
    found = [replaced_by(store, parsed) for first in (0, 10, 20) if (parsed := parse_name(small(first)))]
    assert found == [FIRST, None, Compaction("ticks", HOUR, 1)]

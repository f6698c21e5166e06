"""Compaction: the same rows, sorted, each exactly once at any time, whatever compactors, writers and readers do meanwhile, and wherever they are killed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive import compacting
from stockstream.sinks.archive.compacted_object import TIME, compacted_object, read_compacted_object, read_small, together
from stockstream.sinks.archive.compacting import Result, compact, compact_folder
from stockstream.sinks.archive.compactions import Compaction, covers, list_compactions, read_manifest
from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.processed import Made, of_schema, parquet
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.archive.schemas import STORED
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, Store
from tests.seeds import some_quick

LOG = "0199c3d2a10-0a1b2c3d"
T0 = datetime(2025, 10, 9, 8, tzinfo=UTC)
HOUR, DAY = "date=2025-10-09/hour=08", "date=2025-10-09"
LATER = T0 + timedelta(days=2)
FOLDERS = {area: DAY if area in ("bars_1m", "alerts") else HOUR for area in STORED}
Row = tuple[str, int, int]


def small(area: str, first: int, last: int, rows: int, partition: int = 0, folder: str = "", log: str = LOG) -> tuple[str, bytes]:
    """A small object of these offsets, as the archive writes it. Its rows are in the order of its offsets, of two symbols by turns, later ones first."""
    place = "offset" if area == "ticks" else "record_offset"
    offsets = [first + number % (last - first + 1) for number in range(rows)]
    table = pa.table({
        "symbol": [f"{'BA'[offset % 2]}{partition}" for offset in offsets],
        TIME[area]: pa.array([T0.replace(tzinfo=None) + timedelta(seconds=offset % 7) for offset in offsets], pa.timestamp("ms")),
        place: offsets, "log": pa.array([log] * rows, pa.string()), "partition": [partition] * rows,
    }).sort_by([("symbol", "ascending"), (TIME[area], "ascending")])  # fmt: skip
    name = f"processed/{area}/{folder or FOLDERS[area]}/{log}-{partition:05d}-{first:020d}.parquet"
    made = Made(log, partition, first, last, rows, {name: rows}, ((first, first),))
    return name, parquet(of_schema(table, STORED[area]), encode_json(made))


def put(store: Store, *objects: tuple[str, bytes]) -> list[str]:
    for name, data in objects:
        store.create(name, data)
    return [name for name, _ in objects]


def rows_of(area: str, data: bytes) -> list[Row]:
    table = pq.read_table(pa.BufferReader(data))
    columns = (table.column(name).to_pylist() for name in ("log", "partition", "offset" if area == "ticks" else "record_offset"))
    return list(zip(*columns, strict=True))


def read(store: Store, area: str) -> list[Row]:
    """All rows that count, as a reader finds them: it lists again if an object is gone."""
    for _ in range(20):
        try:
            return [row for entry in current(store, area) for row in rows_of(area, store.read(entry.name))]
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            if "there is no" not in str(error):
                raise
    raise AssertionError("the reader never came to an end")


def by_rule(store: MemoryStore, area: str) -> list[Row]:
    """All rows that count by the rule for rows, which the view on Athena applies to all objects that are there."""
    manifests = {one: read_manifest(store, one) for one in list_compactions(store) if one.area == area}
    place = "offset" if area == "ticks" else "record_offset"
    found = []
    for name, data in store.objects.items():
        if not name.startswith(f"processed/{area}/"):
            continue
        folder = name.removeprefix(f"processed/{area}/").rpartition("/")[0]
        for row in pq.read_table(pa.BufferReader(data)).select(["log", "partition", place, "compaction"]).to_pylist():
            numbers = [
                line.compaction for one, lines in manifests.items() if one.folder == folder for line in lines
                if (line.log, line.partition) == (row["log"], row["partition"]) and line.first <= row[place] <= line.last
            ]  # fmt: skip
            assert len(numbers) < 2
            if row["compaction"] == (numbers[0] if numbers else None):
                found.append((row["log"], row["partition"], row[place]))
    return found


def settle(store: Store, now: datetime | None = None) -> list[Result]:
    return list(compact(store, now))


@pytest.mark.parametrize("area", sorted(STORED))
def test_small_objects_become_one_sorted_object_with_the_same_rows(area: str) -> None:
    store = MemoryStore()
    objects = [small(area, first, first + 9, 10, partition) for partition in (0, 1) for first in (0, 10, 20)]
    before = [row for _, data in objects for row in pq.read_table(pa.BufferReader(data)).to_pylist()]
    put(store, *objects)
    [result] = settle(store)
    one = Compaction(area, FOLDERS[area], 0)
    assert sorted(store.objects) == sorted([one.data, one.manifest])
    assert (result.replaced, result.made, result.rows, result.deleted, result.faults) == (6, 1, 60, 6, [])
    assert result.replaced_bytes == sum(len(data) for _, data in objects) and result.made_bytes == len(store.objects[one.data])
    table = pq.read_table(pa.BufferReader(store.objects[one.data]))
    assert table.schema.remove_metadata().equals(STORED[area])
    found = table.to_pylist()
    assert [row.pop("compaction") for row in found] == [0] * 60 and [row.pop("compaction") for row in before] == [None] * 60
    place = "offset" if area == "ticks" else "record_offset"
    assert found == sorted(before, key=lambda row: (row["symbol"], row[TIME[area]], row["partition"], row[place]))
    sources = read_compacted_object(store, one.data).list_sources()
    assert [source.name for source in sources] == sorted(name for name, _ in objects)
    for source, (_, data) in zip(sources, objects, strict=True):
        assert bytes(source.footer) == pq.read_metadata(pa.BufferReader(data)).metadata[b"stockstream"]
    assert settle(store) == []


def test_each_folder_has_its_own_compaction_and_the_same_sources_give_the_same_bytes() -> None:
    stores = [MemoryStore(), MemoryStore()]
    for store, order in zip(stores, (1, -1), strict=True):
        objects = [small("ticks", first, first + 9, 10, folder=f"{DAY}/hour={hour:02d}") for first in (0, 10) for hour in (8, 9)]
        put(store, *objects[::order])
        assert [(result.folder, result.replaced) for result in settle(store)] == [(f"{DAY}/hour=08", 2), (f"{DAY}/hour=09", 2)]
    assert stores[0].objects == stores[1].objects


def test_objects_without_rows_are_compacted_too() -> None:
    store = MemoryStore()
    put(store, small("ticks", 0, 9, 0), small("ticks", 10, 19, 0))
    settle(store)
    assert read(store, "ticks") == []
    assert [source.range.last for source in read_compacted_object(store, Compaction("ticks", HOUR, 0).data).list_sources()] == [9, 19]


def test_late_objects_make_another_compaction_and_a_single_one_stays() -> None:
    store = MemoryStore()
    put(store, small("ticks", 0, 9, 10), small("ticks", 10, 19, 10))
    settle(store)
    [late] = put(store, small("ticks", 20, 29, 10))
    assert settle(store) == [] and late in store.objects
    put(store, small("ticks", 30, 39, 10))
    settle(store)
    assert [entry.name for entry in current(store, "ticks")] == [Compaction("ticks", HOUR, number).data for number in (0, 1)]
    assert Counter(read(store, "ticks")) == Counter((LOG, 0, offset) for offset in range(40)) == Counter(by_rule(store, "ticks"))


def test_objects_beyond_the_limit_of_memory_make_several_compactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compacting, "MAX_BYTES", 1)
    monkeypatch.setattr(compacting, "TOGETHER", 2)
    store = MemoryStore()
    put(store, *(small("ticks", first, first + 9, 10) for first in range(0, 50, 10)))
    [result] = settle(store)
    assert (result.replaced, result.made) == (4, 2) and len(current(store, "ticks")) == 3
    assert Counter(read(store, "ticks")) == Counter((LOG, 0, offset) for offset in range(50))


@pytest.mark.parametrize(("area", "minutes", "taken"), [
    ("ticks", [59, 69], 0),                                              # not quiet
    ("ticks", [49, 50], 2),                                              # over and quiet
    ("ticks", [-70, 5, 69], 2),                                          # late rows keep coming
    ("bars_1m", [5, 8, 69], 2),                                          # the day goes on, and an hour has passed
    ("bars_1m", [30, 40], 0),
])  # fmt: skip
def test_what_is_due(area: str, minutes: list[int], taken: int) -> None:
    store = MemoryStore()
    for number, minute in enumerate(minutes):
        [name] = put(store, small(area, number * 10, number * 10 + 9, 3))
        store.written[name] = T0 + timedelta(minutes=minute)
    assert sum(result.replaced for result in compact(store, T0 + timedelta(minutes=70))) == taken
    assert sum(result.replaced for result in compact(store, LATER)) == (0 if taken else len(minutes))


def test_an_hour_that_is_not_over_waits() -> None:
    store = MemoryStore()
    for name in put(store, small("ticks", 0, 9, 3), small("ticks", 10, 19, 3)):
        store.written[name] = T0 + timedelta(minutes=10)
    assert list(compact(store, T0 + timedelta(minutes=59))) == []
    assert [result.replaced for result in compact(store, T0 + timedelta(minutes=60), dry=True)] == [2] and len(store.objects) == 2
    assert len(list(compact(store, T0 + timedelta(minutes=60)))) == 1


def test_only_the_dates_that_are_asked_for() -> None:
    store = MemoryStore()
    put(store, *(small("alerts", first, first + 9, 3, folder=f"date=2025-10-{day:02d}") for day in (8, 9, 10) for first in (0, 10)))
    found = list(compact(store, None, T0.date(), T0.date()))
    assert [result.folder for result in found] == [DAY]


def test_an_object_that_cannot_be_read_stays_and_the_others_go_on() -> None:
    store = MemoryStore()
    names = put(store, *(small("ticks", first, first + 9, 10) for first in (0, 10, 20)))
    store.objects[names[1]] = store.objects[names[1]][:-20]
    [result] = settle(store)
    assert result.replaced == 2 and names[1] in store.objects
    assert len(result.faults) == 1 and names[1] in result.faults[0] and "left as it is" in result.faults[0]


def test_a_row_count_that_differs_from_the_footer_is_a_fault() -> None:
    name, data = small("ticks", 0, 9, 10)
    table = pq.read_table(pa.BufferReader(data))
    footer = (table.schema.metadata or {})[b"stockstream"]
    with pytest.raises(ArchiveError, match="has 9 rows, but its footer counts 10"):
        read_small(name, parquet(table.slice(1), footer))
    with pytest.raises(ArchiveError, match="its footer names log"):
        read_small(name.replace("-00000-", "-00001-"), data)


def test_without_the_permission_to_delete_the_compaction_counts_all_the_same() -> None:
    class Kept(MemoryStore):
        def delete(self, name: str) -> None:
            raise ArchiveUnavailable(f"memory: cannot delete {name}: access is denied")

    store = Kept()
    names = put(store, *(small("ticks", first, first + 9, 10) for first in range(0, 1_000, 10)))
    for made in (1, 0):
        [result] = settle(store)
        assert (result.made, result.deleted, result.undeleted) == (made, 0, 100)
        assert result.faults == [f"memory: cannot delete {names[0]}: access is denied (100 replaced objects left, which no longer count)"]
        assert Counter(read(store, "ticks")) == Counter((LOG, 0, offset) for offset in range(1_000)) == Counter(by_rule(store, "ticks"))


def test_bars_of_an_earlier_release_get_their_place() -> None:
    store = MemoryStore()
    for first in (0, 10):
        name, data = small("bars_1m", first, first + 9, 3)
        table = pq.read_table(pa.BufferReader(data))
        store.create(name, parquet(table.drop_columns(["record_offset", "compaction", "repaired"]), (table.schema.metadata or {})[b"stockstream"]))
    settle(store)
    assert sorted(read(store, "bars_1m")) == [(LOG, 0, 0)] * 3 + [(LOG, 0, 10)] * 3


class Killed(Exception):
    """The process ends here."""


class Interleaved(MemoryStore):
    """Before and after each call, now and then lets others do something, loses the answer, fails, or kills the caller."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.random = random.Random(seed)
        self.others: list[Callable[[], None]] = []
        self.depth = 0
        self.quiet = False

    def _something(self) -> None:
        if self.quiet:
            return
        chance = self.random.random()
        if chance < 0.03:
            raise Killed
        if chance < 0.06:
            raise ArchiveUnavailable("memory: no answer")
        if chance < 0.2 and self.depth < 3:
            self.depth += 1
            try:
                self.random.choice(self.others)()
            finally:
                self.depth -= 1

    def create(self, name: str, data: bytes) -> bool:
        self._something()
        new = super().create(name, data)
        self._something()
        return new

    def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
        self._something()
        found = list(super().list(prefix, start_after))
        self._something()
        yield from found

    def read(self, name: str, tail: int = 0) -> bytes:
        self._something()
        return super().read(name, tail)

    def delete(self, name: str) -> None:
        self._something()
        super().delete(name)
        self._something()


@pytest.mark.parametrize("seed", some_quick(range(24), 6))
def test_every_row_counts_once_at_all_times(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compactors, writers and readers run inside each other, at any call to the store; each may be killed there, or its answer lost."""
    monkeypatch.setattr(compacting, "CALLS_AT_ONCE", 1)
    store = Interleaved(seed)
    area = ("ticks", "bars_1m", "alerts")[seed % 3]
    written: dict[str, bytes] = {}
    truth: Counter[Row] = Counter()
    ends = [0, 0]

    def undisturbed(act: Callable[[], object]) -> None:
        before, store.quiet = store.quiet, True
        try:
            act()
        finally:
            store.quiet = before

    def write() -> None:
        partition = store.random.randrange(2)
        first = ends[partition] + store.random.choice([0, 0, 0, 5])      # another folder may have the offsets between
        last = first + store.random.randint(1, 9)
        name, data = small(area, first, last, store.random.randint(0, 12), partition)
        ends[partition] = last + 1
        written[name] = data
        truth.update(rows_of(area, data))
        undisturbed(lambda: put(store, (name, data)))

    def write_again() -> None:
        if written:
            name = store.random.choice(list(written))
            undisturbed(lambda: put(store, (name, written[name])))

    def run_compactor() -> None:
        with suppress(Killed, ArchiveUnavailable):
            compact_folder(store, area, FOLDERS[area], None)

    def look() -> None:
        begin = Counter(truth)
        try:
            found = Counter(read(store, area))
        except (Killed, ArchiveUnavailable):
            return
        assert not begin - found and not found - truth, "a row is missing, or counts twice"

    def look_by_rule() -> None:
        def check() -> None:
            assert Counter(by_rule(store, area)) == truth

        undisturbed(check)

    store.others = [write, write, write_again, run_compactor, run_compactor, look, look_by_rule]
    for _ in range(25):
        store.random.choice(store.others)()
        look_by_rule()
    store.quiet = True
    compact_folder(store, area, FOLDERS[area], None)
    look_by_rule()
    look()
    left = [name for name in store.objects if parse_name(name)]
    lines = [line for one in list_compactions(store) for line in read_manifest(store, one)]
    assert len(left) < 2 and not any(covers(lines, parsed) for name in left if (parsed := parse_name(name)))


def test_a_compactor_that_was_frozen_cannot_count_rows_twice() -> None:
    """It has read its sources; then another one compacts some of them together with late ones. It comes second, and looks again."""
    store = MemoryStore()
    put(store, small("ticks", 0, 9, 10), small("ticks", 10, 19, 10))
    others = iter([True])

    def meanwhile(name: str) -> None:
        if next(others, False):
            put(store, small("ticks", 20, 29, 10))
            compact_folder(store, "ticks", HOUR, None)

    store.before_create = meanwhile
    result = compact_folder(store, "ticks", HOUR, None)
    assert result.made == 0 and [one.number for one in list_compactions(store)] == [0]
    assert Counter(read(store, "ticks")) == Counter((LOG, 0, offset) for offset in range(30))


def test_on_files(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    put(store, *(small("ticks", first, first + 9, 10) for first in range(0, 100, 10)))
    settle(store)
    assert Counter(read(store, "ticks")) == Counter((LOG, 0, offset) for offset in range(100))
    assert sorted(store.list("")) == ["compactions/date=2025-10-09/ticks-08-00000.json", "processed/ticks/date=2025-10-09/hour=08/compacted-00000.parquet"]


def test_the_pure_part_takes_any_division_of_the_tables() -> None:
    smalls = [read_small(*small("ticks", first, first + 9, 10, partition)) for partition in (0, 1) for first in (0, 10, 20)]
    sources = [one.source for one in smalls]
    made = {compacted_object(Compaction("ticks", HOUR, 3), sources, [together(smalls[:cut]), together(smalls[cut:])]) for cut in (1, 3, 5)}
    assert len(made) == 1


def test_a_compaction_of_everything_ends_though_a_writer_is_faster() -> None:
    class Written(MemoryStore):
        """Each compaction finds two more small objects when it is done."""

        end = 20

        def create(self, name: str, data: bytes) -> bool:
            created = super().create(name, data)
            if "/compacted-" in name:
                put(self, *(small("ticks", first, first + 9, 10) for first in (self.end, self.end + 10)))
                self.end += 20
            return created

    store = Written()
    put(store, small("ticks", 0, 9, 10), small("ticks", 10, 19, 10))
    assert compact_folder(store, "ticks", HOUR, None).replaced == 2
    assert sorted(offset for _, _, offset in read(store, "ticks")) == list(range(40))

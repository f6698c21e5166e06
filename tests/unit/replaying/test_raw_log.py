"""A raw log as the archive holds it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import pytest

from stockstream.errors import ArchiveError
from stockstream.replaying.raw_log import Place, RawLog, Times, is_archive, open_raw
from stockstream.replaying.restore import partitions_fault
from stockstream.settings import Settings
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.layout import DAY_MS, HOUR_MS
from stockstream.sinks.archive.raw_objects import Line, encode, key_and_value, read_raw_object
from stockstream.sinks.memory import MemoryStore
from stockstream.transforms.partitioning import home_partition
from tests.unit.sinks.test_archive import Record

DAY = 1_760_000_000_000 // DAY_MS * DAY_MS
T0 = DAY + 22 * HOUR_MS
Content = tuple[int, int, bytes | None, bytes | None]
"""Offset, time, key and value of a record."""


def record(number: int, partition: int, timestamp: int) -> Record:
    return Record(number * 2 if partition == 1 else number, timestamp, None if number % 7 == 3 else b"K%d" % partition, b'{"n":%d}' % number)


def times(count: int) -> list[int]:
    """Over three hours and midnight; now and then a time goes back, once by more than an hour."""
    return [T0 + number * 150_000 - (90_000 if number % 5 == 4 else 0) - (2 * HOUR_MS if number == 60 else 0) for number in range(count)]


def archive(log: str = "log1", count: int = 80, each: int = 9) -> tuple[MemoryStore, dict[int, list[Record]]]:
    """An archive of objects of `each` records, and its records; in partition 1 every second offset is a hole."""
    store = MemoryStore()
    held = {partition: [record(number, partition, time) for number, time in enumerate(times(count))] for partition in (0, 1)}
    for partition, records in held.items():
        chain = Chain(store, log, partition)
        for start in range(0, count, each):
            for piece in encode(partition, records[start : start + each], chain.end + 1):
                chain.append([piece])
    return store, held


def contents(lines: Iterable[Line]) -> list[Content]:
    return [(line.offset, line.timestamp, *key_and_value(line)) for line in lines]


def read(log: RawLog, places: dict[int, Place] | None = None, *, by_second: bool = False) -> dict[int, list[Content]]:
    found: dict[int, list[Content]] = defaultdict(list)
    for block in log.blocks(places or {}, by_second=by_second):
        found[block.partition] += contents(block.records)
    return dict(found)


def wanted(held: dict[int, list[Record]]) -> dict[int, list[Content]]:
    return {partition: [(r.offset, r.timestamp, r.key, r.value) for r in records] for partition, records in held.items()}


@pytest.mark.parametrize("by_second", [False, True])
def test_every_record_comes_in_its_order(by_second: bool) -> None:
    store, held = archive()
    log = RawLog(store)
    assert read(log, by_second=by_second) == wanted(held)
    assert sum(block.size for block in log.blocks({})) == log.size == sum(len(data) for name, data in store.objects.items() if name.startswith("raw/"))


def test_partitions_come_side_by_side_in_the_order_of_time() -> None:
    store, _ = archive()
    reached: dict[int, int] = {0: T0, 1: T0}
    for block in RawLog(store).blocks({}, by_second=True):
        assert len({line.timestamp // 1000 for line in block.records}) == 1
        reached[block.partition] = max(reached[block.partition], block.records[0].timestamp)
        assert block.records[0].timestamp - min(reached.values()) < HOUR_MS / 8


def test_each_record_is_in_one_of_two_spans_that_follow_each_other() -> None:
    store, held = archive()
    for cut in [T0 - 1, DAY + DAY_MS, *range(T0 + 1, T0 + 4 * HOUR_MS, HOUR_MS // 3)]:
        parts: list[dict[int, list[Content]]] = []
        for span in (Times(None, cut), Times(cut, None), Times(T0 - HOUR_MS, cut), Times(cut, T0 + DAY_MS)):
            try:
                log = RawLog(store, (), span)
            except ArchiveError:
                parts.append({})                                         # there is nothing
            else:
                parts.append(read(log))
        for first, second in (parts[:2], parts[2:]):
            together = {partition: sorted(first.get(partition, []) + second.get(partition, [])) for partition in held}
            assert together == wanted(held), cut


def test_a_day_is_what_its_folders_hold() -> None:
    store, _ = archive()
    for day, folder in ((DAY, "raw/date=2025-10-09/"), (DAY + DAY_MS, "raw/date=2025-10-10/")):
        found = read(RawLog(store, (), Times(day, day + DAY_MS)))
        assert sum(map(len, found.values())) == sum(len(read_raw_object(store, name)[1]) for name in store.list(folder)) > 0


@pytest.mark.parametrize("span", [Times(), Times(DAY, DAY + DAY_MS)])
def test_a_missing_object_is_refused(span: Times) -> None:
    store, _ = archive()
    names = [name for name in store.list("raw/") if span == Times() or name.startswith("raw/date=2025-10-09/")]
    newest = {max((name for name in names if f"-0000{p}-" in name), key=lambda name: name[-30:]) for p in (0, 1)}
    for name in set(names) - newest:
        lacking = MemoryStore()
        lacking.objects = {other: data for other, data in store.objects.items() if other != name}
        lacking.written = store.written
        with pytest.raises(ArchiveError, match="missing"):
            read(RawLog(lacking, (), span))


def test_what_retention_ended_is_not_missing() -> None:
    store, held = archive()
    ended = [name for name in store.list("raw/date=2025-10-09/hour=22/log1-00000-") if int(name[-30:-10]) < 25]
    for name in ended:
        store.delete(name)
    with pytest.raises(ArchiveError, match=r"missing before it: .*; --from with a later time restores the rest"):
        read(RawLog(store))
    store.create("retention/raw/log1-00000/00000000000000000024.json", b"{}")
    found = read(RawLog(store))
    assert ended and found[0] == wanted(held)[0][25:] and found[1] == wanted(held)[1]


def test_a_broken_object_is_refused() -> None:
    store, _ = archive()
    name = next(iter(store.list("raw/")))
    store.objects[name] = store.objects[name][:20] + b"?" + store.objects[name][21:]
    with pytest.raises(ArchiveError, match=name[-30:]):
        read(RawLog(store))


def test_what_is_archived_meanwhile_is_no_gap() -> None:
    store, held = archive()
    log = RawLog(store)
    chain = Chain(store, "log1", 0)
    chain.open()
    end = chain.end + 1
    for number in range(2):                                              # one more object in the folder, and one in the next
        chain.append(encode(0, [Record(end + number, held[0][-1].timestamp + number * HOUR_MS)], end + number))
    assert read(log) == wanted(held)


def test_one_of_several_logs_is_chosen() -> None:
    store, held = archive()
    other, more = archive("log2", count=20)
    store.objects |= other.objects
    store.written |= other.written
    with pytest.raises(ArchiveError, match=r"of partition 0: .* --log newest.* log1 \(partition 0, 2025-10-09 22h to 2025-10-10 01h\), log2"):
        RawLog(store)
    assert read(RawLog(store, ["log1"])) == wanted(held)
    assert read(RawLog(store, ["newest"])) == wanted(more)
    assert RawLog(store, (), Times(T0 + 2 * HOUR_MS, None)).logs == {0: "log1", 1: "log1"}, "the other has ended"
    with pytest.raises(ArchiveError, match="no log log3; there are: log1"):
        RawLog(store, ["log1", "log3"])


@pytest.mark.parametrize("span", [Times(), Times(T0 + HOUR_MS // 2, T0 + DAY_MS)])
def test_places_after_any_number_of_records(span: Times) -> None:
    store, _ = archive()
    log = RawLog(store, (), span)
    everything = read(log)
    for partition, records in everything.items():
        for count in range(len(records) + 1):
            place = log.after(partition, count)
            assert place is not None and (contents([place.last]) if place.last else []) == records[max(count - 1, 0) : count]
            assert read(log, {partition: place}).get(partition, []) == records[count:]
        assert log.after(partition, len(records) + 1) is None
        last = log.last(partition)
        assert last is not None and contents([last]) == records[-1:]


def test_the_number_of_partitions_is_that_of_the_records_homes() -> None:
    store = MemoryStore()
    symbols = [f"S{number}" for number in range(40)]
    for partition in range(3):                                           # the fourth of four is empty
        homes = [symbol for symbol in symbols if home_partition(symbol, 4) == partition]
        Chain(store, "log1", partition).append(encode(partition, [Record(n, T0, symbol.encode()) for n, symbol in enumerate(homes)], 0))
    log = RawLog(store)
    assert log.least_partitions == 3
    assert partitions_fault(log, 4) is None
    for wrong in (1, 3, 8):
        assert "set STOCKSTREAM_PARTITIONS=" in str(partitions_fault(log, wrong))
    assert "has 4 partitions, and the settings 3" in str(partitions_fault(log, 3))


def test_places_of_archives(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "day.csv").touch()
    for text in (str(tmp_path), f"{tmp_path}/raw", f"file://{tmp_path}/raw/"):
        assert is_archive(text) and open_raw(text, Settings()).url == f"file://{tmp_path}"
    assert is_archive("s3://bucket/raw") and not is_archive(str(tmp_path / "day.csv")) and not is_archive("kafka://host:1/topic")
    with pytest.raises(ArchiveError, match=r"no archive: .*nothing does not exist"):
        open_raw(f"file://{tmp_path}/nothing", Settings())

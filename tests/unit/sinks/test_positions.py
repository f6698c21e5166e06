"""Positions: packed a hundred into one, whoever is killed or frozen meanwhile, and with a checksum."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.raw_objects import Tail, encode_json
from stockstream.sinks.archive.topics import packing
from stockstream.sinks.archive.topics import positions as positions_module
from stockstream.sinks.archive.topics.packing import pack_positions
from stockstream.sinks.archive.topics.positions import (
    PACKED,
    Position,
    State,
    all_positions,
    create_position,
    lives,
    name_of,
    newest_positions,
    pack_name,
    read_pack,
    read_position,
)  # fmt: skip
from stockstream.sinks.memory import MemoryStore

OF = "windows-00003/0000"
LATER = timedelta(hours=2)


@pytest.fixture(autouse=True)
def few_in_a_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (positions_module, packing):
        monkeypatch.setattr(module, "IN_A_PACK", 4)


def position(number: int, life: int = 0, version: int = 2) -> Position:
    begin, end = State(number * 10), State(number * 10 + 10, "log", ((0, number),))
    objects = {f"processed/windows/date=2025-10-09/hour=08/windows.{life:04d}-00003-{number:020d}.parquet": 5}
    return Position("windows", 3, life, number, number, number, Tail(number, 7), objects, begin, end, 1, version=version)


def filled(count: int, life: int = 0) -> MemoryStore:
    store = MemoryStore()
    for number in range(count):
        assert create_position(store, position(number, life)) == position(number, life)
    return store


def numbers(store: MemoryStore) -> list[int]:
    found = list(all_positions(store))
    assert all(isinstance(one, Position) for one in found), found
    return [one.number for one in found if isinstance(one, Position)]


def single(store: MemoryStore) -> list[int]:
    return [int(name[-14:-5]) for name in store.list("positions/") if not name.startswith(PACKED)]


@pytest.mark.parametrize(("count", "left"), [(4, range(4)), (5, range(4, 5)), (12, range(8, 12)), (13, range(12, 13)), (0, range(0))])
def test_all_but_the_newest_are_packed(count: int, left: range) -> None:
    store = filled(count)
    whole = list(all_positions(store))
    [*results] = pack_positions(store, None)
    assert sum(result.replaced for result in results) == sum(result.deleted for result in results) == count - len(left)
    assert list(all_positions(store)) == whole and single(store) == list(left)
    assert list(pack_positions(store, None)) == []
    if count:
        assert newest_positions(store, "windows", 3) == [position(count - 1)] and list(lives(store, "windows", 3)) == [0]


def test_they_are_packed_an_hour_after_they_were_written_and_a_dry_run_changes_nothing() -> None:
    store = filled(13)
    now = datetime.now(UTC)
    assert list(pack_positions(store, now)) == []
    before = dict(store.objects)
    [shown] = pack_positions(store, now + LATER, dry=True)
    assert (shown.area, shown.folder, shown.replaced, shown.made, shown.deleted) == ("positions", OF, 12, 3, 12) and store.objects == before
    store.written[name_of("windows", 3, 0, 5)] = now + LATER
    [done] = pack_positions(store, now + LATER)
    assert done.made == 2 and single(store) == [4, 5, 6, 7, 12] and numbers(store) == list(range(13))


def test_each_life_is_packed_for_itself() -> None:
    store = filled(5)
    for number in range(9):
        create_position(store, position(number, 1))
    assert [(result.folder, result.made) for result in pack_positions(store, None)] == [(OF, 1), ("windows-00003/0001", 2)]
    assert newest_positions(store, "windows", 3) == [position(4), position(8, 1)]


class Killed(Exception):
    """The process ends at this call."""


class Mortal(MemoryStore):
    """A store whose caller is killed at its call number `at`, before or after it took effect."""

    def __init__(self, objects: dict[str, bytes], at: int, after: bool) -> None:
        super().__init__()
        self.objects, self._at, self._after = objects, at, after
        self.written = dict.fromkeys(objects, datetime.now(UTC))

    def _counted(self) -> Iterator[None]:
        self._at -= 1
        if self._at == 0 and not self._after:
            raise Killed
        yield
        if self._at == 0:
            raise Killed

    def create(self, name: str, data: bytes) -> bool:
        for _ in self._counted():
            made = super().create(name, data)
        return made

    def delete(self, name: str) -> None:
        for _ in self._counted():
            super().delete(name)


@pytest.mark.parametrize("after", [False, True])
def test_a_packer_that_is_killed_at_any_call_loses_nothing(after: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.compacting.CALLS_AT_ONCE", 1)
    at = 0
    while True:
        at += 1
        store = Mortal(filled(9).objects, at, after)
        try:
            list(pack_positions(store, None))
        except Killed:
            assert numbers(store) == list(range(9)) and newest_positions(store, "windows", 3) == [position(8)]
            assert create_position(store, position(9)) == position(9)
            for number in range(9):                                      # frozen writers
                other = msgspec.structs.replace(position(number), last=99)
                assert create_position(store, other) == position(number)
            list(pack_positions(store, None))
            assert numbers(store) == list(range(10)) and single(store) == [8, 9]
        else:
            break
    assert at > 10


def test_a_writer_that_was_frozen_finds_what_was_packed() -> None:
    store = filled(9)
    list(pack_positions(store, None))
    other = msgspec.structs.replace(position(5), last=99)
    assert create_position(store, other) == position(5) != other
    assert create_position(store, position(6)) == position(6), "an answer that was lost"
    assert single(store) == [5, 6, 8] and numbers(store) == list(range(9)) and newest_positions(store, "windows", 3) == [position(8)]
    [result] = pack_positions(store, None)
    assert result.deleted == 2 and single(store) == [8]


def test_a_verification_during_a_packing_sees_each_position_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "READ_AHEAD", 1)
    store = filled(9)
    found = all_positions(store)
    seen = [next(found)]
    list(pack_positions(store, None))
    seen += list(found)
    assert seen == [position(number) for number in range(9)]


def test_a_gap_and_a_broken_position_are_left_and_named() -> None:
    store = filled(13)
    del store.objects[name_of("windows", 3, 0, 1)]
    broken = name_of("windows", 3, 0, 6)
    store.objects[broken] = store.objects[broken].replace(b'"records":1', b'"records":2')
    [result] = pack_positions(store, None)
    fault = f"{broken} does not match its checksum: bytes of it have changed"
    assert result.faults == [f"{fault}; it is left as it is"] and result.made == 1
    assert [one if isinstance(one, str) else one.number for one in all_positions(store)] == [0, 2, 3, 4, 5, fault, 7, *range(8, 13)]


def test_a_flipped_byte_is_found_in_a_position_and_in_a_pack() -> None:
    store = filled(9)
    name, pack = name_of("windows", 3, 0, 0), pack_name(OF, 4)
    list(pack_positions(store, None))
    create_position(store, position(0))
    for of, read in ((name, read_position), (pack, read_pack)):
        data = store.objects[of]
        want = read(store, of)
        passed = []
        for at in range(len(data)):
            store.objects[of] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
            with suppress(ArchiveError):
                assert read(store, of) == want
                passed.append(at)
        assert passed == [], of


def test_positions_of_the_release_before_are_read_and_packed() -> None:
    store = MemoryStore()
    for number in range(9):
        store.create(name_of("windows", 3, 0, number), encode_json(position(number, version=1)))
    whole = list(all_positions(store))
    assert [one.version for one in whole if isinstance(one, Position)] == [1] * 9
    list(pack_positions(store, None))
    assert list(all_positions(store)) == whole and single(store) == [8]
    assert create_position(store, position(9)) == position(9)


def test_a_store_that_is_down_is_no_fault() -> None:
    store = filled(9)
    store.down = True
    with pytest.raises(ArchiveUnavailable):
        list(pack_positions(store, None))

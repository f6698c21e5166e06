"""How `clean`'s snapshot is stored: versioned, split where it is large, read back as the furthest one that is complete."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from stockstream.errors import StateError
from stockstream.kafka.client import MAX_BATCH_BYTES
from stockstream.transforms import versioned as stored
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning import judging
from stockstream.transforms.cleaning import state as cleaning_state
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_SYMBOL, MAX_TEXT
from stockstream.transforms.cleaning.state import VERSION, State

NOW = 1_700_000_000_000


@pytest.fixture(autouse=True)
def one_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judging, "home_partition", lambda symbol, partitions: 0)


def cleaner(log: str = "x") -> Cleaner:
    return Cleaner(0, 1, lateness_ms=200, revise_s=30, log=log)


def restored(records: Mapping[bytes, bytes]) -> Cleaner:
    return Cleaner.restore(0, 1, records, lateness_ms=200, revise_s=30)


def ticks(core: Cleaner, count: int, offset: int = 0, **changes: Any) -> None:
    """Lets it judge so many symbols' ticks, each numbered by the offset."""
    tick = {"event_time": NOW, "price": 1.5, "size": 2, "seq": offset}
    values = [json.dumps({"symbol": f"S{number}"} | tick | changes).encode() for number in range(count)]
    assert core.chunk([RawRecord(offset + number, NOW, value) for number, value in enumerate(values)]) == []
    core.make_frame()


def cjk(number: int, length: int) -> str:
    """A text of CJK letters that do not repeat: they compress badly."""
    rng = random.Random(number)
    return "".join(chr(rng.randrange(0x4E00, 0x9FA5)) for _ in range(length))


@pytest.mark.slow
def test_the_largest_state_goes_in_pieces_that_fit_and_comes_back_exactly() -> None:
    """Findings, H2: 20,000 symbols of 32 CJK letters, or snapshot ticks with long texts, passed the limit for ever."""
    core = cleaner()
    texts = {name: cjk(number, MAX_TEXT) for number, name in enumerate(("exchange", "condition", "currency"))}
    for first in range(0, 20_000, 500):
        frame = [
            {"symbol": cjk(number, MAX_SYMBOL), "source": cjk(1_000_000 + number % 900, MAX_SOURCE), "event_time": NOW, "price": 1.0, "seq": 1 << 60,
             "day_volume": 10**15, "snapshot": True, "session": cjk(number, MAX_TEXT), **texts}
            for number in range(first, first + 500)
        ]  # fmt: skip
        assert core.chunk([RawRecord(first, NOW, json.dumps(frame, ensure_ascii=False).encode())]) == []
    core.make_frame()
    records = core.records(3)
    assert len(records) > 2 and max(len(value) for _, value in records) < MAX_BATCH_BYTES - 1_000
    assert len({key for key, _ in records}) == len(records) and all(Cleaner.readable(*record) == "" for record in records)
    again = restored(dict(random.Random(1).sample(records, len(records))))
    assert (again.memory.sources, again.memory.held, again.expect, again.log_clock) == (core.memory.sources, core.memory.held, core.expect, core.log_clock)
    assert again.snapshot() == core.snapshot()


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stored.split
    monkeypatch.setattr(stored, "split", lambda value, version: whole(value, version, 700))


@pytest.mark.usefixtures("small_pieces")
@pytest.mark.parametrize("terms", [[1], [1, 2], [1, 9]], ids=["one writer", "two", "two with the same keys"])
@pytest.mark.parametrize("seed", range(8))
def test_a_writer_that_dies_amid_its_pieces_leaves_the_snapshot_before_whole(seed: int, terms: list[int]) -> None:
    rng = random.Random(seed)
    core = cleaner()
    changelog = dict(core.records(0))                                     # the id, before anything is sent under it
    complete, made = core.expect, {}
    for step in range(60):
        ticks(core, rng.choice((2, 9, 30)), max(core.expect, 0))
        term = terms[min(step // 30, len(terms) - 1)]
        records = core.records(term)
        made[core.expect] = core.snapshot()
        written = rng.randrange(len(records) + 1) if rng.random() < 0.4 else len(records)
        changelog.update(records[:written])
        complete = core.expect if written == len(records) else complete
        assert Cleaner.complete(changelog)
        if written < len(records) or rng.random() < 0.1:
            core = restored(changelog)
            assert core.expect >= complete, "the furthest that was written as a whole, or one whose missing piece was the same before"
            assert core.expect < 0 or core.snapshot() == made[core.expect]
            complete = core.expect


@pytest.mark.usefixtures("small_pieces")
def test_pieces_of_two_snapshots_are_never_put_together() -> None:
    core = cleaner()
    ticks(core, 60)
    first = dict(core.records(1))
    core._slot = 0
    ticks(core, 60, 60, event_time=NOW + 1_000)
    second = dict(core.records(1))
    assert first.keys() == second.keys() and len(first) > 3
    for cut in range(1, len(first)):
        assert not Cleaner.complete(dict(list(second.items())[:cut]) | dict(list(first.items())[cut:])) or cut == len(first) - 1, "the last piece is the same"
    assert restored(first).expect == 60 and restored(second).expect == 120


def test_the_newest_log_that_counts_furthest_is_taken() -> None:
    records: dict[bytes, bytes] = {}
    for term, (log, count) in enumerate([("a", 9), ("b", 4), ("b", 2)]):
        core = cleaner(log)
        ticks(core, count)
        records |= core.records(term)
    core = restored(records)
    assert (core.log, core.expect) == ("b", 4)


def test_what_a_newer_release_wrote_is_refused_in_one_line() -> None:
    core = cleaner()
    ticks(core, 3)
    [(key, value)] = core.records(0)
    newer = msgspec.msgpack.encode(msgspec.msgpack.decode(value) | {"v": VERSION + 1})
    piece = stored.pack(stored.Piece(v=VERSION + 1, number=0, pieces=1, crc=0, data=b""))
    for records in ({key: newer}, {b"snapshot/0/1/0": piece}):
        with pytest.raises(StateError, match=r"newer stockstream .*upgrade this worker") as error:
            restored(records)
        assert "\n" not in str(error.value)
        with pytest.raises(StateError, match="newer stockstream"):
            Cleaner.readable(*next(iter(records.items())))


def test_fields_of_a_later_release_are_ignored_and_missing_ones_have_their_default() -> None:
    core = cleaner()
    ticks(core, 3)
    [(key, value)] = core.records(0)
    content = msgspec.msgpack.decode(value) | {"later": [1]}
    del content["source_lateness"]
    again = restored({key: msgspec.msgpack.encode(content)})
    assert again.snapshot() == core.snapshot()


RUBBISH = [b"", b"no", b"\x80", b"\x93\x01\x02\x03", b"\x78\x9c", b"\x81\xa1v\x02", b"\xc1" * 50, msgspec.msgpack.encode([1] * 13)]


@pytest.mark.parametrize("value", [*RUBBISH[:5], *RUBBISH[6:]])
@pytest.mark.parametrize("key", [b"snapshot/5", b"snapshot/0/0/0", b"snapshot/0/0/7", b"snapshot/1/1/0"])
def test_rubbish_under_keys_like_ours_is_told_and_passed_over(key: bytes, value: bytes) -> None:
    """Findings, H8."""
    core = cleaner()
    ticks(core, 3)
    records = dict(core.records(0)) | {key: value}
    assert restored(records).expect == 3
    assert Cleaner.readable(key, value) != "" and all(Cleaner.readable(*record) == "" for record in core.records(0))


def test_columns_that_do_not_fit_together_are_no_snapshot() -> None:
    core = cleaner()
    ticks(core, 3)
    [(key, value)] = core.records(0)
    state = cleaning_state.decoded(value)
    state.held_owners = [7, 7, 7]
    assert Cleaner.readable(key, stored.pack(state)).startswith("not a snapshot: ValueError: a place that is none")
    assert Cleaner.readable(b"another", value) == "the key is none of clean's"


def test_a_source_is_new_until_its_lateness_is_in_a_snapshot() -> None:
    core = cleaner()
    assert not core.new_source
    ticks(core, 1)
    assert core.new_source and core.records(0) and not core.new_source
    ticks(core, 1, offset=1)
    assert not core.new_source
    ticks(core, 1, offset=2, symbol="T", source="b")
    assert core.new_source


def test_a_changelog_without_a_complete_snapshot_is_refused_in_words() -> None:
    with pytest.raises(StateError, match=r"clean, partition 0: its changelog holds no complete snapshot: use another STOCKSTREAM_TOPIC_PREFIX"):
        restored({b"snapshot/0": b"no"})


def test_an_empty_state_is_a_small_map() -> None:
    assert cleaning_state.decoded(stored.pack(State(v=VERSION))) == State(v=VERSION)


def test_what_fits_together_can_be_restored_and_what_does_not_is_passed_over_in_pieces_too() -> None:
    core, rng, broken = cleaner(), random.Random(5), 0
    ticks(core, 5, session="am")
    ticks(core, 1, offset=5, symbol="T", source="b", seq=9)
    good = msgspec.msgpack.decode(core.snapshot())
    for _ in range(400):
        changed = good | {}
        name = rng.choice([name for name, value in good.items() if isinstance(value, list) and name != "last_record"])
        column = changed[name] = list(good[name])
        if rng.random() < 0.5:
            column.append(column[0])
        elif type(column[0]) is int:
            column[rng.randrange(len(column))] = rng.choice([0, 1, 2, 7])
        else:
            column.pop()
        state = msgspec.msgpack.decode(msgspec.msgpack.encode(changed), type=State)
        try:
            state.sources()
            state.held()
            fails = False
        except (ValueError, IndexError):
            fails = True
        value = stored.pack(state)
        broken += fails
        fault = cleaning_state.readable(b"snapshot/1", value)
        assert fault or not fails, (name, column)
        pieces = [(b"snapshot/1/0/%d" % number, piece) for number, piece in enumerate(stored.split(value, VERSION, 100))]
        assert Cleaner.complete(dict(pieces)) == (not fault)
    assert 50 < broken < 400


@pytest.mark.parametrize("expect", [-2, 1 << 63, 1 << 64, -(1 << 63)])
def test_a_snapshot_of_an_offset_that_no_log_has_is_passed_over(expect: int) -> None:
    with pytest.raises(ValueError, match=f"no log goes on from offset {expect}"):
        cleaning_state.State(
            v=cleaning_state.VERSION, expect=expect, log="log", lateness_ms=200, revise_s=30, partitions=1, last_record=(0, 0),
        ).require_fitting()  # fmt: skip

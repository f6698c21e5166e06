"""State records of `score`: bounds, versions, what is forgotten."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from stockstream.errors import StateError
from stockstream.records import WINDOWS_SCHEMA, Closing
from stockstream.transforms import versioned as stored
from stockstream.transforms.frames import Frame
from stockstream.transforms.scoring import state as state
from stockstream.transforms.scoring.asking import RING_S
from stockstream.transforms.scoring.pending import NAMES_KEPT
from stockstream.transforms.scoring.scorer import Contender, Scorer, encode_outcomes, encode_predictions
from stockstream.transforms.timing import FORGET_MS
from tests.changelogs import Changelog
from tests.unit.transforms.test_scoring import Fake

MESSAGE = 1_000_000
DAY_MS = 86_400_000
LONG = "\u80a1"
V1 = Path(__file__).resolve().parents[2] / "fixtures" / "state-v1" / "score.msgpack.gz"


def load(name: str, version: str) -> Fake:
    return Fake(version, name)


def frame_of(offset: int, second: int, symbols: list[str], sources: list[str], clock: int = 0, after: int | None = None) -> Frame:
    """One closing of each source at one offset; all symbols tick in the second, in the first source."""
    n = len(symbols)
    columns: dict[str, Any] = {f.name: pa.nulls(n, f.type) if pa.types.is_floating(f.type) else pa.array(np.zeros(n), f.type) for f in WINDOWS_SCHEMA
                               if not pa.types.is_string(f.type)}  # fmt: skip
    columns |= {"symbol": pa.array(symbols, pa.string()), "source": pa.array([sources[0]] * n, pa.string()), "quality": pa.array([""] * n, pa.string())}
    columns |= {"second": pa.array([second] * n, pa.int64()), "offset": pa.array([offset] * n, pa.int64()), "price": pa.array(100.0 + np.arange(n) % 7)}
    columns["revised"] = pa.array([False] * n)
    rows = pa.RecordBatch.from_arrays([columns[name] for name in WINDOWS_SCHEMA.names], schema=WINDOWS_SCHEMA)
    before = second - 1 if after is None else after
    return Frame("a", offset, offset, tuple(Closing(offset, source, before, second) for source in sorted(sources)), rows, log_clock=clock)


@pytest.mark.slow
def test_every_record_and_message_is_within_its_bound_with_20_000_long_symbols_and_many_models() -> None:
    symbols = [f"{number:05d}".ljust(32, LONG) for number in range(20_000)]
    shadows = [Contender(Fake(f"{number}" * 40, "m" * 64, (10, 60, 120)), "shadow") for number in range(4)]
    scorer = Scorer(0, [Contender(Fake("1" * 40, "m" * 63)), *shadows])
    values: list[bytes] = []
    kept: dict[bytes, bytes] = {}
    for offset, second in enumerate((1_000, 1_010, 1_020)):
        scored = scorer.take_frame(frame_of(offset, second, symbols, ["s"], after=second - 10))
        assert scored is not None and len(scored.symbols) == 20_000
        values += encode_outcomes(scored, 1)
        records = scorer.records()
        kept |= dict(records)
        values += [key + value for key, value in records]
    assert len(values) > 20 and max(map(len, values)) < MESSAGE
    assert scored is not None and max(map(len, encode_predictions(scored, 1, {}))) < 1_000
    again = Scorer.restore(0, kept, lambda name, version: next(c.model for c in shadows if c.model.version == version) if version[0] != "1" or name != "m" * 63
                           else Fake("1" * 40, "m" * 63))  # fmt: skip
    nxt = frame_of(3, 1_030, symbols, ["s"], after=1_020)
    mine, theirs = scorer.take_frame(nxt), again.take_frame(nxt)
    assert mine is not None and theirs is not None and encode_outcomes(mine, 1) == encode_outcomes(theirs, 1)


def test_a_checkpoint_of_2_000_sources_with_long_names_is_cut_and_survives_a_kill_between_its_parts() -> None:
    sources = [f"{number:04d}".ljust(128, LONG) for number in range(2_000)]
    scorer = Scorer(0, [Contender(Fake())])
    log: list[tuple[bytes, bytes]] = []
    for offset in range(3):
        scorer.take_frame(frame_of(offset, 1_000 + offset, ["A"], sources))
        records = scorer.records()
        assert all(len(key) + len(value) < MESSAGE for key, value in records)
        heads = [record for record in records if state.read_key(record[0]).kind == "head"]
        assert len(heads) > 1
        log += records
    for cut in range(len(heads) + 1):
        kept = dict(log[: len(log) - cut])
        restored = Scorer.restore(0, kept, load)
        assert restored.expect == (3 if cut == 0 else 2)
        assert Scorer.needs(kept) is not None
        assert len(restored._sources) == 2_000
    only_a_part = dict(log[-1:])
    assert Scorer.needs(only_a_part) is None


def test_a_changelog_with_cut_checkpoints_is_read_from_its_end() -> None:
    sources = [f"{number:04d}".ljust(128, LONG) for number in range(2_000)]
    rng = random.Random(1)
    table, scorer = Changelog(rng), Scorer(0, [Contender(Fake())])
    for offset in range(5):
        scorer.take_frame(frame_of(offset, 1_000 + offset, ["A", "B"], sources))
        table.write(scorer.records(), scorer.index)
    for _ in range(5):
        found = table.read(Scorer.needs)
        assert Scorer.restore(0, found.records, load, found.offsets).expect == 5


def test_unknown_fields_are_ignored_missing_ones_have_their_default_and_newer_versions_are_refused() -> None:
    scorer = Scorer(3, [Contender(Fake())])
    scorer.take_frame(frame_of(0, 1_000, ["A"], ["s"]))
    later: dict[bytes, bytes] = {}
    for key, value in scorer.records(everything=True):
        fields = msgspec.msgpack.decode(value)
        fields.pop("needed", None)
        fields.pop("change", None)
        later[key] = msgspec.msgpack.encode({**fields, "colour": "red"})
    again = Scorer.restore(3, later, load)
    assert again.expect == 1 and again.champion == ("fake", "1") and again._sources["s"].closed == 1_000
    assert all(Scorer.readable(*item) == "" for item in later.items())
    newer = {key: msgspec.msgpack.encode(msgspec.msgpack.decode(value) | {"v": 4}) for key, value in later.items()}
    for item in newer.items():
        with pytest.raises(StateError, match="upgrade this worker"):
            Scorer.readable(*item)
    with pytest.raises(StateError, match="upgrade this worker"):
        Scorer.restore(3, newer, load)
    with pytest.raises(StateError, match="upgrade this worker"):
        Scorer.needs(newer)


def test_records_of_version_1_are_read() -> None:
    records = {key: value for _, key, value in msgspec.msgpack.decode(gzip.decompress(V1.read_bytes()))}
    kinds = {state.read_key(key).kind for key in records}
    assert kinds == {"head", "roster", "slot"}
    assert {stored.version_of(value) for value in records.values()} == {1}
    assert all(Scorer.readable(*item) == "" for item in records.items())
    assert Scorer.needs(records) is not None
    key = state.read_key(next(iter(records)))
    scorer = Scorer.restore(key.partition, records, load)
    assert scorer.expect > 0 and scorer.champion is not None
    written = dict(scorer.records(everything=True))
    assert written and {stored.version_of(value) for value in written.values()} == {3}
    again = Scorer.restore(key.partition, written, load)
    assert (again.expect, again.resume_input, again.champion) == (scorer.expect, scorer.resume_input, scorer.champion)


def test_rubbish_under_keys_like_ours_is_told_from_records() -> None:
    scorer = Scorer(3, [Contender(Fake())])
    scorer.take_frame(frame_of(0, 1_000, ["A", "B"], ["s"]))
    rng = random.Random(3)
    for key, value in scorer.records(everything=True):
        assert Scorer.readable(key, value) == ""
        for bad in (b"", b"x", b"\xc1", b"\x80", b"\x91\x01", value[:-1], msgspec.msgpack.encode([1, 2, 3]), b"\x91" * 100_000, rng.randbytes(200)):
            assert Scorer.readable(key, bad)
        assert Scorer.readable(key[:-1], value)
    assert Scorer.readable(b"\xc1", b"x") and Scorer.readable(msgspec.msgpack.encode([3, "a", "slot", 0]), b"x")
    slot = next(item for item in scorer.records(everything=True) if state.read_key(item[0]).kind == "slot")
    fields = msgspec.msgpack.decode(slot[1])
    for wrong in ({"price": b"123"}, {"symbols": ["A"]}, {"part": 1}, {"second": 1 << 60}, {"said": [fields["said"][0] | {"horizons_s": [200]}]}):
        assert Scorer.readable(slot[0], msgspec.msgpack.encode(fields | wrong))


@pytest.mark.slow
def test_thirty_days_with_new_symbols_and_sources_each_day_leave_memory_and_state_as_they_were() -> None:
    """Each day 20 sources of a day's replay come and go, and the one that stays gets 300 new symbols."""
    scorer, offset = Scorer(0, [Contender(Fake())]), 0
    begin_ms, sizes, written = 1_700_000_000_000, [], 0
    for day in range(30):
        for step in range(48):
            clock = begin_ms + day * DAY_MS + step * DAY_MS // 48
            second = clock // 1_000
            symbols = [f"D{day}-{(step * 25 + number) % 300}" for number in range(100)]
            scorer.take_frame(frame_of(offset, second, symbols, ["feed"], clock, after=second - 1))
            offset += 1
            if step < 20:
                replay = [f"replay.{day}.{step}"]
                scorer.take_frame(frame_of(offset, second, ["A", "B"], replay, clock if step % 2 else 0, after=second - 1))
                offset += 1
            records = scorer.records()
            if records:
                scorer.index.confirmed(written, written + len(records) - 1)
                written += len(records)
        everything = scorer.records(everything=True)
        scorer.index.confirmed(-1, -1)
        sizes.append((len(scorer._sources), len(scorer._sources["feed"].names), sum(map(len, (value for _, value in everything))), len(everything)))
    assert all(sources <= 41 and names <= NAMES_KEPT + 300 for sources, names, _, _ in sizes), sizes
    assert max(size for _, _, size, _ in sizes[2:]) <= 1.1 * max(size for _, _, size, _ in sizes[:2]), sizes


@pytest.mark.parametrize("restart", [False, True])
def test_a_source_is_forgotten_by_the_frames_clock_whether_there_was_a_restart_or_not(restart: bool) -> None:
    scorer, kept = Scorer(0, [Contender(Fake())]), dict[bytes, bytes]()

    def take(offset: int, source: str, clock: int) -> None:
        nonlocal scorer
        scorer.take_frame(frame_of(offset, 1_000 + offset, ["A"], [source], clock))
        kept.update(scorer.records())
        if restart:
            scorer = Scorer.restore(0, kept, load)

    begin = 1_700_000_000_000
    take(0, "old", begin)
    take(1, "undated", 0)                                                # a frame that was cut: the clock comes with its last message
    take(2, "new", begin + 1_000)
    take(3, "new", begin + FORGET_MS)
    assert set(scorer._sources) == {"old", "undated", "new"}
    take(4, "new", begin + FORGET_MS + 1)
    assert set(scorer._sources) == {"undated", "new"}
    take(5, "new", 0)
    take(6, "new", begin + FORGET_MS + 1_001)
    assert set(scorer._sources) == {"new"}


def test_symbols_are_forgotten_once_nothing_of_them_is_to_be_judged_and_outcomes_stay_right() -> None:
    scorer, out = Scorer(0, [Contender(Fake())]), []
    for second in range(400):
        symbols = [f"S{second * 20 + number}" for number in range(20)] + ["ALWAYS"]
        scored = scorer.take_frame(frame_of(second, 1_000 + second, symbols, ["s"]))
        assert scored is not None
        out += [item for message in encode_outcomes(scored, 1) for item in msgspec.json.decode(message)]
    assert len(scorer._sources["s"].names) <= max(NAMES_KEPT, 2 * 21 * RING_S) + 21
    assert len(out) == 21 * (390 + 340)
    for item in out:
        second, number = item["as_of"] // 1_000 - 1 - 1_000, item["symbol"]
        assert item["price_then"] == 100.0 + (20 if number == "ALWAYS" else int(number[1:]) - 20 * second) % 7

"""The chain of raw objects, and what is made of them."""

from __future__ import annotations

import json
import random
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path
from shutil import which

import cramjam
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.layout import HOUR_MS, folder_of_hour, parse_name, processed_name, raw_name
from stockstream.sinks.archive.processed import processed_objects, read_made, unprocessed
from stockstream.sinks.archive.raw_objects import Piece, after, encode, encode_json, key_and_value, lines, read_extent, read_raw_object
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, Store

T0 = 1_760_000_000_000 // HOUR_MS * HOUR_MS


@dataclass(frozen=True)
class Record:
    offset: int
    timestamp: int = T0
    key: bytes | None = b"AAPL"
    value: bytes | None = b'{"symbol":"AAPL","price":1.5}'


def records(first: int, last: int, timestamp: int = T0) -> list[Record]:
    return [Record(offset, timestamp, value=b'{"n":%d}' % offset) for offset in range(first, last + 1)]


def offsets_of(store: Store, log: str = "log1", partition: int = 0) -> list[int]:
    """Every archived offset, in order of names' first offsets."""
    names = [name for name in store.list("raw/") if (parsed := parse_name(name)) and (parsed.log, parsed.partition) == (log, partition)]
    return [line.offset for name in sorted(names, key=lambda name: name[-30:]) for line in read_raw_object(store, name)[1]]


# Lines


@given(st.lists(st.tuples(st.none() | st.binary(), st.none() | st.binary() | st.text().map(str.encode)), min_size=1))
def test_lines_keep_every_byte(pairs: list[tuple[bytes | None, bytes | None]]) -> None:
    given_records = [Record(offset, T0 + offset, key, value) for offset, (key, value) in enumerate(pairs)]
    store = MemoryStore()
    chain = Chain(store, "log1", 3)
    chain.append(encode(3, given_records))
    _, found = read_raw_object(store, chain.newest)
    told = [(line.partition, line.offset, line.timestamp, *key_and_value(line)) for line in found]
    assert told == [(3, r.offset, r.timestamp, r.key, r.value) for r in given_records]


def test_a_line_is_plain_json() -> None:
    assert json.loads(lines(2, [Record(7)])) == {"partition": 2, "offset": 7, "timestamp": T0, "key": "AAPL", "value": '{"symbol":"AAPL","price":1.5}'}
    assert json.loads(lines(2, [Record(7, key=None, value=None)])) == {"partition": 2, "offset": 7, "timestamp": T0, "key": None, "value": None}
    assert json.loads(lines(2, [Record(7, value=b"\xff")])) == {"partition": 2, "offset": 7, "timestamp": T0, "key": "AAPL", "value_base64": "/w=="}


def test_pieces_part_at_hours_and_at_unproven_gaps() -> None:
    mixed = [Record(1), Record(2), Record(3, T0 + HOUR_MS), Record(5, T0 + HOUR_MS), Record(6)]
    assert [(p.start, list(p.offsets), p.hour - T0 // HOUR_MS) for p in encode(0, mixed)] == [(1, [1, 2], 0), (3, [3], 1), (5, [5], 1), (6, [6], 0)]
    assert [(p.start, list(p.offsets)) for p in encode(0, mixed, start=0)] == [(0, [1, 2]), (3, [3, 5]), (6, [6])]
    for bad in ([Record(2), Record(2)], [Record(3), Record(1)]):
        with pytest.raises(ArchiveError, match="do not ascend"):
            encode(0, bad)
    with pytest.raises(ArchiveError, match="before the expected offset 4"):
        encode(0, [Record(2)], start=4)


@given(st.sets(st.integers(0, 30), min_size=1), st.integers(-1, 32))
def test_after_is_what_lies_behind(offsets: set[int], cut: int) -> None:
    [piece] = encode(0, [Record(offset) for offset in sorted(offsets)], start=0)
    rest = after(piece, cut)
    left = [offset for offset in sorted(offsets) if offset > cut]
    if not left:
        assert rest is None
        return
    assert rest is not None and list(rest.offsets) == left and rest.start == max(cut + 1, 0) and rest.data == lines(0, [Record(offset) for offset in left])


def test_folders_and_names() -> None:
    assert folder_of_hour(T0 // HOUR_MS) == "date=2025-10-09/hour=08"
    assert folder_of_hour(-5) == "date=1970-01-01/hour=00" and folder_of_hour(1 << 60) == "date=9999-12-31/hour=23"
    name = raw_name("date=2025-10-09/hour=08", "a-00001-b", 7, 12)
    parsed = parse_name(name)
    assert parsed and (parsed.log, parsed.partition, parsed.first, parsed.folder) == ("a-00001-b", 7, 12, "date=2025-10-09/hour=08")
    assert parse_name("raw/date=2025-10-09/hour=08/x.jsonl.zst") is None
    with pytest.raises(ArchiveError, match="cannot be part of a name"):
        Chain(MemoryStore(), "a/b", 0)


# Objects


def test_an_object_is_read_by_ordinary_readers(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    chain = Chain(store, "log1", 0)
    chain.append(encode(0, records(0, 2999)))
    chain.append_hole(3009)
    chain.append(encode(0, records(3010, 3100)))
    path = tmp_path / chain.newest
    everything = f"{tmp_path}/raw/*/*/*.jsonl.zst"
    sql = f"SELECT count(\"offset\"), sum(\"offset\") FROM read_json('{everything}', format='newline_delimited')"
    assert duckdb.connect().execute(sql).fetchall() == [(3091, sum(range(3000)) + sum(range(3010, 3101)))]
    data = path.read_bytes()
    expected = lines(0, records(3010, 3100))[:-2] + b',"object":' + encode_json(read_extent(store, chain.newest)) + b"}\n"
    assert pa.CompressedInputStream(pa.BufferReader(data), "zstd").read() == expected
    assert bytes(cramjam.zstd.decompress(data)) == expected
    if which("zstd"):
        assert subprocess.run(["zstd", "-dc", str(path)], capture_output=True, check=True).stdout == expected


def test_a_damaged_object_is_noticed() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 0)
    chain.append(encode(0, records(0, 99)))
    good = store.objects[chain.newest]
    bad = [good[:-3], good[:50] + b"\0\0\0\0" + good[54:], b"", good[:10], good[10:], good + good, good.replace(b'"count":100', b'"count":101')]
    for data in bad:
        store.objects[chain.newest] = data
        with pytest.raises(ArchiveError):
            read_raw_object(store, chain.newest)
        assert check(store).faults


def test_many_holes_do_not_fit_the_tail_and_are_read_all_the_same() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 0)
    chain.append(encode(0, [Record(offset) for offset in range(0, 9000, 3)], start=0))
    extent = read_extent(store, chain.newest)
    assert extent.count == 3000 and len(extent.holes) == 2999 and extent.holes[0] == (1, 2) and extent.last == 8997
    assert not check(store).faults


# The chain


def test_a_chain_goes_on_where_it_ended() -> None:
    store = MemoryStore()
    for first, last, hours in ((0, 9, 0), (10, 19, 0), (20, 29, 1), (30, 39, 0), (40, 44, 50)):
        chain = Chain(store, "log1", 0)
        chain.open()
        assert chain.end == first - 1
        chain.append(encode(0, records(first, last, T0 + hours * HOUR_MS)))
        assert chain.end == last
    assert offsets_of(store) == list(range(45)) and not check(store).faults
    other = Chain(store, "log1-00000", 0)       # a log id that looks like another one's names
    other.open()
    assert other.end == -1


def test_the_loser_goes_on_behind_what_won() -> None:
    store = MemoryStore()
    a, b = Chain(store, "log1", 0), Chain(store, "log1", 0)
    a.open()
    b.open()
    a.append(encode(0, records(0, 9)))
    b.append(encode(0, records(0, 4)))
    assert b.end == 9 and b.newest == a.newest and b.tail == a.tail
    b.append(encode(0, records(10, 12)))
    a.append(encode(0, records(10, 99)))
    assert a.end == 12 and offsets_of(store) == list(range(13))


def test_an_object_must_follow() -> None:
    chain = Chain(MemoryStore(), "log1", 0)
    with pytest.raises(ArchiveError, match="cannot follow"):
        chain.append(encode(0, records(5, 9)))


def test_lost_offsets_and_a_writer_that_still_held_them() -> None:
    """The owner reads 10 from the hour after; a zombie holds 10 in memory; for the next owner retention has taken 10 to 14."""
    for zombie_first in (True, False):
        for hour in (0, 1, 2):
            store = MemoryStore()
            zombie, owner = Chain(store, "log1", 0), Chain(store, "log1", 0)
            zombie.append(encode(0, records(0, 9)))
            owner.open()
            held = encode(0, records(10, 14, T0 + hour * HOUR_MS) + records(15, 19, T0 + 2 * HOUR_MS))
            found = [replace(piece, start=10, expired=True) for piece in encode(0, records(15, 19, T0 + 2 * HOUR_MS))]
            for writer in (zombie, owner) if zombie_first else (owner, zombie):
                pieces = held if writer is zombie else found
                while writer.end < 19:
                    writer.append([piece for piece in (after(piece, writer.end) for piece in pieces) if piece][:1])
            assert not check(store).faults
            assert offsets_of(store) == (list(range(20)) if zombie_first else [*range(10), *range(15, 20)])


def test_a_log_whose_beginning_is_gone() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 0)
    pieces = [replace(piece, start=0, expired=True) for piece in encode(0, records(500, 509))]
    while chain.end < 509:
        chain.append([piece for piece in (after(piece, chain.end) for piece in pieces) if piece])
        again = Chain(store, "log1", 0)
        again.open()
        assert again.end == chain.end
    report = check(store)
    assert not report.faults and report.chains[0].holes == 500 and offsets_of(store) == list(range(500, 510))
    only = Chain(store, "log2", 0)
    only.append_hole(41)
    again = Chain(store, "log2", 0)
    again.open()
    assert again.end == only.end == 41 and not check(store).faults


class Log:
    """A partition in Kafka: records, markers where nothing is, and a beginning that retention moves."""

    def __init__(self, rng: random.Random, length: int) -> None:
        self.begin = 0
        clock = T0
        self.records: dict[int, Record] = {}
        for offset in range(length):
            clock += rng.choice((1000, 1000, 60_000, HOUR_MS // 3))
            if rng.random() < 0.9:
                late = HOUR_MS if rng.random() < 0.1 else 0
                self.records[offset] = Record(offset, clock - late, value=b"%d" % offset)
        self.length = length

    def read(self, first: int, last: int) -> list[Record]:
        return [self.records[offset] for offset in range(max(first, self.begin), last + 1) if offset in self.records]


class Writer:
    """One archiver: reads ahead now and then (and may sleep with it while retention goes on), appends a piece of any size, crashes at will."""

    def __init__(self, store: Store, log: Log, rng: random.Random) -> None:
        self.store, self.log, self.rng = store, log, rng
        self.held: list[Piece] = []
        self.chain: Chain | None = None

    def step(self) -> None:
        try:
            self._step()
        except ArchiveUnavailable:
            if self.rng.random() < 0.5:
                self.chain, self.held = None, []        # a crash

    def _step(self) -> None:
        if self.chain is None:
            chain = Chain(self.store, "log1", 0)
            chain.open()
            self.chain = chain
        chain = self.chain
        self.held = [piece for piece in (after(piece, chain.end) for piece in self.held) if piece]
        if not self.held or self.held[0].start != chain.end + 1:
            last = min(chain.end + self.rng.randint(1, 40), self.log.length - 1)
            found = self.log.read(chain.end + 1, last)
            if not found:
                if self.log.begin > last > chain.end:
                    chain.append_hole(last)
                elif last > chain.end:
                    found = self.log.read(chain.end + 1, self.log.length)[:1]
            if not found:
                return
            self.held = encode(0, found, start=chain.end + 1)
            self.held[0] = replace(self.held[0], expired=self.log.begin > chain.end + 1)
            return                                      # others may come in between
        taken = [self.held[0]]
        for piece in self.held[1:]:
            if piece.hour > taken[0].hour or self.rng.random() < 0.3:
                break
            taken.append(piece)
        chain.append(taken)


@pytest.mark.parametrize("seed", range(60))
def test_writers_that_know_nothing_of_each_other_make_one_chain(seed: int) -> None:
    rng = random.Random(seed)
    log = Log(rng, 150)
    store = MemoryStore(seed)
    writers = [Writer(store, log, rng) for _ in range(3)]
    late: list[tuple[str, bytes]] = []
    depth = 0

    class Delaying(MemoryStore):
        """Some requests are lost on their way and arrive much later; others wait while somebody else takes a step."""

        def create(self, name: str, data: bytes) -> bool:
            nonlocal depth
            if rng.random() < 0.1:
                late.append((name, data))
                raise ArchiveUnavailable("sent, and no answer")
            if depth < 2 and rng.random() < 0.3:
                depth += 1
                step(rng.choice([writer for writer in writers if writer not in busy]))
                depth -= 1
            return store.create(name, data)

        def list(self, prefix: str, start_after: str = "") -> Iterator[str]:
            return store.list(prefix, start_after)

        def read(self, name: str, tail: int = 0) -> bytes:
            return store.read(name, tail)

        def size(self, name: str) -> int | None:
            return store.size(name)

    busy: list[Writer] = []

    def step(writer: Writer) -> None:
        busy.append(writer)
        try:
            writer.step()
        finally:
            busy.remove(writer)

    for writer in writers:
        writer.store = Delaying()

    for _ in range(250):
        step(rng.choice(writers))
        if late and rng.random() < 0.1:
            store.create(*late.pop(rng.randrange(len(late))))
        if rng.random() < 0.02:
            log.begin = min(log.begin + rng.randint(1, 20), log.length - 20)
    rng.shuffle(late)
    for name, data in late:
        store.create(name, data)
    last = Writer(store, log, random.Random(seed))
    for _ in range(500):
        last.step()
    end = max(log.records)
    found = offsets_of(store)
    assert max(Counter(found).values()) == 1, "a record is archived once"
    lost = set(log.records) - set(found)
    assert all(offset < log.begin for offset in lost), "only what retention took may be missing"
    report = check(store)
    assert report.faults == [] and report.chains[0].last >= end
    for name in store.list("raw/"):
        for line in read_raw_object(store, name)[1]:
            assert log.records[line.offset].value == key_and_value(line)[1]


# Processed objects


def ticks(rows: Sequence[tuple[str, int, float | None, int, int, int]], source: str = "s") -> pa.Table:
    """(symbol, event_time, price, size, offset, index) -> TICKS_SCHEMA."""
    full = [
        {"symbol": symbol, "source": source, "event_time": at, "price": price, "size": size, "offset": offset, "index": index}
        for symbol, at, price, size, offset, index in rows
    ]
    return pa.Table.from_pylist(full, schema=TICKS_SCHEMA)


def test_processed_objects_lie_by_event_time_and_the_last_says_that_all_are_there() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 4)
    chain.append([replace(piece, start=0) for piece in encode(4, records(0, 9))])
    extent = read_extent(store, chain.newest)
    rows = ticks([
        ("B", T0 - HOUR_MS, 2.0, 5, 0, 0), ("A", T0 - HOUR_MS + 1, 1.0, 5, 1, 0), ("A", T0 + 1, 3.0, 5, 2, 0), ("A", T0, 2.0, 5, 3, 1), ("A", T0, 1.0, 5, 3, 0),
    ])  # fmt: skip
    made = processed_objects(extent, chain.newest, rows)
    assert made == processed_objects(extent, chain.newest, rows.take(pa.array([4, 2, 0, 3, 1]))), "whoever makes them"
    names = [name for name, _ in made]
    assert names[-1] == processed_name(chain.newest) and len(names) == len(set(names)) == 3
    tables = {name: pq.read_table(pa.BufferReader(data)) for name, data in made}
    main = tables[names[-1]]
    assert main.column("offset").to_pylist() == [3, 3, 2] and main.column("index").to_pylist() == [0, 1, 0]
    assert set(main.column("log").to_pylist()) == {"log1"} and set(main.column("partition").to_pylist()) == {4}
    assert unprocessed(chain) == [chain.newest]
    for name, data in made:
        store.create(name, data)
    assert unprocessed(chain) == []
    assert read_made(store, names[-1]).objects == {name: table.num_rows for name, table in tables.items()}
    report = check(store)
    assert not report.faults and report.chains[0].ticks == 5 and report.chains[0].processed == 9


def test_a_correction_changes_the_volume_of_its_minute_alone() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 4)
    chain.append([replace(piece, start=0) for piece in encode(4, records(0, 9))])
    rows = ticks([("A", T0, 2.0, 5, 0, 0), ("A", T0 + 1, 3.0, 7, 1, 0), ("B", T0, 1.0, 5, 1, 1)]).to_pylist()
    rows += [row | {"size": -row["size"] + 0.1, "flags": 2, "offset": 3, "index": 0} for row in (rows[1], rows[2] | {"symbol": "C"})]
    made = processed_objects(read_extent(store, chain.newest), chain.newest, pa.Table.from_pylist(rows, TICKS_SCHEMA))
    (bars,) = [pq.read_table(pa.BufferReader(data)).to_pylist() for name, data in made if "bars_1m" in name]
    found = {bar["symbol"]: [bar[name] for name in ("open", "close", "ticks", "volume", "notional", "last_offset")] for bar in bars}
    assert found == {"A": [2.0, 3.0, 2, 5.1, 10.0 + 21.0 - 6.9 * 3.0, 1], "B": [1.0, 1.0, 1, 5.0, 5.0, 1], "C": [None, None, 0, -4.9, -4.9, None]}


@pytest.mark.parametrize(("away_s", "marked"), [(20, [0]), (90, [-1, 0]), (7 * 60, list(range(-7, 1))), (3600, [*range(-60, -55), *range(-4, 1)])])
def test_the_minutes_at_both_ends_of_a_gap_of_the_feed_are_marked(away_s: int, marked: list[int]) -> None:
    """By parts without ticks: the bars of those minutes may be in other objects."""
    store = MemoryStore()
    chain = Chain(store, "log1", 4)
    chain.append([replace(piece, start=0) for piece in encode(4, records(0, 9))])
    at = T0 // 60_000 * 60_000 + 30_000
    rows = ticks([("A", at, 2.0, 5, 1, 0), ("B", at, 2.0, 5, 2, 0)]).to_pylist()
    rows[0] |= {"flags": 8, "gap_from": at - away_s * 1000}
    made = processed_objects(read_extent(store, chain.newest), chain.newest, pa.Table.from_pylist(rows, TICKS_SCHEMA))
    bars = [bar for name, data in made if "bars_1m" in name for bar in pq.read_table(pa.BufferReader(data)).to_pylist()]
    gaps = [bar for bar in bars if bar["gap"]]
    assert sorted((bar["minute"].replace(tzinfo=UTC).timestamp() * 1000 - at) // 60_000 + 1 for bar in gaps) == marked
    assert {(bar["symbol"], bar["source"], bar["open"], bar["ticks"], bar["volume"], bar["log"], bar["partition"]) for bar in gaps} == {
        ("A", bars[0]["source"], None, 0, 0.0, "log1", 4)
    }
    assert [(bar["symbol"], bar["ticks"]) for bar in bars if not bar["gap"]] == [("A", 1), ("B", 1)]


def test_an_object_without_accepted_ticks_is_processed_too() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 0)
    chain.append(encode(0, records(0, 9)))
    [(name, data)] = processed_objects(read_extent(store, chain.newest), chain.newest, ticks([]), [(3, 5)])
    store.create(name, data)
    report = check(store)
    assert not report.faults and report.chains[0].processed == 9 and report.chains[0].missing == 3


def test_faults_of_processed_objects_are_found() -> None:
    store = MemoryStore()
    chain = Chain(store, "log1", 0)
    for first in (0, 10):
        chain.append(encode(0, records(first, first + 9)))
        for name, data in processed_objects(read_extent(store, chain.newest), chain.newest, ticks([("A", T0 - HOUR_MS, 2.0, 5, first, 0)])):
            store.create(name, data)
    assert not check(store).faults
    whole = dict(store.objects)
    for name in whole:
        store.objects = dict(whole)
        del store.objects[name]
        last = name.endswith(f"{10:020d}.jsonl.zst") or (name == processed_name(chain.newest))
        faults = check(store).faults
        assert faults or last, name
        assert not (name == processed_name(chain.newest) and faults), "what is not processed yet is no fault"
    store.objects = whole | {"raw/date=2025-10-09/hour=08/log9-00000-00000000000000000000.jsonl.zst": b"", "raw/x": b"", "processed/x": b""}
    assert len(check(store).faults) == 4, "the object of log9 is broken, and has no entry"

"""The form of raw objects: read by decoders of others, and by later releases."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cramjam
import duckdb
import pytest

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.chain import Chain
from stockstream.sinks.archive.layout import folder_of_hour
from stockstream.sinks.archive.raw_objects import STORED_BYTES, TAIL_BYTES, CleanSettings, NoTrailer, encode, read_extent, read_raw_object
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.memory import MemoryStore
from stockstream.sinks.stores import FileStore, Store
from stockstream.sql.objects import stored_rows
from tests.archives import Record
from tests.standins.trino.zstd import NoDecoder, decode

VERSION_1 = Path(__file__).parents[2] / "fixtures" / "archive-v1"
"""Objects as the release before wrote them: 40 records, a hole, and records with as many holes as do not fit a tail."""
T0 = 1_760_000_000_000


def record(offset: int) -> Record:
    return Record(offset, T0 + offset, b'{"n":%d}' % offset, b"AAPL")


def filled(store: Store, chain: Chain | None = None) -> list[str]:
    """Adds one object of each kind: records, a hole, many holes, one record, a record larger than a tail. Returns their names."""
    chain = chain or Chain(store, "log1", 3, CleanSettings("200", 30, 8, 'a "format",{"object":{"log":'))
    names = []
    for offsets in (range(40), None, range(45, 9000, 3), range(8998, 8999), range(8999, 9000)):
        if offsets is None:
            chain.append_hole(44)
        else:
            large = b'","object":{"log":"x"}}\n' * 50_000
            some = [record(offset) if offset != 8999 else Record(offset, T0 + offset, large) for offset in offsets]
            chain.append(encode(3, some, offsets[0]))
        names.append(chain.newest)
    return names


def test_the_trailer_is_read_from_the_end_of_an_object() -> None:
    store = MemoryStore()
    names = filled(store)
    for name, count, holes in zip(names, (40, 0, 2985, 1, 1), (0, 1, 2984, 0, 0), strict=True):
        extent, lines = read_raw_object(store, name)
        assert read_extent(store, name) == extent
        assert (extent.count, len(extent.holes), len(lines), extent.version) == (count, holes, count, 2)
    assert len(store.objects[names[2]]) > TAIL_BYTES > STORED_BYTES
    assert not check(store).faults


def test_one_line_is_one_record(tmp_path: Path) -> None:
    names = filled(FileStore(tmp_path))
    for name, count in zip(names, (40, 1, 2985, 1, 1), strict=True):
        lines = [json.loads(line) for line in bytes(cramjam.zstd.decompress((tmp_path / name).read_bytes())).splitlines()]
        assert len(lines) == count
        assert ["object" in line for line in lines] == [False] * (count - 1) + [True]
        assert ["offset" in line for line in lines] == [name != names[1]] * count
    stored = stored_rows("raw", [str(tmp_path / name) for name in names], differs=False)
    assert duckdb.execute(f'SELECT count(*), max("offset") FROM ({stored})').fetchall() == [(40 + 2985 + 2, 8999)]


def test_trinos_decoder_reads_raw_objects(tmp_path: Path) -> None:
    store = MemoryStore()
    objects = [store.objects[name] for name in filled(store)]
    old = (VERSION_1 / f"raw/{folder_of_hour(T0 // 3_600_000)}/log1-00003-{0:020d}.jsonl.zst").read_bytes()
    try:
        *found, refused = decode([*objects, old], tmp_path)
    except NoDecoder as error:
        pytest.skip(str(error))
    assert found == [bytes(cramjam.zstd.decompress(data)) for data in objects]
    assert isinstance(refused, str) and "Invalid magic prefix" in refused, "so the form changed"


def test_objects_of_the_release_before_are_read_and_continued(tmp_path: Path) -> None:
    shutil.copytree(VERSION_1, tmp_path, dirs_exist_ok=True)
    store = FileStore(tmp_path)
    names = list(store.list("raw/"))
    read = [read_raw_object(store, name) for name in names]
    assert [[line.offset for line in lines] for _, lines in read] == [[*range(40)], [], [*range(45, 9000, 3)]]
    assert [read_extent(store, name) for name in names] == [extent for extent, _ in read]
    assert all(extent.version == 1 for extent, _ in read)
    chain = Chain(store, "log1", 3)
    chain.open()
    chain.append(encode(3, [record(offset) for offset in range(8998, 9010)], 8998))
    assert read_extent(store, chain.newest).version == 2 and read_extent(store, chain.newest).previous == names[-1]
    assert not check(store).faults


@pytest.mark.parametrize("kind", [0, 1], ids=["records", "a hole"])
def test_a_flipped_byte_of_the_release_before_is_found(kind: int, tmp_path: Path) -> None:
    name = sorted(FileStore(VERSION_1).list("raw/"))[kind]
    data = (VERSION_1 / name).read_bytes()
    store = MemoryStore()
    for at in range(len(data)):
        store.objects[name] = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        with pytest.raises(ArchiveError):
            read_raw_object(store, name)


def test_what_is_no_raw_object_has_no_trailer() -> None:
    store = MemoryStore()
    sealed = b'{"x":1,"checksum":"00000000"}}\n'
    for data in (b"", b"\n", sealed, bytes(cramjam.zstd.compress(b'{"offset":1}\n')), b"stockstream-1", b"\xff\xff\xff\xffstockstream-1"):
        store.objects["x"] = data
        with pytest.raises(ArchiveError):
            read_raw_object(store, "x")
        with pytest.raises(ArchiveError):
            read_extent(store, "x")
    store.objects["x"] = b"{}\n"
    with pytest.raises(NoTrailer):
        read_extent(store, "x")

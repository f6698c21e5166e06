"""Positions: which records of a topic partition the archive accounts for, step by step.

    positions/<topic>-<partition>/<life>/<number / 1000>/<number>.json

Positions of one life are numbered from 0 without a gap, and each begins with the record after the last one of the position before. A topic that was created
again, or that lost records which are in the archive, begins another life, in which record offsets have another meaning.

The newest position decides where a writer continues. Earlier ones are there for verification, a hundred of them packed into one object (`packing`):

    positions/packed/<topic>-<partition>/<life>/<first number>.jsonl.zst

A pack is created before its positions are deleted, and its positions count from then on. So a writer that has been frozen and creates a deleted position again
finds the pack, and continues after it like any other writer that came second.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import cramjam
import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.raw_objects import RawRecord, Tail, encode_json
from stockstream.sinks.archive.sealing import changed, seal_json, unseal_json
from stockstream.sinks.stores import CALLS_AT_ONCE, Store

POSITIONS = "positions/"
PACKED = f"{POSITIONS}packed/"
IN_A_PACK = 100
READ_AHEAD = 64
"""Objects that a verification reads before it looks at the positions in them."""
IN_A_FOLDER = 1_000
"""A folder of a file system holds this many positions: a year has about a million of each partition."""
_NAME = re.compile(rf"{POSITIONS}(?P<of>[a-z0-9_]+-\d{{5}}/\d{{4}})/\d+/(?P<number>\d+)\.json")
_PACK = re.compile(rf"{PACKED}(?P<of>[a-z0-9_]+-\d{{5}}/\d{{4}})/(?P<number>\d+)\.jsonl\.zst")
NEVER = -(1 << 62)
"""Before any time."""


class State(msgspec.Struct, frozen=True):
    """What decides whether later rows are repetitions. `newest`: the greatest `order_ms` of a row so far.

    Of `windows` also the id of the raw log, and the ranges of raw offsets (both ends included) that are accounted for.
    """

    newest: int = NEVER
    log: str = ""
    covered: tuple[tuple[int, int], ...] = ()


class Position(msgspec.Struct, frozen=True):
    """The archive accounts for the records `first` to `last` of a topic partition.

    `tail`: the record at `last`; its checksum includes Kafka's time. `objects`: their names and numbers of rows. `begin` and `end`: the state before and
    after. `records` were there, of which `skipped` were no messages of the topic; `repeated`: rows left out because they are in the archive already.
    `missing`: ranges of records that retention deleted before their rows were archived. They may belong to the position before. Version 1 has no checksum.
    """

    topic: str
    partition: int
    life: int
    number: int
    first: int
    last: int
    tail: Tail
    objects: Mapping[str, int]
    begin: State
    end: State
    records: int
    skipped: int = 0
    repeated: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    version: int = 2

    @property
    def log(self) -> str:
        """The log id in names and rows."""
        return log_of(self.topic, self.life)


_decode = msgspec.json.Decoder(Position).decode


def log_of(topic: str, life: int) -> str:
    """The id under which the rows of one life of a topic are stored. Of two lives, the greater id is the later one."""
    return f"{topic}.{life:04d}"


def tail_of(record: RawRecord) -> Tail:
    """What identifies a record later."""
    return Tail(record.offset, zlib.crc32(record.value or b"", record.timestamp & 0xFFFFFFFF))


def _prefix(topic: str, partition: int) -> str:
    return f"{POSITIONS}{topic}-{partition:05d}/"


def name_of(topic: str, partition: int, life: int, number: int) -> str:
    """The name of a position."""
    return f"{_prefix(topic, partition)}{life:04d}/{number // IN_A_FOLDER:06d}/{number:09d}.json"


def number_of(name: str) -> tuple[str, int] | None:
    """Topic partition with life (`windows-00003/0000`) and number of the position with this name; None if it is another object's."""
    match = _NAME.fullmatch(name)
    return (match["of"], int(match["number"])) if match else None


def pack_name(of: str, number: int) -> str:
    """The name of the pack that has this position, or will have it. `of` is as `number_of` gives it."""
    return f"{PACKED}{of}/{number // IN_A_PACK * IN_A_PACK:09d}.jsonl.zst"


def packs(store: Store) -> dict[str, list[int]]:
    """The first numbers of all packs, by topic partition with life."""
    found: dict[str, list[int]] = defaultdict(list)
    for name in store.list(PACKED):
        if (match := _PACK.fullmatch(name)) is not None:
            found[match["of"]].append(int(match["number"]))
    return found


def decode_position(name: str, data: bytes) -> Position:
    """The position in the object of this name. Raises `ArchiveError` if it cannot be read, or is not as it was written."""
    plain = unseal_json(name, data)
    try:
        position = _decode(plain)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error
    if name_of(position.topic, position.partition, position.life, position.number) != name:
        raise ArchiveError(f"{name} holds position {position.number} of life {position.life} of {position.topic}[{position.partition}]")
    if position.version > 1 and plain is data:
        raise changed(name)
    return position


def read_position(store: Store, name: str) -> Position:
    """Raises `ArchiveError` if it cannot be read."""
    return decode_position(name, store.read(name))


def encode_pack(positions: Sequence[Position]) -> bytes:
    """The pack with these positions, each a line with its checksum, as in its own object."""
    lines = [_sealed(position) for position in positions]
    return bytes(cramjam.zstd.compress(b"\n".join([*lines, b""])))


def read_pack(store: Store, name: str) -> list[Position]:
    """The positions of a pack, ascending by number. Raises `ArchiveError` if it cannot be read, or is not as it was written."""
    match = _PACK.fullmatch(name)
    assert match is not None
    try:
        lines = bytes(cramjam.zstd.decompress(store.read(name))).splitlines()
    except cramjam.DecompressionError as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error
    first, (topic_partition, life) = int(match["number"]), match["of"].split("/")
    topic, _, partition = topic_partition.rpartition("-")
    if len(lines) != IN_A_PACK:
        raise changed(name)
    try:
        return [decode_position(name_of(topic, int(partition), int(life), first + at), line) for at, line in enumerate(lines)]
    except ArchiveError as error:
        raise ArchiveError(f"{name}: {error}") from error


def _sealed(position: Position) -> bytes:
    return seal_json(name_of(position.topic, position.partition, position.life, position.number), encode_json(position))


def create_position(store: Store, position: Position) -> Position:
    """Creates the position, unless its number exists. Returns the position of that number: this one, or another writer's."""
    name = name_of(position.topic, position.partition, position.life, position.number)
    created = store.create(name, _sealed(position))
    pack = pack_name(f"{position.topic}-{position.partition:05d}/{position.life:04d}", position.number)
    if store.size(pack) is not None:                                     # the position was there before, and what was created now does not count
        return read_pack(store, pack)[position.number % IN_A_PACK]
    return position if created else read_position(store, name)


def lives(store: Store, topic: str, partition: int) -> Iterator[int]:
    """The lives of a topic partition that have a position, ascending."""
    prefix, after = _prefix(topic, partition), ""
    while (name := next(store.list(prefix, after), None)) is not None:
        life = name.removeprefix(prefix).partition("/")[0]
        yield int(life)
        after = f"{prefix}{life}/~"


def newest_positions(store: Store, topic: str, partition: int) -> list[Position]:
    """The newest position of each life, by life."""
    return [newest for life in lives(store, topic, partition) if (newest := _newest(store, topic, partition, life)) is not None]


def _newest(store: Store, topic: str, partition: int, life: int) -> Position | None:
    """Looks in steps that double, then halve: a life may have a million positions."""
    prefix = f"{_prefix(topic, partition)}{life:04d}/"

    def from_on(number: int) -> int | None:
        found = next(store.list(prefix, name_of(topic, partition, life, number - 1) if number else ""), None)
        return None if found is None else int(found.rpartition("/")[2].removesuffix(".json"))

    number = from_on(0)
    if number is None:
        return None
    step = 1
    while (found := from_on(number + step)) is not None:
        number, step = found, 2 * step
    while step > 1:
        step //= 2
        if (found := from_on(number + step)) is not None:
            number = found
    return read_position(store, name_of(topic, partition, life, number))


def all_positions(store: Store) -> Iterator[Position | str]:
    """Every position, by topic, partition, life and number; for one that cannot be read, why. Raises `ArchiveUnavailable`.

    A packing may take effect meanwhile: what is gone from the first listing is in the second one.
    """
    single: dict[str, list[tuple[int, str]]] = defaultdict(list)
    for name in store.list(POSITIONS):
        if (found := number_of(name)) is not None:
            single[found[0]].append((found[1], name))
        elif not name.startswith(PACKED):
            yield f"{name}: this is not the name of an archive object"
    packed = packs(store)
    for of in sorted(single.keys() | packed.keys()):
        firsts = set(packed.get(of, ()))
        objects = [(number, name) for number, name in single.get(of, ()) if number // IN_A_PACK * IN_A_PACK not in firsts]
        names = [name for _, name in sorted(objects + [(first, pack_name(of, first)) for first in firsts])]
        for begin in range(0, len(names), READ_AHEAD):
            with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
                for some in pool.map(lambda name: list(_positions_in(store, name)), names[begin : begin + READ_AHEAD]):
                    yield from some


def _positions_in(store: Store, name: str) -> Iterator[Position | str]:
    try:
        if name.startswith(PACKED):
            yield from read_pack(store, name)
        else:
            yield read_position(store, name)
    except ArchiveError as error:
        if error.retriable:
            raise
        found = number_of(name)
        if found is None or store.size(name) is not None or store.size(pack_name(*found)) is None:
            yield str(error)
        else:                                                            # it has been packed since
            yield from (position for position in read_pack(store, pack_name(*found)) if position.number == found[1])


def ranges_with(ranges: tuple[tuple[int, int], ...], first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Ascending ranges that do not touch, and another one, joined."""
    before = [each for each in ranges if each[1] < first - 1]
    after = [each for each in ranges if each[0] > last + 1]
    joined: list[Any] = [each for each in ranges if each[1] >= first - 1 and each[0] <= last + 1]
    return (*before, (min([first, *(each[0] for each in joined)]), max([last, *(each[1] for each in joined)])), *after)

"""Positions: which records of a topic partition the archive accounts for, step by step.

    positions/<topic>-<partition>/<life>/<number / 1000>/<number>.json

Positions of one life are numbered from 0 without a gap, and each begins with the record after the last one of the position before. A topic that was created
again, or that lost records which are in the archive, begins another life, in which record offsets have another meaning.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.raw_objects import RawRecord, Tail, encode_json
from stockstream.sinks.stores import Store

POSITIONS = "positions/"
IN_A_FOLDER = 1_000
"""A folder of a file system holds this many positions: a year has about a million of each partition."""
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
    `missing`: ranges of records that retention deleted before their rows were archived. They may belong to the position before.
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
    version: int = 1

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


def read_position(store: Store, name: str) -> Position:
    """Raises `ArchiveError` if it cannot be read."""
    try:
        position = _decode(store.read(name))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{name} cannot be read: {error}") from error
    if name_of(position.topic, position.partition, position.life, position.number) != name:
        raise ArchiveError(f"{name} holds position {position.number} of life {position.life} of {position.topic}[{position.partition}]")
    return position


def create_position(store: Store, position: Position) -> Position:
    """Creates the position, unless its number exists. Returns the position of that number: this one, or another writer's."""
    name = name_of(position.topic, position.partition, position.life, position.number)
    if store.create(name, encode_json(position)):
        return position
    return read_position(store, name)


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
    """Every position, by topic, partition, life and number; for one that cannot be read, why. Raises `ArchiveUnavailable`."""
    for name in store.list(POSITIONS):
        try:
            yield read_position(store, name)
        except ArchiveError as error:
            if error.retriable:
                raise
            yield str(error)


def ranges_with(ranges: tuple[tuple[int, int], ...], first: int, last: int) -> tuple[tuple[int, int], ...]:
    """Ascending ranges that do not touch, and another one, joined."""
    before = [each for each in ranges if each[1] < first - 1]
    after = [each for each in ranges if each[0] > last + 1]
    joined: list[Any] = [each for each in ranges if each[1] >= first - 1 and each[0] <= last + 1]
    return (*before, (min([first, *(each[0] for each in joined)]), max([last, *(each[1] for each in joined)])), *after)

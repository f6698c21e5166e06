"""A step of a topic partition: which records it accounts for, and its objects. The calls block; one thread at a time makes them for a partition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa

from stockstream.sinks.archive.compactions import replaced_by
from stockstream.sinks.archive.layout import parse_name
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.sinks.archive.retention import has_ended, processed_since
from stockstream.sinks.archive.schemas import without_place
from stockstream.sinks.archive.topics.frames import FrameGatherer, Ranges
from stockstream.sinks.archive.topics.gathered import Gathered, Gatherer
from stockstream.sinks.archive.topics.messages import MessageGatherer
from stockstream.sinks.archive.topics.objects import AREAS, Area, make_objects
from stockstream.sinks.archive.topics.positions import Position, State, create_position, log_of, newest_positions, tail_of
from stockstream.sinks.archive.topics.repeated import NoneRepeated, Repeated
from stockstream.sinks.stores import Store


@dataclass(slots=True)
class Buffer:
    """The records since the last step: their rows, and what a position states of them.

    `first` is None before the first record of a life, `last` before the first record after which no message is incomplete; `state` is the one after `last`.
    """

    rows: list[pa.Table] = field(default_factory=list)
    state: State = field(default_factory=State)
    first: int | None = None
    last: RawRecord | None = None
    records: int = 0
    skipped: int = 0
    repeated: int = 0
    missing: tuple[tuple[int, int], ...] = ()
    nbytes: int = 0
    """Of the rows."""

    def add(self, first: int, gathered: Gathered) -> None:
        """Adds what came with records from `first` on."""
        if self.first is None:
            self.first = first
        self.skipped += len(gathered.faults)
        if gathered.last is None:
            return
        self.last, self.state = gathered.last, gathered.state
        self.records += gathered.records
        self.repeated += gathered.repeated
        if gathered.rows.num_rows:
            self.rows.append(gathered.rows)
            self.nbytes += gathered.rows.nbytes


@dataclass(frozen=True, slots=True)
class Step:
    """A position with the objects that it lists, and all rows of them."""

    position: Position
    objects: Sequence[tuple[str, bytes]]
    rows: pa.Table


@dataclass(slots=True)
class Open:
    """Where a topic partition continues: the life and number of the next step, its first record (None: the first that Kafka has), and the state before it.

    `known`: what repetitions are held against.
    """

    life: int
    number: int
    first: int | None
    state: State
    gatherer: Gatherer
    known: Repeated


def gatherer_of(area: Area, state: State, ends: Sequence[Position]) -> Gatherer:
    """Reads the records of an area's topic. `ends` are the newest positions of all lives."""
    if area.name != "windows":
        return MessageGatherer(area.name)
    elsewhere: dict[str, Ranges] = {end.end.log: end.end.covered for end in ends if end.end.log}
    return FrameGatherer(state, elsewhere)


def open_after(store: Store, area: Area, partition: int, ends: Sequence[Position], chosen: Position | None) -> Open:
    """Where the life with the newest position `chosen` continues; without one, a new life begins."""
    if chosen is not None:
        life, number, first, state = chosen.life, chosen.number + 1, chosen.last + 1, chosen.end
    else:
        life, number, first = max((end.life for end in ends), default=-1) + 1, 0, None
        state = State(max((end.end.newest for end in ends), default=State().newest))
    return Open(life, number, first, state, gatherer_of(area, state, ends), _known(store, area, partition, state))


def _known(store: Store, area: Area, partition: int, state: State) -> Repeated:
    return Repeated(area, store, partition, state.newest) if area.identity else NoneRepeated()


def ends(store: Store, area: Area, partition: int) -> list[Position]:
    """The newest position of each life of a topic partition."""
    return newest_positions(store, area.name, partition)


def plan(area: Area, partition: int, at: Open, buffer: Buffer) -> Step:
    """The step with what is in the buffer, which has at least one record. Searches the archive for repetitions, and raises what the store raises."""
    assert buffer.first is not None and buffer.last is not None          # the caller has looked
    first, last = buffer.first, buffer.last.offset
    rows, log = joined(area, buffer.rows), log_of(area.name, at.life)
    kept = at.known.without(rows, log, first)
    objects = make_objects(area, kept, log, partition, first, last, at.state.newest)
    end = msgspec.structs.replace(buffer.state, newest=at.known.newest_with(kept))
    position = Position(
        area.name, partition, at.life, at.number, first, last, tail_of(buffer.last), {name: count for name, count, _ in objects}, at.state, end,
        buffer.records, buffer.skipped, buffer.repeated + rows.num_rows - kept.num_rows, buffer.missing,
    )  # fmt: skip
    return Step(position, [(name, data) for name, _, data in objects], kept)


def joined(area: Area, tables: Sequence[pa.Table]) -> pa.Table:
    """The rows of all tables, in their order."""
    if tables:
        return pa.concat_tables(tables).combine_chunks()
    return without_place(area.name).empty_table()


def commit(store: Store, step: Step) -> Position:
    """Creates the position, and then the objects. Returns the position of that number; another writer's if that one was first, and then no object is created.

    May be repeated after an error.
    """
    position = create_position(store, step.position)
    if position == step.position:
        for name, data in step.objects:
            store.create(name, data)
    return position


def absent(store: Store, position: Position) -> list[str]:
    """Objects of a position that were not created: its writer crashed."""
    found = []
    since = processed_since(store)
    for name in position.objects:
        parsed = parse_name(name)
        if has_ended(name, since):
            continue                                                     # retention has ended it
        if store.size(name) is None and (parsed is None or replaced_by(store, parsed) is None):
            found.append(name)
    return found


def complete(store: Store, position: Position, names: Sequence[str], gatherer: Gatherer, records: Sequence[RawRecord]) -> bool:
    """Creates these objects of a position again, from its records. Returns whether they have the rows that the position lists.

    `gatherer` begins with the state before the position, and `records` are all of its records that Kafka still has.
    """
    area = AREAS[position.topic]
    gathered = gatherer.gather(records)
    rows = gathered.rows.filter(pa.compute.less_equal(gathered.rows.column("record_offset"), position.last))
    kept = _known(store, area, position.partition, position.begin).without(rows, position.log, position.first)
    made = {name: (count, data) for name, count, data in make_objects(
        area, kept, position.log, position.partition, position.first, position.last, position.begin.newest,
    )}  # fmt: skip
    for name in names:
        if name in made:
            store.create(name, made[name][1])
    return all(name in made and made[name][0] == position.objects[name] for name in names)

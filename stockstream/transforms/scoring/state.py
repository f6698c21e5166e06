"""State records of `score`: their keys, version 2 as it is written, and the upgrade of version 1 (msgpack arrays).

A key is a msgpack array: partition, log, kind (`head`, `roster`, `slot`), the writer's term, and for slots source, second modulo `RING_S` and piece; a slot
of rows that came after others of their second has its number among those behind that.
A checkpoint (`head`) that is too large for a message is stored in pieces, under keys that end with a slot (0 or 1) and the piece's number: the pieces of
the one before stay whole while a new one is written.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from stockstream.records import Role
from stockstream.transforms import versioned as stored
from stockstream.transforms.changelog_index import Range
from stockstream.transforms.cleaning.limits import MAX_TIME
from stockstream.transforms.scoring.asking import RING_S
from stockstream.transforms.scoring.roster import Entry, Member, Roster
from stockstream.transforms.versioned import Stored

VERSION = 3
KINDS = ("head", "roster", "slot")
UNREADABLE = (msgspec.MsgspecError, ValueError, TypeError, KeyError, IndexError, RecursionError)
"""What bytes that are no record of ours can raise."""
_ROW_OVERHEAD = 16
"""Bytes of a slot's row beside its name and what the models answered: the price, and msgpack's lengths."""


class Key(NamedTuple):
    """The contents of a record's key."""

    partition: int
    log: str
    kind: str
    term: int
    place: tuple[Any, ...] = ()


class SourceProgress(msgspec.Struct, array_like=True):
    """Of a source: the second that it is closed through, the raw offset of its first closing, when it was last heard (epoch ms, 0: not known), and by symbol
    the seconds with which another currency began."""

    closed: int
    series_offset: int = -1
    heard: int = 0
    began: dict[str, list[int]] = msgspec.field(default_factory=dict)


class Checkpoint(Stored, kw_only=True):
    """The checkpoint: how far the log is counted, and where the records lie that belong to it."""

    through: int
    log: str
    expect: int
    resume_input: int
    sources: dict[str, SourceProgress]
    needed: list[Range] = msgspec.field(default_factory=list)


class Answer(msgspec.Struct, omit_defaults=True):
    """What one model answered for a slot's rows: little-endian int32 (n, h) in units of `transforms.asking`."""

    role: Role
    name: str
    version: str
    horizons_s: list[int]
    returns: bytes
    p_up: bytes


class PendingState(Stored, kw_only=True):
    """Rows of one source and second that were predicted; `price` is little-endian float64 (n)."""

    through: int
    log: str
    source: str
    second: int
    piece: int = msgspec.field(name="part")
    pieces: int = msgspec.field(name="parts")
    symbols: list[str]
    price: bytes
    answers: list[Answer] = msgspec.field(name="said")
    number: int = 0
    """Of the slot among those of its second: rows that come late have a slot of their own."""
    offset: int = -1
    """Raw offset of the closing that brought the rows; -1 in records of earlier releases, in which no row came late."""


class MemberState(msgspec.Struct, omit_defaults=True):
    """A model of the roster, see `transforms.roster.Member`."""

    role: Role
    name: str
    version: str
    stamp: str = ""
    suspended: str = ""
    detail: str = ""


class EntryState(msgspec.Struct, omit_defaults=True):
    """An entry of the roster, see `transforms.roster.Entry`."""

    start: int
    members: list[MemberState]
    fallbacks: list[tuple[str, str]] = msgspec.field(default_factory=list)

    @classmethod
    def of(cls, entry: Entry) -> EntryState:
        members = [MemberState(m.role, m.name, m.version, m.stamp, m.suspended, m.detail) for m in entry.members]
        return cls(entry.start, members, list(entry.fallbacks))

    def restored(self) -> Entry:
        members = [Member(m.role, m.name, m.version, m.stamp, m.suspended, m.detail) for m in self.members]
        return Entry(self.start, tuple(members), tuple(self.fallbacks))


class RosterState(Stored, kw_only=True):
    """The roster; `begins` is the offset of its newest entry, `change` counts its changes."""

    begins: int
    log: str
    entries: list[EntryState]
    change: int = 0

    @classmethod
    def of(cls, roster: Roster, log: str) -> RosterState:
        listed = [EntryState.of(entry) for entry in roster.entries]
        return cls(v=VERSION, begins=max((entry.start for entry in listed), default=-1), log=log, entries=listed, change=roster.changes)

    def restored(self) -> Roster:
        return Roster((entry.restored() for entry in self.entries), self.change)


class _CheckpointV1(msgspec.Struct, array_like=True):
    through: int
    log: str
    expect: int
    resume_input: int
    sources: dict[str, SourceProgress]
    needed: list[Range]


class _SaidV1(msgspec.Struct, array_like=True):
    role: Role
    name: str
    version: str
    horizons_s: list[int]
    returns: bytes
    p_up: bytes


class _PendingV1(msgspec.Struct, array_like=True):
    through: int
    log: str
    source: str
    second: int
    part: int
    parts: int
    symbols: list[str]
    price: bytes
    said: list[_SaidV1]


class _RosterV1(msgspec.Struct, array_like=True):
    begins: int
    log: str
    entries: list[tuple[int, list[tuple[Role, str, str]]]]


Record = Checkpoint | PendingState | RosterState | stored.Piece
_TYPES: dict[str, type[Checkpoint] | type[PendingState] | type[RosterState]] = {"head": Checkpoint, "slot": PendingState, "roster": RosterState}
_V1: dict[str, type[_CheckpointV1] | type[_PendingV1] | type[_RosterV1]] = {"head": _CheckpointV1, "slot": _PendingV1, "roster": _RosterV1}
_key = msgspec.msgpack.Decoder(list[Any]).decode
_pack = msgspec.msgpack.Encoder().encode


def key_of(partition: int, log: str, kind: str, term: int, *place: str | int) -> bytes:
    """The bytes of a key."""
    return _pack([partition, log, kind, term, *place])


def read_key(key: bytes) -> Key:
    """The contents of a key. Raises one of `UNREADABLE`."""
    partition, log, kind, term, *place = _key(key)
    if not (isinstance(partition, int) and isinstance(log, str) and kind in KINDS and isinstance(term, int)):
        raise ValueError("not a key of score")
    shape = {"slot": (str, int, int, *[int] * (len(place) == 4)), "roster": (), "head": (int, int) if place else ()}[kind]
    if tuple(map(type, place)) != shape:
        raise ValueError("not a key of score")
    return Key(partition, log, kind, term, tuple(place))


def read(key: Key, value: bytes) -> Record:
    """The record under a key, of whichever version; a piece where the key is of one. Raises one of `UNREADABLE`, `StateError` for a newer version."""
    version = stored.version_of(value)
    stored.require_known(version, VERSION)
    record: Record
    if key.kind == "head" and key.place:
        piece = msgspec.msgpack.decode(value, type=stored.Piece)
        if not 0 <= piece.number < piece.pieces or piece.number != key.place[1]:
            raise ValueError("a piece of a checkpoint with another's number")
        return piece
    record = upgrade(key.kind, value) if version == 1 else msgspec.msgpack.decode(value, type=_TYPES[key.kind])
    _check(record)
    return record


def upgrade(kind: str, value: bytes) -> Checkpoint | PendingState | RosterState:
    """A record of version 1 as one of version 2. Raises one of `UNREADABLE`."""
    old = msgspec.msgpack.decode(value, type=_V1[kind])
    if isinstance(old, _CheckpointV1):
        return Checkpoint(
            v=VERSION, through=old.through, log=old.log, expect=old.expect, resume_input=old.resume_input, sources=old.sources, needed=old.needed
        )
    if isinstance(old, _PendingV1):
        answers = [Answer(s.role, s.name, s.version, s.horizons_s, s.returns, s.p_up) for s in old.said]
        return PendingState(
            v=VERSION, through=old.through, log=old.log, source=old.source, second=old.second, piece=old.part, pieces=old.parts, symbols=old.symbols,
            price=old.price, answers=answers,
        )  # fmt: skip
    entries = [EntryState(start, [MemberState(*member) for member in members]) for start, members in old.entries]
    return RosterState(v=VERSION, begins=old.begins, log=old.log, entries=entries)


def _check(record: Checkpoint | PendingState | RosterState) -> None:
    """Raises `ValueError` where a record's fields do not fit each other."""
    if isinstance(record, PendingState):
        count = len(record.symbols)
        fits = 0 <= record.piece < record.pieces and record.number >= 0 and abs(record.second) < MAX_TIME and len(record.price) == 8 * count
        for answer in record.answers:
            fits = fits and all(0 < horizon < RING_S for horizon in answer.horizons_s)
            fits = fits and len(answer.returns) == len(answer.p_up) == 4 * count * len(answer.horizons_s)
        if not fits:
            raise ValueError("the lengths of a slot do not fit each other")
    elif isinstance(record, RosterState):
        starts = [entry.start for entry in record.entries]
        if starts != sorted(set(starts)):
            raise ValueError("the entries of a roster are not in order")
    elif record.expect < 0 or record.resume_input < 0 or not all(abs(source.closed) < MAX_TIME for source in record.sources.values()):
        raise ValueError("a checkpoint with places that cannot be")


def readable(key: bytes, value: bytes) -> str:
    """Why a record cannot be read, in words; empty where it can. Raises `StateError` where a newer stockstream wrote it."""
    try:
        read(read_key(key), value)
    except UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return ""


def whole_checkpoints(records: Mapping[bytes, bytes]) -> list[tuple[Key, Checkpoint]]:
    """The checkpoints among the records, those in pieces put together; what is no checkpoint or not whole is left out. Raises `StateError`."""
    out: list[tuple[Key, Checkpoint]] = []
    pieces_of: dict[tuple[Any, ...], list[tuple[Key, bytes]]] = {}
    for raw, value in records.items():
        try:
            key = read_key(raw)
            if key.kind != "head":
                continue
            record = read(key, value)
        except UNREADABLE:
            continue
        if isinstance(record, Checkpoint):
            out.append((key, record))
        else:
            pieces_of.setdefault((key.partition, key.log, key.term, key.place[0]), []).append((key, value))
    for pieces in pieces_of.values():
        data = stored.joined(value for _, value in pieces)
        key = pieces[0][0]._replace(place=())
        try:
            joined = read(key, data) if data is not None else None
        except UNREADABLE:
            continue
        if isinstance(joined, Checkpoint):
            out.append((key, joined))
    return out


def checkpoint_records(partition: int, term: int, slot: int, checkpoint: Checkpoint) -> list[tuple[bytes, bytes]]:
    """The record of a checkpoint, or those of its pieces."""
    pieces = stored.split(stored.pack(checkpoint), VERSION)
    if len(pieces) == 1:
        return [(key_of(partition, checkpoint.log, "head", term), pieces[0])]
    return [(key_of(partition, checkpoint.log, "head", term, slot, number), piece) for number, piece in enumerate(pieces)]


def cut_rows(names: list[str], bytes_of_a_row: int, most: int) -> Iterator[slice]:
    """Slices of a slot's rows, each of which fits into a record whatever its names are."""
    longest = max(map(len, names), default=0) * 4                        # UTF-8
    share = max(1, min(most, stored.MAX_VALUE_BYTES // (longest + bytes_of_a_row + _ROW_OVERHEAD)))
    for start in range(0, len(names), share):
        yield slice(start, start + share)



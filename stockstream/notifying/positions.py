"""What is stored of each route: how far it is in `alerts`. One record of the ledger has all routes of a partition."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import msgspec

from stockstream.errors import StateError
from stockstream.notifying.limits import Held
from stockstream.records import DeadAlert
from stockstream.sinks.notify.notices import change_key
from stockstream.transforms.versioned import TERMS

VERSION = 1


class Position(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A route's place in one partition of `alerts`.

    `since` (epoch ms) is when its count of offsets began: when the route was added, or the topic was found to be a new one. `next` is the first offset that
    is not done. `held` is what the next summary counts. `sent` and `dead` count since `since`.
    """

    since: int
    next: int
    held: Held | None = None
    sent: int = 0
    dead: int = 0


class LedgerRecord(msgspec.Struct, kw_only=True):
    """The record of a partition: the positions of all routes that were in it."""

    version: int
    routes: dict[str, Position]


class Opened(NamedTuple):
    """What is known of a partition when a route begins to read it: its stored position if there is one, and the first and next offset of `alerts`."""

    stored: Position | None
    begin: int
    end: int


class Ledger(Protocol):
    """Stores the positions of routes. Only the owner of a partition writes to it."""

    async def open(self, route: str, partitions: Collection[int]) -> Mapping[int, Opened]:
        """What is stored of the route; partitions that this worker no longer owns are left out. Raises `BrokerError` and `StateError`."""
        ...

    async def write(self, route: str, partition: int, position: Position, dead: DeadAlert | None = None) -> bool:
        """Stores the position, after the dead alert if there is one. Returns False if this worker no longer owns the partition."""
        ...


def key_of(term: int) -> bytes:
    """The key of a record; as for all tables it has the writer's term, so that a worker that woke up late replaces only its own."""
    return f"routes-{term % TERMS}".encode()


def encode(routes: Mapping[str, Position]) -> bytes:
    return msgspec.json.encode(LedgerRecord(version=VERSION, routes=dict(routes)))


def readable(key: bytes, value: bytes) -> str:
    """Why a record cannot be read; empty if it can. Raises `StateError` for a record of a newer stockstream."""
    version = msgspec.json.decode(value, type=dict[str, Any]).get("version")
    if isinstance(version, int) and version > VERSION:
        raise StateError(f"the ledger of notify has version {version}, and this stockstream reads {VERSION}: a newer one has written it")
    msgspec.json.decode(value, type=LedgerRecord)
    return ""


def newest(records: Iterable[tuple[int, bytes]]) -> dict[str, Position]:
    """The positions by route of records with their offsets in the changelog: the last record decides which routes there are.

    Of each, the furthest position counts, since a worker that lost the partition may have written the last record.
    """
    decoded = [msgspec.json.decode(value, type=LedgerRecord).routes for _, value in sorted(records)]
    found: dict[str, Position] = {}
    for name in decoded[-1] if decoded else ():
        for record in decoded:
            position, best = record.get(name), found.get(name)
            if position is not None and (best is None or (position.since, position.next) >= (best.since, best.next)):
                found[name] = position
    return found


def dead_key(dead: DeadAlert) -> bytes:
    """The key of a message of `alerts.dead`: the route, and the identity of the change."""
    return f"{dead.route}/{change_key(dead.alert)}".encode()

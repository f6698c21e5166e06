"""Ends the archive's oldest dates, so that what is left stays provable.

Before anything is deleted, a record in `retention/` names it: for a chain of raw objects the last offset that ended, for processed objects the first date that
stays. So a verification accepts what has ended, and still finds everything else that is missing. A bucket's lifecycle rules delete by age and leave no
record of each chain, so a record has their days.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from itertools import pairwise

import msgspec

from stockstream.errors import ArchiveError
from stockstream.sinks.archive.compactions import MANIFESTS, compaction_of_data
from stockstream.sinks.archive.layout import Name, parse_name
from stockstream.sinks.archive.raw_objects import encode_json
from stockstream.sinks.entries import Entry
from stockstream.sinks.stores import CALLS_AT_ONCE, Store

RETENTION = "retention/"
_DATE = re.compile(r"/date=(\d{4}-\d\d-\d\d)/")


class Rules(msgspec.Struct, frozen=True):
    """The days of a bucket's lifecycle rules; None: no rule."""

    raw_days: int | None
    processed_days: int | None


_decode_rules = msgspec.json.Decoder(Rules).decode


def today() -> date:
    return datetime.now(UTC).date()


def date_of(name: str) -> date | None:
    """The date of the folder of an object; None if it has none."""
    match = _DATE.search(name)
    try:
        return date.fromisoformat(match[1]) if match else None
    except ValueError:
        return None


def has_ended(name: str, since: date) -> bool:
    """Whether retention has ended the folder of an object: it is of a date before `since`. An object without a date has not."""
    return (date_of(name) or since) < since


def retention_records(store: Store) -> list[str]:
    """The names of all records. They change before anything is deleted."""
    return list(store.list(RETENTION))


def raw_ended_through(store: Store, log: str, partition: int) -> int:
    """The last raw offset of the chain that retention has ended; -1 if none."""
    names = list(store.list(f"{RETENTION}raw/{log}-{partition:05d}/"))
    return max((int(name[-25:-5]) for name in names), default=-1)


def rules(store: Store) -> Rules:
    """The days of the lifecycle rules that were set last. Raises `ArchiveError` if their record is broken."""
    names = list(store.list(f"{RETENTION}lifecycle/"))
    if not names:
        return Rules(None, None)
    try:
        return _decode_rules(store.read(names[-1]))
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ArchiveError(f"{names[-1]} cannot be read: {error}") from error


def processed_since(store: Store) -> date:
    """The first date whose processed objects have not ended."""
    names = store.list(f"{RETENTION}processed/")
    since = max((date.fromisoformat(name[-15:-5]) for name in names), default=date.min)
    days = rules(store).processed_days
    return since if days is None else max(since, today() - timedelta(days=days - 1))


def record_rules(store: Store, of: Rules, now: datetime) -> None:
    """Records the days of lifecycle rules, before they are set."""
    store.create(f"{RETENTION}lifecycle/{now:%Y-%m-%dT%H%M%S.%f}.json", encode_json(of))


@dataclass(slots=True)
class Plan:
    """What retention ends: raw offsets through `raw_through` by chain, processed dates before `processed_before` (None: none).

    `phases`: the objects, each list of which is deleted before the next one.
    """

    raw_through: dict[tuple[str, int], int] = field(default_factory=dict)
    processed_before: date | None = None
    phases: tuple[list[Entry], list[Entry], list[Entry]] = field(default_factory=lambda: ([], [], []))

    @property
    def entries(self) -> list[Entry]:
        """All objects."""
        return [entry for phase in self.phases for entry in phase]


def plan(store: Store, raw_before: date | None, processed_before: date | None, processed_through: Callable[[str, int], int]) -> Plan:
    """What ends if raw and processed objects of dates before these are not wanted (None: all are).

    Of a chain only the beginning ends: objects before the first one of a later date, before what is not processed (`processed_through`: the last raw offset
    of a chain that is), and never the newest one, which shows where the chain continues.
    """
    found = Plan()
    first, manifests, data = found.phases                                # a manifest without its data object would stop readers
    if raw_before is not None:
        chains: dict[tuple[str, int], list[tuple[Name, Entry]]] = defaultdict(list)
        for entry in store.entries("raw/"):
            if (parsed := parse_name(entry.name)) is not None:
                chains[parsed.log, parsed.partition].append((parsed, entry))
        for key, objects in sorted(chains.items()):
            objects.sort(key=lambda one: one[0].first)
            ended = _beginning(objects, raw_before, processed_through)
            if ended:
                found.raw_through[key] = objects[len(ended)][0].first - 1
                first += ended
    if processed_before is not None:
        old = [entry for entry in store.entries("processed/") if _before(entry, processed_before)]
        first += [entry for entry in old if compaction_of_data(entry.name) is None]
        manifests += [entry for entry in store.entries(MANIFESTS) if _before(entry, processed_before)]
        data += [entry for entry in old if compaction_of_data(entry.name) is not None]
        if old or manifests:
            found.processed_before = processed_before
    return found


def _beginning(objects: list[tuple[Name, Entry]], before: date, processed_through: Callable[[str, int], int]) -> list[Entry]:
    ended: list[Entry] = []
    through: int | None = None
    for (_, entry), (following, _) in pairwise(objects):
        if not _before(entry, before):
            break
        if through is None:
            through = processed_through(following.log, following.partition)
        if following.first - 1 > through:
            break
        ended.append(entry)
    return ended


def _before(entry: Entry, day: date) -> bool:
    of = date_of(entry.name)
    return of is not None and of < day


def retain(store: Store, ending: Plan) -> None:
    """Records what ends, then deletes it. Run it again after a failure. Raises what the store raises."""
    for (log, partition), through in ending.raw_through.items():
        store.create(f"{RETENTION}raw/{log}-{partition:05d}/{through:020d}.json", b'{"through":%d}' % through)
    if ending.processed_before is not None:
        store.create(f"{RETENTION}processed/{ending.processed_before}.json", b'{"since":"%s"}' % str(ending.processed_before).encode())
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        for phase in ending.phases:
            list(pool.map(store.delete, [entry.name for entry in phase]))

"""How many objects an archive has a day in each area, how large they are, and how many were written before compaction."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from stockstream.sinks.archive.compacted_object import count_rows, read_compacted_object
from stockstream.sinks.archive.compactions import MANIFESTS, compaction_of_data
from stockstream.sinks.archive.current import current
from stockstream.sinks.archive.retention import RETENTION, date_of
from stockstream.sinks.archive.topics.positions import IN_A_PACK, PACKED, POSITIONS
from stockstream.sinks.entries import Entry
from stockstream.sinks.stores import CALLS_AT_ONCE, Store

T = TypeVar("T")


@dataclass(slots=True)
class Usage:
    """The objects of one area and date: those that are there, and those that the archive wrote (`written`), some of which compaction has replaced.

    `per_tick`: bytes by the number of accepted ticks of the date; None if there are none. The date is that of the folder; of objects without one, such as
    positions, it is the day (UTC) on which they were written.
    """

    date: str
    area: str
    objects: int = 0
    bytes: int = 0
    written: int = 0
    per_tick: float | None = None


def usage(store: Store) -> tuple[list[Usage], dict[str, int]]:
    """The objects of each date and area, and the number of ticks of each date. Reads the footers of compacted objects and of ticks.

    Raises `ArchiveError` if one of them cannot be read.
    """
    found: dict[tuple[str, str], Usage] = {}
    small: dict[tuple[str, str], set[str]] = defaultdict(set)
    compacted: list[tuple[tuple[str, str], str]] = []
    for prefix in ("raw/", "processed/", MANIFESTS, POSITIONS, "chains/", RETENTION):
        for entry in store.entries(prefix):
            key = _date(entry), entry.name.split("/")[1 if prefix == "processed/" else 0]
            one = found.setdefault(key, Usage(*key))
            one.objects += 1
            one.bytes += entry.size
            if compaction_of_data(entry.name) is not None:
                compacted.append((key, entry.name))
            elif prefix == "processed/":
                small[key].add(entry.name)
            else:
                one.written += IN_A_PACK if entry.name.startswith(PACKED) else 1
    ticks: dict[str, int] = defaultdict(int)
    with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
        for name, rows in _of_each(pool, lambda name: count_rows(store, name), [entry.name for entry in current(store, "ticks")]):
            ticks[str(date_of(name))] += rows
        keys = {name: key for key, name in compacted}
        for name, footer in _of_each(pool, lambda name: read_compacted_object(store, name), keys):
            small[keys[name]] |= {source.name for source in footer.list_sources()}       # some may be there still
    for key, one in found.items():
        one.written += len(small[key])
        one.per_tick = one.bytes / ticks[one.date] if ticks.get(one.date) else None
    return [found[key] for key in sorted(found)], dict(ticks)


def _date(entry: Entry) -> str:
    return str(date_of(entry.name) or entry.modified.date())


def _of_each(pool: ThreadPoolExecutor, call: Callable[[str], T], names: Iterable[str]) -> Iterable[tuple[str, T]]:
    listed = list(names)
    return zip(listed, pool.map(call, listed), strict=True)

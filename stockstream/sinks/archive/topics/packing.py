"""Packs positions: a hundred of them become one object. Any number of packers may run at once, and each may be killed at any point.

The newest position of a life is never packed, so writers find it as before. A pack is created from a hundred positions that all are there, and only then they
are deleted. What a killed packer leaves, or a frozen writer creates again, is deleted by the next run, because the pack exists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

from stockstream.errors import ArchiveError, ArchiveUnavailable
from stockstream.sinks.archive.compacting import Result, delete_replaced
from stockstream.sinks.archive.topics.positions import IN_A_PACK, POSITIONS, encode_pack, number_of, pack_name, packs, read_position
from stockstream.sinks.entries import Entry
from stockstream.sinks.stores import CALLS_AT_ONCE, Store

QUIET = timedelta(hours=1)
"""A position younger than this is left alone, so that a hundred of them is seldom looked at by a writer that continues."""
Hundred = tuple[int, Sequence[Entry]]
"""First number, and the positions that are there."""


def pack_positions(store: Store, now: datetime | None, dry: bool = False) -> Iterator[Result]:
    """Packs the positions of each topic partition that are due at `now` (None: all but the newest). Yields a result for each where it did something.

    `dry`: only shows what it would do. Raises `ArchiveUnavailable` if the store fails; what cannot be read or deleted is in the results.
    """
    there: dict[str, dict[int, list[Entry]]] = defaultdict(lambda: defaultdict(list))
    newest: dict[str, int] = {}
    for entry in store.entries(POSITIONS):
        if (found := number_of(entry.name)) is not None:
            of, number = found
            there[of][number // IN_A_PACK * IN_A_PACK].append(entry)
            newest[of] = max(number, newest.get(of, -1))
    known = packs(store)                                                 # after the positions: what is deleted has its pack
    for of, hundreds in sorted(there.items()):
        result = Result("positions", of)
        for first, entries in sorted(hundreds.items()):
            due = now is None or all(entry.modified <= now - QUIET for entry in entries)
            if first in known.get(of, ()):
                _delete(store, entries, result, dry)
            elif first + IN_A_PACK <= newest[of] and len(entries) == IN_A_PACK and due:
                _pack(store, of, first, entries, result, dry)
        if result.made or result.deleted or result.faults:
            yield result


def _pack(store: Store, of: str, first: int, entries: Sequence[Entry], result: Result, dry: bool) -> None:
    made = 0
    if not dry:
        try:
            with ThreadPoolExecutor(CALLS_AT_ONCE) as pool:
                data = encode_pack(list(pool.map(lambda entry: read_position(store, entry.name), entries)))
        except ArchiveUnavailable:
            raise
        except ArchiveError as error:
            if store.size(pack_name(of, first)) is None:                 # else another packer was first
                result.faults.append(f"{error}; it is left as it is")
            return
        made = len(data) if store.create(pack_name(of, first), data) else 0
    result.made += 1
    result.made_bytes += made
    result.replaced += len(entries)
    result.replaced_bytes += sum(entry.size for entry in entries)
    _delete(store, entries, result, dry)


def _delete(store: Store, entries: Sequence[Entry], result: Result, dry: bool) -> None:
    if dry:
        result.deleted += len(entries)
    else:
        delete_replaced(store, [entry.name for entry in entries], result)

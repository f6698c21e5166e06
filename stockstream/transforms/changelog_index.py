"""Where in a partition's changelog the records are that a restart needs, so that it reads those and not the whole log.

A core's checkpoint names these ranges. A reader takes the last few records, the highest checkpoint among them, and the ranges that it names. If these hold
a higher checkpoint, the reader goes on with that one's ranges. Any checkpoint with all that it names is a state that was once correct, and from any of them
the log gives the same results again. So a worker that was frozen, wakes and writes its old checkpoint last makes a restart longer, never wrong.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping

Range = tuple[int, int]
"""First and last offset."""

OPEN = (1 << 63) - 1
"""As a last offset: to the end."""
NEAR = 1_000
"""Ranges with fewer offsets between them are merged: the records between are read too."""


def merge(ranges: Iterable[Range], near: int = NEAR) -> list[Range]:
    """The ranges in order; those that touch, or have fewer than `near` offsets between them, as one."""
    out: list[Range] = []
    for first, last in sorted(ranges):
        if out and first - near <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], last)
        else:
            out.append((first, last))
    return out


def subtract(ranges: Iterable[Range], known: Iterable[Range]) -> list[Range]:
    """The parts of the ranges that are in no known one."""
    out = merge(ranges, 1)
    for first, last in known:
        cut: list[Range] = []
        for a, b in out:
            cut += [rest for rest in ((a, min(b, first - 1)), (max(a, last + 1), b)) if rest[0] <= rest[1]]
        out = cut
    return out


class ChangelogIndex:
    """The places of one partition's records: for each source the batches by their newest second, and single records that are kept under a name."""

    def __init__(self) -> None:
        self._batches: dict[str, deque[tuple[int, int, int]]] = {}
        """By source: newest second, first and last offset of each batch, in the order of writing."""
        self._named: dict[str, Range] = {}
        self._unconfirmed: deque[tuple[dict[str, int], set[str]]] = deque()
        self._unplaced: tuple[dict[str, int], set[str]] = {}, set()
        """What was confirmed without an offset (a repeat that the broker had already)."""
        self._open_from = 0

    def clear(self) -> None:
        """Nothing that was written so far is needed any more."""
        self._batches.clear()
        self._named.clear()
        self._unplaced = {}, set()
        self._unconfirmed = deque(({}, set()) for _ in self._unconfirmed)

    def forget(self, source: str) -> None:
        """No second of this source that was written so far is needed any more."""
        self._batches.pop(source, None)
        self._unplaced[0].pop(source, None)
        for seconds, _ in self._unconfirmed:
            seconds.pop(source, None)

    def keep(self, names: Collection[str]) -> None:
        """Of single records only those under these names are needed any more."""
        for name in self._named.keys() - names:
            del self._named[name]

    def restored(self, offset: int, seconds: Mapping[str, int], named: Iterable[str] = (), *, first: int | None = None) -> None:
        """A record that was read at this offset, or from `first` on in pieces; call it in ascending order of offsets for those with seconds."""
        self._place(offset if first is None else first, offset, seconds, named)

    def written(self, seconds: Mapping[str, int], named: Iterable[str] = ()) -> None:
        """A batch is handed out for writing: the newest second that it holds of each source, and the names of single records."""
        self._unconfirmed.append((dict(seconds), set(named)))

    def confirmed(self, first: int, last: int) -> None:
        """The oldest batch that was handed out is in the log between these offsets; -1 where the broker does not report them."""
        seconds, named = self._unconfirmed.popleft()
        earlier, names = self._unplaced
        begin = self._open_from if earlier or names else first
        for source, second in seconds.items():
            earlier[source] = max(second, earlier.get(source, second))
        names |= named
        if first >= 0:
            self._unplaced = {}, set()
            self._place(min(begin, first), last, earlier, names)
            self._open_from = first

    def _place(self, first: int, last: int, seconds: Mapping[str, int], named: Iterable[str]) -> None:
        for source, second in seconds.items():
            self._batches.setdefault(source, deque()).append((second, first, last))
        for name in named:
            self._named[name] = first, last
        self._open_from = max(self._open_from, first)

    def needed(self, oldest: Mapping[str, int]) -> list[Range]:
        """The ranges that hold all records with the seconds from `oldest` on, by source, and those under a name; what is not confirmed follows the last."""
        ranges = [(self._open_from, OPEN), *self._named.values()]
        for source in list(self._batches):
            batches = self._batches[source]
            while batches and batches[0][0] < oldest.get(source, OPEN):
                batches.popleft()
            if batches:
                ranges.append((batches[0][1], max(batches[0][2], batches[-1][2])))
            else:
                del self._batches[source]
        return merge(ranges)

"""The gaps that the views hold, in the order of pages: those that began last first."""

from __future__ import annotations

from bisect import bisect_left, insort

import msgspec

from stockstream.errors import FrameError
from stockstream.records import Gap
from stockstream.transforms.cleaning.limits import MAX_SOURCE, MAX_TIME, symbol_fault
from stockstream.web.answers import Page

MAX_BYTES = 1_024
MAX_GAPS = 100_000
"""About 0.4 KB each. Beyond, those that began first are forgotten."""

Key = tuple[int, str]
"""When a gap began (epoch ms), and its symbol and source."""


class GapIndex:
    """Gaps by symbol, source and begin: a repeat, or a gap that has become longer, replaces the one before."""

    def __init__(self, most: int = MAX_GAPS) -> None:
        self._most = most
        self._gaps: dict[Key, Gap] = {}
        self._keys: list[Key] = []

    def __len__(self) -> int:
        return len(self._gaps)

    def put(self, value: bytes) -> None:
        """One message of `gaps`. Raises `FrameError` or `msgspec.MsgspecError` if it cannot be read."""
        if len(value) > MAX_BYTES:
            raise FrameError(f"it has {len(value)} bytes, at most {MAX_BYTES} are kept")
        gap = _decode(value)
        if fault := symbol_fault(gap.symbol):
            raise FrameError(fault)
        if not 0 <= gap.from_ <= gap.to < MAX_TIME or len(gap.source) > MAX_SOURCE:
            raise FrameError("from or to is out of range, or the source too long")
        key = gap.from_, _name(gap)
        if key not in self._gaps:
            insort(self._keys, key)
        self._gaps[key] = gap
        if len(self._keys) > self._most:
            del self._gaps[self._keys.pop(0)]

    def page(self, limit: int, symbol: str | None = None, source: str | None = None, after: Key | None = None) -> Page[Gap]:
        """Gaps of a symbol and a source that come after `after`, those that began last first. `next` is `<begin>:<rest>`."""
        end = len(self._keys) if after is None else bisect_left(self._keys, after)
        items: list[Gap] = []
        for at in range(end - 1, -1, -1):
            gap = self._gaps[self._keys[at]]
            if symbol in (None, gap.symbol) and source in (None, gap.source):
                if len(items) == limit:
                    return Page(items=items, next=f"{items[-1].from_}:{_name(items[-1])}")
                items.append(gap)
        return Page(items=items, next=None)


def _name(gap: Gap) -> str:
    return f"{gap.symbol}:{gap.source}"


_decode = msgspec.json.Decoder(Gap).decode

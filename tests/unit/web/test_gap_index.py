from __future__ import annotations

import msgspec
import pytest

from stockstream.errors import FrameError
from stockstream.web.gap_index import GapIndex


def gap(symbol: str, begin: int, end: int | None = None, source: str = "yahoo", reason: str = "silent") -> bytes:
    return msgspec.json.encode({"symbol": symbol, "source": source, "from": begin, "to": begin + 5 if end is None else end, "reason": reason})


def test_gaps_are_paged_from_the_last_one() -> None:
    index = GapIndex()
    for at in range(5):
        index.put(gap("A", at))
        index.put(gap("B:C", at, source="other"))
    seen, after = [], None
    while True:
        page = index.page(3, after=after)
        seen += [(item.from_, item.symbol) for item in page.items]
        if page.next is None:
            break
        time, _, name = page.next.partition(":")
        after = int(time), name
    assert seen == [(at, symbol) for at in reversed(range(5)) for symbol in ("B:C", "A")]
    assert [item.from_ for item in index.page(10, symbol="A").items] == [4, 3, 2, 1, 0]
    assert [item.symbol for item in index.page(2, source="other").items] == ["B:C", "B:C"]
    assert index.page(10, symbol="A", source="other").items == []


def test_a_repeat_replaces_and_the_oldest_make_room() -> None:
    index = GapIndex(most=2)
    for value in (gap("A", 1), gap("A", 1), gap("A", 1, 9), gap("A", 2)):
        index.put(value)
    assert [(item.from_, item.to) for item in index.page(10).items] == [(2, 7), (1, 9)]
    index.put(gap("A", 3))
    assert [item.from_ for item in index.page(10).items] == [3, 2] and len(index) == 2


@pytest.mark.parametrize("value", [b"", b"{}", gap("A", 5, 4), gap("", 1), gap("A", -1), gap("A", 1, 1 << 50), gap("A", 1, reason="because"), b"x" * 2_000])
def test_what_is_no_gap_is_refused(value: bytes) -> None:
    index = GapIndex()
    with pytest.raises((FrameError, msgspec.MsgspecError)):
        index.put(value)
    assert len(index) == 0

"""What a worker learns from the newest rows of a partition; `tests/integration/test_source_takeover.py` reads them from Kafka."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from stockstream.sources.takeover import Newest
from stockstream.state.newest_rows import newest_of
from stockstream.transforms import batch
from stockstream.transforms.frames import encode

START = 1_700_000_000


def records() -> list[Any]:
    """Ten seconds: A trades in each of them, B in the second and the sixth one, and at last another source brings C."""
    ticks = [("A", second, "feed") for second in range(10)] + [("B", 1, "feed"), ("B", 5, "feed"), ("C", 9, "else"), ("A", 20, "feed"), ("C", 20, "else")]
    raw = [
        batch.RawRecord(number, (START + second) * 1000, json.dumps({
            "symbol": symbol, "event_time": (START + second) * 1000, "price": 10.0, "size": 1, "source": source,
        }).encode())
        for number, (symbol, second, source) in enumerate(sorted(ticks, key=lambda tick: tick[1]))
    ]  # fmt: skip
    found = batch.run(raw, partition=0, partitions=1, chunk=5, log="00000000001-00000001")
    return [SimpleNamespace(value=encode(frame), timestamp=0) for frame in found.windows]


def test_each_symbol_has_the_end_of_its_newest_second_its_source_and_its_pace() -> None:
    junk: list[Any] = [SimpleNamespace(value=value, timestamp=0) for value in (None, b"", b"not a frame")]
    assert newest_of([*junk, *records(), *junk]) == {
        "A": Newest("feed", (START + 9) * 1000 + 999, 1_000.0),
        "B": Newest("feed", (START + 5) * 1000 + 999, 4_000.0),
        "C": Newest("else", (START + 9) * 1000 + 999, 0.0),
    }
    assert newest_of(junk) == {} == newest_of([])

"""The header with the time at which each agent sent a frame."""

from __future__ import annotations

import json
import time
from typing import Annotated, Any

import msgspec

from stockstream.transforms.cleaning.limits import MAX_TIME

HOPS_HEADER = "hops"
MAX_HOPS = 3
_decode_hops = msgspec.json.Decoder(
    Annotated[list[Annotated[int, msgspec.Meta(ge=0, le=MAX_TIME)]], msgspec.Meta(max_length=MAX_HOPS)]
).decode  # fmt: skip


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def hops_header(*times_ms: int) -> tuple[tuple[str, bytes], ...]:
    """A header with the arrival of the raw record and each agent's time of sending (epoch ms). It is no content, so a resent frame stays the same frame."""
    return ((HOPS_HEADER, json.dumps(times_ms).encode()),)


def hops_of(record: Any) -> list[int]:
    """The times in a record's header (epoch ms, at most `MAX_HOPS`); empty if the header is absent or invalid."""
    for name, value in record.headers:
        if name == HOPS_HEADER:
            try:
                return list(_decode_hops(value or b""))
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                return []
    return []

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
    """A header with the times when the raw record arrived and each agent sent (epoch ms). Being no content, it leaves a resent frame the same."""
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

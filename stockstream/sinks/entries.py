"""What a store lists."""

from __future__ import annotations

from datetime import datetime
from typing import NamedTuple


class Entry(NamedTuple):
    """An object as it is listed: its name in the store, its size in bytes, when it was written (UTC), and the store's tag of its content, if it has one."""

    name: str
    size: int
    modified: datetime
    tag: str = ""

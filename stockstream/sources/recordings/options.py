"""How a recording is read, where the file does not show it itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """What is given about a file; empty: it is found out.

    `columns` names the file's column for a field of ours (joined by `+`: several, with a blank between them). `unit` is s, ms, us, ns, date, or a pattern of
    strptime. `zone` is the time zone of local times. `symbol` is the one of a file without a column for it, `date` (YYYY-MM-DD) the day of a file that has
    only times of day. `interval_s` is how long a bar lasts. `order` is how rows are read: as in the file, or sorted by time.
    """

    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    unit: str = ""
    zone: str = ""
    symbol: str = ""
    date: str = ""
    decimal: Literal["", ".", ","] = ""
    bars: bool = False
    interval_s: int = 0
    order: Literal["", "file", "time"] = ""


AS_FOUND = ReadOptions()

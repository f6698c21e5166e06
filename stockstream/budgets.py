"""Budgets of requests as settings give them (`1/s,25/d`), and the log in which requests are reserved."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

Per = Literal["second", "minute", "day"]

PERIOD_MS: dict[Per, int] = {"second": 1_100, "minute": 60_500}
"""A little longer than the periods, because requests that are sent apart may arrive closer together. A day is the provider's calendar day."""
_NAMES: dict[str, Per] = {"s": "second", "min": "minute", "d": "day"}
_LIMIT = re.compile(r"([0-9]{1,9})\s*/\s*(s|min|d)")


@dataclass(frozen=True, slots=True)
class Limits:
    """The most requests per second, minute and day; None where there is no limit."""

    second: int | None = None
    minute: int | None = None
    day: int | None = None

    @classmethod
    def parse(cls, text: str) -> Limits:
        """From `1/s,60/min,25/d`, each at most once and at least one of them. Raises `ValueError` with one line."""
        found: dict[Per, int] = {}
        for part in (part.strip() for part in text.split(",")):
            match = _LIMIT.fullmatch(part)
            if match is None:
                raise ValueError(f"{part[:40]!r} is no budget of requests: write 1/s, 60/min or 25/d, several with commas, as in 1/s,25/d")
            per = _NAMES[match[2]]
            if per in found:
                raise ValueError(f"the budget has two limits per {per}: leave one out")
            found[per] = int(match[1])
            if not found[per]:
                raise ValueError(f"{part!r} allows no request at all: to use no source of this kind, leave it out of STOCKSTREAM_SOURCE")
        return cls(**found)

    def items(self) -> list[tuple[Per, int]]:
        """The limits that exist, the shortest period first."""
        each: list[tuple[Per, int | None]] = [("second", self.second), ("minute", self.minute), ("day", self.day)]
        return [(per, limit) for per, limit in each if limit is not None]

    def __str__(self) -> str:
        short = {per: name for name, per in _NAMES.items()}
        return ",".join(f"{limit}/{short[per]}" for per, limit in self.items())


class LogEntry(NamedTuple):
    """A record of the log of requests. `timestamp` is the log's time, epoch ms."""

    offset: int
    timestamp: int
    value: bytes


class RequestLog(Protocol):
    """One totally ordered log of all workers: the topic `requests`, or a list in memory. Each object returns every record once, in order."""

    async def append(self, value: bytes) -> Sequence[LogEntry]:
        """Appends a record. Returns what was not returned before, through this record, which is the last. Raises `BrokerError`."""
        ...

    async def read(self) -> Sequence[LogEntry]:
        """What was not returned before, through the present end. Raises `BrokerError`."""
        ...

    async def stop(self) -> None:
        """Closes its connections. The next call opens them again."""
        ...

"""What the archive needs of Kafka: to read raw records and verdicts back."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Protocol

from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.transforms.frames import Frame


class RawReader(Protocol):
    """Reads `ticks.raw` back. Both raise `BrokerError` where Kafka does not answer, or does not hold what is asked for yet."""

    async def begin(self, partition: int) -> int:
        """First offset that is kept: what is below has expired."""

    def read(self, partition: int, first: int, last: int) -> AsyncGenerator[Sequence[RawRecord], None]:
        """The records from `first` to `last`, ascending. When it ends, nothing else is there between them."""


class CleanReader(Protocol):
    """Reads `ticks.clean` back. Both raise `BrokerError` where Kafka does not answer."""

    async def newest(self, partition: int) -> tuple[str, int] | None:
        """Log id and last raw offset of the newest frame; None where the topic holds none."""

    def read(self, partition: int, log: str, first: int, last: int) -> AsyncGenerator[Frame, None]:
        """Whole frames of the log, ascending, that cover raw offsets `first` to `last`. What none of them covers is not to be had any more."""

"""The contracts by which the archive reads raw records and verdicts back from Kafka."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from stockstream.kafka.topic_reader import WAIT_MS, Looked
from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.transforms.frames import Frame


class RawReader(Protocol):
    """Reads `ticks.raw` back. Both methods raise `BrokerError` if Kafka does not answer or does not have the records yet."""

    async def begin(self, partition: int) -> int:
        """The first offset that Kafka still has. Retention deleted those below."""

    def read(self, partition: int, first: int, last: int) -> AsyncGenerator[Sequence[RawRecord], None]:
        """Yields the records from `first` to `last`, ascending. At its end, Kafka has no others between them."""


class CleanReader(Protocol):
    """Reads `ticks.clean` back. Both methods raise `BrokerError` if Kafka does not answer."""

    async def newest(self, partition: int) -> tuple[str, int] | None:
        """Log id and last raw offset of the newest frame; None if the topic has none."""

    def read(self, partition: int, log: str, first: int, last: int) -> AsyncGenerator[Frame, None]:
        """Yields the whole frames of the log that account for raw offsets `first` to `last`, ascending. Offsets that no frame accounts for are lost."""


class RepairReader(Protocol):
    """Reads the topic `repairs`. `poll` raises `BrokerError` if Kafka does not answer."""

    async def poll(self, cursors: Mapping[int, int | None]) -> Mapping[int, Sequence[RawRecord]]:
        """Records of these partitions from the given offset on (None: from the beginning), ascending. Waits about a second for the first."""

    async def stop(self) -> None:
        """Closes its connection. The next call opens it again."""


class TopicRecords(Protocol):
    """Reads a topic. `poll` and `look` raise `BrokerError` if Kafka does not answer."""

    async def poll(self, cursors: Mapping[int, int | None], wait_ms: int = WAIT_MS) -> Mapping[int, Sequence[RawRecord]]:
        """Records of these partitions from the given offset on (None: from the beginning), ascending. Waits `wait_ms` for the first.

        Where the log has no such offset any more, or not yet, the records begin at another one.
        """

    async def look(self, offsets: Mapping[int, int]) -> Mapping[int, Looked]:
        """Where each of these partitions begins, and its record at the given offset."""

    async def stop(self) -> None:
        """Closes its connection. The next call opens it again."""

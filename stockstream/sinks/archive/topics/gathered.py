"""What a reader of one topic partition gathers from its records: the contract between the two kinds of messages and the writer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from stockstream.sinks.archive.raw_objects import RawRecord
from stockstream.sinks.archive.topics.positions import State


@dataclass(frozen=True, slots=True)
class Gathered:
    """Rows that came with the records through `last`, in their order; with the columns of the area, but without `partition`, `log` and `compaction`.

    `last` is the newest record after which no message is incomplete; None if there is none, and then there are no rows. `records` is the number of records
    since the `last` before, `repeated` the number of rows that were left out. `state` has what is then accounted for. `faults`: offset and reason of each
    record that is no message of the topic, of all records.
    """

    rows: pa.Table
    last: RawRecord | None
    records: int
    repeated: int
    state: State
    faults: Sequence[tuple[int, str]]


class Gatherer(Protocol):
    """Takes the records of a topic partition in order; what it gives is a function of its first state and these records."""

    def gather(self, records: Sequence[RawRecord]) -> Gathered:
        """Takes the next records. Rows of a message that is not complete yet come with a later call."""

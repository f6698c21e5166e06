"""Computes again what `clean` accepted of the raw objects of one chain, and compares it with what is stored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stockstream.errors import ArchiveError
from stockstream.records import TICKS_SCHEMA
from stockstream.sinks.archive.clean_settings import KnownSettings, Verdicts
from stockstream.sinks.archive.processed import tables_of
from stockstream.sinks.archive.raw_objects import Extent, Line, key_and_value
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.timing import FORGET_MS

INEXACT = ("notional",)
"""Sums of doubles, whose last bits depend on the version of pyarrow."""
_KEYS = ("symbol", "source", "event_time", "minute", "gap", "offset", "index")


@dataclass(frozen=True, slots=True)
class Computed:
    """The accepted ticks (TICKS_SCHEMA) of a raw object, computed again; None if they cannot be, with the reason in `doubt`.

    `doubt`: why a difference proves nothing; empty if it proves a fault. `with_history`: the same from a day of records before, if that can decide.
    """

    ticks: pa.Table | None
    doubt: str = ""
    with_history: Callable[[], tuple[pa.Table | None, str]] | None = None


class Recompute:
    """The verdicts on one chain, raw object by raw object, in order.

    `reason` is why verdicts cannot be computed any more; empty if they can. After offsets that are lost, `doubtful` is set for a day of the log's time:
    `clean` may have read what was lost, so a difference then proves nothing.
    """

    def __init__(self, known: KnownSettings, log: str, partition: int) -> None:
        self._known, self._log, self._partition = known, log, partition
        self._cleaner: Cleaner | None = None
        self._verdicts: Verdicts | None = None
        self._doubtful_until = -1
        self._lost = False
        self.reason = ""
        self.expect = 0
        """The raw offset after the last one that it was given."""

    @property
    def doubtful(self) -> bool:
        return self._lost or (self._cleaner is not None and self._cleaner.log_clock <= self._doubtful_until)

    def lost(self) -> None:
        """Before the next object there are offsets that the archive does not have."""
        self._lost = True

    def stop(self, reason: str) -> None:
        """No verdict can be computed from here on."""
        self.reason = self.reason or reason

    def take(self, name: str, extent: Extent, lines: Sequence[Line]) -> pa.Table | None:
        """The accepted ticks (TICKS_SCHEMA) of the next raw object; None if they cannot be computed."""
        if self.reason or not lines:
            return None
        try:
            verdicts = self._known.of(extent.settings, name)
        except ArchiveError as error:
            self.stop(str(error))
            return None
        cleaner = self._of(verdicts, name)
        if cleaner is None:
            return None
        if self._lost:
            self._lost, self._doubtful_until = False, max(lines[0].timestamp, cleaner.log_clock) + FORGET_MS
        cleaner.chunk([RawRecord(line.offset, line.timestamp, key_and_value(line)[1]) for line in lines])
        frame = cleaner.make_frame()
        return pa.Table.from_batches([frame.rows] if frame is not None else [], TICKS_SCHEMA)

    def _of(self, verdicts: Verdicts, name: str) -> Cleaner | None:
        before = self._verdicts
        if before is not None and (before.revise_s, before.partitions) != (verdicts.revise_s, verdicts.partitions):
            self.stop(f"{name} records other STOCKSTREAM_REVISE_S or STOCKSTREAM_PARTITIONS than the object before it")
            return None
        if self._cleaner is None:
            self._cleaner = Cleaner(
                self._partition, verdicts.partitions, lateness_ms=verdicts.lateness, revise_s=verdicts.revise_s, log=self._log,
                raw_format=verdicts.raw_format,
            )  # fmt: skip
        self._verdicts = verdicts
        self._cleaner.lateness = self._cleaner.memory.lateness = verdicts.lateness
        return self._cleaner


def expected_tables(extent: Extent, rows: pa.Table, missing: Sequence[tuple[int, int]]) -> dict[str, pa.Table]:
    """By folder what must be stored of the accepted ticks of a raw object, but for offsets without a verdict."""
    offsets = rows.column("offset").to_numpy()
    for first, last in missing:
        keep = (offsets < first) | (offsets > last)
        rows, offsets = rows.filter(pa.array(keep)), offsets[keep]
    return dict(tables_of(extent.log, extent.partition, extent.first, rows))


def difference(stored: pa.Table, expected: pa.Table) -> str:
    """What differs first between the rows of an object and those that raw gives; empty if nothing does. Columns of one of them alone are left out."""
    if stored.num_rows != expected.num_rows:
        return f"it has {stored.num_rows:,} rows, and raw gives {expected.num_rows:,}"
    columns = [name for name in expected.column_names if name in stored.column_names and name != "compaction"]
    keys = [(name, "ascending") for name in _KEYS if name in columns]
    stored, expected = stored.select(columns).sort_by(keys), expected.select(columns).sort_by(keys)
    for name in columns:
        one, other = stored.column(name).cast(expected.schema.field(name).type).combine_chunks(), expected.column(name).combine_chunks()
        if one.equals(other):
            continue
        if name in INEXACT and one.is_valid().equals(other.is_valid()) and _close(one, other):
            continue
        at = next((row for row in range(len(one)) if not pc.equal(one[row], other[row]).as_py() and one[row].as_py() != other[row].as_py()), 0)
        place = ", ".join(f"{key} {stored.column(key)[at].as_py()}" for key in ("symbol", "offset", "minute") if key in columns)
        return f"{name} of the row {place} is {one[at].as_py()}, and raw gives {other[at].as_py()}"
    return ""


def _close(one: pa.Array, other: pa.Array) -> bool:
    return bool(np.allclose(one.fill_null(0).to_numpy(), other.fill_null(0).to_numpy(), rtol=1e-9, atol=1e-9))

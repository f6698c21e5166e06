"""Offsets without a record are known from the headers of the fetched batches: no gap is read again, and only real losses are holes."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import hypothesis
import pytest
from aiokafka import TopicPartition
from aiokafka.consumer.fetcher import FetchResult, PartitionRecords
from aiokafka.errors import CorruptRecordException
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from stockstream.transport.consumer import Consumer
from stockstream.transport.fetching import CoveredOffsets, _FetchResults
from stockstream.transport.guard import Guard, Hole, Offsets, without_record
from tests.record_batches import ABORT, CONTROL, TRANSACTIONAL, forged, marker

P = TopicPartition("ticks.raw", 3)
GUARDED = TP("ticks.raw", 3)


class Log:
    """A log of batches with (first offset, end, bytes) each; `visible` are the offsets that a reader of committed records gets."""

    def __init__(self) -> None:
        self.batches: list[tuple[int, int, bytes]] = []
        self.aborted: list[tuple[int, int, int]] = []
        """Producer, first offset and offset of the marker."""
        self.visible: list[int] = []
        self.end = 0

    def add(self, data: bytes, count: int, visible: Sequence[int]) -> None:
        self.batches.append((self.end, self.end + count, data))
        self.visible += visible
        self.end += count

    def plain(self, count: int, kept: Sequence[int] | None = None, kind: int = 0) -> None:
        kept = range(count) if kept is None else kept
        offsets = [self.end + number for number in kept]
        self.add(forged(self.end, count, offsets, kind=kind), count, offsets)

    def transaction(self, producer: int, count: int, *, commit: bool = True, kept: Sequence[int] | None = None) -> None:
        offsets = [self.end + number for number in (range(count) if kept is None else kept)]
        if not commit:
            self.aborted.append((producer, self.end, self.end + count))
        self.add(forged(self.end, count, offsets, producer=producer, attributes=TRANSACTIONAL), count, offsets if commit else [])
        self.mark(producer, commit=commit)

    def mark(self, producer: int, *, commit: bool = True) -> None:
        self.add(marker(self.end, producer) if commit else marker(self.end, producer, ABORT), 1, [])

    def fetched(self, begin: int, most: int = 1_000) -> tuple[FetchResult, Any]:
        """What a fetch from an offset returns: `most` batches, and the transactions aborted in them."""
        batches = [batch for batch in self.batches if batch[1] > begin][:most]
        end = batches[-1][1] if batches else begin
        aborted = [(producer, first) for producer, first, last in self.aborted if first < end and last >= begin]
        parsed = PartitionRecords(P, CoveredOffsets(b"".join(data for _, _, data in batches)), aborted, begin, None, None, True, 1)
        assigned = Assigned(begin)
        results = _FetchResults()
        results[P] = FetchResult(P, assignment=assigned, partition_records=parsed, backoff=0)
        return results[P], assigned


class Assigned:
    """An assignment whose partition is read from a position."""

    active, paused = True, False

    def __init__(self, position: int) -> None:
        self.position = position

    def state_value(self, _: Any) -> Assigned:
        return self

    def consumed_to(self, position: int) -> None:
        self.position = position


def chunks(result: FetchResult) -> Iterator[list[Any]]:
    while result.has_more():
        yield result.getall(None)


def read(log: Log, begin: int, guard: Guard, *, most: int = 1_000) -> list[int]:
    """Reads a log to its end as the consumer does, fetch after fetch; returns the offsets delivered."""
    got: list[int] = []
    position = begin
    while position < log.end:
        result, assigned = log.fetched(position, most)
        for runs in chunks(result):
            (one,) = runs
            records, empty = one.records, one.empty()
            admitted, back = guard.admit(GUARDED, records, empty)
            got += [record.offset for record in admitted]
            if back is not None:
                position = back
                break
        else:
            assert assigned.position > position, "the same batch would be fetched for ever"
            position = assigned.position
    return got


def example() -> Log:
    """Begins and ends with a control batch, with aborted and committed transactions of two producers among plain records, and thinned batches."""
    log = Log()
    log.mark(7)
    log.plain(3)
    log.transaction(7, 10)
    log.transaction(8, 5, commit=False)
    log.mark(7)
    log.mark(8, commit=False)
    log.plain(6, kept=[1, 2, 5], kind=1)
    log.plain(4, kept=[])
    log.transaction(7, 4, kept=[0, 1])
    log.plain(1)
    log.transaction(8, 3, commit=False)
    return log


@pytest.mark.parametrize("most", [1, 2, 1_000])
def test_transactions_aborted_ones_and_compaction_leave_no_hole(most: int) -> None:
    log = example()
    for begin in range(log.end):
        guard = Guard(expected={GUARDED: begin})
        assert read(log, begin, guard, most=most) == [offset for offset in log.visible if offset >= begin]
        assert (guard.expected[GUARDED], guard.rereads, guard.holes_passed) == (log.end, 0, 0)


def test_a_fetch_of_control_batches_only_moves_the_position() -> None:
    log = Log()
    log.mark(7)
    log.mark(8, commit=False)
    result, assigned = log.fetched(0)
    (runs,) = chunks(result)
    assert runs[-1].records == [] and runs[-1].end == 2 and assigned.position == 2
    guard = Guard(expected={GUARDED: 0})
    assert guard.admit(GUARDED, *contents_of(log)) == ([], None) and guard.expected[GUARDED] == 2


def contents_of(log: Log) -> tuple[Sequence[Any], Sequence[Offsets]]:
    result, _ = log.fetched(0)
    (one,) = result.getall(None)
    return one.records, one.empty()


def test_a_batch_that_is_gone_is_still_a_hole_of_its_own_offsets() -> None:
    """Also with markers right before and behind it."""
    log = example()
    log.transaction(7, 2)
    log.plain(5)
    log.mark(7)
    log.plain(2)
    lost = next(batch for batch in log.batches if batch[1] - batch[0] == 5 and batch[0] > log.end - 10)
    log.batches.remove(lost)
    guard = Guard(expected={GUARDED: 0})
    assert read(log, 0, guard) == [offset for offset in log.visible if not lost[0] <= offset < lost[1]]
    assert list(guard.holes) == [Hole("ticks.raw", 3, lost[0], lost[1] - 1)] and guard.rereads == 1


def test_a_record_lost_after_it_was_parsed_is_read_again() -> None:
    log = example()
    records, empty = contents_of(log)
    for at in range(len(records)):
        guard = Guard(expected={GUARDED: 0})
        some = [record for number, record in enumerate(records) if number != at]
        admitted, back = guard.admit(GUARDED, some, empty)
        assert back == records[at].offset and [record.offset for record in admitted] == log.visible[:at]
        again, back = guard.admit(GUARDED, records, empty)
        assert back is None and [record.offset for record in again] == log.visible[at:] and not guard.holes


def test_a_batch_with_a_wrong_checksum_accounts_for_nothing() -> None:
    log = Log()
    log.plain(2)
    log.mark(7)
    log.plain(3)
    first, end, data = log.batches[2]
    log.batches[2] = first, end, data[:-1] + b"\1"
    result, assigned = log.fetched(0)
    found: list[Offsets] = []
    for _ in range(3):
        with contextlib.suppress(CorruptRecordException):
            if result.has_more():
                (one,) = result.getall(None)
                records, empty = one.records, one.empty()
                found += [*(Offsets(record.offset, record.offset + 1) for record in records), *empty]
    assert all(offsets.end <= 3 for offsets in found) and assigned.position <= 3


@st.composite
def logs(draw: st.DrawFn) -> Log:
    log = Log()
    for _ in range(draw(st.integers(1, 12))):
        kind, count = draw(st.sampled_from(["plain", "thin", "commit", "abort", "mark"])), draw(st.integers(1, 6))
        kept = sorted(draw(st.sets(st.integers(0, count - 1))))
        if kind == "mark":
            log.mark(draw(st.integers(1, 3)), commit=draw(st.booleans()))
        elif kind in ("plain", "thin"):
            log.plain(count, kept if kind == "thin" else None)
        else:
            log.transaction(draw(st.integers(1, 3)), count, commit=kind == "commit")
    return log


@hypothesis.settings(max_examples=60)
@given(logs(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_log_is_read_without_a_hole_and_loses_only_what_is_gone(log: Log, most: int, rng: random.Random) -> None:
    guard = Guard(expected={GUARDED: 0})
    assert read(log, 0, guard, most=most) == log.visible
    assert (guard.expected[GUARDED], guard.rereads, guard.holes_passed) == (log.end, 0, 0)
    with_records = [batch for batch in log.batches[:-1] if not int.from_bytes(batch[2][21:23], "big") & CONTROL]     # markers decide on other batches
    if with_records:
        gone = rng.choice(with_records)
        log.batches.remove(gone)
        guard = Guard(expected={GUARDED: 0})
        assert read(log, 0, guard, most=most) == [offset for offset in log.visible if not gone[0] <= offset < gone[1]]
        assert list(guard.holes) == [Hole("ticks.raw", 3, gone[0], gone[1] - 1)]


def test_the_empty_offsets_of_a_batch() -> None:
    def empty(*offsets: int, first: int = 5, end: int = 10) -> list[tuple[int, int]]:
        return [(part.first, part.end) for part in without_record([SimpleNamespace(offset=offset) for offset in offsets], Offsets(first, end))]

    assert empty(5, 6, 7, 8, 9) == [] and empty() == [(5, 10)] and empty(5, 9) == [(6, 9)] and empty(7) == [(5, 7), (8, 10)]


def test_lag_counts_what_is_not_delivered_and_is_0_behind_a_marker() -> None:
    """An open transaction, and what is behind it, is not delivered yet: the lag counts it up to the end of the log."""
    reader = Consumer.__new__(Consumer)
    reader.guard = Guard(expected={GUARDED: 5})
    high = [8]
    reader._through = {}
    client = SimpleNamespace(highwater=lambda _: high[0])
    reader._thread = SimpleNamespace(_ensure_consumer=lambda: client, log_starts={})  # type: ignore[assignment]
    assert reader.lag(GUARDED) == 3
    reader.guard.admit(GUARDED, [SimpleNamespace(offset=5)], [Offsets(6, 8)])
    assert reader.lag(GUARDED) == 0
    high[0] = 12
    assert reader.lag(GUARDED) == 4

"""In which order the partitions of a topic are taken."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from hypothesis import given
from hypothesis import strategies as st

from stockstream.kafka.merging import Merge


class Record(NamedTuple):
    partition: int
    offset: int
    timestamp: int


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 50)), max_size=60), st.integers(1, 7))
def test_partitions_are_merged_by_time_each_in_its_order(found: list[tuple[int, int]], most: int) -> None:
    records = [Record(partition, offset, time) for offset, (partition, time) in enumerate(found)]
    merge: Merge[Record] = Merge(range(3))
    for partition in range(3):
        merge.add(partition, [record for record in records if record.partition == partition])
    taken: list[Record] = []
    while some := merge.take(most, ()):
        assert len(some) <= most
        taken += some
    assert sorted(taken) == sorted(records)
    for partition in range(3):
        assert [one.offset for one in taken if one.partition == partition] == [one.offset for one in records if one.partition == partition]
    if all(a[1] <= b[1] for a, b in pairwise(found)):
        assert [one.timestamp for one in taken] == sorted(time for _, time in found)


def test_a_partition_that_is_behind_is_waited_for() -> None:
    merge: Merge[Record] = Merge([0, 1])
    merge.add(0, [Record(0, number, 100 + number) for number in range(3)])
    assert merge.take(10, [1]) == []
    merge.add(1, [Record(1, 0, 101)])
    assert [(one.partition, one.timestamp) for one in merge.take(10, [1])] == [(0, 100), (0, 101), (1, 101)]
    assert [one.timestamp for one in merge.take(10, [])] == [102]
    assert merge.empty(0) and merge.empty(1)

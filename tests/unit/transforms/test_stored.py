"""State records: versions, missing and unknown fields, values in pieces."""

from __future__ import annotations

import random

import msgspec
import pytest

from stockstream.errors import StateError
from stockstream.transforms import versioned as stored


class Old(stored.Stored):
    through: int


class New(stored.Stored):
    through: int
    log: str = "unknown"


def test_a_missing_field_gets_its_default_and_an_unknown_one_is_ignored() -> None:
    assert stored.unpack(New, stored.pack(Old(v=2, through=5)), 2) == New(v=2, through=5, log="unknown")
    assert stored.unpack(Old, stored.pack(New(v=2, through=5, log="x")), 2) == Old(v=2, through=5)


def test_a_newer_version_is_refused_in_one_line_that_says_what_to_do() -> None:
    with pytest.raises(StateError, match=r"format 3, this one reads up to 2\): upgrade this worker"):
        stored.unpack(Old, stored.pack(Old(v=3, through=5)), 2)


def test_arrays_are_of_version_1() -> None:
    assert stored.version_of(msgspec.msgpack.encode([5, "log"])) == 1
    assert stored.version_of(b"") == 1
    assert stored.version_of(stored.pack(Old(v=7, through=1))) == 7


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1_000])
def test_a_value_is_whole_again_from_its_pieces_in_any_order(size: int) -> None:
    rng = random.Random(size)
    value = stored.pack(Old(v=2, through=1)) + rng.randbytes(size)
    pieces = stored.split(value, 2, limit=100)
    assert all(len(piece) < 200 for piece in pieces)
    rng.shuffle(pieces)
    assert stored.joined(pieces) == value


def test_pieces_of_two_values_are_none() -> None:
    one, other = (stored.split(bytes([number]) * 300, 2, limit=100) for number in (1, 2))
    assert stored.joined([one[0], one[1], other[2]]) is None
    assert stored.joined(one[:2]) is None
    assert stored.joined([]) is None

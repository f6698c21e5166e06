"""The flags of a row: several are joined by a comma, in one order."""

from __future__ import annotations

import numpy as np
import pytest

from stockstream.transforms.windows.quality import FLAGS, quality_bits, quality_column
from stockstream.web.message_checks import MAX_QUALITY


def test_flags_are_joined_in_their_order() -> None:
    bits = quality_bits({"wide": np.array([False, True, True]), "partial": np.array([False, False, True])})
    assert quality_column(bits).to_pylist() == ["", "wide", "partial,wide"]


def test_an_unknown_flag_is_refused() -> None:
    with pytest.raises(ValueError):
        quality_bits({"unheard": np.array([True])})


def test_all_flags_at_once_pass_the_views() -> None:
    (text,) = quality_column(quality_bits({flag: np.array([True]) for flag in FLAGS})).to_pylist()
    assert text.split(",") == list(FLAGS) and len(text) <= MAX_QUALITY

"""The flags of a row's `quality`: what a reader should know before believing its figures. A row has them as bits of one number until it is sent."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stockstream.transforms.frames import plain

FLAGS = ("partial", "late", "accrued", "after_gap", "possible_split", "crossed", "locked", "wide", "new_series", "gap")
"""In the order in which a row names them. A new flag goes to the end: consumers compare whole texts."""
LATE = 1 << FLAGS.index("late")
TEXTS = tuple(",".join(flag for number, flag in enumerate(FLAGS) if bits >> number & 1) for bits in range(1 << len(FLAGS)))
"""By bits, the text of a row's `quality`."""


def quality_bits(masks: Mapping[str, NDArray[np.bool_]]) -> NDArray[np.int64]:
    """The bits of rows, from which rows have which of `FLAGS`. Raises `ValueError` for another name."""
    bits = np.zeros(len(next(iter(masks.values()))), np.int64)
    for flag, mask in masks.items():
        bits |= mask.astype(np.int64) << FLAGS.index(flag)
    return bits


def quality_column(bits: NDArray[Any]) -> pa.StringArray:
    """The column `quality` of rows with these bits."""
    return _texts().take(plain(bits))


@functools.cache
def _texts() -> pa.StringArray:
    return pa.array(TEXTS, pa.string())

"""Numbers as people write them: with thousands, a decimal comma, a currency sign."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

_GROUPS = re.compile(r"[-+]?\d{1,3}(,\d{3})+(\.\d+)?")
"""A number with thousands, its decimal sign a point."""
_SWAPPED = str.maketrans(".,", ",.")
_SPACES = str.maketrans("", "", " \u00a0\u202f'_$€£¥")
"""Blanks, apostrophes and signs around or within a number."""


def decimal_sign(samples: Iterable[str], delimiter: str) -> str:
    """The decimal sign of a file's numbers, `.` or `,`, by some of them.

    Where each could have thousands only (`1,234`), a comma is one of thousands, except in a file with another delimiter than a comma.
    """
    point = comma = thousands = False
    for text in (sample.strip().translate(_SPACES) for sample in samples):
        if "," in text and "." in text:
            point, comma = point or text.rfind(".") > text.rfind(","), comma or text.rfind(",") > text.rfind(".")
        elif "," in text:
            grouped = _GROUPS.fullmatch(text) is not None
            comma, thousands = comma or not grouped, thousands or grouped
        elif "." in text:
            point = point or not _GROUPS.fullmatch(text.translate(_SWAPPED))
    if comma == point:
        return "," if (comma or thousands) and delimiter == ";" else "."
    return "," if comma else "."


def numbers(column: pa.Array, decimal: str = ".") -> NDArray[np.float64]:
    """Floats, NaN for a text that is not a number. Raises `pyarrow.ArrowInvalid` or `ArrowNotImplementedError` where the column is no column of numbers."""
    is_text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if is_text and decimal == ",":
        return _written(column, decimal)
    try:
        column = column.cast(pa.float64(), safe=not pa.types.is_integer(column.type))
    except pa.ArrowInvalid:
        if not is_text:
            raise
        return _written(column, decimal)
    return np.array(column.fill_null(math.nan).to_numpy(zero_copy_only=False))


def _written(column: pa.Array, decimal: str) -> NDArray[np.float64]:
    return np.array([number(text, decimal) for text in column.to_pylist()], dtype=np.float64)


def number(text: str | None, decimal: str = ".") -> float:
    """The number that a text holds, NaN if it is none."""
    if text is None:
        return math.nan
    text = text.translate(_SPACES)
    if decimal == ",":
        text = text.translate(_SWAPPED)
    if "," in text:
        if not _GROUPS.fullmatch(text):
            return math.nan
        text = text.replace(",", "")
    try:
        return float(text)
    except ValueError:
        return math.nan

"""Twelve significant digits for what people read: 24.115 instead of 24.115000000000002, the sum of two floats.

Topics and the archive keep every bit; only the views' JSON is shortened.
"""

from __future__ import annotations

import re

import msgspec
import numpy as np
import numpy.typing as npt

DIGITS = 12
_LONG = re.compile(rb'":(?<!\\":)(-?(?=[\d.]{14})\d+\.\d+(?:[eE][-+]?\d+)?)(?=[,}])')
"""A member's number with more digits. The quote of a member's name is never behind a backslash, so nothing inside of a string matches."""
_EXACT_POWER = 22
"""Powers of ten up to this one are floats without error."""

_encode = msgspec.json.Encoder().encode


def rounded(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The floats nearest to the values' 12 significant digits; infinite values and NaN stay. Their shortest form has no more digits."""
    values = np.asarray(values, np.float64)
    out = values.copy()
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        places = DIGITS - 1 - np.floor(np.log10(np.abs(values)))
        plain = (places >= 0) & (places <= _EXACT_POWER)
        power = np.where(plain, 10.0 ** np.where(plain, places, 0.0), 1.0)
        np.copyto(out, np.rint(values * power) / power, where=plain)
    for i in np.flatnonzero(~plain & np.isfinite(values) & (values != 0)).tolist():
        out[i] = float(f"{values[i]:.{DIGITS}g}")
    return out


def shortened(body: bytes) -> bytes:
    """JSON text with the numbers of its members rounded; those in arrays are left."""
    pieces = _LONG.split(body)
    if len(pieces) == 1:
        return body
    values = rounded(np.array(pieces[1::2]).astype(np.float64))
    pieces[1::2] = [b'":' + text for text in _encode(values.tolist())[1:-1].split(b",")]
    return b"".join(pieces)

"""Numbers of shares: with up to 8 decimals, and summed without error.

A size is a double, as in JSON. A sum is kept as two whole numbers, of shares and of their parts of 1e-8, so it has the same bits in any order. Both parts may
be negative, and the second may be larger than a share. Sizes from 2**26 (67 million) on have fewer decimals, because doubles have no more.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

DECIMALS = 8
PARTS = 100_000_000
"""Parts of a share."""
_EXACT_SHARES = 90_000_000
"""Below so many shares, all parts together are a whole number below 2**53, which a double holds; its division is then rounded once."""


def split(sizes: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Whole shares, and parts of 1e-8, of each size (finite, below 2**63); further decimals are rounded."""
    whole = sizes.astype(np.int64)
    rest = sizes - whole
    return whole, (np.rint(rest * PARTS).astype(np.int64) if rest.any() else np.zeros(len(sizes), np.int64))


def joined(whole: NDArray[np.int64], part: NDArray[np.int64]) -> NDArray[np.float64]:
    """The doubles nearest to these sums."""
    if not part.any():
        return whole.astype(np.float64)
    carried = part // PARTS
    whole, part = whole + carried, part - carried * PARTS
    few = np.abs(whole) < _EXACT_SHARES
    sizes: NDArray[np.float64] = np.where(few, (np.where(few, whole, 0) * PARTS + part) / PARTS, whole + part / PARTS)
    return sizes


def parts_of(size: float) -> int:
    """The size in parts of 1e-8; further decimals are rounded."""
    whole = int(size)
    part: int = round((size - whole) * PARTS)
    return whole * PARTS + part


def rounded(size: float) -> float:
    """The size with DECIMALS decimals, as `joined` gives it."""
    if size.is_integer():
        return size
    whole, parts = int(size), parts_of(size)
    return parts / PARTS if abs(whole) < _EXACT_SHARES else whole + (parts - whole * PARTS) / PARTS


def all_rounded(sizes: NDArray[np.float64]) -> NDArray[np.float64]:
    """`rounded` of each size."""
    return sizes if (sizes == np.trunc(sizes)).all() else joined(*split(sizes))


def total(sizes: NDArray[np.float64]) -> int | float:
    """The sum of sizes, for JSON."""
    whole, part = split(sizes)
    found: int | float = for_json(joined(whole.sum(keepdims=True), part.sum(keepdims=True)))[0]
    return found


def for_json(sizes: NDArray[np.float64]) -> list[Any]:
    """The sizes as numbers of Python: those without decimals are integers, so that JSON has 300 and not 300.0. NaN stays."""
    whole = sizes == np.trunc(sizes)
    if whole.all():
        return [int(size) for size in sizes.tolist()]
    return [int(size) if is_whole else size for size, is_whole in zip(sizes.tolist(), whole.tolist(), strict=True)]

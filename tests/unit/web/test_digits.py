"""Numbers in the views' JSON have twelve significant digits, and nothing else changes."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from stockstream.web.digits import rounded, shortened

NAMES = st.text(max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4), max_leaves=20,
)  # fmt: skip


def expected(value: object, *, member: bool = False) -> object:
    if isinstance(value, dict):
        return {name: expected(item, member=True) for name, item in value.items()}
    if isinstance(value, list):
        return [expected(item) for item in value]
    return float(f"{value:.12g}") if member and isinstance(value, float) else value


@given(st.lists(st.floats()))
@example([24.115000000000002, 0.1 + 0.2, -1e-5 / 3, 5e-324, 1.7976931348623157e308, 123456789012345.6, 0.0, -0.0, math.inf, math.nan])
@example([0.999999999999999, 999999999999.9999, 9.9999999999995e-11, 1e22, 1e23, 1e-11, 1e-12])
def test_floats_are_rounded_to_twelve_digits(values: list[float]) -> None:
    found = rounded(np.array(values)).tolist()
    for value, got in zip(values, found, strict=True):
        if not math.isfinite(value):
            assert got is value or got == value or math.isnan(value) == math.isnan(got)
            continue
        digits = f"{got:.17g}" if got == 0 else repr(got).replace("-", "").split("e")[0].replace(".", "").strip("0")
        assert abs(got - value) <= 1e-11 * abs(value) + 5e-324 and (got == 0 or len(digits) <= 12 or got == float(f"{value:.12g}"))


@given(st.dictionaries(NAMES, VALUES, max_size=5))
@example({"price": 24.115000000000002, "text": 'the "price":24.115000000000002, so', 'a"': 0.30000000000000004, "columns": [0.30000000000000004]})
@example({"x\\": 'y\\"z":0.30000000000000004}', "deep": {"mean": -0.00012345678901234567, "large": 1.2345678901234567e30}})
def test_only_numbers_of_members_change(data: dict[str, object]) -> None:
    body = msgspec.json.encode(data)
    got, want = json.loads(shortened(body)), expected(json.loads(body))
    assert json.dumps(_near(got), sort_keys=True) == json.dumps(_near(want), sort_keys=True)


def _near(value: object) -> object:
    """Floats by their eleven digits, so that the two ways to round a tie are one; names and texts as they are."""
    if isinstance(value, dict):
        return {name: _near(item) for name, item in value.items() if not name.endswith("\\")}
    if isinstance(value, list):
        return [_near(item) for item in value]
    return f"{value:.10e}" if isinstance(value, float) else value


def test_the_examples_of_users() -> None:
    body = b'{"mid":24.115000000000002,"mean":0.30000000000000004,"price":24.1,"at":1760000000000,"p":1.0}'
    assert shortened(body) == b'{"mid":24.115,"mean":0.3,"price":24.1,"at":1760000000000,"p":1.0}'

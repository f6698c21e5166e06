"""Seeds of tests that are repeated with other random input: a few in the quick tests, all in `make test`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some_quick(values: Iterable[Any], quick: int) -> list[Any]:
    """The parameters of a test; those after the first `quick` are marked slow."""
    return [value if number < quick else pytest.param(value, marks=pytest.mark.slow) for number, value in enumerate(values)]

"""Tests of compiled code, which skip where it was not built."""

from __future__ import annotations

import pytest

from stockstream import accelerated


def need_compiled() -> None:
    """Skip the test where the compiled code is missing."""
    if accelerated.missing:
        pytest.skip(f"not compiled: {', '.join(accelerated.missing)}")

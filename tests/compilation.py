"""Tests of what is compiled: skipped where it was not built, but in CI."""

from __future__ import annotations

import os

import pytest

from stockstream import accelerated


def need_compiled() -> None:
    """Skips the test without it; with STOCKSTREAM_REQUIRE_COMPILED set, as in CI, the test fails."""
    if accelerated.missing:
        if os.environ.get("STOCKSTREAM_REQUIRE_COMPILED"):
            pytest.fail(f"what is compiled is not there: {accelerated.missing}")
        pytest.skip(f"not compiled: {accelerated.missing}")

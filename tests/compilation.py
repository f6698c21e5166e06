"""Tests of what is compiled: skipped where it was not built, but in CI."""

from __future__ import annotations

import os

import pytest

from stockstream import compiled


def need_compiled() -> None:
    """Skips the test without it; with STOCKSTREAM_REQUIRE_COMPILED set, as in CI, the test fails."""
    if compiled.missing:
        if os.environ.get("STOCKSTREAM_REQUIRE_COMPILED"):
            pytest.fail(f"what is compiled is not there: {compiled.missing}")
        pytest.skip(f"not compiled: {compiled.missing}")

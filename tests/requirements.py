"""What tests may skip: by default whatever this machine lacks, with STOCKSTREAM_REQUIRE_ALL=1 (CI) only what no installation can add.

So a test that needs Kafka, Chromium or the history of the repository just skips without it, with a reason.
"""

from __future__ import annotations

import os

import pytest

REQUIRE_ALL = os.environ.get("STOCKSTREAM_REQUIRE_ALL") == "1"

NO_WATCHDOG = "Windows has no watchdog"
NO_SIGNALS = "Windows has no signals that end a process"
NO_IPV6 = "this system has no IPv6"
NO_DEV_FULL = "this system has no /dev/full"
NO_REAL_TRADES = "the real trades are not beside this checkout, and must not be copied into it"

PLATFORM_REASONS = frozenset({NO_WATCHDOG, NO_SIGNALS, NO_IPV6, NO_DEV_FULL, NO_REAL_TRADES})
"""Reasons for which a test may skip everywhere."""


def fail_if_required(report: pytest.TestReport) -> None:
    """Makes a skip a failure, unless its reason is one of `PLATFORM_REASONS` or the test is expected to fail."""
    if not report.skipped or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if reason not in PLATFORM_REASONS:
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} would skip, and STOCKSTREAM_REQUIRE_ALL=1 allows that only for a reason of tests/requirements.py: {reason}"

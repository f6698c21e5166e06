"""Skips that STOCKSTREAM_REQUIRE_ALL=1 turns into failures."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.requirements import NO_IPV6, fail_if_required


def report(outcome: Literal["passed", "failed", "skipped"], reason: str = "") -> pytest.TestReport:
    longrepr = ("test_x.py", 1, f"Skipped: {reason}") if outcome == "skipped" else None
    return pytest.TestReport("test_x.py::test_x", ("test_x.py", 1, "test_x"), {}, outcome, longrepr, "call")


def test_a_skip_is_a_failure_that_gives_the_reason() -> None:
    skipped = report("skipped", "no real Kafka: there is no java")
    fail_if_required(skipped)
    assert skipped.failed and "test_x.py::test_x" in skipped.longreprtext and "no real Kafka: there is no java" in skipped.longreprtext


def test_a_platform_reason_may_skip_and_other_outcomes_stay() -> None:
    lacking, expected, passed = report("skipped", NO_IPV6), report("skipped", "fails as known"), report("passed")
    expected.wasxfail = "fails as known"
    for each in (lacking, expected, passed):
        before = each.outcome
        fail_if_required(each)
        assert each.outcome == before

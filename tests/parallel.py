"""How several pytest processes share the tests with brokers (`make test`: `pytest -n 3 --dist loadgroup`): which tests one process runs all."""

from __future__ import annotations

import re

from xdist.scheduler.loadscope import LoadScopeScheduling

GROUPS = (
    ("three brokers, 1", r"tests/faults/.*\[(workers|frozen_worker|archive|skipped_and_holes)\]|::test_a_(killed|frozen)_broker_is_survived"),
    ("three brokers, 2", r"tests/faults/"),
    ("MiniStack", r"tests/integration/test_athena\.py"),
    ("line on Kafka", r"tests/integration/test_line\.py::.*\[kafka\]"),
    ("line on the embedded broker", r"tests/integration/test_line\.py::.*\[embedded\]"),
)
"""Tests that share something expensive. A cluster of three brokers costs memory, and processor time even when idle, so that only two processes have one."""


class Scheduling(LoadScopeScheduling):
    """Gives each process a group, or a test that is in none, whenever it is almost done with the last. (`xdist_group` has no effect with pytest 9.)"""

    def _split_scope(self, nodeid: str) -> str:
        return next((name for name, pattern in GROUPS if re.search(pattern, nodeid)), nodeid)

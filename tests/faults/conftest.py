"""The cluster that all faults are done to."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _quiet_clients() -> Iterator[None]:
    """Silences aiokafka, which logs every broker that a case stops; the cases log that themselves."""
    logger = logging.getLogger("aiokafka")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(before)

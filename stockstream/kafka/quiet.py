"""What a command lets its libraries say: an error is told in one line, by the command."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

TALKATIVE = {"aiokafka": logging.CRITICAL, "stockstream.kafka": logging.ERROR}


@contextmanager
def quiet_clients() -> Iterator[None]:
    """Keeps the Kafka clients from telling every failed attempt."""
    before = {name: logging.getLogger(name).level for name in TALKATIVE}
    try:
        for name, level in TALKATIVE.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

"""Limits what libraries log in a command, which prints an error in one line itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

TALKATIVE = {"aiokafka": logging.CRITICAL, "stockstream.kafka": logging.ERROR}


@contextmanager
def quiet_clients() -> Iterator[None]:
    """Keeps the Kafka clients from logging every failed attempt."""
    before = {name: logging.getLogger(name).level for name in TALKATIVE}
    try:
        for name, level in TALKATIVE.items():
            logging.getLogger(name).setLevel(level)
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)

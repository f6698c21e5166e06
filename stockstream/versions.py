"""The version that every message of ours bears in its headers, read where messages are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from stockstream.records import SCHEMA_VERSION

logger = logging.getLogger(__name__)

NAME, VALUE = "schema_version", str(SCHEMA_VERSION).encode()
MAX_DIGITS = 9


def newer(headers: Iterable[tuple[str, bytes]]) -> int:
    """The version in a record's headers where it is above ours, else 0: also without such a header, and with one that is no number."""
    for name, value in headers:
        if name == NAME and value != VALUE:
            text = bytes(value or b"")
            if text.isdigit() and len(text) <= MAX_DIGITS and int(text) > SCHEMA_VERSION:
                return int(text)
    return 0


class NewerMessages:
    """Counts messages that a newer stockstream has written, and says so once a topic. What of them is valid is used all the same.

    Args:
        count: told of each, by its topic.
    """

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._said: set[str] = set()

    def look(self, topic: str, record: Any) -> None:
        """Looks at a record's headers."""
        headers = getattr(record, "headers", ())
        version = newer(headers) if headers else 0
        if version:
            self._count(topic)
            if topic not in self._said:
                self._said.add(topic)
                logger.warning(
                    "%s: written by a newer stockstream (schema version %d, this one knows %d): what it adds is ignored; upgrade this worker",
                    topic, version, SCHEMA_VERSION,
                )  # fmt: skip

"""The schema version in the headers of every message that stockstream sends, and its check when messages are read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

from stockstream.records import SCHEMA_VERSION

logger = logging.getLogger(__name__)

NAME, VALUE = "schema_version", str(SCHEMA_VERSION).encode()
HEADERS = [(NAME, VALUE)]
"""The headers of every message but frames and state records, which have further ones."""
MAX_DIGITS = 9


def newer(headers: Iterable[tuple[str, bytes]]) -> int:
    """The schema version in a record's headers if it is newer than this program's; 0 if it is not, is missing, or is no number."""
    for name, value in headers:
        if name == NAME and value != VALUE:
            text = bytes(value or b"")
            if text.isdigit() and len(text) <= MAX_DIGITS and int(text) > SCHEMA_VERSION:
                return int(text)
    return 0


class NewerMessages:
    """Counts messages that a newer stockstream wrote, and logs one warning per topic. Their known fields are used as usual.

    Args:
        count: called for each such message, with its topic.
    """

    def __init__(self, count: Callable[[str], None]) -> None:
        self._count = count
        self._logged: set[str] = set()

    def look(self, topic: str, record: Any) -> None:
        """Checks a record's headers."""
        headers = getattr(record, "headers", ())
        version = newer(headers) if headers else 0
        if version:
            self._count(topic)
            if topic not in self._logged:
                self._logged.add(topic)
                logger.warning(
                    "%s: a newer stockstream wrote messages here (schema version %d, this worker has %d). New fields are ignored: upgrade this worker",
                    topic, version, SCHEMA_VERSION,
                )  # fmt: skip

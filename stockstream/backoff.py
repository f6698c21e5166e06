"""Makes aiokafka pause where it asks for metadata in vain: put in by `pause_failed_updates`, for the versions that `stockstream.packages` names.

Whoever waits for a partition's leader (the producer's sender, the fetcher) asks again as soon as an update has failed: a broker that refuses connections is
asked 2,600 times a second, two log lines each.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from aiokafka.client import AIOKafkaClient

FIRST_S, LAST_S = 0.1, 1.0
"""The pause after the first failed update in a row, twice as long after each, and the longest."""

_update = AIOKafkaClient._metadata_update
_pauses: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


async def metadata_update(client: Any, *arguments: Any) -> bool:
    """In the place of `AIOKafkaClient._metadata_update`."""
    if await _update(client, *arguments):
        _pauses.pop(client, None)
        return True
    pause = _pauses.get(client, FIRST_S)
    _pauses[client] = min(2 * pause, LAST_S)
    await asyncio.sleep(pause)
    return False


def pause_failed_updates() -> None:
    """Puts it in, for all clients of this process."""
    AIOKafkaClient._metadata_update = metadata_update

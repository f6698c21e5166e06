"""Makes aiokafka pause after a failed metadata update. `pause_failed_updates` installs it, for the versions that `stockstream.packages` names.

aiokafka's producer and fetcher, when they wait for a partition's leader, retry a failed update at once: a broker that refuses connections gets 2,600
requests a second, each with two log lines.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any

from aiokafka.client import AIOKafkaClient

FIRST_S, LAST_S = 0.1, 1.0
"""The pause after the first failed update in a row, and the longest pause. Each further failure doubles it."""

_update = AIOKafkaClient._metadata_update
_pauses: weakref.WeakKeyDictionary[Any, float] = weakref.WeakKeyDictionary()


async def metadata_update(client: Any, *arguments: Any) -> bool:
    """Replaces `AIOKafkaClient._metadata_update`."""
    if await _update(client, *arguments):
        _pauses.pop(client, None)
        return True
    pause = _pauses.get(client, FIRST_S)
    _pauses[client] = min(2 * pause, LAST_S)
    await asyncio.sleep(pause)
    return False


def pause_failed_updates() -> None:
    """Installs the pause for all clients of this process."""
    AIOKafkaClient._metadata_update = metadata_update

"""The watchdog: leaves when the process stood still, the membership is gone, or nothing can be sent."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from stockstream.errors import FencedError
from stockstream.kafka.outages import Outage
from stockstream.logs import last_fault
from stockstream.transport.fetching import LOST_S

logger = logging.getLogger(__name__)


async def watchdog(app: Any, interval_s: float = 0.25) -> None:
    """Leaves when the process stood still, the group membership is gone, or nothing can be sent. Runs until cancelled."""
    app.fence.heard = lambda: app.consumer.thread.last_heartbeat
    outage, reason = Outage("broker lost", "broker back after", logger.warning), ""
    while True:
        await asyncio.sleep(interval_s)
        try:
            app.fence.tick()
            crash = f"a part of the worker crashed: {app.crash_reason!r}" if app.crashed else ""     # robinhood/faust#684: it may hang then
            for why in (crash, app.consumer.thread.trouble(app.fence.limit_s), app.producer.trouble()):
                if why:
                    app.fence.leave(why)
            if app.consumer.thread.silent_s > LOST_S:
                reason = reason or last_fault() or "it does not answer"      # one for an outage: what clients say next follows from it
                outage.away(reason)
            else:
                reason = ""
                outage.back()
        except FencedError:
            return

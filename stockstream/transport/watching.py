"""The watchdog: ends the process if it stalled, lost its group membership, or can no longer send."""

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
    """Checks the worker every `interval_s` seconds, and ends it if it stalled, lost its group membership, crashed in part, or can no longer send.

    Runs until it is cancelled or the worker ends. It also logs when the broker is lost and when it is back.
    """
    app.fence.last_heartbeat = lambda: app.consumer.thread.last_heartbeat
    outage, reason = Outage("broker lost", "broker back after", logger.warning), ""
    while True:
        await asyncio.sleep(interval_s)
        try:
            app.fence.tick()
            crash = f"a part of the worker crashed: {app.crash_reason!r}" if app.crashed else ""     # robinhood/faust#684: the app may hang after it
            for why in (crash, app.consumer.thread.trouble(app.fence.limit_s), app.producer.trouble()):
                if why:
                    app.fence.leave(why)
            if app.consumer.thread.silent_s > LOST_S:
                reason = reason or last_fault() or "it does not answer"      # keep the first reason of an outage: later errors follow from it
                outage.away(reason)
            else:
                reason = ""
                outage.back()
        except FencedError:
            return

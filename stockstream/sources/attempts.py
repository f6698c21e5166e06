"""Work that may fail or never return: bounded in time, or repeated until it succeeds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Coroutine
from typing import Any, TypeVar

from aiokafka.errors import KafkaError, KafkaTimeoutError

from stockstream.errors import FencedError, SourceError
from stockstream.sources.base import Clock, SourceUnavailable
from stockstream.sources.health import STEADY_MS, Pauses, reason_of

logger = logging.getLogger(__name__)

T = TypeVar("T")

CANCEL_AGAIN_S = 2.0
"""A task that has not ended so long after its cancellation is cancelled again."""


def worth_repeating(error: Exception) -> bool:
    """Whether the same messages can be delivered later. Messages that are too large or refused cannot, and would block the source forever."""
    if isinstance(error, KafkaError):
        return bool(error.retriable) or isinstance(error, KafkaTimeoutError)
    return bool(getattr(error, "retriable", False)) or isinstance(error, OSError)


async def with_retries(what: str, work: Callable[[], Awaitable[None]], clock: Clock, chance: Callable[[], float]) -> None:
    """Retries the work until it succeeds, with growing pauses. Each new reason is logged in one line.

    Raises `FencedError`, and a `SourceError` that stops its source.
    """
    pauses, logged = Pauses(chance), ""
    while True:
        started = clock.now_ms()
        try:
            return await work()
        except FencedError:
            raise
        except Exception as error:
            if isinstance(error, SourceError) and error.stops:
                raise
            lasted_ms = clock.now_ms() - started
            if lasted_ms >= STEADY_MS:
                logged = ""
            pause = pauses.next_s(lasted_ms)
            if (reason := reason_of(error)) != logged:
                logged = reason
                logger.warning("%s could not be published: %s; next attempt in %.1f s", what, reason, pause)
            await clock.sleep(pause)


async def within(seconds: float, work: Coroutine[Any, Any, T], what: str) -> T:
    """What the work returns. Raises `SourceUnavailable` after so many seconds, also if the work does not react to its cancellation."""
    task = asyncio.create_task(work)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
    finally:
        task.cancel()
        task.add_done_callback(_retrieve)
    if not done:
        raise SourceUnavailable(f"{what} took more than {seconds:g} s")
    if task.cancelled():
        raise SourceUnavailable(f"{what} was cancelled from within")
    return task.result()


async def end_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancels the tasks and waits until all have ended. One that is being cancelled already may finish what it does at its end, within CANCEL_AGAIN_S."""
    for task in tasks:
        if not task.cancelling():
            task.cancel()
    left = {task for task in tasks if not task.done()}
    while left:
        _, left = await asyncio.wait(left, timeout=CANCEL_AGAIN_S)
        for task in left:                                                # `wait_for` of Python 3.11 can swallow a cancellation
            task.cancel()
    for task in tasks:
        _retrieve(task)


def _retrieve(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()

"""Blocking calls in daemon threads, so that a hanging call cannot keep the process from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(call: Callable[[], T], name: str) -> Coroutine[Any, Any, T]:
    """Runs a blocking call in a daemon thread of this name. (The process would wait at its end for the threads of asyncio's own pool.)"""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def resolve(result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result, fault = None, None
        try:
            result = call()
        except BaseException as error:  # noqa: BLE001  it is raised where the result is awaited
            fault = error
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve, result, fault)

    threading.Thread(target=run, name=name, daemon=True).start()

    async def wait() -> T:
        return await future

    return wait()

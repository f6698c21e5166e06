"""Blocking calls in threads that a hanging store cannot make the process wait for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def in_thread(call: Callable[[], T]) -> Coroutine[Any, Any, T]:
    """Runs a blocking call in a thread of its own that a hanging store cannot make the process wait for at its end, as the pools of the library would."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: Any, error: BaseException | None) -> None:
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
            loop.call_soon_threadsafe(settle, result, fault)

    threading.Thread(target=run, name="archive-store", daemon=True).start()

    async def wait() -> T:
        return await future

    return wait()

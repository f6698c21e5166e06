"""Waits for a step of a query, which runs in a thread, so that Ctrl-C and a time limit end it at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

from stockstream.sql.errors import QueryTooLong

T = TypeVar("T")
POLL_S = 0.2
"""How often the caller is informed while it waits."""


class Waiting:
    """Runs the steps of one query. `interrupt` ends the step that runs, soon and with an error.

    `waited(seconds)` is called several times a second, with the time since the query began. Raises `QueryTooLong` after `timeout_s`, None for no limit.
    """

    def __init__(self, interrupt: Callable[[], None], waited: Callable[[float], None], timeout_s: float | None) -> None:
        self._interrupt, self._waited, self._timeout_s = interrupt, waited, timeout_s
        self._began = time.monotonic()

    def run(self, step: Callable[[], T]) -> T:
        """What `step` returns or raises."""
        future: Future[T] = Future()

        def work() -> None:
            try:
                future.set_result(step())
            except BaseException as error:                               # noqa: BLE001  it is raised where the result is asked for
                future.set_exception(error)

        thread = threading.Thread(target=work, name="query", daemon=True)
        thread.start()
        try:
            while True:
                try:
                    return future.result(POLL_S)
                except TimeoutError:
                    if future.done():                                    # the step itself raised one
                        return future.result()
                elapsed = time.monotonic() - self._began
                if self._timeout_s is not None and elapsed > self._timeout_s:
                    raise QueryTooLong(f"the query was ended after {self._timeout_s:g} s, its time limit")
                self._waited(elapsed)
        except (KeyboardInterrupt, QueryTooLong):
            self._interrupt()
            thread.join()                                                # soon: a thread in DuckDB can abort the interpreter at its end
            raise

"""Connects the views of a worker to its web server and to a tail of the derived topics."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stockstream.instance import app
from stockstream.status import metrics, status
from stockstream.web.live import Live
from stockstream.web.tail import Tail
from stockstream.web.views import mount


def _version() -> str:
    try:
        return version("stockstream")
    except PackageNotFoundError:
        return "0"


def put_on(web: Any) -> Callable[[], Awaitable[None]]:
    """Adds the views to Faust's web server of the app. Returns a coroutine function that starts reading the topics, once they exist."""
    live = Live()
    tail = Tail(app.settings, live, metrics)
    mount(web.web_app, live, status, metrics, tail, read_at_once=False, version=_version())
    return tail.start

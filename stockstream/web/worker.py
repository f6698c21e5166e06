"""The views of a worker, with a tail of the derived topics behind them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from stockstream.app import app
from stockstream.web.live import Live
from stockstream.web.tail import Tail
from stockstream.web.views import mount
from stockstream.worker import metrics, status


def _version() -> str:
    try:
        return version("stockstream")
    except PackageNotFoundError:
        return "0"


def put_on(web: Any) -> None:
    """Puts the views on the web server that Faust has made for the app."""
    live = Live()
    mount(web.web_app, live, status, metrics, Tail(app.settings, live, metrics), version=_version())

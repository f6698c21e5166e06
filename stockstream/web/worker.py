"""Puts the views on the worker's web server, with a tail of the derived topics behind them."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from stockstream.app import app
from stockstream.web.live import Live
from stockstream.web.tail import Tail
from stockstream.web.views import register
from stockstream.worker import metrics, status


def _version() -> str:
    try:
        return version("stockstream")
    except PackageNotFoundError:
        return "0"


def _register() -> None:
    live = Live()
    register(app, live, status, metrics, Tail(app.settings, live, metrics), version=_version())


_register()                                                              # Faust adds its own pages as soon as all modules are loaded; ours come before

"""The composition root: settings, then the app, then its agents and views. `faust -A stockstream` calls `load`."""

from __future__ import annotations

import importlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

from stockstream import instance, logs
from stockstream.alerts_file import read_alerts_file
from stockstream.application import App, create_app
from stockstream.endings import stop_start, write_reason_to
from stockstream.errors import StockstreamError
from stockstream.settings import Settings, load_settings

AGENTS = ("agents.ingest", "agents.clean", "agents.aggregate", "agents.detect", "agents.notify", "agents.score", "agents.archive")
"""The agents, imported by name because Faust's own discovery ignores an agent that fails to import."""


def load(agents: Sequence[str] = AGENTS) -> App:
    """Creates the app of this process with these agents and the views. Slow imports happen here, before the worker joins its group.

    Invalid settings end the process with one line.
    """
    app = make(_settings())
    logs.without_banner()
    for module in agents:
        importlib.import_module(module)
    from stockstream.state.lost_frames import check  # it needs the app
    from stockstream.status import status

    app.check_frames = partial(check, app)
    app.mount_views, app.ready_line = _mount_views, status.started
    return app


def make(settings: Settings) -> App:
    """Creates the app of this process, without agents."""
    instance.app = create_app(settings)
    return instance.app


def _settings() -> Settings:
    try:
        settings = load_settings()
        read_alerts_file(settings.alerts)
    except StockstreamError as error:
        stop_start(error)
    write_reason_to(settings.reason_file)
    return settings


def _mount_views(web: Any) -> Callable[[], Awaitable[None]]:
    from stockstream.web.mounting import put_on  # a worker without views does not load them

    return put_on(web)

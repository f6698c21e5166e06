"""Routes of the kind `log`: one line of the worker's log."""

from __future__ import annotations

import logging

from stockstream.sinks.notify.notices import Notice
from stockstream.sinks.notify.route import RouteSettings
from stockstream.wording import one_line

logger = logging.getLogger(__name__)


class LogSettings(RouteSettings, kw_only=True, frozen=True):
    """It has no settings of its own."""

    @property
    def place(self) -> str:
        return "the worker's log"


class LogRoute:
    """See `Route`."""

    def __init__(self, settings: LogSettings) -> None:
        pass

    async def send(self, notice: Notice) -> str:
        logger.warning("alert: %s: %s (%s)", one_line(notice.title), one_line(notice.text), one_line(notice.key))
        return "logged"

    async def close(self) -> None:
        pass

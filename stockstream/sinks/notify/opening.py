"""The kinds of routes by name, and how one is opened."""

from __future__ import annotations

from stockstream.settings import Settings
from stockstream.sinks.notify.email import EmailRoute, EmailSettings
from stockstream.sinks.notify.log import LogRoute, LogSettings
from stockstream.sinks.notify.route import Route, RouteSettings
from stockstream.sinks.notify.slack import SlackRoute, SlackSettings
from stockstream.sinks.notify.sns import SnsRoute, SnsSettings
from stockstream.sinks.notify.webhook import WebhookRoute, WebhookSettings

KINDS: dict[str, type[RouteSettings]] = {
    "sns": SnsSettings, "webhook": WebhookSettings, "slack": SlackSettings, "email": EmailSettings, "log": LogSettings,
}  # fmt: skip


def open_route(route: RouteSettings, settings: Settings) -> Route:
    """Makes the route. It connects when it sends."""
    match route:
        case SnsSettings():
            return SnsRoute(route, settings)
        case WebhookSettings():
            return WebhookRoute(route)
        case SlackSettings():
            return SlackRoute(route)
        case EmailSettings():
            return EmailRoute(route)
        case LogSettings():
            return LogRoute(route)
    raise AssertionError(route.kind)

"""Routes of the kind `slack`: incoming webhooks of Slack, and of services with the same format."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

import msgspec

from stockstream.sinks.notify.http import Poster, address_fault, host_of
from stockstream.sinks.notify.notices import Notice
from stockstream.sinks.notify.route import RouteSettings, secrets_of
from stockstream.wording import utc_time

_ESCAPED = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
SECTION_LENGTH, HEADER_LENGTH = 2_900, 150
"""Slack allows 3,000 characters in a section, and 150 in a header."""


class SlackSettings(RouteSettings, kw_only=True, frozen=True):
    """`url`: of the incoming webhook. It is a secret: whoever has it can post."""

    per_minute: ClassVar[int] = 30

    url: str

    def faults(self) -> Iterable[tuple[str, str]]:
        if fault := address_fault(self.url):
            yield "url", fault

    @property
    def place(self) -> str:
        return host_of(self.url)


def message(notice: Notice) -> bytes:
    """The message: `text` for notifications, `blocks` for the channel."""
    line = notice.text.translate(_ESCAPED)[:SECTION_LENGTH]
    return msgspec.json.encode({
        "text": f"{notice.title}: {notice.text}".translate(_ESCAPED)[:SECTION_LENGTH],
        "blocks": [
            {"type": "header", "text": {"type": "plain_text", "text": notice.title[:HEADER_LENGTH]}},
            {"type": "section", "text": {"type": "mrkdwn", "text": line}},
            {"type": "context", "elements": [{"type": "plain_text", "text": f"{utc_time(notice.at)} · {notice.key}"[:SECTION_LENGTH]}]},
        ],
    })  # fmt: skip


class SlackRoute:
    """See `Route`."""

    def __init__(self, settings: SlackSettings) -> None:
        self._poster = Poster(str.__str__(settings.url), settings.timeout_s, secrets_of(settings))

    async def send(self, notice: Notice) -> str:
        return await self._poster.post(message(notice), {"Content-Type": "application/json", "User-Agent": "stockstream"})

    async def close(self) -> None:
        await self._poster.close()

"""Routes of the kind `webhook`: the JSON of the change, signed."""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Iterable
from typing import ClassVar

from stockstream.sinks.notify.http import Poster, address_fault, host_of
from stockstream.sinks.notify.notices import Notice
from stockstream.sinks.notify.route import RouteSettings, secrets_of

SIGNATURE, TIMESTAMP, KEY = "X-Stockstream-Signature", "X-Stockstream-Timestamp", "Idempotency-Key"


class WebhookSettings(RouteSettings, kw_only=True, frozen=True):
    """`url`: where to post. `secret`: key of the signature; there is none without it."""

    secrets: ClassVar[tuple[str, ...]] = ("secret",)

    url: str
    secret: str = ""

    def faults(self) -> Iterable[tuple[str, str]]:
        if fault := address_fault(self.url):
            yield "url", fault

    @property
    def place(self) -> str:
        return host_of(self.url)


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """`sha256=` and the HMAC-SHA256 of timestamp (epoch s), dot and body, in hexadecimal digits. A receiver can refuse old timestamps."""
    return "sha256=" + hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class WebhookRoute:
    """See `Route`."""

    def __init__(self, settings: WebhookSettings) -> None:
        self._secret = str.__str__(settings.secret)
        self._poster = Poster(str.__str__(settings.url), settings.timeout_s, secrets_of(settings))

    async def send(self, notice: Notice) -> str:
        headers = {"Content-Type": "application/json", KEY: notice.key.encode("ascii", "backslashreplace").decode(), "User-Agent": "stockstream"}
        if self._secret:
            headers[TIMESTAMP] = str(int(time.time()))
            headers[SIGNATURE] = signature(self._secret, headers[TIMESTAMP], notice.body)
        return await self._poster.post(notice.body, headers)

    async def close(self) -> None:
        await self._poster.close()

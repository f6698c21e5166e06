"""What the routes over HTTP share: one session each, and what an answer means."""

from __future__ import annotations

import email.utils
import time
from collections.abc import Mapping
from urllib.parse import urlsplit

import aiohttp

from stockstream.sinks.notify.route import Refused, Retry, plain

READ_BYTES = 400
"""How much of an answer is read: enough for its reason."""
LATER = (401, 403, 404, 407, 408, 409, 410, 421, 423, 425, 429)
"""Statuses that concern the route and not the notice: someone can mend it, and the notice is sent then."""
LONGEST_WAIT_S = 600.0


def address_fault(url: str) -> str:
    """Why a text is no address for a route; empty if it is."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        valid = False
    return "" if valid else "must be an address that begins with https:// or http://"


def host_of(url: str) -> str:
    """Host and port of an address: the rest may be secret."""
    parts = urlsplit(url)
    return parts.netloc.rpartition("@")[2]


class Poster:
    """Posts to one address.

    Args:
        url: the address.
        timeout_s: of a whole attempt.
        secrets: what no reason may show.
    """

    def __init__(self, url: str, timeout_s: float, secrets: list[str]) -> None:
        self._url, self._timeout_s, self._secrets = url, timeout_s, [url, *secrets]
        self._host = host_of(url)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> str:
        """Returns the status of the answer, and its beginning. Raises `Retry` and `Refused`."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=2), timeout=aiohttp.ClientTimeout(total=self._timeout_s), auto_decompress=False,
            )  # fmt: skip
        try:
            async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as answer:
                text = plain((await answer.content.read(READ_BYTES)).decode("utf-8", "replace"), self._secrets)
                status, after_s = answer.status, retry_after_s(answer.headers.get("Retry-After", ""))
        except TimeoutError:
            raise Retry(f"{self._host} did not answer within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = plain(getattr(error, "os_error", None) or error, self._secrets)
            raise Retry(f"no answer from {self._host}: {type(error).__name__}: {reason}") from None
        found = f"{self._host} answered {status}{f': {text}' if text else ''}"
        if 200 <= status < 300:
            return found
        if status >= 500 or status in LATER:
            raise Retry(found, after_s)
        raise Refused(found)

    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()


def retry_after_s(value: str) -> float:
    """Seconds of a `Retry-After` header, which holds a number or a date; at most LONGEST_WAIT_S, and 0 if there is none."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT_S)

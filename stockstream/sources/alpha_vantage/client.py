"""Requests to Alpha Vantage. Every error is an `AnswerError`, and neither it nor anything in its traceback has the key, which is part of each address."""

from __future__ import annotations

from typing import Any
from urllib.parse import parse_qsl, urlsplit, urlunsplit

import aiohttp

from stockstream.errors import StockstreamError
from stockstream.sources.alpha_vantage.answers import AnswerError, decoded

TIMEOUT_S, CONNECT_S = 30.0, 10.0
MAX_ANSWER_BYTES = 64_000_000
"""A month of one-minute bars with extended hours has 3 MB."""


class Client:
    """One session of requests.

    Args:
        url: of the service. Parameters in it, such as `entitlement=delayed`, are sent with every request.
        key: the user's.
        timeout_s: for one answer.
    """

    def __init__(self, url: str, key: str, *, timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        self._url = urlunsplit(parts._replace(query="", fragment=""))
        self._host = parts.netloc
        self._parameters = dict(parse_qsl(parts.query))
        self._key = key
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=min(CONNECT_S, timeout_s))
        self._session: aiohttp.ClientSession | None = None

    async def ask(self, function: str, **parameters: str) -> dict[str, Any]:
        """The answer to one request. Raises `AnswerError`; of kind `unsent` if no request was made."""
        try:
            return await self._ask({"function": function, **parameters, **self._parameters, "apikey": self._key})
        except AnswerError as error:
            raise error from None                                        # the causes name the address

    async def stop(self) -> None:
        """Closes the connections. The next request opens them again."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    async def _ask(self, parameters: dict[str, str]) -> dict[str, Any]:
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, connector=aiohttp.TCPConnector(force_close=True))
        try:
            # a redirection would take the key to another host
            async with self._session.get(self._url, params=parameters, allow_redirects=False, middlewares=(_once(),)) as answer:
                body = await answer.content.read(MAX_ANSWER_BYTES + 1)
                while len(body) <= MAX_ANSWER_BYTES and (more := await answer.content.read(MAX_ANSWER_BYTES + 1 - len(body))):
                    body += more
                if len(body) > MAX_ANSWER_BYTES:
                    raise AnswerError("invalid", f"more than {MAX_ANSWER_BYTES:,} bytes")
                return decoded(answer.status, body, self._key, retry_after=answer.headers.get("Retry-After", ""))
        except StockstreamError:
            raise
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            system = getattr(error, "os_error", None)
            raise AnswerError("unsent", f"{self._host}: {_reason(system)}") from None
        except (aiohttp.ServerTimeoutError, TimeoutError):
            raise AnswerError("timeout", f"{self._timeout.total:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            raise AnswerError("broken", type(error).__name__) from None


def _once() -> aiohttp.ClientMiddlewareType:
    """Lets one request pass. aiohttp repeats a request by itself if the connection ends before the answer, and it would count twice."""
    was_sent = False

    async def send(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        nonlocal was_sent
        if was_sent:
            raise AnswerError("broken")
        was_sent = True
        return await handler(request)

    return send


def _reason(error: OSError | None) -> str:
    if error is None:
        return "no connection in time"
    return error.strerror or type(error).__name__

"""Receivers of notices on loopback: an HTTP server and an SMTP server, with switches."""

from __future__ import annotations

import asyncio
import contextlib
import warnings
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message
from email.policy import default
from typing import Any

from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, Session


@dataclass
class HttpReceiver:
    """`status` of the next answers; `hang`: it answers nothing. `bodies` and `headers` are of the requests that were answered with 200."""

    status: int = 200
    hang: bool = False
    answer: str = "ok"
    answer_headers: dict[str, str] = field(default_factory=dict)
    bodies: list[bytes] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    requests: int = 0
    port: int = 0
    _runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook/T0SECRET"

    async def start(self) -> None:
        app = web.Application()
        app.router.add_post("/{path:.*}", self._take)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]             # type: ignore[union-attr]

    async def stop(self) -> None:
        """Nothing listens at its port any more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.requests += 1
        if self.hang:
            await asyncio.sleep(3_600)
        if self.status == 200:
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
        return web.Response(status=self.status, text=self.answer, headers=self.answer_headers)


@contextlib.asynccontextmanager
async def http_receiver() -> AsyncIterator[HttpReceiver]:
    receiver = HttpReceiver()
    await receiver.start()
    try:
        yield receiver
    finally:
        await receiver.stop()


class SmtpReceiver:
    """`answer` to the next messages, `recipient_answer` to the next recipients; they are taken with 250."""

    def __init__(self, password: str = "", tls: Any = None, *, implicit: bool = False) -> None:
        self.answer = self.recipient_answer = "250 OK"
        self.messages: list[Message] = []
        self._password = password
        options: dict[str, Any] = {}
        if password:
            options = {"authenticator": self._authenticate, "auth_required": True, "auth_require_tls": not implicit}
        if tls is not None and not implicit:
            options["tls_context"] = tls
        self._options, self._tls = options, tls if implicit else None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._protocol, "127.0.0.1", 0, ssl=self._tls)

    def _protocol(self) -> SMTP:
        with warnings.catch_warnings(action="ignore"):                   # of a login without STARTTLS, which is within TLS here
            return SMTP(self, **self._options)

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    def stop(self) -> None:
        if self._server is not None:
            self._server.close()

    def _authenticate(self, server: Any, session: Session, envelope: Envelope, mechanism: str, data: Any) -> AuthResult:
        return AuthResult(success=data.password.decode() == self._password, handled=False)

    async def handle_RCPT(self, server: Any, session: Session, envelope: Envelope, address: str, options: list[str]) -> str:  # noqa: N802
        if self.recipient_answer.startswith("250"):
            envelope.rcpt_tos.append(address)
        return self.recipient_answer

    async def handle_DATA(self, server: Any, session: Session, envelope: Envelope) -> str:  # noqa: N802
        if self.answer.startswith("250"):
            content = envelope.content
            self.messages.append(message_from_bytes(content if isinstance(content, bytes) else str(content).encode(), policy=default))
        return self.answer

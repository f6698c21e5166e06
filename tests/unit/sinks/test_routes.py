"""The routes on real servers on loopback."""

from __future__ import annotations

import asyncio
import email.utils
import hashlib
import hmac
import json
import logging
import socket
import ssl
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from stockstream import aws
from stockstream.settings import Settings
from stockstream.sinks.notify.email import EmailRoute, EmailSettings
from stockstream.sinks.notify.http import retry_after_s
from stockstream.sinks.notify.log import LogRoute, LogSettings
from stockstream.sinks.notify.route import Refused, Retry, Route, Secret
from stockstream.sinks.notify.slack import SlackRoute, SlackSettings
from stockstream.sinks.notify.sns import SnsRoute, SnsSettings, subject
from stockstream.sinks.notify.webhook import KEY, SIGNATURE, TIMESTAMP, WebhookRoute, WebhookSettings
from tests.contracts.route import TIMEOUT_S, Receiver, RouteContract, notice
from tests.standins.receivers import HttpReceiver, SmtpReceiver, http_receiver
from tests.standins.sns import OverSns

PASSWORD = "pw-that-no-log-may-hold"


class OverHttp(Receiver):
    def __init__(self, server: HttpReceiver) -> None:
        self.server = server

    async def received(self) -> list[str]:
        return [json.dumps(json.loads(body), ensure_ascii=False) for body in self.server.bodies]

    async def go(self, down: str) -> None:
        # a server that echoes what it was sent must not bring a secret into the log either
        self.server.answer = f"no: {self.server.url} {PASSWORD}"
        if down == "closed":
            await self.server.stop()
        self.server.status = {"failing": 503, "refusing": 400}.get(down, 200)
        self.server.hang = down == "hanging"

    async def heal(self) -> None:
        self.server.status, self.server.hang, self.server.answer = 200, False, "ok"
        if self.server._runner is None:
            await self.server.start()


class TestWebhook(RouteContract):
    secrets = ("T0SECRET", PASSWORD)

    @pytest.fixture
    async def receiver(self) -> AsyncIterator[Receiver]:
        async with http_receiver() as server:
            yield OverHttp(server)

    @pytest.fixture
    async def route(self, receiver: Receiver) -> AsyncIterator[Route]:
        assert isinstance(receiver, OverHttp)
        route = WebhookRoute(WebhookSettings(kind="webhook", url=receiver.server.url, secret=Secret(PASSWORD), timeout_s=TIMEOUT_S))
        yield route
        await route.close()

    async def test_signature_and_key(self, route: Route, receiver: OverHttp) -> None:
        sent = notice()
        await route.send(sent)
        await route.send(sent)
        headers, body = receiver.server.headers[0], receiver.server.bodies[0]
        assert body == sent.body
        expected = hmac.new(PASSWORD.encode(), headers[TIMESTAMP].encode() + b"." + body, hashlib.sha256).hexdigest()
        assert headers[SIGNATURE] == f"sha256={expected}"
        assert abs(int(headers[TIMESTAMP]) - time.time()) < 60
        assert headers[KEY] == receiver.server.headers[1][KEY] == "AAPL-price_drop-1760000000/opened/1760000001000"

    async def test_a_key_is_a_header(self, route: Route, receiver: OverHttp) -> None:
        await route.send(notice(symbol="株"))
        assert receiver.server.headers[0][KEY].isascii()

    @pytest.mark.parametrize("status", [301, 400, 405, 413, 422])
    async def test_statuses_that_refuse(self, route: Route, receiver: OverHttp, status: int) -> None:
        receiver.server.status, receiver.server.answer_headers = status, {"Location": "/other"}
        with pytest.raises(Refused, match=f"answered {status}"):
            await route.send(notice())

    @pytest.mark.parametrize("status", [401, 403, 404, 408, 429, 500, 502, 503, 504])
    async def test_statuses_that_may_pass(self, route: Route, receiver: OverHttp, status: int) -> None:
        receiver.server.status = status
        with pytest.raises(Retry, match=f"answered {status}"):
            await route.send(notice())

    async def test_retry_after(self, route: Route, receiver: OverHttp) -> None:
        receiver.server.status, receiver.server.answer_headers = 429, {"Retry-After": "17"}
        with pytest.raises(Retry) as raised:
            await route.send(notice())
        assert raised.value.after_s == 17


def test_retry_after_is_seconds_or_a_date() -> None:
    assert retry_after_s("") == retry_after_s("soon") == retry_after_s("-3") == 0
    assert retry_after_s("1e9") == 600
    assert 25 < retry_after_s(email.utils.formatdate(time.time() + 30, usegmt=True)) <= 31


class TestSlack(RouteContract):
    secrets = ("T0SECRET",)

    @pytest.fixture
    async def receiver(self) -> AsyncIterator[Receiver]:
        async with http_receiver() as server:
            yield OverHttp(server)

    @pytest.fixture
    async def route(self, receiver: Receiver) -> AsyncIterator[Route]:
        assert isinstance(receiver, OverHttp)
        route = SlackRoute(SlackSettings(kind="slack", url=Secret(receiver.server.url), timeout_s=TIMEOUT_S))
        yield route
        await route.close()

    async def test_text_and_blocks(self, route: Route, receiver: OverHttp) -> None:
        await route.send(notice(message="<!channel> 1 & 2"))
        found = json.loads(receiver.server.bodies[0])
        assert found["text"] == "CRITICAL: AAPL price drop opened: &lt;!channel&gt; 1 &amp; 2"
        assert [block["type"] for block in found["blocks"]] == ["header", "section", "context"]
        assert found["blocks"][1]["text"]["text"] == "&lt;!channel&gt; 1 &amp; 2"

    async def test_retry_after(self, route: Route, receiver: OverHttp) -> None:
        receiver.server.status, receiver.server.answer_headers = 429, {"Retry-After": "30"}
        with pytest.raises(Retry) as raised:
            await route.send(notice())
        assert raised.value.after_s == 30


class OverSmtp(Receiver):
    def __init__(self, server: SmtpReceiver) -> None:
        self.server = server
        self.closed = False

    async def received(self) -> list[str]:
        return [f"{message['Subject']}\n{message.get_content()}" for message in self.server.messages]  # type: ignore[attr-defined]

    async def go(self, down: str) -> None:
        self.server.answer = {"failing": "451 4.3.0 try again later", "refusing": "554 5.7.1 spam"}.get(down, "250 OK")

    async def heal(self) -> None:
        self.server.answer = "250 OK"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tls")
    subprocess.run([
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
        "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", path / "key.pem", "-out", path / "cert.pem",
    ], check=True, capture_output=True)  # fmt: skip
    return path


def server_context(certificate: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
    return context


class TestEmail(RouteContract):
    secrets = (PASSWORD,)
    downs = ("failing",)

    @pytest.fixture
    async def receiver(self, certificate: Path) -> AsyncIterator[Receiver]:
        server = SmtpReceiver(PASSWORD, server_context(certificate))
        await server.start()
        yield OverSmtp(server)
        server.stop()

    @pytest.fixture
    async def route(self, receiver: Receiver, certificate: Path) -> AsyncIterator[Route]:
        assert isinstance(receiver, OverSmtp)
        yield EmailRoute(settings_of(receiver.server.port, certificate))  # noqa: PT022  the contract's fixtures yield

    async def test_headers(self, route: Route, receiver: OverSmtp) -> None:
        await route.send(notice())
        await route.send(notice())
        first, second = receiver.server.messages
        assert first["From"] == "stockstream@example.com" and first["To"] == "ops@example.com, desk@example.com"
        assert first["Subject"] == "CRITICAL: AAPL price drop opened"
        assert first["Message-ID"] == second["Message-ID"] and first["Message-ID"].endswith("@example.com>")
        assert first["X-Stockstream-Severity"] == "critical"

    async def test_recipients_that_are_refused(self, route: Route, receiver: OverSmtp) -> None:
        receiver.server.recipient_answer = "550 5.1.1 no such user"
        with pytest.raises(Refused, match="550"):
            await route.send(notice())
        receiver.server.recipient_answer = "450 4.2.0 greylisted"
        with pytest.raises(Retry, match="450"):
            await route.send(notice())

    async def test_a_wrong_password_may_be_mended(self, receiver: OverSmtp, certificate: Path) -> None:
        wrong = EmailRoute(settings_of(receiver.server.port, certificate, password=Secret("another-secret")))
        with pytest.raises(Retry, match="login") as raised:
            await wrong.send(notice())
        assert "another-secret" not in str(raised.value)

    async def test_implicit_tls(self, certificate: Path) -> None:
        server = SmtpReceiver(PASSWORD, server_context(certificate), implicit=True)
        await server.start()
        try:
            await EmailRoute(settings_of(server.port, certificate, tls="tls")).send(notice())
            assert len(server.messages) == 1
        finally:
            server.stop()

    async def test_a_server_without_tls_gets_nothing(self, certificate: Path) -> None:
        server = SmtpReceiver()
        await server.start()
        try:
            with pytest.raises(Retry, match="STARTTLS"):
                await EmailRoute(settings_of(server.port, certificate)).send(notice())
            assert not server.messages
            await EmailRoute(EmailSettings(kind="email", host="127.0.0.1", port=server.port, tls="none", sender="a@b.c", to=["d@e.f"])).send(notice())
            assert len(server.messages) == 1
        finally:
            server.stop()

    async def test_a_certificate_that_is_not_trusted(self, receiver: OverSmtp, certificate: Path) -> None:
        with pytest.raises(Retry, match="certificate"):
            await EmailRoute(settings_of(receiver.server.port, certificate, ca_file="")).send(notice())

    async def test_nobody_listens(self, certificate: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as held:
            port = held.getsockname()[1]
        with pytest.raises(Retry, match="refused"):
            await EmailRoute(settings_of(port, certificate)).send(notice())

    async def test_a_server_that_hangs(self, certificate: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(Retry, match=f"within {TIMEOUT_S:g} s|timed out"):
            await EmailRoute(settings_of(silent.getsockname()[1], certificate, timeout_s=TIMEOUT_S)).send(notice())


def settings_of(port: int, certificate: Path, **changes: Any) -> EmailSettings:
    fields: dict[str, Any] = {
        "kind": "email", "host": "localhost", "port": port, "user": "stockstream", "password": Secret(PASSWORD), "sender": "stockstream@example.com",
        "to": ["ops@example.com", "desk@example.com"], "ca_file": str(certificate / "cert.pem"), "timeout_s": TIMEOUT_S * 5,
    }  # fmt: skip
    return EmailSettings(**fields | changes)


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", PASSWORD)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    aws._client.cache_clear()
    yield
    aws._client.cache_clear()


@pytest.mark.usefixtures("credentials")
class TestSns(RouteContract):
    secrets = (PASSWORD,)
    downs = ("closed",)
    refuses = False

    @pytest.fixture
    async def receiver(self, credentials: None) -> AsyncIterator[Receiver]:
        made = await asyncio.to_thread(OverSns)
        yield made
        await asyncio.to_thread(made.stop)

    @pytest.fixture
    async def route(self, receiver: Receiver) -> AsyncIterator[Route]:
        assert isinstance(receiver, OverSns)
        settings = Settings(aws_endpoint=f"http://127.0.0.1:{receiver.port}")
        yield SnsRoute(SnsSettings(kind="sns", topic=receiver.topic, timeout_s=20.0), settings)  # noqa: PT022

    async def test_attributes_and_subject(self, route: Route, receiver: OverSns) -> None:
        await route.send(notice())
        await receiver.received()
        (envelope,) = receiver.envelopes
        assert envelope["Subject"] == "CRITICAL: AAPL price drop opened"
        values = {name: each["Value"] for name, each in envelope["MessageAttributes"].items()}
        assert values == {
            "severity": "critical", "rule": "price_drop", "symbol": "AAPL", "state": "opened", "key": "AAPL-price_drop-1760000000/opened/1760000001000",
        }  # fmt: skip

    async def test_a_topic_that_does_not_exist(self, receiver: OverSns) -> None:
        route = SnsRoute(SnsSettings(kind="sns", topic=receiver.topic + "x"), Settings(aws_endpoint=f"http://127.0.0.1:{receiver.port}"))
        with pytest.raises(Retry, match="exist"):
            await route.send(notice())

    async def test_a_fifo_topic_takes_a_repeat_once(self, credentials: None) -> None:
        receiver = await asyncio.to_thread(lambda: OverSns(fifo=True))
        try:
            route = SnsRoute(SnsSettings(kind="sns", topic=receiver.topic, timeout_s=20.0), Settings(aws_endpoint=f"http://127.0.0.1:{receiver.port}"))
            for _ in range(3):
                await route.send(notice(symbol="株 x"))
            await route.send(notice(symbol="株 x", state="closed"))
            found = [json.loads(text)["state"] for text in await receiver.received()]
            assert sorted(set(found)) == ["closed", "opened"] and len(found) == 2
        finally:
            await asyncio.to_thread(receiver.stop)


def test_subjects() -> None:
    assert subject("  ÆØ 株\n x ") == "?? ??? x" or subject("  ÆØ 株\n x ").isascii()
    assert len(subject("x" * 300)) == 100 and subject("") == "alert"


class OverLog(Receiver):
    def __init__(self, caplog: pytest.LogCaptureFixture) -> None:
        self.caplog = caplog

    async def received(self) -> list[str]:
        return [record.getMessage() for record in self.caplog.records if record.name == "stockstream.sinks.notify.log"]

    async def go(self, down: str) -> None:
        raise AssertionError

    async def heal(self) -> None:
        pass


class TestLog(RouteContract):
    downs = ()
    refuses = False

    @pytest.fixture
    async def receiver(self, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Receiver]:
        caplog.set_level(logging.INFO)
        yield OverLog(caplog)  # noqa: PT022

    @pytest.fixture
    async def route(self, receiver: Receiver) -> AsyncIterator[Route]:
        yield LogRoute(LogSettings(kind="log"))  # noqa: PT022

    async def test_one_line_each(self, route: Route, receiver: OverLog) -> None:
        await route.send(notice(message="a\nb\r\nc"))
        assert "\n" not in (await receiver.received())[0]

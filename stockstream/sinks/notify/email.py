"""Routes of the kind `email`: SMTP, by the standard library's client in a thread."""

from __future__ import annotations

import asyncio
import email.utils
import smtplib
import ssl
from collections.abc import Iterable
from email.message import EmailMessage
from email.policy import SMTP
from functools import partial
from typing import Annotated, ClassVar, Literal

import msgspec

from stockstream.sinks.notify.notices import Notice
from stockstream.sinks.notify.route import Refused, Retry, RouteSettings, plain, secrets_of
from stockstream.threads import in_thread
from stockstream.wording import one_line, utc_time

PORTS = {"starttls": 587, "tls": 465, "none": 25}


class EmailSettings(RouteSettings, kw_only=True, frozen=True):
    """`host`, `port`: the server. `tls`: `starttls`, `tls` from the first byte, or `none`. `user`, `password`: its login; none without them.

    `sender`: the address in From. `to`: the recipients.
    """

    per_minute: ClassVar[int] = 10
    secrets: ClassVar[tuple[str, ...]] = ("password",)

    host: str
    sender: str
    to: Annotated[list[str], msgspec.Meta(min_length=1, max_length=50)]
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] | None = None
    tls: Literal["starttls", "tls", "none"] = "starttls"
    ca_file: str = ""
    user: str = ""
    password: str = ""

    def faults(self) -> Iterable[tuple[str, str]]:
        for name, address in (("sender", self.sender), *(("to", each) for each in self.to)):
            if not is_address(address):
                yield name, f"{address!r} is no e-mail address"
        if bool(self.user) != bool(self.password):
            yield "user", "user and password are given together"
        if self.user and self.tls == "none":
            yield "tls", "a password is not sent without TLS: use starttls or tls"
        if self.ca_file:
            try:
                ssl.create_default_context(cafile=self.ca_file)
            except OSError as error:                                     # ssl.SSLError is one too
                yield "ca_file", f"{self.ca_file} cannot be used ({error.strerror or error})"

    @property
    def place(self) -> str:
        return f"{', '.join(self.to)} by {self.host}"


def is_address(text: str) -> bool:
    """Whether a text is one address, without a name and without what could begin another header."""
    local, at, domain = text.rpartition("@")
    printable = text.isascii() and text.isprintable() and not set(text) & set(' ,;<>"()')
    return bool(at and local and domain) and printable and email.utils.parseaddr(text)[1] == text


def message(settings: EmailSettings, notice: Notice) -> EmailMessage:
    """The message. Its Message-ID follows from the notice's key, so a repeat has the same."""
    made = EmailMessage(policy=SMTP)
    made["From"], made["To"] = settings.sender, ", ".join(settings.to)
    made["Subject"] = one_line(notice.title)
    made["Date"] = email.utils.formatdate(notice.at / 1000)
    made["Message-ID"] = f"<{notice.digest[:40]}@{settings.sender.rpartition('@')[2]}>"
    made["Auto-Submitted"] = "auto-generated"
    made["X-Stockstream-Severity"], made["X-Stockstream-State"] = notice.severity, notice.state
    made.set_content(f"{notice.text}\n\n{utc_time(notice.at)}\n{notice.key}\n")
    return made


class EmailRoute:
    """See `Route`. Each message has a connection of its own: servers close idle ones."""

    def __init__(self, settings: EmailSettings) -> None:
        self._settings = settings
        self._secrets = secrets_of(settings)
        self._where = f"{settings.host}:{settings.port or PORTS[settings.tls]}"

    async def send(self, notice: Notice) -> str:
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                return await in_thread(partial(self._deliver, message(self._settings, notice)), "email")
        except TimeoutError:
            raise Retry(f"{self._where} did not answer within {self._settings.timeout_s:g} s") from None
        except smtplib.SMTPRecipientsRefused as error:
            code, text = max(error.recipients.values())
            raise (Refused if code >= 500 else Retry)(self._plain(f"{self._where} refuses the recipients: {code} {_text(text)}")) from None
        except (smtplib.SMTPDataError, smtplib.SMTPSenderRefused) as error:
            raise (Refused if error.smtp_code >= 500 else Retry)(
                self._plain(f"{self._where} refuses the message: {error.smtp_code} {_text(error.smtp_error)}")
            ) from None
        except smtplib.SMTPAuthenticationError as error:
            raise Retry(self._plain(f"{self._where} refuses the login: {error.smtp_code} {_text(error.smtp_error)}")) from None
        except (smtplib.SMTPException, OSError) as error:
            raise Retry(self._plain(f"{self._where}: {type(error).__name__}: {error}")) from None

    def _deliver(self, made: EmailMessage) -> str:
        settings = self._settings
        port, timeout_s = settings.port or PORTS[settings.tls], settings.timeout_s
        context = ssl.create_default_context(cafile=settings.ca_file or None)
        connected: smtplib.SMTP
        if settings.tls == "tls":
            connected = smtplib.SMTP_SSL(settings.host, port, timeout=timeout_s, context=context)
        else:
            connected = smtplib.SMTP(settings.host, port, timeout=timeout_s)
        with connected as server:
            if settings.tls == "starttls":
                server.starttls(context=context)                         # it raises if the server has none: nothing goes out in the clear
            if settings.user:
                server.login(str.__str__(settings.user), str.__str__(settings.password))
            refused = server.send_message(made)
        if refused:                                                      # the others have it: sending again would reach them twice
            return f"{self._where} accepted it, but not for {', '.join(sorted(refused))}"
        return f"{self._where} accepted it"

    def _plain(self, text: str) -> str:
        return plain(text, self._secrets)

    async def close(self) -> None:
        pass


def _text(answer: bytes | str) -> str:
    return answer.decode("utf-8", "replace") if isinstance(answer, bytes) else str(answer)

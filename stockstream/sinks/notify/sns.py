"""Routes of the kind `sns`: a topic of Amazon SNS, standard or FIFO."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable
from functools import partial
from typing import Any, ClassVar

import msgspec

from stockstream.aws import AwsError, asking, client
from stockstream.errors import StockstreamError
from stockstream.settings import Settings
from stockstream.sinks.notify.notices import Notice
from stockstream.sinks.notify.route import Refused, Retry, RouteSettings, plain
from stockstream.threads import in_thread
from stockstream.wording import utc_time

_ARN = re.compile(r"arn:aws[a-z-]*:sns:([a-z0-9-]+):\d{12}:[A-Za-z0-9_-]{1,256}(\.fifo)?")
_GROUP = re.compile(r"[!-~]{1,128}")
SUBJECT_LENGTH = 100
REFUSED = ("InvalidParameter", "InvalidParameterValue", "ParameterValueInvalid", "ValidationError", "KMSInvalidStateException")
MESSAGE_BYTES = 250_000
"""SNS takes 262,144 bytes with the attributes."""


class SnsSettings(RouteSettings, kw_only=True, frozen=True):
    """`topic`: the topic's ARN, which also names the region."""

    per_minute: ClassVar[int] = 100

    topic: str

    def faults(self) -> Iterable[tuple[str, str]]:
        if not _ARN.fullmatch(self.topic):
            yield "topic", f"{self.topic!r} is no ARN of an SNS topic, as arn:aws:sns:us-east-1:123456789012:alerts"

    @property
    def place(self) -> str:
        return self.topic


def subject(title: str) -> str:
    """The title as SNS takes a subject: printable ASCII that begins with no blank, at most SUBJECT_LENGTH characters."""
    text = "".join(letter if " " <= letter <= "~" else "?" for letter in title).strip()
    return text[:SUBJECT_LENGTH] or "alert"


def request(topic: str, notice: Notice) -> dict[str, Any]:
    """The parameters of `Publish`: JSON for machines (queues, functions, HTTP), a sentence for people (e-mail, SMS)."""
    text = f"{notice.title}\n\n{notice.text}\n\n{utc_time(notice.at)}, {notice.key}"
    body = notice.body.decode()
    messages = {"default": body, "email": text, "sms": f"{notice.title}: {notice.text}"}
    attributes = {"severity": notice.severity, "rule": notice.rule, "symbol": notice.symbol, "state": notice.state, "key": notice.key}
    parameters: dict[str, Any] = {
        "TopicArn": topic, "Subject": subject(notice.title), "MessageStructure": "json", "Message": msgspec.json.encode(messages).decode(),
        "MessageAttributes": {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    }  # fmt: skip
    if topic.endswith(".fifo"):
        parameters["MessageGroupId"] = notice.symbol if _GROUP.fullmatch(notice.symbol) else f"u-{notice.symbol.encode().hex()[:120]}"
        parameters["MessageDeduplicationId"] = notice.digest
    return parameters


class SnsRoute:
    """See `Route`. Credentials, and the endpoint, come as for the other AWS services; the region is the topic's."""

    def __init__(self, route: SnsSettings, settings: Settings) -> None:
        found = _ARN.fullmatch(route.topic)
        region = found[1] if found else settings.aws_region
        self._topic, self._timeout_s = route.topic, route.timeout_s
        self._settings = settings.model_copy(update={"aws_region": region})

    async def send(self, notice: Notice) -> str:
        parameters = request(self._topic, notice)
        if len(parameters["Message"].encode()) > MESSAGE_BYTES:
            raise Refused(f"SNS: the message has more than {MESSAGE_BYTES:,} bytes")
        try:
            async with asyncio.timeout(self._timeout_s):
                answer = await in_thread(partial(self._publish, parameters), "sns")
        except TimeoutError:
            raise Retry(f"SNS did not answer within {self._timeout_s:g} s") from None
        except AwsError as error:
            raise (Refused if error.code in REFUSED else Retry)(plain(error)) from None
        except StockstreamError as error:
            raise Retry(plain(error)) from None
        return f"SNS published it as {answer.get('MessageId', '')}"

    def _publish(self, parameters: dict[str, Any]) -> Any:
        service = client("sns", self._settings)
        with asking("SNS"):
            return service.publish(**parameters)

    async def close(self) -> None:
        pass

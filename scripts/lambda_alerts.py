"""AWS Lambda: publishes alerts to an SNS topic. `make lambda` makes dist/lambda_alerts.zip of it; it needs nothing but the runtime's boto3.

It takes events of Kafka (Amazon MSK, self-managed) with messages of `alerts`, and events of SNS with such a message each. The environment has TOPIC_ARN, and
may have SEVERITY (`critical`: only those), and REPORT_FAILURES=1 if the event source mapping has ReportBatchItemFailures: then the answer names the first
record of each partition that was not published. Otherwise a failure raises, so that Lambda repeats the batch; the key among the message's attributes, and on
a FIFO topic its deduplication id, identify repeats. docs/alerts.md has the steps.
"""

from __future__ import annotations

import base64
import binascii
import functools
import hashlib
import json
import os
import re
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

REFUSED = ("InvalidParameter", "InvalidParameterValue", "ParameterValueInvalid", "ValidationError")
"""SNS refuses such a message for good: it is logged and passed over, since it would hold back all that follow it."""
FIELDS = ("id", "symbol", "rule", "state", "severity", "as_of", "message")
_GROUP = re.compile(r"[!-~]{1,128}")


class NotPublished(Exception):
    """SNS could not take a message for now."""


def handler(event: dict[str, Any], context: Any = None) -> dict[str, Any]:
    """The entry point. Raises `NotPublished` once all that could be published is."""
    if "records" in event:
        return _kafka(event["records"])
    failures = [reason for record in event.get("Records", ()) if (reason := _try(record.get("Sns", {}).get("Message", "")))]
    if failures:
        raise NotPublished(failures[0])
    return {}


def _kafka(partitions: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    failed: list[dict[str, Any]] = []
    reasons: list[str] = []
    for name, records in partitions.items():
        for record in records:
            if reason := _try(_decoded(record.get("value"))):
                failed.append({"itemIdentifier": {"partition": name, "offset": record["offset"]}})
                reasons.append(reason)
                break                                                    # the order of a partition is kept: it goes on here next time
    if failed and os.environ.get("REPORT_FAILURES") != "1":
        raise NotPublished(reasons[0])
    return {"batchItemFailures": failed}


def _decoded(value: str | None) -> str:
    try:
        return base64.b64decode(value or "", validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return ""


def _try(text: str) -> str:
    """Publishes a message of `alerts`. Returns why it must be tried again; empty if it is published or passed over."""
    try:
        alert = json.loads(text)
        fields = {name: str(alert[name]) for name in FIELDS}
    except (ValueError, TypeError, KeyError) as error:
        print(f"passed over, no alert: {type(error).__name__}: {error}")
        return ""
    if os.environ.get("SEVERITY") == "critical" and fields["severity"] != "critical":
        return ""
    try:
        _sns().publish(**_request(os.environ["TOPIC_ARN"], text, fields))
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        print(f"not published: {fields['id']}: {error}")
        return "" if code in REFUSED else f"{fields['id']}: {code}"
    except BotoCoreError as error:
        print(f"not published: {fields['id']}: {error}")
        return f"{fields['id']}: {type(error).__name__}"
    return ""


def _request(topic: str, text: str, fields: dict[str, str]) -> dict[str, Any]:
    key = f"{fields['id']}/{fields['state']}/{fields['as_of']}"
    title = f"{fields['severity'].upper()}: {fields['symbol']} {fields['rule'].replace('_', ' ')} {fields['state']}"
    messages = {"default": text, "email": f"{title}\n\n{fields['message']}\n\n{key}", "sms": f"{title}: {fields['message']}"}
    attributes = {name: fields[name] for name in ("severity", "rule", "symbol", "state")} | {"key": key}
    request = {
        "TopicArn": topic, "Subject": "".join(letter if " " <= letter <= "~" else "?" for letter in title).strip()[:100], "MessageStructure": "json",
        "Message": json.dumps(messages),
        "MessageAttributes": {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()},
    }  # fmt: skip
    if topic.endswith(".fifo"):
        symbol = fields["symbol"]
        request["MessageGroupId"] = symbol if _GROUP.fullmatch(symbol) else f"u-{symbol.encode().hex()[:120]}"
        request["MessageDeduplicationId"] = hashlib.sha256(key.encode()).hexdigest()
    return request


@functools.lru_cache(maxsize=1)
def _sns() -> Any:
    region = os.environ["TOPIC_ARN"].split(":")[3]
    return boto3.client("sns", region_name=region, config=Config(connect_timeout=3, read_timeout=5, retries={"mode": "standard", "total_max_attempts": 3}))

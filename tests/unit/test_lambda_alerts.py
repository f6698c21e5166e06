"""The Lambda function that publishes alerts to SNS, run from its zip against moto, with events as AWS sends them."""

from __future__ import annotations

import base64
import importlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest
from moto.server import ThreadedMotoServer

from tests.contracts.route import alert

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server() -> Iterator[str]:
    found = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    found.start()
    yield f"http://127.0.0.1:{found.get_host_and_port()[1]}"
    found.stop()


@pytest.fixture
def function(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module as the runtime imports it: from the zip's folder, with boto3 and nothing of ours."""
    archive = tmp_path / "lambda_alerts.zip"
    subprocess.run([sys.executable, "-m", "zipfile", "-c", archive, ROOT / "scripts" / "lambda_alerts.py"], check=True)
    zipfile.ZipFile(archive).extractall(tmp_path / "task")
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_ENDPOINT_URL": server,
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.syspath_prepend(tmp_path / "task")
    sys.modules.pop("lambda_alerts", None)
    yield importlib.import_module("lambda_alerts")
    sys.modules.pop("lambda_alerts", None)


class Queue:
    """A queue that is subscribed to the topic."""

    def __init__(self, name: str = "out", *, fifo: bool = False) -> None:
        suffix, attributes = (".fifo", {"FifoTopic": "true"}) if fifo else ("", {})
        self.topic = boto3.client("sns").create_topic(Name=name + suffix, Attributes=attributes)["TopicArn"]
        self._sqs = boto3.client("sqs")
        self._url = self._sqs.create_queue(QueueName=name + suffix, Attributes={"FifoQueue": "true"} if fifo else {})["QueueUrl"]
        arn = self._sqs.get_queue_attributes(QueueUrl=self._url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        boto3.client("sns").subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn)

    def take(self) -> list[dict[str, Any]]:
        taken: list[dict[str, Any]] = []
        while found := self._sqs.receive_message(QueueUrl=self._url, MaxNumberOfMessages=10).get("Messages", []):
            for message in found:
                taken.append(json.loads(message["Body"]))
                self._sqs.delete_message(QueueUrl=self._url, ReceiptHandle=message["ReceiptHandle"])
        return taken


def record(partition: int, offset: int, value: bytes) -> dict[str, Any]:
    return {
        "topic": "stockstream.alerts", "partition": partition, "offset": offset, "timestamp": 1_760_000_001_000, "timestampType": "CREATE_TIME",
        "key": base64.b64encode(b"AAPL").decode(), "value": base64.b64encode(value).decode(), "headers": [{"schema_version": [49]}],
    }  # fmt: skip


def kafka_event(**partitions: list[bytes]) -> dict[str, Any]:
    return {
        "eventSource": "aws:kafka", "eventSourceArn": "arn:aws:kafka:us-east-1:123456789012:cluster/c/1", "bootstrapServers": "b-1:9098",
        "records": {
            f"stockstream.alerts-{name[1:]}": [record(int(name[1:]), 100 + number, value) for number, value in enumerate(values)]
            for name, values in partitions.items()
        },
    }  # fmt: skip


def sns_event(text: str) -> dict[str, Any]:
    return {"Records": [{"EventSource": "aws:sns", "EventVersion": "1.0", "Sns": {"Type": "Notification", "MessageId": "m", "Message": text}}]}


def encoded(**fields: Any) -> bytes:
    return msgspec.json.encode(alert(**fields))


def test_kafka_records_are_published(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setenv("TOPIC_ARN", queue.topic)
    answer = function.handler(kafka_event(p0=[encoded(), encoded(state="closed", as_of=9)], p3=[encoded(symbol="株")]), None)
    assert answer == {"batchItemFailures": []}
    found = queue.take()
    assert sorted(json.loads(each["Message"])["symbol"] for each in found) == ["AAPL", "AAPL", "株"]
    first = next(each for each in found if json.loads(each["Message"])["state"] == "closed")
    assert first["Subject"] == "CRITICAL: AAPL price drop closed"
    assert first["MessageAttributes"]["key"]["Value"] == "AAPL-price_drop-1760000000/closed/9"
    assert first["MessageAttributes"]["severity"]["Value"] == "critical"


def test_what_is_no_alert_is_passed_over(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setenv("TOPIC_ARN", queue.topic)
    function.handler(kafka_event(p0=[b"nonsense", b"{}", b"[]", b"\xff", encoded()]))
    broken = kafka_event(p0=[encoded(as_of=5)])
    broken["records"]["stockstream.alerts-0"].insert(0, record(0, 1, b"") | {"value": "%%%"})
    broken["records"]["stockstream.alerts-0"].insert(0, record(0, 1, b"") | {"value": None})
    function.handler(broken)
    assert len(queue.take()) == 2


def test_a_failure_repeats_the_batch(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOPIC_ARN", "arn:aws:sns:us-east-1:123456789012:not-there")
    with pytest.raises(function.NotPublished, match="NotFound"):
        function.handler(kafka_event(p0=[encoded()]))
    with pytest.raises(function.NotPublished, match="NotFound"):
        function.handler(sns_event(encoded().decode()))


def test_partial_failures_name_the_first_of_each_partition(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setenv("TOPIC_ARN", queue.topic)
    monkeypatch.setenv("REPORT_FAILURES", "1")
    client = function._sns()
    publish = client.publish
    taken: list[str] = []

    def busy(**request: Any) -> Any:
        symbol = request["MessageAttributes"]["symbol"]["StringValue"]
        taken.append(symbol)
        if symbol == "BUSY":
            raise function.ClientError({"Error": {"Code": "Throttling", "Message": "slow down"}}, "Publish")
        return publish(**request)

    monkeypatch.setattr(client, "publish", busy)
    values = [encoded(symbol="A"), encoded(symbol="BUSY"), encoded(symbol="B")]
    answer = function.handler(kafka_event(p0=values, p1=[encoded(symbol="C")]))
    assert answer == {"batchItemFailures": [{"itemIdentifier": {"partition": "stockstream.alerts-0", "offset": 101}}]}
    assert taken == ["A", "BUSY", "C"]                                   # the order within the partition is kept
    assert len(queue.take()) == 2


def test_a_message_that_sns_refuses_holds_nothing_up(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setenv("TOPIC_ARN", queue.topic)
    function.handler(kafka_event(p0=[encoded(message="x" * 300_000), encoded(symbol="B")]))
    assert [json.loads(each["Message"])["symbol"] for each in queue.take()] == ["B"]


def test_sns_events_and_severity(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue()
    monkeypatch.setenv("TOPIC_ARN", queue.topic)
    monkeypatch.setenv("SEVERITY", "critical")
    assert function.handler(sns_event(encoded().decode())) == {}
    function.handler(sns_event(encoded(severity="warning").decode()))
    function.handler({"Records": []})
    assert len(queue.take()) == 1


def test_a_fifo_topic_takes_a_repeat_once(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    queue = Queue(fifo=True)
    monkeypatch.setenv("TOPIC_ARN", queue.topic)
    for _ in range(3):
        function.handler(kafka_event(p0=[encoded(symbol="株 x")]))
    assert len(queue.take()) == 1


def test_it_needs_boto3_alone() -> None:
    text = (ROOT / "scripts" / "lambda_alerts.py").read_text()
    imported = {line.split()[1].partition(".")[0] for line in text.splitlines() if line.startswith(("import ", "from "))}
    assert imported - set(sys.stdlib_module_names) == {"boto3", "botocore"}

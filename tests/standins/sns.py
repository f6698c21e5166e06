"""SNS and SQS on loopback: moto's server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import boto3
from moto.server import ThreadedMotoServer

from tests.contracts.route import Receiver

REGION = "eu-west-1"


class OverSns(Receiver):
    """Moto's SNS, with a queue of moto's SQS as its subscriber."""

    def __init__(self, *, fifo: bool = False) -> None:
        self.server: ThreadedMotoServer | None = None
        self.port = 0
        self.start()
        suffix = ".fifo" if fifo else ""
        attributes = {"FifoTopic": "true", "ContentBasedDeduplication": "false"} if fifo else {}
        queue_attributes = {"FifoQueue": "true"} if fifo else {}
        self.topic = self.client("sns").create_topic(Name=f"alerts{suffix}", Attributes=attributes)["TopicArn"]
        self.queue = self.client("sqs").create_queue(QueueName=f"alerts{suffix}", Attributes=queue_attributes)["QueueUrl"]
        arn = self.client("sqs").get_queue_attributes(QueueUrl=self.queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        self.client("sns").subscribe(TopicArn=self.topic, Protocol="sqs", Endpoint=arn, Attributes={"RawMessageDelivery": "false"})
        self.envelopes: list[dict[str, Any]] = []

    def start(self) -> None:
        self.server = ThreadedMotoServer("127.0.0.1", port=self.port, verbose=False)
        self.server.start()
        self.port = self.server.get_host_and_port()[1]

    def stop(self) -> None:
        if self.server is not None:
            self.server.stop()
            self.server = None

    def client(self, service: str) -> Any:
        return boto3.client(service, endpoint_url=f"http://127.0.0.1:{self.port}", region_name=REGION)

    async def received(self) -> list[str]:
        def take() -> None:
            client = self.client("sqs")
            while found := client.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10, WaitTimeSeconds=0).get("Messages", []):
                for message in found:
                    self.envelopes.append(json.loads(message["Body"]))
                    client.delete_message(QueueUrl=self.queue, ReceiptHandle=message["ReceiptHandle"])

        await asyncio.to_thread(take)
        return [json.dumps(json.loads(envelope["Message"]), ensure_ascii=False) for envelope in self.envelopes]

    async def go(self, down: str) -> None:
        self.stop()

    async def heal(self) -> None:
        if self.server is None:
            self.start()

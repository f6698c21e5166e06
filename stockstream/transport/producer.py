"""The worker's producer, and the transport that Faust uses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import aiokafka
from faust.transport.drivers import aiokafka as driver

from stockstream.kafka.client import producer_settings
from stockstream.transport.consumer import Consumer
from stockstream.transport.sending import DELIVERY_S


class Producer(driver.Producer):
    """The idempotent producer. Without idempotence, retries duplicate and reorder messages, and Faust has no setting for it (drivers/aiokafka.py:1323)."""

    app: Any

    def _settings_extra(self) -> Mapping[str, Any]:
        return producer_settings(self.app.settings, embedded=self.app.embedded)

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        accumulator = producer._message_accumulator
        accumulator._batch_ttl = DELIVERY_S                              # aiokafka has one time for both, request_timeout_ms
        return producer

    @property
    def client(self) -> aiokafka.AIOKafkaProducer:
        return self._ensure_producer()

    def trouble(self) -> str:
        """The reason why nothing can be sent any more; empty if there is none."""
        sender = getattr(self._producer, "_sender", None)
        task = getattr(sender, "sender_task", None)
        return "the producer's sending task ended, so nothing can be sent" if task is not None and task.done() else ""


class Transport(driver.Transport):
    """Kafka through aiokafka, in chunks."""

    Consumer = Consumer
    Producer = Producer

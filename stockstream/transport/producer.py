"""The producer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import aiokafka
from faust.transport.drivers import aiokafka as driver

from stockstream import accelerated
from stockstream.kafka.client import producer_settings
from stockstream.transport.consumer import Consumer
from stockstream.transport.patches import builder_for
from stockstream.transport.sending import DELIVERY_S


class Producer(driver.Producer):
    """Idempotent: else retries duplicate and reorder, and no Faust setting reaches it (drivers/aiokafka.py:1323)."""

    app: Any

    def _settings_extra(self) -> Mapping[str, Any]:
        return producer_settings(self.app.settings, embedded=self.app.embedded)

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        accumulator = producer._message_accumulator
        accumulator._batch_ttl = DELIVERY_S                              # aiokafka has one time for both, request_timeout_ms
        if accelerated.batches is not None and not self.app.settings.plain_transport:
            accumulator.create_builder = partial(builder_for, accumulator)
        return producer

    @property
    def client(self) -> aiokafka.AIOKafkaProducer:
        return self._ensure_producer()

    def trouble(self) -> str:
        """Why nothing can be sent any more; empty where all is well."""
        sender = getattr(self._producer, "_sender", None)
        task = getattr(sender, "sender_task", None)
        return "the producer's sender ended" if task is not None and task.done() else ""


class Transport(driver.Transport):
    """Kafka through aiokafka, in chunks."""

    Consumer = Consumer
    Producer = Producer

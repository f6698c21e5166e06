"""The producer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import aiokafka
from aiokafka import TopicPartition
from aiokafka.producer import sender as producer_sender
from aiokafka.producer.sender import SendProduceReqHandler
from faust.transport.drivers import aiokafka as driver

from stockstream import accelerated
from stockstream.kafka.client import producer_settings
from stockstream.transport.consumer import Consumer
from stockstream.transport.patches import builder_for, compress_quickly
from stockstream.transport.sending import DELIVERY_S, REFUSED


class Produce(SendProduceReqHandler):
    """aiokafka's handler of what the broker answers. Sequence numbers that it has refused count again: the next batch would come out of order else."""

    def handle_response(self, response: Any) -> None:
        """As aiokafka's."""
        manager = self._sender._txn_manager
        refused = {error.errno for error in REFUSED}
        for topic, partitions in response.topics if manager is not None else ():
            for partition, code, *_ in partitions:
                batch = self._batches.get(TopicPartition(topic, partition))
                if code in refused and batch is not None:
                    manager.increment_sequence_number(batch.tp, -batch.record_count)
        super().handle_response(response)


producer_sender.SendProduceReqHandler = Produce


class Producer(driver.Producer):
    """Idempotent: else retries duplicate and reorder, and no Faust setting reaches it (drivers/aiokafka.py:1323)."""

    app: Any

    def _settings_extra(self) -> Mapping[str, Any]:
        return producer_settings(self.app.settings, embedded=self.app.embedded)

    def _new_producer(self, transactional_id: str | None = None) -> aiokafka.AIOKafkaProducer:
        producer = super()._new_producer(transactional_id)
        compress_quickly()
        accumulator = producer._message_accumulator
        accumulator._batch_ttl = DELIVERY_S                              # aiokafka has one time for both, request_timeout_ms
        if accelerated.batches is not None:
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

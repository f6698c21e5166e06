"""The log of requests in the topic `requests`: one partition, so that the reservations of all workers have one order."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.budgets import LogEntry
from stockstream.errors import BrokerError
from stockstream.kafka.admin import producer_options
from stockstream.kafka.client import client_options
from stockstream.settings import Settings
from stockstream.versions import HEADERS

TIMEOUT_S = 20.0
STOP_S = 1.0
POLL_MS = 200


class KafkaRequestLog:
    """The topic `requests` as a `RequestLog`. It connects when it is first used, and again after an error.

    A record whose confirmation is lost may be in the log nevertheless; then it counts, and the caller gets a `BrokerError`.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._place = TopicPartition(settings.topic("requests"), 0)
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None
        self._next = 0
        """Offset of the first record that was not read."""
        self._ahead: list[LogEntry] = []
        """What was read and not returned yet."""
        self._closing: set[asyncio.Task[None]] = set()

    async def append(self, value: bytes) -> Sequence[LogEntry]:
        """See `RequestLog`."""
        async with self._connected("written") as (producer, consumer):
            written = await producer.send_and_wait(self._place.topic, value, partition=0, headers=HEADERS)
            return await self._through(consumer, written.offset)

    async def read(self) -> Sequence[LogEntry]:
        """See `RequestLog`."""
        async with self._connected("read") as (_, consumer):
            ends = await consumer.end_offsets([self._place])
            return await self._through(consumer, ends[self._place] - 1)

    async def stop(self) -> None:
        """See `RequestLog`. Clients whose broker does not answer are closed once it does; nobody waits for that."""
        producer, consumer, self._producer, self._consumer = self._producer, self._consumer, None, None
        closing = {asyncio.create_task(_close(client)) for client in (producer, consumer) if client is not None}
        if closing:
            self._closing |= closing
            for task in closing:
                task.add_done_callback(self._closing.discard)
            await asyncio.wait(closing, timeout=STOP_S)

    async def _through(self, consumer: AIOKafkaConsumer, last: int) -> list[LogEntry]:
        """What was not returned before, through this offset."""
        while self._next <= last:
            records = (await consumer.getmany(self._place, timeout_ms=POLL_MS)).get(self._place, [])
            if records:
                self._ahead += [LogEntry(record.offset, record.timestamp, record.value or b"") for record in records]
                self._next = records[-1].offset + 1
            else:
                self._next = max(self._next, await consumer.position(self._place))       # beyond what retention has deleted
        found = [entry for entry in self._ahead if entry.offset <= last]
        del self._ahead[: len(found)]
        return found

    @contextlib.asynccontextmanager
    async def _connected(self, what: str) -> AsyncIterator[tuple[AIOKafkaProducer, AIOKafkaConsumer]]:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                yield await self._clients()
        except (TimeoutError, KafkaError, OSError) as error:
            await self.stop()
            raise BrokerError(f"topic {self._place.topic} cannot be {what}: {str(error) or 'timed out'}") from error
        except BaseException:
            await self.stop()
            raise

    async def _clients(self) -> tuple[AIOKafkaProducer, AIOKafkaConsumer]:
        if self._producer is None or self._consumer is None:
            self._producer = AIOKafkaProducer(**await producer_options(self._settings))
            await self._producer.start()
            self._consumer = AIOKafkaConsumer(
                **client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=POLL_MS,
            )  # fmt: skip
            await self._consumer.start()
            self._consumer.assign([self._place])
            self._consumer.seek(self._place, self._next)
        return self._producer, self._consumer


async def _close(client: AIOKafkaProducer | AIOKafkaConsumer) -> None:
    with contextlib.suppress(KafkaError, OSError):
        await client.stop()

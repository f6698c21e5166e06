"""The archive's readers on brokers: what they bring back, and what they say is not there."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path

import pyarrow as pa
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.records_to_delete import RecordsToDelete

from stockstream.errors import BrokerError
from stockstream.kafka.embedded import EmbeddedBroker
from stockstream.records import TICKS_SCHEMA
from stockstream.settings import Settings
from stockstream.sinks.archive.kafka_readers import KafkaClean, KafkaRaw
from stockstream.sinks.archive.verifying.verification import check
from stockstream.sinks.archive.writer import Archive
from stockstream.sinks.stores import FileStore
from stockstream.transforms.frames import Frame, encode
from tests.kafka import Cluster
from tests.patience import PATIENCE_S

LOG = "0199c3d2a10-0a1b2c3d"


def frame(start: int, through: int, log: str = LOG, part: int = 0, parts: int = 1) -> bytes:
    tick = {"symbol": "A", "source": "s", "event_time": 1_760_000_000_000, "price": 1.0, "size": 1, "index": 0}
    rows = [tick | {"offset": offset} for offset in range(start, through + 1)]
    return encode(Frame(log, start, through, (), pa.RecordBatch.from_pylist(rows, schema=TICKS_SCHEMA), part, parts))


async def create(settings: Settings) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(settings.topic(name), 1, 1) for name in ("ticks.raw", "ticks.clean")])
    finally:
        await admin.close()


async def produce(settings: Settings, topic: str, values: list[bytes], **options: object) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, acks="all", **options)
    await producer.start()
    try:
        for value in values:
            await producer.send_and_wait(settings.topic(topic), value, partition=0)
    finally:
        await producer.stop()


async def read_raw(reader: KafkaRaw, first: int, last: int) -> list[tuple[int, bytes]]:
    async with aclosing(reader.read(0, first, last)) as found:
        return [(record.offset, record.value or b"") async for records in found for record in records]


async def read_clean(reader: KafkaClean, first: int, last: int, log: str = LOG) -> list[tuple[int, int]]:
    async with aclosing(reader.read(0, log, first, last)) as found:
        return [(each.start, each.through) async for each in found]


async def raw_and_clean(settings: Settings, tmp_path: Path) -> None:
    await create(settings)
    raw, clean = KafkaRaw(settings), KafkaClean(settings)
    assert await clean.newest(0) is None and await raw.begin(0) == 0
    await produce(settings, "ticks.raw", [b"%d" % number for number in range(300)])
    assert await read_raw(raw, 0, 299) == [(number, b"%d" % number) for number in range(300)]
    assert await read_raw(raw, 17, 17) == [(17, b"17")]
    frames = [frame(0, 9), frame(10, 10, part=0, parts=2), frame(10, 10, part=1, parts=2), *(frame(o, o) for o in range(11, 250))]
    frames += [frame(5, 40), frame(250, 280), b"not a frame", frame(290, 295), frame(281, 289), frame(290, 299), frame(0, 999, "0188"), frame(240, 260)]
    await produce(settings, "ticks.clean", frames)
    assert await clean.newest(0) == (LOG, 299)
    assert await read_clean(clean, 281, 299) == [(281, 289), (290, 299)]
    assert await read_clean(clean, 8, 14) == [(0, 9), (10, 10), (11, 11), (12, 12), (13, 13), (14, 14)]
    assert await read_clean(clean, 296, 310) == [(290, 299)] and await read_clean(clean, 0, 10, "other") == []
    archive = Archive(settings, FileStore(tmp_path / "archive"), raw, clean)
    archive.assign(0)
    deadline = asyncio.get_running_loop().time() + PATIENCE_S
    while archive.progress()[0]["processed"] < 299:
        assert asyncio.get_running_loop().time() < deadline, archive.progress()
        await asyncio.sleep(0.05)
    await archive.close()
    report = check(FileStore(tmp_path / "archive"))
    assert report.faults == [] and report.chains[0].records == 300 and report.chains[0].missing == 0 and report.chains[0].ticks == 301


async def test_the_embedded_broker(embedded: EmbeddedBroker, prefix: str, tmp_path: Path) -> None:
    await raw_and_clean(Settings(broker=embedded.bootstrap, topic_prefix=prefix), tmp_path)


async def test_kafka(kafka: Cluster, prefix: str, tmp_path: Path) -> None:
    await raw_and_clean(Settings(broker=kafka.bootstrap, topic_prefix=prefix), tmp_path)


async def test_holes_of_every_kind(kafka: Cluster, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stockstream.sinks.archive.kafka_readers.READ_STALL_S", 1.0)
    settings = Settings(broker=kafka.bootstrap, topic_prefix=prefix)
    await create(settings)
    topic = settings.topic("ticks.raw")
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap_servers, transactional_id=prefix)
    await producer.start()
    try:
        for commit in (True, False, True):              # offsets 0-4 and marker 5; aborted 6-10 and marker 11; 12-16 and marker 17
            await producer.begin_transaction()
            for number in range(5):
                await producer.send_and_wait(topic, b"%d" % number, partition=0)
            await (producer.commit_transaction() if commit else producer.abort_transaction())
    finally:
        await producer.stop()
    raw = KafkaRaw(settings)
    assert [offset for offset, _ in await read_raw(raw, 0, 16)] == [*range(5), *range(12, 17)]
    assert await read_raw(raw, 5, 11) == [] and await read_raw(raw, 17, 17) == []
    with pytest.raises(BrokerError, match="no record arrived at offset 18"):
        await read_raw(raw, 17, 20)
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(topic, 0): RecordsToDelete(before_offset=14)})
    finally:
        await admin.close()
    assert await raw.begin(0) == 14 and [offset for offset, _ in await read_raw(raw, 0, 16)] == [14, 15, 16] and await read_raw(raw, 0, 13) == []


async def test_no_broker_is_one_line(prefix: str) -> None:
    with pytest.raises(BrokerError, match=r"ticks\.raw, partition 0 cannot be read back"):
        await KafkaRaw(Settings(broker="kafka://127.0.0.1:9", topic_prefix=prefix)).begin(0)

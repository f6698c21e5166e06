"""A worker whose unread records were all deleted by retention, on real Kafka."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete

from stockstream.kafka.client import client_options
from stockstream.transforms.partitioning import home_partition
from tests.faults.workers import wait_until
from tests.integration.test_line import LONGEST_S, Line, running, wait_for

SYMBOL = "GONE"


async def delete_before(line: Line, offset: int, partition: int) -> None:
    admin = AIOKafkaAdminClient(**client_options(line.settings))
    await admin.start()
    try:
        await admin.delete_records({TopicPartition(line.settings.topic("ticks.raw"), partition): RecordsToDelete(before_offset=offset)})
    finally:
        await admin.close()


def test_deleted_records_are_no_lag(kafka: Any, tmp_path: Path) -> None:
    with running(kafka.bootstrap, tmp_path, STOCKSTREAM_TOPIC_PREFIX=f"retention{os.getpid()}.", STOCKSTREAM_PARTITIONS="2") as line:
        home = home_partition(SYMBOL, line.settings.partitions)

        def send(ticks: int) -> int:
            tick = {"symbol": SYMBOL, "event_time": time.time_ns() // 1_000_000, "price": 12.5, "size": 7, "source": "mine"}
            return line.send([(home, json.dumps(tick).encode())] * ticks)[-1][1]

        def lag() -> int:
            found = [of["lag"] for of in line.get("/api/pipeline")[1]["lag"] if of["topic"].endswith("ticks.raw") and of["partition"] == home]
            assert len(found) == 1
            return int(found[0])

        send(5)
        wait_for(line, 5)
        wait_until(lambda: line.get(f"/api/symbols/{SYMBOL}")[0] == 200, LONGEST_S, "a punctuation has closed the quiet second")
        time.sleep(3)                                                    # the checkpoint of a quiet log follows a second later
        line.worker.stop()
        last = send(40)
        asyncio.run(delete_before(line, last + 1, home))
        line.worker.start()
        line.worker.wait_ready()
        time.sleep(3)                                                    # until the broker has answered a fetch, the lag is 0 in any case
        wait_until(lambda: lag() == 0, 5, "deleted records are no lag")
        send(1)
        wait_until(lambda: line.metric("stockstream_ticks_accepted_total") >= 1, LONGEST_S, "what came since is read")
        wait_until(lambda: lag() == 0, LONGEST_S, "all is read")

"""Reads contenders' outputs from outside: how far they are, and what rows they hold."""

from __future__ import annotations

import time
from typing import Any

import msgspec
import pyarrow as pa

from benchmarks.brokers import Broker
from benchmarks.environments import BenchmarkError, confluent

FIGURES = ("open", "high", "low", "close", "volume", "mean_5m", "vwap_5m", "volume_5m", "return_std_5m")
Rows = dict[tuple[str, int], tuple[float | None, ...]]


class Reader:
    """Looks at topics with a consumer that belongs to no group."""

    def __init__(self, broker: Broker) -> None:
        kafka = confluent()
        self._partition, self._fault = kafka.TopicPartition, kafka.KafkaException
        self._embedded = broker.embedded
        self._known: set[str] = set()
        self._open: Any = lambda: kafka.Consumer({
            "bootstrap.servers": broker.servers, "group.id": "bench-reader", "enable.auto.commit": False, "auto.offset.reset": "earliest",
            "isolation.level": "read_committed", "fetch.wait.max.ms": 50, "enable.partition.eof": True, "log_level": 2,
        })  # fmt: skip
        self._consumer = self._open()

    def close(self) -> None:
        """Lets go of the broker."""
        self._consumer.close()

    def ends(self, topic: str, partitions: int = 8) -> dict[int, int]:
        """Offset after the last record of each partition; 0 where the topic is not there yet."""
        ends: dict[int, int] = {}
        if topic not in self._known:                                    # librdkafka remembers for long that a topic was not there
            if topic not in self._consumer.list_topics(timeout=10).topics:
                return dict.fromkeys(range(partitions), 0)
            self._consumer = self._open()
            self._known.add(topic)
        for number in range(partitions):
            try:
                _, ends[number] = self._consumer.get_watermark_offsets(self._partition(topic, number), timeout=5)
            except self._fault:                                         # a topic that is being made
                ends[number] = 0
        if self._embedded:
            # ListOffsets answers the last batch's first offset plus one there
            last = self.last(topic, ends)
            ends |= {number: record.offset() + 1 for number, record in last.items()}
        return {number: max(0, end) for number, end in ends.items()}

    def last(self, topic: str, ends: dict[int, int]) -> dict[int, Any]:
        """The last record of each partition that has one."""
        tails = [self._partition(topic, number, end - 1) for number, end in ends.items() if end > 0]
        found: dict[int, Any] = {}
        for message in self._read(tails):
            found[message.partition()] = message
        return found

    def _read(self, starts: list[Any]) -> Any:
        """Every record from these places to the ends."""
        if not starts:
            return
        open_ = {place.partition for place in starts}
        self._consumer.assign(starts)
        deadline = time.monotonic() + 120
        try:
            while open_:
                if time.monotonic() > deadline:
                    raise BenchmarkError(f"{starts[0].topic} cannot be read to its end")
                for message in self._consumer.consume(5_000, 0.1):
                    if message.error() is None:
                        yield message
                    elif message.error().code() == -191:                # _PARTITION_EOF
                        open_.discard(message.partition())
        finally:
            self._consumer.unassign()

    def messages(self, topic: str, partitions: int = 8) -> Any:
        """Every message of a topic."""
        return self._read([self._partition(topic, number, 0) for number in range(partitions)])

    def rows(self, topic: str, symbols: set[str]) -> Rows:
        """The peers' job's rows of some symbols: from Arrow frames or from JSON rows, the last one of a symbol and second."""
        found: Rows = {}
        for message in self.messages(topic):
            value = message.value()
            if value[:1] in (b"{", b"["):
                item = msgspec.json.decode(value)
                rows = item if type(item) is list else [item]
            else:
                batch = pa.ipc.open_stream(value).read_next_batch()
                keep = pa.compute.is_in(batch.column("symbol"), value_set=pa.array(sorted(symbols)))
                rows = batch.select(["symbol", "second", *FIGURES]).filter(keep).to_pylist()
            for row in rows:
                if row["symbol"] in symbols:
                    found[row["symbol"], int(row["second"])] = tuple(_number(row.get(name)) for name in FIGURES)
        return found


def _number(value: Any) -> float | None:
    return None if value is None or value != value else float(value)


def differences(reference: Rows, rows: Rows, tolerance: float = 1e-9) -> list[str]:
    """What is not the same in two sets of rows, for seconds that both have; figures relative to their size (or to 1e-6, where they are smaller)."""
    faults = []
    for place, expected in reference.items():
        got = rows.get(place)
        if got is None:
            continue
        for name, a, b in zip(FIGURES, expected, got, strict=True):
            if (a is None) != (b is None) or (a is not None and b is not None and abs(a - b) > tolerance * max(abs(a), 1e-6)):
                faults.append(f"{place[0]} at {place[1]}: {name} is {b}, not {a}")
    return faults

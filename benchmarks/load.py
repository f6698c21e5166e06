"""Logs of ticks: made once from a seed, published by an idempotent producer in the order of event time.

`symbols` symbols have one tick a second each, spread over it; prices walk in cents, sizes are whole shares. A record is one tick, or a frame of ticks of one
partition. Kafka's time of a record is its newest event time plus 20 ms. Each partition ends with a punctuation that closes its last second.

    python -m benchmarks.load BOOTSTRAP TOPIC --ticks 500000 [--symbols 1000] [--frames 125]
    python -m benchmarks.load BOOTSTRAP TOPIC --rate 50000 --seconds 60 [--symbols 1000]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import BenchmarkError, confluent
from stockstream.transforms.partitioning import home_partition

PARTITIONS = 8
SOURCE = "bench"
AHEAD_MS = 20
STEP = 250
"""Live ticks that are handed over at once."""
THIN = 25


@dataclass(frozen=True, slots=True)
class Log:
    """A log as it was asked for; `begin` is its first second (epoch s). In its first `thin_s` seconds each symbol has a tick in every THIN-th only."""

    topic: str
    ticks: int
    symbols: int
    frames: int
    begin: int
    partitions: int = PARTITIONS
    thin_s: int = 0

    @property
    def seconds(self) -> int:
        return self.thin_s + (self.ticks - self.thin_s * self.symbols // THIN) // self.symbols

    @property
    def names(self) -> list[str]:
        return [f"S{number:05d}" for number in range(self.symbols)]


def text_of(symbol: str, event_time: int, price: float, size: int) -> str:
    """A tick as producers write it."""
    return f'{{"symbol":"{symbol}","event_time":{event_time},"price":{price},"size":{size},"source":"{SOURCE}"}}'


def log_of(topic: str, ticks: int, symbols: int = 1_000, frames: int = 0, thin_s: int = 0) -> Log:
    """A log that ends about a minute ago: `thin_s` thin seconds and then `ticks` ticks. Raises `BenchmarkError` where it would have no whole second."""
    if ticks < 3 * symbols:
        raise BenchmarkError(f"{ticks} ticks of {symbols} symbols are not 3 seconds")
    if thin_s and symbols % THIN:
        raise BenchmarkError(f"{symbols} symbols: a log with thin seconds takes a multiple of {THIN}")
    seconds = thin_s + ticks // symbols
    return Log(topic, ticks // symbols * symbols + thin_s * symbols // THIN, symbols, frames, int(time.time()) - seconds - 60, thin_s=thin_s)


def columns(log: Log, seed: int = 1) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]]:
    """One second at a time, in the order of event time: numbers of the symbols, event times (epoch ms), prices, sizes."""
    rng = np.random.default_rng(seed)
    cents = rng.integers(2_000, 40_000, log.symbols)
    order = rng.permutation(log.symbols)
    at = np.arange(log.symbols) * 1000 // log.symbols
    for second in range(log.begin, log.begin + log.seconds):
        cents = np.maximum(500, cents + rng.integers(-4, 5, log.symbols))
        sizes = rng.integers(1, 400, log.symbols)
        which = slice(second % THIN, None, THIN) if second - log.begin < log.thin_s else slice(None)
        numbers = order[which]
        yield numbers, second * 1000 + at[which], cents[numbers] / 100, sizes[numbers]


def publish(servers: str, log: Log, *, embedded: bool) -> int:
    """Writes the log; returns how many records. Raises `BenchmarkError` where one is not confirmed."""
    options: dict[str, Any] = {"bootstrap.servers": servers, "compression.type": "lz4", "linger.ms": 20, "batch.size": 1 << 19, "acks": "all"}
    options |= {"queue.buffering.max.messages": 500_000, "log_level": 2}
    options |= {"max.in.flight.requests.per.connection": 1} if embedded else {"enable.idempotence": True}
    producer = confluent().Producer(options)
    faults: list[str] = []

    def confirmed(error: Any, _: Any) -> None:
        if error is not None:
            faults.append(str(error))

    count = 0

    def send(partition: int, key: bytes | None, value: str, timestamp: int) -> None:
        nonlocal count
        while True:
            try:
                producer.produce(log.topic, value, key, partition, confirmed, timestamp=timestamp)
                break
            except BufferError:
                producer.poll(0.1)
        count += 1
        if not count % 2_000:
            producer.poll(0)

    names = log.names
    homes = [home_partition(name, log.partitions) for name in names]
    keys = [name.encode() for name in names]
    held: dict[int, list[str]] = {}
    last = 0
    for numbers, times, prices, sizes in columns(log):
        for number, at, price, size in zip(numbers.tolist(), times.tolist(), prices.tolist(), sizes.tolist(), strict=True):
            text = text_of(names[number], at, price, size)
            home = homes[number]
            if not log.frames:
                send(home, keys[number], text, at + AHEAD_MS)
            else:
                frame = held.setdefault(home, [])
                frame.append(text)
                if len(frame) == log.frames:
                    send(home, keys[number], f"[{','.join(frame)}]", at + AHEAD_MS)
                    frame.clear()
            last = at
    for home, frame in held.items():
        if frame:
            send(home, None, f"[{','.join(frame)}]", last + AHEAD_MS)
    for partition in range(log.partitions):
        send(partition, None, f'{{"punctuate":{last // 1000},"source":"{SOURCE}"}}', last + 1_000)
    if producer.flush(120) or faults:
        raise BenchmarkError(f"{log.topic}: {faults[0] if faults else 'records were not confirmed in 120 s'}")
    return count


def offer(servers: str, topic: str, rate: int, seconds: int, symbols: int = 1_000, partitions: int = PARTITIONS) -> dict[str, float]:
    """Live single ticks, `rate` a second, of all symbols in turn, each at the time that it carries.

    Returns the number of ticks and seconds, and by how much the latest tick left after its time. Raises `BenchmarkError` where one is not confirmed.
    """
    producer = confluent().Producer({
        "bootstrap.servers": servers, "compression.type": "lz4", "linger.ms": 5, "batch.size": 1 << 19, "acks": "all", "enable.idempotence": True,
        "queue.buffering.max.messages": 500_000, "log_level": 2,
    })  # fmt: skip
    rng = np.random.default_rng(5)
    names = [f"S{number:05d}" for number in rng.permutation(symbols)]
    to = [(name, name.encode(), home_partition(name, partitions)) for name in names]
    cents, total, sent, late_s = rng.integers(2_000, 40_000, symbols), rate * seconds, 0, 0.0
    begin = time.time()
    while sent < total:
        cents = np.maximum(500, cents + rng.integers(-4, 5, symbols))
        prices, sizes = (cents / 100).tolist(), rng.integers(1, 400, symbols).tolist()
        for first in range(0, symbols, STEP):
            last = min(first + STEP, symbols)
            ahead = begin + (sent + last - first) / rate - time.time()
            producer.poll(max(0.0, ahead))
            if ahead > 0:
                time.sleep(max(0.0, begin + (sent + last - first) / rate - time.time()))
            late_s = max(late_s, -ahead)
            for number in range(first, last):
                name, key, partition = to[number]
                event_time = int((begin + sent / rate) * 1000)
                while True:
                    try:
                        producer.produce(topic, text_of(name, event_time, prices[number], sizes[number]), key, partition)
                        break
                    except BufferError:                                  # the broker is behind: `late_s` shows it
                        producer.poll(0.05)
                sent += 1
    if producer.flush(120):
        raise BenchmarkError(f"{topic}: records were not confirmed in 120 s")
    return {"ticks": sent, "seconds": time.time() - begin, "late_s": late_s}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Publish a log of ticks to a topic that is there.")
    parser.add_argument("servers", help="host:port of the broker")
    parser.add_argument("topic")
    parser.add_argument("--ticks", type=int, default=500_000)
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--frames", type=int, default=0, help="ticks of one record; 0: single ticks")
    parser.add_argument("--rate", type=int, default=0, help="live ticks a second, for --seconds; 0: a log of --ticks, as fast as possible")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--embedded", action="store_true", help="the broker knows no idempotence")
    chosen = parser.parse_args()
    if chosen.rate:
        print(json.dumps(offer(chosen.servers, chosen.topic, chosen.rate, chosen.seconds, chosen.symbols)))
        return
    log = log_of(chosen.topic, chosen.ticks, chosen.symbols, chosen.frames)
    print(f"{publish(chosen.servers, log, embedded=chosen.embedded)} records, {log.ticks} ticks from second {log.begin}")


if __name__ == "__main__":
    main()

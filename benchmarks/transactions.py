"""What a transactional producer costs the pipeline: a backlog of small transactions beside one of batches of the same size."""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.brokers import Broker, broker
from benchmarks.contenders import CONTENDERS, Place
from benchmarks.environments import BenchmarkError, confluent
from benchmarks.load import AHEAD_MS, SOURCE, Log, columns, log_of, text_of
from benchmarks.processes import Cost
from benchmarks.run import PREFIX, clear, loaded, once, say
from stockstream.transforms.partitioning import home_partition

Record = tuple[bytes, str, int]
KINDS = ("batches", "transactions")


def _by_partition(log: Log) -> list[list[Record]]:
    """Key, value and Kafka time (epoch ms) of each tick, by partition."""
    names = log.names
    homes = [home_partition(name, log.partitions) for name in names]
    found: list[list[Record]] = [[] for _ in range(log.partitions)]
    for numbers, times, prices, sizes in columns(log):
        for number, at, price, size in zip(numbers.tolist(), times.tolist(), prices.tolist(), sizes.tolist(), strict=True):
            found[homes[number]].append((names[number].encode(), text_of(names[number], at, price, size), at + AHEAD_MS))
    return found


def publish(servers: str, log: Log, size: int, *, transactional: bool) -> int:
    """Writes the log in batches of `size` ticks, each a transaction or not; returns how many. Each partition ends with a punctuation outside transactions."""
    kafka = confluent()
    options: dict[str, Any] = {"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 1, "log_level": 2}

    def write(partition: int, ticks: list[Record]) -> int:
        producer = kafka.Producer(options | ({"transactional.id": f"bench-{log.topic}-{partition}"} if transactional else {}))
        if transactional:
            producer.init_transactions(60)
        for at in range(0, len(ticks), size):
            if transactional:
                producer.begin_transaction()
            for key, value, timestamp in ticks[at : at + size]:
                producer.produce(log.topic, value, key, partition, timestamp=timestamp)
            left = producer.flush(60)
            if left:
                raise BenchmarkError(f"{log.topic}: {left} records were not confirmed in 60 s")
            if transactional:
                producer.commit_transaction(60)
        last = ticks[-1][2] - AHEAD_MS
        end = kafka.Producer(options)
        end.produce(log.topic, f'{{"punctuate":{last // 1000},"source":"{SOURCE}"}}', None, partition, timestamp=last + 1_000)
        if end.flush(60):
            raise BenchmarkError(f"{log.topic}: the punctuation was not confirmed in 60 s")
        return -(-len(ticks) // size)

    with ThreadPoolExecutor(log.partitions) as threads:
        return sum(threads.map(write, range(log.partitions), _by_partition(log)))


def _run(on: Broker, log: Log, timeout_s: float) -> Cost:
    """One worker of the full line over the log, from an empty state."""
    contender = CONTENDERS["line"]
    clear(on, contender)
    folder = Path(tempfile.mkdtemp(prefix="stockstream-bench-transactions-"))
    try:
        cost = once(Place(on, log, PREFIX, folder), contender, timeout_s)
        text = (folder / "line.log").read_text(errors="replace")
        if "reading again" in text or "has no offsets" in text:
            raise BenchmarkError("the worker read offsets again: transactions are not recognised")
        return cost
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def transactions(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """CPU and wall time beyond the start-up, of both backlogs in turn; the least of all repetitions counts."""
    costs: dict[str, list[Cost]] = {kind: [] for kind in KINDS}
    counts: dict[str, int] = {}
    with broker(options.broker) as on:
        short = loaded(on, 3_000, 1_000, 0)
        starts = [_run(on, short, 120) for _ in range(options.repeat + 1)]                         # one more, as the first reads everything from the disk
        start_cpu_s, start_wall_s = min(cost.cpu_s for cost in starts), min(cost.wall_s for cost in starts)
        log = log_of(PREFIX + "ticks.raw", options.transactions * options.size, min(1_000, options.transactions), 0)
        for kind in KINDS:
            on.delete(lambda _: False)
            on.create(log.topic)
            counts[kind] = publish(on.servers, log, options.size, transactional=kind == "transactions")
            say(f"{counts[kind]:,} {kind} of {options.size} ticks")
            for _ in range(options.repeat):
                costs[kind].append(_run(on, log, max(300.0, log.ticks / 1_000)))
                say(f"{kind}: {costs[kind][-1].cpu_s:.2f} s CPU, {costs[kind][-1].wall_s:.2f} s")
    wall = {kind: min(cost.wall_s for cost in of) - start_wall_s for kind, of in costs.items()}
    cpu = {kind: min(cost.cpu_s for cost in of) - start_cpu_s for kind, of in costs.items()}
    lines = [f"| backlog of {log.ticks:,} ticks | CPU s | wall s | ticks a second |", "| --- | ---: | ---: | ---: |"]
    lines += [f"| {counts[kind]:,} {kind} of {options.size} | {cpu[kind]:.2f} | {wall[kind]:.2f} | {log.ticks / wall[kind]:,.0f} |" for kind in KINDS]
    ratios = {"wall": wall["transactions"] / wall["batches"], "cpu": cpu["transactions"] / cpu["batches"]}
    lines += ["", f"transactions against batches: {ratios['wall']:.2f} of the wall time, {ratios['cpu']:.2f} of the CPU time"]
    medians = {kind: statistics.median(cost.wall_s for cost in of) for kind, of in costs.items()}
    data = {"ticks": log.ticks, "size": options.size, "counts": counts, "start": [start_cpu_s, start_wall_s], "cpu_s": cpu, "wall_s": wall}
    return "\n".join(lines) + "\n", data | {"median_wall_s": medians, "ratios": ratios}

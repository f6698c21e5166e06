"""Yahoo's stream at its full size, against the stand-in server, end to end on real Kafka: no frame lost, exact totals, every fault, and what it costs.

    make sources                                     # ten minutes, 1,000 symbols on five connections
    make sources ARGS="--seconds 120 --symbols 200"

A worker with the source `yahoo` runs all agents. In the first half nothing is wrong; then each fault comes once. Afterwards each frame that the server has
sent must be in `ticks.raw`, the sizes in `ticks.clean` must add up to the server's day volumes, and no frame may be there twice. Before that, a process with
nothing but the source and a producer shows what ingesting costs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter, defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from benchmarks.__main__ import write
from benchmarks.brokers import Broker, broker
from benchmarks.contenders import FAUST, SESSION_S
from benchmarks.environments import BenchmarkError
from benchmarks.processes import Process, cpu_of, peak_mb, wait
from benchmarks.run import say
from stockstream.errors import StockstreamError
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.client import client_options, producer_settings
from stockstream.records import CORRECTION, TICKS_SCHEMA
from stockstream.settings import Settings, load_settings
from stockstream.sources.ingestion import Ingest, Watch
from stockstream.sources.publishing import Messages
from stockstream.transforms.frames import decode

PARTITIONS = 8
FAULTS = (
    "silence", "close", "abort", "half_open", "refuse", "forget", "partial", "slow", "bad_base64", "bad_json", "bad_protobuf", "other_types", "heartbeats",
    "binary", "no_price",
)  # fmt: skip
"""In this order; see `tests/standins/yahoo_stream.py`."""
NEED_NEW_SOCKETS = ("refuse", "partial")
"""Faults that only a new socket meets: the server closes all sockets as they begin."""
BREAKING = ("silence", "close", "abort", "half_open", "refuse", "partial", "kill")
"""Faults that end sockets, so that frames on their way are lost. `kill` is that of a worker."""
AROUND_MS = 1_000
"""Frames that were sent so shortly before a breaking fault, or after it, may be lost with the socket."""
FLOW_S = 5.0
"""All symbols must flow again within this time of the server's return."""
REST_S = 7.0
"""Between two faults."""


class _Sent(msgspec.Struct):
    """What the verdict needs of a tick in `ticks.raw`."""

    symbol: str
    event_time: int
    price: float | None = None
    day_volume: int | float = -1


_decode_tick = msgspec.json.Decoder(_Sent).decode
Key = tuple[str, int, int]
"""Symbol, event time and day volume: the market moves by at least one share a frame, so each frame has a key of its own."""


@dataclass(slots=True)
class Verdict:
    """What came of a run. All counts but `frames` and `broken` must be 0."""

    frames: int = 0
    """That the server has sent, without those that it repeats in answer to a subscription."""
    broken: int = 0
    """Frames that were on their way through a socket when a fault ended it."""
    lost: int = 0
    """Other frames that are not in `ticks.raw`."""
    twice: int = 0
    """Ticks of `ticks.clean` beyond the first of a frame."""
    rejected: Counter[str] = field(default_factory=Counter)
    """By reason."""
    off: dict[str, tuple[float, int]] = field(default_factory=dict)
    """Symbols whose sizes do not add up to what the server's day volume has risen by: both."""
    back_s: dict[str, float] = field(default_factory=dict)
    """By fault: the time from its end to the first tick of the last symbol."""
    gaps: int = 0
    """Messages of `gaps`."""

    def faults(self) -> list[str]:
        """What is wrong, one line each."""
        found = [f"{self.lost} frames lost"] if self.lost else []
        found += [f"{self.twice} frames twice in ticks.clean"] if self.twice else []
        found += [f"{symbol}: sizes {got:g}, day volume {wanted}" for symbol, (got, wanted) in list(self.off.items())[:5]]
        return found + [f"{kind}: all symbols flow after {seconds:.1f} s" for kind, seconds in self.back_s.items() if seconds > FLOW_S]


class Server:
    """The stand-in in a process of its own."""

    def __init__(self, folder: Path, rate: float = 1.0) -> None:
        self.journal = folder / "journal"
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            self.port = int(found.getsockname()[1])
        order = [sys.executable, "-m", "tests.standins.yahoo_stream", "--port", str(self.port), "--journal", str(self.journal), "--rate", str(rate)]
        self.process = Process(order, {}, folder / "server.log")
        self.url = f"ws://127.0.0.1:{self.port}/?version=2"

    def listens(self) -> bool:
        try:
            return bool(self.state())
        except urllib.error.URLError:
            return False

    def state(self) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/state", timeout=30) as answer:
            return dict(json.loads(answer.read()))

    def fault(self, kind: str, seconds: float) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}/fault?kind={kind}&seconds={seconds}", method="POST")
        urllib.request.urlopen(request, timeout=10).close()


def symbols_of(count: int) -> list[str]:
    """Half shares, half coins: those are traded at any hour, so that the report is the same by day and night."""
    return [f"S{number:04d}" if number % 2 else f"C{number:04d}-USD" for number in range(count)]


def settings_of(on: Broker, folder: Path, prefix: str, server: Server, symbols: list[str]) -> dict[str, str]:
    """The environment of a worker that reads the stand-in."""
    return {
        "STOCKSTREAM_BROKER": on.url, "STOCKSTREAM_TOPIC_PREFIX": prefix, "STOCKSTREAM_APP_ID": f"{prefix}app", "STOCKSTREAM_PARTITIONS": str(PARTITIONS),
        "STOCKSTREAM_ARCHIVE": "none", "STOCKSTREAM_MODELS": f"file://{folder}/no-models", "STOCKSTREAM_STATE_DIR": str(folder / "state"),
        "STOCKSTREAM_SESSION_TIMEOUT_S": SESSION_S, "STOCKSTREAM_SOURCE": "yahoo", "STOCKSTREAM_YAHOO_STREAM_URL": server.url,
        "STOCKSTREAM_YAHOO_QUERY_URL": f"http://127.0.0.1:{server.port}", "STOCKSTREAM_SYMBOLS": ",".join(symbols),
    }  # fmt: skip


def end_to_end(on: Broker, folder: Path, prefix: str, *, symbols: int, calm_s: float, fault_s: float, kinds: tuple[str, ...] = FAULTS) -> tuple[Verdict, str]:
    """A run with each of these faults for `fault_s`, after `calm_s` without one. Returns what came of it, and what the worker cost in the calm."""
    names = symbols_of(symbols)
    server = Server(folder)
    with server.process, Process([*FAUST, "--without-web"], settings_of(on, folder, prefix, server, names), folder / "worker.log") as worker:
        wait(lambda: server.listens() and len(server.state()["symbols"]) == symbols, 120, "all symbols are subscribed", server.process, worker)
        time.sleep(5)
        begun, cpu = time.monotonic(), cpu_of(worker.pid)
        time.sleep(calm_s)
        cost = f"the whole worker, all agents: {(cpu_of(worker.pid) - cpu) / (time.monotonic() - begun):.0%} of a core, {peak_mb(worker.pid):.0f} MB"
        for kind in kinds:
            say(f"fault {kind}")
            if kind in NEED_NEW_SOCKETS:
                server.fault("close", 0.05)
            server.fault(kind, fault_s)
            time.sleep(fault_s + REST_S)
            if worker.ended():
                raise BenchmarkError(f"the worker ended: {worker.tail()}")
        server.fault("silence", 3_600)
        time.sleep(1)
        state = server.state()
        settings = own_settings(settings_of(on, folder, prefix, server, names))
        verdict = asyncio.run(judge(settings, state, server.journal))
        worker.stop()
    return verdict, cost


def own_settings(environment: dict[str, str]) -> Settings:
    """The settings of a worker with this environment."""
    return load_settings(**{name.removeprefix("STOCKSTREAM_").lower(): value for name, value in environment.items()})


# ---- the verdict


async def judge(settings: Settings, state: dict[str, Any], journal: Path) -> Verdict:
    """Compares what the server has sent with what is in Kafka."""
    verdict = Verdict()
    sent: dict[Key, int] = {}
    for line in journal.read_text().splitlines():
        symbol, *numbers = line.split()
        event_time, day_volume, sent_at = map(int, numbers)
        sent.setdefault((symbol, event_time, day_volume), sent_at)
    verdict.frames = len(sent)

    raw: dict[tuple[int, int], Key] = {}
    arrivals: dict[str, list[int]] = defaultdict(list)
    async for record in messages(settings, "ticks.raw"):
        if b'"punctuate"' not in record.value[:20]:
            tick = _decode_tick(record.value)
            raw[record.partition, record.offset] = tick.symbol, tick.event_time, int(tick.day_volume)
            arrivals[tick.symbol].append(record.timestamp)

    faults = [(kind, round(begin * 1000), round(end * 1000)) for kind, begin, end in state["faults"] if end - begin < 3_000]
    spans = [(begin - AROUND_MS, end + AROUND_MS) for kind, begin, end in faults if kind in BREAKING]
    there = set(raw.values())
    for key, at in sent.items():
        if key not in there:
            if any(first <= at <= last for first, last in spans):
                verdict.broken += 1
            else:
                verdict.lost += 1
    for kind, begin, end in faults:
        if end - begin < AROUND_MS:
            continue                                                     # it only made way for the next one
        firsts = [next((at for at in times if at >= end), None) for times in arrivals.values()]
        verdict.back_s[kind] = max((at - end) / 1000 if at is not None else float("inf") for at in firsts)

    await _judge_clean(settings, state, raw, verdict)
    async for record in messages(settings, "ticks.rejected"):
        verdict.rejected[json.loads(record.value)["reason"]] += 1
    async for _ in messages(settings, "gaps"):
        verdict.gaps += 1
    return verdict


async def _judge_clean(settings: Settings, state: dict[str, Any], raw: dict[tuple[int, int], Key], verdict: Verdict) -> None:
    seen: Counter[Key] = Counter()
    sizes: dict[str, float] = defaultdict(float)
    deadline, ends = time.monotonic() + 60, dict(sorted(raw))
    through: dict[int, int] = {}
    while any(through.get(partition, -1) < end for partition, end in ends.items()):
        if time.monotonic() > deadline:
            raise BenchmarkError("ticks.clean does not reach the end of ticks.raw within 60 s")
        seen.clear()
        sizes.clear()
        rows: set[tuple[int, int, int, int]] = set()
        async for record in messages(settings, "ticks.clean"):
            frame = decode(record.value, TICKS_SCHEMA)
            through[record.partition] = frame.through
            columns = [frame.rows.column(name).to_pylist() for name in ("symbol", "size", "flags", "offset", "index")]
            for symbol, size, flags, offset, index in zip(*columns, strict=True):
                if (row := (record.partition, offset, index, flags)) in rows:
                    continue                                             # a frame that a worker has sent again: readers go by the offset
                rows.add(row)
                sizes[symbol] += size
                if not flags & CORRECTION:
                    seen[raw[record.partition, offset]] += 1
    verdict.twice = sum(count - 1 for count in seen.values())
    for symbol, known in state["symbols"].items():
        wanted = known["last_volume"] - known["first_volume"]
        if abs(sizes[symbol] - wanted) > 1e-6:
            verdict.off[symbol] = sizes[symbol], wanted


async def messages(settings: Settings, topic: str) -> Any:
    """All records of a topic up to its present end, partition by partition."""
    consumer = AIOKafkaConsumer(**client_options(settings), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest")
    await consumer.start()
    try:
        name = settings.topic(topic)
        partitions = [TopicPartition(name, number) for number in range(settings.partitions)]
        consumer.assign(partitions)
        ends = {tp: end for tp, end in (await consumer.end_offsets(partitions)).items() if end}
        begins = await consumer.beginning_offsets(list(ends))
        left = {tp for tp, end in ends.items() if end > begins[tp]}
        while left:
            for records in (await consumer.getmany(*left, timeout_ms=1_000, max_records=10_000)).values():
                for record in records:
                    yield record
            left = {tp for tp in left if await consumer.position(tp) < ends[tp]}
    finally:
        await consumer.stop()


# ---- the command


def report(verdict: Verdict, symbols: int, seconds: float, costs: list[str]) -> str:
    """The tables of docs/sources.md."""
    lines = [f"{symbols:,} symbols at one frame a second for {seconds:.0f} s", ""]
    lines += [
        "| | |", "| --- | ---: |", f"| frames sent by the server | {verdict.frames:,} |",
        f"| lost, of those sent through a socket that stayed whole | {verdict.lost:,} |",
        f"| lost on their way in a socket that a fault broke | {verdict.broken:,} |", f"| twice in `ticks.clean` | {verdict.twice:,} |",
        f"| symbols whose sizes do not add up to the server's day volume | {len(verdict.off):,} |", f"| gaps on record | {verdict.gaps:,} |",
        f"| rejected ticks | {', '.join(f'{count:,} {reason}' for reason, count in verdict.rejected.items()) or 'none'} |",
    ]  # fmt: skip
    lines += ["", "| fault | all symbols flow again after its end, s |", "| --- | ---: |"]
    lines += [f"| `{kind}` | {seconds:.1f} |" for kind, seconds in verdict.back_s.items()]
    return "\n".join([*lines, "", *(f"- {cost}" for cost in costs), ""])


async def ingest_alone(settings: Settings, symbols: list[str], warm_s: float, seconds: float) -> None:
    """Runs the sources of the settings and a producer, nothing else, and prints what that costs as JSON."""
    producer = AIOKafkaProducer(**client_options(settings), **producer_settings(settings, embedded=False))
    await producer.start()
    sent = 0

    async def send(topic: str, partition: int, values: Messages) -> Sequence[Awaitable[Any]]:
        nonlocal sent
        sent += len(values)
        if len(values) <= 2:
            return [await producer.send(topic, value, key=key, partition=partition) for key, value in values]
        batch = producer.create_batch()
        for key, value in values:
            batch.append(key=key, value=value, timestamp=None)
        return [await producer.send_batch(batch, topic, partition=partition)]

    ingest = Ingest(settings, send)
    ingest.assign(range(settings.partitions))
    for symbol in symbols:
        ingest.watch(symbol.encode(), msgspec.json.encode(Watch(symbol=symbol, source="yahoo")))
    task = asyncio.create_task(ingest.run())
    await asyncio.sleep(warm_s)
    begun, cpu, before = time.monotonic(), time.process_time(), sent
    await asyncio.sleep(seconds)
    took, cpu = time.monotonic() - begun, time.process_time() - cpu
    print(json.dumps({"cpu_share": cpu / took, "messages_s": (sent - before) / took, "us_a_message": cpu / max(sent - before, 1) * 1e6}), flush=True)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await producer.stop()


def cost_of_ingest(on: Broker, folder: Path, prefix: str, *, symbols: int, seconds: float) -> str:
    """What the source and its producer cost, as a share of a core, in a process of their own."""
    names = symbols_of(symbols)
    server = Server(folder)
    environment = settings_of(on, folder, prefix, server, names)
    asyncio.run(ensure_topics(own_settings(environment)))
    order = [sys.executable, "-m", "benchmarks.sources", "--alone", str(seconds)]
    with server.process, Process(order, environment, folder / "ingest.log") as ingest:
        deadline = time.monotonic() + seconds + 120
        while not ingest.ended():
            if time.monotonic() > deadline:
                raise BenchmarkError(f"ingest alone does not end: {ingest.tail()}")
            time.sleep(0.5)
        if ingest.status:
            raise BenchmarkError(f"ingest alone ended with status {ingest.status}: {ingest.tail()}")
        found = json.loads(ingest.log.read_text().splitlines()[-1])
    rate = f"{found['messages_s']:,.0f} messages a second, {found['us_a_message']:.0f} us each"
    return f"ingest alone (the source and a producer in a process of their own): {found['cpu_share']:.1%} of a core at {rate}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sources", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broker", default="kafka", help="kafka (real, started here), or kafka://host:port of one that holds nothing else")
    parser.add_argument("--symbols", type=int, default=1_000)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the whole run; the second half has the faults")
    parser.add_argument("--alone", type=float, default=0.0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        settings = load_settings()
        asyncio.run(ingest_alone(settings, list(settings.symbols), 15.0, options.alone))
        return 0
    fault_s = max(options.seconds / 2 / len(FAULTS) - REST_S, 1.0)
    folder = Path(tempfile.mkdtemp(prefix="stockstream-bench-sources-"))
    try:
        with broker(options.broker) as on:
            say("what ingesting costs")
            costs = [cost_of_ingest(on, folder, "alone.", symbols=options.symbols, seconds=min(options.seconds / 5, 60.0))]
            say("end to end")
            verdict, cost = end_to_end(on, folder, "sources.", symbols=options.symbols, calm_s=options.seconds / 2, fault_s=fault_s)
        text = report(verdict, options.symbols, options.seconds, [*costs, cost])
        write("sources", text, {"verdict": msgspec.to_builtins(verdict), "costs": [*costs, cost]})
        for line in verdict.faults():
            print(f"benchmarks: {line}", file=sys.stderr)
        return bool(verdict.faults())
    except (StockstreamError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())

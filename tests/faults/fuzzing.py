"""Hostile messages to every topic of running workers: changelogs, frames, JSON and raw ticks, while good neighbours write and must stay exact.

What is promised, and so what is checked:

- `ticks.raw` is anybody's: whatever is in it is judged by `clean`, and all results follow from it exactly.
- Messages in the other topics that cannot be read, or do not continue the log (another log, a hole before them), are passed over: nothing changes.
- A frame that is well formed and claims to continue the log is believed, as nothing in it says who wrote it; so is a state record that can be read. The
  broker's ACLs say who may write to these topics. Such messages go to one partition only (`ATTACKED`). There only this is checked, as everywhere: no process
  ends, no reader stands still, memory is bounded. All other partitions are judged as in any other case.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from stockstream.errors import FrameError, StateError
from stockstream.kafka.admin import STATE_TABLES, changelog
from stockstream.kafka.client import client_options
from stockstream.records import TICKS_SCHEMA, WINDOWS_SCHEMA
from stockstream.settings import Settings
from stockstream.transforms.frames import decode
from tests.faults.line import Line
from tests.faults.market import Market
from tests.faults.verdict import FOREIGN, Verdict
from tests.faults.workers import Failed, Worker, wait_until
from tests.fixtures.make import LOG
from tests.fuzz.corpus import corpus
from tests.fuzz.frames import hostile_frame
from tests.fuzz.mutations import Rng, changed_bytes, changed_json
from tests.fuzz.targets import READABLE, hostile_state
from tests.kafka import Cluster

if TYPE_CHECKING:
    from tests.faults.cases import Scale

ATTACKED = 0
RATE = 150
"""Hostile messages a second, over all topics: every reader must take them beside its work on two shared processors."""
GROWTH_MB = 400
JSON_TOPICS = ("watchlist", "symbols", "latest", "market", "alerts", "predictions", "outcomes", "ticks.rejected")
FRAME_TOPICS = {"ticks.clean": TICKS_SCHEMA, "windows": WINDOWS_SCHEMA}
STEP_S = 0.2


class Hostile:
    """A producer of hostile messages in a thread of its own; all but those in `ticks.raw` bear the header FOREIGN."""

    def __init__(self, settings: Settings, seed: int, symbols: int) -> None:
        self._settings, self._rng = settings, random.Random(seed)
        self._market = Market(seed, symbols, settings.partitions)
        self.written: Counter[str] = Counter()
        self._real: dict[str, deque[bytes]] = {topic: deque(maxlen=40) for topic in FRAME_TOPICS}
        self._stop = threading.Event()
        self._fault: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="hostile producer", daemon=True)

    def start(self) -> Hostile:
        self._thread.start()
        return self

    def stop(self) -> None:
        """Ends when all is written. Raises `Failed` where it could not go on."""
        self._stop.set()
        self._thread.join(60)
        if self._fault is not None:
            raise Failed(f"the hostile producer: {self._fault!r}")

    def _run(self) -> None:
        try:
            asyncio.run(self._produce())
        except BaseException as fault:
            self._fault = fault

    async def _produce(self) -> None:
        producer = AIOKafkaProducer(**client_options(self._settings), acks=1, linger_ms=5, compression_type="lz4", max_request_size=1_500_000)
        consumer = AIOKafkaConsumer(**client_options(self._settings), group_id=None, enable_auto_commit=False, auto_offset_reset="latest")
        await producer.start()
        await consumer.start()
        try:
            consumer.assign([TopicPartition(self._settings.topic(topic), ATTACKED) for topic in FRAME_TOPICS])
            names = {self._settings.topic(topic): topic for topic in FRAME_TOPICS}
            at = time.monotonic()
            while not self._stop.is_set():
                for place, records in (await consumer.getmany(timeout_ms=1)).items():
                    self._real[names[place.topic]].extend(record.value for record in records if not record.headers or record.headers[0][0] != FOREIGN)
                for _ in range(int(RATE * STEP_S)):
                    topic, partition, key, value = self._message()
                    headers = [] if topic == self._settings.topic("ticks.raw") else [(FOREIGN, b"1")]
                    with suppress(KafkaError):                           # what the broker refuses does not come to the workers
                        sent = await producer.send(topic, value, key=key, partition=partition, headers=headers)
                        sent.add_done_callback(_exception_seen)
                at = max(at + STEP_S, time.monotonic() - 1)
                await asyncio.sleep(max(0.0, at - time.monotonic()))
            await producer.flush()
        finally:
            await consumer.stop()
            await producer.stop()

    def _message(self) -> tuple[str, int, bytes | None, bytes | None]:
        """Full topic, partition, key, value."""
        rng, settings = self._rng, self._settings
        partition = rng.randrange(settings.partitions)
        name = rng.choice(("ticks.raw", *FRAME_TOPICS, *FRAME_TOPICS, *JSON_TOPICS, *STATE_TABLES))
        self.written[name] += 1
        if name in STATE_TABLES:
            record_key, record = rng.choice(list(hostile_state(rng, corpus().states[name]).items()))
            if _of_a_newer_release(name, record_key, record):
                record = b"\xc1"
            return changelog(settings, name), partition, record_key, None if rng.random() < 0.02 else record
        if name in FRAME_TOPICS:
            chosen, key, frame = self._frame(name, partition)
            return settings.topic(name), chosen, key, frame
        if name == "ticks.raw":
            if rng.random() < 0.5:
                home, real = next(iter(self._market.step(int(time.time() * 1000), 1)))
                return settings.topic(name), home, None, changed_bytes(rng, real or b"-") if rng.random() < 0.7 else real
            return settings.topic(name), partition, rng.choice((None, b"AAPL")), changed_json(rng, corpus().messages[name]) or b"-"
        if name == "market":
            partition = 0
        unkeyed = None if name in ("market", "outcomes") else b"?"           # a compacted topic takes no message without a key
        key = rng.choice((b"AAPL", b"MSFT", unkeyed, b"\xff\xfe", b"", b"A" * 33, self._market.symbols[0].name.encode()))
        return settings.topic(name), partition, key, None if key and rng.random() < 0.02 else changed_json(rng, corpus().messages[name])

    def _frame(self, name: str, partition: int) -> tuple[int, bytes | None, bytes]:
        """Partition, key and value. What might be taken for a continuation of the log goes to the attacked partition."""
        rng: Rng = self._rng
        own = corpus().clean_after if name == "ticks.clean" else corpus().windows_after
        real = self._real[name]
        if partition == ATTACKED and real and rng.random() < 0.7:
            return ATTACKED, None, hostile_frame(rng, list(real))
        data = hostile_frame(rng, own)
        with suppress(FrameError):
            if decode(data, FRAME_TOPICS[name]).log > LOG + "~":
                partition = ATTACKED
        return partition, rng.choice((None, b"x")), data


def _of_a_newer_release(table: str, key: bytes, value: bytes) -> bool:
    """Whether a worker refuses to start for this record, in one line, as it must: then nothing else would be tried."""
    try:
        READABLE[table](key, value)
    except StateError:
        return True
    return False


def _exception_seen(sent: asyncio.Future[Any]) -> None:
    if not sent.cancelled():
        sent.exception()


def fuzz(cluster: Cluster, seed: int, scale: Scale, minutes: float | None = None) -> Verdict:
    """17. Hostile messages to every topic of the running workers; then they start again from what is in the changelogs."""
    seconds = 60 * minutes if minutes is not None else scale(12, 600)
    with Line(cluster, seed, **scale.line) as line:
        line.observer.ignored.add(ATTACKED)
        line.begin(history_s=60)
        before = [_rss_mb(worker) for worker in line.workers]
        hostile = Hostile(line.settings, seed, 48).start()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(10.0, seconds / 4))
            _alive(line)
            line.wait_for_windows(timeout_s=60)
            grown = max(_rss_mb(worker) - was for worker, was in zip(line.workers, before, strict=True))
            if grown > GROWTH_MB:
                raise Failed(f"a worker has grown by {grown} MB over {hostile.written.total()} hostile messages; logs in {line.folder}")
        hostile.stop()
        line.count("hostile message", hostile.written.total())
        scale.say(f"  {hostile.written.total()} hostile messages to {len(hostile.written)} topics in {seconds:.0f} s; the workers grew by at most {grown} MB")
        line.producer.stop()
        for worker in line.workers:
            wait_until(partial(_read_through, worker), 60, f"{worker.name} has read all of its topics; see {worker.log}", 1.0)
        verdict = line.finish(timeout_s=90, view_partitions=set(range(line.settings.partitions)) - {ATTACKED})
        _alive(line)
        line.check(verdict)
        _start_again(line, scale)
        return verdict


def _alive(line: Line) -> None:
    """Raises `Failed` where a process or an agent has ended."""
    for worker in line.workers:
        if worker.exits:
            raise Failed(f"{worker.name} ended by itself with status {worker.exits[0][0]}; logs in {line.folder}")
        if crashed := worker.text().count("Crashed reason"):
            raise Failed(f"{worker.name}: an agent crashed, {crashed} times; logs in {line.folder}")


def _read_through(worker: Worker) -> bool:
    """Whether every agent of the worker is at the end of its topics, and its views show them."""
    pipeline: dict[str, Any] = worker.get("/api/pipeline") or {}
    lags = pipeline.get("lag", [])
    return bool(lags) and all(of["lag"] == 0 for of in lags) and worker.ready


def _start_again(line: Line, scale: Scale) -> None:
    """Both workers start once more, from changelogs full of forged records: they work, or refuse with a line that gives the remedy."""
    for worker in line.workers:
        worker.stop()
    for worker in line.workers:
        worker.start()

    def started_or_refused() -> bool:
        return all(worker.ready or len(worker.exits) > 1 for worker in line.workers)

    wait_until(started_or_refused, 90, f"the workers start from forged state, or refuse; see {line.folder}", 0.5)
    refused = [worker for worker in line.workers if not worker.ready]
    for worker in refused:
        lines = [text for text in worker.text().splitlines() if "CRITICAL" in text or "STOCKSTREAM_" in text]
        if not lines:
            raise Failed(f"{worker.name} does not start and does not say why; see {worker.log}")
        scale.say(f"  {worker.name} refuses: {lines[-1].strip()[:200]}")
    if not refused:
        scale.say("  both workers have started from changelogs with forged records")
    line.count("start from forged state", len(line.workers))


def _rss_mb(worker: Worker) -> int:
    with suppress(OSError):
        return int((Path("/proc") / str(worker.pid) / "statm").read_text().split()[1]) * 4096 // 1_000_000
    return 0

"""One pipeline under test: its own prefix, folders and model on a shared cluster, its workers, its producer and its checks."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.records_to_delete import RecordsToDelete
from aiokafka.errors import KafkaError

from models import features
from models.registry import Registry
from models.xgboost import XGBoostModel, train_horizon
from stockstream.kafka.admin import ensure_topics
from stockstream.kafka.client import client_options, topic_ends
from stockstream.settings import Settings
from stockstream.transforms.batch import RawRecord
from tests.faults.market import Market, Producer
from tests.faults.places import Place
from tests.faults.verdict import Observer, Verdict
from tests.faults.workers import ROOT, Failed, Worker, wait_until
from tests.kafka import Cluster
from tests.standins.s3 import SECRET, Server

T = TypeVar("T")
HISTORY_S = 330
MODEL_HORIZONS_S = (3, 10)


class Line:
    """A line on `cluster`; `seed` makes its market and its faults. Use as a context: whatever happens, no process is left and the topics are deleted."""

    def __init__(
        self, cluster: Cluster, seed: int, *, symbols: int = 48, rate: int = 600, partitions: int = 4, session_s: float = 12.0, poison: float = 0.0005,
        say: Callable[[str], None] = print, models: Line | None = None, server: Server | None = None,
    ) -> None:  # fmt: skip
        self.cluster, self.seed, self.say = cluster, seed, say
        self.settings: Settings
        self.done: Counter[str] = Counter()
        self.deleted: dict[int, int] = {}
        self.folder = Path(tempfile.mkdtemp(prefix="stockstream-faults-"))
        self.prefix = f"f{uuid.uuid4().hex[:10]}."
        self.place = Place(self.folder / "archive", server, self.prefix.rstrip("."))
        self.settings = Settings(
            broker=cluster.bootstrap, topic_prefix=self.prefix, partitions=partitions, replication=cluster.nodes, session_timeout_s=session_s,
            archive=self.place.url, archive_flush_s=3, state_dir=self.folder / "state",
            models=models.settings.models if models else f"file://{self.folder}/models",
        )  # fmt: skip
        self.registry = Registry(self.settings.models)
        self.model = self.registry.load("xgboost", None if models else self._make_model())
        self.market = Market(seed, symbols, partitions)
        self.producer = Producer(self.settings, self.market, rate, poison)
        self.observer = Observer(self.settings, self.model)
        self.workers: list[Worker] = []

    def _make_model(self) -> str:
        rng = np.random.default_rng(self.seed)
        matrix = rng.normal(size=(400, len(features.FEATURES))).astype(np.float32)
        heads = tuple(train_horizon(h, matrix, rng.normal(scale=1e-3, size=400), rounds=3, seed=self.seed) for h in MODEL_HORIZONS_S)
        entry = self.registry.store("xgboost", "xgboost", XGBoostModel("", "", "", heads).files(), {"horizons_s": list(MODEL_HORIZONS_S), "metrics": {}})
        self.registry.promote("xgboost", entry.version)
        return entry.version

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        self.producer._stop.set()
        for worker in self.workers:
            worker.close()
        with contextlib.suppress(Exception):
            self.producer.stop()
        if kind is not None:
            with contextlib.suppress(Exception):
                (self.folder / "frames.txt").write_text("\n".join(self.observer.frames()))
        with contextlib.suppress(KafkaError, OSError, TimeoutError):
            self.admin(self._delete_topics)
        if kind is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            for worker in self.workers:
                self.say(worker.last_words())
            self.say(f"logs and archive are left in {self.folder}")

    async def _delete_topics(self, admin: AIOKafkaAdminClient) -> None:
        stem = self.prefix.rstrip(".")
        names = [name for name in await admin.list_topics() if name.startswith(stem)]
        if names:
            await admin.delete_topics(names)

    @property
    def environment(self) -> dict[str, str]:
        """The settings of this pipeline's workers, as environment variables."""
        own = self.settings
        return {
            "STOCKSTREAM_BROKER": own.broker, "STOCKSTREAM_TOPIC_PREFIX": own.topic_prefix, "STOCKSTREAM_PARTITIONS": str(own.partitions),
            "STOCKSTREAM_REPLICATION": str(own.replication), "STOCKSTREAM_SESSION_TIMEOUT_S": str(own.session_timeout_s),
            "STOCKSTREAM_ARCHIVE": own.archive, "STOCKSTREAM_ARCHIVE_FLUSH_S": str(own.archive_flush_s), "STOCKSTREAM_MODELS": own.models,
            "STOCKSTREAM_STATE_DIR": str(own.state_dir),
        } | self.place.environment  # fmt: skip

    def worker(self, fault: str = "", *, root: Path = ROOT, **more: str) -> Worker:
        """A new worker of the code in `root`, started. `more` are settings of its own, `fault` what it does to itself."""
        if root != ROOT:                                                 # earlier releases know only URLs
            more = {"STOCKSTREAM_ARCHIVE": self.place.url, "STOCKSTREAM_MODELS": f"file://{self.settings.models}"} | more
        worker = Worker(f"worker-{len(self.workers) + 1}", self.environment | more, self.folder, fault, root=root)
        self.workers.append(worker)
        return worker.start()

    def begin(self, workers: int = 2, *, history_s: int = HISTORY_S, live: bool = True) -> None:
        """Starts workers, then the producer with its history, and returns once rows are published and every worker is ready."""
        for _ in range(workers):
            self.worker()
        for worker in self.workers:
            worker.wait_ready()
        self.producer.start(history_s, live)
        self.wait_for_windows()

    def wait_for_windows(self, beyond: int | None = None, timeout_s: float = 40.0) -> None:
        """Waits until the output of every partition accounts for raw offsets beyond `beyond` (None: for the present content of its log)."""
        self.observer.read()
        marks = {p: (end if beyond is None else beyond) for p, end in self.observer.raw_end().items() if end and p not in self.observer.ignored}

        def published() -> bool:
            self.observer.read()
            through: dict[int, int] = {}
            for _, partition, offset, *_rest in self.observer.closings:
                through[partition] = max(through.get(partition, -1), offset)
            return all(through.get(p, -1) >= mark - 200 for p, mark in marks.items())

        wait_until(published, timeout_s, f"windows of the raw offsets {marks}; see {self.folder}", 0.3)

    def finish(
        self, *, timeout_s: float = 45.0, archive: bool = True, views: bool = True, states: bool = True, view_partitions: Collection[int] | None = None,
        same_snapshots: bool = True,
    ) -> Verdict:
        """Stops the producer, waits until the pipeline is idle, and checks all results."""
        self.producer.stop()
        begun = time.monotonic()
        alive = [worker for worker in self.workers if worker.alive]
        verdict = self.observer.verdict(
            workers=alive if views else (), archive=self.place if archive else None, timeout_s=timeout_s, states=states, view_partitions=view_partitions,
            same_snapshots=same_snapshots,
        )
        self._judge_producer(verdict)
        for worker in self.workers:
            odd = [status for status, _ in worker.exits if status == 0]
            if odd:
                verdict.fault(f"{worker.name} ended by itself with status 0, {len(odd)} times; see {worker.log}")
            traces = worker.text().count("Traceback (most recent call last)")
            if traces:
                last = re.split(r"Traceback \(most recent call last\):", worker.text())[-1]
                cause = next((line for line in last.splitlines() if re.match(r"[A-Za-z_.]+(Error|Exception|Exit|Left)\b", line)), last.strip()[:200])
                self.say(f"  note: {worker.name} logged {traces} tracebacks, the last {cause[:200]}")
        self.say(f"  complete and checked in {time.monotonic() - begun:.1f} s; {verdict}")
        return verdict

    def _judge_producer(self, verdict: Verdict) -> None:
        """Checks that every confirmed message is in the log once, at the confirmed offset."""
        values = {(p, record.offset): record.value for log in self.observer.raw_logs for p, records in log.items() for record in records}
        if len(self.observer.raw_logs) == 1:
            begins = {p: self.deleted.get(p, 0) for p in range(self.settings.partitions)}
            lost = [place[:2] for place in self.producer.sent if place[1] >= begins[place[0]] and (values.get(place[:2], b"-") or b"") != (place[2] or b"")]
            if lost:
                verdict.fault(f"raw log: {len(lost)} confirmed records are not there, first {lost[0]}")
        if self.producer.failed:
            self.say(f"  note: {len(self.producer.failed)} sends of the producer failed, first {self.producer.failed[0]}")

    def check(self, verdict: Verdict) -> Verdict:
        """Raises `Failed` if the verdict is not good."""
        verdict.done = self.done
        if not verdict.ok:
            (self.folder / "raw.pickle").write_bytes(
                pickle.dumps([{p: [tuple(record) for record in some] for p, some in log.items()} for log in self.observer.raw_logs])
            )
            (self.folder / "state.pickle").write_bytes(pickle.dumps({table: dict(by) for table, by in self.observer.stored.items()}))
            raise Failed(f"seed {self.seed}, prefix {self.prefix}: {verdict}\n  logs: {self.folder}")
        if verdict.archived and self.place.server is not None:
            self._check_counts(verdict)
        return verdict

    def _check_counts(self, verdict: Verdict) -> None:
        """Raises `Failed` unless `stockstream query` counts what the verdict has found, or if a log has the secret key of the bucket."""
        want = {"raw": verdict.archived, "ticks": verdict.ticks, "alerts": verdict.alerts, "predictions": verdict.predictions, "outcomes": verdict.outcomes}
        what = {"ticks": "CASE WHEN coalesce(flags, 0) & 2 = 0 THEN 1 END", "predictions": "DISTINCT id"}
        sql = "SELECT " + ", ".join(f"(SELECT count({what.get(name, '*')}) FROM {name}) AS {name}" for name in want)
        command = [sys.executable, "-m", "stockstream.cli", "query", "--archive", self.settings.archive, "--json", sql]
        done = subprocess.run(command, env=os.environ | self.environment, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise Failed(f"stockstream query: {done.stderr.strip()[-500:]}")
        found = json.loads(done.stdout)[0]
        self.say(f"  SELECT count(*): {found}")
        wrong = [] if self.observer.forged else [f"{found[name]} {name} for {count}" for name, count in want.items() if found[name] != count]
        if wrong or SECRET in "".join(worker.text() for worker in self.workers):
            raise Failed(f"SELECT count(*) gives {', '.join(wrong) or 'what it must'}, or a log has the secret key; see {self.folder}")

    def count(self, fault: str, times: int = 1) -> None:
        """Notes that a fault was done."""
        self.done[fault] += times

    def rejections(self) -> Counter[str]:
        """How many places were rejected so far, by reason."""
        self.observer.read()
        return Counter(reason for reason in self.observer.reasons.values())

    def frames_told(self) -> int:
        """How many frames of `windows` there are."""
        self.observer.read()
        return len(self.observer.published_at)

    def seen_logs(self) -> int:
        """The fewest log ids that frames of any partition with records bear."""
        self.observer.read()
        return min((len(self.observer.logs[p]) for p, records in self.observer.raw.items() if records), default=0)

    def copy_log(self, records: dict[int, list[RawRecord]]) -> None:
        """Makes the topics and writes these records to `ticks.raw`; their Kafka times are the broker's, of now. No worker may run yet."""

        async def run() -> None:
            await ensure_topics(self.settings)
            raw = self.settings.topic("ticks.raw")
            producer = AIOKafkaProducer(**client_options(self.settings), acks="all", enable_idempotence=True, linger_ms=5, max_batch_size=262_144)
            await producer.start()
            try:
                futures = [
                    await producer.send(raw, record.value, key=b"none" if record.value is None else None, partition=p)
                    for p, some in records.items() for record in some
                ]  # fmt: skip
                await asyncio.gather(*futures)
            finally:
                await producer.stop()

        asyncio.run(run())

    # -- the broker's side --------------------------------------------------

    def admin(self, work: Callable[[AIOKafkaAdminClient], Coroutine[Any, Any, T]]) -> T:
        """What a coroutine does with an admin client."""

        async def run() -> T:
            admin = AIOKafkaAdminClient(**client_options(self.settings), request_timeout_ms=15_000)
            await admin.start()
            try:
                return await work(admin)
            finally:
                await admin.close()

        return asyncio.run(run())

    def ends(self, names: Sequence[str]) -> dict[str, dict[int, int]]:
        """The offset after the last record, by topic and partition."""
        return {name: asyncio.run(topic_ends(self.settings, name, range(self.settings.partitions), embedded=False)) for name in names}

    def delete_records(self, before: dict[int, int]) -> None:
        """Deletes raw records below these offsets, as retention does."""
        self.deleted = before
        topic = self.settings.topic("ticks.raw")
        self.admin(lambda admin: admin.delete_records({TopicPartition(topic, p): RecordsToDelete(before_offset=o) for p, o in before.items()}))

    def abort_transactions(self, messages: list[tuple[int, bytes | None]], *, transactions: int = 3) -> None:
        """Sends messages to `ticks.raw` in transactions that are aborted, which leaves offsets without a record."""

        async def run() -> None:
            producer = AIOKafkaProducer(**client_options(self.settings), transactional_id=f"{self.prefix}aborter", linger_ms=0)
            await producer.start()
            try:
                for number in range(transactions):
                    await producer.begin_transaction()
                    for partition, value in messages[number::transactions]:
                        await producer.send_and_wait(self.settings.topic("ticks.raw"), value or b"-", partition=partition)
                    await producer.abort_transaction()
            finally:
                await producer.stop()

        asyncio.run(run())

    def longest_stall(self, since: float, until: float) -> float:
        """Seconds between those two times (epoch) in which no row of some partition was published, the longest; by Kafka's time of the frames."""
        times: dict[int, list[float]] = {p: [since] for p in range(self.settings.partitions)}
        for partition, at in self.observer.published_at:
            if since <= at <= until:
                times[partition].append(at)
        return max(max((b - a for a, b in zip([*t], [*t[1:], until], strict=True)), default=0.0) for t in times.values())

"""The faults. Each case takes a cluster, a seed and a scale, does its harm under steady load, and raises `Failed` where anything is not exact."""

from __future__ import annotations

import contextlib
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stockstream.broker import STATE_TABLES, changelog, topic_specs
from stockstream.children import Child
from tests.faults.line import Line
from tests.faults.market import POISON
from tests.faults.verdict import Verdict
from tests.faults.workers import Failed, Worker, free_port, wait_until
from tests.kafka import Cluster


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of a case is run: the short form of `make test`, or the full numbers."""

    full: bool = False
    say: Callable[[str], None] = print

    def __call__(self, short: float, full: float) -> int:
        return int(full if self.full else short)

    @property
    def line(self) -> dict[str, Any]:
        """What a line is made with."""
        return {"say": self.say} | ({"symbols": 200, "rate": 2_000, "session_s": 6.0} if self.full else {})


def kill(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """1. kill -9 of a worker; 14. the stall that follows."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line:
        line.begin()
        for _ in range(scale(1, 5)):
            time.sleep(rng.uniform(1, 3))
            victim = rng.choice(line.workers)
            at = time.time()
            victim.kill()
            line.wait_for_windows(timeout_s=60)
            time.sleep(line.settings.session_timeout_s + 1)
            line.observer.read()
            stall = line.longest_stall(at, time.time())
            scale.say(f"  kill -9 of {victim.name}: longest stall of a partition {stall:.1f} s (session {line.settings.session_timeout_s:g} s)")
        return line.check(line.finish())


def join_and_leave(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """2. A third worker joins and leaves, under CPU overload."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line, overload(scale(1, 2)):
        line.begin()
        for _ in range(scale(1, 5)):
            third = line.worker()
            third.wait_ready(60)
            time.sleep(rng.uniform(0.5, 3))
            took = third.stop()
            scale.say(f"  a third worker joined, and left {took:.1f} s after SIGTERM")
            time.sleep(rng.uniform(0.5, 3))
        return line.check(line.finish())


def freeze(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """3. A worker frozen for twice the session, then woken; then every worker starts from a changelog that was compacted."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line:
        line.begin()
        compact_quickly(line)
        for _ in range(scale(1, 3)):
            time.sleep(rng.uniform(0.5, 2))
            victim = rng.choice(line.workers)
            exits = len(victim.exits)
            pid = victim.freeze()
            time.sleep(2 * line.settings.session_timeout_s)
            victim.thaw()
            wait_until(partial(_left, victim, exits), 5, f"{victim.name} leaves after it was frozen and woken", 0.02)
            scale.say(f"  {victim.name} (process {pid}) frozen for {2 * line.settings.session_timeout_s:g} s, woken, left with status {victim.exits[-1][0]}")
            line.wait_for_windows(timeout_s=60)
        before = wait_for_compaction(line)
        scale.say(f"  changelogs compacted: {before}")
        for worker in line.workers:
            worker.kill()
        for worker in line.workers:
            worker.wait_ready(60)
        line.wait_for_windows(timeout_s=60)
        line.observer.forget_state()
        return line.check(line.finish())


def terminate(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """4. SIGTERM in the middle of a batch: exit under 10 s, and nothing is lost."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line:
        line.begin()
        for _ in range(scale(2, 5)):
            time.sleep(rng.uniform(0.5, 3))
            victim = rng.choice(line.workers)
            took = victim.stop(10.0)
            scale.say(f"  {victim.name} ended {took:.1f} s after SIGTERM")
            victim.start()
            line.wait_for_windows(timeout_s=60)
        return line.check(line.finish())


def skipped_and_holes(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """7. Offsets skipped inside the consumer are read again; real holes (aborted transactions, deleted records) are recorded and passed."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line:
        switch = line.folder / "switch"
        switch.touch()
        for _ in range(2):
            line.worker("skip", STOCKSTREAM_TEST_SWITCH=str(switch))
        for worker in line.workers:
            worker.wait_ready()
        line.producer.start(60)
        line.wait_for_windows()
        for _ in range(scale(1, 5)):
            now = int(time.time() * 1000)
            line.abort_transactions([message for _ in range(20) for message in line.market.step(now, 4)])
            time.sleep(rng.uniform(0.5, 2))
        pipelines = [worker.get("/api/pipeline") or {} for worker in line.workers]
        holes, rereads = [hole for p in pipelines for hole in p.get("holes", [])], sum(p.get("rereads", 0) for p in pipelines)
        dropped = sum(worker.text().count("SABOTAGE") for worker in line.workers)
        scale.say(f"  {dropped} offsets skipped inside the consumers, {rereads} read again; {len(holes)} holes of aborted transactions passed")
        if not dropped or rereads < dropped:
            raise Failed(f"{dropped} offsets were skipped, {rereads} read again; logs in {line.folder}")
        # records that retention deletes while nobody reads
        line.producer.stop()
        line.observer.settle(60)
        for worker in line.workers:
            worker.stop()
        line.observer.read()
        ends = line.observer.raw_end()
        line.producer.start(0)
        time.sleep(3)
        line.producer.stop()
        line.delete_records({p: end + 40 for p, end in ends.items()})
        line.producer.start(0)
        for worker in line.workers:
            worker.start()
        for worker in line.workers:
            worker.wait_ready(60)
        time.sleep(3)
        verdict = line.finish()
        return line.check(verdict)


def replay_live_batch(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """13. The same log through a live worker, through one killed three times, and through the pure function: the same rows, alerts and predictions."""
    rng = random.Random(seed)
    tellings = []
    verdict = Verdict()
    with Line(cluster, seed, **scale.line) as live:
        live.begin(1)
        time.sleep(scale(5, 60))
        verdict = live.check(live.finish())
        tellings.append(live.observer.told)
        records = {p: list(some) for p, some in live.observer.raw.items()}
        with Line(cluster, seed, models=live, **scale.line) as again:
            again.copy_log(records)
            worker = again.worker()
            for _ in range(3):
                worker.wait_ready(60)
                time.sleep(rng.uniform(0.1, 1.5))
                worker.kill()
            killed = again.finish(archive=False)
            tellings.append(again.observer.told)
            again.check(killed)
            faults = [
                f"{kind}: {key}" for kind in ("windows", "alerts", "predictions", "outcomes")
                for key in tellings[0][kind].keys() | tellings[1][kind].keys()
                if set(tellings[0][kind].get(key, {})) != set(tellings[1][kind].get(key, {}))
            ]  # fmt: skip
            if faults:
                raise Failed(f"seed {seed}: the live and the killed worker tell {len(faults)} things differently, first {faults[0]}")
            scale.say(f"  the same log live, killed three times and in batch: {killed}")
    return verdict


def broker_faults(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """5. A broker that leads one of our partitions is killed and brought back; then (in full) a rolling restart of all."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line:
        line.begin()
        for _ in range(scale(1, 3)):
            time.sleep(rng.uniform(0.5, 2))
            node = cluster.metadata().topics[line.settings.topic("ticks.raw")][rng.randrange(line.settings.partitions)].leader
            cluster.kill(node)
            time.sleep(scale(4, 10))
            cluster.start_node(node)
            cluster.wait_in_sync()
            line.wait_for_windows(timeout_s=60)
            scale.say(f"  broker {node} killed and brought back")
        for node in range(cluster.nodes if scale.full else 1):
            cluster.terminate(node)
            cluster.start_node(node)
            cluster.wait_in_sync()
            line.wait_for_windows(timeout_s=60)
            scale.say(f"  broker {node} restarted")
        return line.check(line.finish(timeout_s=60))


def all_brokers_frozen(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """6. All brokers stand still, longer than the session."""
    with Line(cluster, seed, **scale.line) as line:
        line.begin()
        seconds = scale(8, 20)
        for node in range(cluster.nodes):
            cluster.freeze(node)
        time.sleep(seconds)
        for node in range(cluster.nodes):
            cluster.thaw(node)
        begun = time.monotonic()
        line.wait_for_windows(timeout_s=90)
        scale.say(f"  all brokers frozen {seconds} s; rows again {time.monotonic() - begun:.1f} s after")
        return line.check(line.finish(timeout_s=60))


def poison(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """8. Poison messages of every kind among good ones: each is rejected for its own reason, no agent restarts."""
    with Line(cluster, seed, **scale.line) as line:
        line.begin(1)
        each = scale(5, 100)
        kinds = [*POISON, "wrong partition"]
        before = line.rejections()
        for _ in range(each):
            now = int(time.time() * 1000)
            line.producer.add([line.market.poison(kind, now) for kind in kinds])
            time.sleep(0.15)
        pids = [worker.pid for worker in line.workers]
        verdict = line.finish()
        after = line.rejections()
        for reason, least in Counter(POISON[kind][0] if kind in POISON else "wrong_partition" for kind in kinds).items():
            if after[reason] - before[reason] < least * each:
                verdict.fault(f"{least * each} messages had to be rejected as {reason}, {after[reason] - before[reason]} were")
        if [worker.pid for worker in line.workers] != pids or any(worker.exits or "Crashed reason" in worker.text() for worker in line.workers):
            verdict.fault("a worker or an agent ended over a bad message")
        scale.say(f"  {each} messages of each of {len(kinds)} kinds")
        return line.check(verdict)


def store_down(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """9. The archive's store is down for a while, then slow and failing at random: alerts and predictions go on, memory stays bounded, and it catches up."""
    return _archive_fault(cluster, seed, scale, "store", scale(8, 600))


def disk_full(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """11. The archive's disk is full for a while."""
    return _archive_fault(cluster, seed, scale, "full", scale(8, 60))


def _archive_fault(cluster: Cluster, seed: int, scale: Scale, fault: str, seconds: int) -> Verdict:
    with Line(cluster, seed, **scale.line) as line:
        switch = line.folder / "switch"
        for _ in range(2):
            line.worker(fault, STOCKSTREAM_TEST_SWITCH=str(switch))
        for worker in line.workers:
            worker.wait_ready()
        line.producer.start(60)
        line.wait_for_windows()
        switch.touch()
        until = time.monotonic() + seconds
        rounds = 0
        while time.monotonic() < until:
            line.wait_for_windows(timeout_s=60)  # alerts and predictions go on
            rounds += 1
            time.sleep(1)
        failing = any(of.get("state") == "failing" for worker in line.workers for of in (worker.get("/api/pipeline") or {}).get("archive", []))
        memory = max(_rss_mb(worker.pid) for worker in line.workers)
        switch.unlink()
        scale.say(f"  store at fault for {seconds} s, rows told meanwhile {rounds} times; largest worker {memory} MB")
        verdict = line.finish(timeout_s=60)
        if not failing:
            verdict.fault("no worker says that its archive is failing")
        return line.check(verdict)


def crash_after_upload(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """10. A worker dies between an object's upload and whatever it makes of that."""
    with Line(cluster, seed, **scale.line) as line:
        switch = line.folder / "switch"
        for _ in range(2):
            line.worker("crash", STOCKSTREAM_TEST_SWITCH=str(switch))
        for worker in line.workers:
            worker.wait_ready()
        line.producer.start(60)
        line.wait_for_windows()
        switch.touch()

        def crashes() -> int:
            return sum(status == 137 for worker in line.workers for status, _ in worker.exits)

        wait_until(lambda: crashes() >= scale(2, 10), scale(60, 300), "workers crash after uploads")
        switch.unlink()
        scale.say(f"  {crashes()} crashes right after an upload")
        return line.check(line.finish())


def topics_at_fault(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """12. Broker absent at start; wrong partition count; `ticks.raw` deleted and made again: one clear line each, and the line goes on where waiting helps."""
    with Line(cluster, seed, **scale.line) as line:
        worker = line.worker(STOCKSTREAM_BROKER=f"kafka://127.0.0.1:{free_port()}")
        wait_until(lambda: "waiting for a broker at" in worker.text(), 30, "the worker says that it waits for a broker")
        worker.close()
        line.workers.clear()
        line.begin(1)
        wrong = line.worker(STOCKSTREAM_PARTITIONS=str(line.settings.partitions + 1))
        said = wait_until(
            lambda: [text for text in wrong.text().splitlines() if "partitions, STOCKSTREAM_PARTITIONS says" in text], 30, "a line about the partition count"
        )
        scale.say(f"  {said[0].strip()[:160]}")
        if "Traceback" in wrong.text():
            raise Failed(f"a traceback where one line had to do: {wrong.log}")
        wrong.close()
        line.workers.remove(wrong)
        line.producer.stop()
        line.observer.settle(60)
        line.observer.read()
        raw = line.settings.topic("ticks.raw")
        line.admin(lambda admin: admin.delete_topics([raw]))
        wait_until(lambda: raw not in line.admin(lambda admin: admin.list_topics()), 30, "ticks.raw is gone", 0.5)
        spec = next(spec for spec in topic_specs(line.settings) if spec.name == raw)
        line.admin(lambda admin: admin.create_topics([NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.config)]))
        cluster.wait_in_sync()
        line.observer.new_life()
        line.producer.start(0)
        wait_until(lambda: line.seen_logs() >= 2, 90, f"a new log id after ticks.raw was made again; see {line.folder}", 1.0)
        line.wait_for_windows(timeout_s=60)
        time.sleep(2)
        return line.check(line.finish(timeout_s=60))


def takeover(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """14. From the start of a worker to the first chunk it has processed, where the group is empty; measured and printed."""
    with Line(cluster, seed, **scale.line) as line:
        line.begin(1)
        line.producer.stop()
        line.observer.settle(60)
        line.workers[0].stop()
        line.producer.start(0)
        time.sleep(1)
        line.observer.read()
        before = len(line.observer.told_at)
        begun = time.monotonic()
        line.workers[0].start()
        wait_until(lambda: line.frames_told() > before, 60, "rows after a start", 0.1)
        scale.say(f"  start to first rows told, imports included: {time.monotonic() - begun:.1f} s")
        time.sleep(1)
        return line.check(line.finish())


# -- what the cases do it with ------------------------------------------------------


@contextlib.contextmanager
def overload(processes: int) -> Iterator[None]:
    """So many processes that do nothing but keep a core busy."""
    busy = [Child([sys.executable, "-c", "while True: pass"]) for _ in range(processes)]
    try:
        yield
    finally:
        for child in busy:
            child.kill()
            child.wait(5)


def compact_quickly(line: Line) -> None:
    """Sets the changelogs so that the broker compacts all but the newest second at once."""
    own = {
        "cleanup.policy": "compact", "segment.ms": "1000", "min.compaction.lag.ms": "0", "max.compaction.lag.ms": "2000", "min.cleanable.dirty.ratio": "0.01",
        "min.insync.replicas": str(line.settings.insync_replicas),
    }  # fmt: skip
    names = [changelog(line.settings, table) for table in STATE_TABLES]
    line.admin(lambda admin: admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, name, own) for name in names]))


def wait_for_compaction(line: Line, timeout_s: float = 60.0) -> str:
    """Waits until every changelog of `clean` and `aggregate` has lost records to compaction; returns what was left, in words."""

    def compacted() -> str:
        line.observer.forget_state()
        line.observer.read()
        spans, counts = line.observer.state_offsets()
        done = {table: (counts[table], spans[table]) for table in STATE_TABLES}
        good = done["clean"][0] < done["clean"][1] // 2
        return ", ".join(f"{table} {count} of {span} records left" for table, (count, span) in done.items()) if good else ""

    return str(wait_until(compacted, timeout_s, "the changelog of clean is compacted", 1.0))


def _left(worker: Worker, exits: int) -> bool:
    return len(worker.exits) > exits


def _rss_mb(pid: int) -> int:
    pages = int((Path("/proc") / str(pid) / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 1_000_000


CASES: dict[str, Callable[[Cluster, int, Scale], Verdict]] = {
    case.__name__: case
    for case in (
        kill, join_and_leave, freeze, terminate, broker_faults, all_brokers_frozen, skipped_and_holes, poison, store_down, crash_after_upload, disk_full,
        topics_at_fault, replay_live_batch, takeover,
    )
}  # fmt: skip

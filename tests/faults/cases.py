"""The faults. Each case takes a cluster, a seed and whether to run its full numbers, does its harm under steady load, and raises `Failed` where anything is not exact."""

from __future__ import annotations

import contextlib
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stockstream.broker import STATE_TABLES, changelog
from stockstream.children import Child
from tests.faults.line import Line
from tests.faults.verdict import Verdict
from tests.faults.workers import Failed, wait_until
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
            wait_until(lambda v=victim, n=exits: len(v.exits) > n, 5, f"{victim.name} leaves after it was frozen and woken", 0.02)
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

"""The fault cases. Each takes a cluster, a seed and a scale, injects its fault under steady load, and raises `Failed` if any result is not exact."""

from __future__ import annotations

import contextlib
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from stockstream.kafka.admin import STATE_TABLES, changelog, topic_specs
from tests.faults.expected import model_faults
from tests.faults.fuzzing import fuzz
from tests.faults.line import Line
from tests.faults.market import POISON
from tests.faults.starvation import overload
from tests.faults.storm import storm
from tests.faults.unclean import unclean
from tests.faults.upgrade import upgrade
from tests.faults.verdict import Verdict
from tests.faults.watched import Watched
from tests.faults.workers import PATIENCE, Failed, Worker, wait_until
from tests.kafka import Cluster
from tests.ports import free_port
from tests.standins.s3 import Server


@dataclass(frozen=True, slots=True)
class Scale:
    """The size of a case: the short form of `make test`, or the full numbers."""

    full: bool = False
    say: Callable[[str], None] = print
    server: Server | None = None
    """Of the archive's bucket; None for files."""
    own: Mapping[str, Any] = field(default_factory=dict)
    """What a line is made with in place of the form's: for a machine that others keep busy, a longer session or fewer symbols."""

    def __call__(self, short: float, full: float) -> int:
        return int(full if self.full else short)

    @property
    def line(self) -> dict[str, Any]:
        """What a line is made with."""
        return {"say": self.say, "server": self.server} | ({"symbols": 200, "rate": 2_000, "session_s": 6.0} if self.full else {}) | dict(self.own)


# -- acts: faults on a line that runs -------------------------------------------------


def kill(line: Line, rng: random.Random, scale: Scale) -> None:
    """1. kill -9 of a worker; 14. the stall that follows."""
    for _ in range(scale(1, 5)):
        time.sleep(rng.uniform(0.5, 3))
        victim = rng.choice(line.workers)
        at = time.time()
        victim.kill()
        line.wait_for_windows(timeout_s=60)
        time.sleep(line.settings.session_timeout_s)
        line.observer.read()
        stall = line.longest_stall(at, time.time())
        line.count("kill -9")
        scale.say(f"  kill -9 of {victim.name}: longest stall of a partition {stall:.1f} s (session {line.settings.session_timeout_s:g} s)")


def join_and_leave(line: Line, rng: random.Random, scale: Scale) -> None:
    """2. A third worker joins and leaves, under CPU overload."""
    with overload(scale(1, 2)):
        for _ in range(scale(1, 5)):
            third = line.worker()
            third.wait_ready(90)
            time.sleep(rng.uniform(0.5, 2))
            took = third.stop()
            third.close()
            line.workers.remove(third)
            line.count("joined and left")
            scale.say(f"  a third worker joined, and left {took:.1f} s after SIGTERM")
            time.sleep(rng.uniform(0.5, 2))


def terminate(line: Line, rng: random.Random, scale: Scale) -> None:
    """4. SIGTERM in the middle of a batch: exit under 10 s."""
    for _ in range(scale(1, 5)):
        time.sleep(rng.uniform(0.5, 2))
        victim = rng.choice(line.workers)
        took = victim.stop(10.0)
        line.count("SIGTERM")
        scale.say(f"  {victim.name} ended {took:.1f} s after SIGTERM")
        victim.start()
        line.wait_for_windows(timeout_s=60)


def broker_killed(line: Line, rng: random.Random, scale: Scale) -> None:
    """5. A broker that leads one of our partitions is killed and brought back."""
    for _ in range(scale(1, 3)):
        time.sleep(rng.uniform(0.5, 2))
        node = line.cluster.metadata().topics[line.settings.topic("ticks.raw")][rng.randrange(line.settings.partitions)].leader
        line.cluster.kill(node)
        time.sleep(scale(4, 10))
        line.cluster.start_node(node)
        line.cluster.wait_in_sync(60 * PATIENCE)
        line.wait_for_windows(timeout_s=60)
        line.count("broker killed")
        scale.say(f"  broker {node} killed and brought back")


def brokers_restarted(line: Line, rng: random.Random, scale: Scale) -> None:
    """5. A rolling restart of all brokers; in short, of one."""
    nodes = scale(1, line.cluster.nodes)
    for node in range(nodes):
        line.cluster.terminate(node)
        line.cluster.start_node(node)
        line.cluster.wait_in_sync(60 * PATIENCE)
    line.wait_for_windows(timeout_s=60)
    line.count("broker restarted", nodes)
    scale.say(f"  {nodes} brokers restarted, one after the other")


def brokers_frozen(line: Line, rng: random.Random, scale: Scale) -> None:
    """6. All brokers stand still, for longer than the session."""
    seconds = scale(14, 20)
    for node in range(line.cluster.nodes):
        line.cluster.freeze(node)
    time.sleep(seconds)
    for node in range(line.cluster.nodes):
        line.cluster.thaw(node)
    begun = time.monotonic()
    line.wait_for_windows(timeout_s=90)
    line.count("all brokers frozen")
    scale.say(f"  all brokers frozen {seconds} s; rows again {time.monotonic() - begun:.1f} s after")


def poison(line: Line, rng: random.Random, scale: Scale) -> None:
    """8. Poison messages of every kind among good ones: each is rejected for its own reason, and no agent restarts."""
    each, kinds = scale(5, 100), [*POISON, "wrong partition"]
    crashed = "Crashed reason"
    before, pids = line.rejections(), [(worker.pid, worker.text().count(crashed)) for worker in line.workers]
    for _ in range(each):
        now = int(time.time() * 1000)
        line.producer.add([line.market.poison(kind, now) for kind in kinds])
        time.sleep(0.15)
    wanted = Counter(POISON[kind][0] if kind in POISON else "wrong_partition" for kind in kinds)

    def rejected() -> bool:
        after = line.rejections()
        return all(after[reason] - before[reason] >= least * each for reason, least in wanted.items())

    wait_until(rejected, 30, f"{each} messages of each of {len(kinds)} kinds are rejected for their reasons, {dict(wanted)} times {each}", 0.5)
    if [(worker.pid, worker.text().count(crashed)) for worker in line.workers] != pids:
        raise Failed(f"a worker or an agent ended over a bad message; see {line.folder}")
    line.count("poison", each * len(kinds))
    scale.say(f"  {each} messages of each of {len(kinds)} kinds rejected for their reasons")


def begin_anew(line: Line, rng: random.Random, scale: Scale) -> None:
    """14. From the start of a worker to the first rows, where the group is empty."""
    line.producer.stop()
    line.observer.wait_until_complete(60)
    for worker in line.workers:
        worker.stop()
    line.producer.start(0)
    time.sleep(1)
    before = line.frames_told()
    begun = time.monotonic()
    for worker in line.workers:
        worker.start()
    wait_until(lambda: line.frames_told() > before, 60, "rows after a start", 0.1)
    line.count("started from nothing")
    scale.say(f"  start to first published rows, imports included: {time.monotonic() - begun:.1f} s")


Act = Callable[[Line, random.Random, Scale], None]
Case = Callable[[Cluster, int, Scale], Verdict]
ACTS: tuple[Act, ...] = (kill, join_and_leave, terminate, broker_killed, brokers_restarted, brokers_frozen, poison, begin_anew)


def on_one_line(*acts: Act) -> Case:
    """A case that runs the acts one after the other on one pipeline, and then checks all of its output."""

    def case(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
        rng = random.Random(seed)
        with Line(cluster, seed, **scale.line) as line:
            line.begin()
            for act in acts:
                act(line, rng, scale)
            return line.check(line.finish(timeout_s=60))

    case.__doc__ = " ".join(act.__doc__ or "" for act in acts)
    return case


def mixed(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """Four acts chosen at random, in their short forms, on one line."""
    acts = random.Random(seed).sample(ACTS, 4)
    scale.say(f"  {', '.join(act.__name__ for act in acts)}")
    return on_one_line(*acts)(cluster, seed, Scale(False, scale.say))


# -- cases with lines of their own ------------------------------------------------------


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
            line.count("worker frozen and woken")
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


def skipped_and_holes(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """7. Offsets skipped inside the consumer are read again; aborted transactions leave no hole; deleted records are recorded and skipped."""
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
        rounds = scale(1, 5)
        for _ in range(rounds):
            now = int(time.time() * 1000)
            line.abort_transactions([message for _ in range(20) for message in line.market.step(now, 4)])
            time.sleep(rng.uniform(0.5, 2))
        pipelines = [worker.get("/api/pipeline") or {} for worker in line.workers]
        holes, rereads = [hole for p in pipelines for hole in p.get("holes", [])], sum(p.get("rereads", 0) for p in pipelines)
        lines = [text for worker in line.workers for text in worker.text().splitlines() if "SABOTAGE" in text]
        dropped = len(lines)
        must = sum(".ticks.raw[" in text for text in lines)  # a frame dropped in the loopback comes with the next fetch
        line.count("offset skipped in the consumer", dropped)
        line.count("aborted transaction", 3 * rounds)
        scale.say(f"  {dropped} offsets skipped inside the consumers, {rereads} read again; {3 * rounds} aborted transactions left {len(holes)} holes")
        if not must or rereads < must:
            raise Failed(f"{must} offsets of ticks.raw were skipped, {rereads} read again; logs in {line.folder}")
        if holes:
            raise Failed(f"aborted transactions left {len(holes)} holes, the first {holes[0]}; logs in {line.folder}")
        switch.unlink()  # what is dropped as the log ends is not missed before something follows
        # records that retention deletes while nobody reads
        line.producer.stop()
        line.observer.wait_until_complete(60)
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
    outputs = []
    verdict = Verdict()
    with Line(cluster, seed, **scale.line) as live:
        live.begin(1)
        time.sleep(scale(5, 60))
        verdict = live.check(live.finish())
        for expected in live.observer.expected_logs():
            if faults := model_faults(expected, scale(500, 1_500), live.settings):
                raise Failed(f"seed {seed}, partition {expected.partition}: {len(faults)} things are not windows_model.py's, first {faults[0]}")
        scale.say(f"  the first {scale(500, 1_500)} records of each partition are windows_model.py's as well")
        outputs.append(live.observer.published)
        records = {p: list(some) for p, some in live.observer.raw.items()}
        with Line(cluster, seed, models=live, **scale.line) as again:
            again.copy_log(records)
            worker = again.worker()
            for _ in range(3):
                worker.wait_ready(60)
                time.sleep(rng.uniform(0.1, 1.5))
                worker.kill()
            killed = again.finish(archive=False)
            outputs.append(again.observer.published)
            again.check(killed)
            faults = [
                f"{kind}: {key}" for kind in ("windows", "alerts", "predictions", "outcomes")
                for key in outputs[0][kind].keys() | outputs[1][kind].keys()
                if set(outputs[0][kind].get(key, {})) != set(outputs[1][kind].get(key, {}))
            ]  # fmt: skip
            if faults:
                raise Failed(f"seed {seed}: the live and the killed worker publish {len(faults)} messages differently, first {faults[0]}")
            scale.say(f"  the same log live, killed three times and in batch: {killed}")
    return verdict


def archive(cluster: Cluster, seed: int, scale: Scale, *, outage_only: bool = False) -> Verdict:
    """9. The archive's store is down, and workers are killed, then slow and failing at random; 10. crashes after uploads; 11. no room for a write."""
    large = {"symbols": 1_000, "rate": 1_000} | dict(scale.own) if scale.full else {}
    with Line(cluster, seed, **(scale.line | large)) as line, contextlib.ExitStack() as held:
        switch = line.folder / "switch"
        for _ in range(2):
            line.worker("archive", STOCKSTREAM_TEST_SWITCH=str(switch))
        for worker in line.workers:
            worker.wait_ready()
        line.producer.start(60)
        line.wait_for_windows()
        watched = held.enter_context(Watched(line, pause_s=15)) if scale.full else None
        if watched is not None:
            wait_until(watched.begun, 60, "the reader has counted, and a compactor has run to its end", 1.0)
        faults = (("down", scale(8, 600)), ("random", scale(4, 60)), ("full", scale(6, 60)))
        for fault, seconds in faults[:1] if outage_only else faults:
            with line.place.fails(fault, switch):
                _store_fails(line, fault, seconds, scale)
        if not outage_only:
            _crash_after_uploads(line, switch, scale)
        begun = time.monotonic()
        if watched is not None:
            watched.compactors.stop()
        verdict = line.check(line.finish(timeout_s=60))
        scale.say(f"  archive complete at the latest {time.monotonic() - begun:.0f} s after the last record")
        if watched is not None:
            watched.judge()
        return verdict


def _crash_after_uploads(line: Line, switch: Path, scale: Scale) -> None:
    switch.write_text("crash")

    def crashes() -> int:
        return sum(status == 137 for worker in line.workers for status, _ in worker.exits)

    wait_until(lambda: crashes() >= scale(2, 10), scale(60, 300), "workers crash after uploads")
    switch.unlink()
    line.count("crash after upload", crashes())
    scale.say(f"  {crashes()} crashes right after an upload")


def compaction(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """17. Compactors are killed and frozen, while workers are too and the archive's store is down for a while; a reader counts rows all the time."""
    rng = random.Random(seed)
    with Line(cluster, seed, **scale.line) as line:
        switch = line.folder / "switch"
        for _ in range(2):
            line.worker("archive", STOCKSTREAM_TEST_SWITCH=str(switch))
        for worker in line.workers:
            worker.wait_ready()
        line.producer.start(60)
        line.wait_for_windows()
        with Watched(line, pause_s=0.5) as watched:
            for _ in range(scale(1, 5)):
                time.sleep(rng.uniform(8, 12))
                rng.choice(line.workers).kill()
                line.count("kill -9")
                line.wait_for_windows(timeout_s=60)
                victim = rng.choice(line.workers)
                victim.freeze()
                time.sleep(2 * line.settings.session_timeout_s)
                victim.thaw()
                line.count("worker frozen and woken")
                line.wait_for_windows(timeout_s=60)
                with line.place.fails("down", switch):
                    _store_fails(line, "down", scale(8, 60), scale)
            wait_until(watched.seen_enough, 60, "a compactor was killed, one frozen and woken, and one ran to its end", 0.5)
            watched.compactors.stop()
            verdict = line.check(line.finish(timeout_s=60))
            watched.judge()
        return verdict


def _store_fails(line: Line, fault: str, seconds: int, scale: Scale) -> None:
    """Waits while the store fails, and kills workers while it is down. Windows go on; /api/pipeline reports the failure."""
    until, rounds, failing, kills = time.monotonic() + seconds, 0, False, 0
    due = scale(1, 8) if fault == "down" else 0
    while time.monotonic() < until or not (kills or not due):
        line.wait_for_windows(timeout_s=60)  # alerts and predictions go on
        rounds += 1
        failing = failing or any(of.get("state") == "failing" for w in line.workers for of in (w.get("/api/pipeline") or {}).get("archive", []))
        if kills < due and failing and time.monotonic() >= until - seconds * (due - kills) / (due + 1):
            line.workers[kills % len(line.workers)].kill()  # it starts without its store
            kills += 1
        time.sleep(1)
    memory = max(_rss_mb(worker.pid) for worker in line.workers)
    line.count(f"store {fault}")
    line.count("kill -9", kills)
    scale.say(f"  store {fault} for {seconds} s, {kills} kills, rows published meanwhile {rounds} times; largest worker {memory} MB")
    if not failing and fault != "random":
        raise Failed(f"the store is {fault} and no worker reports it in /api/pipeline")


def topics_at_fault(cluster: Cluster, seed: int, scale: Scale) -> Verdict:
    """12. Broker absent at start; wrong partition count; `ticks.raw` recreated: one clear line each, and the pipeline continues if waiting helps."""
    with Line(cluster, seed, **scale.line) as line:
        worker = line.worker(STOCKSTREAM_BROKER=f"kafka://127.0.0.1:{free_port()}")
        wait_until(lambda: "waiting for a broker at" in worker.text(), 30, "the worker logs that it waits for a broker")
        worker.close()
        line.workers.clear()
        line.begin(1)
        wrong = line.worker(STOCKSTREAM_PARTITIONS=str(line.settings.partitions + 1))
        lines = wait_until(
            lambda: [text for text in wrong.text().splitlines() if "STOCKSTREAM_PARTITIONS is" in text], 30, "a line about the partition count"
        )
        scale.say(f"  {lines[0].strip()[:160]}")
        if "Traceback" in wrong.text():
            raise Failed(f"a traceback where one line had to do: {wrong.log}")
        wrong.close()
        line.workers.remove(wrong)
        line.producer.stop()
        line.observer.wait_until_complete(60)
        line.observer.read()
        raw = line.settings.topic("ticks.raw")
        line.admin(lambda admin: admin.delete_topics([raw]))
        wait_until(lambda: raw not in line.admin(lambda admin: admin.list_topics()), 30, "ticks.raw is gone", 0.5)
        spec = next(spec for spec in topic_specs(line.settings) if spec.name == raw)
        line.admin(lambda admin: admin.create_topics([NewTopic(spec.name, spec.partitions, spec.replication, topic_configs=spec.config)]))
        cluster.wait_in_sync(60 * PATIENCE)
        line.observer.new_log()
        line.producer.start(0)
        wait_until(lambda: line.seen_logs() >= 2, 90, f"a new log id after ticks.raw was created again; see {line.folder}", 1.0)
        line.wait_for_windows(timeout_s=60)
        time.sleep(2)
        return line.check(line.finish(timeout_s=60))


# -- what the cases do it with ------------------------------------------------------


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


CASES: dict[str, Case] = {
    "workers": on_one_line(kill, join_and_leave, terminate, poison, begin_anew),
    "frozen_worker": freeze,
    "brokers": on_one_line(broker_killed, brokers_restarted, brokers_frozen),
    "skipped_and_holes": skipped_and_holes,
    "archive": archive,
    "topics": topics_at_fault,
    "replay": replay_live_batch,
    "storm": storm,
    "upgrade": upgrade,
}
"""The short form of everything: what `make test` runs."""

FULL: dict[str, Case] = {act.__name__: on_one_line(act) for act in ACTS} | {name: case for name, case in CASES.items() if name not in ("workers", "brokers")}
FULL |= {"compaction": compaction, "outage": partial(archive, outage_only=True), "fuzz": fuzz}
FULL |= {"unclean": unclean, "unclean_frames": partial(unclean, states=False), "unclean_plain": partial(unclean, plain=True)}
"""What `make soak` runs with full numbers, between mixes at random."""

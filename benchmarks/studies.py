"""Measurements of the line alone: latency, growth, recovery, a real day, two workers, a profile."""

from __future__ import annotations

import argparse
import collections
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from benchmarks.brokers import Broker, broker
from benchmarks.contenders import CONTENDERS, FAUST, Contender, Place, line_environment
from benchmarks.environments import ROOT, BenchmarkError, cache, confluent, site_of
from benchmarks.load import Log, text_of
from benchmarks.outputs import Reader
from benchmarks.processes import Host, Process, cpu_of, measure, peak_mb, wait
from benchmarks.run import PREFIX, clear, loaded, once, say, spread
from stockstream.transforms.partitioning import home_partition

Result = tuple[str, dict[str, Any]]
SETTLE_S = 20.0
"""Seconds of live ticks before latency counts."""
QUIET = 0.05
QUIET_S = 5
"""A second is quiet where for so long before, and while its predictions are made, the host took less than that part of the processors."""

SLOWEST = 10_000
"""Ticks a second that a run makes on any machine: what is slower has stopped."""


def _folder(what: str) -> Path:
    return Path(tempfile.mkdtemp(prefix=f"stockstream-bench-{what}-"))


def _percentiles(values: list[float]) -> dict[str, float]:
    return {"p50": float(np.percentile(values, 50)), "p99": float(np.percentile(values, 99)), "max": max(values)} if values else {}


# -- latency ----------------------------------------------------------------


class Feed(threading.Thread):
    """Publishes one tick a symbol and second, spread over the second, at the times that the ticks carry."""

    def __init__(self, servers: str, topic: str, symbols: int, begin_ms: int, seconds: int, partitions: int = 8) -> None:
        super().__init__(name="feed", daemon=True)
        self._producer = confluent().Producer({"bootstrap.servers": servers, "enable.idempotence": True, "linger.ms": 2, "log_level": 2})
        self._topic, self._begin, self._seconds = topic, begin_ms, seconds
        names = [f"S{number:05d}" for number in range(symbols)]
        self._symbols = [(name, name.encode(), home_partition(name, partitions)) for name in names]
        self.at_ms = {name: number * 1000 // symbols for number, name in enumerate(names)}
        self.sent: dict[tuple[int, int], float] = {}
        """Wall time (epoch ms) at which the record at a partition and offset was handed over."""
        self.late_ms = 0.0

    def run(self) -> None:
        rng = np.random.default_rng(3)
        count = len(self._symbols)
        cents = rng.integers(2_000, 40_000, count)

        def confirmed(at: float) -> Any:
            def note(error: Any, message: Any) -> None:
                if error is None:
                    self.sent[message.partition(), message.offset()] = at

            return note

        for second in range(self._seconds):
            cents = np.maximum(500, cents + rng.integers(-4, 5, count))
            sizes, base = rng.integers(1, 400, count).tolist(), self._begin + second * 1000
            for number, (name, key, partition) in enumerate(self._symbols):
                event_time = base + self.at_ms[name]
                ahead = event_time - time.time() * 1000
                if ahead > 1:
                    self._producer.poll(0)
                    time.sleep(ahead / 1000)
                self.late_ms = max(self.late_ms, -ahead)
                value = text_of(name, event_time, cents[number] / 100, sizes[number])
                self._produce(value, key, partition, confirmed(time.time() * 1000))
        self._producer.flush(30)

    def _produce(self, value: str, key: bytes, partition: int, confirmed: Any) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key, partition, confirmed)
                return
            except BufferError:                                          # the broker stalls: `late_ms` shows it
                self._producer.poll(0.1)


def latency(options: argparse.Namespace) -> Result:
    """From event to prediction in a subscriber's hands, on one worker of the full line (archive on, web tails off)."""
    host = Host()
    host.start()
    with broker(options.broker) as on:
        folder = _folder("latency")
        on.create(PREFIX + "ticks.raw")
        log = Log(PREFIX + "ticks.raw", options.symbols * options.seconds, options.symbols, 0, 0)
        place = Place(on, log, PREFIX, folder)
        consumer = confluent().Consumer({"bootstrap.servers": on.servers, "group.id": "subscriber", "enable.auto.commit": False, "fetch.wait.max.ms": 100})
        read: list[tuple[float, bytes]] = []
        with Process(CONTENDERS["line"].command(place), line_environment(place), folder / "line.log") as worker:
            reader = Reader(on)
            wait(lambda: worker.ended() or PREFIX + "predictions" in on.topics(), 60, "the worker has made its topics")
            time.sleep(6)                                               # joins and recovers
            consumer.assign([confluent().TopicPartition(PREFIX + "predictions", p, 0) for p in range(8)])
            begin_ms = (int(time.time()) + 2) * 1000
            feed = Feed(on.servers, log.topic, options.symbols, begin_ms, options.seconds)
            feed.start()
            measured_from = begin_ms + SETTLE_S * 1000
            cpu = wall = None
            share = 0.0
            end = begin_ms / 1000 + options.seconds + 3
            while time.time() < end:
                if worker.ended():
                    raise BenchmarkError(f"the worker ended: {worker.tail()}")
                first = consumer.poll(0.05)                              # `consume` waits for as many as it is asked for
                for message in [first, *consumer.consume(500, 0)] if first is not None else []:
                    if message.error() is None:
                        read.append((time.time() * 1000, message.value()))
                if cpu is None and time.time() * 1000 >= measured_from:
                    cpu, wall = cpu_of(worker.pid), time.monotonic()
                if cpu is not None and wall is not None and not feed.is_alive():
                    share = (cpu_of(worker.pid) - cpu) / (time.monotonic() - wall)
                    cpu, wall = None, None
                    measured_from = float("inf")
            feed.join()
            peak = peak_mb(worker.pid)
            worker.stop()
            reader.close()
        consumer.close()
        shutil.rmtree(folder, ignore_errors=True)
    host.stop()
    told_: list[tuple[float, dict[str, Any]]] = [(at, msgspec.json.decode(value)) for at, value in read]      # not before: 10,000 a second would keep the feed
    begins = begin_ms + SETTLE_S * 1000
    found: dict[str, list[float]] = collections.defaultdict(list)
    calm: dict[str, list[float]] = collections.defaultdict(list)
    quiet = {as_of: host.most_stolen(as_of / 1000 - QUIET_S, as_of / 1000 + 1) < QUIET for as_of in {prediction["as_of"] for _, prediction in told_}}
    ends = begin_ms + (options.seconds - 2) * 1000                       # no tick closes the last seconds: the worker does, two seconds later
    for at, prediction in told_:
        if not begins <= prediction["as_of"] <= ends:
            continue
        hops = {"event to prediction read": at - (prediction["as_of"] - 1000 + feed.at_ms[prediction["symbol"]])}
        closed = feed.sent.get((prediction["partition"], prediction["offset"]))
        if closed is not None:
            hops["closing record to prediction read"] = at - closed
        hops |= {f"hop {hop}": figure for hop, figure in prediction["latency_ms"].items()} | {"hop read": at - prediction["made_at"]}
        for name, figure in hops.items():
            found[name].append(figure)
            if quiet[prediction["as_of"]]:
                calm[name].append(figure)
    if not found:
        raise BenchmarkError("no prediction was read")
    figures, calmly = ({name: _percentiles(values) for name, values in of.items()} for of in (found, calm))
    lines = ["| from | p50 ms | p99 ms | max ms | quiet: p50 | p99 | max |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for name, f in figures.items():
        both = [of.get(percentile) for of in (f, calmly.get(name, {})) for percentile in ("p50", "p99", "max")]
        lines.append(f"| {name} | {' | '.join('' if figure is None else f'{figure:.0f}' for figure in both)} |")
    count, calm_count = (len(of["event to prediction read"]) for of in (found, calm))
    cost = f"worker {share:.0%} of one core, at most {peak:.0f} MB; the feed was at most {feed.late_ms:.0f} ms late"
    lines += ["", f"{options.symbols:,} symbols x 1 s, {count:,} predictions; {cost}"]
    lines.append(f"quiet: {calm_count:,} predictions of seconds in which, and {QUIET_S} s before, the host took less than {QUIET:.0%} of the processors")
    data = {"symbols": options.symbols, "seconds": options.seconds, "predictions": count, "ms": figures, "quiet_ms": calmly, "quiet": calm_count}
    data |= {"cpu_share": share, "rss_mb": peak, "feed_late_ms": feed.late_ms}
    return "\n".join(lines) + "\n", data


# -- growth, recovery, a day, two workers -----------------------------------


def _bytes(reader: Reader, topic: str) -> int:
    return sum(len(message.value() or b"") + len(message.key() or b"") for message in reader.messages(topic))


def _startup(on: Broker, contender: Contender) -> float:
    """CPU of a run over next to nothing."""
    log = loaded(on, 3_000, 1_000, 0)
    clear(on, contender)
    folder = _folder("start")
    try:
        return once(Place(on, log, PREFIX, folder), contender, 120).cpu_s
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def growth(options: argparse.Namespace) -> Result:
    """CPU a tick, peak memory and changelog bytes a second of the log, for each number of symbols; start-up is taken off the CPU."""
    contender = CONTENDERS["line-no-archive"]
    rows: list[dict[str, Any]] = []
    with broker(options.broker) as on:
        start = _startup(on, contender)
        for symbols in (int(part) for part in options.symbols.split(",")):
            ticks = max(options.ticks // symbols, 5) * symbols if symbols > 100 else options.ticks // 5 // symbols * symbols
            log = loaded(on, ticks, symbols, 0)
            clear(on, contender)
            folder = _folder("growth")
            cost = once(Place(on, log, PREFIX, folder), contender, 600)
            reader = Reader(on)
            changelogs = {
                name.removesuffix("-changelog").rpartition("-")[2]: _bytes(reader, name) / log.seconds
                for name in on.topics() if name.endswith("-changelog")
            }  # fmt: skip
            reader.close()
            shutil.rmtree(folder, ignore_errors=True)
            rows.append({
                "symbols": symbols, "ticks": log.ticks, "seconds": log.seconds, "cpu_us_a_tick": (cost.cpu_s - start) / log.ticks * 1e6,
                "rss_mb": cost.rss_mb, "changelog_bytes_a_second": changelogs,
            })  # fmt: skip
            say(f"{symbols:,} symbols: {rows[-1]['cpu_us_a_tick']:.1f} us a tick, {cost.rss_mb:.0f} MB")
    lines = ["| symbols | ticks | us CPU a tick | peak MB | changelog bytes a second |", "| ---: | ---: | ---: | ---: | --- |"]
    for row in rows:
        logs = ", ".join(f"{name} {size:,.0f}" for name, size in row["changelog_bytes_a_second"].items())
        lines.append(f"| {row['symbols']:,} | {row['ticks']:,} | {row['cpu_us_a_tick']:.1f} | {row['rss_mb']:.0f} | {logs} |")
    return "\n".join(lines) + "\n", {"startup_cpu_s": start, "rows": rows}


def recovery(options: argparse.Namespace) -> Result:
    """How long a worker that is started again takes until it is ready, with the state of `seconds` of a log."""
    contender = CONTENDERS["line-windows"]
    with broker(options.broker) as on:
        log = loaded(on, options.symbols * options.seconds, options.symbols, 0, thin_s=options.thin)
        clear(on, contender)
        folder = _folder("recovery")
        place = Place(on, log, PREFIX, folder)
        once(place, contender, max(900, log.ticks / SLOWEST))
        say("state is there; starting again")
        command = [part if part != "warn" else "info" for part in contender.command(place)]
        with Process(command, contender.environment(place), folder / "again.log") as worker:
            wait(lambda: worker.ended() or "] ready: " in worker.log.read_text(errors="replace"), 120, "the second worker is ready")
            ready_s, cpu = time.monotonic() - worker.begun, cpu_of(worker.pid)
            worker.stop()
        size = 0
        reader = Reader(on)
        for name in on.topics():
            if name.endswith("aggregate-changelog"):
                size = _bytes(reader, name)
        reader.close()
        shutil.rmtree(folder, ignore_errors=True)
    text = (
        f"{options.symbols:,} symbols, {log.seconds:,} s of log, {log.ticks:,} ticks, {size / 1e6:.0f} MB of aggregate's changelog: "
        f"{ready_s:.2f} s from the start of the process to ready ({cpu:.2f} s CPU)\n"
    )
    data = {"symbols": options.symbols, "seconds": log.seconds, "ticks": log.ticks, "changelog_bytes": size}
    return text, data | {"start_to_ready_s": ready_s, "cpu_s": cpu}


def day(options: argparse.Namespace) -> Result:
    """CPU of the full line over a recorded day that `stockstream replay` has published."""
    contender = CONTENDERS["line"]
    with broker(options.broker) as on:
        folder = _folder("day")
        on.create(PREFIX + "ticks.raw")
        place = Place(on, Log(PREFIX + "ticks.raw", 0, 0, 0, 0), PREFIX, folder)
        run = "import sys; from stockstream.cli import main; sys.argv[0] = 'stockstream'; sys.exit(main())"
        order = [sys.executable, "-c", run, "replay", str(options.trades), "--yes"]
        with Process(order, line_environment(place), folder / "replay.log") as publisher:
            wait(publisher.ended, 300, "the day is published")
            if publisher.status:
                raise BenchmarkError(f"replay: {publisher.tail()}")
        reader = Reader(on)
        ticks = sum(reader.ends(place.raw).values())
        say(f"{ticks:,} records published")
        last, since = -1, 0.0

        def progress() -> float:
            nonlocal last, since
            if CONTENDERS["line-windows"].progress(place, reader) < 1.0:
                return 0.0
            now = sum(reader.ends(PREFIX + "predictions").values()) + sum(reader.ends(PREFIX + "outcomes").values())
            if now != last:
                last, since = now, time.monotonic()
            return 1.0 if time.monotonic() - since > 1.0 else 0.9

        clear(on, contender)
        cost = measure(Process(contender.command(place), contender.environment(place), folder / "line.log"), progress, ends_itself=False, timeout_s=600)
        predictions = sum(reader.ends(PREFIX + "predictions").values())
        reader.close()
        shutil.rmtree(folder, ignore_errors=True)
    figures = f"{cost.cpu_s:.2f} s of one core, start-up and end included, {cost.wall_s:.1f} s, {cost.rss_mb:.0f} MB"
    data = {"file": options.trades.name, "records": ticks, "predictions": predictions}
    data |= {"cpu_s": cost.cpu_s, "wall_s": cost.wall_s, "rss_mb": cost.rss_mb}
    return f"{options.trades.name}: {ticks:,} records, {predictions:,} predictions: {figures}\n", data


def workers(options: argparse.Namespace) -> Result:
    """Two workers of one group against one, on the same log: CPU a tick without start-up, web tails off."""
    contender, one, two = CONTENDERS["line"], [], []
    with broker(options.broker) as on:
        start = _startup(on, contender)
        log = loaded(on, options.ticks, 1_000, 0)
        for _ in range(options.repeat):
            clear(on, contender)
            folder = _folder("workers")
            one.append((once(Place(on, log, PREFIX, folder), contender, 600).cpu_s - start) / log.ticks * 1e6)
            shutil.rmtree(folder, ignore_errors=True)
            clear(on, contender)
            folder = _folder("workers")
            place = Place(on, log, PREFIX, folder)
            reader = Reader(on)
            environment = contender.environment(place)
            command = [*FAUST, "--without-web"]
            with Process(command, environment, folder / "1.log") as first, Process(command, environment, folder / "2.log") as second:
                wait(lambda: first.ended() or second.ended() or contender.progress(place, reader) >= 1.0, 600, "two workers are done")  # noqa: B023
                for process in (first, second):
                    if process.ended():
                        raise BenchmarkError(f"a worker ended: {process.tail()}")
                first.stop()
                second.stop()
                two.append((first.cpu_s + second.cpu_s - 2 * start) / log.ticks * 1e6)
            reader.close()
            shutil.rmtree(folder, ignore_errors=True)
            say(f"one {one[-1]:.1f}, two {two[-1]:.1f} us a tick")
    more = statistics.median(two) / statistics.median(one) - 1
    text = f"| workers | us CPU a tick, start-up taken off |\n| --- | ---: |\n| one | {spread(one, '.1f')} |\n| two | {spread(two, '.1f')} |\n"
    text += f"\ntwo against one: {more:+.1%}\n"
    return text, {"ticks": options.ticks, "startup_cpu_s": start, "one_us": one, "two_us": two, "more": more}


# -- profile ----------------------------------------------------------------


def profile(options: argparse.Namespace) -> Result:
    """Where a contender's time goes, by sampling its threads while they hold or want the processor (py-spy)."""
    contender = CONTENDERS[options.contender]
    spy = site_of("py-spy") / "bin" / "py-spy"
    out = cache() / f"profile-{contender.name}.txt"
    with broker(options.broker) as on:
        log = loaded(on, options.ticks, 1_000, options.frames)
        clear(on, contender)
        folder = _folder("profile")
        place = Place(on, log, PREFIX, folder)
        reader = Reader(on)
        process = Process(contender.command(place), contender.environment(place), folder / "line.log")
        order = [str(spy), "record", "-p", str(process.pid), "-r", "100", "-d", "900", "-f", "raw", "-t", "-o", str(out)]
        sampler = subprocess.Popen(order, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=ROOT)
        try:
            measure(process, lambda: contender.progress(place, reader), ends_itself=contender.ends_itself, timeout_s=900)
        finally:
            sampler.wait(30)
            reader.close()
            shutil.rmtree(folder, ignore_errors=True)
    alone: collections.Counter[str] = collections.Counter()
    within: collections.Counter[str] = collections.Counter()
    total = 0
    for line in out.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if frames[-1].startswith(("_worker (concurrent", "EpollSelector.select")):
            continue                                                    # a thread that waits for work
        name = "imports" if any("_find_and_load" in frame for frame in frames) else frames[-1]
        total += int(count)
        alone[name] += int(count)
        for frame in set(frames):
            within[re.sub(r":\d+\)$", ")", frame)] += int(count)
    ours = [(frame, count) for frame, count in within.most_common(400) if re.search(r"stockstream/|agents/|models/|tables/|aiokafka/|benchmarks/", frame)]
    lines = ["| with what it calls | share |", "| --- | ---: |", *(f"| `{frame}` | {count / total:.1%} |" for frame, count in ours[:45])]
    lines += ["", "| by itself | share |", "| --- | ---: |", *(f"| `{frame}` | {count / total:.1%} |" for frame, count in alone.most_common(30))]
    return "\n".join(lines) + "\n", {"contender": contender.name, "samples": total}

"""What archiving costs a worker, what rate it holds, and how soon after its tick a row of an archive on S3 can be queried."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import numpy as np
from botocore.exceptions import BotoCoreError, ClientError

from benchmarks.brokers import Broker, broker
from benchmarks.contenders import CONTENDERS, Place, line_environment
from benchmarks.environments import BenchmarkError
from benchmarks.load import Log
from benchmarks.outputs import Reader
from benchmarks.processes import TICK_S, Process, wait
from benchmarks.run import PREFIX, clear, say
from stockstream.errors import ArchiveError
from stockstream.records import WINDOWS_SCHEMA
from stockstream.research import Archive
from stockstream.settings import load_settings
from stockstream.sinks.archive.compactor import EVERY_S
from stockstream.sql.errors import SqlError
from stockstream.transforms.frames import decode

WAYS: dict[str, tuple[str, dict[str, str] | None]] = {
    "none": ("without archive", None),
    "ticks": ("raw and ticks only", {"STOCKSTREAM_ARCHIVE_TOPICS": "none"}),
    "all": ("archive as by default", {}),
}
"""Contenders, each with the settings that it has besides the archive's own; None: no archive."""
SHARE, HELD, FRESH_S = 0.15, 100_000, 5.0
"""The aims: of the line's CPU, ticks a second, and seconds beyond STOCKSTREAM_ARCHIVE_FLUSH_S."""
SETTLE_S = 8.0
"""Seconds of live ticks before anything counts."""
BEHIND_S = 3.0
"""A worker holds a rate if it is at most so far behind at the end, by whole seconds of its windows, of which up to two are on their way."""
KEY = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark", "AWS_EC2_METADATA_DISABLED": "true"}
VIEWS = {"ticks": "epoch_ms(event_time)", "windows": "second * 1000 + 1000", "predictions": "epoch_ms(as_of)"}
"""By view: the time of a row in ms, that of windows and predictions at the end of their second."""


@dataclass(frozen=True, slots=True)
class Spent:
    """CPU seconds of a worker, and of the children that it has waited for."""

    own: float
    children: float


def spent(pid: int) -> Spent:
    """Since the process began."""
    fields = [int(field) * TICK_S for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    return Spent(fields[0] + fields[1], fields[2] + fields[3])


class Live:
    """One worker of the line with live ticks at a rate. Use as a context: nothing is left running."""

    def __init__(self, on: Broker, rate: int, seconds: int, symbols: int, settings: dict[str, str] | None) -> None:
        self._on, self.rate, self._seconds, self._symbols = on, rate, seconds, symbols
        self.folder = Path(tempfile.mkdtemp(prefix="stockstream-bench-archive-"))
        self.place = Place(on, Log(PREFIX + "ticks.raw", rate * seconds, symbols, 0, 0), PREFIX, self.folder)
        self._settings = line_environment(self.place, archive=settings is not None) | (settings or {})
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Live:
        with contextlib.ExitStack() as stack:
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self._on.delete(lambda _: False)
            clear(self._on, CONTENDERS["line"])
            self._on.create(self.place.raw)
            command = [part if part != "warn" else "info" for part in CONTENDERS["line"].command(self.place)]
            self.worker = stack.enter_context(Process(command, self._settings, self.folder / "line.log"))
            wait(lambda: "] ready: " in self.worker.log.read_text(errors="replace"), 120, "the worker is ready", self.worker)
            self.reader = Reader(self._on)
            stack.callback(self.reader.close)
            order = [sys.executable, "-m", "benchmarks.load", self._on.servers, self.place.raw, "--rate", str(self.rate)]
            self.begun = time.monotonic()
            self.producer = stack.enter_context(
                Process([*order, "--seconds", str(self._seconds), "--symbols", str(self._symbols)], {}, self.folder / "load.log")
            )  # fmt: skip
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def until(self, seconds: float) -> None:
        """Waits until so many seconds of live ticks have passed. Raises `BenchmarkError` if a process has failed."""
        producer = () if self.producer.ended() and self.producer.status == 0 else (self.producer,)
        wait(lambda: time.monotonic() >= self.begun + seconds, seconds + 60, "time passes", self.worker, *producer)

    def processed(self) -> tuple[int, int]:
        """Ticks that are in the log, and those of them that windows account for."""
        raw = self.reader.ends(self.place.raw)
        last = self.reader.last(self.place.output, self.reader.ends(self.place.output))
        return sum(raw.values()), sum(decode(record.value(), WINDOWS_SCHEMA).through + 1 for record in last.values())

    def offered(self) -> dict[str, float]:
        """What the producer did, once it has ended."""
        wait(self.producer.ended, 120, "the producer has sent everything", self.worker)
        if self.producer.status:
            raise BenchmarkError(f"load: {self.producer.tail()}")
        found: dict[str, float] = json.loads(self.producer.log.read_text().splitlines()[-1])
        return found

    def caught_up(self, timeout_s: float) -> float:
        """Waits until all ticks are in windows, but those of the last seconds that nothing closes. Returns ticks a second meanwhile."""
        begun, (total, first) = time.monotonic(), self.processed()
        done = first
        while done < total - 2 * self.rate:
            if time.monotonic() > begun + timeout_s or self.worker.ended():
                raise BenchmarkError(f"after {timeout_s:.0f} s {total - done:,} ticks are not processed: {self.worker.tail()}")
            time.sleep(0.5)
            done = self.processed()[1]
        return (done - first) / (time.monotonic() - begun)


def cost(on: Broker, name: str, rate: int, seconds: int, symbols: int) -> dict[str, Any]:
    """CPU and lag of one contender over `seconds` of live ticks."""
    with Live(on, rate, int(seconds + SETTLE_S) + 3, symbols, WAYS[name][1]) as live:
        live.until(SETTLE_S)
        before, began, (raw, done) = spent(live.worker.pid), time.monotonic(), live.processed()
        live.until(SETTLE_S + seconds)
        after, wall_s, (raw_end, done_end) = spent(live.worker.pid), time.monotonic() - began, live.processed()
        offered = live.offered()
        compacting = compaction(live) if WAYS[name][1] == {} else 0.0
    own, ticks, behind_s = after.own - before.own, max(1, done_end - done), [(raw - done) / rate, (raw_end - done_end) / rate]
    found = {
        "way": name, "cpu_s": own, "wall_s": wall_s, "ticks": ticks, "us_a_tick": own / ticks * 1e6, "children_cpu_s": after.children - before.children,
        "behind_s": behind_s, "offered": offered, "compaction_us_a_tick": compacting,
    }  # fmt: skip
    say(f"{WAYS[name][0]}: {own:.2f} s CPU in {wall_s:.0f} s, {own / ticks * 1e6:.2f} us a tick, {behind_s[1]:.1f} s behind")
    return found


def compaction(live: Live) -> float:
    """Ends the worker and compacts what it has archived, as the next hour would. Returns CPU us a tick, the command's start-up included."""
    live.worker.stop()
    url = f"file://{live.folder}/archive"
    with Process([sys.executable, "-m", "stockstream.cli", "compact", "--archive", url, "--all"], {}, live.folder / "compact.log") as command:
        wait(command.ended, 120, "the archive is compacted")
        if command.status:
            raise BenchmarkError(f"compact: {command.tail()}")
    return command.cpu_s / int(Archive(url).sql("SELECT count(*) AS ticks FROM ticks").df()["ticks"][0]) * 1e6


def holds(on: Broker, rate: int, seconds: int, symbols: int) -> dict[str, Any]:
    """Whether a worker with its archive keeps up with a rate, and how fast it catches up if it does not."""
    with Live(on, rate, int(seconds + SETTLE_S), symbols, {}) as live:
        live.until(SETTLE_S)
        began, (raw, done) = time.monotonic(), live.processed()
        live.until(SETTLE_S + seconds - 1)
        wall_s, (raw_end, done_end) = time.monotonic() - began, live.processed()
        behind = [(raw - done) / rate, (raw_end - done_end) / rate]
        offered = live.offered()
        catching_up = live.caught_up(180) if behind[1] > BEHIND_S else 0.0
    offered_rate, rate_done = (raw_end - raw) / wall_s, (done_end - done) / wall_s
    held = behind[1] <= BEHIND_S and offered_rate > 0.97 * rate
    then = f", then {catching_up:,.0f}" if catching_up else ""
    say(f"{rate:,} ticks/s: {offered_rate:,.0f} offered, {rate_done:,.0f} processed, {behind[1]:.1f} s behind{then}")
    return {
        "rate": rate, "offered_rate": offered_rate, "processed_rate": rate_done, "behind_s": behind, "catching_up_rate": catching_up, "offered": offered,
        "held_live": held,
    }  # fmt: skip


@contextlib.contextmanager
def s3(folder: Path) -> Iterator[dict[str, str]]:
    """moto's server in a process of its own, with a bucket. Yields the settings of whoever uses it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    endpoint = f"http://127.0.0.1:{port}"
    with Process([sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)], {}, folder / "s3.log") as server:
        client = boto3.client(
            "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id=KEY["AWS_ACCESS_KEY_ID"], aws_secret_access_key=KEY["AWS_SECRET_ACCESS_KEY"]
        )  # fmt: skip

        def there() -> bool:
            try:
                client.create_bucket(Bucket="bucket")
            except (BotoCoreError, ClientError):
                return False
            return True

        wait(there, 60, "the S3 server answers", server)
        yield {"STOCKSTREAM_ARCHIVE": "s3://bucket/archive", "STOCKSTREAM_S3_ENDPOINT": endpoint, **KEY}


class Freshness:
    """Asks for the rows of a view that were not there before, and notes how old they are once the answer has come."""

    def __init__(self, archive: Archive, view: str) -> None:
        self._archive, self._view, self._time = archive, view, VIEWS[view]
        self._seen: dict[int, int] = {}
        self.ages_s: list[float] = []
        self.query_s = 0.0

    def ask(self) -> None:
        """One query. Raises what `Archive.sql` raises."""
        new = " OR ".join(f"(part = {part} AND place > {place})" for part, place in self._seen.items())
        known = f"OR part NOT IN ({', '.join(map(str, self._seen))})" if self._seen else ""
        rows_of = f'SELECT "partition" AS part, "offset" AS place, {self._time} AS at FROM {self._view}'
        sql = f"SELECT * FROM ({rows_of})" + (f" WHERE {new} {known}" if new else "")
        begun = time.monotonic()
        rows = self._archive.sql(sql).df()
        now_ms, self.query_s = time.time() * 1000, max(self.query_s, time.monotonic() - begun)
        self.ages_s += ((now_ms - rows["at"].to_numpy(dtype=np.float64)) / 1000).tolist()
        self._seen |= {int(part): int(place) for part, place in rows.groupby("part")["place"].max().items()}


def fresh(on: Broker, rate: int, seconds: int, symbols: int) -> dict[str, Any]:
    """How old rows of an archive on S3 are when a query first returns them."""
    with tempfile.TemporaryDirectory(prefix="stockstream-bench-s3-") as folder, s3(Path(folder)) as settings:
        before = {name: os.environ.get(name) for name in KEY}
        os.environ |= KEY
        try:
            with Live(on, rate, seconds, symbols, settings) as live, Archive(
                settings["STOCKSTREAM_ARCHIVE"], s3_endpoint=settings["STOCKSTREAM_S3_ENDPOINT"], aws_region="us-east-1"
            ) as archive:
                views = {view: Freshness(archive, view) for view in VIEWS}
                while time.monotonic() < live.begun + seconds:
                    for view in views.values():
                        try:
                            view.ask()
                        except SqlError:
                            raise
                        except ArchiveError as error:                    # there may be no object yet
                            if view.ages_s:
                                raise BenchmarkError(str(error)) from error
                    live.until(time.monotonic() - live.begun + 0.2)
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
    found = {
        name: {"rows": len(of.ages_s), "p50_s": float(np.median(of.ages_s)), "worst_s": max(of.ages_s), "slowest_query_s": of.query_s}
        for name, of in views.items() if of.ages_s
    }  # fmt: skip
    if "ticks" not in found:
        raise BenchmarkError("no tick could be queried: see STOCKSTREAM_ARCHIVE_FLUSH_S")
    return {"rate": rate, "seconds": seconds, "views": found}


def archive_cost(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """All three, on one broker."""
    flush_s = load_settings().archive_flush_s
    seconds, symbols = (15, 1_000) if options.small else (options.seconds, options.symbols)
    ways: list[dict[str, Any]] = []
    with broker(options.broker) as on:
        for _ in range(options.repeat):
            ways += [cost(on, name, options.rate, seconds, symbols) for name in WAYS]
        held = holds(on, HELD, min(seconds, 30), symbols)
        freshness = fresh(on, options.s3_rate, int(flush_s) + (20 if options.small else 50), symbols)
    return table(ways, held, freshness, flush_s), {"rate": options.rate, "symbols": symbols, "flush_s": flush_s, "ways": ways, "held": held, "fresh": freshness}


def table(ways: list[dict[str, Any]], held: dict[str, Any], freshness: dict[str, Any], flush_s: float) -> str:
    """The results as Markdown, with what was aimed at."""
    by_way = {name: [one for one in ways if one["way"] == name] for name in WAYS}
    us = {name: float(np.median([one["us_a_tick"] for one in some])) for name, some in by_way.items()}
    lines = ["| worker | us CPU a tick | CPU s | of one core | archive's share | behind at the end, s |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    for name, some in by_way.items():
        cpu, wall, behind = (float(np.median(values)) for values in zip(*((o["cpu_s"], o["wall_s"], o["behind_s"][1]) for o in some), strict=True))
        share = f"{1 - us['none'] / us[name]:.1%}" if name != "none" else ""
        lines.append(f"| {WAYS[name][0]} | {us[name]:.2f} | {cpu:.2f} | {cpu / wall:.0%} | {share} | {behind:.1f} |")
    child = max(one["children_cpu_s"] for one in by_way["all"])
    compacting = max(one["compaction_us_a_tick"] for one in by_way["all"])
    lines += ["", f"aim: at most {SHARE:.0%}. Compaction comes besides, at the lowest priority: {child:.1f} s of CPU every {EVERY_S:.0f} s to look for work, "
              f"and {compacting:.2f} us a tick once an hour"]  # fmt: skip
    state = "held" if held["held_live"] else "not held live"
    lines += ["", f"{held['rate']:,} ticks/s: {state}; {held['offered_rate']:,.0f} offered, {held['processed_rate']:,.0f} processed a second, "
              f"{held['behind_s'][0]:.1f} s behind at first, {held['behind_s'][1]:.1f} s at the end"]  # fmt: skip
    if held["catching_up_rate"]:
        lines.append(f"catching up afterwards, without the producer: {held['catching_up_rate']:,.0f} ticks/s")
    lines += ["", "| rows on S3 | rows | age when first returned, p50 s | worst s | slowest query s |", "| --- | ---: | ---: | ---: | ---: |"]
    for view, of in freshness["views"].items():
        lines.append(f"| {view} | {of['rows']:,} | {of['p50_s']:.1f} | {of['worst_s']:.1f} | {of['slowest_query_s']:.1f} |")
    return "\n".join([*lines, "", f"{freshness['rate']:,} ticks/s; aim: {flush_s + FRESH_S:g} s at the latest"]) + "\n"

"""Hostile input in-process: `python -m tests.fuzz --inputs 1000000 --seed 7`. Exit status 1 where anything but a documented error came out.

The inputs run in child processes, so that a segmentation fault, an endless loop and memory without bound are noticed too. The report names the batch; `--batch`
runs it again, alone, and keeps its last input in a file.
"""

from __future__ import annotations

import argparse
import faulthandler
import importlib
import logging
import secrets
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from pathlib import Path

import msgspec

ROOT = Path(__file__).resolve().parents[2]
TARGETS = "tests.fuzz.targets"
LOOP_S = 120.0
"""A batch takes a second or two: one that takes so long is in a loop."""
GROWTH_MB = 600
"""What a process may grow by, after its first batches, over any number of inputs."""
LIMIT_MB = 6_000
"""Of data: who asks for more gets a `MemoryError`, which is a fault like any other."""
MOST_FAULTS = 20
WARM_BATCHES = 30
SAY_S = 30.0


class Report(msgspec.Struct):
    """A line from a child: a batch that is done, with the fault where there was one."""

    batch: int
    target: str
    inputs: int
    refused: int
    fault: str = ""
    rss_mb: int = 0


class Fuzzing:
    """`inputs` inputs of `seed`, by `jobs` processes at once; `faults` are one line each, with how to see it again."""

    def __init__(self, inputs: int, seed: int, *, jobs: int = 1, targets: str = TARGETS) -> None:
        self.inputs, self.seed, self.jobs, self.targets = inputs, seed, jobs, targets
        self.faults: list[str] = []
        self.counts: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.rss_mb = 0
        self.took_s = 0.0
        self._kinds: set[tuple[str, str]] = set()
        self._lock = threading.Lock()
        self._said = time.monotonic()

    def run(self, *, say: bool = True) -> list[str]:
        """Runs them all; returns the faults."""
        begun = self._said = time.monotonic()
        threads = [threading.Thread(target=self._job, args=(job, begun, say), name=f"fuzz {job}", daemon=True) for job in range(self.jobs)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.took_s = time.monotonic() - begun
        return self.faults

    @property
    def done(self) -> int:
        """Inputs that were given to a reader."""
        return self.counts.total()

    def __str__(self) -> str:
        lines = [f"{target}: {count:,} inputs, {self.refused[target]:,} refused" for target, count in sorted(self.counts.items())]
        rate = self.done / max(self.took_s, 0.001)
        whole = f"{self.done:,} inputs in {self.took_s:.0f} s ({rate:,.0f}/s), seed {self.seed}: at most {self.rss_mb} MB, {len(self.faults)} faults"
        return "\n".join([*lines, whole, *(f"FAULT {fault}" for fault in self.faults)])

    def _job(self, job: int, begun: float, say: bool) -> None:
        number = job
        while self.done < self.inputs and len(self.faults) < MOST_FAULTS:
            command = [sys.executable, "-X", "faulthandler", "-m", "tests.fuzz", "--child", "--seed", str(self.seed), "--targets", self.targets]
            command += ["--from", str(number), "--step", str(self.jobs)]
            with tempfile.TemporaryFile() as words, subprocess.Popen(command, stdout=subprocess.PIPE, stderr=words, cwd=ROOT) as process:
                assert process.stdout is not None
                for line in process.stdout:
                    report = msgspec.json.decode(line, type=Report)
                    number = report.batch + self.jobs
                    with self._lock:
                        self._count(report, begun, say)
                        enough = self.done >= self.inputs or len(self.faults) >= MOST_FAULTS
                    if enough:
                        process.kill()
                        return
                status = process.wait()
                words.seek(0)
                said = words.read().decode(errors="replace")
            with self._lock:
                self.faults.append(f"a process ended with status {status} in batch {number}: {_last(said)}\n  again: {self._again(number)}")
            number += self.jobs

    def _count(self, report: Report, begun: float, say: bool) -> None:
        self.counts[report.target] += report.inputs
        self.refused[report.target] += report.refused
        self.rss_mb = max(self.rss_mb, report.rss_mb)
        kind = report.target, report.fault.partition(": ")[0]
        if report.fault and kind not in self._kinds:
            self._kinds.add(kind)
            self.faults.append(f"{report.target}: {report.fault}\n  again: {self._again(report.batch)}")
        if say and time.monotonic() - self._said > SAY_S:
            self._said = time.monotonic()
            print(f"{self.done:,} inputs, {self.done / (self._said - begun):,.0f}/s, {self.rss_mb} MB, {len(self.faults)} faults", flush=True)

    def _again(self, batch: int) -> str:
        return f"python -m tests.fuzz --seed {self.seed} --batch {batch}" + (f" --targets {self.targets}" if self.targets != TARGETS else "")


def _last(words: str) -> str:
    """Of what a process said as it died, the part that says of what."""
    lines = [line.strip() for line in words.splitlines() if line.strip()]
    begin = next((number for number, line in enumerate(lines) if line.startswith(("Fatal", "Timeout"))), max(0, len(lines) - 6))
    return " | ".join(lines[begin : begin + 8])[:900]


def child(seed: int, targets: str, first: int, step: int, only: bool) -> None:
    """Runs batches without end, or `only` the first, and reports each on standard output."""
    from tests.fuzz.targets import Batch, batch_of

    if sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT_MB * 1_000_000, LIMIT_MB * 1_000_000))
    faulthandler.enable()
    logging.disable(logging.CRITICAL)
    chosen = importlib.import_module(targets).TARGETS
    kept = Path(tempfile.gettempdir()) / f"stockstream-fuzz-{seed}-{first}.bin"
    number, base = first, 0
    while True:
        faulthandler.dump_traceback_later(LOOP_S, exit=True)
        target, rng = batch_of(seed, number, chosen)
        batch = Batch(kept if only else None)
        fault = ""
        try:
            target.run(rng, target.size, batch)
        except Exception as error:
            fault = _fault(error)
            if only:
                traceback.print_exc()
                print(f"the last input: {kept}", file=sys.stderr)
        rss = rss_mb()
        base = max(base, rss) if number < first + step * WARM_BATCHES else base
        if rss > base + GROWTH_MB:
            fault = fault or f"memory: {rss} MB, {base} MB after the first batches"
        print(msgspec.json.encode(Report(number, target.name, batch.inputs, batch.refused, fault, rss)).decode(), flush=True)
        if only:
            break
        number += step
    faulthandler.cancel_dump_traceback_later()


def _fault(error: Exception) -> str:
    """Kind, place in our code, and message."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = next((f for f in reversed(frames) if str(ROOT) in f.filename and "/tests/" not in f.filename and "site-packages" not in f.filename), frames[-1])
    return f"{type(error).__name__} at {Path(ours.filename).name}, {ours.name}: {' '.join(ascii(str(error)).split())[:160]}"


def rss_mb() -> int:
    """Memory of this process that is in use, in MB; 0 where the system does not say."""
    place = Path("/proc/self/statm")
    return int(place.read_text().split()[1]) * 4096 // 1_000_000 if place.exists() else 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Hostile input to every reader; exit status 1 where a fault was found.")
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--jobs", type=int, default=1, help="processes at once")
    parser.add_argument("--batch", type=int, default=None, help="only this batch of the seed, in this process; its last input is kept in a file")
    parser.add_argument("--targets", default=TARGETS, help=argparse.SUPPRESS)
    parser.add_argument("--from", type=int, default=0, dest="first", help=argparse.SUPPRESS)
    parser.add_argument("--step", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    seed = chosen.seed if chosen.seed is not None else secrets.randbelow(10**6)
    if chosen.child or chosen.batch is not None:
        child(seed, chosen.targets, chosen.first if chosen.batch is None else chosen.batch, chosen.step, chosen.batch is not None)
        return 0
    fuzzing = Fuzzing(chosen.inputs, seed, jobs=chosen.jobs, targets=chosen.targets)
    fuzzing.run()
    print(fuzzing, flush=True)
    return 1 if fuzzing.faults else 0


if __name__ == "__main__":
    sys.exit(main())

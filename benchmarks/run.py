"""Contenders side by side on one broker, alternating; results are compared before any time counts."""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.brokers import Broker, broker
from benchmarks.contenders import Contender, Place
from benchmarks.environments import BenchmarkError
from benchmarks.load import Log, log_of, publish
from benchmarks.outputs import Reader, Rows, differences
from benchmarks.processes import Cost, Process, measure
from stockstream.sinks.archive.raw_objects import read_extent
from stockstream.sinks.stores import open_store

PREFIX = "bench."
SAMPLE = 25
BASE = {"full": "loop", "windows": "loop-windows"}


@dataclass(slots=True)
class Measured:
    """One contender's repetitions; `fault` where its results are not those of the others, or it could not run."""

    contender: Contender
    costs: list[Cost] = field(default_factory=list)
    fault: str = ""
    fewest: int = 0
    """Rows of the sample that were compared."""

    def rates(self, log: Log) -> list[float]:
        """Ticks a CPU second, whole process, by repetition."""
        return [log.ticks / cost.cpu_s for cost in self.costs]

    def warm(self, log: Log) -> list[float]:
        """Likewise of the second half of the work."""
        if self.contender.name.startswith("line"):
            return []                                                   # its agents take turns: half of the outputs is not half of the work
        return [log.ticks * cost.warm_part / cost.warm_cpu_s for cost in self.costs if cost.warm_cpu_s > 0 and cost.warm_part > 0.2]


def say(text: str) -> None:
    """A line for whoever waits."""
    print(text, file=sys.stderr, flush=True)


def loaded(on: Broker, ticks: int, symbols: int, frames: int, prefix: str = PREFIX, thin_s: int = 0) -> Log:
    """A log on a broker that is otherwise empty."""
    log = log_of(prefix + "ticks.raw", ticks, symbols, frames, thin_s)
    on.delete(lambda _: False)
    on.create(log.topic)
    count = publish(on.servers, log, embedded=on.embedded)
    say(f"{log.ticks:,} ticks in {count:,} records on {on.kind}")
    return log


def clear(on: Broker, contender: Contender, prefix: str = PREFIX) -> None:
    """Only the raw log and the contender's own topics, empty."""
    on.delete(lambda name: name == prefix + "ticks.raw")
    if contender.topics:
        on.create(*(prefix + name for name in contender.topics))


def side_by_side(
    on: Broker, contenders: Sequence[Contender], ticks: int, symbols: int, frames: int, repeat: int, timeout_s: float
) -> tuple[Log, list[Measured]]:
    """Every contender `repeat` times, in an order that turns with each repetition."""
    log = loaded(on, ticks, symbols, frames)
    found = {contender.name: Measured(contender) for contender in contenders}
    reference: Rows = {}
    sample = set(log.names[:: max(1, log.symbols // SAMPLE)])
    for repetition in range(repeat):
        turn = repetition % len(contenders)
        for contender in [*contenders[turn:], *contenders[:turn]]:
            measured = found[contender.name]
            if measured.fault:
                continue
            folder = Path(tempfile.mkdtemp(prefix=f"stockstream-bench-{contender.name}-"))
            try:
                clear(on, contender)
                place = Place(on, log, PREFIX, folder)
                cost = once(place, contender, timeout_s)
                if repetition == 0:
                    reader = Reader(on)
                    try:
                        rows = reader.rows(place.output, sample)
                    finally:
                        reader.close()
                    reference = reference or rows
                    check(place, measured, reference, rows, len(sample))
                measured.costs.append(cost)
                rate = f"{log.ticks / cost.cpu_s:,.0f} ticks/CPU-s, {cost.cpu_s:.2f} s CPU"
                say(f"{repetition + 1}/{repeat} {contender.name}: {rate}, {cost.wall_s:.2f} s, {cost.rss_mb:.0f} MB")
            except BenchmarkError as error:
                measured.fault = str(error)
                say(f"{contender.name}: {error}")
            finally:
                shutil.rmtree(folder, ignore_errors=True)
        say(table(log, list(found.values())))                           # what there is so far, should somebody end us
    return log, list(found.values())


def once(place: Place, contender: Contender, timeout_s: float) -> Cost:
    """One run, from an empty broker to complete and confirmed outputs."""
    command, environment = contender.command(place), contender.environment(place)
    reader = Reader(place.broker)
    try:
        process = Process(command, environment, place.folder / f"{contender.name}.log")
        return measure(process, lambda: contender.progress(place, reader), ends_itself=contender.ends_itself, timeout_s=timeout_s)
    finally:
        reader.close()


def check(place: Place, measured: Measured, reference: Rows, rows: Rows, symbols: int) -> None:
    """Raises `BenchmarkError` where rows are missing or differ, or the archive has not all records."""
    wanted = symbols * (place.log.seconds - 1)
    if len(rows) < wanted:
        raise BenchmarkError(f"{measured.contender.name}: {len(rows)} rows of the sample, {wanted} must be there")
    faults = differences(reference, rows)
    if faults:
        raise BenchmarkError(f"{measured.contender.name}: {len(faults)} figures differ: {faults[0]}")
    measured.fewest = len(rows)
    archive = place.folder / "archive"
    if archive.is_dir():
        store = open_store(f"file://{archive}")
        names = [str(path.relative_to(archive)) for path in archive.glob("raw/**/*.zst")]
        archived = sum(read_extent(store, name).count for name in names)
        reader = Reader(place.broker)
        records = sum(reader.ends(place.raw).values())
        reader.close()
        if archived != records:
            raise BenchmarkError(f"{measured.contender.name}: the archive holds {archived} of {records} records")


def spread(values: Sequence[float], form: str = ",.0f") -> str:
    """Median and range."""
    if not values:
        return ""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}} to {max(values):{form}})"


def ratio(values: Sequence[float], base: Sequence[float]) -> float | None:
    """Of the medians."""
    return statistics.median(values) / statistics.median(base) if values and base else None


def table(log: Log, results: Sequence[Measured]) -> str:
    """The results as Markdown; ratios are of ticks a CPU second to (c) of the same job."""
    bases = {job: next((m.rates(log) for m in results if m.contender.name == name), []) for job, name in BASE.items()}
    bases["no-archive"] = next((m.rates(log) for m in results if m.contender.name == "loop-no-archive"), [])
    lines = ["| contender | ticks a CPU-second | warm half | CPU s | wall s | peak MB | to (c) |", "| --- | ---: | ---: | ---: | ---: | ---: | ---: |"]
    for measured in results:
        if measured.fault:
            lines.append(f"| {measured.contender.title} | {measured.fault.replace('|', '/')[:200]} | | | | | |")
            continue
        job = "no-archive" if measured.contender.name == "line-no-archive" and bases["no-archive"] else measured.contender.job
        rates, part = measured.rates(log), ratio(measured.rates(log), bases[job])
        lines.append(
            f"| {measured.contender.title} | {spread(rates)} | {spread(measured.warm(log))} | {spread([c.cpu_s for c in measured.costs], '.2f')} "
            f"| {spread([c.wall_s for c in measured.costs], '.2f')} | {spread([c.rss_mb for c in measured.costs])} | {'' if part is None else f'{part:.2f}'} |"
        )
    return "\n".join(lines)


def as_json(on: str, log: Log, results: Sequence[Measured]) -> dict[str, Any]:
    """The same, with every repetition."""
    return {
        "broker": on, "ticks": log.ticks, "symbols": log.symbols, "frames": log.frames,
        "contenders": [
            {
                "name": m.contender.name, "title": m.contender.title, "job": m.contender.job, "keeps_state": m.contender.keeps_state, "fault": m.fault,
                "rows_compared": m.fewest, "ticks_per_cpu_s": m.rates(log), "warm_ticks_per_cpu_s": m.warm(log),
                "cpu_s": [c.cpu_s for c in m.costs], "wall_s": [c.wall_s for c in m.costs], "rss_mb": [c.rss_mb for c in m.costs],
            }
            for m in results
        ],
    }  # fmt: skip


def run(kind: str, contenders: Sequence[Contender], ticks: int, symbols: int, frames: int, repeat: int, timeout_s: float) -> tuple[str, dict[str, Any]]:
    """Markdown and JSON of one comparison."""
    with broker(kind) as on:
        log, results = side_by_side(on, contenders, ticks, symbols, frames, repeat, timeout_s)
    shape = f"frames of {frames}" if frames else "single ticks"
    head = f"{log.ticks:,} ticks of {log.symbols:,} symbols, {shape}, {kind}, {repeat} repetitions, alternating"
    return f"{head}\n\n{table(log, results)}\n", as_json(kind, log, results)

"""SQL over an archive of one day: how fast, how large, and what a compaction costs.

Beside the product stand plain DuckDB over one sorted Parquet file, which is the limit, and over the raw messages as JSON lines, which is what people do.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq

from benchmarks.archive_day import DATE, Day, workers, write_archive
from benchmarks.archive_layouts import OTHERS, merge, rows_of, write_layouts
from benchmarks.environments import BenchmarkError
from benchmarks.processes import Process, peak_mb
from benchmarks.run import say
from stockstream.sinks.archive.processed import ROW_GROUP
from stockstream.sinks.stores import FileStore
from stockstream.sql.cookbook import recipes
from stockstream.sql.duckdb_engine import DuckdbEngine

DAY = f"date = DATE '{DATE:%Y-%m-%d}'"
HOUR = 15
"""The hour whose compaction is measured, and whose messages are the JSON lines."""
HOUR_FOLDER = f"processed/ticks/date={DATE:%Y-%m-%d}/hour={HOUR}"
_OHLCV = f"""SELECT symbol, min_by(price, event_time) AS open, max(price) AS high, min(price) AS low, max_by(price, event_time) AS close,
       sum(size) AS volume, sum(price * size) / sum(size) AS vwap, count(*) AS ticks
FROM ticks WHERE symbol = '{{symbol}}' AND {DAY} GROUP BY symbol"""
_MOVERS = f"""SELECT symbol, min_by(price, event_time) AS first_price, max_by(price, event_time) AS last_price,
       (max_by(price, event_time) / min_by(price, event_time) - 1) * 100 AS change_percent, sum(size) AS volume
FROM ticks WHERE {DAY} GROUP BY symbol ORDER BY abs(change_percent) DESC, symbol LIMIT 10"""
AIMS = {"bytes a tick": 12.0, "compaction s": 4.0, "compaction MB": 1_500.0}
PRODUCT, LIMIT, LINES = "stockstream", "one sorted file", "JSON lines"
Rows = Sequence[tuple[Any, ...]]


@dataclass(frozen=True, slots=True)
class Question:
    """`aim_ms`: for the median of the warm repetitions through the product. `ticks`: it reads ticks only, so that JSON lines can answer it."""

    title: str
    sql: str
    aim_ms: float | None = None
    ticks: bool = False


def questions(day: Day) -> dict[str, Question]:
    """What is asked. The cookbook's queries have the names that they have there."""
    median = day.names[day.symbols // 2]
    found = {
        "symbol-ticks": Question(f"{median}'s day from its ticks (the median symbol)", _OHLCV.format(symbol=median), 25.0, True),
        "busiest-ticks": Question("AAPL's day from its ticks (the busiest symbol)", _OHLCV.format(symbol="AAPL"), 25.0, True),
        "movers-ticks": Question("top movers of the day from all ticks", _MOVERS, 400.0, True),
    }
    aims = {"day": 25.0, "top_movers": 400.0}
    cookbook = {recipe.name: recipe for recipe in recipes()}
    for name in ("day", "top_movers", "bars_5m", "volatility", "correlation", "coverage", "largest_trades"):
        found[name] = Question(f"`{name}`: {cookbook[name].title[0].lower()}{cookbook[name].title[1:]}", cookbook[name].sql, aims.get(name))
    return found


@dataclass(slots=True)
class Timed:
    """Repetitions of one question by one contender, in ms. `first`: from the opening of the engine; `warm`: on one that is open; `cpu`: CPU time of those."""

    first: list[float] = field(default_factory=list)
    warm: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.warm)


class Plain:
    """DuckDB as it comes, with views that have the names of the product's."""

    def __init__(self, views: dict[str, str]) -> None:
        self._connection = duckdb.connect(config={"memory_limit": "4GB"})
        for name, sql in views.items():
            self._connection.execute(f"CREATE VIEW {name} AS {sql}")

    def rows(self, sql: str) -> Rows:
        return self._connection.execute(sql).fetchall()

    def close(self) -> None:
        self._connection.close()


class Product:
    """The engine of `stockstream query`."""

    def __init__(self, archive: Path) -> None:
        self._engine = DuckdbEngine(FileStore(archive))

    def rows(self, sql: str) -> Rows:
        return self._engine.run(sql).fetch()[0]

    def close(self) -> None:
        self._engine.close()


Opened = Callable[[], Plain | Product]


def side_by_side(contenders: dict[str, Opened], sql: str, repeat: int, firsts: int = 3) -> dict[str, Timed]:
    """Each contender `firsts` times from its opening on, then `repeat` times on an open one, in turn. Raises `BenchmarkError` if their rows differ."""
    found = {name: Timed() for name in contenders}
    reference: Rows | None = None
    open_: dict[str, Plain | Product] = {}
    try:
        for number in range(firsts):
            for name, opened in contenders.items():
                begun = time.perf_counter()
                contender = opened()
                rows = contender.rows(sql)
                found[name].first.append((time.perf_counter() - begun) * 1e3)
                if number == firsts - 1:
                    open_[name] = contender
                else:
                    contender.close()
                if reference is not None and not same(reference, rows):
                    raise BenchmarkError(f"{name} answers {rows[:1]} of {len(rows)} rows, {next(iter(contenders))} {reference[:1]} of {len(reference)}: {sql}")
                reference = rows
        for _ in range(repeat):
            for name, contender in open_.items():
                begun, cpu = time.perf_counter(), time.process_time()
                contender.rows(sql)
                found[name].warm.append((time.perf_counter() - begun) * 1e3)
                found[name].cpu.append((time.process_time() - cpu) * 1e3)
    finally:
        for contender in open_.values():
            contender.close()
    return found


def same(left: Rows, right: Rows) -> bool:
    """Whether two results have the same rows, numbers within 1e-9."""
    return len(left) == len(right) and all(
        a == b or (isinstance(a, float) and math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9))
        for one, other in zip(left, right, strict=True) for a, b in zip(one, other, strict=True)
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Child:
    """What a process cost, from its first instruction to its last, and what it wrote."""

    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str


def run_child(folder: Path, *arguments: str) -> Child:
    """Runs `stockstream` with these arguments. Raises `BenchmarkError` if it fails."""
    peak = 0.0
    with Process([sys.executable, "-m", "stockstream.cli", *arguments], {"PYTHONDONTWRITEBYTECODE": "1"}, folder / "child.log") as process:
        while not process.ended():
            peak = max(peak, peak_mb(process.pid))
            time.sleep(0.005)
        wall_s = time.monotonic() - process.begun
        if process.status:
            raise BenchmarkError(f"stockstream {arguments[0]} ended with status {process.status}: {process.tail()}")
        return Child(wall_s, process.cpu_s, peak, process.log.read_text())


def compactions(archive: Path, folder: Path, repeat: int) -> tuple[int, list[Child]]:
    """Compacts the small objects of an hour `repeat` times, each time in a process of its own. Returns the number of rows too."""
    costs, rows = [], 0
    for _ in range(repeat):
        copy = folder / "hour"
        shutil.copytree(archive / HOUR_FOLDER, copy / HOUR_FOLDER, copy_function=os.link)
        cost = run_child(folder, "compact", "--archive", str(copy), "--all", "--json")
        rows = sum(one["rows"] for one in json.loads(cost.output.splitlines()[-1])["folders"])
        costs.append(cost)
        shutil.rmtree(copy)
    return rows, costs


def size_of(place: Path) -> tuple[int, int]:
    """Number of files below a folder, and their bytes."""
    sizes = [path.stat().st_size for path in place.rglob("*") if path.is_file()] if place.is_dir() else [place.stat().st_size]
    return len(sizes), sum(sizes)


def json_lines(archive: Path, target: Path) -> int:
    """Writes the messages of the hour as they were published, one a line; returns how many."""
    count = 0
    with DuckdbEngine(FileStore(archive)) as engine, target.open("w") as file:
        for (value,) in engine.run(f"SELECT value FROM raw WHERE {DAY} AND hour = {HOUR}").rows():
            file.write(value)
            file.write("\n")
            count += 1
    return count


def ticks_of_lines(lines: Path) -> str:
    """SQL of the ticks in JSON lines."""
    columns = "{'symbol': 'VARCHAR', 'event_time': 'BIGINT', 'price': 'DOUBLE', 'size': 'DOUBLE', 'source': 'VARCHAR', 'exchange': 'VARCHAR'}"
    rows = f"read_json('{lines}', format='newline_delimited', columns={columns})"
    return f"SELECT * REPLACE (make_timestamp_ms(event_time) AS event_time), DATE '{DATE:%Y-%m-%d}' AS date FROM {rows}"


@contextmanager
def stage(name: str, stages: dict[str, Any]) -> Iterator[None]:
    """Notes how long a part of the benchmark took, with its CPU, and the load of the machine at its beginning."""
    load, begun, cpu = os.getloadavg()[0], time.monotonic(), _cpu()
    say(f"{name} (load {load:.1f})")
    yield
    stages[name] = {"wall_s": time.monotonic() - begun, "cpu_s": _cpu() - cpu, "load_before": load}


def _cpu() -> float:
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime


@dataclass(slots=True)
class Found:
    """All figures of a run. Sizes are (objects, bytes)."""

    ticks: int = 0
    symbols: int = 0
    stages: dict[str, Any] = field(default_factory=dict)
    sizes: dict[str, tuple[int, int]] = field(default_factory=dict)
    layouts: dict[str, dict[str, Timed]] = field(default_factory=dict)
    hour_rows: int = 0
    compactions: list[Child] = field(default_factory=list)
    queries: dict[str, dict[str, Timed]] = field(default_factory=dict)
    commands: dict[str, list[Child]] = field(default_factory=dict)
    lines: int = 0


def measure(folder: Path, day: Day, repeat: int, made: Path | None) -> Found:
    """Makes the archive, or links the one in the folder `made`, which stays as it is, and measures everything."""
    archive, found = folder / "archive", Found(day.ticks, day.symbols)
    asked = questions(day)
    both = ("symbol-ticks", "movers-ticks")
    ticks_folder, bars_folder = archive / "processed" / "ticks", archive / "processed" / "bars_1m"

    def layout(title: str, paths: Sequence[Path], firsts: int, times: int) -> None:
        found.sizes[title] = (len(paths), sum(path.stat().st_size for path in paths))
        views = {"ticks": rows_of(paths)}
        found.layouts[title] = {name: side_by_side({title: lambda: Plain(views)}, asked[name].sql, times, firsts)[title] for name in both}

    with stage("making the archive", found.stages), workers(day) as pool:
        accepted = day.ticks
        if made is None or not made.exists():
            accepted = write_archive(pool, made or archive, day)
        if made is not None:
            shutil.copytree(made, archive, copy_function=os.link)
    if accepted != day.ticks:
        raise BenchmarkError(f"{accepted} of {day.ticks} ticks were accepted")
    found.sizes |= {"raw": size_of(archive / "raw"), "bars as written": size_of(bars_folder)}
    with stage("small objects as written", found.stages):
        layout("small objects as written", sorted(ticks_folder.rglob("*.parquet")), 1, max(1, repeat // 5))
    with stage("compaction of an hour", found.stages):
        found.hour_rows, found.compactions = compactions(archive, folder, max(1, repeat // 3))
    with stage("compaction of the day", found.stages):
        run_child(folder, "compact", "--archive", str(archive), "--all", "--json")
    found.sizes["bars"] = size_of(bars_folder)
    paths = sorted(ticks_folder.rglob("*.parquet"))
    with stage("the other layouts", found.stages):
        with workers(day) as pool:
            others = write_layouts(pool, ticks_folder, folder / "layouts")
        layout(f"compacted: by symbol and time, row groups of {ROW_GROUP:,}", paths, 3, repeat)
        for name, other in others.items():
            layout(OTHERS[name].title, other, 3, repeat)
        shutil.rmtree(folder / "layouts")
    big, bars, lines = folder / "ticks.parquet", folder / "bars.parquet", folder / "ticks.jsonl"
    with stage("one sorted file, JSON lines", found.stages):
        with duckdb.connect(config={"memory_limit": "4GB", "temp_directory": str(folder / "sort")}) as connection:
            merge(paths, big, connection.execute)
        with DuckdbEngine(FileStore(archive)) as engine:
            pq.write_table(engine.run("SELECT * FROM bars_1m ORDER BY symbol, minute").arrow(), bars, compression="zstd", row_group_size=ROW_GROUP)
        found.lines = json_lines(archive, lines)
        found.sizes[LIMIT], found.sizes[LINES] = size_of(big), size_of(lines)
    views = {"ticks": f"SELECT * FROM read_parquet('{big}')", "bars_1m": f"SELECT * FROM read_parquet('{bars}')"}
    views["symbols"] = "SELECT symbol, source, min(minute) AS first_minute, max(minute) AS last_minute, sum(ticks)::BIGINT AS ticks, sum(volume) AS volume, " \
        "max_by(close, minute) AS last_price FROM bars_1m GROUP BY symbol, source"  # fmt: skip
    with stage("queries", found.stages):
        for name, question in asked.items():
            found.queries[name] = side_by_side({PRODUCT: lambda: Product(archive), LIMIT: lambda: Plain(views)}, question.sql, repeat)
    with stage("queries over JSON lines", found.stages):
        for name in both:
            view = {"ticks": ticks_of_lines(lines)}
            found.queries[name] |= side_by_side({LINES: lambda: Plain(view)}, asked[name].sql, max(1, repeat // 5), 1)  # noqa: B023
    with stage("the command", found.stages):
        for name in ("day", "movers-ticks"):
            found.commands[name] = [run_child(folder, "query", "--archive", str(archive), asked[name].sql) for _ in range(max(1, repeat // 3))]
    return found


def report(found: Found, asked: dict[str, Question]) -> str:
    """The tables."""
    middle = statistics.median
    scale = found.ticks / found.lines
    times = len(next(iter(found.queries.values()))[PRODUCT].warm)
    out = [
        f"{found.ticks:,} ticks of {found.symbols:,} symbols on one day. Times in ms; warm: median, and the worst of {times}.",
        "", f"| query | aim | {PRODUCT}: first | warm | worst | CPU | {LIMIT}: first | warm | worst | CPU | {PRODUCT} / {LIMIT} | {LINES}: warm* | CPU* |",
        f"| --- |{' ---: |' * 12}",
    ]  # fmt: skip
    for name, by in found.queries.items():
        cells = [cell for who in (PRODUCT, LIMIT) for cell in (middle(by[who].first), by[who].median, max(by[who].warm), middle(by[who].cpu))]
        lines = f"{by[LINES].median * scale:,.0f} | {middle(by[LINES].cpu) * scale:,.0f}" if LINES in by else " | "
        aim = f"{asked[name].aim_ms:.0f}" if asked[name].aim_ms else ""
        out.append(f"| {asked[name].title} | {aim} | {' | '.join(f'{cell:,.0f}' for cell in cells)} | {by[PRODUCT].median / by[LIMIT].median:.1f} | {lines} |")
    out += ["", f"\\* measured over {found.lines:,} messages of one hour, in one file without compression, and multiplied by {scale:.2f}.", ""]
    out += ["| `stockstream query`, the whole process | wall s | worst | CPU s | peak MB |", "| --- | ---: | ---: | ---: | ---: |"]
    out += [
        f"| {asked[name].title} | {middle(one.wall_s for one in costs):.2f} | {max(one.wall_s for one in costs):.2f} "
        f"| {middle(one.cpu_s for one in costs):.2f} | {max(one.peak_mb for one in costs):,.0f} |"
        for name, costs in found.commands.items()
    ]
    costs = found.compactions
    out += ["", "| compaction of an hour | rows | wall s | worst | CPU s | peak MB |", "| --- | ---: | ---: | ---: | ---: | ---: |"]
    out.append(
        f"| `stockstream compact`, the whole process | {found.hour_rows:,} | {middle(one.wall_s for one in costs):.2f} "
        f"| {max(one.wall_s for one in costs):.2f} | {middle(one.cpu_s for one in costs):.2f} | {max(one.peak_mb for one in costs):,.0f} |"
    )
    columns = "objects | MB | bytes a tick | a symbol's day: first | warm | CPU | top movers: first | warm | CPU"
    out += ["", f"| ticks, read by plain DuckDB | {columns} |", f"| --- |{' ---: |' * 9}"]
    for title, by in found.layouts.items():
        objects, size = found.sizes[title]
        cells = [cell for one in by.values() for cell in (middle(one.first), one.median, middle(one.cpu))]
        out.append(f"| {title} | {objects:,} | {size / 1e6:,.0f} | {size / found.ticks:.1f} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |")
    objects, size = found.sizes[LIMIT]
    limits = [found.queries[name][LIMIT] for name in ("symbol-ticks", "movers-ticks")]
    cells = [cell for one in limits for cell in (middle(one.first), one.median, middle(one.cpu))]
    out.append(f"| {LIMIT} | {objects:,} | {size / 1e6:,.0f} | {size / found.ticks:.1f} | {' | '.join(f'{cell:,.0f}' for cell in cells)} |")
    out += ["", "| beside them | objects | MB | bytes a tick |", "| --- | ---: | ---: | ---: |"]
    for title in ("raw", "bars as written", "bars"):
        objects, size = found.sizes[title]
        out.append(f"| {title} | {objects:,} | {size / 1e6:,.0f} | {size / found.ticks:.1f} |")
    objects, size = found.sizes[LINES]
    out.append(f"| {LINES}, scaled to the day | {objects:,} | {size * scale / 1e6:,.0f} | {size / found.lines:.1f} |")
    out += ["", "| part of the benchmark | wall s | CPU s | load before |", "| --- | ---: | ---: | ---: |"]
    out += [f"| {name} | {one['wall_s']:.0f} | {one['cpu_s']:.0f} | {one['load_before']:.1f} |" for name, one in found.stages.items()]
    return "\n".join(out) + "\n"


def archive_sql(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """Markdown and JSON. Raises `BenchmarkError`."""
    day = Day(options.rows, options.symbols, options.flush_s)
    folder = Path(tempfile.mkdtemp(prefix="stockstream-bench-archive-", dir=options.archive and options.archive.absolute().parent))
    try:
        found = measure(folder, day, options.repeat, options.archive)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    data = asdict(found)
    for costs in (data["compactions"], *data["commands"].values()):
        for one in costs:
            del one["output"]
    return report(found, questions(day)), data

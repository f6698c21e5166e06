"""`python -m benchmarks COMMAND`: measurements, each a program with arguments; tables and JSON go to benchmarks/results/."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import signal
import sys
from pathlib import Path
from typing import Any

from benchmarks.contenders import chosen
from benchmarks.load import THIN
from benchmarks.run import run
from stockstream.errors import StockstreamError

RESULTS = Path(__file__).with_name("results")
COMMANDS = ("run", "quick", "latency", "growth", "recovery", "day", "workers", "transactions", "archive-cost", "machines", "profile", "archive-sql")


def machine() -> dict[str, Any]:
    """What it was measured on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    return {
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), "processor": model, "cores": os.cpu_count(),
        "load": os.getloadavg()[0], "python": platform.python_version(), "system": platform.system(),
    }  # fmt: skip


def write(name: str, text: str, data: dict[str, Any]) -> None:
    """A table to read and the figures behind it."""
    RESULTS.mkdir(exist_ok=True)
    about = machine()
    place = f"{about['processor']}, {about['cores']} cores, Python {about['python']}, load {about['load']:.1f} before"
    (RESULTS / f"{name}.md").write_text(f"# {name}\n\n{about['at']}, {place}\n\n{text}")
    (RESULTS / f"{name}.json").write_text(json.dumps({"machine": about, **data}, indent=1) + "\n")
    print(text)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    top.add_argument("--quick", action="store_true", help="the same as the command quick")
    commands = top.add_subparsers(dest="command", metavar="COMMAND")

    def add(name: str, text: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=text, description=text)
        one.add_argument("--broker", default="kafka", help="kafka (real, started here), embedded, or kafka://host:port of one that holds nothing else")
        one.add_argument("--name", default="", help="of the files in benchmarks/results")
        return one

    one = add("run", "contenders side by side: whole-process CPU and wall")
    one.add_argument("--contenders", default="a,b,c,peers,d,e,f,h", help="letters or names, by comma; g is slow")
    one.add_argument("--ticks", type=int, default=500_000)
    one.add_argument("--symbols", type=int, default=1_000)
    one.add_argument("--repeat", type=int, default=3)
    one.add_argument("--frames", type=int, default=0, help="ticks of one record; 0: single ticks")
    one.add_argument("--timeout", type=float, default=600.0, help="seconds that one run may take")
    add("quick", "(a), (b) and (c) on 200,000 ticks, in under two minutes")
    one = add("latency", "from an event to its prediction in a subscriber's hands, hop by hop")
    one.add_argument("--symbols", type=int, default=1_000)
    one.add_argument("--seconds", type=int, default=90)
    one = add("growth", "CPU a tick, memory a symbol, changelog bytes and recovery by the number of symbols")
    one.add_argument("--symbols", default="100,1000,10000,50000", help="by comma")
    one.add_argument("--ticks", type=int, default=500_000)
    one = add("recovery", "how long the state of a long log takes to come back")
    one.add_argument("--symbols", type=int, default=10_000)
    one.add_argument("--seconds", type=int, default=700, help="with a tick of each symbol")
    one.add_argument("--thin", type=int, default=0, help=f"seconds before these, in which each symbol has a tick in every {THIN}th only")
    one = add("day", "a day of real trades through the full line")
    one.add_argument("--trades", type=Path, required=True, help="a Parquet file of trades, as `stockstream replay` takes it")
    one = add("workers", "CPU a tick of two workers against one")
    one.add_argument("--ticks", type=int, default=500_000)
    one.add_argument("--repeat", type=int, default=3)
    one = add("transactions", "a backlog of small transactions beside one of batches of that size")
    one.add_argument("--transactions", type=int, default=10_000)
    one.add_argument("--size", type=int, default=10, help="ticks of each")
    one.add_argument("--repeat", type=int, default=3)
    one = add("archive-cost", "what archiving costs, what rate it holds, and how soon its rows can be queried on S3")
    one.add_argument("--rate", type=int, default=50_000, help="live ticks a second")
    one.add_argument("--symbols", type=int, default=1_000)
    one.add_argument("--seconds", type=int, default=45, help="that count, of each contender")
    one.add_argument("--s3-rate", type=int, default=2_000, help="live ticks a second into the archive on S3")
    one.add_argument("--repeat", type=int, default=1)
    one.add_argument("--quick", dest="small", action="store_true", help="15 s of each: shows that it works, not what it costs")
    one = commands.add_parser("machines", help="clean and aggregate alone, step by step, without a broker")
    one.add_argument("--name", default="", help="of the files in benchmarks/results")
    one.add_argument("--symbols", type=int, default=125, help="of one partition")
    one.add_argument("--ticks", type=int, default=60_000)
    one.add_argument("--repeat", type=int, default=5)
    one = commands.add_parser("archive-sql", help="SQL over an archive of one day, its size, and its compaction; without a broker")
    one.add_argument("--name", default="", help="of the files in benchmarks/results")
    one.add_argument("--rows", type=int, default=20_000_000)
    one.add_argument("--symbols", type=int, default=1_000)
    one.add_argument("--repeat", type=int, default=15, help="of the queries; fewer of what takes longer")
    one.add_argument("--flush-s", type=int, default=30, help="seconds of an object as it is written")
    one.add_argument("--archive", type=Path, help="keeps the archive in this folder as it is made; if it exists, it is used again")
    one.add_argument("--quick", dest="small", action="store_true", help="100,000 rows of 50 symbols, three repetitions: shows that it works")
    one = add("profile", "where a worker's time goes")
    one.add_argument("--contender", default="line")
    one.add_argument("--ticks", type=int, default=300_000)
    one.add_argument("--frames", type=int, default=0)
    return top


def main() -> int:
    """Runs one command; a fault of the user's or the machine's is one line."""
    args = sys.argv[1:]
    if not args or (args[0].startswith("--") and args[0] not in ("--quick", "-h", "--help")):
        args = ["run", *args]
    options = parser().parse_args(args)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))             # so that contexts end what they have started
    command = "quick" if options.quick else options.command
    try:
        if command == "quick":
            text, data = run(getattr(options, "broker", "kafka"), chosen("a,b,c"), 200_000, 1_000, 0, 1, 90.0)
            write("quick", text, data)
        elif command == "run":
            kind = "kafka" if options.broker.startswith("kafka") else options.broker
            name = options.name or f"run-{kind}-{f'frames{options.frames}' if options.frames else 'single'}"
            text, data = run(options.broker, chosen(options.contenders), options.ticks, options.symbols, options.frames, options.repeat, options.timeout)
            write(name, text, data)
        else:
            from benchmarks import archive_cost, archive_sql, machines, studies, transactions

            if command == "archive-sql" and options.small:
                options.rows, options.symbols, options.repeat, options.flush_s = 100_000, 50, 3, 900
            if command.startswith("archive-") and options.small:
                options.name = options.name or f"{command}-quick"
            module = {
                "machines": machines, "transactions": transactions, "archive-sql": archive_sql, "archive-cost": archive_cost,
            }.get(command, studies)  # fmt: skip
            text, data = getattr(module, command.replace("-", "_"))(options)
            write(options.name or command, text, data)
    except (StockstreamError, OSError) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

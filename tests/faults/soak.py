"""Faults mixed at random until the time is up: `python -m tests.faults.soak --minutes 30 --seed 7`. Any seed can be run again.

With `--case` only that one; with `--short` its short form, else the full numbers; with `--store s3` or `ministack` the archive is in a bucket; with
`--starve` on a machine that has lost a share of its processors.
Exit status 1 where anything was not exact.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import random
import secrets
import sys
import time
from functools import partial

from tests.faults.cases import CASES, FULL, Scale, mixed
from tests.faults.fuzzing import fuzz
from tests.faults.places import STORES, server_of
from tests.faults.starvation import starved
from tests.faults.verdict import Verdict
from tests.faults.workers import Failed, NotPossible
from tests.fuzz.__main__ import Fuzzing
from tests.kafka import Cluster


def say(text: str) -> None:
    """One line, at once."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="Faults mixed at random on three brokers; exact or exit status 1.")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="of the order of cases, their markets and their moments")
    parser.add_argument("--case", choices=sorted({*CASES, *FULL, "mixed"}), action="append", help="only this one; may be given again")
    parser.add_argument("--short", action="store_true", help="the short forms of make test")
    parser.add_argument("--store", choices=STORES, default="file", help="where the archive is: files, a bucket of moto's server or of MiniStack")
    parser.add_argument("--starve", type=float, default=0.0, metavar="SHARE", help="take this share of every processor away from all others (Linux, root)")
    parser.add_argument("--session", dest="session_s", type=float, metavar="S", help="session of the workers' group, in seconds, for a busy machine")
    parser.add_argument("--symbols", type=int, metavar="N", help="symbols of the market, with a tick a second each, for a busy machine")
    parser.add_argument("--fuzz", type=float, default=None, metavar="MINUTES", help="hostile messages to every topic for so long")
    parser.add_argument("--inputs", type=int, default=10_000_000, help="of --fuzz before that, in-process; 0 for none")
    chosen = parser.parse_args()
    own = {name: value for name, value in (("session_s", chosen.session_s), ("symbols", chosen.symbols), ("rate", chosen.symbols)) if value}
    seed = chosen.seed if chosen.seed is not None else secrets.randbelow(10**6)
    rng = random.Random(seed)
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    begun = time.monotonic()
    total, runs, failures = Verdict(), 0, []
    cases = (CASES if chosen.short else FULL) | {"mixed": mixed}
    if chosen.fuzz is not None:
        cases, chosen.minutes = {"fuzz": partial(fuzz, minutes=chosen.fuzz)}, 0
        if chosen.inputs:
            fuzzing = Fuzzing(chosen.inputs, seed, jobs=os.cpu_count() or 1)
            failures += fuzzing.run()
            say(str(fuzzing))
    every = cases if chosen.fuzz is not None or not chosen.case else cases | FULL | CASES
    waiting: list[str] = []
    say(f"seed {seed}, {chosen.minutes:g} minutes")
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(starved(chosen.starve))
        except Failed as error:
            parser.error(str(error))
        server = held.enter_context(server_of(chosen.store))
        cluster = held.enter_context(Cluster(3))
        while not runs or (waiting and chosen.case) or time.monotonic() - begun < chosen.minutes * 60:
            if not waiting:
                waiting = list(chosen.case or cases)
                rng.shuffle(waiting)
            name, case_seed = waiting.pop(), rng.randrange(10**6)
            say(f"{name}, seed {case_seed}: {' '.join((getattr(every[name], 'func', every[name]).__doc__ or '').split())}")
            at = time.monotonic()
            try:
                verdict = every[name](cluster, case_seed, Scale(not chosen.short, say, server, own))
                add(total, verdict)
                say(f"{name}: exact, {time.monotonic() - at:.0f} s")
            except NotPossible as error:
                say(f"{name}: left out: {error}")
            except Exception as error:
                failures.append(f"{name}, seed {case_seed}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
                say(f"{name}: FAILED after {time.monotonic() - at:.0f} s: {type(error).__name__}: {error}")
            runs += 1
            cluster.heal()
    say(f"{runs} cases in {(time.monotonic() - begun) / 60:.1f} minutes, seed {seed}: {len(failures)} failed")
    say(f"in those that held: {total}")
    say(f"done to them: {', '.join(f'{what} {count}' for what, count in sorted(total.done.items()))}")
    for failure in failures:
        say(f"FAILED {failure}")
    return 1 if failures else 0


def add(total: Verdict, verdict: Verdict) -> None:
    """Adds a verdict's counts to the total's."""
    for name in ("offsets", "rows", "alerts", "predictions", "outcomes", "rejected", "repeated", "archived"):
        setattr(total, name, getattr(total, name) + getattr(verdict, name))
    total.done += verdict.done


if __name__ == "__main__":
    sys.exit(main())

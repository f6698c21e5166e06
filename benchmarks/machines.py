"""The state machines alone, without Kafka: what each step of a tick costs between `ticks.raw` and `windows`."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from benchmarks.load import AHEAD_MS, PARTITIONS, columns, log_of, text_of
from stockstream.records import TICKS_SCHEMA
from stockstream.transforms.batch import RawRecord
from stockstream.transforms.cleaning.cleaner import Cleaner
from stockstream.transforms.frames import Frame, decode, encode_within
from stockstream.transforms.partitioning import home_partition
from stockstream.transforms.timing import LATENESS_MS, REVISE_S
from stockstream.transforms.windows.windows import Windows

T = TypeVar("T")


class OneByOne(Cleaner):
    """Takes no records at once."""

    def _accept_many(self, records: Any) -> int:
        return 0


class Steps:
    """CPU seconds by step."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def time(self, step: str, call: Callable[[], T]) -> T:
        begun = time.process_time()
        result = call()
        self.seconds[step] = self.seconds.get(step, 0.0) + time.process_time() - begun
        return result


def records_of(symbols: int, ticks: int) -> list[RawRecord]:
    """One partition's log: so many symbols that live there, a tick of each a second."""
    log = log_of("machines", ticks, symbols)
    homes = (f"S{number:06d}" for number in range(PARTITIONS * symbols * 2))
    names = [name for name in homes if home_partition(name, PARTITIONS) == 0][:symbols]
    return [
        RawRecord(offset, at + AHEAD_MS, text_of(names[number], at, price, size).encode())
        for offset, (number, at, price, size) in enumerate(
            tick for second in columns(log) for tick in zip(*(column.tolist() for column in second), strict=True)
        )
    ]


def once(records: Sequence[RawRecord], kind: type[Cleaner], chunk: int) -> dict[str, float]:
    """CPU of each step in us a tick, over the whole log in chunks of so many records."""
    steps, cleaner, windows = Steps(), kind(0, PARTITIONS, lateness_ms=LATENESS_MS, revise_s=REVISE_S, log="x"), Windows(0, revise_s=REVISE_S)
    for at in range(0, len(records), chunk):
        some = records[at : at + chunk]
        steps.time("judge", lambda: cleaner.chunk(some))  # noqa: B023
        frame = steps.time("its frame", cleaner.make_frame)
        assert frame is not None
        data = steps.time("its frame", lambda: list(encode_within(frame)))  # noqa: B023
        for part in data:
            read = steps.time("read the frame", lambda: decode(part, TICKS_SCHEMA))  # noqa: B023
            rows = steps.time("windows", lambda: windows.take_frame(read))  # noqa: B023
            if rows is not None and rows.closings:
                batch = steps.time("their frame", lambda: rows.batch(0))  # noqa: B023
                closed = Frame("x", rows.start, rows.through, tuple(rows.closings), batch)
                steps.time("their frame", lambda: list(encode_within(closed)))  # noqa: B023
                steps.time("state", lambda: windows.records(0))
    return {step: seconds / len(records) * 1e6 for step, seconds in steps.seconds.items()}


def machines(options: argparse.Namespace) -> tuple[str, dict[str, Any]]:
    """The least of several runs of each: chunks of a backlog, records taken at once and one by one, and chunks of a second of live ticks."""
    records = records_of(options.symbols, options.ticks)
    ways: list[tuple[str, type[Cleaner], int]] = [
        ("a backlog's chunk", Cleaner, 4_400), ("the same, one by one", OneByOne, 4_400), ("a second", Cleaner, options.symbols),
    ]  # fmt: skip
    found: dict[str, dict[str, float]] = {name: {} for name, _, _ in ways}
    for _ in range(options.repeat):
        for name, kind, chunk in ways:
            for step, figure in once(records, kind, chunk).items():
                found[name][step] = min(figure, found[name].get(step, figure))
    steps = list(next(iter(found.values())))
    lines = [f"| us a tick | {' | '.join(steps)} | in all |", f"| --- |{' ---: |' * (len(steps) + 1)}"]
    lines += [f"| {name} | {' | '.join(f'{of[step]:.2f}' for step in steps)} | {sum(of.values()):.2f} |" for name, of in found.items()]
    head = f"{options.symbols:,} symbols of one partition, a tick of each a second, {len(records):,} ticks; the least of {options.repeat} runs\n\n"
    return head + "\n".join(lines) + "\n", {"symbols": options.symbols, "ticks": len(records), "us_a_tick": found}

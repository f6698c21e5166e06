"""The loop and the peers' common state do the same job, and what compares them can tell when they do not."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest

from benchmarks.contenders import CONTENDERS, chosen
from benchmarks.environments import BenchmarkError
from benchmarks.load import THIN, columns, log_of
from benchmarks.loop import Bars, Tick
from benchmarks.machines import OneByOne, once, records_of
from benchmarks.outputs import FIGURES, Rows, differences
from benchmarks.processes import Host, Process, measure
from stockstream.transforms.cleaning.cleaner import Cleaner
from tests.patience import PATIENCE_S

SECONDS, SYMBOLS = 340, 4


def ticks() -> list[Tick]:
    log = log_of("t", SECONDS * SYMBOLS, SYMBOLS)
    out = []
    for numbers, times, prices, sizes in columns(log):
        for number, at, price, size in zip(numbers.tolist(), times.tolist(), prices.tolist(), sizes.tolist(), strict=True):
            out.append(Tick(log.names[number], at, price, size))
    return out


def rows_of_loop(found: list[Tick], chunk: int) -> Rows:
    bars, rows = Bars(), {}
    for start in range(0, len(found), chunk):
        batch = bars.take(found[start : start + chunk])
        for row in batch.to_pylist() if batch is not None else []:
            rows[row["symbol"], row["second"]] = tuple(None if row[name] is None else float(row[name]) for name in FIGURES)
    return rows


def rows_of_peers(found: list[Tick]) -> Rows:
    from benchmarks.peers.rolling import Rolling

    states: dict[str, Any] = {}
    rows = {}
    for tick in found:
        row = states.setdefault(tick.symbol, Rolling()).tick(tick.symbol, tick.event_time, tick.price, tick.size)
        if row is not None:
            rows[row["symbol"], row["second"]] = tuple(None if row[name] is None else float(row[name]) for name in FIGURES)
    return rows


def test_a_log_with_thin_seconds_has_each_symbol_in_turn_and_ends_in_full() -> None:
    log = log_of("t", 3 * 50, 50, thin_s=100)
    seconds = [numbers.tolist() for numbers, *_ in columns(log)]
    assert (log.seconds, log.ticks) == (103, 3 * 50 + 100 * 50 // THIN) and [len(s) for s in seconds] == [2] * 100 + [50] * 3
    assert sorted(number for second in seconds[THIN : 2 * THIN] for number in second) == list(range(50))


def test_the_loop_and_the_peers_agree_however_the_log_is_cut() -> None:
    found = ticks()
    reference = rows_of_peers(found)
    assert len(reference) == SYMBOLS * (SECONDS - 1)
    for chunk in (37, 500, len(found)):
        rows = rows_of_loop(found, chunk)
        assert len(set(rows) & set(reference)) >= SYMBOLS * (SECONDS - 2)
        assert differences(reference, rows) == []


def test_the_figures_are_those_of_the_definition() -> None:
    found = [tick for tick in ticks() if tick.symbol == "S00001"]
    rows = rows_of_peers(found)
    second = found[-2].event_time // 1000
    price, size = (np.array([getattr(tick, name) for tick in found[-301:-1]], float) for name in ("price", "size"))
    before = found[-302].price
    assert before is not None
    got = dict(zip(FIGURES, rows["S00001", second], strict=True))
    assert got["mean_5m"] == pytest.approx(price.mean(), rel=1e-12)
    assert got["vwap_5m"] == pytest.approx((price * size).sum() / size.sum(), rel=1e-12)
    assert got["volume_5m"] == size.sum()
    assert got["return_std_5m"] == pytest.approx(np.diff(np.log(np.r_[before, price])).std(ddof=1), rel=1e-9)


def test_a_difference_is_told() -> None:
    rows = rows_of_peers(ticks())
    place = next(iter(rows))
    other = dict(rows)
    other[place] = (*rows[place][:5], (rows[place][5] or 0) * (1 + 1e-8), *rows[place][6:])
    assert len(differences(rows, other)) == 1
    other[place] = (None, *rows[place][1:])
    assert len(differences(rows, other)) == 1


def test_contenders_come_by_letter_and_with_what_they_are_compared_with() -> None:
    assert [contender.name for contender in chosen("a,b,c")] == ["line", "line-no-archive", "loop", "loop-no-archive"]
    assert "loop-windows" in [contender.name for contender in chosen("d")]
    assert {contender.job for contender in CONTENDERS.values()} == {"full", "windows"}
    with pytest.raises(BenchmarkError, match="no contender"):
        chosen("z")


def test_the_cost_of_a_process_is_that_of_the_whole(tmp_path: Any) -> None:
    process = Process([sys.executable, "-c", "sum(range(3_000_000))"], {}, tmp_path / "log")
    cost = measure(process, lambda: 1.0, ends_itself=True, timeout_s=60, interval_s=0.02)
    assert cost.cpu_s > 0
    assert cost.wall_s > 0


def test_what_the_host_takes_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    host = Host()
    readings = iter([(0, 100), (0, 200), (30, 300), (31, 400)])

    def read() -> tuple[int, int]:
        reading = next(readings, None)
        if reading is None:
            host.stop()
        return reading or (31, 400)

    monkeypatch.setattr(Host, "INTERVAL_S", 0.01)
    monkeypatch.setattr(Host, "_read", staticmethod(read))
    begun = time.time()
    host.start()
    host.join(PATIENCE_S)
    assert host.most_stolen(begun, time.time()) == pytest.approx(0.3)
    assert host.most_stolen(begun - 9, begun - 5) == 0


def test_a_contender_that_fails_says_so(tmp_path: Any) -> None:
    process = Process([sys.executable, "-c", "raise SystemExit('no such thing')"], {}, tmp_path / "log")
    with pytest.raises(BenchmarkError, match="no such thing"):
        measure(process, lambda: 0.0, ends_itself=True, timeout_s=60, interval_s=0.02)


@pytest.mark.parametrize("kind", [Cleaner, OneByOne])
def test_the_machines_alone_take_every_tick_of_a_partitions_log(kind: type[Cleaner]) -> None:
    records = records_of(20, 600)
    assert len(records) == 600 and [record.offset for record in records] == list(range(600))
    assert set(once(records, kind, 100)) == {"judge", "its frame", "read the frame", "windows", "their frame", "state"}
    cleaner = kind(0, 8, lateness_ms=200, revise_s=30, log="x")
    assert cleaner.chunk(records) == [] and cleaner.accepted == 600

"""The cases of `tests/fixtures/cases` through a worker on real Kafka: the same rows, alerts and rejections as a backtest, each case as it is by itself."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from tests import backtests
from tests.faults.workers import wait_until
from tests.integration.test_backtest import by_identity, line_of, published
from tests.integration.test_line import LONGEST_S, Line, running, wait_for
from tests.kafka import Cluster
from tests.unit.test_market_cases import FOLDER

Json = dict[str, Any]
APART = {"record_time_minus_1", "record_times_0_and_minus_1", "trades_sent_again"}
"""Cases that depend on record times. Live, every record has the broker's."""
FIGURES = ("open", "high", "low", "close", "volume", "ticks", "quotes", "mid", "price", "mean_5m", "volume_5m", "accrued_5m", "seconds_5m", "gap_s", "quality")


def renamed(case: str, value: Any) -> Any:
    """The value with symbols and sources of its case alone, so that all cases fit into one partition."""
    if isinstance(value, list):
        return [renamed(case, item) for item in value]
    if not isinstance(value, dict):
        return value
    return value | {name: f"{case}.{value[name]}" for name in ("symbol", "source") if isinstance(value.get(name), str)}


def rows_of(line: Line) -> set[tuple[str, int]]:
    """Symbol and second of the rows that were sent."""
    return {(row["symbol"], row["second"]) for row in published(line)["windows"].values()}


def is_quiet(line: Line) -> bool:
    """Whether nothing has come to `ticks.raw` for longer than the worker waits before it closes a source's last second."""
    before = len(line.read("ticks.raw"))
    time.sleep(4)
    return len(line.read("ticks.raw")) == before


def test_every_case_comes_out_live_as_by_itself(kafka: Cluster, tmp_path: Path) -> None:
    cases = {str(number): path for number, path in enumerate(sorted(FOLDER.glob("*.jsonl")))}
    values = [json.dumps(renamed(case, json.loads(line)["value"])).encode() for case, path in cases.items() for line in path.read_text().splitlines()]
    ticks = sum(len(value) if isinstance(value, list) else "punctuate" not in value for value in map(json.loads, values))
    alone = {case: backtests.run(path, tmp_path / path.stem).rows for case, path in cases.items() if path.stem not in APART}
    wanted = {(f"{case}.{row['symbol']}", row["second"]) for case, rows in alone.items() for row in rows}
    own = {"STOCKSTREAM_TOPIC_PREFIX": f"cases{os.getpid()}.", "STOCKSTREAM_PARTITIONS": "1"}
    with running(kafka.bootstrap, tmp_path, **own) as line:
        line.send([(0, value) for value in values])
        wait_for(line, ticks)
        wait_until(lambda: wanted <= rows_of(line), LONGEST_S, "a row for each second of each case", 2.0)
        wait_until(lambda: is_quiet(line), LONGEST_S, "no punctuation any more", 1.0)
        backtests.write(tmp_path / "log.jsonl", [line_of(record) for record in line.read("ticks.raw")])
        line.command("backtest", str(tmp_path / "log.jsonl"), "--out", "out", "--no-close")
        together = backtests.read(line.folder / "out")
        wait_until(lambda: len(published(line)["windows"]) >= len(together["windows"]), LONGEST_S, "all rows", 1.0)
        live = published(line)
        for name in ("windows", "alerts", "rejected"):
            assert by_identity(name, together[name]) == live[name]
    newest = {(row["symbol"], row["second"]): row for row in sorted(live["windows"].values(), key=lambda row: int(row["offset"]))}
    for case, rows in alone.items():
        mine = {(symbol.partition(".")[2], second): [row[name] for name in FIGURES]
                for (symbol, second), row in newest.items() if symbol.partition(".")[0] == case}  # fmt: skip
        assert mine == {(row["symbol"], row["second"]): [row[name] for name in FIGURES] for row in rows}, cases[case].name

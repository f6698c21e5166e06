"""Live = backtest: what a worker publishes on real Kafka, and what `stockstream backtest` makes of the same log."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from stockstream.records import WINDOWS_SCHEMA
from stockstream.transforms import frames
from stockstream.transforms.partitioning import home_partition
from tests import backtests
from tests.faults.expected import TIMES
from tests.faults.workers import wait_until
from tests.integration.test_line import LONGEST_S, Line, running, wait_for
from tests.kafka import Cluster
from tests.logs import generated_day

PARTITIONS = 4
Json = dict[str, Any]
IDENTITY = {
    "windows": ("symbol", "second", "offset"), "alerts": ("id", "state", "as_of"), "predictions": ("id",), "outcomes": ("id", "horizon_s"),
    "rejected": ("partition", "offset", "index"),
}  # fmt: skip


def by_identity(name: str, items: Iterable[Json]) -> dict[tuple[Any, ...], Json]:
    """The items without what describes a worker; a message that was sent twice counts once."""
    return {tuple(item.get(part) for part in IDENTITY[name]): {k: v for k, v in item.items() if k not in TIMES} for item in items}


def published(line: Line) -> dict[str, dict[tuple[Any, ...], Json]]:
    """What the topics hold."""
    assembler: dict[int, frames.Assembler] = {}
    rows: list[Json] = []
    for record in line.read("windows"):
        frame = assembler.setdefault(record.partition, frames.Assembler()).feed(frames.decode(record.value, WINDOWS_SCHEMA))
        rows += frame.rows.to_pylist() if frame is not None else []
    messages = {name: [json.loads(record.value) for record in line.read(topic)]
                for name, topic in (("alerts", "alerts"), ("predictions", "predictions"), ("rejected", "ticks.rejected"))}  # fmt: skip
    rejected = [{"index": -1, "value": None, "value_base64": None} | item for item in messages["rejected"]]
    alerts = [item | {"window": {"gap_s": None, "price_before_gap": None} | item["window"]} for item in messages["alerts"]]
    outcomes = [item for record in line.read("outcomes") for item in json.loads(record.value)]
    found = {"windows": rows, **messages, "outcomes": outcomes, "rejected": rejected, "alerts": alerts}
    return {name: by_identity(name, items) for name, items in found.items()}


def line_of(record: Any) -> Json:
    """A record of `ticks.raw` as a line of a file."""
    place = {"timestamp": record.timestamp, "partition": record.partition, "offset": record.offset, "key": record.key and record.key.decode()}
    try:
        return {**place, "value": None if record.value is None else record.value.decode()}
    except UnicodeDecodeError:
        return {**place, "value_base64": base64.b64encode(record.value).decode()}


def odd_values() -> list[tuple[int, bytes | None]]:
    """Values by partition: a crash, a spike, frames, late and unusable ticks of one symbol, a gap, a split and another currency, cumulative volumes, numberings
    that begin again, and a punctuation at their end."""
    home = home_partition("ODD", PARTITIONS)
    begin = 1_700_100_000

    def tick(second: int, **more: Any) -> Json:
        return {"symbol": "ODD", "event_time": (begin + second) * 1000, "price": 20.0, "size": 10, "source": "odd"} | more

    values: list[Any] = [tick(second) for second in range(150)]
    values += [[tick(150, bid=19.9, ask=20.1), tick(150, price=None, size=0, bid=19.8, ask=20.0), {"symbol": 5}], tick(148, size=3), tick(20)]
    values += [tick(151, price=18.0), tick(152, price=17.9, size=5_000), *(tick(second, price=19.9) for second in range(153, 260))]
    values += [*(tick(second, currency="GBX") for second in range(261, 265)), tick(340, price=18.5), tick(341, price=9.25)]
    values += [*(tick(second, price=0.09, currency="GBP") for second in range(342, 350)), tick(341, price=9.25)]
    figures = [(350, 1_000), (351, 1_100.5), (352, 4_000_000_000), (353, 1_200), (354, -1), (358, 1_900), (359, 40), (360, 50)]
    values += [{name: value for name, value in tick(second, day_volume=figure).items() if name != "size"} for second, figure in figures]
    values += [tick(361, seq=900), tick(361, seq=900, size=7), *(tick(362 + number, seq=number) for number in range(12)), tick(374, seq=0, epoch=1)]
    values += [tick(375, trade_id="7"), tick(375, trade_id="7"), tick(10**9), tick(350, price=-1), {"punctuate": begin + 376, "source": "odd"}]
    unusable = [(home, b"\xff\x00"), (home, None), ((home + 1) % PARTITIONS, json.dumps(tick(1)).encode())]
    return [(home, json.dumps(value).encode()) for value in values] + unusable


def verdicts(values: list[tuple[int, bytes | None]]) -> int:
    """How many ticks these values are, accepted or not: a frame has three, a punctuation none."""
    return sum(3 if (value or b"").startswith(b"[") else b'"punctuate"' not in (value or b"") for _, value in values)


def test_a_backtest_of_a_log_equals_what_a_worker_publishes(kafka: Cluster, tmp_path: Path) -> None:
    own = {"STOCKSTREAM_TOPIC_PREFIX": f"bt{os.getpid()}.", "STOCKSTREAM_PARTITIONS": str(PARTITIONS)}
    with running(kafka.bootstrap, tmp_path, **own) as line:
        day, path = generated_day(seconds=2_000), tmp_path / "day.csv"
        day.assign(event_time=pd.to_datetime(day.event_time, unit="ms", utc=True)).to_csv(path, index=False)
        odd = odd_values()
        line.command("replay", str(path), "--speed", "max")
        line.send(odd)
        wait_for(line, len(day) + verdicts(odd))
        backtests.write(tmp_path / "log.jsonl", [line_of(record) for record in line.read("ticks.raw")])
        line.command("backtest", str(tmp_path / "log.jsonl"), "--out", "of-lines", "--no-close")
        flagged = {flag for row in backtests.read(line.folder / "of-lines")["windows"] for flag in row["quality"].split(",")}
        assert {"accrued", "after_gap", "possible_split", "new_series"} <= flagged
        sizes = {name: len(rows) for name, rows in backtests.read(line.folder / "of-lines").items()}
        assert all(sizes.values()), sizes
        wait_until(lambda: all(len(items) >= sizes[name] for name, items in published(line).items()), LONGEST_S, f"{sizes} published", 1.0)
        line.worker.stop()
        want = published(line)
        line.command("backtest", line.settings.archive, "--out", "of-archive", "--no-close")
        for out in ("of-lines", "of-archive"):
            got = backtests.read(line.folder / out)
            for name, items in want.items():
                assert len(got[name]) == len(items), (out, name)
                mine = by_identity(name, got[name])
                assert mine.keys() == items.keys(), (out, name)
                differ = [(items[key], mine[key]) for key in items if items[key] != mine[key]]
                assert differ == [], (out, name, differ[0])

"""Runs `stockstream backtest` as a function, and reads what it has written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from models import ScoringModel
from stockstream.backtest.inputs import Selection, open_raw
from stockstream.backtest.result_files import SCHEMAS, ResultFiles
from stockstream.backtest.runner import Summary, backtest
from stockstream.settings import Settings


@dataclass(frozen=True, slots=True)
class Ran:
    """A backtest that was run: its summary, and by file its rows in order."""

    summary: Summary
    folder: Path
    tables: dict[str, list[dict[str, Any]]]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows of `windows` that count: of several of one symbol and second the one with the highest offset; by symbol and second."""
        newest: dict[tuple[str, int], dict[str, Any]] = {}
        for row in self.tables["windows"]:
            key = row["symbol"], row["second"]
            if key not in newest or row["offset"] >= newest[key]["offset"]:
                newest[key] = row
        return [newest[key] for key in sorted(newest)]

    @property
    def volume(self) -> float:
        """All shares, over all symbols and seconds."""
        return float(sum(row["volume"] for row in self.rows))

    def of(self, symbol: str) -> list[dict[str, Any]]:
        """The rows that count of one symbol."""
        return [row for row in self.rows if row["symbol"] == symbol]

    def opened(self, rule: str, symbol: str = "X") -> list[dict[str, Any]]:
        """The alerts of a rule and symbol that opened."""
        return [alert for alert in self.tables["alerts"] if (alert["rule"], alert["symbol"], alert["state"]) == (rule, symbol, "opened")]


def run(
    path: Path, out: Path, *, settings: Settings | None = None, partitions: int | None = None, model: ScoringModel | None = None, close: bool = True,
    chunk: int = 5_000, force: bool = False,
) -> Ran:  # fmt: skip
    """Runs a file of raw records, or an archive, through the pipeline. `partitions` as the option of the command."""
    settings = settings or Settings()
    with ResultFiles(out, force=force) as files:
        summary = backtest(
            open_raw(path, Selection(partitions=partitions)), files, partitions=partitions or settings.partitions, lateness_ms=settings.lateness,
            revise_s=settings.revise_s, model=model, close=close, chunk=chunk,
        )  # fmt: skip
    return Ran(summary, out, read(out))


def read(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The rows of the files in a folder of results."""
    return {name: pq.read_table(folder / f"{name}.parquet").to_pylist() for name in SCHEMAS}


def write(path: Path, lines: Sequence[dict[str, Any] | str]) -> Path:
    """A file of JSON lines; a text is written as it is."""
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path

"""A reader that counts an archive's rows again and again, and judges what it sees: `python -m tests.faults.counting URL`. A JSON line for each round.

Whatever compactors and writers do meanwhile, no row may be there twice, and no folder may have fewer rows than before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from stockstream.children import Child
from stockstream.errors import ArchiveError
from stockstream.sinks.stores import open_store
from stockstream.sql.duckdb_engine import connect
from tests.faults.workers import ROOT

IDENTITIES = {
    "raw": '"partition", "offset"', "ticks": 'log, "partition", "offset", "index", coalesce(flags, 0) & 2', "bars_1m": "symbol, source, minute",
    "windows": "symbol, source, second", "alerts": "id, state, as_of", "predictions": "id, horizon_s", "outcomes": "id, horizon_s",
}  # fmt: skip
"""By view: what no two rows have in common."""
PAUSE_S = 1.0


def counted(engine: Any) -> dict[str, dict[str, tuple[int, int]]]:
    """By view and folder: the number of rows, and of identities."""
    found = {}
    for view, identity in IDENTITIES.items():
        folder = "date" if view in ("bars_1m", "alerts") else "concat(date, ' ', hour)"
        rows, _ = engine.run(f"SELECT CAST({folder} AS VARCHAR), count(*), count(DISTINCT ({identity})) FROM {view} GROUP BY 1").fetch()
        found[view] = {str(name): (int(count), int(different)) for name, count, different in rows}
    return found


def wrong(before: dict[str, dict[str, tuple[int, int]]], now: dict[str, dict[str, tuple[int, int]]]) -> list[str]:
    """What cannot be: rows that are there twice, or fewer rows of a folder than before."""
    faults = [
        f"{view} {folder}: {count} rows, of them only {different} different"
        for view, folders in now.items() for folder, (count, different) in folders.items() if count != different
    ]  # fmt: skip
    for view, folders in before.items():
        for folder, (count, _) in folders.items():
            if (left := now[view].get(folder, (0, 0))[0]) < count:
                faults.append(f"{view} {folder}: {left} rows, {count} before")
    return faults


class Reader:
    """The reader as a process beside a pipeline, in a `with` block. `judge` when it has ended."""

    def __init__(self, url: str, environment: dict[str, str], folder: Path) -> None:
        self._log = folder / "counting.jsonl"
        self._output: IO[bytes] = self._log.open("wb")
        self._child = Child([sys.executable, "-m", "tests.faults.counting", url], output=self._output, environment=environment | {"PYTHONPATH": str(ROOT)})
        self.counts: dict[str, int] = {}
        self.rounds = self.refused = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    def has_counted(self) -> bool:
        return '"rows"' in self._log.read_text()

    def close(self) -> None:
        self._child.kill()
        self._child.wait()
        self._output.close()

    def judge(self, outages: Sequence[tuple[float, float]]) -> list[str]:
        """What was wrong in any round. A round may fail during one of the store's outages (epoch s), and at no other time."""
        faults = []
        for text in self._log.read_text().splitlines():
            try:
                found = json.loads(text)
            except json.JSONDecodeError:
                faults.append(f"the reader: {text}")
                break
            if error := found.get("error"):
                self.refused += 1
                if not any(begin <= found["at"] and found["begun"] <= end for begin, end in outages):
                    faults.append(f"the reader: {error}")
                continue
            self.rounds += 1
            self.counts = found["rows"]
            faults += found["faults"]
        return faults


def main(url: str) -> None:
    before: dict[str, dict[str, tuple[int, int]]] = {}
    store = open_store(url)
    while True:
        begun = time.time()
        try:
            with connect(store) as engine:
                now = counted(engine)
        except ArchiveError as error:
            line: dict[str, Any] = {"error": str(error)}
        else:
            line = {"rows": {view: sum(count for count, _ in folders.values()) for view, folders in now.items()}, "faults": wrong(before, now)}
            before = now
        print(json.dumps({"begun": begun, "at": time.time(), **line}), flush=True)
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1])

"""A line with compactors and a reader beside it."""

from __future__ import annotations

import contextlib

from tests.faults.compactors import Compactors
from tests.faults.counting import Reader
from tests.faults.line import Line
from tests.faults.workers import Failed


class Watched:
    """A line with compactors beside it, which are killed and frozen, and with a reader. Use in a `with` block."""

    def __init__(self, line: Line, pause_s: float) -> None:
        self._line = line
        self._held = contextlib.ExitStack()
        self.compactors = self._held.enter_context(Compactors(line.settings.archive, line.environment, line.seed, pause_s))
        self.reader = self._held.enter_context(Reader(line.settings.archive, line.environment, line.folder))

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def begun(self) -> bool:
        return self.reader.has_counted() and bool(self.compactors.work.ended["whole"])

    def seen_enough(self) -> bool:
        ended = self.compactors.work.ended
        return bool(ended["killed"] and ended["woken"] and ended["whole"])

    def judge(self) -> None:
        """Raises `Failed` if a reading was wrong, or a compactor failed. Compactors have stopped."""
        self.reader.close()
        faults = self.reader.judge(self._line.place.outages) + self.compactors.judge(self._line.place.outages)
        work, reader = self.compactors.work, self.reader
        self._line.count("compactor killed", work.ended["killed"])
        self._line.count("compactor frozen and woken", work.ended["woken"])
        self._line.say(f"  compactors: {work}; {reader.rounds} readings, {reader.refused} without an answer, the last {reader.counts}; wrong: {len(faults)}")
        if faults or not reader.rounds:
            raise Failed(f"{len(faults)} things are wrong beside compactions, the first {faults[:1]}; see {self._line.folder}")

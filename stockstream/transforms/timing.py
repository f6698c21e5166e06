"""The log's rules about time: each stands here once, and the state machines, the views and the settings read it here.

The names of some columns contain them too (`mean_5m`, `return_60s`): a test holds the schema, the page's texts and the models' features to these values.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_S = 300
"""Seconds of the rolling window, up to and including its last one. A series ends, and a symbol may change its source, after as long a silence."""
GAP_S, MAX_GAP_S = 60, 8 * 3600
"""A trade after more than the first and at most the second of these without one carries the gap before it: a halt or a thin hour, but not a night."""
LAGS_S = (1, 5, 10, 30, 60)
"""Seconds over which a row has a return: `return_1s` to `return_60s`."""
ACCRUED_MS = 2_000
"""What a cumulative volume has risen by over more event time than this was not traded in one second."""
FORGET_MS = 24 * 3_600_000
"""By the log clock: every state machine forgets a source that was silent for longer, all of them by the same clock."""
FUTURE_MS = 2_000
"""A tick may be ahead of its record's Kafka time by this much: clocks differ."""
LATENESS_MS = 200
"""How far a source's watermark must pass a second's end before the second closes, where nothing else is set for the source."""
MAX_LATENESS_MS = 60_000
REVISE_S = 30
"""How many seconds back a late tick may change; the default of STOCKSTREAM_REVISE_S."""
MAX_REVISE_S = 120


@dataclass(frozen=True, slots=True)
class Lateness:
    """How far a source's watermark must pass a second's end before the second closes, in milliseconds: one value for all sources, and others by name.

    A name in `by_source` is that of a source, or of all sources whose names go on with a dot: `yahoo` holds for `yahoo` and for `yahoo.2`.
    """

    default_ms: int = LATENESS_MS
    by_source: tuple[tuple[str, int], ...] = ()

    @classmethod
    def parse(cls, text: str) -> Lateness:
        """From `200,yahoo=2500`: the value for all sources, then those by name. Raises `ValueError` with what is wrong."""
        default: int | None = None
        by_source: dict[str, int] = {}
        for part in (part.strip() for part in text.split(",")):
            name, equals, value = (piece.strip() for piece in part.rpartition("="))
            if not value.isascii() or not value.isdigit() or int(value) > MAX_LATENESS_MS or (equals and not name):
                raise ValueError(f"{part!r} is not milliseconds from 0 to {MAX_LATENESS_MS}, as in 200, nor those of a source, as in yahoo=2500")
            if name in by_source or (not name and default is not None):
                raise ValueError(f"{name or 'the value for all sources'} is given twice")
            if name:
                by_source[name] = int(value)
            else:
                default = int(value)
        return cls(LATENESS_MS if default is None else default, tuple(by_source.items()))

    def of(self, source: str) -> int:
        """The lateness of a source, in milliseconds: the longest name that fits counts."""
        fitting = [(len(name), value) for name, value in self.by_source if source == name or source.startswith(f"{name}.")]
        return max(fitting)[1] if fitting else self.default_ms


LATENESS = "200,yahoo=2500,alpha_vantage=2500"
"""The default of STOCKSTREAM_LATENESS_MS. Feeds whose times are whole seconds need more than a second: their symbols come one after the other."""

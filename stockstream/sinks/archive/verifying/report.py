"""What a verification has found."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class Coverage:
    """One partition of one log: `objects` account for the offsets `first` to `last`, of which `holes` have no record and `records` are archived.

    `processed`: the last offset whose ticks are stored, -1 if there is none; `unprocessed`: number of records after it; `ticks`: number of stored ticks;
    `missing`: number of offsets whose result of `clean` was lost. `compared` rows were computed again from raw and are the same; `not_compared` raw records
    could not be, the first for `reason`. `begun`: number of unprocessed raw objects of which some objects are there; `unprocessed_since`: the folder of the
    first unprocessed one. `windows_through`: the last raw offset of which the archive has windows, -1 if that is not known.
    """

    log: str
    partition: int
    first: int = 0
    last: int = -1
    objects: int = 0
    records: int = 0
    holes: int = 0
    processed: int = -1
    unprocessed: int = 0
    ticks: int = 0
    missing: int = 0
    compared: int = 0
    not_compared: int = 0
    reason: str = ""
    begun: int = 0
    unprocessed_since: str = ""
    windows_through: int = -1


@dataclass(slots=True)
class TopicCoverage:
    """What the archive has of a topic: `rows` from `records`, of which `skipped` were no messages; `missing` were deleted by retention before.

    `unwritten` are rows of the newest positions whose objects a writer creates now, or the next one will.
    """

    rows: int = 0
    records: int = 0
    skipped: int = 0
    missing: int = 0
    unwritten: int = 0


@dataclass(slots=True)
class Report:
    """The contents of the archive, and all faults, one line each. Of `objects` whose contents can be checked, `read` were read now, `before` by an earlier run;
    `partial`: not all of them were to be read.
    """

    chains: list[Coverage] = field(default_factory=list)
    repaired: int = 0
    """Repaired bars."""
    topics: dict[str, TopicCoverage] = field(default_factory=dict)
    """By area: windows, alerts, predictions and outcomes; only those that the archive has."""
    faults: list[str] = field(default_factory=list)
    objects: int = 0
    read: int = 0
    before: int = 0
    partial: bool = False

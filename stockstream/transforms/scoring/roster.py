"""The roster of one partition: which models score from which raw offset on, which are suspended, and who was champion before.

Every change is an entry that begins at a raw offset. Rows are scored by the entry in force at their offset, so predictions are a function of the log and
the roster. A suspended model stays listed with its reason, so that a restart does not try the same artefact again.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from stockstream.records import Role

MAX_FALLBACKS = 4
"""Former champions that are remembered, the last one first."""
MAX_SUSPENDED = 8
"""Suspended models that are remembered, the newest first."""
MAX_DETAIL = 200
"""Characters of a suspension's reason in words."""

Key = tuple[str, str]
"""Name and version of a model."""


@dataclass(frozen=True, slots=True)
class Member:
    """A model by name. `suspended` is why it does not score, in one word (empty while it does), `detail` the same in a sentence.

    `stamp` identifies what was loaded: a model that is mended or promoted again has another one and counts as a new member.
    """

    role: Role
    name: str
    version: str
    stamp: str = ""
    suspended: str = ""
    detail: str = ""

    @property
    def key(self) -> Key:
        return self.name, self.version


@dataclass(frozen=True, slots=True)
class Entry:
    """The members from the raw offset `start` on; `fallbacks` were champions before and never failed as such."""

    start: int
    members: tuple[Member, ...]
    fallbacks: tuple[Key, ...] = ()


class Roster:
    """Entries in the order of their offsets. `changes` counts what was changed, `saved` is false while there is a change that no record holds."""

    def __init__(self, entries: Iterable[Entry] = (), changes: int = 0) -> None:
        self.entries = list(entries)
        self.changes = changes
        self.saved = True

    @property
    def members(self) -> tuple[Member, ...]:
        """Of the newest entry."""
        return self.entries[-1].members if self.entries else ()

    @property
    def champion(self) -> Member | None:
        """The champion of the newest entry, unless it is suspended."""
        return next((m for m in self.members if m.role == "champion" and not m.suspended), None)

    @property
    def fallbacks(self) -> tuple[Key, ...]:
        """Former champions, the last one first, without those that are suspended now."""
        out = {member.key for member in self.members if member.suspended}
        return tuple(key for key in self.entries[-1].fallbacks if key not in out) if self.entries else ()

    @property
    def keys(self) -> set[Key]:
        """The models that some entry lets score."""
        return {member.key for entry in self.entries for member in entry.members if not member.suspended}

    def at(self, offset: int) -> tuple[Member, ...]:
        """The members that are in force at a raw offset."""
        return next((entry.members for entry in reversed(self.entries) if entry.start <= offset), ())

    def since(self, member: Member) -> int:
        """The raw offset from which on the newest entries list this member as it is now."""
        start = self.entries[-1].start
        for entry in reversed(self.entries):
            if member not in entry.members:
                break
            start = entry.start
        return start

    def change(self, active: Iterable[Member], from_offset: int) -> None:
        """Makes `active` the members from an offset on. Suspended models that are not among them stay listed."""
        chosen = tuple(active)
        keys = {member.key for member in chosen}
        members = (*chosen, *[m for m in self.members if m.suspended and m.key not in keys][:MAX_SUSPENDED])
        if members == self.members:
            return
        before, now = self.champion, next((m.key for m in chosen if m.role == "champion" and not m.suspended), None)
        former = [before.key] if before else []
        former += [key for key in (self.entries[-1].fallbacks if self.entries else ()) if key not in former]
        fallbacks = tuple(key for key in former if key != now)[:MAX_FALLBACKS]
        self.entries = [entry for entry in self.entries if entry.start < from_offset] + [Entry(from_offset, members, fallbacks)]
        self.changes += 1
        self.saved = False

    def suspend(self, member: Member, reason: str, detail: str, from_offset: int) -> Member:
        """Suspends a member from an offset on, in later entries too; the same model with another stamp goes on. Returns it as it is listed then."""
        words = " ".join(detail[: 4 * MAX_DETAIL].split())[:MAX_DETAIL].encode(errors="replace").decode()
        out = replace(member, suspended=reason, detail=words)
        in_force = next((entry for entry in reversed(self.entries) if entry.start <= from_offset), None)
        if in_force is not None and in_force.start < from_offset and member in in_force.members:
            self.entries.insert(self.entries.index(in_force) + 1, replace(in_force, start=from_offset))
        for number, entry in enumerate(self.entries):
            if entry.start >= from_offset and member in entry.members:
                kept = [m for m in entry.members if m != member]
                active, suspended = [m for m in kept if not m.suspended], [m for m in kept if m.suspended]
                members = (*active, out, *suspended[: MAX_SUSPENDED - 1])
                self.entries[number] = replace(entry, members=members, fallbacks=tuple(key for key in entry.fallbacks if key != member.key))
                self.changes += 1
                self.saved = False
        return out

    def begin(self) -> None:
        """Another log: its offsets do not apply to this one, but the models stay."""
        self.entries = [replace(self.entries[-1], start=0)] if self.entries else []
        self.saved = not self.entries

    def prune(self, expect: int) -> None:
        """Forgets entries that no row from `expect` on needs."""
        while len(self.entries) > 1 and self.entries[1].start <= expect:
            del self.entries[0]
